"""diffusers' common pipeline tests on a tiny PITIPipeline.

Tests that need an accelerator there (half precision, sequential offloading, moving between devices) run on the CPU as
far as possible. These do not apply: `encode_prompt` in isolation (there is no such method), the VAE of Stable
Diffusion, xFormers, layerwise casting (it asks for a `unet` or a `transformer`), DDUF files (diffusers has dropped
them).
"""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from piti.core.errors import UserError
from piti.diffusion.distillation import StudentSpec
from piti.diffusion.guidance import Guidance
from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.calling import CLOSE, KINDS, called, inputs
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import arrays, mask, seeded, tiny_pipeline

# Calling


def test_the_call_takes_what_every_pipeline_takes() -> None:
    parameters = inspect.signature(PITIPipeline.__call__).parameters
    names = {"num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"}
    names |= {"guidance_scale", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    assert {name for name in names if parameters[name].default is not inspect.Parameter.empty} == names


@KINDS
def test_outputs_are_images_arrays_tensors_or_tuples(tiny: Any) -> None:
    pipe = tiny()
    array = called(pipe)
    side = array.shape[1]
    assert array.shape == (1, side, side, 3)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    whole = pipe(**inputs(pipe, return_dict=False))
    assert isinstance(whole, tuple)
    assert np.array_equal(whole[0], array)
    tensor = pipe(**inputs(pipe, output_type="pt")).images
    assert torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(array))
    latent = pipe(**inputs(pipe, output_type="latent")).images
    assert torch.allclose(latent / 2 + 0.5, tensor)
    image = pipe(**inputs(pipe, output_type="pil")).images[0]
    assert np.array_equal(np.asarray(image), np.round(array[0] * 255).astype(np.uint8))
    assert np.array_equal(np.asarray(DiffusionPipeline.numpy_to_pil(array)[0]), np.asarray(image))


@KINDS
def test_one_image_alone_is_that_of_a_batch(tiny: Any) -> None:
    pipe = tiny()
    alone, several = called(pipe), called(pipe, num_images_per_prompt=2)
    condition = pipe.read(mask(1))
    batch = called(pipe, condition=[condition] * 3, generator=[seeded(k) for k in range(3)])
    assert len(batch) == 3
    assert np.abs(batch[0] - alone[0]).max() < CLOSE
    assert np.abs(several[0] - alone[0]).max() < CLOSE
    assert np.abs(batch[1] - batch[0]).max() > 0.05


def test_a_generator_moves_on() -> None:
    pipe, generator = tiny_pipeline(), seeded()
    assert np.abs(called(pipe, generator=generator) - called(pipe, generator=generator)).max() > 0.05


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("conditions", [1, 2])
def test_images_per_prompt(count: int, conditions: int) -> None:
    pipe = tiny_pipeline()
    condition = [pipe.read(mask(1))] * conditions
    assert called(pipe, condition=condition, num_images_per_prompt=count).shape == (count * conditions, 16, 16, 3)


def test_diffusers_names_mean_ours() -> None:
    pipe = tiny_pipeline()
    for scale in (1.0, 7.5):
        ours = pipe(mask(1), 2, seeded(), steps=3, guidance=scale - 1)
        theirs = pipe(mask(1), None, seeded(), num_images_per_prompt=2, num_inference_steps=3, guidance_scale=scale)
        assert np.array_equal(arrays(ours.images), arrays(theirs.images))  # type: ignore[union-attr,arg-type]


def test_numbers_may_be_numpys() -> None:
    pipe = tiny_pipeline()
    plain = called(pipe, num_images=2, batch_size=1, guidance_scale=3)
    swept: dict[str, Any] = {"num_images": np.int64(2), "batch_size": np.int64(1)}
    for scale in (np.int64(3), np.float32(3)):
        assert np.array_equal(called(pipe, guidance_scale=scale, **swept), plain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 2, "num_inference_steps": 2}, "num_inference_steps: is another name of steps"),
        ({"guidance": Guidance(w=1), "guidance_scale": 2.0}, "guidance_scale: is another name of guidance"),
        ({"num_images": 1, "num_images_per_prompt": 1}, "num_images_per_prompt: is another name of num_images"),
        ({"guidance_scale": 0.5}, r"guidance_scale 0\.5: expected a number of at least 1 \(it is 1 \+ w"),
        ({"guidance_scale": "2"}, r"guidance_scale '2': expected a number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: expected a whole number"),
        ({"num_images": "2"}, "num_images '2': expected a whole number"),
        ({"batch_size": 0}, "batch_size 0: expected a whole number"),
        ({"height": 64}, "height: is not supported; of diffusers' arguments this .* num_inference_steps.*; give size"),
        ({"condition": None, "prompt": "a street"}, "prompt: .*; give the condition as the first argument, condition"),
        ({"negative_prompt": ""}, "negative_prompt: .* guidance_scale"),
        ({"eta": 0.0}, "eta: .*; give sampler: 'ddim' is eta 0"),
        ({"strength": 0.5}, r"strength: .*piti\.edit"),
        ({"output_type": "numpy"}, "output_type 'numpy'"),
        ({"output_type": None}, "output_type None"),
        ({"latents": np.zeros((1, 3, 16, 16))}, "latents: expected a tensor, got ndarray"),
        ({"condition": [mask(1), mask(1, 32)], "output_type": "np"}, "16 x 16, 32 x 16 px in one array"),
        ({"latents": torch.zeros(2, 3, 16, 16)}, r"expected standard normal noise \[1, 3, 16, 16\]"),
        ({"condition": [mask(1), mask(1, 32)], "latents": torch.zeros(2, 3, 16, 16)}, "latents: needs images of equal"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            "callback_on_step_end_tensor_inputs prompt_embeds",
        ),
    ],
)
def test_what_has_no_one_meaning_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_pipeline()(**{"condition": mask(1)} | given)


def test_initial_noise_may_be_given() -> None:
    pipe = tiny_pipeline()
    noise = torch.randn(2, 3, 16, 16, generator=seeded(3))
    pair = called(pipe, latents=noise, num_images_per_prompt=2, sampler="ddim")
    alone = called(pipe, latents=noise[:1], sampler="ddim")
    assert np.abs(pair[0] - alone[0]).max() < CLOSE
    assert np.abs(pair[0] - pair[1]).max() > 0.05


# Callbacks


def test_a_callback_sees_and_changes_every_step() -> None:
    pipe, seen = tiny_cascade(), []

    def watching(pipeline: PITIPipeline, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep, tuple(given)))
        return given

    assert np.array_equal(called(pipe, callback_on_step_end=watching), called(pipe))
    assert [step for step, _, _ in seen] == list(range(pipe.num_timesteps))
    assert seen[0][1:] == (999, ("latents",))
    assert {names for _, _, names in seen} == {tuple(pipe._callback_tensor_inputs)}
    seen.clear()
    called(pipe, callback_on_step_end=watching, callback_on_step_end_tensor_inputs=[])
    assert seen[0][2] == ()

    def blank(pipeline: PITIPipeline, step: int, timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        last = step == pipeline.num_timesteps - 1
        return {"latents": torch.zeros_like(given["latents"])} if last else given

    made = pipe(**inputs(pipe, callback_on_step_end=blank, output_type="latent"))[0]
    assert made.abs().sum() == 0
    called(pipe, callback_on_step_end=watching, callback_on_step_end_tensor_inputs=None)
    assert seen[-1][2] == ("latents",)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"latents": torch.zeros(1)}, r"returned 'latents' of shape \[1\]"),
        ({"latents": None}, "returned 'latents' of type NoneType; return a tensor, or leave it out"),
        (torch.zeros(2), "returned Tensor, not a dictionary; return {'latents': …}, or nothing"),
        (("latents",), "returned tuple, not a dictionary"),
    ],
)
def test_what_a_callback_gives_back_is_checked(result: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"callback_on_step_end: {message}"):
        called(tiny_pipeline(), callback_on_step_end=lambda *_: result)


@pytest.mark.parametrize("threads", [True, False])
def test_a_call_keeps_its_guidance_while_another_runs(threads: bool) -> None:
    pipe, counts = tiny_pipeline(), []
    alone = called(pipe, guidance_scale=1.0)

    def other() -> None:
        called(pipe, guidance_scale=9.0, num_inference_steps=3, callback_on_step_end=lambda *_: {})

    def calling(pipeline: PITIPipeline, *_: Any) -> None:
        if threads:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        else:
            other()
        counts.append((pipeline.guidance_scale, pipeline.num_timesteps))

    beside = called(pipe, guidance_scale=1.0, callback_on_step_end=calling)
    assert counts == [(1.0, 2)] * 2
    assert np.abs(beside - alone).max() < CLOSE
    assert (pipe.guidance_scale, pipe.num_timesteps) == (1.0, 2)
    assert copy.deepcopy(pipe).guidance_scale == 1.0


def test_a_callback_may_change_the_guidance() -> None:
    pipe = tiny_cascade()

    def stronger(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale += 1.0

    changed = called(pipe, guidance_scale=2.0, callback_on_step_end=stronger)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert np.abs(changed - called(pipe, guidance_scale=2.0)).max() > CLOSE
    assert pipe.guidance_scale == 2.0

    def as_it_is(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 1.0

    off = called(pipe, guidance_scale=1.0)
    assert np.abs(called(pipe, guidance_scale=1.0, callback_on_step_end=as_it_is) - off).max() < CLOSE
    on = called(pipe, guidance_scale=1.0, callback_on_step_end=stronger)
    assert np.abs(on - off).max() > CLOSE


def test_what_a_callback_makes_of_the_guidance_ends_with_its_batch() -> None:
    """As diffusers' SDCFGCutoffCallback switches it off."""

    def cut_off(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 1.0

    pipe = tiny_cascade()
    given = {"guidance_scale": 4.0, "callback_on_step_end": cut_off, "num_images_per_prompt": 2}
    apart = called(pipe, **given, batch_size=1, generator=[seeded(1), seeded(2)])
    together = called(pipe, **given, batch_size=2, generator=[seeded(1), seeded(2)])
    # 0.3 where a batch begins as the one before it ended; some processors round a level of the small image otherwise
    assert np.abs(apart - together).max() < 0.03


@KINDS
@pytest.mark.parametrize("last", [0, 2])
def test_a_callback_may_end_the_call(tiny: Any, last: int) -> None:
    """As diffusers' guide to callbacks interrupts a pipeline."""
    pipe, seen = tiny(), list[torch.Tensor]()
    steps = {"num_inference_steps": 2} if pipe.upsampler is None else {"num_inference_steps": 2, "upsampler_steps": 2}
    whole = called(pipe, **steps)

    def interrupt(pipeline: PITIPipeline, step: int, _: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append(tensors["latents"])
        if step == last:
            pipeline._interrupt = True

    ended = called(pipe, **steps, callback_on_step_end=interrupt)
    assert (len(seen), pipe.interrupt) == (min(last + 1, pipe.num_timesteps), last < pipe.num_timesteps)
    assert ended.shape == whole.shape
    there = (seen[-1].clamp(-1, 1) / 2 + 0.5).repeat_interleave(ended.shape[1] // seen[-1].shape[-1], -1)
    assert np.abs(ended[0, 0] - there[0, :, 0].T.numpy()).max() < 0.01  # what the last step left, to 8 bits
    assert np.abs(called(pipe, **steps) - whole).max() < CLOSE
    assert not pipe.interrupt


def test_a_callback_switches_guidance_off_as_those_of_diffusers_do() -> None:
    """They set a scale of 0, which is no w of −1."""

    def off_at_once(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 0.0

    def to_one(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 1.0

    one, other = (
        called(tiny_pipeline(), guidance_scale=4.0, callback_on_step_end=end) for end in (off_at_once, to_one)
    )
    assert np.array_equal(one, other)


def test_a_scale_is_one_more_than_the_strength_of_a_student() -> None:
    pipe = tiny_pipeline()
    pipe.base.register_to_config(student_spec={"timesteps": None, "w": 0.3})
    pipe.base.student = StudentSpec(timesteps=None, guidance=Guidance(w=0.3))
    plain = called(pipe)
    assert np.array_equal(called(pipe, guidance_scale=1.3), plain)
    assert np.array_equal(called(pipe, callback_on_step_end=lambda *_: {}), plain)


def test_a_callback_leaves_the_guidance_in_a_students_weights() -> None:
    pipe = tiny_pipeline()
    pipe.base.register_to_config(student_spec={"timesteps": None, "w": 3.0})
    pipe.base.student = StudentSpec(timesteps=None, guidance=Guidance(w=3.0))
    plain = called(pipe)
    assert np.array_equal(called(pipe, callback_on_step_end=lambda *_: {}), plain)
    assert pipe.guidance_scale == 4.0

    def weaker(pipeline: PITIPipeline, *_: Any) -> None:
        pipeline._guidance_scale = 1.0

    with pytest.raises(
        UserError, match=r"scale became 1, but w = 3 is fixed by this distilled model's weights.*distilled from"
    ):
        called(pipe, callback_on_step_end=weaker)
