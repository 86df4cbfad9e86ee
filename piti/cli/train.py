"""`piti train`: train a model from a recipe; `piti distill`: distil a model into a student with few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piti.cli.console import begins_with, log, print_rows
from piti.cli.options import Compile, DryRun, Gpu

if TYPE_CHECKING:
    from piti.training import Recipe

PrecisionFlag = Annotated[
    str | None, typer.Option("--dtype", help="Override the recipe's precision: fp32, bf16 or fp16; auto keeps it.")
]
_CONDITIONS = {
    "mask": "MASK.png",
    "palette": "MASK.png",
    "sketch": "SKETCH.png",
    "geometry": "DEPTH.png",
    "picture": "PICTURE.png",
    "text": '--text "…"',
    "several": "--given PART=FILE",
}  # arguments of `piti translate`, by kind of condition


@begins_with("piti.training")
def train(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe, such as street, or a YAML file.")],
    data: Annotated[Path | None, typer.Option(help="The data's root, instead of the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME by default.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe key: KEY=VALUE, such as stages.0.lr=1e-4. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    dtype: PrecisionFlag = None,
    compile: Compile = False,
    dry_run: DryRun = False,
    gpu: Gpu = None,
) -> None:
    """Train a model from a recipe."""
    from piti.training import read_recipe

    parsed = read_recipe(recipe, with_speed(changes, dtype, compile))
    if data is not None:
        parsed = parsed.model_copy(update={"data": parsed.data.model_copy(update={"root": data})})
    _run(parsed, out, resume, dry_run, gpu)


@begins_with("piti.training")
def distill(
    model: Annotated[
        str, typer.Argument(help="The teacher: a bundled model, a folder, or a training run, whose base is distilled.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="The data's root; the data should resemble the teacher's training data.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; by default runs/MODEL-N-steps, for --steps 0 runs/MODEL-guided; with --rank, "
            "-rank-N "
            "is appended."
        ),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            min=0, help="Denoising steps of the student; 0 distils only the guidance, for any number of steps."
        ),
    ] = 4,
    substeps: Annotated[int, typer.Option(help="Guided teacher steps that one student step replaces.")] = 6,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance strength w distilled into the weights; by default the model's.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Train low-rank adapters of this rank instead of a whole network."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe key: KEY=VALUE, such as stages.0.steps=8000. Repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    dtype: PrecisionFlag = None,
    compile: Compile = False,
    dry_run: DryRun = False,
    gpu: Gpu = None,
) -> None:
    """Distil a model into a student that needs few unguided steps, or only its guidance (--steps 0)."""
    from piti.training import distillation_recipe

    values = {"steps": steps or None, "substeps": substeps, "guidance": guidance}
    recipe = distillation_recipe(model, values, data, with_speed(changes, dtype, compile), rank)
    _run(recipe, out, resume, dry_run, gpu)


def with_speed(changes: Sequence[str] | None, dtype: str | None, compiled: bool) -> list[str]:
    """The --set changes, plus those of --dtype and --compile.

    Raises UserError for an unknown precision, and if a key is given twice.
    """
    from piti.core.devices import DTYPES, PRECISIONS
    from piti.core.errors import UserError
    from piti.core.spec import choices

    if dtype not in (None, *DTYPES):
        raise UserError(f"is not a dtype; {choices(str(dtype), DTYPES)}", option="dtype", value=dtype)
    precision = PRECISIONS.get(dtype or "")
    given = ([f"precision={precision!r}"] if precision else []) + (["compile=true"] if compiled else [])
    for key, flag in (("precision", "--dtype"), ("compile", "--compile")):
        if sum(change.partition("=")[0].strip() == key for change in [*(changes or []), *given]) > 1:
            raise UserError(f"{flag} and --set {key}=… are both given; remove one of them")
    return [*(changes or []), *given]


def _run(recipe: Recipe, out: Path | None, resume: bool, dry_run: bool, gpu: str | None) -> None:
    """Train, or print the plan. Raises UserError for a GPU without a plan."""
    from piti.core.distributed import started
    from piti.core.errors import UserError
    from piti.training import plan
    from piti.training import train as run_training
    from piti.training.cost import DEFAULT_GPU

    folder = out or Path("runs") / recipe.name
    if dry_run:
        if started().main:
            print_rows(plan(recipe, folder, gpu or DEFAULT_GPU, resume))
        return
    if gpu is not None:
        raise UserError("--gpu applies only to --dry-run, which estimates hours and memory; remove it")
    model = run_training(recipe, folder, resume, log)
    if started().main:
        typer.echo(f"the model is in {model}; translate with it: {_translation(recipe, folder)}")


def _translation(recipe: Recipe, folder: Path) -> str:
    """The command that translates with a run's model; an upsampler trained alone needs a base."""
    alone = recipe.model.low_res is not None and recipe.base is None
    model = f"--model BASE --upsampler {folder}" if alone else f"--model {folder}"
    return f"piti translate {_CONDITIONS.get(str(recipe.condition.get('kind')), 'CONDITION.png')} {model}"
