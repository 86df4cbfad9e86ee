"""Upsamplers beyond the paper: large conditions, heads on features, generated images, all losses at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from piti.conditions import MaskCondition
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.data import DataError
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RunError, read_recipe, train
from piti.training.adversarial import ImageLosses, Predicted, _looked_at
from piti.training.losses import PerceptualLossSpec
from piti.training.objectives import DiffusionObjective
from piti.training.preview import Validation
from piti.training.stages import Stage
from tests.training.stopping import train_and_stop
from tests.training.upsamplers import MODEL, WEIGHTS, rows, upsampler_recipe

ALIGNED = {
    "image_size": 32,
    "low_res": 16,
    "patch_size": 2,
    "aligned": {"size": 32, "channels": [4, 8, 8]},
    "head": {"channels": [8], "layers": 0},
    "learned_variance": False,
    "detail": 0.2,
    "unet": MODEL["unet"],
}
MIXED = {
    "name": "adversarial",
    "trains": ["encoder", "unet"],
    "steps": 4,
    "lr": 1e-3,
    "from_noise": 1.0,
    "diffusion": {"weight": 0.0},
    "pixel": {"weight": 1.0},
    "consistency": {"weight": 0.5},
    "perceptual": {"weight": 0.01, "after": 0, "noise": [0.0, 1.0], "jitter": 3},
    "adversarial": {
        "kind": "hinge", "weight": 0.1, "after": 1, "noise": [0.0, 1.0], "augment": ["colour", "shift"], "r1": 0.1,
    },
}  # fmt: skip


def mixed_recipe(root: Path, features: dict[str, Any], generated: Path | None, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "condition": {"kind": "mask"},
        "model": ALIGNED,
        "degradation": None,
        "schedule": {"prediction": "sample"},
        "discriminator": {"channels": [4, 8], "condition": True, "features": features, "feature_width": 8},
        "generated": None if generated is None else {"root": str(generated), "share": 0.5},
        "stages": [MIXED],
        "log_every": 1,
        "preview": {"every": 99, "count": 1, "judged": 1, "steps": 1, "guidance": {"w": 0.0}},
    }
    return upsampler_recipe(root, features, **(values | changes))


def test_an_upsampler_learns_from_all_its_losses_at_once(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path, base: Path
) -> None:
    recipe = mixed_recipe(tiny_data, features, generated, base=str(base))
    model = train(recipe, tmp_path / "run")
    logged = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert all("simple" not in row for row in logged)  # eq. 3 has no weight
    for row in logged[1:]:
        parts = row["pixel"] + 0.5 * row["consistency"] + 0.01 * row["perceptual"] + 0.1 * row["adversarial"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
        assert 0 <= row["discriminator_accuracy"] <= 1
    pipeline = PITIPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    mask = next((tiny_data / "labels").iterdir())
    assert pipeline(mask, steps=2).images[0].size == (40, 32)  # one step of the upsampler, unasked
    assert pipeline(mask, steps=2, upsampler_steps=1, upsampler_sampler="ddim").images[0].size == (40, 32)
    with pytest.raises(UserError, match="27 steps: this upsampler was trained for one step from noise"):
        pipeline(mask, steps=2, upsampler_steps="fast27")


def test_a_mixed_run_resumed_is_as_if_never_stopped(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path
) -> None:
    recipe = mixed_recipe(tiny_data, features, generated)
    train(recipe, tmp_path / "whole")
    train_and_stop(recipe, tmp_path / "parts", 2)
    train(recipe, tmp_path / "parts", resume=True)
    whole, parts = load_file(tmp_path / "whole" / WEIGHTS), load_file(tmp_path / "parts" / WEIGHTS)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    other = shutil.copytree(generated, tmp_path / "other")
    file = next(other.glob("*_0.png"))
    file.rename(file.with_stem(file.stem.removesuffix("0") + "7"))
    with pytest.raises(RunError, match=r"other images in 'generated.root': their names differ"):
        train(mixed_recipe(tiny_data, features, other), tmp_path / "parts", resume=True)


def timesteps_of(tiny_data: Path, tmp_path: Path, features: Any, **stage: Any) -> list[int]:
    seen: list[int] = []
    real = DiffusionObjective._timesteps

    def watched(self: DiffusionObjective, numbers: range, paired: torch.Tensor) -> Any:
        t, counts = real(self, numbers, paired)
        seen.extend(t.tolist())
        return t, counts

    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 10} | stage
    recipe = mixed_recipe(tiny_data, features, None, stages=[plain], batch=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionObjective, "_timesteps", watched)
        train(recipe, tmp_path / "run")
    return seen


def test_a_share_of_samples_begins_from_noise(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    t = timesteps_of(tiny_data, tmp_path, features, from_noise=0.75)
    last = sum(x == 999 for x in t) / len(t)
    assert last == pytest.approx(0.75, abs=0.02)
    others = [x for x in t if x < 999]
    assert min(others) < 40
    assert max(others) > 950
    assert sum(others) / len(others) == pytest.approx(500, abs=40)
    assert {x % 4 for x in others} == {0, 1, 2, 3}  # all of them, and not every fourth


def test_what_knows_the_last_timestep_alone_is_validated_there(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 1}
    seen: dict[float, set[int]] = {}
    for share in (0.5, 1.0):
        real = Validation.loss

        def watched(self: Validation, predict: Any, share: float = share, real: Any = real) -> float:
            seen[share] = set(self.levels)
            return real(self, predict)

        recipe = mixed_recipe(tiny_data, features, None, stages=[plain | {"from_noise": share}])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Validation, "loss", watched)
            train(recipe, tmp_path / f"run-{share}")
    assert seen == {0.5: {62, 187, 312, 437, 562, 687, 812, 937}, 1.0: {999}}


def test_eq_3_acts_in_its_range_with_its_weight(
    tiny_data: Path, tmp_path: Path, features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    over: list[dict[str, float]] = []
    real = DiffusionObjective._equation_3

    def watched(self: DiffusionObjective, *args: Any) -> Any:
        total, metrics = real(self, *args)
        over.append({name: mean.over for name, mean in metrics.items()})
        return total, metrics

    monkeypatch.setattr(DiffusionObjective, "_equation_3", watched)
    stage = {key: MIXED[key] for key in ("name", "trains", "lr")} | {"steps": 1}
    for name, diffusion in (("whole", {}), ("half", {"weight": 0.5}), ("low", {"noise": [0.0, 0.5]})):
        recipe = mixed_recipe(tiny_data, features, None, stages=[stage | {"diffusion": diffusion}])
        train(recipe, tmp_path / name)
    whole, half, low = (rows(tmp_path / name)[0] for name in ("whole", "half", "low"))
    assert half["loss"] == pytest.approx(0.5 * whole["loss"], rel=1e-4)
    assert half["simple"] == pytest.approx(whole["simple"], rel=1e-4)
    assert 0 < low["loss"] < whole["loss"]
    assert [counts["simple"] for counts in over[:2]] == [4, 4]
    assert 0 < over[2]["simple"] < 4
    assert all(counts["vb"] == counts["simple"] for counts in over)  # so that a mean over batches counts rows alike


def test_a_batch_without_a_row_of_eq_3_learns_nothing_from_it(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    """And says the same things as one with rows, which other processes may have."""
    stage = {key: MIXED[key] for key in ("name", "trains", "lr")} | {"steps": 3, "diffusion": {"noise": [0.0, 0.01]}}
    recipe = mixed_recipe(tiny_data, features, None, stages=[stage], batch=2)
    names, real = [], DiffusionObjective.losses

    def watched(self: DiffusionObjective, *args: Any) -> Any:
        found = real(self, *args)
        names.append((list(found.metrics), found.total.item()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionObjective, "losses", watched)
        train(recipe, tmp_path / "run")
    assert [kinds for kinds, _ in names] == [["simple", "vb"]] * 3
    assert 0.0 in [total for _, total in names]
    assert all("simple" not in row for row in rows(tmp_path / "run") if row.get("loss") == 0)


def test_what_a_loss_clips_gets_no_gradient_beyond_the_range() -> None:
    x0_hat = torch.tensor([-1.5, 0.5]).view(2, 1, 1, 1).requires_grad_()
    for clip, gradient in ((True, [0.0, 1.0]), (False, [1.0, 1.0])):
        (found,) = torch.autograd.grad(_looked_at(x0_hat, PerceptualLossSpec(clip=clip)).sum(), x0_hat)
        assert found.flatten().tolist() == gradient
    assert _looked_at(x0_hat, PerceptualLossSpec(clip=True)).min() == -1


def test_a_stage_drops_as_many_conditions_as_it_says(
    tiny_data: Path, tmp_path: Path, features: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    real = MaskCondition.dropped

    def watched(self: MaskCondition, encoded: Any, uniform: Any, share: float) -> Any:
        shares.append(share)
        return real(self, encoded, uniform, share)

    monkeypatch.setattr(MaskCondition, "dropped", watched)
    plain = {key: MIXED[key] for key in ("trains", "lr")} | {"steps": 1}
    stages = [plain | {"name": "own", "condition_dropout": 0.3}, plain | {"name": "recipe's"}]
    recipe = mixed_recipe(tiny_data, features, None, stages=stages, condition_dropout=0.1)
    train(recipe, tmp_path / "run")
    assert [share for share in shares if share] == [0.3, 0.1]


def test_the_released_upsamplers_losses() -> None:
    """As in its code: all t, on what is clipped, 0.004 and 0.01, from step 100 on."""
    recipe = read_recipe("released-upsampler")
    (stage,) = recipe.stages
    perceptual, adversarial = stage.perceptual, stage.adversarial
    assert perceptual is not None
    assert adversarial is not None
    assert (perceptual.weight, perceptual.error, perceptual.noise, perceptual.after) == (0.004, "squared", (0, 1), 100)
    assert (adversarial.weight, adversarial.kind, adversarial.noise, adversarial.lr) == (0.01, "wgan_gp", (0, 1), 1e-5)
    assert perceptual.clip
    assert adversarial.clip
    assert recipe.perceptual.chosen_layers == (7,)  # conv2_2
    assert [s.condition_dropout for s in read_recipe("released-base").stages] == [0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"discriminator": {"features": {"network": "vgg16", "layers": [30]}}}, "'data.size' 16 is less than the"),
        ({"data": {"condition_size": 16}}, "'model.aligned' needs both"),
        ({"model": ALIGNED | {"aligned": {"size": 64, "channels": [4]}}}, "'aligned.size' 64 is not 'image_size' 32"),
        ({"condition": {"kind": "none"}}, "'model.encoder' null"),
        ({"stages": [MIXED | {"adversarial": {"kind": "wgan_gp", "noise": [0.0, 1.0]}}]}, "mixes each image with its"),
        (
            {"stages": [MIXED | {"from_noise": 0.5, "adversarial": {"kind": "hinge", "noise": [0, 0.9]}}]},
            "must reach 1",
        ),
        (
            {"stages": [MIXED | {"pixel": {"noise": [0, 0.5]}}]},
            r"'pixel.noise' \[0.0, 0.5\] contains none of .* 999 of 1000",
        ),
        ({"stages": [MIXED | {"diffusion": {"noise": [0, 0.5]}}]}, "'diffusion.noise' .* contains none of"),
        ({"stages": [MIXED | {"adversarial": {"augment": ["colors"]}}]}, "did you mean 'colour'"),
    ],
)
def test_recipes_that_cannot_be(tiny_data: Path, features: Any, changes: dict[str, Any], says: str) -> None:
    data = {"root": str(tiny_data), "size": 32, "crop_scale": [1.0, 1.0]} | changes.get("data", {})
    if "features" in changes.get("discriminator", {}):
        data["size"] = 16
    with pytest.raises(SpecError, match=says):
        mixed_recipe(tiny_data, features, Path("generated"), **(changes | {"data": data}))


@pytest.mark.parametrize(("pool", "wanted"), [(1, 0.5), (2, 0.0)])
def test_a_pooled_consistency_lets_a_grid_of_the_small_image_go(pool: int, wanted: float) -> None:
    values = {"name": "x", "trains": ["unet"], "steps": 1, "lr": 1e-3, "consistency": {"pool": pool}}
    losses = ImageLosses(Stage.model_validate(values), 1000, Accelerator(cpu=True), seed=0, clean=True)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    grid = (board - 0.5).expand(1, 3, 16, 16)
    grey, always = torch.zeros(1, 3, 32, 32), torch.ones(1, dtype=torch.bool)
    found = losses.of(Predicted(grey, grey, torch.tensor([999]), range(1), grid, torch.empty(1, 0, 0, 0), always), 0)
    assert found.total.item() == pytest.approx(wanted, abs=1e-6)


def test_jitter_is_each_samples_own_however_a_batch_is_divided(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "perceptual")} | {"steps": 1}
    for name, batch, parts in (("whole", 4, 1), ("parts", 1, 4)):
        recipe = mixed_recipe(tiny_data, features, None, stages=[plain], batch=batch, accumulation=parts)
        train(recipe, tmp_path / name)
    whole, parts = (rows(tmp_path / name)[0] for name in ("whole", "parts"))
    assert parts["perceptual"] == pytest.approx(whole["perceptual"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_a_discriminator_learns_the_same_however_a_batch_with_generated_images_is_divided(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path
) -> None:
    adversarial = {"kind": "hinge", "weight": 0.1, "after": 0, "noise": [0.0, 1.0]}
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "from_noise")} | {
        "steps": 1,
        "adversarial": adversarial,
    }
    for name, batch, parts in (("whole", 6, 1), ("parts", 1, 6)):
        recipe = mixed_recipe(
            tiny_data, features, generated, stages=[plain], batch=batch, accumulation=parts,
            discriminator={"channels": [4, 8], "norm": "none"},
        )  # fmt: skip
        train(recipe, tmp_path / name)
    whole, parts = (rows(tmp_path / name)[0] for name in ("whole", "parts"))
    assert parts["discriminator"] == pytest.approx(whole["discriminator"], rel=1e-5)


def test_consistency_needs_clean_small_images(tiny_data: Path, features: Any) -> None:
    with pytest.raises(SpecError, match="'consistency' compares with clean small images"):
        mixed_recipe(tiny_data, features, None, degradation={})


def test_generated_images_of_another_condition_end_before_the_first_step(
    tiny_data: Path, tmp_path: Path, features: Any, generated: Path
) -> None:
    classes = json.loads((tiny_data / "classes.json").read_text())
    classes["classes"][0]["name"] = "ceiling"
    (tiny_data / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(DataError, match="another condition than this recipe's"):
        train(mixed_recipe(tiny_data, features, generated), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_upsampler_with_a_condition_needs_one(tiny_data: Path, tmp_path: Path, features: Any) -> None:
    plain = {key: MIXED[key] for key in ("name", "trains", "lr", "pixel")} | {"steps": 1}
    model = train(mixed_recipe(tiny_data, features, None, stages=[plain]), tmp_path / "run")
    upsampler = Translator.from_pretrained(model / "upsampler")
    with pytest.raises(UserError, match=r"expects a condition of shape \[B, 3, H, W\]"):
        upsampler(torch.zeros(1, 3, 32, 32), torch.tensor(5), torch.zeros(1, 0, 0, 0), torch.zeros(1, 3, 16, 16))
