"""Recipe keys that are set but would have no effect, which is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from piti.conditions import SeveralCondition, SketchCondition
from piti.conditions.composite import part_configs
from piti.training.losses import DiffusionLossSpec, LossSpec

if TYPE_CHECKING:
    from piti.training.recipe import Recipe


def unread(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Each such key, and why it has no effect. Default values count as not set."""
    if recipe.baseline is not None:
        yield from _of_baseline(recipe)
    elif recipe.distillation is not None:
        yield from _of_distillation(recipe)
    else:
        yield from _of_translator(recipe)
    if recipe.data.drawn is not None and not _draws(recipe.condition):
        yield "data.drawn", "is for sketches, but the condition has no lines"
    upsamples = recipe.model.low_res is not None
    default = type(recipe).model_fields["degradation"].default
    if not upsamples and recipe.degradation not in (None, default):
        yield "degradation", "is for upsamplers: a base has no small images as input"


def _of_baseline(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key in ("schedule", "init", "prior", "base", "loss", "discriminator", "condition_dropout"):
        if getattr(recipe, key) != type(recipe).model_fields[key].get_default(call_default_factory=True):
            yield key, "has no effect for a baseline"
    for key in ("checkpointing", "compile"):
        if getattr(recipe, key):
            yield key, "has no effect for a baseline's networks"
    for number, stage in enumerate(recipe.stages):
        for key in ("diffusion", "pixel", "consistency", "perceptual", "adversarial", "from_noise"):
            if getattr(stage, key) != type(stage).model_fields[key].default:
                yield f"stages.{number}.{key}", "has no effect for a baseline, which has its own losses"
        if stage.condition_dropout is not None:
            yield (
                f"stages.{number}.condition_dropout",
                "has no effect for a baseline, whose conditions are never dropped",
            )


def _of_distillation(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.loss != LossSpec():
        yield "loss", "belongs to eq. 3, but a student is compared with its teacher"
    for number, stage in enumerate(recipe.stages):
        if stage.diffusion != DiffusionLossSpec():
            yield f"stages.{number}.diffusion", "belongs to eq. 3, but a student is compared with its teacher"


def _of_translator(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.generated is not None and recipe.data.shards:
        yield "generated", "needs the pairs of a folder, but the data are shards"
    if recipe.loss.vb_weight is not None and not recipe.model.learned_variance:
        yield "loss.vb_weight", "weights the loss of a learned variance, but model.learned_variance is false"
    for number, stage in enumerate(recipe.stages):
        others = (stage.pixel, stage.consistency, stage.perceptual, stage.adversarial)
        if not stage.diffusion.weight and not any(others):
            yield (
                f"stages.{number}.diffusion.weight",
                "is 0 and the stage has no other loss, so nothing would be learned",
            )


def _draws(condition: Mapping[str, Any]) -> bool:
    """Whether the condition, or one of its parts, is a sketch."""
    several = condition.get("kind") == SeveralCondition.kind
    parts = part_configs(condition, "condition").values() if several else [condition]
    return any(part.get("kind") == SketchCondition.kind for part in parts)
