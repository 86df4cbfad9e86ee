"""Prepare photographs with captions for training a prior: `python tools/prior_photographs.py OUT --scenes TAR [TAR …]`.

The tars contain photographs `KEY.jpg` and captions `KEY.txt`. The held-out photographs are those of
`tools/scene_sketches.py`, so that their sketches are also new to a prior. --photographs TAR [TAR …] adds others for
training only; --streets CAMVID adds the training split of a folder of pairs, with one caption. Images are shrunk to a
short side of at most 96 px. Then: `piti train prior-scenes --data OUT`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from piti.core.images import read_rgb
from piti.data.archives import Archived, list_archived
from piti.data.pairs import SPLITS_FILE, read_splits, split_by_hash

SIDE = 96
STREETS = "a photo of a street, seen from a car"


def keep(out: Path, key: str, image: Image.Image, caption: str) -> str:
    """Write a photograph and its caption; returns the key."""
    short = min(image.size)
    if short > SIDE:
        size = (round(image.width * SIDE / short), round(image.height * SIDE / short))
        image = image.resize(size, Image.Resampling.LANCZOS)
    for folder in ("images", "captions"):
        (out / folder / key).parent.mkdir(parents=True, exist_ok=True)
    image.save(out / f"images/{key}.jpg", quality=95)
    (out / f"captions/{key}.txt").write_text(caption, encoding="utf-8")
    return key


def keep_all(out: Path, place: str, tars: Iterable[Path]) -> list[str]:
    """Write all photographs of some tars as PLACE/KEY; returns their keys in the tars."""
    photographs = [one for tar in tars for one in list_archived(tar)]
    captions: dict[str, Archived] = {one.key: one for tar in tars for one in list_archived(tar, {".txt"})}
    if without := [one.key for one in photographs if one.key not in captions]:
        raise SystemExit(f"{len(without)} photographs have no .txt beside them, such as {without[0]}")
    for one in photographs:
        caption = captions[one.key].open().read().decode().strip()
        keep(out, f"{place}/{one.key}", read_rgb(one), caption)
    return [one.key for one in photographs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=Path, nargs="+", required=True)
    parser.add_argument("--photographs", type=Path, nargs="*", default=[])
    parser.add_argument("--streets", type=Path)
    given = parser.parse_args()
    scenes = split_by_hash(keep_all(given.out, "scenes", given.scenes))
    train = [f"scenes/{key}" for key in scenes["train"]]
    train += [f"photographs/{key}" for key in keep_all(given.out, "photographs", given.photographs)]
    if given.streets is not None:
        splits = read_splits(given.streets / SPLITS_FILE)
        if splits is None:
            parser.error(f"{given.streets} has no {SPLITS_FILE}, so its held-out photographs are unknown")
        for key in splits["train"]:
            train.append(keep(given.out, f"streets/{key}", read_rgb(given.streets / f"images/{key}.jpg"), STREETS))
    held_out = [f"scenes/{key}" for key in scenes["val"]]
    (given.out / SPLITS_FILE).write_text(json.dumps({"train": train, "val": held_out}), encoding="utf-8")
    print(f"{len(train)} photographs to train on, {len(held_out)} held out")


if __name__ == "__main__":
    main()
