"""Converting a downloaded data set to training folders: first checked completely, then written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from piti.conditions import NoCondition
from piti.conditions.class_table import CLASSES_FILE
from piti.conditions.coverage import coverage_note, empty_note
from piti.conditions.mirroring import said_of_mirroring
from piti.core.errors import count_of, option
from piti.core.formats import ARRAYS, IMAGE_SUFFIXES
from piti.core.progress import OnProgress
from piti.core.system import cores
from piti.core.walk import key_of, walk
from piti.data.pairs import NO_VALIDATION, SPLITS_FILE, split_by_hash
from piti.data.problems import Problems, unlisted_notes
from piti.data.shown import FITS_UNTURNED, Shown
from piti.prepare.layouts import Entry, Examined, Fault, Layout
from piti.prepare.writer import (
    PrepareError,
    beside,
    claim,
    in_order,
    mark_of,
    place,
    refuse_inside,
    write_json,
    write_skipped,
)

IMAGES = "images"


@dataclass
class SetReport:
    """Result of checking a data set.

    listed: pairs per split. splits: those with any files. keys: see `Listing`. good: pairs without problems. unknown:
    pixels of labels that are not in the table.
    """

    layout: Layout
    listed: Counter[str] = field(default_factory=Counter)
    splits: set[str] = field(default_factory=set)
    keys: Mapping[str, Sequence[str]] | None = None
    good: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    classes: dict[str, set[int]] = field(default_factory=dict)
    unknown: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    """Pixels of every known label."""
    masks: Counter[bool] = field(default_factory=Counter)
    """Number of masks with any class (True), and entirely unlabelled (False)."""
    shown: Shown = field(default_factory=lambda: Shown(NoCondition()))

    def rows(self) -> list[dict[str, str]]:
        """A table with a row per split, and one for files without a partner."""
        good = Counter(entry.split for entry in self.good)
        rows = [
            {
                "split": split or "(none)",
                "pairs": f"{count:,}",
                "good": f"{good[split]:,}",
                "bad": f"{count - good[split]:,}",
                "classes seen": str(len(self.classes.get(split, ()))) if self.layout.classes() else "-",
            }
            for split, count in sorted(self.listed.items())
        ]
        bad = len({fault.key for fault in self.faults}) - sum(self.listed.values()) + len(self.good)
        if bad > 0:
            rows.append({"split": "(no pair)", "pairs": "-", "good": "-", "bad": f"{bad:,}", "classes seen": "-"})
        return rows

    def notes(self) -> list[str]:
        """Notes for the user."""
        notes = []
        if self.unknown:
            labels = ", ".join(
                f"{label} ({count_of(count, 'pixel')})" for label, count in sorted(self.unknown.items())[:20]
            )
            notes.append(f"unknown labels: {labels}{', …' if len(self.unknown) > 20 else ''}")
        splits = {entry.split for entry in self.good}
        if self.keys is not None:
            notes += [] if self.keys.get("val") else [NO_VALIDATION]
            notes += unlisted_notes(self.listed[""], SPLITS_FILE)
        elif self.good and not {"train", "val"} <= splits:
            notes.append(f"only {' and '.join(sorted(splits))} exists: 5% are held out by a hash of their names")
        return notes + self._shown()

    def _shown(self) -> list[str]:
        """Notes on the files other than problems."""
        notes, table = self.shown.notes(), self.layout.classes()
        if table is None:
            return notes
        unlabelled = self.labels.total() - sum(self.labels[number] for number in table.ids)
        coverage = coverage_note(table.names, [*(self.labels[number] for number in table.ids), unlabelled])
        warnings = [f"warning: {said}" for said in empty_note(self.masks[False], self.masks.total())]
        return [*notes, coverage, *warnings, *said_of_mirroring(table.names)]

    def problems(self) -> Problems:
        """The problems by kind."""
        problems = Problems()
        for fault in self.faults:
            problems.add(fault.kind, fault.what)
        return problems


def check_set(layout: Layout, progress: OnProgress | None = None) -> SetReport:
    """Decode and check every file of a data set in parallel; nothing is written.

    progress: called with (done, total). Raises DataError if there is nothing to prepare.
    """
    listing = layout.listing()
    report = SetReport(layout, splits=listing.splits, keys=listing.keys, faults=list(listing.faults))
    report.shown.said += layout.look(listing.entries)
    if not listing.entries:
        report.problems().raise_if_any(layout.root)
        raise PrepareError(f"{layout.root}: contains no pairs of photograph and annotation; give the data set's folder")
    threads = cores()
    examined = []
    with ThreadPoolExecutor(threads) as pool:
        for count, one in enumerate(in_order(pool, layout.examine, listing.entries, 4 * threads), start=1):
            examined.append(one)
            if progress is not None:
                progress(count, len(listing.entries))
    if all(one.faults for one in examined):
        report.faults += [fault for one in examined for fault in one.faults]
        report.problems().raise_if_any(layout.root)
    layout.settle(one for one in examined if not one.faults)
    ids = set(table.ids) if (table := layout.classes()) else set[int]()
    doubtful = {fault.key for fault in listing.faults}
    for entry, one in zip(listing.entries, examined, strict=True):
        report.listed[entry.split] += 1
        report.faults += one.faults
        report.unknown.update(one.unknown)
        report.labels.update(one.labels)
        if one.labels:
            report.masks[not ids.isdisjoint(one.labels)] += 1
        report.shown.add(one.seen)
        if not one.faults and entry.key not in doubtful:
            report.good.append(entry)
            report.classes.setdefault(entry.split, set()).update(ids.intersection(one.labels))
    if report.shown.fits_unturned:
        _refuse_unturned(report, zip(listing.entries, examined, strict=True))
    return report


def _refuse_unturned(report: SetReport, pairs: Iterable[tuple[Entry, Examined]]) -> None:
    """Add problems for pairs whose mask matches the photograph before EXIF rotation."""
    keys = {entry.key: entry.image for entry, one in pairs if one.seen.fits_unturned}
    report.faults += [Fault(key, FITS_UNTURNED, f"{image}: by its colours") for key, image in keys.items()]
    report.good = [entry for entry in report.good if entry.key not in keys]


def write_set(
    report: SetReport,
    out: Path,
    link: bool = True,
    overwrite: bool = False,
    skip_bad: bool = False,
    progress: OnProgress | None = None,
) -> str:
    """Write the good pairs of `check_set`: `images/`, the conditions, `classes.json`, `splits.json`.

    Photographs, and masks that need no change, are hard-linked where possible (`link`), else copied. Existing files are
    kept; the class table and the splits are written last. Returns a summary. Raises DataError for problems unless
    `skip_bad` (then they are listed in `skipped.txt`), PrepareError if a split would be empty, OutputError if `out`
    belongs to something else.
    """
    layout = report.layout
    if not skip_bad:
        report.problems().raise_if_any(layout.root)
    if not report.good:
        raise PrepareError(f"{layout.root}: no usable pairs; download the data set again")
    _refuse_empty(report)
    if out.resolve() in [layout.root.resolve(), *layout.root.resolve().parents]:
        raise PrepareError(f"{out}: contains the data set itself; give another OUT")
    refuse_inside(out, layout.root)
    claim(out, layout.name, layout.settings(), [IMAGES, layout.folder], overwrite)
    made, threads = 0, cores()
    with ThreadPoolExecutor(threads) as pool:
        work = partial(_write_pair, layout, out, link, overwrite)
        for count, new in enumerate(in_order(pool, work, report.good, 4 * threads), start=1):
            made += new
            if progress is not None:
                progress(count, len(report.good))
    if (table := layout.classes()) is not None:
        write_json(out / CLASSES_FILE, table.to_file())
    _write_splits(report, out)
    write_skipped(out, [f"{fault.key}\t{fault.kind}: {fault.what}" for fault in report.faults])
    kept = f", {len(report.good) - made} kept" if made < len(report.good) else ""
    bad = f", {count_of(len(report.faults), 'problem')} skipped (listed in skipped.txt)" if report.faults else ""
    return f"{count_of(made, 'pair')} made{kept}{bad}"


def _refuse_empty(report: SetReport) -> None:
    """Raises PrepareError if a split has no good pairs."""
    empty = sorted(report.splits - {entry.split for entry in report.good} - {""})
    if empty:
        counts = ", ".join(f"{split} ({count_of(report.listed[split], 'pair')}, all bad)" for split in empty)
        raise PrepareError(
            f"nothing would remain of the split {counts}",
            remedy=f"correct it ({option('check')} lists the problems), or remove its files",
            source=report.layout.root,
        )


def _write_pair(layout: Layout, out: Path, link: bool, overwrite: bool, entry: Entry) -> bool:
    """Write a pair, the condition first; returns whether anything was written."""
    target = out / layout.folder / entry.key
    if layout.as_it_is(entry):
        made = place(entry.condition, _with_ending(target, entry.condition.suffix), link)
    else:
        target = _with_ending(target, layout.suffix)
        mark = mark_of({"layout": layout.name, **layout.settings()}, *entry.sources)
        made = overwrite or not target.is_file() or layout.marked(target) != mark
        if made:
            with beside(target) as unfinished:
                layout.write(entry, unfinished, mark)
    return place(entry.image, _with_ending(out / IMAGES / entry.key, entry.image.suffix), link) or made


def _with_ending(path: Path, ending: str) -> Path:
    """The name with this suffix appended, even if it contains dots."""
    return path.with_name(path.name + ending)


def _write_splits(report: SetReport, out: Path) -> None:
    """Write the set's `splits.json`. For sets with a folder per split and only one split it is omitted, so that
    training holds out some by a hash; but it is written if pairs of an earlier run exist, which training would also
    use."""
    splits: dict[str, list[str]] = {}
    good = {entry.key for entry in report.good}
    if report.keys is not None:
        splits = {name: [key for key in keys if key in good] for name, keys in report.keys.items()}
    else:
        for entry in report.good:
            splits.setdefault(entry.split, []).append(entry.key)
    alone = report.keys is None and not {"train", "val"} <= splits.keys()
    if alone and not _holds_others(out / report.layout.folder, good):
        (out / SPLITS_FILE).unlink(missing_ok=True)
    else:
        write_json(out / SPLITS_FILE, split_by_hash(sorted(good)) if alone else splits)


def _holds_others(folder: Path, keys: Set[str]) -> bool:
    """Whether a folder of conditions contains others than these keys."""
    return any(key_of(path, folder) not in keys for path in walk(folder, ARRAYS | IMAGE_SUFFIXES).files)
