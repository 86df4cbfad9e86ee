"""The stage `upsample`: small images, losses on x̂₀, two optimisers, and the run's files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from piti.checkpoints.folder import ModelFolder
from piti.models import Translator
from piti.training import Recipe, plan, train
from piti.training.loop import Trainer
from tests.conftest import TINY_MODEL, make_tiny_data
from tests.training.stopping import train_and_stop
from tests.training.upsamplers import MODEL, PLAIN, STAGE, WEIGHTS, rows, upsampler_recipe


def test_a_run_leaves_an_upsampler_metrics_and_previews(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    preview = {"every": 4, "count": 2, "steps": 2}
    model = train(upsampler_recipe(tiny_data, features, log_every=1, preview=preview), tmp_path / "run")
    upsampler = Translator.from_pretrained(model / "upsampler")
    assert (upsampler.low_res, upsampler.scale, upsampler.encoder) == (16, 2, None)
    logged = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert all(row["perceptual"] > 0 for row in logged)
    assert ["adversarial" in row for row in logged] == [False, False, True, True, True, True]
    assert ["discriminator" in row for row in logged] == ["adversarial" in row for row in logged]
    weighted = logged[0]["simple"] + logged[0]["vb"] + 0.01 * logged[0]["perceptual"]
    assert logged[0]["loss"] == pytest.approx(weighted, rel=1e-4)
    picture = Image.open(tmp_path / "run/previews/step-00000004.png")
    assert picture.size == (2 * 196 + 4, 3 * 196 + 4)  # small image, sample and photograph for two pairs, enlarged


def test_losses_that_begin_after_the_last_step_are_noted(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    late, one = {"after": 2, "noise": [0.0, 1.0]}, {"steps": 2, "perceptual": {"after": 1, "noise": [0.0, 1.0]}}
    recipe = upsampler_recipe(tiny_data, features, stages=[STAGE | one | {"adversarial": late}])
    note = "no effect within its 2 steps: adversarial (lower 'after')"
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run")}
    assert rows["stage upsample"].endswith(f"; {note}")
    said = io.StringIO()
    train(recipe, tmp_path / "run", console=Console(file=said, width=200))
    assert f"stage 'upsample': {note}" in said.getvalue()


def test_both_networks_learn_and_the_perceptual_one_does_not(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    step = Trainer.train_step

    def watched(self: Trainer, *args: Any) -> Any:
        result = step(self, *args)
        state = {f"d.{k}": v.clone() for k, v in self.objective.discriminator.state_dict().items()}  # type: ignore[union-attr]
        state |= {f"g.{k}": v.clone() for k, v in self.translator.state_dict().items()}
        state |= {f"p.{k}": v.clone() for k, v in self.run.perceptual.state_dict().items()}  # type: ignore[union-attr]
        assert all(p.grad is None for p in self.run.perceptual.parameters())  # type: ignore[union-attr]
        assert all(p.grad is None for p in self.objective.discriminator.parameters())  # type: ignore[union-attr]
        seen.append(state)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        train(upsampler_recipe(tiny_data, features), tmp_path / "run")

    def moved(a: int, b: int, which: str) -> bool:
        return any(not torch.equal(seen[a][k], seen[b][k]) for k in seen[a] if k.startswith(which))

    assert moved(0, 1, "g.")
    assert not moved(0, 1, "d.")  # the adversary waits for two steps
    assert moved(1, 2, "d.")
    assert moved(4, 5, "d.")
    assert not moved(0, 5, "p.")


@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "wgan_gp"])
def test_every_adversarial_loss_trains(tiny_data: Path, tmp_path: Path, features: Any, kind: str) -> None:
    stage = STAGE | {"adversarial": {"kind": kind, "after": 0, "noise": [0.0, 1.0]}, "steps": 2}
    train(upsampler_recipe(tiny_data, features, stages=[stage], log_every=1, precision="bf16"), tmp_path / "run")
    logged = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert len(logged) == 2
    for row in logged:  # what is not finite would be null
        assert isinstance(row["discriminator"], float)
        assert row["discriminator_grad_norm"] > 0
        assert row["grad_norm"] > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, features: Any) -> tuple[Recipe, Path]:
    """A recipe of two stages, the second with an adversary that acts from step 5 on, and its run to step 6."""
    folder = tmp_path_factory.mktemp("whole")
    stages = [PLAIN | {"steps": 2}, STAGE | {"steps": 4}]
    recipe = upsampler_recipe(make_tiny_data(folder), features, stages=stages, accumulation=2, log_every=1)
    train(recipe, folder / "whole")
    return recipe, folder / "whole"


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_resumed_is_as_if_never_stopped(whole: tuple[Recipe, Path], tmp_path: Path, stop_after: int) -> None:
    """Stopped between the stages, before the adversary acts and while it learns."""
    recipe, uncut = whole
    train_and_stop(recipe, tmp_path / "parts", stop_after)
    train(recipe, tmp_path / "parts", resume=True)
    whole_weights, parts = load_file(uncut / WEIGHTS), load_file(tmp_path / "parts" / WEIGHTS)
    assert all(torch.equal(whole_weights[key], parts[key]) for key in whole_weights)
    for name in ("model_1.safetensors", "optimizer_1.bin"):  # the discriminator and its optimiser
        a, b = (run / "checkpoints/step-00000006" / name for run in (uncut, tmp_path / "parts"))
        assert a.is_file()
        assert _tensors(a) == _tensors(b)


def _tensors(path: Path) -> list[Any]:
    values = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["state"]
    return [
        {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
        if isinstance(entry, dict)
        else entry.tolist()
        for _, entry in sorted(values.items())
    ]


def test_the_range_of_noise_decides_which_rows_are_judged(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    from piti.training import adversarial

    seen = []
    real = adversarial.acts_at

    def watched(t: torch.Tensor, steps: int, share: tuple[float, float]) -> torch.Tensor:
        rows = real(t, steps, share)
        seen.append((t, rows))
        return rows

    stage = STAGE | {"perceptual": {"noise": [0.25, 0.5], "after": 0}, "adversarial": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "acts_at", watched)
        train(upsampler_recipe(tiny_data, features, stages=[stage]), tmp_path / "run")
    batches = [(t, rows) for t, rows in seen if len(t) == 4]  # the recipe counts all timesteps beforehand
    assert len(batches) == 6
    for t, judged in batches:
        assert judged.tolist() == [250 <= int(x) < 500 for x in t]
        assert judged.any()


def test_the_gradient_penalty_is_exact_whatever_the_precision(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    from piti.training import adversarial

    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    inside = [False]
    penalty, conv2d = adversarial.gradient_penalty, torch.nn.functional.conv2d

    def convolved(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = conv2d(*args, **kwargs)
        dtypes[inside[0]].add(out.dtype)
        return out

    def watched(*args: Any) -> torch.Tensor:
        inside[0] = True
        value = penalty(*args)
        inside[0] = False
        return value

    stage = STAGE | {"adversarial": {"kind": "wgan_gp", "after": 0, "noise": [0.0, 1.0]}, "steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adversarial, "gradient_penalty", watched)
        patch.setattr(torch.nn.functional, "conv2d", convolved)
        train(upsampler_recipe(tiny_data, features, stages=[stage], precision="bf16"), tmp_path / "run")
    assert dtypes[True] == {torch.float32}
    assert torch.bfloat16 in dtypes[False]


def test_the_condition_reaches_an_upsampler_through_its_own_encoder(
    tiny_data: Path, tmp_path: Path, features: Any
) -> None:
    model = TINY_MODEL | {"image_size": 32, "low_res": 16, "encoder": TINY_MODEL["encoder"] | {"size": 32}}  # type: ignore[operator]
    recipe = upsampler_recipe(tiny_data, features, model=model, condition={"kind": "mask"}, condition_dropout=0.2)
    recipe = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"trains": ("encoder", "unet")}),)}
    )
    folder = train(recipe, tmp_path / "run")
    upsampler = Translator.from_pretrained(folder / "upsampler").eval()
    x, t, small = torch.randn(1, 3, 32, 32), torch.tensor([500]), torch.randn(1, 3, 16, 16)
    a, b = (
        upsampler(x, t, condition, small).output
        for condition in torch.eye(3).view(3, 1, 3, 1, 1).expand(-1, -1, -1, 32, 32)[:2]
    )
    assert not torch.equal(a, b)


def test_a_preconditioned_upsampler_knows_its_noise(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    schedule = {"prediction": "sample", "betas": "linear"}
    changes = {"model": MODEL | {"detail": 0.2}, "schedule": schedule, "loss": {"weighting": "detail"}}
    folder = train(upsampler_recipe(tiny_data, features, stages=[PLAIN], **changes), tmp_path / "run")
    upsampler, scheduler = ModelFolder.open(folder).load("upsampler", torch.float32)
    assert upsampler.preconditioning is not None
    alphas_cumprod = scheduler.alphas_cumprod.double()
    expected = 0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()
    torch.testing.assert_close(upsampler.preconditioning.log_noise.double(), expected, atol=1e-3, rtol=1e-4)
