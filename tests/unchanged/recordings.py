"""Recorded values: exact under a fingerprint of the machine, within a tolerance elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT

RECORDED = Path(__file__).parent / "recorded"
WRITTEN = Path(__file__).parent / "written"
MOST_OF_PIXELS, MEAN_OF_PIXELS = 2, 0.1  # of 255, on another machine
RELATIVE = {"grad_norm": 1e-2, "discriminator_grad_norm": 1e-2, "adversarial": 1e-2}  # on another machine
OTHERWISE = 3e-4
_SAMPLED = 500  # pixels of an image that are kept
_UNTOLD = frozenset({"made_on", "version", "raw", "edit_inputs_sha256"})
"""Metadata that differs between machines, versions and zlibs; the last is a hash of an image's exact pixels."""
_TIMED = frozenset({"images_per_second", "seconds", "waiting"})


def fingerprint() -> str:
    """What decides the last bits of a number on a CPU; the tests run in one thread."""
    cpu = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, pillow {PIL.__version__}, {_cpu_name()}, {cpu}, 1 thread"


def recording() -> bool:
    """Whether values are to be recorded instead of compared."""
    return os.environ.get("PITI_RECORD", "") not in ("", "0")


def writing() -> bool:
    """Whether the files that stand for those of an earlier version are to be made anew."""
    return os.environ.get("PITI_RECORD") == "written"


def weights_of(models: Sequence[str]) -> str:
    """The hash of bundled models' weight files."""
    digest = hashlib.sha256()
    for model in models:
        files = sorted(ROOT.glob(f"piti/**/{model}/*/*.safetensors"))
        assert files, f"the bundled model '{model}' has no weights under {ROOT / 'piti'}"
        for file in files:
            digest.update(file.parent.name.encode() + file.read_bytes())
    return digest.hexdigest()


def skip_if_changed(name: str, weights: str) -> None:
    """Skips a test of bundled models whose weights are not those that were recorded under `name`."""
    if not recording() and _read(name).get("weights") != weights:
        pytest.skip(f"{name}: weights changed since recorded; see tests/unchanged/__init__.py")


def check_images(name: str, files: Mapping[str, Path | Any], weights: str | None = None) -> None:
    """Compare PNGs, pixels and metadata, with what was recorded under `name`. weights: of bundled models."""
    assert files, f"{name}: nothing was made"
    pixels, said = {}, {}
    for key, file in files.items():
        with Image.open(file) as image:
            told = {k.removeprefix("piti:"): v for k, v in getattr(image, "text", {}).items()}
            said[key] = {k: v for k, v in told.items() if k not in _UNTOLD}
            pixels[key] = np.asarray(image)
    hashes = {key: _hash(value) for key, value in pixels.items()}
    samples = {key: _sample(value) for key, value in pixels.items()}
    sizes = {key: list(value.shape) for key, value in pixels.items()}
    if recording():
        np.savez_compressed(RECORDED / f"{name}.npz", **samples)
        facts = {"sizes": sizes, "said": said} | ({} if weights is None else {"weights": weights})
        _record(name, facts, hashes)
    known = _read(name)
    assert (sizes, said) == (known["sizes"], known["said"]), name
    assert_alike(name, samples, dict(np.load(RECORDED / f"{name}.npz")))
    if fingerprint() in known["exact"]:
        assert hashes == known["exact"][fingerprint()], f"{name}: pixels differ in their last bits"


def assert_alike(name: str, made: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Pixels within the tolerance of another machine."""
    assert made.keys() == wanted.keys(), name
    for key, values in made.items():
        difference = np.abs(values.astype(int) - wanted[key].astype(int))
        found = f"{name}, {key}: differs by up to {difference.max()} of 255, {difference.mean():.3f} in the mean"
        assert difference.max() <= MOST_OF_PIXELS, found
        assert difference.mean() <= MEAN_OF_PIXELS, found


def read_rows(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without what depends on a clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in _TIMED} for line in lines]


def check_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Compare a run's metrics with what was recorded under `name`."""
    assert rows, f"{name}: nothing was logged"
    told = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    if recording():
        _record(name, {"rows": rows}, {"rows": told})
    known = _read(name)
    assert_same_curve(name, rows, known["rows"])
    if fingerprint() in known["exact"]:
        assert told == known["exact"][fingerprint()]["rows"], f"{name}: losses differ in their last bits"


def assert_same_curve(name: str, rows: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Metrics within the tolerance of another machine."""
    assert [sorted(row) for row in rows] == [sorted(row) for row in wanted], name
    for row, other in zip(rows, wanted, strict=True):
        for key, value in row.items():
            if isinstance(value, str) or value is None:
                assert value == other[key], (name, row["step"], key)
            else:
                near = pytest.approx(other[key], rel=RELATIVE.get(key, OTHERWISE), abs=1e-6)
                assert value == near, (name, row["step"], key)


def _record(name: str, facts: dict[str, Any], exact: dict[str, str]) -> None:
    values = facts | {"exact": {fingerprint(): exact}}
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
    (RECORDED / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    path = RECORDED / f"{name}.json"
    assert path.is_file(), f"{path}: nothing was recorded; see tests/unchanged/__init__.py"
    return json.loads(path.read_text(encoding="utf-8"))


def _hash(pixels: np.ndarray) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _sample(pixels: np.ndarray) -> np.ndarray:
    """Every n-th row and column, so that about `_SAMPLED` pixels are left."""
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / _SAMPLED) ** 0.5))
    return pixels[::step, ::step]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    told = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {key.strip(): value.strip() for key, value in told.items()}
    names = ("model name", "cpu family", "model", "stepping")
    return " ".join(told.get(key, "?") for key in names) if told else platform.processor() or platform.machine()
