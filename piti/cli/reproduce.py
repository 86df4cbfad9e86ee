"""`piti reproduce`: the paper's tables and its figure 6 made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piti.cli.options import all_said, is_said, refuse_others

if TYPE_CHECKING:
    from piti.reproduction.runs import Workspace


_ALWAYS = {"table", "data", "out", "features", "segmenter", "aliases", "bootstrap", "device", "dry_run"}
_OF_FIGURES = _ALWAYS | {"model"}
_OF_TABLES = _ALWAYS | {"scale", "seeds", "perceptual", "no_train", "gpu"}
"""Which parameters mean something."""


def reproduce(
    ctx: typer.Context,
    table: Annotated[str, typer.Argument(help="table1, table3a, table3b, table4 or figure6.")],
    scale: Annotated[
        str, typer.Option(help="small: 64 px, narrow networks, hours on a CPU; paper: the paper's settings.")
    ] = "small",
    data: Annotated[
        list[str] | None,
        typer.Option(help="The data's root; for a table of several data sets NAME=FOLDER each, or what holds them."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Gets runs/, images/, results/, and TABLE.md, .json and .jpg.")] = Path(
        "evidence"
    ),
    features: Annotated[
        list[str] | None,
        typer.Option(help="Feature networks as for piti evaluate; repeatable. inception and clip by default."),
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="A segmentation model, by name or folder, that judges agreement with masks.")
    ] = None,
    aliases: Annotated[
        Path | None, typer.Option(help="JSON of the segmenter's labels that are named otherwise than the classes.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training runs of each row, with seeds 0, 1, …")] = 2,
    perceptual: Annotated[
        str | None,
        typer.Option(
            help="A file of weights for perceptual losses instead of the hub's: of SqueezeNet 1.1 at small scale, of "
            "VGG-19 at the paper's."
        ),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Draws for the intervals; 0 is none.")] = 200,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Take finished runs alone; what is not trained is missing.")
    ] = False,
    model: Annotated[str, typer.Option(help="figure6: the model whose guidance is shown.")] = "street",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the hours, and stop.")] = False,
    gpu: Annotated[str, typer.Option(help="--dry-run at paper scale: whose hours; a100, h100 or rtx4090.")] = "a100",
    device: Annotated[str | None, typer.Option(help="Of sampling and judging: cpu, cuda, …")] = None,
) -> None:
    """Train what a table needs, judge it, and write the table with published numbers beside ours.

    What is done already is not repeated, so the same command goes on where it was interrupted.
    """
    from piti.core.errors import UserError
    from piti.reproduction.plans import FIGURES
    from piti.reproduction.runs import Judges, Workspace

    refuse_others(all_said(ctx), _OF_FIGURES if table in FIGURES else _OF_TABLES, f"piti reproduce {table}")
    if aliases is not None and segmenter is None:
        raise UserError("--aliases without --segmenter: name the model whose labels they are")
    judges = Judges(tuple(features or ("inception", "clip")), segmenter, aliases, bootstrap)
    changes = () if perceptual is None else (f"perceptual.weights={perceptual}",)
    workspace = Workspace(out, {}, judges, seeds, device, not no_train, changes)
    if table in FIGURES:
        _figure(workspace, data or [], model, dry_run, bool(features))
    else:
        _table(table, scale, workspace, data or [], dry_run, gpu, is_said(ctx, "gpu"))


def _table(
    table: str, scale: str, workspace: Workspace, data: list[str], dry_run: bool, gpu: str, gpu_given: bool
) -> None:
    """Make a table, or tell what it would take."""
    from rich.markup import escape

    from piti.cli.app import log, print_rows
    from piti.core.errors import UserError
    from piti.reproduction import costs, make
    from piti.reproduction.plans import data_folders, plan_of

    plan = plan_of(table, scale)
    if gpu_given and (plan.own_speed or not dry_run):
        raise UserError("--gpu means nothing but with --dry-run --scale paper, whose hours it tells; leave it out")
    if data or not dry_run:
        workspace = replace(workspace, data=data_folders(plan.sets, data))
    if dry_run:
        rows, notes = costs.dry_run(plan, workspace, gpu)
        print_rows([{name: escape(text) for name, text in row.items()} for row in rows])
        for note in notes:
            typer.echo(f"note: {note}")
        return
    made = make.reproduce(plan, workspace, log)
    for what in made.missing:
        typer.echo(f"missing: {what}", err=True)
    typer.echo(f"{plan.title}: {workspace.out / f'{table}.md'}, .json and .jpg")
    if made.missing:
        raise typer.Exit(1)


def _figure(workspace: Workspace, data: list[str], model: str, dry_run: bool, judged: bool) -> None:
    """Make figure 6, or tell what it would take."""
    from piti.cli.app import log, print_rows
    from piti.reproduction import figure6

    if dry_run:
        print_rows(figure6.plan_rows(model, figure6.data_folder(data) if data else None))
        return
    typer.echo(
        f"figure 6: {figure6.reproduce(model, figure6.data_folder(data), workspace, judged, log)}, .json and .jpg"
    )
