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
    """An option within a quoted command, which has it as a flag whoever reads the text. name: as of `option`."""
    return f"--{name.replace('_', '-')}"


def spelled(text: str, spelling: Callable[[str], str] = str) -> str:
    """A text for its readers. spelling: makes of an option's keyword what they call it; by default the keyword."""
    return _OPTION.sub(lambda found: spelling(found[1]), text)


class Message(str):
    """A text that is no error, such as a note: it reads in Python as it is, and `marked` spells options for others."""

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
    value: its value, None where it is not to be shown. source: the file or key at fault. Problem and remedies may
    mention options, see `option`.
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
        """The whole text, its options still marked: `source: option value: problem; remedy`. local: with what needs
        the files, see `local_remedy`.
        """
        blamed = "" if self.option is None else option(self.option)
        blamed += "" if self.value is None else f" {self.value}"
        remedies = ", or ".join(filter(None, [self.local_remedy if local else "", self.remedy]))
        about = ": ".join(filter(None, [self.source, blamed.strip(), self.problem]))
        return f"{about}; {remedies}" if remedies else about

    def __str__(self) -> str:
        return spelled(self.text())

    def about(self, source: object) -> Self:
        """The same error, of `source`; what it was of before stands after that."""
        self.source = str(source) if self.source is None else f"{source}: {self.source}"
        return self

    @classmethod
    def like(cls, error: UserError) -> Self:
        """What another error says, in its parts, as an error of this kind."""
        return _restored(cls, (error.problem,), error.__dict__)

    def __reduce__(self) -> tuple[Any, ...]:  # as it is, whatever a subclass is made from
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[E], arguments: tuple[Any, ...], parts: dict[str, Any]) -> E:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(parts)
    return error


def text_of(said: BaseException | str) -> str:
    """What an error or a message says, to be part of another text: options stay marked."""
    if isinstance(said, UserError):
        return said.text()
    return said.marked if isinstance(said, Message) else str(said)


def with_article(noun: str) -> str:
    """A name with "a" or "an" before it, by its first letter, or as that is spelled in an abbreviation: "an
    EulerDiscreteScheduler", "an LCMScheduler", "a TCDScheduler"."""
    spelled_out = noun[:2].isupper()
    return f"{'an' if noun[:1] in ('AEFHILMNORSX' if spelled_out else 'AEIOaeio') else 'a'} {noun}"


def first_line(error: BaseException) -> str:
    """What an error of a library says, its first line with words; of one that says nothing its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quoted(text: str, most: int = 100) -> str:
    """A stranger's words as a terminal may show them: on one line, what cannot be printed escaped, and shortened."""
    shown = text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


def in_utf8(text: str) -> str:
    """A text as UTF-8 can say it: bytes of a file's name that are in another encoding become such as `%DF`."""
    return _OTHER_BYTE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def in_few_lines(message: str, most: int = 8, length: int = 600) -> str:
    """A message that holds a stranger's words: each line `quoted`, and only so many of them."""
    lines = message.split("\n")
    more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(quoted(line, length) for line in lines[:most]), *more])
