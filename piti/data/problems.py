"""Problems of a data set, collected and reported together."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from piti.core.errors import UserError, count_of, option
from piti.core.files import OutputError

UNREADABLE = "unreadable files (replace or remove them)"
TWICE = "keys with several files (keep one)"
"""Kinds of problems that several checks find."""

_NAMED = 5  # number of files listed for each kind of problem


class DataError(UserError):
    """A data set cannot be used. The message lists the problems, the files and the remedies."""


def unlisted_notes(pairs: int, file: str) -> list[str]:
    """The note for existing pairs that a splits file does not list, if there are any. file: its name."""
    return [f"not used, since they are in no split of {file}: {count_of(pairs, 'pair')}"] if pairs else []


class Problems:
    """Problems by kind, in the order of discovery."""

    def __init__(self, others: Problems | None = None) -> None:
        self._by_kind = {kind: list(found) for kind, found in others._by_kind.items()} if others else {}

    def add(self, kind: str, what: str) -> None:
        self._by_kind.setdefault(kind, []).append(what)

    def raise_if_any(self, root: Path) -> None:
        """Raise one DataError with all kinds, their counts and first files."""
        if not self._by_kind:
            return
        lines = [f"{root}: the data set has problems"]
        for kind, found in self._by_kind.items():
            lines.append(f"  {len(found)} {kind}:")
            lines += [f"    {what}" for what in found[:_NAMED]]
            if len(found) > _NAMED:
                lines.append(f"    … and {len(found) - _NAMED} more")
        raise DataError("\n".join(lines))


log = logging.getLogger(__name__)

SETTLED = 500
"""Smallest number of samples that shares of bad ones refer to, since one bad sample among the first three says
little."""

_OBJECT = re.compile(r" <\S+ object at 0x[0-9a-f]+>")
_LOGGED = 5  # number listed in the log and in the error


@dataclass(frozen=True)
class Skipped:
    """A sample that cannot be used, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def reason_of(error: Exception, source: str) -> str:
    """An error's message about `source` without its name, and without parts that change between runs."""
    return _OBJECT.sub("", " ".join(str(error).split())).removeprefix(f"{source}:").strip()


class BadSample(UserError):
    """A single sample cannot be used."""

    def __init__(self, skipped: Skipped) -> None:
        super().__init__(str(skipped))
        self.skipped = skipped


class Tally:
    """Counts the samples read and skipped in a run.

    most: largest share of unusable samples. file: lists each once, one per line; existing lines are kept. The first few
    are also logged. Without a file they are only counted. Raises OutputError if it cannot be written.
    """

    def __init__(self, most: float, file: Path | None = None) -> None:
        self.most, self.file = most, file
        self.read = self.bad = self._told = 0
        self._first: list[Skipped] = []
        self._names: set[str] = set()
        if file is not None and file.exists():
            self._names.update(file.read_text(encoding="utf-8", errors="replace").splitlines())

    def add(self, read: int, skipped: Sequence[Skipped]) -> None:
        """Count `read` more samples, some of which were skipped; list new ones."""
        self.read += read
        self.bad += len(skipped)
        for one in skipped:
            line = " ".join(str(one).split())
            if line in self._names:
                continue
            self._names.add(line)
            if len(self._first) < _LOGGED:
                self._first.append(one)
            if self.file is not None:
                self._tell(line, self.file)

    def _tell(self, line: str, file: Path) -> None:
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(line + "\n")
        except OSError as error:
            raise OutputError(
                f"the list of skipped samples cannot be written ({error.strerror})",
                remedy=f"free disk space, then continue with {option('resume')}",
                source=file,
            ) from error
        self._told += 1
        if self._told <= _LOGGED:
            log.warning("skipped: %s%s", line, f" (more are listed in {file})" if self._told == _LOGGED else "")

    @property
    def too_many(self) -> bool:
        """Whether the share of unusable samples exceeds the limit."""
        return self.bad > self.most * max(self.read, SETTLED)

    def check(self) -> None:
        """Raises DataError if there are too many."""
        if not self.too_many:
            return
        where = f"\n  … all in {self.file}" if self.file is not None else ""
        raise DataError(
            f"{self.bad} of {self.read} samples cannot be used, more than data.max_bad = {self.most:g} allows; "
            "correct the data, or raise data.max_bad:\n  " + "\n  ".join(map(str, self._first)) + where
        )
