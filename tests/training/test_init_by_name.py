"""Initial weights by channel: classes are matched by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from piti.conditions import ClassTable, Condition, MaskCondition, PaletteCondition, SeveralCondition, SketchCondition
from piti.training.fitting import channel_order
from piti.training.recipe import RecipeError


def mask(*names: str) -> MaskCondition:
    count = range(len(names))
    return MaskCondition(ClassTable(names=names, ids=tuple(count), colours=tuple((k + 1, 9, 9) for k in count)))


def test_the_order_of_channels_follows_the_names() -> None:
    learned, wanted = mask("sky", "road", "car"), mask("car", "sky", "road")
    order = channel_order(learned, wanted, "m")
    assert order == [2, 0, 1]
    weights = torch.arange(3.0)  # the weight of each class in its channel
    assert weights[order].tolist() == [2, 0, 1]
    assert channel_order(learned, learned, "m") is None


def test_parts_keep_their_places_by_name() -> None:
    learned = SeveralCondition({"mask": mask("sky", "road"), "sketch": SketchCondition()})
    wanted = SeveralCondition({"sketch": SketchCondition(), "mask": mask("road", "sky")})
    before = learned.parts["mask"].channels
    sketch = list(range(before, learned.channels))
    assert channel_order(learned, wanted, "m") == [*sketch, 1, 0]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (mask("sky", "road", "tram"), r"lacks 'tram' and has 'car'"),
        (mask("sky", "road"), r"lacks none and has 'car'"),
        (SketchCondition(), "give a model of the same kinds"),
    ],
)
def test_other_classes_are_refused(wanted: Condition, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        channel_order(mask("sky", "road", "car"), wanted, "m")


def test_colours_are_no_classes_channels() -> None:
    learned, wanted = PaletteCondition(mask("sky", "road").classes), PaletteCondition(mask("car").classes)
    assert channel_order(learned, wanted, "m") is None


def test_a_model_begun_from_another_order_reads_the_same_mask_alike(tmp_path: Path) -> None:
    from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
    from piti.diffusion.schedulers import scheduler_of
    from piti.models import Translator
    from piti.pipelines.pipeline import PITIPipeline
    from piti.training.init import load_weights
    from tests.conftest import TINY_MODEL

    encoder = {**TINY_MODEL["encoder"], "in_channels": 3}
    config = {"encoder_spec": encoder, "unet_spec": TINY_MODEL["unet"], "image_size": 16, "patch_size": 2}
    schedule = NoiseSchedule(ScheduleSpec())
    torch.manual_seed(0)
    one = Translator(**config, steps=len(schedule)).eval()
    learned, wanted = mask("sky", "road", "car"), mask("car", "sky", "road")
    PITIPipeline(one, scheduler_of(ScheduleSpec()), learned).save_pretrained(tmp_path / "m")
    other = Translator(**config, steps=len(schedule)).eval()
    assert load_weights(other, str(tmp_path / "m"), schedule, wanted)
    fewer = {**config, "encoder_spec": encoder | {"heads": 1}}
    assert encoder["heads"] > 1
    with pytest.raises(RecipeError, match=r"with other settings \(model.encoder.heads: 2 there, here 1\); copy them"):
        load_weights(Translator(**fewer, steps=len(schedule)), str(tmp_path / "m"), schedule, wanted)
    sky = torch.randint(0, 3, (1, 1, 16, 16), dtype=torch.uint8)
    renamed = torch.tensor([1, 2, 0], dtype=torch.uint8)[sky.long()]  # the same classes by the other numbers
    assert one.encoder is not None
    assert other.encoder is not None
    with torch.no_grad():
        first, second = one.encoder(learned.encode(sky)), other.encoder(wanted.encode(renamed))
    assert torch.allclose(first.pooled, second.pooled, atol=1e-6)
