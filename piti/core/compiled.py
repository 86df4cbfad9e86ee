"""Modules wrapped by `torch.compile`: unwrapping, and names of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from torch import nn

M = TypeVar("M")

_WRAPPED = "_orig_mod"
"""Attribute of a compiled module with the original."""


def unwrapped(part: M) -> M:
    """The original of a compiled module; other objects unchanged."""
    while isinstance(part, nn.Module) and _WRAPPED in part._modules:
        part = cast(Any, part._modules[_WRAPPED])
    return part


def plain_key(key: str) -> str:
    """A weight's name without the prefix added by compiling."""
    return key.replace(f"{_WRAPPED}.", "")


@contextmanager
def uncompiled(part: M) -> Iterator[M]:
    """Within the block, the original without compiled modules inside, so that it can be saved as usual."""
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
