"""`piti train`: a recipe into a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piti.cli.console import log, print_rows
from piti.cli.options import DryRun, Gpu

if TYPE_CHECKING:
    from piti.training import Recipe

_CONDITIONS = {
    "mask": "MASK.png",
    "palette": "MASK.png",
    "sketch": "SKETCH.png",
    "geometry": "DEPTH.png",
    "picture": "PICTURE.png",
    "text": '--text "…"',
    "several": "--given PART=FILE",
}  # what `piti translate` is given, by the kind of condition


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe that comes with piti, such as street, or a file.")],
    data: Annotated[Path | None, typer.Option(help="The data's root, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE that replaces the recipe's, such as stages.0.lr=1e-4. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    dry_run: DryRun = False,
    gpu: Gpu = "a100",
) -> None:
    """Train a model as a recipe says."""
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
    if started().main:
        typer.echo(f"the model is in {model}; translate with it: {_translation(parsed, folder)}")


def _translation(recipe: Recipe, folder: Path) -> str:
    """The command that translates with a run's model. An upsampler trained alone needs a base."""
    alone = recipe.model.low_res is not None and recipe.base is None
    model = f"--model BASE --upsampler {folder}" if alone else f"--model {folder}"
    return f"piti translate {_CONDITIONS.get(str(recipe.condition.get('kind')), 'CONDITION.png')} {model}"
