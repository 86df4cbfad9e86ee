"""Prepare the training pairs of `sketch`: `python tools/scene_sketches.py OUT TAR [TAR …] [--hed WEIGHTS]`.

The tars contain photographs `KEY.jpg` and soft edges `KEY.edge.jpg`, white on black. For each photograph, OUT contains
three sketches: a/ the edges thresholded at 0.35, b/ the same thinned to one pixel, c/ lines of the built-in extractor;
and with --hed a fourth, d/ lines of HED as `piti prepare sketch --detector hed` draws them. A model so learns broad and
thin, simple and dense lines. Photographs held out by the hash of their key are so with one of the first three, so that
models with and without the fourth can be compared. Then: `piti train sketch --data OUT`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.conditions.sketch import INK
from piti.core.images import open_image, read_rgb, save_png
from piti.data.archives import Archived, list_archived
from piti.data.edges import LineSource, binarised, draw_lines, line_source
from piti.data.pairs import SPLITS_FILE, split_by_hash

THRESHOLD = 0.35
KINDS, WITH_HED = "abc", "abcd"


@cache
def hed(weights: Path) -> LineSource:
    return line_source("hed", {"weights": str(weights)})[1]


def sketches_of(photograph: Archived, edges: Archived, weights: Path | None) -> Iterator[Tensor]:
    """The sketches [h, w], True on lines: three, or four with HED's weights."""
    strength = torch.from_numpy(np.array(open_image(edges).convert("L"))).float() / 255
    yield binarised(strength, THRESHOLD, thin=False)
    yield binarised(strength, THRESHOLD)
    pixels = np.asarray(read_rgb(photograph))
    yield draw_lines(pixels)
    if weights is not None:
        yield hed(weights)(pixels)


def write(out: Path, weights: Path | None, photograph: Archived, edges: Archived) -> str:
    """Write a photograph's pairs; returns its key."""
    torch.set_num_threads(1)
    colours = np.array([(255, 255, 255), INK], np.uint8)
    for kind, lines in zip(WITH_HED, sketches_of(photograph, edges, weights), strict=False):
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
    parser.add_argument("--hed", type=Path, metavar="WEIGHTS", help="a file with HED's weights")
    given = parser.parse_args()
    out, photographs = given.out, [one for tar in given.tars for one in list_archived(tar)]
    edges = {one.key: one for tar in given.tars for one in list_archived(tar, {".edge.jpg"})}
    without = [one.key for one in photographs if one.key not in edges]
    if without:
        parser.error(f"{len(without)} photographs have no .edge.jpg beside them, such as {without[0]}")
    with ProcessPoolExecutor() as pool:
        keys = list(pool.map(partial(write, out, given.hed), photographs, [edges[one.key] for one in photographs]))
    splits = split_by_hash(keys)
    kinds = WITH_HED if given.hed else KINDS
    train = sorted(f"{kind}/{key}" for kind in kinds for key in splits["train"])
    held_out = sorted(f"{KINDS[k % 3]}/{key}" for k, key in enumerate(splits["val"]))
    (out / SPLITS_FILE).write_text(json.dumps({"train": train, "val": held_out}), encoding="utf-8")


if __name__ == "__main__":
    main()
