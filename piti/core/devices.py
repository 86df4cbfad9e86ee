"""Devices and dtypes of networks, and their performance settings."""

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
"""The names of these in a recipe's `precision`, except `auto`."""
_MOST_WORKERS = 8


def usable_device(name: str | None = None) -> torch.device:
    """The named device, or the fastest available one. Raises UserError if it is not available.

    On CUDA this allows TF32 for float32 matrix products.
    """
    device = checked_device(name or fastest_kind())
    allow_tf32(device)
    return device


def checked_device(named: str | int | torch.device) -> torch.device:
    """A device by its name, or by the number of an accelerator. Raises UserError for an invalid name, and for an
    unavailable device."""
    import torch

    try:
        device = torch.device(named)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type == "meta":  # has shapes without data
        raise UserError("is not a device", remedy="give cpu, cuda, cuda:1, mps …", option="device", value=named)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        said = first_line(error)
        raise UserError(f"is not available ({said})", remedy="use cpu", option="device", value=named) from None
    return device


def fastest_kind() -> str:
    """The fastest available device type."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def allow_tf32(device: torch.device) -> None:
    """On CUDA, allow TF32 for float32 matrix products: ten bits of mantissa, several times faster."""
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def usable_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a network's weights by a name in `DTYPES`.

    `auto` is bfloat16 on CUDA devices that support it, and float32 elsewhere. Raises UserError for an unknown name, and
    for a dtype that the device does not support, or only more slowly than float32.
    """
    import torch

    if name not in DTYPES:
        raise UserError(f"is not a dtype; {choices(name, DTYPES)}", option="dtype", value=name)
    if name == "auto":
        fast = device.type == "cuda" and computes_bfloat16(device)
        return torch.bfloat16 if fast else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UserError("CPUs do not support float16", remedy="give bf16, fp32 or auto", option="dtype", value=name)
    if name == "bf16" and not computes_bfloat16(device):
        what = "this processor" if device.type == "cpu" else f"the device {device}"
        other = "fp32" if device.type == "cpu" else "fp16 or fp32"
        raise UserError(
            f"{what} does not support bfloat16", remedy=f"give {other}, or auto", option="dtype", value=name
        )
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device supports bfloat16 natively, without emulation by float32."""
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
    """Whether a device computes matrix products faster in bfloat16 than in float32. Intel processors with AMX do; with
    only `avx512_bf16`, half the speed was measured."""
    if not computes_bfloat16(device):
        return False
    if device.type != "cpu":
        return True
    said = _processor()
    return "GenuineIntel" not in said or "amx_bf16" in said


def _processor() -> str:
    """Description of the processor: on Linux with vendor and features, elsewhere less."""
    facts = Path("/proc/cpuinfo")
    return facts.read_text(errors="replace") if facts.exists() else platform.processor()


def check_compiles(device: torch.device) -> None:
    """Raises UserError if `torch.compile` cannot work on a device."""
    import torch

    if device.type == "cpu":
        if not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "cl")))):
            raise UserError(
                "compiling for a CPU needs a C++ compiler, but none is on the PATH",
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
    """Data loading processes for each of `processes` training processes on this machine: one per core except the
    training's own, 1 … 8."""
    return max(1, min(_MOST_WORKERS, cores() // max(1, processes) - 1))


def laid_out(network: nn.Module, device: torch.device, also_on: str = "cuda") -> nn.Module:
    """The same network, with convolution weights in channels-last layout on CUDA and on `also_on`, as needed by the
    fast kernels there."""
    import torch

    last = device.type in {"cuda", also_on}
    return network.to(memory_format=torch.channels_last) if last else network  # pyright: ignore[reportCallIssue]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a lack of memory, of a GPU or of the system."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
