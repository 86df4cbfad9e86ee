"""The pipeline: same seed, same image for any batch; loading by name, folder and run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, condition_from_config
from piti.core.errors import UserError
from piti.core.spec import SpecError
from piti.diffusion.guidance import Guidance
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of, spec_of
from piti.models import Translator
from piti.pipelines.options import NetworkOptions
from piti.pipelines.pipeline import ModelError, PITIPipeline, bundled_models, find_model, list_models
from tests.conditions.test_composite import Silent, Slopes
from tests.conftest import TINY_CLASSES, TINY_MODEL

CLASSES = {
    "names": [item["name"] for item in TINY_CLASSES["classes"]],  # type: ignore[index,call-overload]
    "ids": [item["id"] for item in TINY_CLASSES["classes"]],  # type: ignore[index,call-overload]
    "colours": [item["color"] for item in TINY_CLASSES["classes"]],  # type: ignore[index,call-overload]
}


def tiny_pipeline() -> PITIPipeline:
    torch.manual_seed(0)
    base = Translator(
        encoder_spec=TINY_MODEL["encoder"],  # type: ignore[arg-type]
        unet_spec=TINY_MODEL["unet"],  # type: ignore[arg-type]
        image_size=16,
        patch_size=2,
    )
    condition = condition_from_config({"kind": "mask", "classes": CLASSES})
    pipeline = PITIPipeline(base.eval(), scheduler_of(ScheduleSpec()), condition, defaults={"steps": 3})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def mask(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "dpm++sde", "unipc"])
def test_the_same_seed_gives_the_same_image_whatever_the_batch(sampler: str) -> None:
    pipeline, masks = tiny_pipeline(), [mask(1), mask(2)]

    def made(batch: int) -> np.ndarray:
        return arrays(pipeline(masks, num_images=3, sampler=sampler, generator=seeded(), batch_size=batch).images)

    whole = made(6)
    assert whole.shape == (6, 16, 16, 3)
    for batch in (1, 4):
        assert np.abs(made(batch) - whole).max() <= 1, batch  # at most the rounding of a convolution


def test_images_differ_between_seeds_and_conditions() -> None:
    pipeline = tiny_pipeline()
    one, two = arrays(pipeline(mask(1), num_images=2, generator=seeded()).images)
    assert np.abs(one - two).max() > 20
    assert np.abs(one - arrays(pipeline(mask(1), generator=seeded(1)).images)[0]).max() > 20
    many = arrays(pipeline([mask(1), mask(2)], num_images=2, generator=seeded()).images)
    assert np.abs(many[0] - one).max() <= 1


def test_a_generator_for_each_image() -> None:
    pipeline = tiny_pipeline()
    pair = arrays(pipeline(mask(1), num_images=2, generator=[seeded(3), seeded(4)]).images)
    alone = arrays(pipeline(mask(1), generator=[seeded(4)]).images)
    assert np.abs(pair[1] - alone[0]).max() <= 1
    with pytest.raises(ValueError, match="2 generators for 3 images"):
        pipeline(mask(1), num_images=3, generator=[seeded(3), seeded(4)])
    one = arrays(pipeline(mask(1), generator=seeded(4)).images)
    assert np.array_equal(alone, one)  # a generator decides the same noise in a list of one
    twice = seeded(3)
    with pytest.raises(ValueError, match="one generator is given twice"):
        pipeline(mask(1), num_images=2, generator=[twice, twice])


def test_the_condition_is_encoded_once_an_image_and_guided_pairs_are_one_batch(monkeypatch) -> None:
    pipeline = tiny_pipeline()
    encoded, seen = [], []
    encode, forward = pipeline.base.encode, pipeline.base.forward
    monkeypatch.setattr(pipeline.base, "encode", lambda c: encoded.append(len(c)) or encode(c))
    monkeypatch.setattr(pipeline.base, "forward", lambda x, *rest: seen.append(len(x)) or forward(x, *rest))
    pipeline(mask(1), num_images=2, steps=4, guidance=1.5)
    assert encoded == [1, 1]
    assert seen == [4] * 4
    seen.clear()
    encoded.clear()
    pipeline(mask(1), num_images=2, steps=4, guidance=0)
    assert encoded == [1]
    assert seen == [2] * 4
    seen.clear()
    pipeline(mask(1), num_images=2, steps=4, guidance=Guidance(w=1, interval=(0.0, 0.5)))
    assert seen == [2, 2, 4, 4]


def test_a_condition_given_twice_is_read_and_encoded_once(monkeypatch) -> None:
    pipeline, encoded, read = tiny_pipeline(), [], []
    encode, given = pipeline.base.encode, pipeline.read
    monkeypatch.setattr(pipeline.base, "encode", lambda c: encoded.append(len(c)) or encode(c))
    monkeypatch.setattr(pipeline, "read", lambda *item: read.append(item) or given(*item))
    one, two = mask(1), mask(2)
    several = arrays(pipeline([two, one, two], num_images=2, steps=2, guidance=0, generator=seeded()).images)
    assert encoded == [2]
    assert len(read) == 2
    apart = arrays(pipeline([mask(2), mask(1), mask(2)], num_images=2, steps=2, guidance=0, generator=seeded()).images)
    assert encoded == [2, 3]
    assert np.abs(several - apart).max() <= 1


@pytest.mark.parametrize("given", [None, 3, b"mask.png", [None], object()])
def test_what_is_no_condition_is_an_error_in_words(given: Any) -> None:
    with pytest.raises(ConditionError, match="expected a file name, an image, an array or a tensor, got"):
        tiny_pipeline()(given)


def test_other_unusable_arguments_are_errors_in_words() -> None:
    pipeline = tiny_pipeline()
    with pytest.raises(ConditionError, match="no condition is given"):
        pipeline([])
    for odd in (5, "5", [5], [None], np.random.default_rng(0)):
        with pytest.raises(UserError, match=r"generator: expected a torch.Generator"):
            pipeline(mask(1), generator=odd)  # pyright: ignore[reportArgumentType]


def test_an_array_is_read_like_the_picture_of_it() -> None:
    pipeline, picture = tiny_pipeline(), mask(1)
    ids, colours = np.asarray(picture), np.asarray(pipeline.condition.preview(pipeline.read(picture)))
    expected = pipeline.read(picture)
    for array in (ids, ids[..., None], ids.astype(np.uint16), ids.astype(np.int64), colours, ids[::-1][::-1]):
        assert torch.equal(pipeline.read(array), expected), array.dtype
    for plane in (torch.tensor(ids), torch.tensor(ids).long()):
        assert torch.equal(pipeline.read(plane), pipeline.read(plane.numpy())), plane.dtype
    with pytest.raises(ConditionError, match=r"expected class indices \[1, h, w\].*; give ids as an array \[h, w\]"):
        pipeline.read(torch.zeros(16, 16, 3))
    for odd in (ids.astype(float), colours[None], ids[:0], ids.astype(complex), np.array("mask.png"), ids[0]):
        with pytest.raises(UserError, match=r"the given array: .* (cannot be a mask|got \[)"):
            pipeline.read(odd)
    with pytest.raises(UserError, match="at most 32 bits"):
        pipeline.read(ids.astype(np.int64) + 2**40)


def test_guidance_changes_the_image_and_w_0_is_off() -> None:
    pipeline = tiny_pipeline()
    off = arrays(pipeline(mask(1), guidance=0, generator=seeded()).images)
    for rule in (1.0, Guidance(kind="plain", w=1), Guidance(kind="rescaled", w=1), Guidance(kind="apg", w=1)):
        assert np.abs(arrays(pipeline(mask(1), guidance=rule, generator=seeded()).images) - off).max() > 1, rule
    for kind in ("normalized", "plain", "rescaled", "apg"):
        same = pipeline(mask(1), guidance=Guidance(kind=kind, w=0), generator=seeded()).images
        assert np.array_equal(arrays(same), off)


def test_files_images_and_tensors_are_one(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    mask(1).save(tmp_path / "a.png")
    results = [
        arrays(pipeline(given, generator=seeded()).images)
        for given in (tmp_path / "a.png", str(tmp_path / "a.png"), mask(1), pipeline.read(mask(1)))
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_steps_are_reported() -> None:
    seen = []
    tiny_pipeline()(mask(1), num_images=3, batch_size=2, steps=2, on_step=lambda k, n, x0: seen.append((k, n, len(x0))))
    assert seen == [(1, 2, 2), (2, 2, 2), (1, 2, 1), (2, 2, 1)]


def test_saved_and_loaded(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    again = PITIPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert again.defaults == pipeline.defaults
    assert again.condition.to_config() == pipeline.condition.to_config()
    first, second = (arrays(p(mask(1), generator=seeded()).images) for p in (pipeline, again))
    assert np.array_equal(first, second)
    again.save_pretrained(tmp_path / "moved")
    assert not [p for p in (tmp_path / "moved").rglob("*.json") if str(tmp_path) in p.read_text()]
    half = PITIPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert arrays(half(mask(1), generator=seeded()).images).shape == first.shape


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear"])
def test_schedules_are_saved_as_schedulers(prediction: str, betas: str) -> None:
    spec = ScheduleSpec.parse({"prediction": prediction, "betas": betas, "steps": 500}, "test")
    scheduler = scheduler_of(spec)
    assert spec_of(scheduler) == spec
    from piti.diffusion.schedule import NoiseSchedule

    ours = NoiseSchedule(spec).alphas_cumprod
    assert torch.allclose(scheduler.alphas_cumprod.double(), ours, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_loading_leaves_the_callers_generators_unchanged(device: str, tmp_path: Path) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    tiny_pipeline().save_pretrained(tmp_path)
    drawn = []
    for loads in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        if loads:
            with torch.device(device):
                PITIPipeline.from_pretrained(tmp_path, device_map=device)
        drawn.append((torch.rand(1, device=device).item(), torch.rand(1).item(), random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_what_cannot_be_loaded_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model 'strete'"):
        find_model("strete")
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        find_model(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model/condition.json").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        PITIPipeline.from_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="could not be downloaded from the hub"):
        find_model("nobody/nothing", local_files_only=True)


def test_a_training_runs_folder_is_a_model(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "run/model")
    assert find_model(tmp_path / "run") == tmp_path / "run/model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "dmpp"}, "unknown sampler 'dmpp'"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 2000}, "steps 2000"),
        ({"guidance": -3}, "'guidance' = -3: is not a guidance strength; give a number of at least -1"),
        ({"num_images": 0}, "num_images 0: expected a whole number of at least 1"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()(mask(1), **settings)  # type: ignore[arg-type]


def test_a_mask_with_unknown_ids_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(ConditionError, match=r"odd\.png"):
        tiny_pipeline()(tmp_path / "odd.png")


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_bundled_models_are_light_half_precision_and_described(name: str) -> None:
    from safetensors import safe_open

    folder = bundled_models()[name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "images seen" in card
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 27e6
    (path,) = (folder / "base").glob("*.safetensors")  # whole, or adapters
    with safe_open(path, "pt") as weights:
        assert all(weights.get_tensor(key).dtype == torch.float16 for key in weights.keys())  # noqa: SIM118
    assert name in {model.name for model in list_models()}
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "PITIPipeline"


def test_a_number_is_a_strength_by_the_models_own_rule() -> None:
    own = NetworkOptions(guidance=Guidance(kind="plain", w=0.5), steps=2, sampler="ddim")
    merged = NetworkOptions.parse({"guidance": 2}, "test").over(own)
    assert merged.guidance == Guidance(kind="plain", w=2.0)
    assert NetworkOptions(guidance=Guidance(w=2.0)).over(own).guidance == Guidance(w=2.0)
    twice = NetworkOptions(guidance=2.0).over(NetworkOptions(guidance=1.0))
    assert twice.guidance == 2.0  # whose rule is not known yet
    assert twice.over(own).guidance == merged.guidance
    with pytest.raises(SpecError, match="guidance"):
        NetworkOptions.parse({"guidance": -2}, "test")


def test_a_kind_that_does_not_say_what_it_reads_makes_no_images() -> None:
    tiny = tiny_pipeline()
    pipeline = PITIPipeline(tiny.base, tiny.scheduler, Slopes())
    assert pipeline.prepare(mask(1)).raw.dtype is torch.float16
    pipeline.condition = Silent()
    with pytest.raises(ConditionError, match="let its class say by `planes` and `raw_dtype`"):
        pipeline.prepare(mask(1))
