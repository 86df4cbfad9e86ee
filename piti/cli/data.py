"""`piti prepare`: photographs and downloaded data sets into folders and shards that train."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from piti.prepare.layouts import Layout

prepare_app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Copied = Annotated[bool, typer.Option("--link/--copy", help="Hard links to the files where possible, or copies.")]
Overwritten = Annotated[bool, typer.Option("--overwrite", help="Make everything anew, also with other settings.")]

Source = Annotated[Path, typer.Argument(help="The data set's folder, unpacked as it is downloaded.")]
Prepared = Annotated[Path | None, typer.Argument(help="Gets images/ and conditions; may be left out with --check.")]
Checked = Annotated[bool, typer.Option("--check", help="Look through the whole set, report, and stop.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave pairs with problems out, instead of stopping.")]


class _Terminated(BaseException):
    """SIGTERM came; as Ctrl-C, it lets every process and file be closed."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what goes on where it was, once the files under way are whole, with a word on that."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as stop:
        typer.echo("stopped; the same command goes on where it was", err=True)
        raise typer.Exit(143 if isinstance(stop, _Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@prepare_app.callback()
def prepare() -> None:
    """Make training data: sketches of photographs, downloaded data sets, shards."""


@prepare_app.command()
def sketch(
    photos: Annotated[list[Path], typer.Argument(help="Photographs: folders, in any depth, tar archives, or files.")],
    out: Annotated[Path, typer.Argument(help="Gets images/ and sketches/.")],
    detector: Annotated[
        str, typer.Option(help="lines (built in), or hed or pidinet where controlnet-aux is installed.")
    ] = "lines",
    threshold: Annotated[float | None, typer.Option(help="hed, pidinet: what is stronger is a line (0.35).")] = None,
    thin: Annotated[
        bool | None, typer.Option("--thin/--no-thin", help="Thin lines to one pixel; hed and pidinet do.")
    ] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="lines: L0 smoothing that takes texture away first (0.02); 0 is none.")
    ] = None,
    low: Annotated[float | None, typer.Option(help="lines: the weaker gradients that continue a line (0.1).")] = None,
    high: Annotated[float | None, typer.Option(help="lines: gradients that are always drawn (0.2).")] = None,
    shortest: Annotated[int | None, typer.Option(help="Lines of fewer pixels are left out (10).")] = None,
    side: Annotated[
        int | None, typer.Option(help="The short side at which photographs are drawn (lines: 256, others: 512).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="hed, pidinet: a folder with the file, or a hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="hed, pidinet: cpu, cuda, …")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many draw; every core by default.")] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="The share of unreadable photographs that is no failure.")
    ] = 0.01,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """Draw photographs: pairs of sketch and photograph to train on."""
    from piti.cli.app import log
    from piti.core.progress import steps_bar
    from piti.data.edges import detector_spec
    from piti.prepare.sketches import SketchJob, prepare_sketches

    given = {
        "threshold": threshold, "thin": thin, "smoothing": smoothing, "low": low, "high": high,
        "shortest": shortest, "side": side, "weights": weights, "device": device,
    }  # fmt: skip
    _, spec = detector_spec(detector, {key: value for key, value in given.items() if value is not None})
    with _stoppable(), steps_bar(log, "drawing") as progress:
        job = SketchJob(out, detector, spec, link, overwrite)
        report = prepare_sketches(photos, job, processes, max_bad, progress)
    for note in report.notes():
        typer.echo(f"note: {note}")
    typer.echo(f"{report}; train on them: piti train recipes/sketch.yaml --data {out}")


@prepare_app.command()
def ade20k(
    src: Source,
    out: Prepared = None,
    top: Annotated[int | None, typer.Option(min=1, help="Full release: only the classes with the most pixels.")] = None,
    check: Checked = False,
    skip_bad: SkipBad = False,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """ADE20K: SceneParse150 (ADEChallengeData2016), or the full release."""
    from piti.prepare.layouts import ade20k as layout

    _prepare_set(layout(src, top), src, out, check, skip_bad, link, overwrite)


@prepare_app.command("coco-stuff")
def coco_stuff(
    src: Source,
    out: Prepared = None,
    train_ids: Annotated[bool, typer.Option("--train-ids", help="Read *_labelTrainIds.png: 171 classes.")] = False,
    check: Checked = False,
    skip_bad: SkipBad = False,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """COCO-Stuff 164k: images/ and annotations/ of train2017 and val2017."""
    from piti.prepare.layouts import CocoStuff

    _prepare_set(CocoStuff(src, train_ids), src, out, check, skip_bad, link, overwrite)


@prepare_app.command()
def cityscapes(
    src: Source,
    out: Prepared = None,
    train_ids: Annotated[bool, typer.Option("--train-ids", help="The 19 classes that are judged, not all.")] = False,
    check: Checked = False,
    skip_bad: SkipBad = False,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """Cityscapes: leftImg8bit/ and gtFine/ with *_labelIds.png."""
    from piti.prepare.layouts import Cityscapes

    _prepare_set(Cityscapes(src, train_ids), src, out, check, skip_bad, link, overwrite)


@prepare_app.command()
def diode(
    src: Source,
    out: Prepared = None,
    check: Checked = False,
    skip_bad: SkipBad = False,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """DIODE: depth, its mask and, if downloaded, normals become one file a photograph."""
    from piti.prepare.layouts import Diode

    _prepare_set(Diode(src), src, out, check, skip_bad, link, overwrite)


@prepare_app.command()
def folder(
    src: Annotated[Path, typer.Argument(help="Holds images/, labels/, classes.json and perhaps splits.json.")],
    out: Prepared = None,
    check: Checked = False,
    skip_bad: SkipBad = False,
    link: Copied = True,
    overwrite: Overwritten = False,
) -> None:
    """A folder of photographs and masks: look through it, and write what is good of it."""
    from piti.prepare.layouts import PlainFolder

    _prepare_set(PlainFolder(src), src, out, check, skip_bad, link, overwrite)


def _prepare_set(
    layout: Layout, src: Path, out: Path | None, check: bool, skip_bad: bool, link: bool, overwrite: bool
) -> None:
    """Look through a data set, report, and unless only that was asked for, write it."""
    from piti.cli.app import log, print_rows
    from piti.core.errors import UserError
    from piti.core.progress import steps_bar
    from piti.prepare.datasets import check_set, write_set
    from piti.prepare.writer import refuse_inside

    if out is None and not check:
        raise UserError("OUT is missing; give a folder to write to, or --check to look through the data set only")
    if out is not None:
        refuse_inside(out, src)
    with steps_bar(log, "checking") as progress:
        report = check_set(layout, progress)
    print_rows(report.rows())
    for note in report.notes():
        typer.echo(f"note: {note}")
    if out is None or check:
        report.problems().raise_if_any(layout.root)
        typer.echo("all is well; nothing was written")
        return
    with _stoppable(), steps_bar(log, "writing") as progress:
        done = write_set(report, out, link, overwrite, skip_bad, progress)
    typer.echo(f"{done}; train on them: piti train {layout.recipe} --data {out}")


@prepare_app.command()
def shards(
    source: Annotated[Path, typer.Argument(help="A data root, or photographs, with captions KEY.txt beside or none.")],
    out: Annotated[Path | None, typer.Argument(help="The shards' folder.")] = None,
    images: Annotated[str, typer.Option(help="The photographs' folder in a data root.")] = "images",
    conditions: Annotated[list[str] | None, typer.Option(help="A folder of conditions (labels); repeatable.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Pack the photographs of a data root alone.")] = False,
    shard_mib: Annotated[int, typer.Option(min=1, help="A shard ends before it is larger.")] = 256,
    samples: Annotated[int | None, typer.Option(min=1, help="A shard ends after so many samples instead.")] = None,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="The share of samples that cannot be used and is no failure.")
    ] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards in OUT.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare shards with their manifest's checksums.")] = False,
) -> None:
    """Pack training data into WebDataset tars with a manifest, or, with --verify and one folder, check them."""
    from piti.cli.app import log
    from piti.core.progress import steps_bar
    from piti.prepare.packable import PackJob
    from piti.prepare.shards import pack_shards, verify_shards

    if out is None and not verify:
        raise typer.BadParameter("give OUT, the folder of the shards, or --verify to check those in SOURCE")
    if out is not None:
        job = PackJob(
            source,
            out,
            images,
            () if alone else tuple(conditions or ["labels"]),
            shard_mib,
            samples,
            max_bad,
            overwrite,
        )
        with steps_bar(log, "packing") as progress:
            report = pack_shards(job, progress)
        for one in report.skipped[:5]:
            log.print(f"left out: {one}", soft_wrap=True, markup=False)
        typer.echo(f"{report}; train on them: --set data.shards='[{out / 'shards.json'}]'")
    if verify:
        with steps_bar(log, "verifying") as progress:
            manifest = verify_shards(out or source, progress)
        typer.echo(f"{len(manifest.entries)} shards are as their manifest says")
