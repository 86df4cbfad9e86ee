"""Engines: selection, results, and caching."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.diffusion.schedulers import scheduler_of
from piti.engine import EngineError, TorchEngine, engine_named
from piti.engine.graph import StepGraph, inputs_of, time_embedding
from piti.generation.metadata import made_on
from piti.models import Translator
from piti.pipelines.cascade import Batch, Network
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.pipelines.test_cascade import LINEAR, tiny_cascade
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline

openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
CONVERTED = "converting the %s for openvino, once"


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.square(one.astype(float) - other.astype(float)).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def small_base() -> PITIPipeline:
    """A base of one level, with attention: converting takes as long as a network is deep."""
    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    unet = TINY_MODEL["unet"] | {"channels": [16], "attention": [True]}  # type: ignore[operator]
    base = Translator(encoder_spec=TINY_MODEL["encoder"], unet_spec=unet, image_size=16, patch_size=2)  # type: ignore[arg-type]
    made = PITIPipeline(base.eval(), pipeline.scheduler, pipeline.condition, defaults={"steps": 2})
    made.set_progress_bar_config(disable=True)
    return made


def one_step_cascade() -> PITIPipeline:
    """An upsampler of two levels, with an aligned encoder and a head, as `street`'s."""
    pipeline = small_base()
    torch.manual_seed(2)
    upsampler = Translator(
        unet_spec={"channels": [16, 32], "attention": [False] * 2, "layers": 1, "token_width": None, "norm_groups": 8},
        aligned_spec={"in_channels": pipeline.condition.channels, "size": 32, "channels": [8, 16, 24, 32]},
        head_spec={"channels": [12, 8], "layers": 1, "enlarge": "bilinear"},
        image_size=32, patch_size=4, low_res=16, learned_variance=False, one_step=True,
    ).eval()  # fmt: skip
    made = PITIPipeline(
        pipeline.base, pipeline.scheduler, pipeline.condition, upsampler, scheduler_of(LINEAR), {"steps": 2}
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, with what earlier tests converted."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))


def conversions(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.msg == CONVERTED for record in caplog.records)


@pytest.mark.parametrize("cascade", [tiny_cascade, lambda: tiny_cascade(conditional=True), one_step_cascade])
def test_the_graph_is_the_step(cascade: object) -> None:
    pipeline = cascade()  # type: ignore[operator]
    for network in (pipeline.base_network(), pipeline.upsampler_network()):
        translator, size = network.translator, network.translator.image_size
        torch.manual_seed(0)
        batch = [pipeline.prepare(mask(k)) for k in (1, 2)]
        tokens, _ = network.encode(Batch(batch, [0, 1], []), with_null=False)
        seen = torch.randn(2, 3 if translator.low_res is None else 6, size, size)
        t = torch.tensor([10, 900])
        with torch.no_grad():
            wanted = translator.step(seen, t, tokens)
            graph = StepGraph(translator, len(tokens.residuals or ()), len(tokens.maps or ()) if translator.head else 0)
            made = graph(*inputs_of(translator, seen, time_embedding(translator, seen, t, tokens), tokens))
        assert torch.equal(made, wanted)


@openvino
class TestOpenVino:
    def test_images_are_those_of_torch_in_every_shape(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        pipeline = one_step_cascade()
        tall = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8), 20)[:, None].repeat(30, axis=1))
        asked = [[mask(1), mask(2)], [tall]]

        def made() -> list[np.ndarray]:
            return [arrays(pipeline(masks, generator=seeded(), guidance=1.5).images) for masks in asked]

        wanted = made()
        assert not pipeline.use_engine("openvino").engine_ready()
        for ours, theirs in zip(made(), wanted, strict=True):
            assert psnr(ours, theirs) > 40
        assert conversions(caplog) == 2
        assert pipeline.engine_ready()
        assert "openvino" in made_on(pipeline)
        again = one_step_cascade().use_engine("openvino")
        assert again.engine_ready()
        again.warm()
        assert conversions(caplog) == 2  # the cache had both
        again.use_engine("torch")
        assert np.array_equal(arrays(again(tall, generator=seeded(), guidance=1.5).images), wanted[1])

    def test_a_full_disk_keeps_nothing_and_ends_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(model: object, path: Path, **options: object) -> None:
            path.write_text("<a part of it")
            raise RuntimeError("basic_ios::clear: iostream error")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("openvino.save_model", full)
        assert small_base().use_engine("openvino")(mask(1), generator=seeded()).images
        assert "writing failed (basic_ios" in caplog.text
        assert f"check {tmp_path / 'piti/openvino'} and its free space, or set XDG_CACHE_HOME" in caplog.text
        assert not list(tmp_path.rglob("step.xml"))

    def test_other_weights_are_other_networks_and_where_nothing_can_be_kept_they_work_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        pipeline = small_base().use_engine("openvino")
        before = arrays(pipeline(mask(1), generator=seeded()).images)
        assert "cannot be cached" not in caplog.text
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        bias = pipeline.base.unet.conv_out.bias
        assert bias is not None
        with torch.no_grad():
            bias += 0.5
        after = arrays(pipeline(mask(1), generator=seeded()).images)
        assert f"check {tmp_path / 'file/piti/openvino'} and its free space, or set XDG_CACHE_HOME" in caplog.text
        assert "give another" not in caplog.text
        assert np.abs(before - after).max() > 5
        pipeline.use_engine("torch")
        assert psnr(arrays(pipeline(mask(1), generator=seeded()).images), after) > 40
        assert copy.deepcopy(pipeline).engine.name == "torch"

    def test_what_is_damaged_in_the_cache_is_made_again(
        self, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        small_base().use_engine("openvino").warm()
        pipeline = small_base().use_engine("openvino")
        before = conversions(caplog)
        for damage in ("half", "foreign", "nonsense", "cut"):
            own = tmp_path / damage
            shutil.copytree(kept, own)
            monkeypatch.setenv("XDG_CACHE_HOME", str(own))
            for folder in (own / "piti" / "openvino").iterdir():
                if damage == "half":
                    (folder / "about.json").unlink()
                elif damage == "foreign":
                    (folder / "step.xml").write_text("<net/>")
                elif damage == "nonsense":
                    (folder / "about.json").write_text("[1]")
                else:
                    (folder / "step.bin").write_bytes((folder / "step.bin").read_bytes()[:-8])
            assert not pipeline.engine_ready(), damage
        network = pipeline.base_network()
        assert isinstance(network, Network)
        network.warm()
        assert conversions(caplog) == before + 1
        assert pipeline.engine.ready(network.translator)
        assert small_base().use_engine("openvino").engine.ready(network.translator)
        assert not list(own.rglob("*.partial"))

    def test_adapters_of_pefts_may_be_switched_off(self) -> None:
        peft = pytest.importorskip("peft")
        pipeline = small_base()
        before = arrays(pipeline(mask(1), generator=seeded()).images)
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipeline.use_engine("openvino").base.unet.add_adapter(config)
        assert np.abs(arrays(pipeline(mask(1), generator=seeded()).images) - before).max() > 5
        pipeline.base.unet.disable_lora()
        assert np.array_equal(arrays(pipeline(mask(1), generator=seeded()).images), before)

    def test_adapters_of_pefts_that_are_merged_count(self) -> None:
        peft = pytest.importorskip("peft")
        pipeline = small_base().use_engine("openvino")
        before = arrays(pipeline(mask(1), generator=seeded()).images)
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipeline.base.unet.add_adapter(config)
        adapted = arrays(pipeline(mask(1), generator=seeded()).images)
        pipeline.base.unet.fuse_lora()
        pipeline.base.unet.unload_lora()
        merged = arrays(pipeline(mask(1), generator=seeded()).images)
        assert psnr(merged, adapted) > 40 > psnr(merged, before)

    def test_edits_are_exact(self) -> None:
        assert tiny_cascade().use_engine("openvino").base_network().exact().step is None  # type: ignore[union-attr]

    def test_on_the_command_line_and_again(self, tmp_path: Path) -> None:
        one_step_cascade().save_pretrained(tmp_path / "model")
        mask(1).save(tmp_path / "mask.png")
        line = ["translate", str(tmp_path / "mask.png"), "--model", str(tmp_path / "model"), "--num", "1"]
        result = CliRunner().invoke(app, [*line, "--engine", "openvino", "--out", str(tmp_path / "a")])
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / "a" / "mask_0.png") as image:
            assert "openvino" in image.text["piti:made_on"]  # type: ignore[attr-defined]
        again = ["translate", "--like", str(tmp_path / "a" / "mask_0.png"), "--out", str(tmp_path / "b")]
        result = CliRunner().invoke(app, again)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "a" / "mask_0.png").read_bytes() == (tmp_path / "b" / "mask_0.png").read_bytes()


class TestChoice:
    def test_torch_is_itself(self) -> None:
        engine = engine_named("torch")
        assert isinstance(engine, TorchEngine)
        base = tiny_cascade().base
        assert isinstance(base, Translator)
        assert engine.step(base) is None

    def test_auto_never_fails(self) -> None:
        assert engine_named("auto").name in ("torch", "openvino")
        assert engine_named("auto", "meta").name == "torch"

    @pytest.mark.parametrize(
        ("name", "dtype", "can", "fast", "described"),
        [
            ("auto", "auto", True, True, "bf16"),
            ("auto", "auto", True, False, ""),  # torch
            ("auto", "auto", False, False, ""),
            ("auto", "fp32", True, True, ""),
            ("auto", "bf16", True, False, "bf16"),
            ("openvino", "auto", True, False, "f32"),
            ("openvino", "bf16", True, False, "bf16"),
            ("openvino", "bf16", False, False, "f32"),
            ("openvino", "fp32", True, True, "f32"),
        ],
    )
    def test_what_the_processor_is_fast_in(
        self, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, can: bool, fast: bool, described: str
    ) -> None:
        pytest.importorskip("openvino")
        monkeypatch.setattr("piti.engine.openvino.computes_bfloat16", lambda: can)
        monkeypatch.setattr("piti.engine.choice.fast_in_bfloat16", lambda device: fast)
        assert engine_named(name, "cpu", dtype).described().split(" ")[-1] == described

    def test_a_name_that_is_unknown(self) -> None:
        with pytest.raises(EngineError, match="openvino"):
            engine_named("openvin")

    def test_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert engine_named("auto").name == "torch"
        with pytest.raises(EngineError, match=r"install 'piti\[cpu\]'"):
            engine_named("openvino")

    def test_another_device(self) -> None:
        with pytest.raises(EngineError, match="runs only on CPUs"):
            engine_named("openvino", "cuda")

    def test_the_command_line_says_so(self) -> None:
        result = CliRunner().invoke(app, ["translate", "x.png", "--engine", "onnx"])
        assert isinstance(result.exception, EngineError)
