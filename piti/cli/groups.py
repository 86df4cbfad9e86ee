"""Groups of flags, and detection of given flags.

A group is a frozen dataclass whose fields are flags. A command decorated with `@with_groups` takes the group as one
parameter, whose fields become flags of the command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import typer

from piti.cli.console import flag


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command that takes groups of flags into one for Typer, with each group's fields as parameters."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {flag.name: flag.annotation for flag in own if is_dataclass(flag.annotation)}
    flat = [parameter for parameter in own if parameter.name not in groups]
    for group in groups.values():
        flat += _parameters(group)

    @wraps(command)
    def ungrouped(**given: Any) -> None:
        filled = {}
        for name, group in groups.items():
            filled[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given, **filled)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in flat]
    ungrouped.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    vars(ungrouped)["__signature__"] = inspect.Signature(keyword)
    return ungrouped


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """The fields of a group as function parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and ctx.params[name] not in (None, (), [])


def all_given(ctx: typer.Context) -> list[str]:
    """The parameters that were given on the command line."""
    return [name for name in ctx.params if is_given(ctx, name)]


def refuse_others(given: Sequence[str], meant: Collection[str], use: str) -> None:
    """Raise UserError for given parameters that do not apply to this use of a command. use: its description."""
    from piti.core.errors import UserError

    odd = [flag(name) for name in given if name not in meant]
    if odd:
        raise UserError(f"{', '.join(odd)} has no effect with {use}; remove it")
