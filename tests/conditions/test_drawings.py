"""Inputs that are not sketches, and sketches instead of masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from piti.conditions import ClassTable, ConditionError, MaskCondition, SketchCondition
from piti.data.archives import list_archived
from tests.conditions.test_sketch import LINES, drawing

SKETCH = SketchCondition()
STREET = ClassTable(
    names=("sky", "road", "car"), ids=(0, 1, 2), colours=((128, 128, 128), (128, 64, 128), (64, 0, 128)), ignore=255
)
IDS = np.zeros((60, 80), np.uint8)
IDS[30:] = 1
IDS[24:36, 8:40] = 2
IDS[:6] = 255


def photograph() -> np.ndarray:
    """A gradient with texture, RGB."""
    y, x = np.mgrid[0:90, 0:120]
    waves = np.stack([x * 2 + 10 * np.sin(y / 3), y * 2 + 20 * np.cos(x / 5), 255 - x - y], -1)
    return (waves + np.random.default_rng(0).normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_photographs_are_refused_with_what_to_do(mode: str) -> None:
    image = Image.fromarray(photograph()).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    with pytest.raises(
        ConditionError, match=r"p\.png: \d\d% of it would be lines, as in a photograph; extract its lines"
    ):
        SKETCH.read(image, "p.png")


@pytest.mark.parametrize("scale", [1, 20, 100])
@pytest.mark.parametrize("form", ["L", "I;16", "RGB", "colours", "P"])
def test_masks_of_classes_are_refused(form: str, scale: int) -> None:
    values = np.where(IDS == 255, 255, IDS * scale).astype(np.uint8)
    image = Image.fromarray(values.astype(np.uint16) if form == "I;16" else values)
    if form in ("colours", "P"):
        mask = MaskCondition(STREET)
        image = mask.preview(mask.read(Image.fromarray(IDS), "m"))
    image = image.convert(form) if form in ("RGB", "P") else image
    words = r"consists of flat areas of \d values.*give masks to a mask model"
    words = rf"({words}|\d\d% of it would be lines)" if form == "P" else words  # which Pillow dithers
    with pytest.raises(ConditionError, match=rf"m\.png: {words}"):
        SKETCH.read(image, "m.png")


def test_edges_of_any_softness_are_read() -> None:
    hard = Image.fromarray(np.where(LINES, 255, 0).astype(np.uint8))
    for radius in (0, 1, 3):
        soft = hard.filter(ImageFilter.GaussianBlur(radius))
        for image in (soft, soft.convert("RGB")):
            assert SKETCH.read(image, "e").any()


def test_scenes_photographs_are_refused_and_their_edges_are_not(scenes) -> None:
    archive = scenes / "scenes-train-003.tar"
    photographs = [one for one in list_archived(archive, {".jpg"}) if ".edge" not in str(one)][::40]
    refused = 0
    for file in photographs:
        try:
            SKETCH.load(file)
        except ConditionError:
            refused += 1
    assert refused >= 0.9 * len(photographs)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_sketch_where_a_mask_is_read_names_the_model_of_sketches(mode: str, tmp_path) -> None:
    table = STREET.model_copy(update={"ignore": None, "names": ("b", "road", "car"), "ids": (4, 5, 6)})
    sketch = drawing().convert(mode)
    with pytest.raises(ConditionError, match=r"if it is a drawing, use a sketch model \(model sketch\)"):
        MaskCondition(table).read(sketch, "s.png")
    drawing().save(tmp_path / "s.jpg")
    with pytest.raises(ConditionError, match=r"lossy.*model sketch"):
        MaskCondition(table).load(tmp_path / "s.jpg")


def test_a_mask_that_does_not_fit_is_no_drawing() -> None:
    with pytest.raises(ConditionError) as error:
        MaskCondition(STREET).read(Image.fromarray(IDS + 40), "m.png")
    assert "drawing" not in str(error.value)
