"""Output of preparing data: atomic files with marks of their settings, so that runs can be resumed."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

from piti.core.errors import UserError, option
from piti.core.files import OutputError
from piti.data.archives import Archived

SETTINGS_FILE = "prepare.json"
SKIPPED_FILE = "skipped.txt"

_T = TypeVar("_T")
_R = TypeVar("_R")


class PrepareError(UserError):
    """Data cannot be prepared. The message says what is wrong and what to do."""


def claim(out: Path, command: str, settings: Mapping[str, Any], folders: Sequence[str], overwrite: bool) -> None:
    """Claim `out` as output folder of `command` with these settings.

    folders: the command's output folders, which must be empty or absent without a record of a run. Raises OutputError
    for folders with other files, or with other settings unless `overwrite`.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder; give another OUT")
    wanted = {"command": command, "settings": dict(settings)}
    record = out / SETTINGS_FILE
    if record.exists():
        found = _read_record(record)
        if found.get("command") != command:
            raise OutputError(f"{out}: was made by piti prepare {found.get('command')}; give another OUT")
        changed = _changed(found.get("settings", {}), wanted["settings"])
        if changed and not overwrite:
            raise OutputError(
                f"was started with other settings ({changed})",
                remedy=f"add {option('overwrite')} to redo everything, or give another OUT",
                source=out,
            )
    else:
        for folder in folders:
            if (out / folder).is_dir() and any((out / folder).iterdir()):
                raise OutputError(f"{out}: {folder}/ holds other files; give another OUT")
    write_json(record, wanted)


def refuse_inside(out: Path, source: Path) -> None:
    """Raises PrepareError if `out` is inside the input folder `source`."""
    if source.resolve() in out.resolve().parents:
        raise PrepareError(f"{out}: lies inside {source}, which is only read; give an OUT beside it")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove it, or give another OUT") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings", {}), dict):
        raise OutputError(f"{path}: is not a record of piti prepare; remove it, or give another OUT")
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key}: {before.get(key)} there, {now.get(key)} now" for key in keys)


def mark_of(settings: Mapping[str, Any], *sources: Path | Archived) -> str:
    """The mark of a result, which changes with settings and source files."""
    states: list[object] = [dict(settings)]
    for source in sources:
        path = source.archive if isinstance(source, Archived) else source
        found = path.stat()
        states.append([found.st_size, found.st_mtime_ns, source.offset if isinstance(source, Archived) else 0])
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A hidden temporary path with the same suffix, which is then renamed to `target`.

    The temporary file is always removed.
    """
    partial = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write plain data as JSON, atomically."""
    with beside(path) as partial:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def place(source: Path | Archived, target: Path, link: bool) -> bool:
    """Copy a file to `target`, by a hard link if possible and requested.

    Returns whether anything was done. An existing `target` is replaced unless it is equal.
    """
    if isinstance(source, Archived):
        content = source.open().getvalue()
        if target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content:
            return False
        with beside(target) as partial:
            partial.write_bytes(content)
        return True
    source = source.resolve()
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return False
    with beside(target) as partial:
        if not (link and _linked(source, partial)):
            shutil.copyfile(source, partial)
    return True


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link could be created, which not all file systems support."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def write_skipped(out: Path, lines: Sequence[str]) -> None:
    """Write the list of skipped items, or remove an earlier run's list."""
    path = out / SKIPPED_FILE
    if not lines:
        path.unlink(missing_ok=True)
        return
    with beside(path) as partial:
        text = "".join(f"{line}\n" for line in lines)
        partial.write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # names may contain bytes that are not UTF-8


def in_order(pool: Executor, work: Callable[[_T], _R], items: Sequence[_T], ahead: int) -> Iterator[_R]:
    """`work` on each item in a pool, with results in order and at most `ahead` pending, which are cancelled on
    errors."""
    waiting: list[Future[_R]] = []
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()
