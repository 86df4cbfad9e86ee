"""Engines by name, and the choice of `auto`."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol, get_args

import torch

from piti.core.devices import fast_in_bfloat16
from piti.core.errors import UserError, option
from piti.core.spec import choices
from piti.models.translator import NetworkStep, Translator

EngineName = Literal["auto", "torch", "openvino"]
ENGINES: tuple[str, ...] = get_args(EngineName)
"""Names that `engine_named` knows."""


class EngineError(UserError):
    """An engine is unknown, not installed, or does not support the device."""


class Engine(Protocol):
    """Computes the networks of translators."""

    name: str

    def step(self, translator: Translator) -> NetworkStep | None:
        """The replacement of `translator.step`; None: the original."""
        ...

    def ready(self, translator: Translator) -> bool:
        """Whether `step` needs no long preparation."""
        ...

    def described(self) -> str:
        """Its version and precision, for metadata; empty for torch."""
        ...


class TorchEngine:
    """Computes with torch."""

    name = "torch"

    def step(self, translator: Translator) -> NetworkStep | None:
        """None: the translator's own."""
        return None

    def ready(self, translator: Translator) -> bool:
        """Always."""
        return True

    def described(self) -> str:
        """Empty: metadata always contain torch's version."""
        return ""


def engine_named(name: str, device: torch.device | str = "cpu", dtype: str = "auto") -> Engine:
    """The engine with a name, on a device.

    `auto` selects OpenVINO if it is installed, the device is a CPU, and the processor is faster in bfloat16, where
    OpenVINO is 1.4 to 2 times as fast; else torch. dtype: a name in `DTYPES`; with "auto" OpenVINO uses bfloat16 if the
    processor is faster with it, with "bf16" if it is supported, else float32. Raises EngineError for an unknown name,
    an engine that is not installed, and one that does not support the device.
    """
    if name not in ENGINES:
        raise EngineError(f"is not an engine; {choices(name, ENGINES)}", option="engine", value=name)
    on_cpu, installed = torch.device(device).type == "cpu", importlib.util.find_spec("openvino") is not None
    if name == "torch" or (name == "auto" and not (on_cpu and installed)):
        return TorchEngine()
    if not on_cpu:
        raise EngineError(
            f"runs only on CPUs, but the device is {device}",
            remedy=f"leave {option('engine')} out, or give {option('device')} cpu",
            option="engine",
            value=name,
        )
    if not installed:
        raise EngineError(
            "needs the package openvino, which is not installed",
            remedy="pip install 'piti[cpu]'",
            option="engine",
            value=name,
        )
    from piti.engine.openvino import OpenVinoEngine, computes_bfloat16

    half = computes_bfloat16() and (dtype == "bf16" or (dtype == "auto" and fast_in_bfloat16(torch.device("cpu"))))
    if name == "auto" and not half:
        return TorchEngine()
    return OpenVinoEngine(half)
