"""A prior of another family is adapted to masks in the latents of its autoencoder: in two stages, or by adapters."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load_file
from torch import Tensor

from piti.checkpoints.folder import ModelFolder
from piti.checkpoints.lora import ADAPTER_FILE, LoraSpec, adapter_parameters, inject, keep_half
from piti.checkpoints.prior_folders import recognised
from piti.core.errors import UserError
from piti.core.files import file_hash
from piti.models import Space, SpaceSpec, Tokens, Translator
from piti.models.compiling import repeated_blocks
from piti.models.wiring import Wiring
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, RecipeError, distributed, plan, train
from piti.training.build import translator_config
from piti.training.cost import cost_of
from piti.training.fitting import check_config
from piti.training.latent_cache import CachedSpace
from piti.training.stages import freeze_all_but
from tests.conftest import TINY_MODEL, tiny_recipe
from tests.priors import tiny
from tests.priors.training_losses import losses_of_diffusers, recorded

pytest.importorskip("transformers")

WEIGHTS = "model/base/diffusion_pytorch_model.safetensors"
TWO_STAGES = [
    {"name": "adapt", "trains": ["encoder"], "steps": 1, "lr": 1e-2},
    {"name": "joint", "trains": ["encoder", "unet"], "steps": 1, "lr": 1e-2},
]
WITH_ADAPTERS = [TWO_STAGES[0], {**TWO_STAGES[1], "trains": ["encoder", "lora"]}]
TOKENS: dict[str, dict[str, Any]] = {
    "stable": {"sequence_width": 16, "pooled": 0},
    "stable_v": {"sequence_width": 24, "pooled": 0},
    "sdxl": {"sequence_width": 24, "pooled": 8},
    "floyd": {"sequence_width": 8, "pooled": 0},
    "pixart": {"sequence_width": 8, "pooled": 0, "residuals": False},
    "sana": {"sequence_width": 8, "pooled": 0},
    "sd3": {"sequence_width": 40, "pooled": 16},
    "flux": {"sequence_width": 40, "pooled": 16},
}
"""What each UNet takes of an encoder."""


def recipe_of(prior: tiny.Imported, data: Path, family: str = "stable", /, **changes: Any) -> Recipe:
    found = recognised(prior.folder)
    side, schedule, own = found.arguments()["image_size"], found.schedule.to_dict(), {}
    if family == "flux":  # at 16 px, not the 256 that it was imported for
        side, schedule = 16, schedule | {"shift": math.exp(calculate_shift(4 * 4))}
        own = {"patch_size": 2, "embedded_guidance": 1.0, "shift_growth": found.shift_growth}
    values = tiny_recipe(
        data,
        prior=str(prior.model),
        schedule=schedule,
        model=own
        | {
            "image_size": side,
            "learned_variance": found.arguments()["learned_variance"],
            "encoder": {**TINY_MODEL["encoder"], **TOKENS[family]},
            "unet_config": found.unet,
            "space": found.space.to_dict(),
        },
        data={"root": str(data), "size": side, "condition_size": 16},
        stages=TWO_STAGES,
        batch=2,
        preview={"every": 100, "count": 1, "judged": 1, "steps": 1},
        checkpoint={"every": 1, "keep": 2},
    )
    return Recipe.parse(values | changes, "test")


def unet_of(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if name.startswith("unet.")}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("family", TOKENS)
def test_two_stages_of_which_the_first_leaves_the_unet_as_it_is(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_data: Path, tmp_path: Path, family: str
) -> None:
    """Their losses are those of diffusers' own training."""
    prior: tiny.Imported = request.getfixturevalue(family)
    steps = recorded(monkeypatch)
    train(recipe_of(prior, tiny_data, family, checkpointing=True, condition_dropout=0.0), tmp_path / "run")
    assert len(steps) == 2  # both with the prior's own UNet: the second learns after its loss
    for step in steps:
        squared, bound = losses_of_diffusers(prior.folder, step)
        assert step.simple == pytest.approx(squared, abs=1e-6)
        assert step.vb == pytest.approx(bound, abs=1e-6)
        assert step.total == pytest.approx(squared + bound, abs=1e-6)
    before = unet_of(prior.model / "base/diffusion_pytorch_model.safetensors")
    first, second = sorted((tmp_path / "run/checkpoints").glob("*/model.safetensors"))
    assert same(unet_of(first), before)
    assert not same(unet_of(second), before)
    assert not any("models" in name for name in load_file(second))  # its text encoders
    pipe = PITIPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    made = pipe(sorted((tiny_data / "labels").glob("*.png"))[0], steps=2, sampler="ddim").images[0]
    assert made.height == (16 if family == "flux" else prior.ours.base.image_size)


def test_an_adapted_model_of_latents_is_trained_on(stable: tiny.Imported, tiny_data: Path, tmp_path: Path) -> None:
    """With its encoder and its autoencoder, from the weights that it has."""
    train(recipe_of(stable, tiny_data), tmp_path / "first")
    still = [{"name": "joint", "trains": ["encoder", "unet"], "steps": 1, "lr": 1e-9}]
    further = recipe_of(stable, tiny_data, prior=None, init=str(tmp_path / "first"), stages=still)
    train(further, tmp_path / "second")
    before, after = (load_file(tmp_path / run / WEIGHTS) for run in ("first", "second"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)
    pipes = [PITIPipeline.from_pretrained(tmp_path / run) for run in ("first", "second")]
    ours, theirs = (pipe.vae.state_dict() for pipe in pipes)
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())
    other = {**further.model.to_dict(), "unet_config": {**(further.model.unet_config or {}), "flip_sin_to_cos": False}}
    with pytest.raises(RecipeError, match=r"init: 'model.unet_config' differs from that of"):
        train(further.model_copy(update={"model": type(further.model).parse(other, "test")}), tmp_path / "third")


def test_latents_are_kept_while_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = Space(SpaceSpec(channels=4, factor=2), tiny.autoencoder())
    cached = CachedSpace(space, tmp_path, most=5000)  # a crop's take 2 KiB and a little
    for number in range(5):
        images = torch.full((1, 3, 16, 16), number / 5)
        torch.testing.assert_close(cached.moments(images), space.moments(images))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"latent_cache: {tmp_path}")
    assert "(latent_cache_gib); other crops are encoded each time" in said
    CachedSpace(space, tmp_path, most=5000).moments(torch.zeros(1, 3, 16, 16) - 1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_sdxl_is_told_of_an_uncut_photograph_of_the_images_size(sdxl: tiny.Imported) -> None:
    tokens = Tokens(torch.ones(2, 8), torch.ones(2, 5, 24))
    given = Wiring.of(recognised(sdxl.folder).unet).arguments(tokens, (24, 16), None)["added_cond_kwargs"]
    assert given["text_embeds"] is tokens.pooled
    assert given["time_ids"].tolist() == [[24, 16, 0, 0, 24, 16]] * 2


def test_adapters_on_a_unet_in_half_precision_take_the_autoencoder_of_their_prior(
    stable: tiny.Imported, tiny_data: Path, tmp_path: Path
) -> None:
    before = file_hash(stable.model / "base/diffusion_pytorch_model.safetensors")
    recipe = recipe_of(stable, tiny_data, stages=WITH_ADAPTERS, lora={"rank": 2}, precision="bf16")
    train(recipe, tmp_path / "run")
    assert (tmp_path / "run/model/base" / ADAPTER_FILE).is_file()
    assert not (tmp_path / "run/model/vae").exists()
    (kept,) = sorted((tmp_path / "run/checkpoints").glob("*2/model.safetensors"))
    held = {name: tensor.dtype for name, tensor in load_file(kept).items()}
    assert held["unet.conv_in.weight"] == torch.bfloat16
    assert held["unet.conv_norm_out.weight"] == torch.float32
    assert {dtype for name, dtype in held.items() if "lora_" in name or "encoder." in name} == {torch.float32}
    assert PITIPipeline.from_pretrained(tmp_path / "run").space.spec == SpaceSpec(channels=4, factor=2)
    assert file_hash(stable.model / "base/diffusion_pytorch_model.safetensors") == before


def test_what_adapters_leave_computes_the_same_in_half_precision(stable: tiny.Imported) -> None:
    """To the bit, under autocast, gradients of the adapters included."""
    made = []
    for half in (False, True):
        translator = ModelFolder.open(stable.model).load("base", torch.float32)[0]
        torch.manual_seed(0)
        inject(translator, LoraSpec(rank=2))
        freeze_all_but(translator, ("lora",))
        if half:
            keep_half(translator, torch.bfloat16)
        torch.manual_seed(1)
        tokens = Tokens(torch.zeros(2, 0), torch.randn(2, 5, 16))
        with torch.autocast("cpu", torch.bfloat16):
            output = translator(torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), tokens).output
        output.float().square().sum().backward()
        made.append([output, *(one.grad for one in adapter_parameters(translator, LoraSpec()))])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*made, strict=True))


def test_the_plan_tells_costs_and_another_unet_is_refused(
    stable: tiny.Imported, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(stable, tiny_data, stages=TWO_STAGES[:1])
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run", "rtx4090")}
    assert "weights of its UNet loaded" in rows["begins"]
    assert "autoencoder (if of Stable Diffusion's size) 73.0M parameters" in rows["networks"]  # of two levels
    assert "4090" in rows["speed"]
    assert re.fullmatch(r"encoder \(0\.\dM parameters trained\), 1 steps at 0\.01", rows["stage adapt"])
    model = recipe.model.to_dict()
    model["unet_config"] = {**model["unet_config"], "flip_sin_to_cos": False}
    with pytest.raises(
        RecipeError, match=r"'model.unet_config' differs from that of .*flip_sin_to_cos: True there, here False"
    ):
        plan(recipe_of(stable, tiny_data, model=model), tmp_path / "run")


def test_an_image_on_its_way_to_latents_counts_in_memory_and_only_one_at_a_time(
    stable: tiny.Imported, tiny_data: Path
) -> None:
    recipe = recipe_of(stable, tiny_data, stages=TWO_STAGES[:1])
    (stage,) = cost_of(recipe, translator_config(recipe.model, None)).stages
    # of the widest level, 512 channels of 16 px in float32: what enters a block, and what it makes of it
    assert 2 < stage.moment / (4 * 512 * 16 * 16) < 6
    assert stage.memory(1) == stage.state + max(stage.activations, stage.moment)
    assert stage.memory(10_000) == stage.state + 10_000 * stage.activations


def test_a_switch_that_is_null_in_a_published_configuration_is_off(stable: tiny.Imported, tiny_data: Path) -> None:
    """SDXL's says `upcast_attention: null`."""
    recipe = recipe_of(stable, tiny_data, stages=TWO_STAGES[:1])
    with torch.device("meta"):
        translator = Translator(**translator_config(recipe.model, None))
    published = dict(recipe.model.to_dict()["unet_config"])
    check_config(translator, published | {"upcast_attention": None}, "theirs")
    with pytest.raises(RecipeError, match="upcast_attention: True there, here False"):
        check_config(translator, published | {"upcast_attention": True}, "theirs")


@pytest.mark.parametrize(
    ("family", "wide"),
    [("sana", True), ("sana", False), ("sd3", True), ("sd3", False), ("flux", True), ("flux", False)],
)
def test_the_aligned_path_of_a_transformer_is_in_place(
    request: pytest.FixtureRequest, tiny_data: Path, family: str, wide: bool
) -> None:
    """A change in one corner of a condition's maps begins in that corner of the image; every map counts."""
    prior: tiny.Imported = request.getfixturevalue(family)
    recipe = recipe_of(prior, tiny_data, family)
    torch.manual_seed(0)
    translator = Translator(**translator_config(recipe.model, None)).eval()
    condition = torch.rand(1, recipe.model.to_dict()["encoder"]["in_channels"], 16, 32 if wide else 16)
    x_t, t = torch.randn(1, 4, 8, 16 if wide else 8), torch.tensor(500)
    tokens = translator.encode(condition)
    assert tokens.residuals is not None
    plain = translator(x_t, t, tokens).output
    for number, one in enumerate(tokens.residuals):
        marked = one.clone()
        marked[..., :1, :1] += 5 * torch.randn(one.shape[1], 1, 1)
        maps = (*tokens.residuals[:number], marked, *tokens.residuals[number + 1 :])
        gap = (translator(x_t, t, tokens._replace(residuals=maps)).output - plain).abs().sum(1)[0]
        assert gap[:2, :2].mean() > 2 * gap[-2:, -2:].mean()
    with pytest.raises(UserError, match=r"their condition lies over \d+ x \d+; resize one of the two"):
        translator(torch.randn(1, 4, 16, 16), t, tokens)


def test_the_aligned_path_does_not_lead_into_a_transformer_of_pixart(pixart: tiny.Imported, tiny_data: Path) -> None:
    model = recipe_of(pixart, tiny_data, "pixart").model.to_dict()
    model["encoder"]["residuals"] = True
    with pytest.raises(UserError, match="a transformer of PixArt takes no maps: set its 'residuals' to false"):
        plan(recipe_of(pixart, tiny_data, "pixart", model=model), tiny_data / "run")


@pytest.mark.parametrize(
    ("family", "block"),
    [
        ("pixart", "BasicTransformerBlock"),
        ("sana", "SanaTransformerBlock"),
        ("sd3", "JointTransformerBlock"),
        ("flux", "FluxTransformerBlock,FluxSingleTransformerBlock"),
    ],
)
def test_sharding_names_the_blocks_of_a_transformer(
    request: pytest.FixtureRequest, tiny_data: Path, family: str, block: str
) -> None:
    prior: tiny.Imported = request.getfixturevalue(family)
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["ResnetBlock2D"])
    state, recipe = SimpleNamespace(fsdp_plugin=plugin), recipe_of(prior, tiny_data, family)
    accelerator: Any = SimpleNamespace(
        num_processes=2,
        device=torch.device("cpu"),
        distributed_type=DistributedType.FSDP,
        is_fsdp2=True,
        state=state,
    )
    why = distributed._why_not(accelerator, recipe, 2)
    assert why is not None
    named = block.replace(",", " and ")
    assert f"FSDP shards ResnetBlock2D, but this transformer consists of {named}; set" in why
    assert f"fsdp_transformer_layer_cls_to_wrap: {block} in" in why
    plugin.transformer_cls_names_to_wrap = block.split(",")
    assert distributed._why_not(accelerator, recipe, 2) is None


def test_stable_diffusion_3_has_positions_up_to_a_size(sd3: tiny.Imported) -> None:
    tokens = sd3.ours.base.encode(sd3.ours.read("a cat")[None])
    longest = torch.zeros(1, 4, 16, 8)
    assert sd3.ours.base(longest, torch.tensor(500), tokens).output.shape == longest.shape
    with pytest.raises(UserError, match="images of 36 x 16: the transformer has positions for sides of up to 32; make"):
        sd3.ours.base(torch.zeros(1, 4, 18, 8), torch.tensor(500), tokens)


def test_adapters_on_a_transformer(pixart: tiny.Imported, tiny_data: Path, tmp_path: Path) -> None:
    train(recipe_of(pixart, tiny_data, "pixart", stages=WITH_ADAPTERS, lora={"rank": 2}), tmp_path / "run")
    learned = load_file(tmp_path / "run/model/base" / ADAPTER_FILE)
    assert {name.split(".")[1] for name in learned if "lora_" in name} == {"transformer_blocks"}
    pipe = PITIPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    own = str(tmp_path / "run")
    again = recipe_of(pixart, tiny_data, "pixart", stages=WITH_ADAPTERS, lora={"rank": 2}, prior=own)
    with pytest.raises(RecipeError, match=r"^prior: .*has no .*safetensors, .*save the model again: PITIPipeline\.fr"):
        train(again, tmp_path / "again")
    pipe.enable_attention_slicing()  # which a transformer of diffusers does not know
    assert pipe(sorted((tiny_data / "labels").glob("*.png"))[0], steps=2).images[0].height == 16


def test_adapters_are_on_the_tokens_side_of_joint_attention_too(sd3: tiny.Imported) -> None:
    translator = ModelFolder.open(sd3.model).load("base", torch.float32)[0]
    inject(translator, LoraSpec(rank=2))
    adapted = {name.split(".lora_A")[0].rsplit(".attn.")[-1] for name, _ in translator.unet.named_parameters()}
    assert {"to_q", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"} <= adapted


def test_adapters_are_on_double_and_single_blocks_of_flux(flux: tiny.Imported, tiny_data: Path, tmp_path: Path) -> None:
    """A run with them, on the frozen transformer in half precision; it is planned, and its model loads anew."""
    recipe = recipe_of(flux, tiny_data, "flux", stages=WITH_ADAPTERS, lora={"rank": 2}, precision="bf16")
    rows = {row["what"]: row["plan"] for row in plan(recipe, tmp_path / "run")}
    assert "weights of its UNet loaded" in rows["begins"]
    train(recipe, tmp_path / "run")
    learned = [name for name in load_file(tmp_path / "run/model/base" / ADAPTER_FILE) if "lora_A" in name]
    double = {name.split(".attn.")[1].split(".lora")[0] for name in learned if name.startswith("unet.transformer")}
    single = {name.split(".attn.")[1].split(".lora")[0] for name in learned if name.startswith("unet.single")}
    assert single == {"to_q", "to_k", "to_v"}
    assert double == single | {"to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    base = PITIPipeline.from_pretrained(tmp_path / "run").base
    assert (base.wiring.guidance, base.shift_growth) == (1.0, flux.ours.base.shift_growth)


def test_a_block_of_flux_is_compiled(flux: tiny.Imported) -> None:
    kinds = [type(block).__name__ for block in repeated_blocks(flux.ours.base.unet)]
    assert kinds == ["FluxTransformerBlock"] * 3 + ["FluxSingleTransformerBlock"] * 2


def test_the_aligned_path_of_flux_is_neutral_at_the_start(flux: tiny.Imported, tiny_data: Path) -> None:
    translator = Translator(**translator_config(recipe_of(flux, tiny_data, "flux").model, None)).eval()
    tokens = translator.encode(torch.rand(1, translator.config["encoder_spec"]["in_channels"], 16, 16))
    assert tokens.residuals is not None
    assert [one.shape[1:] for one in tokens.residuals] == [(16, 4, 4)] * 3  # 3 double blocks, 2 single ones
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor(500)
    plain = translator(x_t, t, tokens._replace(residuals=None)).output
    assert torch.equal(translator(x_t, t, tokens).output, plain)


@pytest.mark.parametrize(
    ("model", "schedule", "why"),
    [
        (
            {},
            {"shift": 3.158192909689767},
            r"grows with the image: it is 1\.5830842 for images of 16 px, .*; set sched",
        ),
        ({"shift_growth": 0.0}, {}, r"by 0\.00016927083 per token, and by 0 .*; set model\.shift_growth: 0\.000169270"),
        ({"embedded_guidance": None}, {}, r"takes a guidance scale .* and 'embedded_guidance' is null; give one"),
        ({"patch_size": 1}, {}, "the UNet sees 16 channels and makes 16; images of this model ask for 4 and 4"),
    ],
)
def test_a_recipe_for_flux_is_checked(
    flux: tiny.Imported, tiny_data: Path, tmp_path: Path, model: dict[str, Any], schedule: dict[str, Any], why: str
) -> None:
    right = recipe_of(flux, tiny_data, "flux")
    changes = {"model": right.model.to_dict() | model, "schedule": right.schedule.to_dict() | schedule}
    with pytest.raises(UserError, match=why):
        plan(recipe_of(flux, tiny_data, "flux", **changes), tmp_path / "run")


def test_a_run_from_another_embedded_guidance_is_refused(flux: tiny.Imported, tiny_data: Path, tmp_path: Path) -> None:
    train(recipe_of(flux, tiny_data, "flux", stages=TWO_STAGES[:1]), tmp_path / "run")
    further = {"prior": None, "init": str(tmp_path / "run"), "stages": TWO_STAGES[1:]}
    assert "all weights of" in str(plan(recipe_of(flux, tiny_data, "flux", **further), tmp_path / "more"))
    model = recipe_of(flux, tiny_data, "flux").model.to_dict() | {"embedded_guidance": 3.5}
    with pytest.raises(RecipeError, match=r"^init: .* learned with 'embedded_guidance' 1\.0, and this .* 3\.5; make"):
        plan(recipe_of(flux, tiny_data, "flux", **further, model=model), tmp_path / "more")


def test_a_shift_that_grows_is_for_flows(stable: tiny.Imported, tiny_data: Path) -> None:
    model = recipe_of(stable, tiny_data).model.to_dict() | {"shift_growth": 0.1}
    with pytest.raises(UserError, match=r"'model\.shift_growth' is for flows; set schedule\.betas: flow, or remove it"):
        recipe_of(stable, tiny_data, model=model)


def test_a_guidance_scale_is_for_networks_that_take_one(sd3: tiny.Imported, tiny_data: Path, tmp_path: Path) -> None:
    model = recipe_of(sd3, tiny_data, "sd3").model.to_dict() | {"embedded_guidance": 1.0}
    with pytest.raises(UserError, match=r"'embedded_guidance' is given, but the network takes no .*; leave it out"):
        plan(recipe_of(sd3, tiny_data, "sd3", model=model), tmp_path / "run")


@pytest.mark.parametrize("loss", ["perceptual", "adversarial", "pixel"])
def test_losses_on_pixels_are_refused_in_latents(stable: tiny.Imported, tiny_data: Path, loss: str) -> None:
    stage = {"name": "joint", "steps": 1, "lr": 1e-3, loss: {"weight": 1.0}}
    with pytest.raises(UserError, match="act on pixels, but this model generates latents"):
        recipe_of(stable, tiny_data, stages=[stage])


def test_latents_are_those_of_the_autoencoder_and_kept_by_their_contents(tmp_path: Path) -> None:
    autoencoder = tiny.autoencoder()
    space = Space(SpaceSpec(channels=4, factor=2), autoencoder)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        noise = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(
            space.drawn(space.moments(images), noise), 0.18215 * (posterior.mean + posterior.std * noise)
        )
        decoded = autoencoder.decode(posterior.mean).sample.clamp(-1, 1)  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(space.images(space.points(images)), decoded, atol=1e-5, rtol=0)
    cached = CachedSpace(space, tmp_path)
    first = cached.moments(images)
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in tmp_path.rglob("*.safetensors")} == {(tmp_path / "new").stat().st_mode}
    autoencoder.encode = None  # type: ignore[assignment]
    torch.testing.assert_close(cached.moments(images), first, atol=0, rtol=0)
    assert CachedSpace(space, tmp_path).bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    with pytest.raises(UserError, match=r"^latent_cache: .*new: .* cannot be made \(Not a directory\); give"):
        CachedSpace(space, tmp_path / "new")
    with pytest.raises(UserError, match="one autoencoder belongs to this space, none was given"):
        Space(SpaceSpec(channels=4, factor=2))
