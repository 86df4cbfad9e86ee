"""Editing with a one-step upsampler, which has no inversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.core.errors import UserError
from piti.core.images import to_pil, to_tensor
from piti.core.seeding import generator_for
from piti.diffusion.samplers import initial_noise
from tests.editing.edits import apart, edited, photograph
from tests.pipelines.test_cascade import tiny_cascade

ONE_STEP_EDIT: dict[str, Any] = {"upsampler_steps": None}


def test_an_upsampler_of_one_step_draws_the_region_anew_and_keeps_the_rest() -> None:
    image = photograph(32, 32)
    calls: list[tuple[int, int]] = []
    result = edited(
        tiny_cascade(conditional=True, one_step=True),
        image,
        num=3,
        batch_size=2,
        measure=True,
        on_step=lambda done, total, x0: calls.append((done, total)),
        **ONE_STEP_EDIT,
    )
    outside = np.asarray(result.region) == 0
    assert 0.5 < outside.mean() < 1
    for made in result.images:
        assert (apart(made, image)[outside] == 0).all()
    assert (apart(*result.images[:2])[~outside] > 5).mean() > 0.5
    steps = 3 * (1 + 2 + 1) + 2  # of the base up, two batches down, back; one of the upsampler in each batch
    assert calls == [(done, steps) for done in range(1, steps + 1)]
    assert result.returned is not None
    assert result.returned_small


def test_without_variety_its_images_are_all_the_same() -> None:
    made = edited(tiny_cascade(one_step=True), photograph(32, 32), num=3, batch_size=2, variety=0.0, **ONE_STEP_EDIT)
    assert all((apart(made.images[0], other) <= 1).all() for other in made.images[1:])


def test_an_edit_of_everything_is_what_it_makes_of_the_small_edit() -> None:
    pipeline = tiny_cascade(one_step=True)
    image, region = photograph(32, 32), Image.new("L", (32, 32), 255)
    small = edited(pipeline, image, region=region, base_only=True).images[0]
    network = pipeline.upsampler_network()
    assert network is not None
    noise = initial_noise((1, 3, 32, 32), [generator_for(0, "upsampler")])
    with torch.no_grad():
        nothing = network.translator.encode(torch.empty(1, 0, 0, 0))
        eps = network.translator(noise, torch.tensor([999]), nothing, to_tensor(small)[None]).output
    left = float(network.schedule.alphas_cumprod[-1])  # of the image in x_T
    x0 = (noise - (1 - left) ** 0.5 * eps) / left**0.5  # DDPM, eq. 4
    result = edited(pipeline, image, region=region, **ONE_STEP_EDIT).images[0]
    assert np.abs(np.asarray(result, np.int16) - np.asarray(to_pil(x0.clamp(-1, 1)[0]), np.int16)).max() <= 1


def test_more_steps_than_its_one_are_refused() -> None:
    with pytest.raises(UserError, match="trained for one step"):
        edited(tiny_cascade(one_step=True), upsampler_steps=4)


def test_its_noise_may_be_scaled() -> None:
    pipeline, image = tiny_cascade(one_step=True), photograph(32, 32)
    one, other = (edited(pipeline, image, upsampler_noise=noise, **ONE_STEP_EDIT).images[0] for noise in (1.0, 0.5))
    assert (apart(one, other) > 5).any()
