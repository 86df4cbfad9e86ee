"""`piti translate`: generate images from conditions."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piti.cli.console import begins_with, images_made, print_notes, print_wait, progress, resumable
from piti.cli.groups import all_given, with_groups
from piti.cli.options import Batch, ComputeFlags, Device, Model, Overwrite, Results, SamplingFlags, Seed, Upsampler

if TYPE_CHECKING:
    from piti.generation.sources import TranslationFiles
    from piti.generation.translate import Report


@dataclass(frozen=True)
class InputFlags:
    """Inputs other than files."""

    text: Annotated[list[str] | None, typer.Option(help="For a prior: a text to generate images from. Repeatable.")] = (
        None
    )
    given: Annotated[
        list[str] | None,
        typer.Option(help="For a model with several conditions: PART=FILE or PART=FOLDER. Repeatable."),
    ] = None
    like: Annotated[
        Path | None, typer.Option(help="Recreate this PNG written by piti; other flags override its settings.")
    ] = None

    def of(self, inputs: list[Path], out: Path, overwrite: bool) -> TranslationFiles:
        """The flags as `TranslationFiles`. Raises InputError, and RemakeError for an image that cannot be recreated."""
        from piti.generation.inputs import parsed_given
        from piti.generation.recreate import read_record
        from piti.generation.sources import TranslationFiles

        parts = parsed_given(self.given or [])
        record = None if self.like is None else read_record(self.like)
        return TranslationFiles(inputs, out, self.text or [], parts, record, overwrite)


@begins_with("piti.generation.translate")
@with_groups
def translate(
    ctx: typer.Context,
    wanted: InputFlags,
    sampling: SamplingFlags,
    computed: ComputeFlags,
    inputs: Annotated[list[Path] | None, typer.Argument(help="Conditions: files, folders, or packed shards.")] = None,
    model: Model = "street",
    upsampler: Upsampler = None,
    num: Annotated[
        int,
        typer.Option(
            "--num",
            "-n",
            min=1,
            help="Images per condition. With --like, by default only the image of the same number.",
        ),
    ] = 4,
    seed: Seed = 0,
    batch: Batch = 8,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip conditions that cannot be used, instead of stopping.")
    ] = False,
    out: Results = Path("out"),
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Generate images from conditions: masks, sketches, depth or texts.

    A contact sheet shows conditions and images side by side.
    """
    from piti.core.distributed import joined
    from piti.generation.plan import resolved_sampling
    from piti.generation.recreate import opened
    from piti.generation.translate import translate_files

    files, flags = wanted.of(inputs or [], out, overwrite), all_given(ctx)
    like, options = files.like, sampling.options(num, seed, batch, skip_bad)
    computing = computed.on(device) if like is None else like.computed(computed.on(device), flags)
    computing.check()
    ranks = joined()
    name, pipeline, options = opened(model, upsampler, options, like, flags)
    computing.applied(pipeline)
    pipeline.set_progress_bar_config(disable=True)  # our bar covers all batches
    resolved_sampling(pipeline, options, like)  # invalid options are refused before networks are converted
    if ranks.main:
        print_wait(pipeline, computing.compile)
    plain = overwrite or ranks.world > 1  # several processes are ended by torchrun
    with nullcontext() if plain else resumable(), progress("translating", ranks.main) as on_step:
        report = translate_files(pipeline, files, options, name, on_step, ranks)
    if ranks.main:
        _print_report(report)


def _print_report(report: Report) -> None:
    """Print how many images were made and kept, and where they are."""
    print_notes(report.notes)
    look = report.sheet or [*report.made, *report.kept][0]
    typer.echo(f"{images_made(len(report.made), len(report.kept))}; look at {look}{report.left_out}")
