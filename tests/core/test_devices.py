"""Devices, dtypes, and errors for unavailable ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from piti.core.devices import (
    allow_tf32,
    check_compiles,
    computes_bfloat16,
    fast_in_bfloat16,
    laid_out,
    usable_device,
    usable_dtype,
    usual_workers,
)
from piti.core.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def tf32() -> Iterator[None]:
    """torch's settings as they were."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_half_precision_on_a_gpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert usable_dtype("auto", CUDA) is dtype
    assert usable_dtype("fp16", CUDA) is torch.float16
    if dtype is torch.float32:
        with pytest.raises(UserError, match="cuda does not support bfloat16; give fp16 or fp32, or auto"):
            usable_dtype("bf16", CUDA)


def test_a_cpu_computes_in_float32_unless_it_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piti.core.devices.computes_bfloat16", lambda device: True)
    assert usable_dtype("auto", CPU) is torch.float32
    assert usable_dtype("bf16", CPU) is torch.bfloat16
    with pytest.raises(UserError, match="dtype fp16: CPUs do not support float16"):
        usable_dtype("fp16", CPU)
    monkeypatch.setattr("piti.core.devices.computes_bfloat16", lambda device: False)
    with pytest.raises(UserError, match="this processor does not support bfloat16; give fp32, or auto"):
        usable_dtype("bf16", CPU)


@pytest.mark.parametrize(
    ("computes", "vendor", "tiles", "fast"),
    [
        (False, "GenuineIntel", False, False),
        (True, "GenuineIntel", False, False),
        (True, "GenuineIntel", True, True),
        (True, "AuthenticAMD", False, True),
        (True, "", False, True),
    ],
)
def test_bfloat16_is_fast_on_a_processor_with_units_for_it(
    monkeypatch: pytest.MonkeyPatch, computes: bool, vendor: str, tiles: bool, fast: bool
) -> None:
    monkeypatch.setattr("piti.core.devices.computes_bfloat16", lambda device: computes)
    said = f"vendor_id\t: {vendor}\nflags\t: avx512_bf16{' amx_bf16' if tiles else ''}\n"
    monkeypatch.setattr(Path, "exists", lambda self: vendor != "")
    monkeypatch.setattr(Path, "read_text", lambda self, errors: said)
    assert fast_in_bfloat16(CPU) is fast
    assert fast_in_bfloat16(CUDA) is computes


def test_what_is_no_device_and_what_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(UserError, match=f"^device {name}: is not a device; give cpu, cuda, cuda:1, mps …$"):
            usable_device(name)

    def refused(*_: object, device: torch.device) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled\nand more")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(UserError, match=r"^device cuda: is not available \(Torch not compiled .*\); use cpu$"):
        usable_device("cuda")


def test_a_kind_of_device_that_torch_knows_and_has_no_module_for_is_not_here() -> None:
    with pytest.raises(UserError, match=r"^device hpu: is not available \(.*\); use cpu$"):
        usable_device("hpu")


def test_a_type_that_is_unknown_names_the_nearest() -> None:
    with pytest.raises(UserError, match="bf16"):
        usable_dtype("bf61", CPU)
    assert isinstance(computes_bfloat16(CPU), bool)


@pytest.mark.usefixtures("tf32")
def test_tf32_is_allowed_on_cuda_alone() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    assert usable_device("cpu") == CPU
    assert not torch.backends.cuda.matmul.allow_tf32
    allow_tf32(CUDA)
    assert torch.backends.cuda.matmul.allow_tf32


def test_what_compiling_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        check_compiles(CPU)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(UserError, match=r"Triton, .* \(capability 6\.1\)"):
        check_compiles(CUDA)


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 1), (8, 1, 7), (64, 1, 8), (64, 8, 7)])
def test_workers_follow_from_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert usual_workers(processes) == workers


def test_weights_lie_as_cuda_reads_them() -> None:
    convolution = nn.Conv2d(4, 4, 3)
    assert laid_out(convolution, CPU).weight.is_contiguous()  # type: ignore[union-attr]
    laid_out(convolution, CUDA)  # the layout alone: it stays where it is
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
