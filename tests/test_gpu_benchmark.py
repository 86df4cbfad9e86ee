"""`benchmarks/gpu.py` continues after failed rows, and its three ways of training run a step."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_cases import BARE, RELEASED, Case, Scale, cases, made_data, training
from piti.core.devices import PRECISIONS
from piti.core.errors import UserError

CPU = torch.device("cpu")
SCALE = Scale.tiny()


def case(by: str, made: Callable[..., Any], dtype: str = "fp32", compiled: bool = False) -> Case:
    return Case("training", "a network", by, dtype, compiled, 2, made)


def failing(error: Exception) -> Callable[..., Any]:
    def make(*_: object) -> Callable[[], object]:
        raise error

    return make


def test_a_row_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ending", lambda seconds: contextlib.nullcontext())
    monkeypatch.setattr(gpu, "STARTED", time.perf_counter())
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    chosen = [
        case(BARE, lambda *_: lambda: time.sleep(0.002)),
        case("piti", lambda *_: lambda: time.sleep(0.001)),
        case("large", failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))),
        case("host", failing(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate: out of memory"))),
        case("refused", failing(UserError("no float16", remedy="give bf16"))),
        case("broken", failing(RuntimeError("a kernel is missing\nmore"))),
        case("late", failing(gpu.OutOfTime())),  # type: ignore[arg-type]
        case("compiled", lambda *_: lambda: None, compiled=True),
    ]
    rows = gpu.run_all(chosen, CPU, SCALE, tmp_path, minutes=(gpu.MARGIN + 8) / 60)
    found = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["status"].split(":")[0] for row in found] == [
        "measured", "measured", "out of memory", "out of memory", "not here", "failed", "stopped", "skipped",
    ]  # fmt: skip
    assert rows[1].calls == SCALE.calls
    assert found[1]["beside_the_plain_loop"] == pytest.approx(found[0]["seconds"] / found[1]["seconds"])
    assert found[0]["beside_the_plain_loop"] is None
    page = (tmp_path / "gpu.md").read_text()
    assert "| a network | piti | fp32 | no |" in page
    assert "training: a network, broken, fp32: failed: a kernel is missing\n" in page


def test_rows_compiled_come_last_and_every_ratio_has_its_partner() -> None:
    for scale in (Scale(), SCALE):
        rows = cases(scale)
        compiled = [row.compile for row in rows]
        assert compiled == sorted(compiled)
        assert len(set(rows)) == len(rows)
        assert {row.dtype for row in rows if row.task == "sampling"} == set(PRECISIONS)


@pytest.mark.parametrize("by", ["piti", BARE, RELEASED])
def test_a_step_of_each_way_of_training(by: str, tmp_path: Path) -> None:
    made_data(tmp_path / "data", side=32, count=2)
    one = Case("training", "full, joint, batch 2", by, "fp32", False, 2, training)
    step: Any = training(one, SCALE, CPU, tmp_path / "run")
    network = step.trainer.translator if by == "piti" else step.translator
    before = [parameter.detach().clone() for parameter in network.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2
    assert all(parameter.isfinite().all() for parameter in network.parameters())
