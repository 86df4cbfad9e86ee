"""`piti reproduce`: reproduce the paper's tables and its figures 5 and 6."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from piti.cli.console import begins_with, log, print_notes, print_rows, with_flags
from piti.cli.groups import all_given, refuse_others, with_groups
from piti.cli.measuring import JudgeFlags
from piti.cli.options import Device, DryRun, Gpu

if TYPE_CHECKING:
    from piti.reproduction.runs import Workspace

_OF_FIGURES = {"model"}
_OF_TABLES = {"scale", "seeds", "perceptual", "no_train", "gpu"}
_OF_JUDGED = {"features", "segmenter", "aliases", "bootstrap", "seeds"}
_OF_STUDIES = {"votes", "limit"}
_OF_PAGES = {"limit", "dry_run", "data", "device", "perceptual", "no_train"}  # without effect when votes are counted
_OF_LADDER = {"real_esrgan"}


@dataclass(frozen=True)
class StudyFlags:
    """Flags of a table that is based on votes."""

    votes: Annotated[
        list[Path] | None, Option(help="table2: count these votes: files or folders that raters sent back.")
    ] = None
    limit: Annotated[int | None, Option(min=1, help="table2: at most this many pairs per page.")] = None


@dataclass(frozen=True)
class WeightFlags:
    """Weights of networks that are not part of the package."""

    perceptual: Annotated[
        str | None,
        Option(
            help="Weights for perceptual losses: a file of SqueezeNet 1.1 (--scale small) or VGG-19 (--scale paper)."
        ),
    ] = None
    real_esrgan: Annotated[
        Path | None, Option(help="table3b: Real-ESRGAN x4plus as .safetensors, for the third-party row.")
    ] = None

    def changes(self) -> tuple[str, ...]:
        """Changes to apply to every recipe."""
        return () if self.perceptual is None else (f"perceptual.weights={self.perceptual}",)


@begins_with("piti.reproduction.make")
@with_groups
def reproduce(
    ctx: typer.Context,
    table: Annotated[str, Argument(help="table1, table2, table3a, table3b, table4, table5, figure5 or figure6.")],
    judged: JudgeFlags,
    rated: StudyFlags,
    weights: WeightFlags,
    scale: Annotated[
        str, Option(help="small: 64 px, narrow networks, hours on a CPU; paper: the paper's settings.")
    ] = "small",
    data: Annotated[
        list[str] | None,
        Option(
            help="The data's root; for a table with several data sets NAME=FOLDER for each, or their common parent."
        ),
    ] = None,
    out: Annotated[
        Path, Option(help="Output folder for runs/, images/, results/, and TABLE.md, .json and .jpg.")
    ] = Path("evidence"),
    seeds: Annotated[int, Option(min=1, help="Training runs per row, with seeds 0, 1, …")] = 2,
    no_train: Annotated[bool, Option("--no-train", help="Use only finished runs, and report missing ones.")] = False,
    model: Annotated[str, Option(help="figure6: the model to show guidance with.")] = "street",
    dry_run: DryRun = False,
    gpu: Gpu = None,
    device: Device = None,
) -> None:
    """Train and evaluate the models of a table, and write it with the published numbers beside ours.

    Finished parts are kept, so repeating an interrupted command resumes it.
    """
    from piti.reproduction.plans import FIGURES, STUDIES
    from piti.reproduction.runs import Workspace

    given, figure, study = all_given(ctx), table in FIGURES, table in STUDIES
    counted = study and bool(rated.votes)
    others = _without_effect(table, figure, study, counted)
    use = f"piti reproduce {table}{' --votes' if counted else ''}"
    refuse_others(given, [name for name in ctx.params if name not in others], use)
    runs = 1 if study else seeds
    changes, other = weights.changes(), weights.real_esrgan
    workspace = Workspace(out, {}, judged.judges(), runs, device, not no_train, changes, other)
    if figure:
        _figure(workspace, data or [], model, dry_run, bool(judged.features))
    elif study and not dry_run:
        _study(table, scale, workspace, data or [], rated)
    else:
        _table(table, scale, workspace, data or [], dry_run, gpu)


def _without_effect(table: str, figure: bool, study: bool, counted: bool) -> set[str]:
    """Parameters without effect for a table. counted: whether votes are counted instead of writing pages."""
    others = (_OF_TABLES if figure else _OF_FIGURES) | (_OF_JUDGED if study else _OF_STUDIES)
    others = others if table == "table3b" else others | _OF_LADDER
    return others | _OF_PAGES if counted else others


def _table(table: str, scale: str, workspace: Workspace, data: list[str], dry_run: bool, gpu: str | None) -> None:
    """Make a table, or print the plan."""
    from piti.core.errors import UserError
    from piti.reproduction import costs, make
    from piti.reproduction.plans import STUDIES, data_folders, plan_of
    from piti.training.cost import DEFAULT_GPU

    plan = plan_of(table, scale)
    if gpu and (plan.own_speed or not dry_run):
        raise UserError("--gpu applies only to --dry-run --scale paper, which estimates hours; remove it")
    if data or not dry_run:
        workspace = replace(workspace, data=data_folders(plan.sets, data))
    if dry_run:
        lacking = make.judges_lacking(plan, workspace, log, judged=table not in STUDIES)
        rows, notes = costs.dry_run(plan, workspace, gpu or DEFAULT_GPU, lacking)
        print_rows(rows)
        for note in notes:
            typer.echo(f"note: {with_flags(note)}")
        return
    made = make.reproduce(plan, workspace, log)
    for what in made.missing:
        typer.echo(f"missing: {with_flags(what)}", err=True)
    typer.echo(f"{plan.title}: {workspace.out / f'{table}.md'}, .json and .jpg")
    if made.missing:
        raise typer.Exit(1)


def _study(table: str, scale: str, workspace: Workspace, data: list[str], rated: StudyFlags) -> None:
    """Write the voting pages of a table, or count the votes."""
    from piti.reproduction import raters
    from piti.reproduction.plans import data_folders, plan_of

    plan = plan_of(table, scale)
    if rated.votes:
        typer.echo(f"{plan.title}: {raters.count_studies(plan, workspace.out, rated.votes)} and .json")
        return
    made = raters.write_studies(plan, replace(workspace, data=data_folders(plan.sets, data)), log, rated.limit)
    for study in made.written.values():
        typer.echo(str(study))
        print_notes(study.notes)
    for what in made.missing:
        typer.echo(f"missing: {with_flags(what)}", err=True)
    typer.echo(f"then count the votes: piti reproduce {table} --out {workspace.out} --votes FOLDER")
    if made.missing:
        raise typer.Exit(1)


def _figure(workspace: Workspace, data: list[str], model: str, dry_run: bool, judged: bool) -> None:
    """Make figure 6, or print the plan."""
    from piti.reproduction import figure6

    if dry_run:
        print_rows(figure6.plan_rows(model, figure6.data_folder(data) if data else None))
        return
    typer.echo(
        f"figure 6: {figure6.reproduce(model, figure6.data_folder(data), workspace, judged, log)}, .json and .jpg"
    )
