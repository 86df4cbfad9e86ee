"""Computation of a pipeline's networks: dtype, engine, compiled blocks."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from typer.testing import CliRunner

from piti.cli.app import app
from piti.core.errors import UserError
from piti.generation.metadata import made_on, numbers_of
from piti.models.compiling import compile_blocks, is_compiled, repeated_blocks
from piti.pipelines.computing import Computing
from piti.pipelines.marks import weights_mark
from piti.pipelines.pipeline import PITIPipeline
from tests.evaluation.seen import NOISELESS, baseline_pipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import arrays, mask, seeded

bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor does not support bfloat16"
)


@bfloat16
def test_half_precision_is_near_and_said() -> None:
    wanted = arrays(tiny_cascade()(mask(1), generator=seeded()).images)
    pipeline = Computing("cpu", "bf16", "torch").applied(tiny_cascade())
    assert pipeline.base.dtype is pipeline.upsampler.dtype is torch.bfloat16  # type: ignore[union-attr]
    made = arrays(pipeline(mask(1), generator=seeded()).images)
    assert 0 < np.abs(made.astype(float) - wanted).mean() < 4
    assert "bfloat16 on cpu" in made_on(pipeline)
    assert numbers_of(made_on(pipeline)) == "bf16"


@bfloat16
def test_a_cast_network_keeps_its_mark_until_its_weights_change() -> None:
    wanted = weights_mark(tiny_cascade())
    pipeline = Computing("cpu", "bf16", "torch").applied(tiny_cascade())
    assert weights_mark(pipeline) == wanted
    with torch.no_grad():
        next(pipeline.upsampler.parameters()).mul_(2)  # type: ignore[union-attr]
    base, upsampler = weights_mark(pipeline).split()
    assert base == wanted.split()[0]
    assert upsampler != wanted.split()[1]
    next(pipeline.base.parameters()).data.mul_(2)  # as peft merges adapters
    assert weights_mark(pipeline).split()[0] != base


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_an_engine_leaves_the_weights_as_they_are_and_may_be_exact() -> None:
    pipeline = Computing("cpu", "fp32", "openvino").applied(tiny_cascade())
    assert pipeline.base.dtype is torch.float32
    assert "f32, float32" in made_on(pipeline)
    assert copy.deepcopy(pipeline.engine).described() == pipeline.engine.described()
    sent = pickle.loads(pickle.dumps(pipeline))  # as to another process
    assert sent.engine.described() == pipeline.engine.described()
    assert Computing("cpu", "fp32", "auto").applied(tiny_cascade()).engine.name == "torch"  # no faster than torch


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_a_baseline_alone_stays_with_torch_and_its_images_say_so() -> None:
    pipeline = baseline_pipeline(NOISELESS).use_engine("openvino")
    assert pipeline.engine.name == "torch"
    assert "openvino" not in made_on(pipeline)


def test_compiling_and_an_engine_are_one_too_many() -> None:
    with pytest.raises(UserError, match="leave compile out, or give engine torch"):
        Computing("cpu", engine="openvino", compile=True).check()


def test_repeated_blocks_are_compiled_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call.__self__) or call)
    pipeline = Computing("cpu", compile=True).applied(tiny_cascade())
    assert pipeline.engine.name == "torch"
    kinds = {type(block).__name__ for block in compiled}
    assert kinds == {"ResnetBlock2D", "Attention"}
    assert compiled == [*repeated_blocks(pipeline.base), *repeated_blocks(pipeline.upsampler)]  # type: ignore[arg-type]


def test_what_is_compiled_keeps_its_names_and_its_copies_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_cascade().base
    names = list(base.state_dict())
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *given, **named: call(*given, **named))
    assert not is_compiled(base)
    assert compile_blocks(base) == len(repeated_blocks(base)) > 0
    assert is_compiled(base)
    assert list(base.state_dict()) == names
    assert repeated_blocks(base)[0]._compiled_call_impl is not None
    assert repeated_blocks(copy.deepcopy(base))[0]._compiled_call_impl is None


def test_what_torch_cannot_compile_names_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where a process was killed that wrote there."""
    failed = BackendCompilerFailed.__new__(BackendCompilerFailed)
    failed.inner_exception = OSError("file too short")

    def fails(*_: object, **__: object) -> None:
        raise failed

    monkeypatch.setattr(torch, "compile", lambda call, **_: fails)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pipeline = tiny_cascade()
    compile_blocks(pipeline.base)
    with pytest.raises(UserError, match=rf"torch\.compile failed \(OSError\): .*; remove {tmp_path}, or leave "):
        pipeline(mask(1), steps=1)


@bfloat16
def test_on_the_command_line_and_again(tmp_path: Path) -> None:
    tiny_cascade().save_pretrained(tmp_path / "model")
    mask(1).save(tmp_path / "mask.png")
    line = ["translate", str(tmp_path / "mask.png"), "--model", str(tmp_path / "model"), "--num", "1", "--steps", "2"]
    result = CliRunner().invoke(
        app, [*line, "--device", "cpu", "--dtype", "bf16", "--engine", "torch", "--out", f"{tmp_path}/a"]
    )
    assert result.exit_code == 0, result.output
    again = ["translate", "--like", f"{tmp_path}/a/mask_0.png", "--device", "cpu", "--out", f"{tmp_path}/b"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (tmp_path / "a" / "mask_0.png").read_bytes() == (tmp_path / "b" / "mask_0.png").read_bytes()
    for dtype, said in (("fp32", "generated in bf16 (dtype), but fp32 is requested; add overwrite"), ("bf16", None)):
        result = CliRunner().invoke(
            app, [*line, "--device", "cpu", "--dtype", dtype, "--engine", "torch", "--out", f"{tmp_path}/a"]
        )
        assert (said or "") in str(result.exception or "")
        assert ("0 images made, 1 kept" in result.output) == (said is None)


@pytest.mark.parametrize("command", [["translate", "x.png"], ["edit", "x.png", "--to", "y.png"]])
def test_a_type_that_a_cpu_does_not_compute_in_is_refused_before_a_model_is_loaded(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PITIPipeline, "from_pretrained", None)
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--dtype", "fp16"])
    assert isinstance(result.exception, UserError)
    assert "CPUs do not support float16" in str(result.exception)
