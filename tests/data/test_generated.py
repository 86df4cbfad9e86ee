"""Small images of a base in an upsampler's training: matching, cropping, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.conditions.base import meaning_hash
from piti.core.images import save_png
from piti.core.seeding import generator_for
from piti.data.batches import BatchStream, LowRes
from piti.data.folders import PairedFolder
from piti.data.generated import GeneratedSpec, WithGenerated
from piti.data.pairs import FolderSpec
from piti.data.problems import DataError


@pytest.fixture
def condition(tiny_data: Path) -> MaskCondition:
    return MaskCondition(ClassTable.read(tiny_data / "classes.json"))


def said(condition: MaskCondition, **changes: str | None) -> dict[str, str]:
    values = {"base_only": "True", "raw_form": json.dumps({"reads": meaning_hash(condition)})} | changes
    return {f"piti:{key}": value for key, value in values.items() if value is not None}


def write(folder: Path, name: str, text: dict[str, str], size: tuple[int, int] = (20, 16)) -> None:
    """A small image whose red is 10 times its column's number."""
    columns = np.broadcast_to(np.arange(size[0], dtype=np.uint8) * 10, size[::-1])
    pixels = np.stack([columns, np.zeros_like(columns), np.zeros_like(columns)], axis=-1)
    folder.mkdir(exist_ok=True)
    save_png(Image.fromarray(pixels), folder / name, text)


def pairs_of(root: Path, condition: MaskCondition, flip: bool = False) -> PairedFolder:
    spec = FolderSpec(root=root, size=16, crop_scale=(0.5, 0.5), flip=flip)
    return PairedFolder(spec, condition, "train")


def test_generated_samples_lie_over_their_condition(tiny_data: Path, tmp_path: Path, condition: MaskCondition) -> None:
    write(tmp_path / "g", "scene-03_0.png", said(condition))
    pairs = pairs_of(tiny_data, condition)
    mixed = WithGenerated(pairs, GeneratedSpec(root=tmp_path / "g", share=0.999), condition, 2, 16)
    raw = np.asarray(Image.open(tiny_data / "labels/scene-03.png"))  # 32 x 40, twice the small image
    seen = set()
    for n in range(40):
        sample = mixed.sample(0, generator_for(0, "test", n))
        assert sample.key == "scene-03"
        assert sample.low_res is not None
        assert sample.low_res.shape == (3, 8, 8)
        left = round(float((sample.low_res[0, 0, 0] + 1) * 127.5)) // 10
        seen.add(left)
        tops = [top for top in range(9) if np.array_equal(raw[2 * top :][:16, 2 * left :][:, :16], sample.condition[0])]
        assert tops, "the condition is not what lies over the small image"
        assert not sample.image.any()
    assert min(seen) == 0
    assert max(seen) == 12


def test_other_images_are_told_apart(tiny_data: Path, tmp_path: Path, condition: MaskCondition) -> None:
    def facts(folder: str, number: int) -> tuple[str, str]:
        write(tmp_path / folder, f"scene-03_{number}.png", said(condition))
        spec = GeneratedSpec(root=tmp_path / folder)
        mixed = WithGenerated(pairs_of(tiny_data, condition), spec, condition, 2, 16)
        return mixed.images_identity(), mixed.images_contents()

    first, moved, renamed = facts("a", 0), facts("b", 0), facts("c", 1)
    assert moved == first
    assert renamed[0] != first[0]
    assert renamed[1] == first[1]
    path = tmp_path / "b/scene-03_0.png"
    path.write_bytes(path.read_bytes() + b"more")
    changed = WithGenerated(pairs_of(tiny_data, condition), GeneratedSpec(root=tmp_path / "b"), condition, 2, 16)
    assert changed.images_identity() == first[0]
    assert changed.images_contents() != first[1]


def test_mirrored_ones_mirror_both(tiny_data: Path, tmp_path: Path, condition: MaskCondition) -> None:
    write(tmp_path / "g", "scene-03_0.png", said(condition))
    spec = GeneratedSpec(root=tmp_path / "g", share=0.999)
    plain = WithGenerated(pairs_of(tiny_data, condition), spec, condition, 2, 16)
    flipping = WithGenerated(pairs_of(tiny_data, condition, flip=True), spec, condition, 2, 16)
    mirrored = 0
    for n in range(20):
        one, other = (each.sample(0, generator_for(0, "test", n)) for each in (plain, flipping))
        assert one.low_res is not None
        assert other.low_res is not None
        if not torch.equal(one.low_res, other.low_res):
            mirrored += 1
            assert torch.equal(one.low_res.flip(-1), other.low_res)
            assert torch.equal(one.condition.flip(-1), other.condition)
    assert 0 < mirrored < 20


def test_a_batch_says_which_rows_have_a_photograph(tiny_data: Path, tmp_path: Path, condition: MaskCondition) -> None:
    for k in range(3):
        write(tmp_path / "g", f"scene-0{k}_{k}.png", said(condition))
    pairs = pairs_of(tiny_data, condition)
    mixed = WithGenerated(pairs, GeneratedSpec(root=tmp_path / "g", share=0.5), condition, 2, 16)
    stream = BatchStream(mixed, 8, seed=0, low_res=LowRes(2, None))
    paired = [batch.paired for batch in (stream[k] for k in range(12)) if batch.paired is not None]
    share = torch.cat(paired).float().mean().item()
    assert 0.3 < share < 0.7
    batch = stream[0]
    assert batch.low_res is not None
    assert batch.paired is not None
    assert all(bool(image.any()) == has for image, has in zip(batch.image, batch.paired.tolist(), strict=True))
    assert torch.equal(stream[0].low_res, batch.low_res)  # type: ignore[arg-type]
    assert BatchStream(pairs, 8, seed=0, low_res=LowRes(2, None))[0].paired is None


def test_images_of_a_base_that_has_no_upsampler_are_a_bases(
    tiny_data: Path, tmp_path: Path, condition: MaskCondition
) -> None:
    write(tmp_path / "g", "scene-00_0.png", said(condition, base_only="False"))
    mixed = WithGenerated(pairs_of(tiny_data, condition), GeneratedSpec(root=tmp_path / "g"), condition, 2, 16)
    assert list(mixed.small) == [0]


@pytest.mark.parametrize(
    ("name", "changes", "size", "says"),
    [
        ("scene-00_0.png", {"base_only": None}, (20, 16), "images that were not generated by a base"),
        ("scene-00_0.png", {"raw_form": '{"reads": "another"}'}, (20, 16), "another condition than this recipe's"),
        ("scene-00_0.png", {"raw_form": "no JSON"}, (20, 16), "another condition than this recipe's"),
        ("scene-00_0.png", {"raw_form": "[1]"}, (20, 16), "another condition than this recipe's"),
        ("scene-00_0.png", {}, (16, 16), "images that show only a part of their condition"),
        ("scene-00_0.png", {}, (20, 7), "smaller than the 8 px of a crop"),
        ("scene-00_0.png", {}, (40, 32), r"short side is not the 16 px that the upsampler enlarges"),
        ("scene-11_0.png", {}, (20, 16), "holds no STEM_NUMBER.png of the training conditions"),  # validation's
        ("scene-00.png", {}, (20, 16), "such as scene-00_0.png"),
    ],
)
def test_images_that_cannot_be_used_are_named(
    tiny_data: Path, tmp_path: Path, condition: MaskCondition, name: str, changes: Any, size: Any, says: str
) -> None:
    write(tmp_path / "g", name, said(condition, **changes), size)
    with pytest.raises(DataError, match=says):
        WithGenerated(pairs_of(tiny_data, condition), GeneratedSpec(root=tmp_path / "g"), condition, 2, 16)


def test_a_folder_that_is_not_there(tiny_data: Path, tmp_path: Path, condition: MaskCondition) -> None:
    with pytest.raises(DataError, match=r"generated\.root: .* is not a folder; make it by piti translate"):
        WithGenerated(pairs_of(tiny_data, condition), GeneratedSpec(root=tmp_path / "none"), condition, 2, 16)


def test_pairs_in_subfolders_have_their_images_by_path(
    tiny_data: Path, tmp_path: Path, condition: MaskCondition
) -> None:
    """As `piti translate` names them: a-1_0.png of a/1.png."""
    root = tmp_path / "data"
    for part in ("images", "labels"):
        for target, source in (("1", "scene-03"), ("a/1", "scene-04")):
            (file,) = (tiny_data / part).glob(f"{source}.*")
            place = root / part / f"{target}{file.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    (root / "splits.json").write_text(json.dumps({"train": ["1", "a/1"], "val": []}))
    write(tmp_path / "g", "a-1_0.png", said(condition))
    write(tmp_path / "g", "1_0.png", said(condition))
    write(tmp_path / "g", "1_1.png", said(condition))
    pairs = pairs_of(root, condition)
    mixed = WithGenerated(pairs, GeneratedSpec(root=tmp_path / "g"), condition, 2, 16)
    found = {pairs.pairs[index].key: [file.name for file in files] for index, files in mixed.small.items()}
    assert found == {"1": ["1_0.png", "1_1.png"], "a/1": ["a-1_0.png"]}

    for part in ("images", "labels"):
        (file,) = (root / part).glob("1.*")
        file.rename(file.with_stem("a-1"))
    (root / "splits.json").write_text(json.dumps({"train": ["a-1", "a/1"], "val": []}))
    with pytest.raises(DataError, match=r"images of a-1 and a/1 would have the same name"):
        WithGenerated(pairs_of(root, condition), GeneratedSpec(root=tmp_path / "g"), condition, 2, 16)
