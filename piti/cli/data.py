"""`piti prepare`: turn photographs and downloaded data sets into training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from piti.cli.console import flag, log, print_notes, print_rows, progress, resumable
from piti.cli.groups import all_given, refuse_others, with_groups
from piti.cli.options import Link, MaxBad, Overwrite

if TYPE_CHECKING:
    from piti.prepare.layouts import Layout

prepare_app = typer.Typer(
    no_args_is_help=True, help="Prepare training data: sketches of photographs, downloaded data sets, shards."
)

Source = Annotated[Path, Argument(help="The data set's folder, as unpacked from the download.")]
Target = Annotated[Path | None, Argument(help="Output folder for images/ and conditions; not needed with --check.")]
TrainIdFiles = Annotated[bool, Option("--train-ids", help="Read the masks *_labelTrainIds.png.")]
TrainIds = Annotated[
    bool, Option("--train-ids", help="Convert the masks *_labelIds.png to train ids; other classes become 255.")
]


@dataclass(frozen=True)
class LineFlags:
    """Settings of the line detector; None is its own default."""

    threshold: Annotated[float | None, Option(help="hed, pidinet: edge threshold (0.6, 0.35).")] = None
    thin: Annotated[
        bool | None, Option("--thin/--no-thin", help="Thin lines to one pixel; the default for pidinet.")
    ] = None
    smoothing: Annotated[
        float | None, Option(help="lines: strength of L0 smoothing before detection (0.02); 0 for none.")
    ] = None
    low: Annotated[float | None, Option(help="lines: low threshold of Canny's hysteresis (0.1).")] = None
    high: Annotated[float | None, Option(help="lines: high threshold of Canny's hysteresis (0.2).")] = None
    shortest: Annotated[int | None, Option(help="Remove lines of fewer pixels (10; hed: 1).")] = None
    side: Annotated[
        int | None, Option(help="Short side of the photographs for detection, in pixels (256; pidinet: 512).")
    ] = None
    weights: Annotated[str | None, Option(help="Weights: a file for hed; a folder or hub id for pidinet.")] = None
    device: Annotated[str | None, Option(help="hed, pidinet: device, such as cpu or cuda.")] = None

    def given(self) -> dict[str, Any]:
        """The given settings, for `detector_spec`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SetFlags:
    """Flags for checking and writing a data set."""

    check: Annotated[bool, Option("--check", help="Check the whole set, print a report and exit.")] = False
    skip_bad: Annotated[bool, Option("--skip-bad", help="Skip pairs with problems, instead of stopping.")] = False
    link: Link = True
    overwrite: Overwrite = False


@prepare_app.command()
@with_groups
def sketch(
    photos: Annotated[
        list[Path], Argument(help="Photographs: folders (searched recursively), tar archives, or files.")
    ],
    out: Annotated[Path, Argument(help="Output folder for images/ and sketches/.")],
    lines: LineFlags,
    detector: Annotated[
        str | None,
        Option(
            help="Line detector: hed (the paper's; needs --weights FILE), lines (needs no weights), or pidinet (needs "
            "controlnet-aux). By default hed with --weights, lines without."
        ),
    ] = None,
    processes: Annotated[int | None, Option(min=1, help="Number of processes; by default one per core.")] = None,
    max_bad: MaxBad = 0.01,
    link: Link = True,
    overwrite: Overwrite = False,
) -> None:
    """Extract a sketch from each photograph, as training pairs."""
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
        int | None, Option(min=1, help="Full release: keep only the N classes with the most pixels.")
    ] = None,
) -> None:
    """ADE20K: SceneParse150 (ADEChallengeData2016), or the full release."""
    from piti.prepare.layouts import ade20k as layout

    _prepare(layout(src, top), src, out, flags)


@prepare_app.command("coco-stuff")
@with_groups
def coco_stuff(src: Source, flags: SetFlags, out: Target = None, train_ids: TrainIdFiles = False) -> None:
    """COCO-Stuff 164k: images/ and annotations/ of train2017 and val2017; 171 classes with --train-ids."""
    from piti.prepare.layouts import CocoStuff

    _prepare(CocoStuff(src, train_ids), src, out, flags)


@prepare_app.command()
@with_groups
def cityscapes(src: Source, flags: SetFlags, out: Target = None, train_ids: TrainIds = False) -> None:
    """Cityscapes: leftImg8bit/ and gtFine/ with *_labelIds.png; the 19 evaluated classes with --train-ids."""
    from piti.prepare.layouts import Cityscapes

    _prepare(Cityscapes(src, train_ids), src, out, flags)


@prepare_app.command()
@with_groups
def diode(src: Source, flags: SetFlags, out: Target = None) -> None:
    """DIODE: combine depth, its mask and normals (if downloaded) into one file per photograph."""
    from piti.prepare.layouts import Diode

    _prepare(Diode(src), src, out, flags)


@prepare_app.command()
@with_groups
def folder(
    src: Annotated[Path, Argument(help="Folder with images/, labels/, classes.json and optionally splits.json.")],
    flags: SetFlags,
    out: Target = None,
) -> None:
    """A folder of photographs and masks: check it, and write the usable pairs."""
    from piti.prepare.layouts import PlainFolder

    _prepare(PlainFolder(src), src, out, flags)


def _prepare(layout: Layout, src: Path, out: Path | None, flags: SetFlags) -> None:
    """Check a data set, print the report, and write the set unless --check is given."""
    from piti.core.errors import UserError
    from piti.prepare.datasets import check_set, write_set
    from piti.prepare.writer import refuse_inside

    if out is None and not flags.check:
        raise UserError("OUT is missing; give a folder to write to, or --check to only check the data set")
    if out is not None:
        refuse_inside(out, src)
    with progress("checking") as on_step:
        report = check_set(layout, on_step)
    print_rows(report.rows())
    print_notes(report.notes())
    if out is None or flags.check:
        report.problems().raise_if_any(layout.root)
        typer.echo("no problems; nothing was written")
        return
    with resumable(), progress("writing") as on_step:
        done = write_set(report, out, flags.link, flags.overwrite, flags.skip_bad, on_step)
    typer.echo(f"{done}; train on them: piti train {layout.recipe} --data {out}")


@prepare_app.command()
def shards(
    ctx: typer.Context,
    source: Annotated[
        Path, Argument(help="A data root, or a folder of photographs, with or without captions KEY.txt beside them.")
    ],
    out: Annotated[Path | None, Argument(help="Output folder for the shards.")] = None,
    images: Annotated[str, Option(help="Folder of the photographs in a data root.")] = "images",
    conditions: Annotated[
        list[str] | None, Option(help="Folder of conditions in a data root; labels by default. Repeatable.")
    ] = None,
    alone: Annotated[
        bool, Option("--alone", help="Pack only the photographs of a data root, without conditions.")
    ] = False,
    shard_mib: Annotated[int, Option(min=1, help="Largest size of a shard, in MiB.")] = 256,
    samples: Annotated[int | None, Option(min=1, help="Samples per shard, instead of a largest size.")] = None,
    max_bad: MaxBad = 0.01,
    overwrite: Overwrite = False,
    verify: Annotated[bool, Option("--verify", help="Verify shards against the checksums of their manifest.")] = False,
) -> None:
    """Pack training data into WebDataset tars with a manifest, or verify existing shards (--verify)."""
    from piti.core.errors import count_of
    from piti.prepare.packable import PackJob
    from piti.prepare.shards import pack_shards, verify_shards

    _check_packing(all_given(ctx))
    if out is not None:
        folders = () if alone else tuple(conditions or ["labels"])
        job = PackJob(source, out, images, folders, shard_mib, samples, max_bad, overwrite)
        with resumable(), progress("packing") as on_step:
            report = pack_shards(job, on_step)
        print_notes(report.notes)
        for one in report.skipped[:5]:
            log.print(f"skipped: {one}", soft_wrap=True, markup=False)
        typer.echo(f"{report}; train on them: --set data.shards='[{out / 'shards.json'}]'")
    if verify:
        with progress("verifying") as on_step:
            manifest = verify_shards(out or source, on_step)
        typer.echo(f"as in the manifest: {count_of(len(manifest.entries), 'shard')}")


def _check_packing(given: Sequence[str]) -> None:
    """Raise UserError unless the given parameters of `shards` belong together."""
    from piti.core.errors import UserError

    if "out" not in given:
        if "verify" not in given:
            raise UserError("OUT is missing; give a folder for the shards, or --verify to check those in SOURCE")
        refuse_others(given, ("source", "verify"), "--verify alone")
    for name, other in (("conditions", "alone"), ("shard_mib", "samples")):
        if other in given:
            refuse_others(given, [one for one in given if one != name], flag(other))
