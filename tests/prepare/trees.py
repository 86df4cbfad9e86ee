"""Small data sets in real layouts, ways to break them, and listings of results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from piti.data.edges import LineSpec

QUICK = LineSpec(smoothing=0, shortest=2)
"""Lines that take no time."""


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    return save(path, np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def labels(*values: int, size: tuple[int, int] = (24, 16), dtype: type = np.uint8) -> np.ndarray:
    """Bands of these values, one below the other."""
    rows = np.arange(size[1]) * len(values) // size[1]
    return np.repeat(np.array(values)[rows][:, None], size[0], 1).astype(dtype)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scene_parse(root: Path) -> Path:
    for split, short, count in (("training", "train", 4), ("validation", "val", 2)):
        for k in range(1, count + 1):
            name = f"ADE_{short}_{k:08d}"
            photograph(root / "ADEChallengeData2016/images" / split / f"{name}.jpg", k)
            save(root / "ADEChallengeData2016/annotations" / split / f"{name}.png", labels(0, 1, 150, k))
    lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall", "2\t0.1072\t6046\t612\tbuilding, edifice"]
    (root / "ADEChallengeData2016/objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return root


def ade_colours(ids: np.ndarray) -> np.ndarray:
    """Red and green as the full release has them, blue counting instances."""
    return np.stack([ids // 256 * 10, ids % 256, (ids > 0) * 255], -1).astype(np.uint8)


def ade_full(root: Path, ids: tuple[tuple[int, ...], ...] = ((0, 1, 255), (256, 2978, 2978), (0, 6655, 1))) -> Path:
    names = {1: "abacus", 255: "ball", 256: "bar", 2978: "wall"}
    for k, values in enumerate(ids):
        split, short = ("training", "train") if k < 2 else ("validation", "val")
        stem = root / "ADE20K_2021_17_01/images/ADE" / split / "urban/street" / f"ADE_{short}_{k + 1:08d}"
        photograph(stem.with_suffix(".jpg"), k)
        save(stem.with_name(f"{stem.name}_seg.png"), ade_colours(labels(*values, dtype=np.int64)))
        save(stem.with_name(f"{stem.name}_parts_1.png"), ade_colours(labels(7, dtype=np.int64)))
        save(stem / f"instance_000_{stem.name}.png", labels(0, 255))
        objects = [{"id": 0, "name": names[value], "name_ndx": value} for value in values if value in names]
        stem.with_suffix(".json").write_text(json.dumps({"annotation": {"object": objects}}))
    return root


def coco(root: Path) -> Path:
    for split, count in (("train2017", 3), ("val2017", 2)):
        for k in range(count):
            name = f"{k:012d}"
            photograph(root / "images" / split / f"{name}.jpg", k)
            save(root / "annotations" / split / f"{name}.png", labels(0, 181, 255, k))
            save(root / "annotations" / split / f"{name}_labelTrainIds.png", labels(0, 170, 255, k))
    photograph(root / "images/test2017/000000000001.jpg")
    return root


def cityscapes(root: Path) -> Path:
    for split, city, count in (("train", "aachen", 3), ("val", "ulm", 2), ("test", "berlin", 1)):
        for k in range(count):
            name = f"{city}_{k:06d}_000019"
            folder = root / "gtFine" / split / city
            photograph(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", k)
            save(folder / f"{name}_gtFine_labelIds.png", labels(0, 4, 7, 33, 18))
            save(folder / f"{name}_gtFine_instanceIds.png", labels(0, 7000, dtype=np.uint16))
            save(folder / f"{name}_gtFine_color.png", np.zeros((16, 24, 3), np.uint8))
    return root


def diode(root: Path, normals: bool = True) -> Path:
    for split, kind, count in (("train", "indoors", 3), ("val", "outdoor", 2)):
        for k in range(count):
            folder = root / split / kind / "scene_00019" / "scan_00183"
            stem = folder / f"00019_00183_{kind}_000_{k:03d}"
            photograph(stem.with_suffix(".png"), k)
            depth = np.linspace(1, 5, 24 * 16, dtype=np.float32).reshape(16, 24, 1)
            mask = np.ones((16, 24), np.float32)
            mask[:4] = 0
            np.save(f"{stem}_depth.npy", depth)
            np.save(f"{stem}_depth_mask.npy", mask)
            if normals:
                normal = np.zeros((16, 24, 3))
                normal[:8] = (0, 0, 1)  # a wall that faces the camera: z towards the viewer
                normal[8:] = (0, 0.8, 0.6)  # a slope below it, up and towards the viewer
                normal[:, :2] = 0
                np.save(f"{stem}_normal.npy", normal)
    return root
