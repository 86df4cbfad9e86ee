"""Modules that `torch.compile` wrapped: what they wrap, and their weights under their own names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from torch import nn

M = TypeVar("M")

_WRAPPED = "_orig_mod"
"""Where a compiled module keeps what was compiled."""


def unwrapped(part: M) -> M:
    """What a compiled module was compiled from; anything else as it is."""
    while isinstance(part, nn.Module) and _WRAPPED in part._modules:
        part = cast(Any, part._modules[_WRAPPED])
    return part


def plain_key(key: str) -> str:
    """A weight's name without what compiling puts into it."""
    return key.replace(f"{_WRAPPED}.", "")


@contextmanager
def uncompiled(part: M) -> Iterator[M]:
    """Within the block: the part itself, with no compiled module in it, so that it saves what it would have saved."""
    part, replaced = unwrapped(part), list[tuple[nn.Module, str, nn.Module]]()
    if isinstance(part, nn.Module):
        for parent in list(part.modules()):
            for name, child in list(parent._modules.items()):
                if child is not None and child is not unwrapped(child) and _WRAPPED not in parent._modules:
                    parent._modules[name] = unwrapped(child)
                    replaced.append((parent, name, child))
    try:
        yield part
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child
