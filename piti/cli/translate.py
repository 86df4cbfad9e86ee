"""`piti translate`: conditions into images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piti.cli.console import log, print_notes, progress
from piti.cli.options import Device, Engine, Model, Overwrite, SamplingFlags, Seed, Upsampler, all_given, with_groups


@with_groups
def translate(
    ctx: typer.Context,
    sampling: SamplingFlags,
    inputs: Annotated[list[Path] | None, typer.Argument(help="Conditions: files, or folders of them.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="For a prior: what the image is to show.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="For a model of several conditions: PART=FILE or PART=FOLDER. Repeatable."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Make this image, a PNG written by piti, again; flags given beside it win.")
    ] = None,
    model: Model = "street",
    upsampler: Upsampler = None,
    num: Annotated[
        int, typer.Option("--num", "-n", min=1, help="Images of each condition; with --like its number alone.")
    ] = 4,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images sampled at once; fewer take less memory.")] = 8,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable conditions out, do not stop.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for STEM_0.png … and sheet.png.")] = Path("out"),
    overwrite: Overwrite = False,
    device: Device = None,
    engine: Engine = "auto",
) -> None:
    """Translate conditions into images, and lay both out on a contact sheet."""
    from piti.core.distributed import joined, usable_device
    from piti.generation.inputs import parsed_given
    from piti.generation.recreate import opened, read_record
    from piti.generation.translate import resolved_sampling, translate_files

    parts = parsed_given(given or [])
    record = None if like is None else read_record(like)
    options = sampling.options(num, seed, batch, skip_bad)
    ranks = joined()
    name, pipeline, options = opened(model, upsampler, options, record, all_given(ctx))
    pipeline.to(usable_device(device)).set_progress_bar_config(disable=True)  # ours is over all batches
    pipeline.use_engine(record.said.engine if record and "engine" not in all_given(ctx) else engine)
    resolved_sampling(pipeline, options, record)  # what is impossible is refused before the wait
    if ranks.main and not pipeline.engine_ready():
        log.print(f"converting the networks for {pipeline.engine.name}, once …")
    with progress("translating", ranks.main) as on_step:
        report = translate_files(
            pipeline, inputs or [], out, options, name, overwrite, on_step, text or [], parts, ranks, record
        )
    if ranks.main:
        print_notes(report.notes)
        kept = f", {len(report.kept)} kept (--overwrite makes them anew)" if report.kept else ""
        typer.echo(f"{len(report.made)} images made{kept}; look at {report.sheet}{report.left_out}")
