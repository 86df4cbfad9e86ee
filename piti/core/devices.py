"""The device that networks run on, the type of numbers that they compute in, and how both are made fast."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from piti.core.errors import UserError, first_line, option
from piti.core.spec import choices
from piti.core.system import cores

if TYPE_CHECKING:
    import torch
    from torch import nn

DTypeName = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES: tuple[str, ...] = get_args(DTypeName)
"""Names that `usable_dtype` knows."""
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What a recipe's `precision` calls each but `auto`."""
_MOST_WORKERS = 8


def usable_device(name: str | None = None) -> torch.device:
    """The named device, or the fastest kind that torch sees here. Raises UserError for one that is not there.

    On CUDA, products in float32 may from then on be computed in TF32.
    """
    device = checked_device(name or fastest_kind())
    allow_tf32(device)
    return device


def checked_device(named: str | int | torch.device) -> torch.device:
    """A device by its name, or by the number of an accelerator. Raises UserError for what is none, and for one on which
    torch cannot compute here."""
    import torch

    try:
        device = torch.device(named)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type == "meta":  # which has shapes and no numbers
        raise UserError("is no device", remedy="give cpu, cuda, cuda:1, mps …", option="device", value=named)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        said = first_line(error)
        raise UserError(f"is not here ({said})", remedy="cpu always works", option="device", value=named) from None
    return device


def fastest_kind() -> str:
    """Of the kinds of device that torch sees here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def allow_tf32(device: torch.device) -> None:
    """On CUDA, let products of float32 be computed in TF32: ten bits of mantissa, several times as fast."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def usable_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of a network's weights by one of `DTYPES`.

    `auto` is bfloat16 on CUDA devices that compute in it, and float32 elsewhere. Raises UserError for a name that is
    not known, and for a type in which the device does not compute, or slower than in float32.
    """
    import torch

    if name not in DTYPES:
        raise UserError(f"is no type of numbers; {choices(name, DTYPES)}", option="dtype", value=name)
    if name == "auto":
        fast = device.type == "cuda" and computes_bfloat16(device)
        return torch.bfloat16 if fast else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UserError("CPUs do not compute in float16", remedy="give bf16, fp32 or auto", option="dtype", value=name)
    if name == "bf16" and not computes_bfloat16(device):
        what = "this processor" if device.type == "cpu" else f"the device {device}"
        other = "fp32" if device.type == "cpu" else "fp16 or fp32"
        raise UserError(
            f"{what} does not compute in bfloat16", remedy=f"give {other}, or auto", option="dtype", value=name
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device does so itself, and does not imitate it by float32."""
    import torch

    match device.type:
        case "cuda":
            return torch.cuda.get_device_capability(device) >= (8, 0)
        case "cpu":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case "mps":
            return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device computes products in bfloat16 faster than in float32. Of Intel's processors those with AMX do;
    with `avx512_bf16` alone they were measured at half the speed."""
    if not computes_bfloat16(device):
        return False
    if device.type != "cpu":
        return True
    said = _processor()
    return "GenuineIntel" not in said or "amx_bf16" in said


def _processor() -> str:
    """What the system says of the processor: on Linux its vendor and all that it can do, elsewhere less."""
    facts = Path("/proc/cpuinfo")
    return facts.read_text(errors="replace") if facts.exists() else platform.processor()


def check_compiles(device: torch.device) -> None:
    """Raises UserError where `torch.compile` lacks what it needs on a device."""
    import torch

    if device.type == "cpu":
        if not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "cl")))):
            raise UserError(
                "compiling for a CPU needs a C++ compiler, and none is on the path",
                remedy=f"install g++, or leave {option('compile')} out",
                option="compile",
            )
        return
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise UserError(
            f"compiling needs Triton, which is not installed or does not know this GPU (capability {capability})",
            remedy=f"install triton, or leave {option('compile')} out",
            option="compile",
        )


def usual_workers(processes: int = 1) -> int:
    """Processes that load data beside each of `processes` that train on this machine: one a core but for the
    training's own, 1 … 8."""
    return max(1, min(_MOST_WORKERS, cores() // max(1, processes) - 1))


def laid_out(network: nn.Module, device: torch.device, also_on: str = "cuda") -> nn.Module:
    """The same network; on CUDA, and on `also_on`, its convolutions' weights lie channels-last in memory, as the fast
    kernels there read them."""
    import torch

    last = device.type in {"cuda", also_on}
    return network.to(memory_format=torch.channels_last) if last else network  # pyright: ignore[reportCallIssue]
