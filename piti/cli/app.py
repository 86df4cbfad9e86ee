"""The command line: parse, call one library function, print."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piti.cli.data import prepare_app
from piti.cli.edit import edit
from piti.cli.evaluate import evaluate
from piti.cli.options import all_said
from piti.cli.reproduce import reproduce
from piti.cli.studio import studio

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(prepare_app, name="prepare")
log = Console(stderr=True)

_GIVEN = {
    "mask": "MASK.png",
    "palette": "MASK.png",
    "sketch": "SKETCH.png",
    "geometry": "DEPTH.png",
    "text": '--text "…"',
    "several": "--given PART=FILE",
}  # what is translated, by the kind of condition


class Layout(StrEnum):
    """What `export` can write."""

    RELEASE = "release"


@app.callback()
def root() -> None:
    """Image-to-image translation with a pretrained diffusion prior (PITI)."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/street.yaml.")],
    data: Annotated[Path | None, typer.Option(help="The data's root, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE on top of the recipe, such as stages.0.lr=1e-4."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")] = False,
    gpu: Annotated[str, typer.Option(help="For --dry-run: whose hours and memory; a100, h100 or rtx4090.")] = "a100",
) -> None:
    """Train a translator as a recipe says."""
    from piti.core.distributed import started
    from piti.training import plan, read_recipe
    from piti.training import train as run_training

    parsed = read_recipe(recipe, changes or [])
    if data is not None:
        parsed = parsed.model_copy(update={"data": parsed.data.model_copy(update={"root": data})})
    folder = out or Path("runs") / parsed.name
    if dry_run:
        print_rows(plan(parsed, folder, gpu))
        return
    model = run_training(parsed, folder, resume, log)
    if not started().main:
        return
    alone = parsed.model.low_res is not None and parsed.base is None
    use = f"--model BASE --upsampler {folder}" if alone else f"--model {folder}"
    given = _GIVEN.get(str(parsed.condition.get("kind")), "CONDITION.png")
    typer.echo(f"the model is in {model}; translate with it: piti translate {given} {use}")


@app.command()
def translate(
    ctx: typer.Context,
    inputs: Annotated[list[Path] | None, typer.Argument(help="Conditions: files, or folders of them.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="For a prior: what the picture is to show.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="For a model of several conditions: PART=FILE or PART=FOLDER, for each that is given."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Make this image of piti's again, or another like it: flags beside it win."),
    ] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, a training run, or a hub id.")] = "street",
    num: Annotated[
        int,
        typer.Option(
            "--num", "-n", min=1, help="Images for each condition, from number 0 on; with --like its own alone."
        ),
    ] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance w; 0 is off. The model's own by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. The model's own by default.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, dpm++, dpm++sde or unipc.")] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Images made at once, small and large; less takes less memory.")
    ] = 8,
    base_only: Annotated[
        bool, typer.Option("--base-only/--no-base-only", help="Stop at the base's small images.")
    ] = False,
    upsampler: Annotated[str | None, typer.Option(help="Take the upsampler of this model, folder or run.")] = None,
    upsampler_steps: Annotated[
        str | None, typer.Option(help="Steps of the upsampler: a number, or fast27 as released.")
    ] = None,
    upsampler_sampler: Annotated[str | None, typer.Option(help="Sampler of the upsampler, as --sampler.")] = None,
    square: Annotated[
        bool, typer.Option("--square", help="Translate the square at a condition's centre, not all of it.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(help="Short side of the images: 16 px to 4 times the model's, which is the default.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave conditions out that cannot be used, instead of stopping.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where STEM_0.png … and sheet.png go.")] = Path("out"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make images anew that exist already.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps …; the fastest there is by default.")] = None,
) -> None:
    """Translate conditions into images, and lay both out on a contact sheet."""
    from piti.core.distributed import joined
    from piti.core.progress import steps_bar
    from piti.generation.inputs import parsed_given
    from piti.generation.metadata import model_name
    from piti.generation.recreate import read_record
    from piti.generation.translate import Settings, translate_files
    from piti.pipelines.pipeline import PITIPipeline, usable_device

    parts = parsed_given(given or [])
    again = None if like is None else read_record(like)
    count = int(upsampler_steps) if upsampler_steps and upsampler_steps.isdecimal() else upsampler_steps
    settings = Settings(
        num, seed, guidance, steps, sampler, batch, base_only, count, upsampler_sampler, square, size, skip_bad
    )
    ranks = joined()
    if again is None:
        loaded = PITIPipeline.from_pretrained(model, upsampler=upsampler, base_only=base_only)
    else:
        said = all_said(ctx)
        settings = again.settings(settings, said)
        model, upsampler = again.networks(model, upsampler, settings.base_only, said)
        loaded = again.loaded(model, upsampler, settings.base_only, said)
    pipeline = loaded.to(usable_device(device))
    pipeline.set_progress_bar_config(disable=True)  # ours is over all batches
    name = model_name(model, upsampler)
    with steps_bar(log if ranks.main else Console(quiet=True), "translating") as on_step:
        report = translate_files(
            pipeline, inputs or [], out, settings, name, overwrite, on_step, text or [], parts, ranks, again
        )
    if not ranks.main:
        return
    for note in report.notes:
        log.print(Text.assemble(("note: ", "bold yellow"), note), soft_wrap=True)
    kept = f", {len(report.kept)} kept (--overwrite makes them anew)" if report.kept else ""
    typer.echo(f"{len(report.made)} images made{kept}; look at {report.sheet}{report.left_out}")


app.command()(edit)
app.command()(evaluate)
app.command()(reproduce)
app.command()(studio)


@app.command()
def models() -> None:
    """List the models that are bundled or in the hub's cache."""
    from piti.pipelines.pipeline import list_models

    print_rows([model.row() for model in list_models()])


@app.command("import")
def import_(
    base: Annotated[Path, typer.Argument(help="A released base, of GLIDE or PITI, or PITI's encoder alone.")],
    out: Annotated[Path, typer.Option(help="The model's folder.")],
    upsampler: Annotated[Path | None, typer.Option(help="A released upsampler.")] = None,
    prior: Annotated[
        str | None, typer.Option(help="For an encoder alone: whose UNet it takes, a released base or a model.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="A classes.json instead of COCO-Stuff's, for masks.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A folder with GPT-2's tokenizer, for GLIDE.")] = None,
    head_dim: Annotated[
        int | None, typer.Option(min=1, help="Channels of a head in the UNet, for unusual files.")
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads of the transformer, for unusual files.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model in --out.")] = False,
) -> None:
    """Make a model of checkpoints that GLIDE or PITI released, or that were finetuned in their layout."""
    from piti.checkpoints.convert import ImportSettings, import_release
    from piti.checkpoints.release import Heads

    settings = ImportSettings(prior, classes, tokenizer, Heads(head_dim, heads), overwrite)
    written = import_release(base, out, upsampler, settings)
    print_rows([done.row() for done in written])
    for note in (note for done in written for note in done.notes):
        typer.echo(note)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model's folder, a training run, a bundled model, or a hub id.")],
    out: Annotated[Path, typer.Option(help="A .pt file, or a folder for base.pt and upsampler.pt.")],
    layout: Annotated[Layout, typer.Option(help="GLIDE's and PITI's keys.")] = Layout.RELEASE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier export wrote.")] = False,
) -> None:
    """Write a model's weights in the layout of the released checkpoints."""
    from piti.checkpoints.convert import export_release

    writers = {Layout.RELEASE: export_release}
    print_rows([done.row() for done in writers[layout](model, out, overwrite)])


def print_rows(rows: list[dict[str, str]]) -> None:
    """A table on standard output, its columns as wide as they need to be where that is no terminal."""
    if not rows:
        typer.echo("none")
        return
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def main() -> None:
    """Run the command line; a mistake of the user's is one message, not a traceback."""
    from piti.core.distributed import FailedElsewhere
    from piti.core.errors import UserError

    try:
        app()
    except FailedElsewhere:  # which tells why
        raise SystemExit(1) from None
    except (UserError, OSError) as error:
        log.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
