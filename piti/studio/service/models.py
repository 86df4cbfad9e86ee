"""The served models: loading and description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from piti.conditions import Condition, MaskCondition, NoCondition, SeveralCondition, TextCondition
from piti.core.errors import UserError
from piti.diffusion.samplers import SAMPLERS
from piti.editing import EditError, check_edits
from piti.models import Translator
from piti.pipelines.computing import Computing
from piti.pipelines.options import OWN_SAMPLING
from piti.pipelines.pipeline import PITIPipeline, find_model
from piti.studio.service.schema import Bounds, ClassInfo, Defaults, Limits, ModelInfo


@dataclass(frozen=True)
class Loaded:
    """A served model."""

    name: str
    pipeline: PITIPipeline
    info: ModelInfo
    folder: Path
    """Its folder."""

    @property
    def kind(self) -> str:
        """The kind of its condition."""
        return self.info.kind

    @property
    def samplers(self) -> tuple[str, ...]:
        """The supported samplers; none for a baseline."""
        return tuple(self.info.samplers)

    @property
    def condition(self) -> Condition:
        """Its condition."""
        return self.pipeline.condition


def load(name: str, computing: Computing, limits: Limits) -> Loaded:
    """Load a model by name, with the settings of `computing`. Raises UserError if it cannot be loaded or computed, or
    does not read a single image or text."""
    pipeline = PITIPipeline.from_pretrained(name)
    if isinstance(pipeline.condition, SeveralCondition | NoCondition):
        raise UserError(
            f"reads {pipeline.condition.kind}, but the studio serves models that read one image, such as a mask, or "
            "one text",
            remedy="use it with piti translate",
            option="model",
            value=name,
        )
    computing.applied(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return Loaded(name, pipeline, described(name, pipeline, limits), find_model(name).absolute())


def described(name: str, pipeline: PITIPipeline, limits: Limits) -> ModelInfo:
    """The description of a model for clients."""
    condition, upsampler = pipeline.condition, pipeline.upsampler
    table = condition.classes if isinstance(condition, MaskCondition) else None
    entries = () if table is None else zip(table.ids, table.names, table.colours, strict=True)
    return ModelInfo(
        name=name,
        kind=condition.kind,
        image_size=(pipeline.base if upsampler is None else upsampler).image_size,
        small_size=pipeline.base.image_size,
        classes=[ClassInfo(id=number, name=word, colour=colour) for number, word, colour in entries],
        unlabelled=None if table is None else table.ignore_colour,
        samplers=_samplers(pipeline.base),
        fixed=_fixed(pipeline.base),
        edits=_edits(pipeline),
        defaults=Defaults.of(OWN_SAMPLING.resolve(pipeline)),
        limits=Bounds(
            num=limits.samples,
            steps=limits.steps,
            size=limits.size,
            upload_bytes=limits.upload_bytes,
            pixels=limits.pixels,
            seconds=limits.seconds,
        ),
    )


def _fixed(base: nn.Module) -> list[str]:
    """The settings fixed by a base's weights."""
    if not isinstance(base, Translator):
        return ["guidance", "steps", "sampler"]
    if base.student is None:
        return ["steps"] if base.one_step else []
    return ["guidance"] if base.student.timesteps is None else ["guidance", "steps", "sampler"]


def _samplers(base: nn.Module) -> list[str]:
    """The samplers that a base supports."""
    if not isinstance(base, Translator):
        return []
    return ["ddim"] if "sampler" in _fixed(base) else list(SAMPLERS)


def _edits(pipeline: PITIPipeline) -> bool:
    """Whether a model can edit with image conditions, the only edits in the studio."""
    if isinstance(pipeline.condition, TextCondition):
        return False
    try:
        check_edits(pipeline)
    except EditError:
        return False
    return True
