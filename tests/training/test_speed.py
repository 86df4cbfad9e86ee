"""Training performance on GPUs, tested on a CPU: no synchronisation, measurements are fetched when logged, losses are
scaled for fp16, blocks are compiled."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from piti.cli.app import app
from piti.cli.train import with_speed
from piti.core.errors import UserError
from piti.core.seeding import noise_for
from piti.data.batches import BatchStream, TrainingBatch
from piti.training import Recipe, read_recipe, train
from piti.training import distributed as accelerators
from piti.training.build import build_condition, build_discriminator, build_network, build_perceptual, open_data
from piti.training.distributed import build_accelerator, quick_attention
from piti.training.ema import shard
from piti.training.loop import Trainer
from piti.training.metrics import Ledger, Mean, sum_of
from piti.training.objectives import DiffusionObjective
from piti.training.recipe import RecipeError
from piti.training.stages import OptimizerSpec, Stage, build_optimizer, lay_out_moments
from tests.conftest import BRIEF
from tests.training.runs import recipe_of, shallow
from tests.training.upsamplers import STAGE, WEIGHTS, rows, upsampler_recipe

META = torch.device("meta")


def on_meta(recipe: Recipe) -> tuple[DiffusionObjective, nn.Module, TrainingBatch]:
    """An objective whose device has no values to read, its network, and a batch."""
    condition = build_condition(recipe)
    accelerator: Any = SimpleNamespace(
        device=META,
        autocast=contextlib.nullcontext,
        prepare=lambda *given: given,
        scaler=None,
        distributed_type="NO",
        mixed_precision="no",
    )
    discriminator = build_discriminator(recipe, condition)
    objective = DiffusionObjective(recipe, condition, build_perceptual(recipe), accelerator, discriminator)
    objective.begin(recipe.stages[0])
    training, _ = open_data(recipe, condition)
    batch = BatchStream(training, recipe.batch, 0, low_res=objective.low_res)[0]
    return objective, build_network(recipe, condition).to("meta"), batch  # type: ignore[arg-type]


class TestNothingWaitsForTheDevice:
    """On "meta" a value that is read raises an error."""

    def test_eq_3_with_its_bound(self, tiny_data: Path) -> None:
        objective, model, batch = on_meta(recipe_of(tiny_data, model=shallow()))
        found = objective.losses(model, batch, range(len(batch.image)), 0)
        found.total.backward()
        assert found.total.is_meta
        assert all(mean.total.is_meta for mean in found.metrics.values())  # type: ignore[union-attr]

    @pytest.mark.parametrize("noise", [[0.0, 0.75], [0.0, 1.0]])
    def test_losses_on_images_and_the_adversary(self, tiny_data: Path, features: Any, noise: list[float]) -> None:
        losses = {"pixel": {"noise": noise}, "perceptual": {"after": 0, "noise": noise, "jitter": 2}}
        judged = {"after": 0, "noise": noise, "augment": ["colour", "shift"]}
        recipe = upsampler_recipe(tiny_data, features, stages=[STAGE | losses | {"adversarial": judged}])
        objective, model, batch = on_meta(recipe)
        numbers = range(len(batch.image))
        found = objective.losses(model, batch, numbers, 0)
        found.total.backward()
        loss, metrics = objective.discriminator_loss(found.adversarial, numbers)
        loss.backward()
        both = found.metrics | metrics
        assert {"simple", "pixel", "perceptual", "adversarial", "discriminator", "discriminator_accuracy"} <= set(both)
        assert all(mean.total.is_meta for mean in both.values())  # type: ignore[union-attr]

    def test_noise_is_drawn_on_the_device_by_the_samples_number(self) -> None:
        assert noise_for(0, [1, 2], (3,), "cpu").equal(torch.stack([noise_for(0, [n], (3,))[0] for n in (1, 2)]))


class TestMeasured:
    def test_of_several_steps_at_once(self) -> None:
        ledger = Ledger(Accelerator(cpu=True))
        passes = [{"loss": Mean.of(torch.tensor(1.0)), "some": Mean.of(torch.tensor(6.0), 3)}, {"loss": Mean(2.0)}]
        ledger.add(1, ["a"], sum_of(passes))
        ledger.add(2, ["b"], {"loss": Mean.of(torch.tensor(5.0)), "none": Mean.of(torch.tensor(0.0), 0)})
        first, second = ledger.fetched()
        assert (first.step, first.keys, first.here) == (1, ["a"], {"loss": 1.5, "some": 2.0})
        assert second.everywhere == {"loss": 5.0}
        assert ledger.fetched() == []

    def test_what_is_fetched_late_is_the_same_and_is_checked_before_it_is_saved(
        self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stages = [{"name": "joint", "steps": 5}]
        recipe = recipe_of(tiny_data, model=shallow(), stages=stages, **BRIEF | {"log_every": 2})
        train(recipe, tmp_path / "once")
        asked: list[int] = []

        def late(self: Trainer) -> None:
            asked.append(self.state.step)
            if self.ledger._steps and self.ledger._steps[-1][0] == self.state.step:  # the step was taken
                check(self)

        check = Trainer.check
        monkeypatch.setattr(Trainer, "check", late)
        train(recipe, tmp_path / "late")
        logged = [rows(tmp_path / run) for run in ("once", "late")]
        times = {"seconds", "images_per_second", "waiting"}
        once, again = ([{k: v for k, v in row.items() if k not in times} for row in run] for run in logged)
        assert once == again


class TestScaling:
    """fp16 on a GPU scales losses; here a scale is given to a run in float32, where it must change nothing."""

    @pytest.fixture
    def scaled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        build = accelerators.Accelerator

        def with_scale(*given: Any, **named: Any) -> Accelerator:
            accelerator = build(*given, **named)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
            return accelerator

        monkeypatch.setattr(accelerators, "Accelerator", with_scale)

    def recipe(self, tiny_data: Path, features: Any, steps: int = 4) -> Recipe:
        judged = STAGE["adversarial"] | {"after": 1}  # type: ignore[operator]
        stage = STAGE | {"steps": steps, "adversarial": judged}
        keep = {"preview": BRIEF["preview"], "checkpoint": {"every": 2, "keep": 3}, "log_every": 1}
        return upsampler_recipe(tiny_data, features, stages=[stage], precision="no", **keep)

    def test_a_scale_for_each_side_changes_nothing_and_is_resumed(
        self, tiny_data: Path, tmp_path: Path, features: Any, request: pytest.FixtureRequest
    ) -> None:
        recipe = self.recipe(tiny_data, features)
        train(recipe, tmp_path / "plain")
        request.getfixturevalue("scaled")
        train(recipe, tmp_path / "scaled")
        plain, scaled = (load_file(tmp_path / run / WEIGHTS) for run in ("plain", "scaled"))
        for name, value in plain.items():
            torch.testing.assert_close(scaled[name], value, rtol=1e-5, atol=1e-7)
        train(self.recipe(tiny_data, features, 2), tmp_path / "half")
        train(recipe, tmp_path / "half", resume=True)
        for name, value in load_file(tmp_path / "half" / WEIGHTS).items():
            assert torch.equal(scaled[name], value)
        logged = [row for row in rows(tmp_path / "scaled") if "loss" in row]
        same = [row for row in rows(tmp_path / "plain") if "loss" in row]
        for name in ("grad_norm", "discriminator_grad_norm"):
            assert logged[-1][name] == pytest.approx(same[-1][name], rel=1e-4)

    @pytest.mark.usefixtures("scaled")
    def test_an_overflow_of_one_side_skips_its_step_alone(
        self, tiny_data: Path, tmp_path: Path, features: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scales: list[tuple[float, float]] = []
        step = Trainer.train_step

        def watched(self: Trainer, *args: Any) -> None:
            adversary = self.objective.adversary
            assert adversary is not None
            both = [*self.translator.parameters()], [*adversary.bare.parameters()]
            before = [[value.clone() for value in side] for side in both]
            overflow = both[1][0].register_hook(lambda gradient: gradient * torch.inf) if self.state.step == 2 else None
            step(self, *args)
            if overflow is not None:
                overflow.remove()
                assert not all(map(torch.equal, before[0], both[0]))
                assert all(map(torch.equal, before[1], both[1]))
            scales.append((self.accelerator.scaler.get_scale(), self.scaler.get_scale()))  # type: ignore[union-attr]

        monkeypatch.setattr(Trainer, "train_step", watched)
        train(self.recipe(tiny_data, features), tmp_path / "run")
        (made, judged) = zip(*scales, strict=True)
        assert set(made) == {2.0**12}
        assert judged[2] == judged[3] == judged[1] / 2


class TestLayout:
    """On CUDA weights lie channels-last; a checkpoint keeps the layout of the device that wrote it."""

    def test_moments_read_in_another_layout_stay_with_their_weights(self) -> None:
        torch.manual_seed(0)
        weight, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
        made = []
        for layout in (torch.contiguous_format, torch.channels_last):
            parameter = nn.Parameter(weight.clone())
            optimizer = build_optimizer([parameter], Stage(lr=0.1), OptimizerSpec())
            parameter.grad = gradient.clone()
            optimizer.step()
            saved = optimizer.state_dict()
            for name in ("exp_avg", "exp_avg_sq"):
                saved["state"][0][name] = saved["state"][0][name].contiguous(memory_format=layout)
            optimizer.load_state_dict(saved)
            lay_out_moments(optimizer)
            assert optimizer.state[parameter]["exp_avg"].stride() == parameter.stride()
            parameter.grad = -2 * gradient
            optimizer.step()
            made.append(parameter.detach())
        assert torch.equal(*made)

    def test_the_average_lies_as_the_weights_do(self) -> None:
        average, weight = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        placed = shard(average, nn.Parameter(weight))
        assert placed.stride() == weight.stride()
        assert torch.equal(placed, average)
        assert shard(placed, weight) is placed


class TestAttention:
    """On a CPU, in bfloat16, by products of matrices for few places."""

    @pytest.mark.parametrize(
        ("device", "precision", "places", "products"),
        [
            ("cpu", "bf16", 64, True),
            ("cpu", "bf16", 1024, False),
            ("cpu", "no", 64, False),
            ("cuda", "bf16", 64, False),
        ],
    )
    def test_kernel(self, device: str, precision: str, places: int, products: bool) -> None:
        accelerator: Any = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
        with quick_attention(accelerator, places):
            assert torch.backends.cuda.flash_sdp_enabled() != products

    def test_places_of_a_network(self) -> None:
        assert read_recipe("street").model.places == 8**2
        assert read_recipe("full").model.places == 32**2
        assert read_recipe("street-upsampler").model.places == 0
        assert read_recipe("sd15").model.places == 512**2


class TestWhatARecipeAsksFor:
    def test_blocks_are_compiled(self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled: list[str] = []
        monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(type(call.__self__).__name__) or call)
        stages = [{"name": "joint", "steps": 1}]
        train(recipe_of(tiny_data, model=shallow(), stages=stages, compile=True, **BRIEF), tmp_path / "run")
        assert set(compiled) == {"ResnetBlock2D", "Attention"}
        monkeypatch.setattr("piti.core.devices.shutil.which", lambda name: None)
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(UserError, match="needs a C"):
            train(recipe_of(tiny_data, compile=True), tmp_path / "other")

    def test_batches_are_pinned_for_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pinned: list[torch.Size] = []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.shape) or x)
        batch = TrainingBatch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4), ["a", "b"], torch.zeros(2, 3, 2, 2))
        assert batch.pin_memory().keys == batch.keys
        assert len(pinned) == 3

    def test_the_type_of_numbers_on_the_command_line(self, tmp_path: Path) -> None:
        assert with_speed(["lora.rank=2"], "fp32", True) == ["lora.rank=2", "precision='no'", "compile=true"]
        assert with_speed(None, "bf16", False) == ["precision='bf16'"]
        assert with_speed(["precision=no"], "auto", False) == ["precision=no"]
        assert with_speed(None, None, False) == []
        for change, dtype in (("precision=bf16", "bf16"), ("compile = false", None)):
            with pytest.raises(UserError, match="are both given; remove one of them"):
                with_speed([change], dtype, True)
        line = ["train", "street", "--dry-run", "--out", str(tmp_path / "run"), "--dtype", "fp8"]
        result = CliRunner().invoke(app, line)
        assert isinstance(result.exception, UserError)
        assert "is not a dtype" in str(result.exception)

    @pytest.mark.parametrize(("fast", "taken"), [(True, "bf16"), (False, "no")])
    def test_auto_is_what_the_device_is_faster_in(
        self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, taken: str
    ) -> None:
        monkeypatch.setattr("piti.training.distributed.fast_in_bfloat16", lambda device: fast)
        assert read_recipe("street").precision == "auto"
        recipe = recipe_of(
            tiny_data, model=shallow(), stages=[{"name": "joint", "steps": 1}], precision="auto", **BRIEF
        )
        written, found = io.StringIO(), []
        monkeypatch.setattr(
            Trainer, "train_step", lambda self, *_: found.append(self.accelerator.mixed_precision) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path / "run", console=Console(file=written, width=200))
        assert found == [taken]
        assert (
            f"precision auto: {'products in bf16, the rest in float32' if fast else 'float32, in which'}"
            in written.getvalue()
        )
        assert build_accelerator(recipe.model_copy(update={"precision": "no"})).mixed_precision == "no"

    def test_an_adversary_in_fp16_needs_a_gpu_as_everything_in_fp16(
        self, tiny_data: Path, tmp_path: Path, features: Any
    ) -> None:
        with pytest.raises(RecipeError, match="fp16 needs a GPU"):
            train(upsampler_recipe(tiny_data, features, precision="fp16"), tmp_path / "run")
