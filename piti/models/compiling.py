"""`torch.compile` of the blocks that a network repeats: nearly the speed of compiling it whole, in a fraction of the
time, as diffusers' `compile_repeated_blocks` does it for networks of transformers."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from piti.core.compiled import unwrapped
from piti.core.errors import UserError, option

REPEATED = frozenset(
    {"ResnetBlock2D", "Attention", "BasicTransformerBlock", "SanaTransformerBlock", "JointTransformerBlock"}
    | {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
)
"""Classes of the blocks that diffusers' UNets and transformers are made of."""
_SHAPES = 256
"""Shapes of weights and images for which one kind of block is compiled; torch's own 8 are fewer than a UNet has, and
what comes after them would not be compiled at all."""


def compile_blocks(network: nn.Module) -> int:
    """Compile every block of `REPEATED` in place, when it is first called; returns how many there are.

    Weights keep their names, and what is copied or saved is not compiled. Blocks that are compiled already stay so. A
    block raises UserError where torch cannot compile it.
    """
    import torch._dynamo

    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # its name in later and in earlier versions
        if hasattr(config, name):
            setattr(config, name, max(_SHAPES, getattr(config, name)))
    blocks = repeated_blocks(network)
    for block in blocks:
        if block._compiled_call_impl is None:
            block.compile()
            block._compiled_call_impl = _told(block._compiled_call_impl)
    return len(blocks)


def _told(compiled: Any) -> Callable[..., Any]:
    """A compiled call that raises a readable error if its first call fails."""
    from torch._dynamo.exc import BackendCompilerFailed

    def call(*given: Any, **named: Any) -> Any:
        try:
            return compiled(*given, **named)
        except BackendCompilerFailed as error:
            raise UserError(
                f"torch.compile failed ({type(error.inner_exception).__name__}): a compiler is missing, or a process "
                "that was killed left a damaged file in torch's cache",
                remedy=f"remove {_torch_cache()}, or leave {option('compile')} out",
            ) from error

    return call


def _torch_cache() -> Path:
    """Where torch keeps what it compiled."""
    usual = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual))


def is_compiled(network: nn.Module) -> bool:
    """Whether blocks of a network are compiled, or it is as a whole."""
    return any(part is not unwrapped(part) or part._compiled_call_impl is not None for part in network.modules())


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of `REPEATED`, without those inside another one."""
    if type(network).__name__ in REPEATED:
        return [network]
    return [block for child in network.children() for block in repeated_blocks(child)]
