"""Prepare the training pairs of `sketch`: `python tools/scene_sketches.py OUT TAR [TAR …]`.

The tars contain photographs `KEY.jpg` and soft edges `KEY.edge.jpg`, white on black. For each photograph, OUT contains
three sketches: a/ the edges thresholded at 0.35, b/ the same thinned to one pixel, c/ lines of the built-in extractor;
so that a model learns broad and thin, simple and dense lines. Photographs held out by the hash of their key are so with
one of the three. Then: `piti train sketch --data OUT`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.conditions.sketch import INK
from piti.core.images import open_image, read_rgb, save_png
from piti.data.archives import Archived, list_archived
from piti.data.edges import binarised, draw_lines
from piti.data.pairs import SPLITS_FILE, split_by_hash

THRESHOLD = 0.35
KINDS = "abc"


def sketches_of(photograph: Archived, edges: Archived) -> Iterator[Tensor]:
    """The three sketches [h, w], True on lines."""
    strength = torch.from_numpy(np.array(open_image(edges).convert("L"))).float() / 255
    yield binarised(strength, THRESHOLD, thin=False)
    yield binarised(strength, THRESHOLD)
    yield draw_lines(np.asarray(read_rgb(photograph)))


def write(out: Path, photograph: Archived, edges: Archived) -> str:
    """Write a photograph's three pairs; returns its key."""
    torch.set_num_threads(1)
    colours = np.array([(255, 255, 255), INK], np.uint8)
    for kind, lines in zip(KINDS, sketches_of(photograph, edges), strict=True):
        save_png(
            Image.fromarray(colours[lines.numpy().astype(np.uint8)]), out / f"sketches/{kind}/{photograph.key}.png"
        )
        image = out / f"images/{kind}/{photograph.key}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(photograph.open().read())
    return photograph.key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("tars", type=Path, nargs="+")
    given = parser.parse_args()
    out, photographs = given.out, [one for tar in given.tars for one in list_archived(tar)]
    edges = {one.key: one for tar in given.tars for one in list_archived(tar, {".edge.jpg"})}
    without = [one.key for one in photographs if one.key not in edges]
    if without:
        parser.error(f"{len(without)} photographs have no .edge.jpg beside them, such as {without[0]}")
    with ProcessPoolExecutor() as pool:
        keys = list(pool.map(write, [out] * len(photographs), photographs, [edges[one.key] for one in photographs]))
    splits = split_by_hash(keys)
    train = sorted(f"{kind}/{key}" for kind in KINDS for key in splits["train"])
    held_out = sorted(f"{KINDS[k % 3]}/{key}" for k, key in enumerate(splits["val"]))
    (out / SPLITS_FILE).write_text(json.dumps({"train": train, "val": held_out}), encoding="utf-8")


if __name__ == "__main__":
    main()
