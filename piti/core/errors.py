"""One ancestor for every mistake that a user can mend."""


class UserError(ValueError):
    """Bad input. The message names the file, key or flag, what was expected, and what to do."""


def quoted(text: str, most: int = 100) -> str:
    """A stranger's words as a terminal may show them: on one line, what cannot be printed escaped, and shortened."""
    shown = text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


def in_few_lines(message: str, most: int = 8, length: int = 600) -> str:
    """A message that holds a stranger's words: each line `quoted`, and only so many of them."""
    lines = message.split("\n")
    more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*(quoted(line, length) for line in lines[:most]), *more])
