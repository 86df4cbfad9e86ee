"""`piti study`: ask people which of two folders of images they prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from piti.cli.console import print_notes, print_rows, progress
from piti.cli.groups import with_groups
from piti.cli.measuring import ConditionFlags, ResultFlags
from piti.cli.options import Overwrite, Seed

study_app = typer.Typer(no_args_is_help=True, help="Let people compare two folders of images.")


@study_app.command()
@with_groups
def make(
    a: Annotated[Path, Argument(help="A folder of images.")],
    b: Annotated[Path, Argument(help="A folder to compare it with.")],
    conditions: ConditionFlags,
    out: Annotated[Path, Option(help="The HTML page to write; its answer key is written beside it.")] = Path(
        "study.html"
    ),
    question: Annotated[str | None, Option(help="The question to ask raters.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Use at most this many pairs.")] = None,
    ties: Annotated[bool, Option("--ties", help="Allow raters to state no preference.")] = False,
    repeats: Annotated[
        int | None, Option(min=0, help="Number of pairs shown twice; by default a tenth of them.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a page on which raters compare two folders of images, pair by pair."""
    from piti.evaluation.condition_folders import only_one
    from piti.evaluation.preference.study import QUESTION, Compared, StudyOptions, write_study

    compared = Compared(a, b, *only_one(conditions.read()))
    options = StudyOptions(seed, question or QUESTION, limit, ties, repeats)
    with progress("reading") as on_step:
        written = write_study(compared, out, options, overwrite=overwrite, on_step=on_step)
    print_notes(written.notes)
    typer.echo(str(written))


@study_app.command()
@with_groups
def count(
    votes: Annotated[list[Path], Argument(help="Files that raters sent back, or folders of them.")],
    result: ResultFlags,
    key: Annotated[Path | None, Option(help="The study's answer key, if it is not beside the votes.")] = None,
    seed: Seed = 0,
) -> None:
    """Count the votes of a study: which folder is preferred, with confidence intervals."""
    from piti.evaluation.preference.statistics import count_votes

    result.check()
    found = count_votes(votes, key, seed=seed)
    print_rows(found.rows())
    print_rows(found.rater_rows())
    print_notes(found.notes)
    result.write(found)
