"""Agreement with masks: constructed confusions, small objects, alignment of masks and images, the referee's
arithmetic."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, MaskCondition
from piti.conditions.class_table import ClassTable
from piti.core.images import Box, ImageError
from piti.core.walk import list_images
from piti.evaluation.masks import Agreement, agreement, count_pixels, measures_of
from piti.evaluation.per_condition import AlignmentError, PerCondition, framed
from piti.evaluation.segmentation import match_labels
from tests.conftest import TINY_CLASSES
from tests.evaluation.tiny_judges import Seeing

NAMES = ("sky", "road", "car")
CONDITION = MaskCondition(
    ClassTable.parse(
        {
            "names": NAMES,
            "ids": [entry["id"] for entry in TINY_CLASSES["classes"]],
            "colours": [entry["color"] for entry in TINY_CLASSES["classes"]],
        },
        "test",
    )
)
RED = Seeing(NAMES, lambda pixels: pixels[..., 0])  # the red of a pixel is its label
Saved = tuple[dict[str, list[Path]], dict[str, Path]]
Save = Callable[..., Saved]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes masks, and images whose red is what the segmenter is to see; returns groups and conditions."""

    def write(masks: dict[str, np.ndarray], seen: dict[str, list[np.ndarray]]) -> Saved:
        conditions, groups = {}, {}
        for stem, mask in masks.items():
            conditions[stem] = tmp_path / f"mask-{stem}.png"
            Image.fromarray(mask.astype(np.uint8)).save(conditions[stem])
        for stem, pictures in seen.items():
            groups[stem] = [tmp_path / f"{stem}_{k}.png" for k in range(len(pictures))]
            for path, picture in zip(groups[stem], pictures, strict=True):
                Image.fromarray(np.repeat(picture[..., None], 3, -1).astype(np.uint8)).save(path)
        return groups, conditions

    return write


def judged(saved: Saved, segmenter: Seeing = RED, **settings: object) -> Agreement:
    groups, conditions = saved
    labels = match_labels(segmenter.labels, NAMES)
    return agreement(groups, conditions, CONDITION, segmenter, labels, **settings)  # type: ignore[arg-type]


def scene(seed: int = 0, shape: tuple[int, int] = (30, 40)) -> np.ndarray:
    mask = np.random.default_rng(seed).integers(0, 3, (shape[0] // 10, shape[1] // 10))
    return mask.repeat(10, 0).repeat(10, 1)


# Arithmetic


def test_what_is_seen_right_is_100_percent(save: Save) -> None:
    a, b = scene(0), scene(1)
    a[3, 3] = 255
    found = judged(save({"a": a, "b": b}, {"a": [np.where(a == 255, 2, a)], "b": [b, b]}))
    assert isinstance(found, PerCondition)
    assert (found.stems, found.images, found.unjudged) == (("a", "b"), 3, ())
    assert found.rows.shape == (2, 8, 3)
    values = found.measures()
    assert values["miou", ""] == values["pixel_accuracy", ""] == 100
    assert {of for name, of in values if name == "iou"} == set(NAMES)
    assert found.confusion.sum() == 30 * 40 * 3 - 1  # all but what is ignored


def test_a_constructed_confusion() -> None:
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [255, 2, 2, 2]])
    guess = torch.tensor([[0, 0, 1, -1], [1, 1, 1, 1], [1, 1, 1, 1]])
    counts, confusion = count_pixels(truth, guess, truth != 255, 3, share=0)
    assert confusion.tolist() == [[2, 1, 0, 1], [0, 4, 0, 0], [0, 3, 0, 0]]
    values = measures_of(counts, NAMES)
    assert values["iou", "sky"] == pytest.approx(100 * 2 / 4)
    assert values["iou", "road"] == pytest.approx(100 * 4 / 8)
    assert values["iou", "car"] == 0
    assert values["miou", ""] == pytest.approx(100 / 3)
    assert values["pixel_accuracy", ""] == pytest.approx(100 * 6 / 11)
    assert values["small_regions", ""] == 0
    assert ("small_recall", "") not in values


def test_classes_that_no_mask_holds_do_not_count_in_the_mean() -> None:
    truth, guess = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    guess[0, 0] = 2
    counts, _ = count_pixels(truth, guess, truth == 0, 3)
    values = measures_of(counts, NAMES)
    assert values["miou", ""] == values["iou", "sky"] == pytest.approx(100 * 15 / 16)
    assert ("iou", "car") not in values


class TestSmallObjects:
    def truth(self) -> np.ndarray:
        mask = np.zeros((40, 50), int)
        mask[30:] = 1
        mask[5, 5:15] = 2  # ten pixels: small
        mask[20, 20:24] = 2  # four: small
        mask[32:38, 10:30] = 2  # 120: not small
        return mask

    def test_one_found_and_one_missed(self, save: Save) -> None:
        seen = self.truth()
        seen[20, 20:24] = 0  # missed
        seen[5, 12:15] = 0  # seven of ten
        seen[25, :] = 2  # seen where nothing is: no matter of small objects
        values = judged(save({"a": self.truth()}, {"a": [seen]})).measures()
        assert values["small_regions", ""] == 2
        assert values["small_found", ""] == 50
        assert values["small_recall", ""] == pytest.approx(100 * 7 / 14)
        assert values["small_iou", ""] == pytest.approx(100 * 7 / 14)
        assert values["iou", "car"] < 100 * 127 / 134

    def test_all_found(self, save: Save) -> None:
        values = judged(save({"a": self.truth()}, {"a": [self.truth()]})).measures()
        assert values["small_found", ""] == values["small_recall", ""] == values["small_iou", ""] == 100

    def test_a_small_object_taken_for_another(self) -> None:
        truth = torch.zeros(40, 50, dtype=torch.long)
        truth[5, 5:9], truth[9, 5:9] = 1, 2
        guess = truth.clone()
        guess[5, 5:9] = 2
        counts, _ = count_pixels(truth, guess, truth >= 0, 3)
        values = measures_of(counts, NAMES)
        assert values["small_recall", ""] == 50
        assert values["small_iou", ""] == pytest.approx((0 + 100 * 4 / 8) / 2)


def test_labels_that_mean_no_class_and_classes_without_a_label(save: Save) -> None:
    mask = np.zeros((20, 20), int)
    mask[10:] = 1
    mask[15:] = 2
    seen = np.zeros((20, 20), int)
    seen[10:] = 1
    seen[:5] = 2  # "boat", which is none
    found = judged(save({"a": mask}, {"a": [seen]}), Seeing(("sky", "road", "boat"), lambda pixels: pixels[..., 0]))
    assert found.unjudged == ("car",)
    assert found.confusion.tolist() == [[100, 0, 0, 100], [0, 100, 0, 0], [0, 0, 0, 0]]
    values = found.measures()
    assert (values["iou", "sky"], values["iou", "road"]) == (50, 100)
    assert values["pixel_accuracy", ""] == pytest.approx(100 * 200 / 300)
    assert ("iou", "car") not in values


def test_rows_add_up_over_chosen_conditions(save: Save) -> None:
    masks = {"a": scene(0), "b": scene(1)}
    found = judged(save(masks, {"a": [scene(2), scene(3)], "b": [scene(1)]}))
    only_b = found.measures(torch.tensor([1, 1]))
    assert only_b["miou", ""] == 100
    alone = judged(save({"a": masks["a"]}, {"a": [scene(2), scene(3)]})).measures()
    assert found.measures(torch.tensor([0])) == alone
    assert found.measures(torch.tensor([0, 1])) == found.measures()


# Images over masks


def framed_as(tmp_path: Path, width: int, height: int, resize: int | None = None) -> tuple[Callable[..., Box], Path]:
    path = tmp_path / "image.png"
    Image.new("RGB", (width, height)).save(path)
    return framed("a", path, resize).box, path


@pytest.mark.parametrize(
    ("image", "condition", "resize", "box"),
    [
        ((64, 64), (480, 360), None, (60, 0, 360, 360)),  # the square at the centre
        ((85, 64), (480, 360), None, (0, 0, 480, 360)),  # all of it
        ((480, 360), (480, 360), None, (0, 0, 480, 360)),
        ((85, 64), (480, 360), 32, (60, 0, 360, 360)),  # its square
        ((64, 64), (100, 100), 32, (0, 0, 100, 100)),
        ((64, 64), (65, 64), None, (0, 0, 64, 64)),
        ((16, 16), (65, 64), None, (0, 0, 65, 64)),  # 16.25 columns
        ((48, 64), (360, 480), 64, (0, 60, 360, 360)),
    ],
)
def test_the_part_of_a_condition_that_an_image_shows(
    tmp_path: Path, image: tuple[int, int], condition: tuple[int, int], resize: int | None, box: tuple[int, ...]
) -> None:
    shown, _ = framed_as(tmp_path, *image, resize)
    assert shown(*condition, "mask.png") == box


@pytest.mark.parametrize("image", [(96, 64), (64, 96), (64, 85)])
def test_an_image_of_other_proportions_is_named(tmp_path: Path, image: tuple[int, int]) -> None:
    shown, path = framed_as(tmp_path, *image)
    with pytest.raises(AlignmentError, match=f"{path.name}: is {image[0]} x {image[1]} pixels, and mask.png 480 x 360"):
        shown(480, 360, "mask.png")


@pytest.mark.parametrize(("size", "resize"), [((20, 20), None), ((27, 20), None), ((40, 30), 10)])
def test_masks_are_cut_and_resized_as_their_images(save: Save, size: tuple[int, int], resize: int | None) -> None:
    mask = scene(4)  # 40 x 30 pixels
    raw = torch.from_numpy(mask)[None].to(torch.uint8)
    part = Box(5, 0, 30, 30) if resize or size[0] == size[1] else Box(0, 0, 40, 30)
    shown = CONDITION.crop_resize(raw, part, (resize, resize) if resize else (size[1], size[0]))[0].numpy()
    saved = save({"a": mask}, {"a": [mask if resize else shown]})
    seen = Seeing(NAMES, lambda pixels: shown)
    assert judged(saved, seen, resize=resize).measures()["pixel_accuracy", ""] == 100


def test_images_of_several_sizes_are_judged_by_size(save: Save) -> None:
    masks = {"a": scene(0), "b": scene(1, (30, 60)), "c": scene(2)}
    steps: list[tuple[int, int]] = []

    def on_step(done: int, of: int) -> None:
        steps.append((done, of))

    found = judged(save(masks, {stem: [mask] for stem, mask in masks.items()}), batch=2, on_step=on_step)
    assert found.measures()["miou", ""] == 100
    assert steps == [(1, 3), (2, 3), (3, 3)]


# Errors


def test_ids_outside_the_classes_name_the_mask(save: Save) -> None:
    mask = scene()
    mask[0, 0] = 7
    with pytest.raises(ConditionError, match=r"mask-a\.png: id 7 on 1 pixel is not in the class table"):
        judged(save({"a": mask}, {"a": [scene()]}))


def test_masks_without_anything_to_judge(save: Save) -> None:
    with pytest.raises(AlignmentError, match="contain no pixel of a class"):
        judged(save({"a": np.full((20, 20), 255)}, {"a": [np.zeros((20, 20))]}))


def test_a_condition_that_is_missing(save: Save) -> None:
    groups, _ = save({"a": scene()}, {"a": [scene()]})
    with pytest.raises(AlignmentError, match=r"a_0\.png: there is no condition a"):
        judged((groups, {}))


def test_no_images_and_one_twice(save: Save) -> None:
    groups, conditions = save({"a": scene(), "b": scene()}, {"a": [scene()], "b": []})
    with pytest.raises(AlignmentError, match="no images"):
        judged(({}, conditions))
    with pytest.raises(AlignmentError, match=r"a_0\.png: is given twice, for a and b"):
        judged((groups | {"b": groups["a"]}, conditions))


def test_a_file_that_is_no_picture(save: Save) -> None:
    groups, conditions = save({"a": scene()}, {"a": [scene()]})
    groups["a"][0].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a_0\.png: not a readable image"):
        judged((groups, conditions))


def test_labels_matched_with_other_classes(save: Save) -> None:
    groups, conditions = save({"a": scene()}, {"a": [scene()]})
    with pytest.raises(AlignmentError, match="matched with other classes"):
        agreement(groups, conditions, CONDITION, RED, match_labels(NAMES, ("road", "sky")))


# The referee


def test_the_referees_arithmetic(referee: Path, camvid: Path) -> None:
    source = importlib.util.spec_from_file_location("referee", referee)
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)

    class Judge:
        side = 64

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            return pixels[..., 0].astype(int) * 11 // 256

    condition = MaskCondition(ClassTable.read(camvid / "classes.json"))
    images = list_images(camvid / "images")[::90]
    masks = {path.stem: camvid / "labels" / f"{path.stem}.png" for path in images}
    miou, accuracy = module.agreement([(path, masks[path.stem]) for path in images], Judge())
    names = condition.classes.names
    labels = match_labels(names, names)
    found = agreement(
        {path.stem: [path] for path in images}, masks, condition, Seeing(names, Judge()), labels, resize=64
    )
    values = found.measures()
    assert values["miou", ""] == pytest.approx(miou, abs=1e-9)
    assert values["pixel_accuracy", ""] == pytest.approx(accuracy, abs=1e-9)
    assert 0 < miou < accuracy
