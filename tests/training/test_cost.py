"""Cost of a run: FLOPs counted manually, activations counted on real tensors, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from piti.checkpoints.lora import LoraSpec, inject
from piti.core.errors import UserError
from piti.models import Translator
from piti.models.encoders import TransformerBlock
from piti.training import Recipe, RecipeError, plan
from piti.training.build import known_condition, translator_config
from piti.training.cost import (
    DEFAULT_GPU,
    GIB,
    GPUS,
    Cost,
    StageCost,
    cost_of,
    count_pass,
    gpu_named,
    held_bytes,
)
from piti.training.flops import most_held
from piti.training.plan import cost_rows
from piti.training.stages import OptimizerSpec
from tests.conftest import tiny_recipe

ADAPT_AND_JOINT = [{"name": "adapt", "trains": ["encoder"], "steps": 3}, {"name": "joint", "steps": 2}]
UPSAMPLER = {
    "condition": {"kind": "none"},
    "model": {
        "image_size": 32,
        "low_res": 8,
        "encoder": None,
        "unet": {"channels": [8, 16], "layers": 1, "attention": [False, False], "token_width": None, "norm_groups": 4},
    },
    "data": {"size": 32},
    "discriminator": {"channels": [8, 16], "norm": "spectral"},
    "perceptual": {"network": "squeezenet1_1", "layers": [1]},
}  # fmt: skip


def recipe_of(**changes: object) -> Recipe:
    values = tiny_recipe(Path())
    values["data"] = {"size": 16}
    return Recipe.parse(values | changes, "test")


def cost(recipe: Recipe) -> Cost:
    return cost_of(recipe, translator_config(recipe.model, None))


def bare() -> Translator:
    """The tiny recipe's translator on the meta device."""
    config = translator_config(recipe_of().model, None)
    with torch.device("meta"):
        return Translator(**config)


@pytest.fixture(scope="module")
def exact() -> Cost:
    """Of two stages, in float32."""
    return cost(recipe_of(stages=ADAPT_AND_JOINT))


def of_module(module: Callable[[], nn.Module], *shape: int, low: torch.dtype | None = None) -> tuple[int, int, int]:
    """FLOPs forward and of all, and bytes kept, of a module whose input needs a gradient."""
    with torch.device("meta"):
        built = module()

    def run(batch: int) -> Tensor:
        return built(torch.empty(batch, *shape, device="meta", requires_grad=True)).sum()

    found = count_pass(run, low)
    return found.forward, found.flops, found.activations


def test_a_convolution_and_a_linear_layer_by_hand() -> None:
    # 2 k² c_in c_out for every pixel of the output; what is kept is the input
    conv = 2 * 9 * 4 * 8 * 16 * 16
    assert of_module(lambda: nn.Conv2d(4, 8, 3, padding=1), 4, 16, 16) == (conv, 3 * conv, 4 * 4 * 16 * 16)
    strided = 2 * 9 * 4 * 8 * 8 * 8
    assert of_module(lambda: nn.Conv2d(4, 8, 3, 2, 1), 4, 16, 16)[:2] == (strided, 3 * strided)
    linear = 2 * 5 * 32 * 64
    assert of_module(lambda: nn.Linear(32, 64), 5, 32) == (linear, 3 * linear, 4 * 5 * 32)
    assert of_module(lambda: nn.Linear(32, 64), 5, 32, low=torch.bfloat16) == (linear, 3 * linear, 2 * 5 * 32)


def test_attention_by_hand() -> None:
    # qkv 3 d², out d², MLP 8 d² for every token, and two products of S² d
    s, d = 24, 32
    forward = 2 * s * 12 * d * d + 2 * 2 * s * s * d
    found = of_module(lambda: TransformerBlock(d, 4), s, d)
    assert found[:2] == (forward, 3 * forward)
    # input of both norms, with their means and deviations; q k v, attention's output and log-sums; three linear
    # inputs and the GELU's: nothing of size S²
    kept = s * (2 * (d + 2) + 3 * d + d + 4 + d + d + 4 * d + 4 * d)
    assert found[2] == pytest.approx(4 * kept, rel=0.07)


def test_what_is_held_at_once_by_hand() -> None:
    """Ten numbers, twice: the first are gone before the third are made; views, weights and attention's hold nothing."""
    weight = torch.empty(10, device="meta")

    def run() -> torch.Tensor:
        first = torch.empty(10, device="meta")
        second = first * weight.view(10)
        del first
        third = second.view(1, 1, 5, 2) + 1
        del second
        return F.scaled_dot_product_attention(third, third, third)

    assert most_held(run) == 2 * 4 * 10


def test_training_costs_three_forward_passes_and_adapting_fewer(exact: Cost) -> None:
    adapt, joint = exact.stages
    # images, conditions and timesteps need no gradient: the first layers of encoder, UNet and time embedding
    first = 2 * 49 * 3 * 8 * 16 * 16 + 2 * 9 * 12 * 16 * 8 * 8 + 2 * 16 * 64
    assert joint.flops == 3 * exact.forward - first
    translator = bare()
    encoder = count_pass(lambda n: translator.encode(torch.empty(n, 3, 16, 16, device="meta")).sequence.sum(), None)
    unet = exact.forward - encoder.forward
    # the encoder's residuals go through convolutions that `sequence` does not see
    assert adapt.flops == pytest.approx(2 * unet + 3 * encoder.forward, rel=0.1)
    assert adapt.flops < joint.flops


def test_activations_are_those_of_real_tensors(exact: Cost) -> None:
    translator = Translator(**translator_config(recipe_of().model, None))

    def kept(batch: int) -> int:
        storages: set[torch.UntypedStorage] = set()

        def pack(x: Tensor) -> Tensor:
            storages.add(x.untyped_storage())
            return x

        images = torch.rand(batch, 3, 16, 16)
        with saved_tensors_hooks(pack, lambda x: x):
            output, _ = translator(images, torch.zeros(batch, dtype=torch.long), torch.rand(batch, 3, 16, 16))
            output.sum()
        return sum(storage.nbytes() for storage in storages)

    assert exact.stages[1].activations == kept(3) - kept(2)


def test_memory_of_weights_gradients_moments_and_average(exact: Cost) -> None:
    half = cost(recipe_of(precision="bf16"))
    encoder, unet = exact.parameters["encoder"], exact.parameters["unet"]
    assert exact.stages[0].state == 8 * (encoder + unet) + 12 * encoder
    assert exact.stages[1].state == 20 * (encoder + unet)
    assert half.stages[0].state == 22 * (encoder + unet)
    assert exact.stages[1].activations / 2 < half.stages[0].activations < exact.stages[1].activations
    assert exact.memory(7) == exact.stages[1].state + 7 * exact.stages[1].activations


def test_losses_on_the_predicted_image_count_by_where_they_act() -> None:
    acting = {"weight": 0.1, "after": 2, "noise": [0.0, 0.5]}
    stages = [
        {"name": "plain", "trains": ["unet"], "steps": 4},
        {"name": "features", "trains": ["unet"], "steps": 4, "perceptual": acting},
        {"name": "early", "trains": ["unet"], "steps": 4, "perceptual": acting | {"after": 0}, "adversarial": acting},
    ]
    found = cost(recipe_of(**UPSAMPLER, stages=stages, batch=8))
    plain, features, early = found.stages
    squeeze = 2 * 9 * 3 * 64 * 15 * 15  # the first convolution, of stride 2 without padding
    assert features.flops - plain.flops == pytest.approx(3 * squeeze / 4)  # half the images, half the steps
    judged = 2 * 16 * (6 * 8 * 16 * 16 + 8 * 16 * 15 * 15 + 16 * 14 * 14)  # three convolutions of 4 × 4
    added = early.flops - plain.flops - 3 * squeeze / 2
    assert added == pytest.approx((2 + 2 * 3) * judged / 4, rel=0.1)  # images of x₀ need no gradient
    assert found.parameters["discriminator"] * 16 < early.state - plain.state
    assert early.activations > features.activations > plain.activations


def test_a_smaller_batch_is_found_where_one_does_not_fit() -> None:
    found = Cost({}, 1, (StageCost("joint", images=3600, flops=0.35e12, state=10 * GIB, activations=GIB),))
    a100, small = GPUS["a100"], GPUS["rtx4090"]
    assert found.stages[0].rate(a100) == pytest.approx(312)
    assert found.hours(a100) == pytest.approx(1 / 312)
    assert found.batch_for(a100, 48) == 48
    assert found.batch_for(a100, 96) == 48  # 58 GiB; 96 would take 106
    assert found.batch_for(small, 50) == 10  # 20 GiB of 21.6
    assert found.batch_for(small, 11) == 11
    assert Cost({}, 1, (StageCost("joint", 1, 1, 30 * GIB, 1),)).batch_for(small, 4) is None


def test_what_the_plan_says_without_data(tmp_path: Path) -> None:
    rows = {row["what"]: row["plan"] for row in plan(recipe_of(), tmp_path / "run")}
    assert "3 channels assumed" in rows["condition"]
    assert rows["data"].startswith("not given")
    assert "FLOP (joint) per training image" in rows["FLOPs"]
    assert "NVIDIA A100 80GB at 35% of 312 TFLOP/s" in rows["speed"]
    assert "fits the 80 GiB" in rows["memory"]


def test_classes_in_the_recipe_need_no_data() -> None:
    classes = {"names": ["a", "b"], "ids": [0, 1], "colours": [[1, 2, 3], [4, 5, 6]]}
    condition = known_condition(recipe_of(condition={"kind": "mask", "classes": classes}))
    assert condition is not None
    assert condition.channels == 2


def test_what_is_said_of_a_batch_that_does_not_fit(exact: Cost) -> None:
    said = cost_rows(exact, recipe_of(batch=2**20, accumulation=3), GPUS["rtx4090"])["memory"]
    assert "more than 90% of the 24 GiB of one NVIDIA RTX 4090: set batch=32768 set accumulation=96" in said


def test_data_that_is_given_but_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.root: .*nowhere is not a folder"):
        plan(recipe_of(data={"root": str(tmp_path / "nowhere"), "size": 16}), tmp_path / "run")
    within = {"condition": {"kind": "mask"}, "data": {"root": str(tmp_path), "size": 16}}
    with pytest.raises(
        RecipeError, match=r"contains neither images/ nor classes\.json; give the folder that contains both"
    ):
        plan(recipe_of(**within), tmp_path / "run")


def test_gpus() -> None:
    assert gpu_named(DEFAULT_GPU).peak == 312e12
    with pytest.raises(UserError, match="did you mean 'h100'"):
        plan(recipe_of(), Path("nowhere"), "h10")


def test_adapters_learn_alone() -> None:
    pytest.importorskip("peft")
    stages = [{"name": "adapt", "trains": ["encoder", "lora"], "steps": 3}]
    found = cost(recipe_of(stages=stages, prior="street", lora={"rank": 2}))
    assert found.parameters["unet"] == sum(p.numel() for p in bare().unet.parameters())
    total, learning = sum(found.parameters.values()), found.parameters["encoder"] + found.parameters["adapters"]
    assert found.stages[0].learning == learning < total
    assert found.stages[0].state == 20 * learning + 4 * (total - learning)
    config = translator_config(recipe_of().model, None)
    for precision, sizes in (("no", (8, 4)), ("bf16", (10, 2))):
        with torch.device("meta"):
            translator = Translator(**config)
            inject(translator, LoraSpec(rank=2))
        recipe = recipe_of(stages=stages, prior="street", lora={"rank": 2}, precision=precision)
        norms = held_bytes(translator, recipe) - sizes[0] * learning - sizes[1] * (total - learning)
        assert 0 <= norms < 0.04 * total  # of what is frozen they and biases stay in float32
    assert found.forward < found.stages[0].flops < 3 * found.forward
    assert [OptimizerSpec.parse({"kind": kind}, "test").bytes for kind in ("adamw", "adamw8bit")] == [8, 2]


def test_checkpointing_keeps_less_and_computes_more(exact: Cost) -> None:
    found = cost(recipe_of(stages=ADAPT_AND_JOINT[1:], checkpointing=True))
    (ours,), kept = found.stages, exact.stages[1]
    assert ours.activations < kept.activations
    assert kept.flops < ours.flops < kept.flops + found.forward
    assert ours.state == kept.state
