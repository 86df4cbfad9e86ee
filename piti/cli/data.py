"""`piti prepare`: photographs and downloaded data sets into folders and shards that train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from piti.cli.console import log, print_notes, print_rows, progress, resumable
from piti.cli.groups import with_groups
from piti.cli.options import Link, MaxBad, Overwrite

if TYPE_CHECKING:
    from piti.prepare.layouts import Layout

prepare_app = typer.Typer(
    no_args_is_help=True, help="Make training data: sketches of photographs, downloaded data sets, shards."
)

Source = Annotated[Path, Argument(help="The data set's folder, unpacked as it is downloaded.")]
Target = Annotated[Path | None, Argument(help="Gets images/ and conditions; may be left out with --check.")]
TrainIdFiles = Annotated[bool, Option("--train-ids", help="Read the masks *_labelTrainIds.png.")]
TrainIds = Annotated[bool, Option("--train-ids", help="Number the masks *_labelIds.png by train ids; the rest is 255.")]


@dataclass(frozen=True)
class LineFlags:
    """How lines are drawn; None takes the detector's own value."""

    threshold: Annotated[float | None, Option(help="What is stronger is a line (hed: 0.6, pidinet: 0.35).")] = None
    thin: Annotated[
        bool | None, Option("--thin/--no-thin", help="Thin lines to one pixel; pidinet does by default.")
    ] = None
    smoothing: Annotated[
        float | None, Option(help="lines: L0 smoothing that removes texture first (0.02); 0 is none.")
    ] = None
    low: Annotated[float | None, Option(help="lines: weaker gradients that continue a line (0.1).")] = None
    high: Annotated[float | None, Option(help="lines: gradients that are always drawn (0.2).")] = None
    shortest: Annotated[int | None, Option(help="Lines of fewer pixels are left out (10; hed: 1).")] = None
    side: Annotated[int | None, Option(help="Short side at which photographs are drawn (256; pidinet: 512).")] = None
    weights: Annotated[str | None, Option(help="hed: the file; pidinet: a folder with the file, or a hub id.")] = None
    device: Annotated[str | None, Option(help="hed, pidinet: cpu, cuda, …")] = None

    def given(self) -> dict[str, Any]:
        """What was given, as `detector_spec` takes it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SetFlags:
    """How a data set is checked and written."""

    check: Annotated[bool, Option("--check", help="Look through the whole set, report, and stop.")] = False
    skip_bad: Annotated[bool, Option("--skip-bad", help="Leave pairs with problems out, instead of stopping.")] = False
    link: Link = True
    overwrite: Overwrite = False


@prepare_app.command()
@with_groups
def sketch(
    photos: Annotated[list[Path], Argument(help="Photographs: folders, in any depth, tar archives, or files.")],
    out: Annotated[Path, Argument(help="Gets images/ and sketches/.")],
    lines: LineFlags,
    detector: Annotated[
        str | None,
        Option(
            help="hed, the paper's, with --weights FILE; lines, which needs no weights; or pidinet, where "
            "controlnet-aux is installed. By default hed with --weights, lines without."
        ),
    ] = None,
    processes: Annotated[int | None, Option(min=1, help="Processes that draw; one a core by default.")] = None,
    max_bad: MaxBad = 0.01,
    link: Link = True,
    overwrite: Overwrite = False,
) -> None:
    """Draw a sketch of each photograph: pairs to train on."""
    from piti.data.edges import detector_spec
    from piti.prepare.sketches import SketchJob, prepare_sketches

    chosen = detector or ("hed" if lines.weights else "lines")
    _, spec = detector_spec(chosen, lines.given())
    with resumable(), progress("drawing") as on_step:
        job = SketchJob(out, chosen, spec, link, overwrite)
        report = prepare_sketches(photos, job, processes, max_bad, on_step)
    print_notes(report.notes())
    typer.echo(f"{report}, drawn by {chosen}; train on them: piti train sketch --data {out}")


@prepare_app.command()
@with_groups
def ade20k(
    src: Source,
    flags: SetFlags,
    out: Target = None,
    top: Annotated[
        int | None, Option(min=1, help="Full release: keep only this many classes, those with the most pixels.")
    ] = None,
) -> None:
    """ADE20K: SceneParse150 (ADEChallengeData2016), or the full release."""
    from piti.prepare.layouts import ade20k as layout

    _prepare(layout(src, top), src, out, flags)


@prepare_app.command("coco-stuff")
@with_groups
def coco_stuff(src: Source, flags: SetFlags, out: Target = None, train_ids: TrainIdFiles = False) -> None:
    """COCO-Stuff 164k: images/ and annotations/ of train2017 and val2017. Train ids: 171 classes."""
    from piti.prepare.layouts import CocoStuff

    _prepare(CocoStuff(src, train_ids), src, out, flags)


@prepare_app.command()
@with_groups
def cityscapes(src: Source, flags: SetFlags, out: Target = None, train_ids: TrainIds = False) -> None:
    """Cityscapes: leftImg8bit/ and gtFine/ with *_labelIds.png. Train ids: the 19 classes that are judged."""
    from piti.prepare.layouts import Cityscapes

    _prepare(Cityscapes(src, train_ids), src, out, flags)


@prepare_app.command()
@with_groups
def diode(src: Source, flags: SetFlags, out: Target = None) -> None:
    """DIODE: depth, its mask and, if downloaded, normals become one file a photograph."""
    from piti.prepare.layouts import Diode

    _prepare(Diode(src), src, out, flags)


@prepare_app.command()
@with_groups
def folder(
    src: Annotated[Path, Argument(help="Holds images/, labels/, classes.json and perhaps splits.json.")],
    flags: SetFlags,
    out: Target = None,
) -> None:
    """A folder of photographs and masks: check it, and write the pairs that can be used."""
    from piti.prepare.layouts import PlainFolder

    _prepare(PlainFolder(src), src, out, flags)


def _prepare(layout: Layout, src: Path, out: Path | None, flags: SetFlags) -> None:
    """Look through a data set, report, and unless only that was asked for, write it."""
    from piti.core.errors import UserError
    from piti.prepare.datasets import check_set, write_set
    from piti.prepare.writer import refuse_inside

    if out is None and not flags.check:
        raise UserError("OUT is missing; give a folder to write to, or --check to look through the data set only")
    if out is not None:
        refuse_inside(out, src)
    with progress("checking") as on_step:
        report = check_set(layout, on_step)
    print_rows(report.rows())
    print_notes(report.notes())
    if out is None or flags.check:
        report.problems().raise_if_any(layout.root)
        typer.echo("all is well; nothing was written")
        return
    with resumable(), progress("writing") as on_step:
        done = write_set(report, out, flags.link, flags.overwrite, flags.skip_bad, on_step)
    typer.echo(f"{done}; train on them: piti train {layout.recipe} --data {out}")


@prepare_app.command()
def shards(
    source: Annotated[
        Path, Argument(help="A data root, or a folder of photographs, with captions KEY.txt beside them or without.")
    ],
    out: Annotated[Path | None, Argument(help="The shards' folder.")] = None,
    images: Annotated[str, Option(help="The photographs' folder in a data root.")] = "images",
    conditions: Annotated[list[str] | None, Option(help="A folder of conditions (labels); repeatable.")] = None,
    alone: Annotated[bool, Option("--alone", help="Pack only the photographs of a data root.")] = False,
    shard_mib: Annotated[int, Option(min=1, help="Largest shard, in MiB.")] = 256,
    samples: Annotated[int | None, Option(min=1, help="Samples of a shard, instead of a largest size.")] = None,
    max_bad: MaxBad = 0.01,
    overwrite: Overwrite = False,
    verify: Annotated[bool, Option("--verify", help="Compare shards with their manifest's checksums.")] = False,
) -> None:
    """Pack training data into WebDataset tars with a manifest, or, with --verify and one folder, check them."""
    from piti.prepare.packable import PackJob
    from piti.prepare.shards import pack_shards, verify_shards

    if out is None and not verify:
        raise typer.BadParameter("give OUT, the folder of the shards, or --verify to check those in SOURCE")
    if out is not None:
        folders = () if alone else tuple(conditions or ["labels"])
        job = PackJob(source, out, images, folders, shard_mib, samples, max_bad, overwrite)
        with progress("packing") as on_step:
            report = pack_shards(job, on_step)
        print_notes(report.notes)
        for one in report.skipped[:5]:
            log.print(f"left out: {one}", soft_wrap=True, markup=False)
        typer.echo(f"{report}; train on them: --set data.shards='[{out / 'shards.json'}]'")
    if verify:
        with progress("verifying") as on_step:
            manifest = verify_shards(out or source, on_step)
        typer.echo(f"{len(manifest.entries)} shards are as their manifest says")
