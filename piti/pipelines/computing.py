"""Device, precision, engine and compilation of a pipeline's networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from piti.core.devices import check_compiles, laid_out, usable_device, usable_dtype
from piti.core.errors import UserError, option
from piti.engine import engine_named
from piti.models.compiling import compile_blocks
from piti.models.space import Autoencoder, autoencoder_dtype
from piti.pipelines.marks import cast
from piti.pipelines.pipeline import PITIPipeline


@dataclass(frozen=True)
class Computing:
    """Requested device, precision, engine and compilation; by default the fastest available."""

    device: str | None = None
    """See `usable_device`."""
    dtype: str = "auto"
    """See `usable_dtype`. Engines choose their own precision, except for "fp32"."""
    engine: str = "auto"
    """See `PITIPipeline.use_engine`."""
    compile: bool = False
    """Compile the networks' repeated blocks with `torch.compile`; the first images then take minutes longer."""

    def check(self) -> tuple[torch.device, torch.dtype]:
        """Check device and dtype before a model is loaded. Raises UserError or EngineError if they are not
        available."""
        device = usable_device(self.device)
        dtype = usable_dtype(self.dtype, device)
        if self.compile and self.engine not in ("auto", "torch"):
            raise UserError(
                f"compiles torch networks, but {option('engine')} {self.engine} does not use torch",
                remedy=f"leave {option('compile')} out, or give {option('engine')} torch",
                option="compile",
            )
        if self.compile:
            check_compiles(device)
        engine_named(self._engine, device, self.dtype)
        return device, dtype

    def applied(self, pipeline: PITIPipeline) -> PITIPipeline:
        """Move a pipeline's networks to the device and dtype, choose its engine, and return it.

        Under `auto` baselines stay in float32. Raises UserError or EngineError for unavailable settings.
        """
        device, dtype = self.check()
        pipeline.to(device)
        pipeline.use_engine(self._engine, self.dtype)
        for network in (pipeline.base, pipeline.upsampler, pipeline.vae):
            if network is None:
                continue
            if not self._stays(network, pipeline, dtype):
                cast(network, dtype)
            laid_out(network, device)
            if self.compile:
                compile_blocks(network)
        return pipeline

    @property
    def _engine(self) -> str:
        return "torch" if self.compile else self.engine

    def _stays(self, network: nn.Module, pipeline: PITIPipeline, dtype: torch.dtype) -> bool:
        """Whether a network's weights keep their dtype: those of an autoencoder that fails in half precision, of a
        baseline under `auto`, and all if an engine computes in its own."""
        if isinstance(network, Autoencoder):
            return autoencoder_dtype(network.config, dtype) is not dtype
        return pipeline.engine.name != "torch" or (self.dtype == "auto" and bool(getattr(network, "one_pass", False)))


TORCH = Computing(engine="torch")
"""Computation by torch, on the fastest device."""
