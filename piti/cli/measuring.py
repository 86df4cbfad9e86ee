"""The flags of what images are measured by: judges, the folders of conditions, and where the result goes."""

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

_JUDGING, _CONDITIONS, _RESULT = "Judging", "Conditions the images were made from", "Result"


@dataclass(frozen=True)
class JudgeFlags:
    """The networks that judge images."""

    features: Annotated[
        list[str] | None,
        Option(
            help="inception, clip, dinov2, clip-l (for CMMD), alexnet, squeezenet; a hub id, or a folder, of CLIP or "
            "DINOv2; a file of Inception's, AlexNet's or SqueezeNet's weights. Repeatable; by default inception, clip.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    segmenter: Annotated[
        str | None,
        Option(help="Model that measures agreement with masks: a hub id, or a folder.", rich_help_panel=_JUDGING),
    ] = None
    aliases: Annotated[
        Path | None,
        Option(help="JSON: labels of the segmenter that differ from the classes' names.", rich_help_panel=_JUDGING),
    ] = None
    bootstrap: Annotated[
        int, Option(min=0, help="Draws for the confidence intervals; 0 is none.", rich_help_panel=_JUDGING)
    ] = 200

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.aliases and not self.segmenter:
            raise UserError("--aliases without --segmenter: name the model whose labels they are")

    def judges(self) -> Judges:
        """What `piti reproduce` takes."""
        from piti.reproduction.runs import Judges

        return Judges(tuple(self.features or Judges.features), self.segmenter, self.aliases, self.bootstrap)


@dataclass(frozen=True)
class MeasureFlags(JudgeFlags):
    """All that decides how images are measured."""

    resize: Annotated[
        int | None,
        Option(help="Scale the centre squares of both sides to this side first.", rich_help_panel=_JUDGING),
    ] = None
    depth: Annotated[
        str | None, Option(help="Model that measures depth: a hub id, or a folder.", rich_help_panel=_JUDGING)
    ] = None
    perceptual: Annotated[
        str | None,
        Option(
            help="Distances between samples, and to their photographs: lpips-alex or lpips-vgg; or the features of "
            "alexnet, vgg16, vgg19 or squeezenet1_1, all channels alike.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    perceptual_weights: Annotated[
        str | None, Option(help="File of its weights, or a hub id.", rich_help_panel=_JUDGING)
    ] = None
    perceptual_heads: Annotated[
        str | None,
        Option(help="LPIPS: file of its learned weights, if not beside the network's.", rich_help_panel=_JUDGING),
    ] = None
    objects: Annotated[
        bool,
        Option(
            "--objects",
            help="By the masks: do objects of one class within an image look more alike than in different samples?",
            rich_help_panel=_JUDGING,
        ),
    ] = False
    training: Annotated[
        Path | None,
        Option(
            help="Photographs trained on (a folder, or a data root): are images nearer to them than --real are?",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    nearest: Annotated[
        Path | None,
        Option(help="With --training: a picture of the images nearest to them.", rich_help_panel=_JUDGING),
    ] = None
    cache: Annotated[
        Path | None, Option(help="Folder that keeps features for the next evaluation.", rich_help_panel=_JUDGING)
    ] = None
    batch: Annotated[int | None, Option(min=1, help="Images sampled at once (8), and judged at once (32).")] = None
    seed: Seed = 0
    device: Device = None

    def options(self) -> Options:
        """What `evaluate_files` takes. Raises UserError for values that are impossible together."""
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
                raise UserError(f"{flag(name)} without --perceptual: say which network they are of")
        if self.perceptual is None:
            return None
        values = {"network": self.perceptual, "weights": self.perceptual_weights}
        if self.perceptual in LPIPS:
            return LpipsSpec.parse(values | {"heads": self.perceptual_heads}, "--perceptual")
        if self.perceptual_heads:
            raise UserError(
                "--perceptual-heads are of LPIPS: give --perceptual lpips-alex or lpips-vgg, or leave it out"
            )
        return PerceptualSpec.parse(values, "--perceptual")


@dataclass(frozen=True)
class ConditionFlags:
    """Folders of conditions, one for each kind."""

    labels: Annotated[Path | None, Option(help="A folder of masks.", rich_help_panel=_CONDITIONS)] = None
    classes: Annotated[
        Path | None, Option(help="classes.json, if not in LABELS or beside it.", rich_help_panel=_CONDITIONS)
    ] = None
    sketches: Annotated[Path | None, Option(help="A folder of sketches.", rich_help_panel=_CONDITIONS)] = None
    geometry: Annotated[Path | None, Option(help="A folder of depth.", rich_help_panel=_CONDITIONS)] = None

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.classes and not self.labels:
            raise UserError("--classes without --labels: give the folder of masks too")

    def notes(self, options: Options) -> list[str]:
        """What a person should know of masks that nothing is compared with."""
        used = options.segmenter or options.objects or options.perceptual
        if self.labels is None or used:
            return []
        return ["--labels without --segmenter measures nothing of the masks; give the segmenter that sees the images"]

    def read(self) -> dict[str, tuple[Path, Condition]]:
        """Each folder that is given with its kind of condition, by the flag's name. Raises UserError."""
        from piti.evaluation.condition_folders import condition_folders

        return condition_folders(**vars(self))


@dataclass(frozen=True)
class ResultFlags:
    """Where a result is written."""

    json: Annotated[
        Path | None, Option(help="Write the result, and all that it takes to repeat it.", rich_help_panel=_RESULT)
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace --json.", rich_help_panel=_RESULT)] = False

    def check(self) -> None:
        """Before hours of work: raises OutputError if the result could not be written."""
        from piti.core.files import check_file

        if self.json is not None:
            check_file(self.json, self.overwrite, "--json")

    def write(self, result: Any) -> None:
        """Write a result with the method `write(path, overwrite)`, if that was asked for."""
        if self.json is not None:
            result.write(self.json, self.overwrite)
            typer.echo(f"written to {self.json}")
