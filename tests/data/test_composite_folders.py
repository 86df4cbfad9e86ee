"""Folders of several conditions: one for each part, all or some of them required."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import (
    ClassTable,
    Condition,
    GeometryCondition,
    MaskCondition,
    SeveralCondition,
    SketchCondition,
)
from piti.core.seeding import generator_for
from piti.core.spec import SpecError
from piti.data import FolderSpec, PairedFolder
from piti.data.batches import BatchStream
from piti.data.folders import check_together
from piti.data.problems import DataError
from piti.data.shown import UNEQUAL

SKETCH = SketchCondition(clip=32)
FOLDERS = {"mask": "labels", "sketch": "sketches"}


@pytest.fixture
def root(tiny_data: Path) -> Path:
    """The tiny pairs with sketches of where their classes meet."""
    for path in sorted((tiny_data / "labels").iterdir()):
        label = np.asarray(Image.open(path)).astype(int)
        lines = np.zeros(label.shape, bool)
        lines[1:] |= np.diff(label, axis=0) != 0
        lines[:, 1:] |= np.diff(label, axis=1) != 0
        (tiny_data / "sketches").mkdir(exist_ok=True)
        Image.fromarray(255 * lines.astype(np.uint8)).save(tiny_data / "sketches" / path.name)
    return tiny_data


def both(root: Path) -> SeveralCondition:
    return SeveralCondition({"mask": MaskCondition(ClassTable.read(root / "classes.json")), "sketch": SKETCH})


def folder(root: Path, condition: Condition | None = None, split: str | None = None, **changes: object) -> PairedFolder:
    spec = FolderSpec(root=root, **{"size": 16, "conditions": FOLDERS, **changes})  # type: ignore[arg-type]
    return PairedFolder(spec, condition or both(root), split)


def given_parts(whole: PairedFolder, index: int) -> list[str]:
    condition = whole.pairs[index].condition
    assert isinstance(condition, dict)
    return list(condition)


def key(k: int) -> str:
    return f"scene-{k:02d}"


def lose(root: Path, name: str, *numbers: int) -> None:
    for k in numbers:
        (root / name / f"{key(k)}.png").unlink()


class TestMatching:
    def test_a_file_of_each_part(self, root: Path) -> None:
        pairs = folder(root).pairs
        assert len(pairs) == 12
        assert pairs[0].condition == {name: root / place / f"{key(0)}.png" for name, place in FOLDERS.items()}
        assert str(pairs[0]) == ", ".join(
            str(root / place / f"{key(0)}.png") for place in ("images", *FOLDERS.values())
        )
        assert str(folder(root, SKETCH, conditions="sketches").pairs[0]).endswith(f"sketches/{key(0)}.png")

    def test_every_part_is_needed_unless_said_otherwise(self, root: Path) -> None:
        lose(root, "labels", 0, 2)
        lose(root, "sketches", 1, 2)
        lose(root, "images", 3)
        with pytest.raises(DataError) as error:
            folder(root).check()
        for line in (
            f"2 images without a condition in labels/:\n    {key(0)}\n    {key(2)}\n",
            f"2 images without a condition in sketches/:\n    {key(1)}\n    {key(2)}\n",
            f"2 conditions without an image in images/:\n    labels/{key(3)}\n    sketches/{key(3)}",
        ):
            assert line in str(error.value)

    def test_partial_takes_what_has_one(self, root: Path) -> None:
        lose(root, "labels", 0)
        lose(root, "sketches", 1, 4)
        whole = folder(root, partial=True)
        assert whole.check().pairs == 12
        assert given_parts(whole, 0) == ["sketch"]
        assert given_parts(whole, 1) == ["mask"]
        condition = both(root)
        assert condition.given(whole.center(0).condition).tolist() == [False, True]
        assert condition.given(whole.center(1).condition).tolist() == [True, False]
        lose(root, "labels", 4)
        with pytest.raises(DataError, match=rf"1 images without a condition in labels/ or sketches/:\n    {key(4)}"):
            folder(root, partial=True).check()

    def test_two_parts_in_one_folder(self, root: Path) -> None:
        """Known apart by their suffixes; what has one of them alone still lacks the other."""
        for k in range(11):
            np.save(root / "labels" / f"{key(k)}.npy", np.ones((32, 40), np.float32))
        condition = SeveralCondition({"mask": both(root).parts["mask"], "depth": GeometryCondition()})
        lose(root, "labels", 0)
        for path in (root / "labels").glob("*.png"):
            path.rename(path.with_suffix(".bmp"))
        with pytest.raises(DataError) as error:
            folder(root, condition, conditions={"mask": "labels", "depth": "labels"}).check()
        assert f"2 images without a condition in labels/:\n    {key(0)}\n    {key(11)}" in str(error.value)

    def test_partial_means_nothing_to_a_single_condition(self, root: Path) -> None:
        lose(root, "sketches", 5)
        with pytest.raises(DataError, match=rf"images without a condition in sketches/:\n    {key(5)}"):
            folder(root, SKETCH, conditions="sketches", partial=True).check()

    def test_splits(self, root: Path) -> None:
        assert len(folder(root, split="train")) == 9
        (root / "splits.json").write_text(json.dumps({"train": [key(0)], "val": [key(1), "gone"]}))
        with pytest.raises(DataError, match=r"keys in splits\.json without files.*\n    gone"):
            check_together([folder(root, split=name) for name in ("train", "val")])


class TestSamples:
    def test_parts_are_cut_and_mirrored_as_one_by_one(self, root: Path) -> None:
        whole, condition = folder(root), both(root)
        apart = [folder(root, part, conditions=FOLDERS[name]) for name, part in condition.parts.items()]
        for k in range(12):
            sample = whole.sample(k, generator_for(k))
            ones = [one.sample(k, generator_for(k)) for one in apart]
            assert torch.equal(sample.image, ones[0].image)
            encoded = [part.encode(one.condition) for part, one in zip(condition.parts.values(), ones, strict=True)]
            assert torch.equal(condition.encode(sample.condition), torch.cat(encoded))

    def test_batches_mix_what_is_given_and_travel_between_processes(self, root: Path) -> None:
        lose(root, "labels", *range(0, 12, 2))
        batch = BatchStream(folder(root, partial=True), 12, seed=0)[0]
        again = pickle.loads(pickle.dumps(batch))
        given = both(root).given(again.condition)
        assert given[:, 1].all()
        assert {k for k, row in zip(batch.keys, given.tolist(), strict=True) if row[0]} == {
            key(k) for k in range(1, 12, 2)
        }

    def test_the_cache_counts_every_plane(self, root: Path) -> None:
        report = folder(root).check()
        assert report.cached
        assert report.bytes == 12 * 40 * 32 * (3 + 2 + 2)
        assert not folder(root, cache_gib=12 * 40 * 32 * 6 / 2**30).check().cached


class TestRefused:
    def test_sizes(self, root: Path) -> None:
        Image.new("L", (40, 20)).save(root / "sketches" / f"{key(2)}.png")
        Image.new("L", (20, 16)).save(root / "sketches" / f"{key(3)}.png")  # of the same proportions
        for place in FOLDERS.values():
            Image.new("L", (20, 16)).save(root / place / f"{key(4)}.png")
        with pytest.raises(DataError) as error:
            folder(root).check()
        assert f"labels/{key(2)}.png is 40 x 32 and {root / 'sketches'}/{key(2)}.png is 40 x 20" in str(error.value)
        assert f"1 {UNEQUAL}:\n    {key(4)}: image 40 x 32" in str(error.value)
        assert key(3) not in str(error.value)

    def test_every_bad_file_is_named(self, root: Path) -> None:
        (root / "sketches" / f"{key(2)}.png").write_bytes(b"nothing")
        Image.fromarray(np.full((32, 40), 99, np.uint8)).save(root / "labels" / f"{key(3)}.png")
        with pytest.raises(DataError) as error:
            folder(root).check()
        assert f"sketches/{key(2)}.png: not a readable image" in str(error.value)
        assert f"labels/{key(3)}.png: id 99" in str(error.value)

    @pytest.mark.parametrize(
        ("conditions", "message"),
        [
            ("labels", r"'labels' is one folder, but the condition has the parts mask, sketch.*\{mask: FOLDER, sketch"),
            ({"mask": "labels"}, "no folder for the part sketch; add 'sketch: FOLDER'"),
            ({**FOLDERS, "depth": "depth"}, "unknown part 'depth'; .*known: mask, sketch"),
            ({"mask": "labels", "sketch": "nowhere"}, r"nowhere: no such folder"),
        ],
    )
    def test_folders(self, root: Path, conditions: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            folder(root, conditions=conditions)

    def test_folders_of_parts_for_one_condition(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"folders of parts \(mask, sketch\), but the condition is a single sketch"):
            folder(root, SKETCH)

    def test_what_is_no_folder(self) -> None:
        with pytest.raises(SpecError, match="conditions"):
            FolderSpec.parse({"conditions": ["labels", "sketches"]}, "data")

    def test_photographs_alone(self, root: Path) -> None:
        with pytest.raises(DataError, match="not for several"):
            folder(root, photographs=(root / "images",))
