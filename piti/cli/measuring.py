"""Flags of evaluation: networks, folders of conditions, and the result's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from piti.cli.console import flag
from piti.cli.options import Device, Seed

if TYPE_CHECKING:
    from piti.conditions import Condition
    from piti.evaluation.options import Options
    from piti.evaluation.perceptual import LpipsSpec
    from piti.models.perceptual import PerceptualSpec
    from piti.reproduction.runs import Judges

_JUDGING, _CONDITIONS, _RESULT = "Metrics", "Conditions of the images", "Result"


@dataclass(frozen=True)
class JudgeFlags:
    """The networks that evaluate images."""

    features: Annotated[
        list[str] | None,
        Option(
            help="Feature network: inception, clip, dinov2, clip-l (for CMMD), alexnet or squeezenet; a hub id or "
            "folder of "
            "CLIP or DINOv2; or a file with weights of Inception, AlexNet or SqueezeNet. Repeatable; by default "
            "inception and clip.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    segmenter: Annotated[
        str | None,
        Option(
            help="Segmentation model that measures agreement with masks: a hub id or folder.", rich_help_panel=_JUDGING
        ),
    ] = None
    aliases: Annotated[
        Path | None,
        Option(
            help="JSON file that maps the segmenter's labels to class names where they differ.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    bootstrap: Annotated[
        int, Option(min=0, help="Bootstrap samples for confidence intervals; 0 for none.", rich_help_panel=_JUDGING)
    ] = 200

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.aliases and not self.segmenter:
            raise UserError("--aliases has no effect without --segmenter; give the model whose labels they map")

    def judges(self) -> Judges:
        """The flags as `Judges`."""
        from piti.reproduction.runs import Judges

        return Judges(tuple(self.features or Judges.features), self.segmenter, self.aliases, self.bootstrap)


@dataclass(frozen=True)
class MeasureFlags(JudgeFlags):
    """All settings of an evaluation."""

    resize: Annotated[
        int | None,
        Option(
            help="First resize the centre squares of images and photographs to this size in pixels.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    depth: Annotated[
        str | None,
        Option(help="Depth model that measures agreement with depth: a hub id or folder.", rich_help_panel=_JUDGING),
    ] = None
    perceptual: Annotated[
        str | None,
        Option(
            help="Metric for distances between samples and to their photographs: lpips-alex or lpips-vgg, or "
            "unweighted "
            "features of alexnet, vgg16, vgg19 or squeezenet1_1.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    perceptual_weights: Annotated[
        str | None, Option(help="Weights of the --perceptual network: a file or hub id.", rich_help_panel=_JUDGING)
    ] = None
    perceptual_heads: Annotated[
        str | None,
        Option(
            help="LPIPS: file of its learned linear weights, if not beside the network's.", rich_help_panel=_JUDGING
        ),
    ] = None
    objects: Annotated[
        bool,
        Option(
            "--objects",
            help="Measure whether objects of a class look more alike within an image than across samples; needs masks.",
            rich_help_panel=_JUDGING,
        ),
    ] = False
    training: Annotated[
        Path | None,
        Option(
            help="Training photographs (a folder or data root): measure whether images are closer to them than --real "
            "is.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    nearest: Annotated[
        Path | None,
        Option(
            help="With --training: write a picture of the images closest to training photographs.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    cache: Annotated[
        Path | None, Option(help="Folder that caches features between evaluations.", rich_help_panel=_JUDGING)
    ] = None
    batch: Annotated[int | None, Option(min=1, help="Batch size; by default 8 for sampling and 32 for evaluation.")] = (
        None
    )
    seed: Seed = 0
    device: Device = None

    def options(self) -> Options:
        """The flags as `Options`. Raises UserError for values that contradict each other."""
        from piti.evaluation.options import Options

        return Options(
            tuple(self.features or Options.features),
            self.resize,
            self.batch or Options.batch,
            self.device,
            self.segmenter,
            self.aliases,
            self.depth,
            self._perceptual(),
            self.objects,
            self.training,
            self.nearest,
            self.cache,
            self.bootstrap,
            self.seed,
        )

    def _perceptual(self) -> PerceptualSpec | LpipsSpec | None:
        from piti.core.errors import UserError
        from piti.evaluation.perceptual import LPIPS, LpipsSpec
        from piti.models.perceptual import PerceptualSpec

        for name in ("perceptual_weights", "perceptual_heads"):
            if getattr(self, name) and not self.perceptual:
                raise UserError(
                    f"{flag(name)} has no effect without --perceptual; give the network that they belong to"
                )
        if self.perceptual is None:
            return None
        values = {"network": self.perceptual, "weights": self.perceptual_weights}
        if self.perceptual in LPIPS:
            return LpipsSpec.parse(values | {"heads": self.perceptual_heads}, "--perceptual")
        if self.perceptual_heads:
            raise UserError(
                "--perceptual-heads belong to LPIPS: give --perceptual lpips-alex or lpips-vgg, or leave it out"
            )
        return PerceptualSpec.parse(values, "--perceptual")


@dataclass(frozen=True)
class ConditionFlags:
    """Folders of conditions, one for each kind."""

    labels: Annotated[Path | None, Option(help="A folder of masks.", rich_help_panel=_CONDITIONS)] = None
    classes: Annotated[
        Path | None,
        Option(help="classes.json, if not in the folder of masks or beside it.", rich_help_panel=_CONDITIONS),
    ] = None
    sketches: Annotated[Path | None, Option(help="A folder of sketches.", rich_help_panel=_CONDITIONS)] = None
    geometry: Annotated[Path | None, Option(help="A folder of depth files.", rich_help_panel=_CONDITIONS)] = None

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.classes and not self.labels:
            raise UserError("--classes has no effect without --labels; give the folder of masks")

    def notes(self, options: Options) -> list[str]:
        """A note if masks are given but nothing measures them."""
        used = options.segmenter or options.objects or options.perceptual
        if self.labels is None or used:
            return []
        return ["--labels has no effect without --segmenter; give a segmenter to measure agreement with the masks"]

    def read(self) -> dict[str, tuple[Path, Condition]]:
        """The given folders and their conditions, by flag name. Raises UserError."""
        from piti.evaluation.condition_folders import condition_folders

        return condition_folders(**vars(self))


@dataclass(frozen=True)
class ResultFlags:
    """The file of the result."""

    json: Annotated[
        Path | None,
        Option(
            help="Write the result to this JSON file, with everything needed to repeat it.", rich_help_panel=_RESULT
        ),
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the --json file.", rich_help_panel=_RESULT)] = False

    def check(self) -> None:
        """Raise OutputError if the result could not be written; called before the work starts."""
        from piti.core.files import check_file

        if self.json is not None:
            check_file(self.json, self.overwrite, "--json")

    def write(self, result: Any) -> None:
        """Write a result by its method `write(path, overwrite)`, if --json is given."""
        if self.json is not None:
            result.write(self.json, self.overwrite)
            typer.echo(f"written to {self.json}")
