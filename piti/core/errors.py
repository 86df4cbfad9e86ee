"""User errors, in parts, and the naming of options in their messages.

One text serves three readers: the command line names an option by its flag (`--base-only`), the HTTP interface by its
field and Python by its keyword (`base_only`). Messages therefore mark options with `option`, and each interface spells
them with `spelled`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Self, TypeVar

E = TypeVar("E", bound="UserError")

_OPTION = re.compile("\u2039([a-z_]+)\u203a")
_OTHER_BYTE = re.compile("[\ud800-\udfff]")


def option(name: str) -> str:
    """Mark an option in a message. name: its keyword, such as "base_only"."""
    return f"\u2039{name}\u203a"


def flag(name: str) -> str:
    """An option as a flag, for quoted commands. name: as for `option`."""
    return f"--{name.replace('_', '-')}"


def spelled(text: str, spelling: Callable[[str], str] = str) -> str:
    """Replace marked options. spelling: maps an option's keyword to its name for the reader; by default the keyword."""
    return _OPTION.sub(lambda found: spelling(found[1]), text)


class Message(str):
    """A text other than an error, such as a note: its value has Python's keywords, `marked` has marked options."""

    marked: str

    def __new__(cls, text: str) -> Self:
        """text: with options marked, see `option`."""
        made = super().__new__(cls, spelled(text))
        made.marked = text
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.marked,)


class UserError(ValueError):
    """Bad input: what is wrong, where, and what to do. `str` gives one text, options by their keywords.

    problem: what is wrong with the value, and what was expected. remedy: what to do. local_remedy: what else a user
    with access to the files and the program can do; not shown in a browser. option: the keyword of the option at fault;
    value: its value, None to omit it. source: the file or key at fault. Problem and remedies may mention options, see
    `option`.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        local_remedy: str = "",
        option: str | None = None,
        value: object = None,
        source: object = None,
    ) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.local_remedy = problem, remedy, local_remedy
        self.option, self.value, self.source = option, value, None if source is None else str(source)

    def text(self, local: bool = True) -> str:
        """The whole text with marked options: `source: option value: problem; remedy`. local: with `local_remedy`."""
        blamed = "" if self.option is None else option(self.option)
        blamed += "" if self.value is None else f" {self.value}"
        remedies = ", or ".join(filter(None, [self.local_remedy if local else "", self.remedy]))
        about = ": ".join(filter(None, [self.source, blamed.strip(), self.problem]))
        return f"{about}; {remedies}" if remedies else about

    def __str__(self) -> str:
        return spelled(self.text())

    def about(self, source: object) -> Self:
        """Set `source`, prefixed to the previous one, and return the error."""
        self.source = str(source) if self.source is None else f"{source}: {self.source}"
        return self

    @classmethod
    def like(cls, error: UserError) -> Self:
        """Convert another error to this class, keeping its parts."""
        return _restored(cls, (error.problem,), error.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:  # independent of subclasses' constructors
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[E], arguments: tuple[Any, ...], parts: dict[str, Any]) -> E:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(parts)
    return error


def text_of(said: BaseException | str) -> str:
    """The text of an error or message for use in another text, with marked options."""
    if isinstance(said, UserError):
        return said.text()
    return said.marked if isinstance(said, Message) else str(said)


def with_article(noun: str) -> str:
    """A name with "a" or "an", by its first letter, or by its pronunciation in an abbreviation: "an
    EulerDiscreteScheduler", "an LCMScheduler", "a TCDScheduler"."""
    spelled_out = noun[:2].isupper()
    return f"{'an' if noun[:1] in ('AEFHILMNORSX' if spelled_out else 'AEIOaeio') else 'a'} {noun}"


def count_of(number: int, noun: str) -> str:
    """A number and what it counts, in the plural unless it is one: "1 pair", "2,000 pairs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first non-empty line of a library's error; for an empty message, its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quoted(text: str, most: int = 100) -> str:
    """Make untrusted text safe for a terminal: on one line, escaped, and shortened."""
    shown = text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


def in_utf8(text: str) -> str:
    """Make text encodable as UTF-8: undecodable bytes of file names become escapes such as `%DF`."""
    return _OTHER_BYTE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def in_few_lines(message: str, most: int = 8, length: int = 600) -> str:
    """A message with untrusted text: each line `quoted`, limited to `most` lines."""
    lines = message.split("\n")
    more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(quoted(line, length) for line in lines[:most]), *more])
