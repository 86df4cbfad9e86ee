"""`piti edit`: an image again under a changed condition, the rest of it kept."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from piti.generation.edit_files import EditCondition


class Keep(StrEnum):
    """How what lies outside the region comes back."""

    EXACT = "exact"


def edit(
    image: Annotated[Path, typer.Argument(help="The image to edit, a photograph or a result.")],
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="The condition it is to show; PART=FILE, repeated, for a model of several."),
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from", help="The condition that it shows now; PNGs of piti's say it. Unknown, all of it is repainted."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="For a prior, instead of --to: what it is to show.")] = None,
    from_text: Annotated[str | None, typer.Option(help="For a prior, instead of --from: what it shows now.")] = None,
    region: Annotated[
        Path | None,
        typer.Option(help="A picture, white where it is repainted. By default where --from and --to differ."),
    ] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, a training run, or a hub id.")] = "street",
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Images to make.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance w; 0 is off. The model's own by default.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps of the base, up and down; 25 by default.")
    ] = None,
    upsampler: Annotated[str | None, typer.Option(help="Take the upsampler of this model, folder or run.")] = None,
    upsampler_steps: Annotated[
        str | None, typer.Option(help="DDIM steps of the upsampler: a number (10 by default), or fast27.")
    ] = None,
    refinements: Annotated[
        int | None, typer.Option(min=0, help="Calls that refine each step of the inversion; 1 by default, 0 is plain.")
    ] = None,
    variety: Annotated[
        float | None,
        typer.Option(help="Share of fresh noise in the region, 0 to 1; 0.7 by default, 0 makes all images the same."),
    ] = None,
    dilate: Annotated[
        float | None, typer.Option(help="How far the region goes beyond the change, as a share of the short side.")
    ] = None,
    feather: Annotated[
        float | None, typer.Option(help="How wide the region fades out, as a share of the short side.")
    ] = None,
    keep: Annotated[
        Keep | None, typer.Option(help="exact: the input in its own size, to the bit outside the region.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also sample the inverted image back, and say how much of it returns.")
    ] = False,
    base_only: Annotated[bool, typer.Option("--base-only", help="Edit at the base's small size.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Short side at which it is edited: up to 4 times the model's, the default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png file, or a folder for STEM_0.png … and sheet.png.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier edit wrote.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps …; the fastest there is by default.")] = None,
) -> None:
    """Change a part of an image by changing its condition there, and keep the rest."""
    from piti.core.errors import UserError
    from piti.core.progress import steps_bar
    from piti.editing import EditSettings
    from piti.generation.edit_files import EditFiles, edit_file
    from piti.generation.metadata import model_name
    from piti.pipelines.pipeline import PITIPipeline, usable_device

    wanted = _given("to", to, "text", text)
    if wanted is None:
        raise UserError("what is the image to show? Give --to FILE, or --text for a prior")
    files = EditFiles(image, wanted, _given("from", from_, "from-text", from_text), region)
    count = int(upsampler_steps) if upsampler_steps and upsampler_steps.isdecimal() else upsampler_steps
    chosen = {
        "guidance": guidance,
        "steps": steps,
        "upsampler_steps": count,
        "refinements": refinements,
        "variety": variety,
        "dilate": dilate,
        "feather": feather,
        "size": size,
    }
    said = {key: value for key, value in chosen.items() if value is not None}
    settings = EditSettings(**said, keep_exact=keep is Keep.EXACT, base_only=base_only, measure=measure)  # type: ignore[arg-type]
    loaded = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only)
    pipeline = loaded.to(usable_device(device))
    name = model_name(model, upsampler)
    log = Console(stderr=True)
    with steps_bar(log, "editing") as on_step:
        report = edit_file(pipeline, files, out, settings, name, num, seed, overwrite, on_step)
    for note in report.notes:
        log.print(Text.assemble(("note: ", "bold yellow"), note), soft_wrap=True)
    look = report.sheet or report.made[0]
    typer.echo(f"{len(report.made)} images made: {report.words()}; look at {look}")


def _given(flag: str, values: Sequence[str] | None, text_flag: str, text: str | None) -> EditCondition | None:
    """What one flag, or the one for texts instead, names. Raises UserError for both, or for more than one file."""
    from piti.core.errors import UserError

    if text is not None and values:
        raise UserError(f"--{flag} and --{text_flag} say the same thing twice; leave one out")
    if text is not None or not values:
        return text
    parts = dict(value.split("=", 1) for value in values if "=" in value and not Path(value).exists())
    if not parts and len(values) == 1:
        return Path(values[0])
    if len(parts) < len(values):
        raise UserError(f"--{flag} {' '.join(values)}: give one file, or PART=FILE once for each part")
    return {part: Path(path) for part, path in parts.items()}
