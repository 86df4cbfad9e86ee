"""`piti edit`: change part of an image by changing its condition."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from piti.cli.console import begins_with, images_made, print_notes, print_wait, progress, resumable
from piti.cli.groups import with_groups
from piti.cli.options import (
    BaseOnly,
    Batch,
    Compile,
    Device,
    DType,
    Guidance,
    GuidanceInterval,
    GuidanceRule,
    Model,
    Num,
    Overwrite,
    Results,
    Seed,
    Upsampler,
    guidance_of,
)

if TYPE_CHECKING:
    from piti.editing import EditSettings
    from piti.generation.edit_files import EditCondition, EditFiles


class Keep(StrEnum):
    """How pixels outside the region are kept."""

    EXACT = "exact"


@dataclass(frozen=True)
class FileFlags:
    """The new condition, the current one, and the region to repaint."""

    to: Annotated[
        list[str] | None,
        Option(
            "--to", help="The new condition: a file, or PART=FILE, repeatable, for a model with several conditions."
        ),
    ] = None
    from_: Annotated[
        list[str] | None,
        Option(
            "--from",
            help="The current condition, as --to; PNGs written by piti contain it. If unknown, everything is "
            "repainted.",
        ),
    ] = None
    text: Annotated[str | None, Option(help="For a prior, instead of --to: the new text.")] = None
    from_text: Annotated[str | None, Option(help="For a prior, instead of --from: the current text.")] = None
    region: Annotated[
        Path | None, Option(help="A mask image, white where to repaint; by default where --from and --to differ.")
    ] = None

    def of(self, image: Path, out: Path, overwrite: bool) -> EditFiles:
        """The flags as `EditFiles`. Raises UserError if no new condition is given."""
        from piti.core.errors import UserError
        from piti.generation.edit_files import EditFiles

        wanted = edit_condition("to", self.to, "text", self.text)
        if wanted is None:
            raise UserError("the new condition is missing; give --to FILE, or --text for a prior")
        shown = edit_condition("from", self.from_, "from-text", self.from_text)
        return EditFiles(image, wanted, out, shown, self.region, overwrite)


@dataclass(frozen=True)
class EditFlags:
    """Settings of the edit; None is the default of `EditSettings`."""

    guidance: Guidance = None
    guidance_rule: GuidanceRule = None
    guidance_interval: GuidanceInterval = None
    steps: Annotated[
        int | None, Option(min=1, help="DDIM steps of the base, for inversion and for sampling; 25 by default.")
    ] = None
    upsampler_steps: Annotated[
        str | None, Option(help="DDIM steps of the upsampler: a number, or fast27; 10 by default.")
    ] = None
    refinements: Annotated[
        int | None, Option(min=0, help="Refinements per inversion step; 1 by default, 0 is plain DDIM inversion.")
    ] = None
    variety: Annotated[
        float | None,
        Option(
            help="Share of fresh noise in the region, 0 to 1; 0.7 by default, 0 if everything is repainted. At 0 all "
            "images are the same."
        ),
    ] = None
    dilate: Annotated[
        float | None,
        Option(help="How far the region extends beyond the change, as a share of the short side; 0.03 by default."),
    ] = None
    feather: Annotated[
        float | None,
        Option(help="Width over which the region fades out, as a share of the short side; 0.04 by default."),
    ] = None
    size: Annotated[
        int | None,
        Option(help="Short side in pixels at which to edit, up to 4 times the model's size, which is the default."),
    ] = None
    base_only: BaseOnly = False
    keep: Annotated[
        Keep | None, Option(help="exact: return the input at its own size, bit for bit unchanged outside the region.")
    ] = None
    measure: Annotated[
        bool, Option("--measure", help="Also sample the inverted image back, and report the reconstruction PSNR.")
    ] = False

    def settings(self) -> EditSettings:
        """The flags as `EditSettings`. Raises EditError for values out of range."""
        from piti.editing import EditSettings

        rules = ("keep", "guidance", "guidance_rule", "guidance_interval")
        given = {name: value for name, value in vars(self).items() if value is not None and name not in rules}
        guidance = guidance_of(self.guidance, self.guidance_rule, self.guidance_interval)
        given |= {} if guidance is None else {"guidance": guidance}
        return EditSettings.from_flat(keep_exact=self.keep is Keep.EXACT, **given)


@begins_with("piti.generation.edit_files")
@with_groups
def edit(
    image: Annotated[Path, typer.Argument(help="The image to edit: a photograph, or a result of piti.")],
    files: FileFlags,
    editing: EditFlags,
    model: Model = "street",
    upsampler: Upsampler = None,
    num: Num = 1,
    seed: Seed = 0,
    batch: Batch = 8,
    out: Results = Path("out"),
    overwrite: Overwrite = False,
    device: Device = None,
    dtype: DType = "auto",
    compile: Compile = False,
) -> None:
    """Change part of an image by changing its condition there, and keep the rest."""
    from piti.core.errors import UserError
    from piti.generation.edit_files import EditOptions, edit_file
    from piti.generation.metadata import model_name
    from piti.pipelines.computing import Computing
    from piti.pipelines.pipeline import PITIPipeline

    if editing.dilate is not None and files.region is not None:
        raise UserError("--dilate has no effect with --region, whose white is repainted and nothing else; remove it")
    edited, settings = files.of(image, out, overwrite), editing.settings()
    computing = Computing(device, dtype, "torch", compile)
    computing.check()
    pipeline = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=settings.sampling.base_only)
    computing.applied(pipeline)
    print_wait(pipeline, compile)
    options = EditOptions(model_name(model, upsampler), num, seed, batch)
    with nullcontext() if overwrite else resumable(), progress("editing") as on_step:
        report = edit_file(pipeline, edited, settings, options, on_step)
    print_notes(report.notes)
    look = report.sheet or [*report.made, *report.kept][0]
    typer.echo(f"{images_made(len(report.made), len(report.kept))}: {report.edits.words()}; look at {look}")


def edit_condition(flag: str, values: Sequence[str] | None, text_flag: str, text: str | None) -> EditCondition | None:
    """The condition given by a flag or by its text flag; None for neither. Raises UserError for both, and for several
    files without parts."""
    from piti.core.errors import UserError

    if text is not None and values:
        raise UserError(f"--{flag} and --{text_flag} are both given; remove one")
    if text is not None or not values:
        return text
    parts = dict(value.split("=", 1) for value in values if "=" in value and not Path(value).exists())
    if not parts and len(values) == 1:
        return Path(values[0])
    if len(parts) < len(values):
        raise UserError(f"--{flag} {' '.join(values)}: give one file, or PART=FILE once for each part")
    return {part: Path(path) for part, path in parts.items()}
