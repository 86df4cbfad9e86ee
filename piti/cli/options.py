"""Which flags were given, for commands of several uses: what means nothing in one of them is refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import typer


def is_said(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and ctx.params[name] not in (None, (), [])


def all_said(ctx: typer.Context) -> list[str]:
    """The parameters that were given."""
    return [name for name in ctx.params if is_said(ctx, name)]


def refuse_others(said: Sequence[str], meant: Collection[str], use: str, arguments: Collection[str] = ()) -> None:
    """Raises UserError for parameters that mean nothing in a use. arguments: those that are no options."""
    from piti.core.errors import UserError

    odd = [name for name in said if name not in meant]
    if odd:
        named = ", ".join(name.upper() if name in arguments else f"--{name.replace('_', '-')}" for name in odd)
        raise UserError(f"{named} means nothing with {use}; leave it out")
