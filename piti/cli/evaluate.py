"""`piti evaluate`: measure generated images."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from piti.cli import study
from piti.cli.console import begins_with, print_notes, print_rows, progress
from piti.cli.groups import with_groups
from piti.cli.measuring import ConditionFlags, MeasureFlags, ResultFlags
from piti.cli.options import MODEL_HELP, Compile, DType, SamplingFlags, Upsampler

if TYPE_CHECKING:
    from piti.evaluation.result import Evaluation

_OLD = {"--study": "study", "--votes": "votes", "--model": "model"}
_NUM = 4  # images per condition, unless the model generates the same image for every seed

Real = Annotated[Path | None, Option(help="Photographs to compare with: a folder, or a data root with images/.")]


class _OldSpellings(TyperGroup):
    """Also accepts `piti evaluate FOLDER …`, and `--model`, `--study` and `--votes` instead of commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments in the new spelling, with a note if it differs."""
        today = new_spelling(args, list(self.commands))
        if today != args and not ctx.resilient_parsing:
            print_notes([f"piti evaluate {args[0]} … is an old spelling; write: piti {_named(today[0])} …"])
        return super().parse_args(ctx, today)


def new_spelling(args: list[str], commands: list[str]) -> list[str]:
    """The arguments of `piti evaluate`, with the subcommand that the old spelling leaves out."""
    if not args or args[0] in (*commands, "--help"):
        return args
    split = [part for word in args for part in (word.split("=", 1) if word.partition("=")[0] in _OLD else [word])]
    for flag, command in _OLD.items():
        if flag in split:
            return [command, *(word for word in split if word != flag)]
    misspelt = get_close_matches(args[0], commands, cutoff=0.8) and not Path(args[0]).exists()
    return args if misspelt else ["images", *args]


def _named(command: str) -> str:
    return {"study": "study make", "votes": "study count"}.get(command, f"evaluate {command}")


evaluate_app = typer.Typer(cls=_OldSpellings, no_args_is_help=True, help="Measure generated images.")
evaluate_app.command("study", hidden=True)(study.make)
evaluate_app.command("votes", hidden=True)(study.count)


@evaluate_app.command()
@begins_with("piti.evaluation.evaluate")
@with_groups
def images(
    generated: Annotated[Path, Argument(help="A folder of generated PNGs.")],
    measured: MeasureFlags,
    conditions: ConditionFlags,
    result: ResultFlags,
    real: Real = None,
    split: Annotated[str | None, Option(help="The split to use if --real is a data root; val by default.")] = None,
) -> None:
    """Compare a folder of images with photographs and with the conditions they were generated from."""
    from piti.evaluation.condition_folders import combined
    from piti.evaluation.evaluate import evaluate_files

    result.check()
    options = measured.options()
    print_notes(conditions.notes(options))
    folders, condition = combined(conditions.read())
    with progress("judging") as on_step:
        found = evaluate_files(generated, options, real, folders, condition, on_step, split)
    _print(found, result)


@evaluate_app.command()
@begins_with("piti.evaluation.evaluate")
@with_groups
def model(
    model: Annotated[str, Argument(help=MODEL_HELP)],
    data: Annotated[Path, Option(help="The data's root.")],
    measured: MeasureFlags,
    sampling: SamplingFlags,
    result: ResultFlags,
    engine: Annotated[str, Option(help="Inference engine: torch, openvino or auto, as for piti translate.")] = "torch",
    dtype: DType = "auto",
    compile: Compile = False,
    split: Annotated[str, Option(help="The split whose conditions are translated.")] = "val",
    conditions: Annotated[
        list[str] | None, Option(help="Folder of the conditions in the data, or PART=FOLDER; repeatable.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Use at most this many conditions.")] = None,
    num: Annotated[int | None, Option("--num", "-n", min=1, help="Images per condition; 4 by default.")] = None,
    upsampler: Upsampler = None,
    real: Real = None,
    out: Annotated[Path | None, Option(help="Folder for the images; evaluated/MODEL-SPLIT by default.")] = None,
) -> None:
    """Translate a split of a data set, then measure the images. An interrupted command resumes when repeated."""
    from piti.core.distributed import joined
    from piti.evaluation.evaluate import check_measures, evaluate_made
    from piti.evaluation.generating import JudgedModel, Split, generate_split
    from piti.pipelines.computing import Computing

    result.check()
    options = measured.options()
    generation = sampling.options(num or _NUM, measured.seed, measured.batch or 8)
    folder = out or Path("evaluated") / f"{Path(model).name}-{split}"
    chosen = Split(data, split, tuple(conditions or ()), limit)
    ranks = joined()
    check_measures(model, chosen, options, ranks, real)
    with progress("translating", ranks.main) as on_step:
        judged = JudgedModel(model, upsampler, Computing(options.device, dtype, engine, compile))
        made = generate_split(judged, chosen, folder, generation, ranks, on_step, num is not None)
    if not ranks.main:
        return
    typer.echo(f"{len(made.images)} images of {model} are in {folder}", err=True)
    with progress("judging") as on_step:
        found = evaluate_made(made, folder, options, real, on_step)
    _print(found, result)


def _print(found: Evaluation, result: ResultFlags) -> None:
    print_rows(found.rows())
    print_notes(found.notes)
    result.write(found)
