"""Fuzz all readers with damaged inputs: each must be read, or refused with a UserError.

    python benchmarks/fuzz.py [--count 10000] [--seed 0] [--only pictures,arrays]

Valid files are created, then damaged: bytes flipped, removed, doubled, zeroed; values of JSON replaced; texts of a PNG
changed. Readers may only raise `UserError`. They must not run code (tested with pickles), write files, or use more than
`MEMORY`. Prints a row per reader and the first tracebacks; the exit status states whether there were any.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import pickle
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from piti.checkpoints.folder import ModelFolder
from piti.checkpoints.weights import check_sums, read_weights
from piti.conditions import ClassTable, MaskCondition, SketchCondition
from piti.conditions.geometry import GeometryCondition
from piti.core.errors import UserError
from piti.core.images import image_size, loss_as_rgb, open_image, png_bytes, read_rgb
from piti.data.pairs import read_splits
from piti.data.shards.index import read_manifest
from piti.generation.metadata_schema import own_condition
from piti.generation.recreate import read_record
from piti.training import read_recipe

MEMORY = 2 * 2**30
"""Largest memory growth of a reader in bytes."""
_VALUES: list[Any] = [None, "x", "", -1, 0, 1.5, True, [], {}, [1] * 50, {"a": 1}, 10**30, float("nan"), "\u202e", [[]]]
_CLASSES = {"classes": [{"id": k, "name": f"c{k}", "color": [k, 9, 9]} for k in range(3)], "ignore": 255}

Damage = Callable[[random.Random, bytes], bytes]
Read = Callable[[Path], Any]


@dataclass
class Reader:
    """A kind of input: valid files by name, and functions that damage and read them."""

    wholes: dict[str, bytes]
    damage: Damage
    reads: list[Read]
    share: float = 1.0
    """Share of the count, relative to other readers."""


@dataclass
class Report:
    """Results of a reader's damaged inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Tracebacks and other failures."""


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, remove, double or zero a few bytes, or truncate."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0:
                data = data[:at] + bytes(rng.randrange(256) for _ in range(length)) + data[at + length :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case 4:
                data = data[:at] + bytes(length) + data[at + length :]
            case _:
                data = data[:at] + b"\xff" * length + data[at + length :]
    return data


def damaged_values(rng: random.Random, data: bytes) -> bytes:
    """JSON or YAML with replaced values, a removed or added key, or damaged bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    values = yaml.safe_load(data)
    for _ in range(rng.randint(1, 2)):
        places = list(_places(values))
        if not places:
            return json.dumps(rng.choice(_VALUES)).encode()
        holder, key = rng.choice(places)
        if isinstance(holder, dict) and rng.random() < 0.2:
            holder.pop(key)
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[f"{key}x"] = copy.deepcopy(rng.choice(_VALUES))
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return json.dumps(values).encode()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield values, key
        yield from _places(values[key])


def damaged_texts(rng: random.Random, data: bytes) -> bytes:
    """A PNG with changed texts, otherwise valid."""
    image = Image.open(io.BytesIO(data))
    texts = {str(key): str(value) for key, value in image.info.items()}
    key = rng.choice(list(texts))
    letters = damaged_bytes(rng, texts[key].encode()).decode("latin-1")
    texts[key] = rng.choice([letters, json.dumps(rng.choice(_VALUES)), "\x1b[31m", "9" * 400])
    return png_bytes(image.convert("RGB"), texts)


class _Mark:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def readers(folder: Path) -> dict[str, Reader]:
    """All readers. folder: for valid files."""
    mask = MaskCondition(ClassTable.parse(_table(), "fuzz"))
    geometry, sketch = GeometryCondition(), SketchCondition()
    pictures: list[Read] = [open_image, read_rgb, image_size, loss_as_rgb, mask.load, sketch.load, geometry.load]
    found = {
        "pictures": Reader(_pictures(), damaged_bytes, pictures, 3.0),
        "arrays": Reader(_arrays(folder), damaged_bytes, [geometry.load], 2.5),
        "classes.json": Reader({"c.json": json.dumps(_CLASSES).encode()}, damaged_values, [ClassTable.read]),
        "splits.json": Reader({"s.json": b'{"train": ["a", "b/c"], "val": ["d"]}'}, damaged_values, [read_splits], 0.6),
        "recipes": Reader(_recipes(), damaged_values, [lambda path: read_recipe(str(path), [])], 0.7),
        "manifests": Reader(
            {"shards.json": json.dumps(_manifest()).encode()}, damaged_values, [lambda path: read_manifest(str(path))]
        ),
        "weights": Reader(_weights(folder), damaged_bytes, [read_weights, check_sums], 0.8),
        "model folders": Reader(_model(), damaged_values, [_opened], 0.6),
        "PNG metadata": Reader(_made(), damaged_texts, [read_record, lambda path: own_condition(path, mask)], 0.6),
    }
    exr = _exr(folder)
    return found | ({"EXR": Reader(exr, damaged_bytes, [geometry.load], 0.5)} if exr else {})


def run(only: set[str], count: int, seed: int) -> dict[str, Report]:
    """Damage and read `count` files, distributed over the readers by their shares; only: names of readers, empty for
    all."""
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        known = readers(root)
        chosen = {key: one for key, one in known.items() if not only or key in only}
        total = sum(one.share for one in chosen.values())
        for key, reader in chosen.items():
            work = root / "work" / key
            work.mkdir(parents=True)
            report = reports[key] = Report()
            rng = random.Random(f"{seed} {key}")
            for number in range(round(count * reader.share / total)):
                _one(reader, rng, work, report, number)
            if (root / "mark").exists():
                report.faults.append("code was run")
    return reports


def _one(reader: Reader, rng: random.Random, work: Path, report: Report, number: int) -> None:
    name = rng.choice(list(reader.wholes))
    path = work / Path(name).name
    path.write_bytes(reader.damage(rng, reader.wholes[name]))
    if "/" in name:  # one file of a folder; the others are valid
        path = _folder_of(work, name, reader.wholes, path.read_bytes())
    before = {one: one.stat().st_size for one in work.rglob("*")}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for read in reader.reads:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            report.outcomes["read"] += 1
        except UserError:
            report.outcomes["refused in words"] += 1
        except Exception:  # noqa: BLE001 - to be reported, whatever it is
            report.outcomes["traceback"] += 1
            report.faults.append(f"number {number}, {name}:\n{traceback.format_exc()}")
    if {one: one.stat().st_size for one in work.rglob("*")} != before:
        report.faults.append(f"number {number}, {name}: reading wrote something")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory > MEMORY:
        report.faults.append(f"number {number}, {name}: took more than {MEMORY} bytes")
    for one in sorted(work.rglob("*"), reverse=True):
        one.rmdir() if one.is_dir() else one.unlink()


def _folder_of(work: Path, name: str, wholes: dict[str, bytes], damaged: bytes) -> Path:
    (work / Path(name).name).unlink()
    for other, data in wholes.items():
        target = work / "model" / other.removeprefix("./")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(damaged if other == name else data)
    return work / "model"


# Whole files


def _table() -> dict[str, Any]:
    entries = _CLASSES["classes"]
    assert isinstance(entries, list)
    return {
        "names": [one["name"] for one in entries],
        "ids": [one["id"] for one in entries],
        "colours": [one["color"] for one in entries],
    }


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pictures() -> dict[str, bytes]:
    values = np.random.default_rng(0).integers(0, 3, (12, 16)).astype(np.uint8)
    grey, palette = Image.fromarray(values), Image.fromarray(values).convert("P")
    palette.putpalette([0, 0, 0, 1, 9, 9, 2, 9, 9])
    rgb, deep = grey.convert("RGB"), Image.fromarray(values.astype(np.uint16) * 900 + 1)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey.png": _saved(grey, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=0),
        "deep.png": _saved(deep, "PNG"),
        "alpha.png": _saved(grey.convert("RGBA"), "PNG"),
        "photo.jpg": _saved(rgb, "JPEG", exif=turned),
        "photo.webp": _saved(rgb, "WEBP"),
        "photo.bmp": _saved(rgb, "BMP"),
        "deep.tif": _saved(deep, "TIFF"),
        "packed.tiff": _saved(rgb, "TIFF", compression="tiff_lzw"),
    }


def _arrays(folder: Path) -> dict[str, bytes]:
    depth = np.random.default_rng(0).uniform(1, 5, (6, 8)).astype(np.float32)
    normal = np.zeros((6, 8, 3), np.float32)
    normal[..., 2] = -1
    plain, several, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, depth)
    np.savez_compressed(several, depth=depth, mask=depth > 2, normal=normal)
    np.save(objects, np.array([_Mark(str(folder / "mark"))], object), allow_pickle=True)
    return {"a.npy": plain.getvalue(), "a.npz": several.getvalue(), "objects.npy": objects.getvalue()}


def _exr(folder: Path) -> dict[str, bytes]:
    try:
        import OpenEXR
    except ImportError:
        return {}
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    path = folder / "whole.exr"
    with OpenEXR.File(header, {"Z": np.ones((6, 8), np.float32)}) as file:
        file.write(str(path))
    return {"a.exr": path.read_bytes()}


def _recipes() -> dict[str, bytes]:
    folder = Path(__file__).resolve().parent.parent / "piti" / "recipes"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.yaml"))}


def _manifest() -> dict[str, Any]:
    entry = {"name": "train-000.tar", "samples": 3, "bytes": 10240, "sha256": "0" * 64}
    return {"splits": {"train": [entry], "val": [entry | {"name": "val-000.tar"}]}, "conditions": {"labels": "labels"}}


def _weights(folder: Path) -> dict[str, bytes]:
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2)}
    both, old, plain = io.BytesIO(), io.BytesIO(), folder / "whole.safetensors"
    torch.save({"model": weights, "ema": weights, "step": 3}, both)
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    save_file(weights, plain)
    evil = pickle.dumps({"model": _Mark(str(folder / "mark"))})
    held = {"both.pt": both.getvalue(), "old.pt": old.getvalue(), "plain.safetensors": plain.read_bytes()}
    return held | {"evil.pt": evil}


def _model() -> dict[str, bytes]:
    root = Path(__file__).resolve().parent.parent / "piti" / "assets" / "scenes-prior"
    names = ["condition.json", "model_index.json", "base/config.json", "scheduler/scheduler_config.json"]
    return {f"./{name}": (root / name).read_bytes() for name in names}


def _opened(path: Path) -> None:
    folder = ModelFolder.open(path)
    assert isinstance(folder.defaults, dict)
    if "base" in folder:
        folder.arguments("base")
        folder.scheduler("base")


def _made() -> dict[str, bytes]:
    form = {"dtype": "uint8", "shape": [1, 2, 2], "of": [2, 2], "reads": "0" * 16}
    guidance = json.dumps({"kind": "normalized", "w": 1.0})
    texts = {"model": "street", "seed": "0", "number": "0", "condition": "a.png", "sampler": "ddpm", "steps": "2"}
    texts |= {"guidance": guidance, "batch": "[0, 1, 0, 1]", "raw_form": json.dumps(form), "raw": "eJxjYGBgAAAABAAB"}
    return {"a.png": png_bytes(Image.new("RGB", (8, 8)), {f"piti:{key}": value for key, value in texts.items()})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of readers, separated by commas")
    given = parser.parse_args()
    reports = run(set(filter(None, given.only.split(","))), given.count, given.seed)
    for name, report in reports.items():
        told = ", ".join(f"{count} {what}" for what, count in sorted(report.outcomes.items()))
        print(f"{name}: {told}, {len(report.faults)} faults")
        print("\n".join(report.faults[:5]))
    sys.exit(any(report.faults for report in reports.values()))


if __name__ == "__main__":
    main()
