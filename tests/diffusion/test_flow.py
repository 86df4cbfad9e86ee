"""A rectified flow as a noise schedule: its algebra, its steps, and incompatible settings."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from piti.core.spec import SpecError
from piti.diffusion.guidance import Guidance, conditioned, guided
from piti.diffusion.inversion import invert, resample
from piti.diffusion.losses import min_snr
from piti.diffusion.samplers import SAMPLERS, sample, sampler_of, sampling_timesteps
from piti.diffusion.schedule import Estimate, NoiseSchedule, ScheduleSpec, flow_noise
from piti.diffusion.schedulers import scheduler_of, spec_of
from piti.models.flow import FlowInput

FLOW = {"betas": "flow", "prediction": "flow_prediction", "shift": 3.0}
SPEC = ScheduleSpec.parse(FLOW, "test")
SCHEDULE = NoiseSchedule(SPEC)
EVERY = torch.arange(1000)


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x0, noise


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


def test_levels_are_those_of_diffusers() -> None:
    theirs: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(flow_noise(1000, 3.0).float(), theirs.sigmas.flip(0), atol=1e-6, rtol=0)


def test_a_network_sees_the_straight_line_between_image_and_noise() -> None:
    x0, noise = drawn(1000)
    z, time = FlowInput(1000, 3.0)(SCHEDULE.q_sample(x0, EVERY, noise), EVERY)
    s = flow_noise(1000, 3.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(z, (1 - s) * x0 + s * noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(time.double(), 1000 * s.flatten(), atol=1e-3, rtol=0)
    half, _ = FlowInput(1000, 3.0)(x0[:1].half(), torch.tensor(5))
    assert half.dtype == torch.float16


def test_image_and_noise_follow_from_the_direction_at_every_step() -> None:
    x0, noise = drawn(1000)
    x_t, direction = SCHEDULE.q_sample(x0, EVERY, noise), SCHEDULE.target(x0, noise, EVERY)
    torch.testing.assert_close(direction, noise - x0)
    torch.testing.assert_close(SCHEDULE.to_x0(direction, x_t, EVERY), x0)
    eps = SCHEDULE.to_epsilon(direction, x_t, EVERY)
    torch.testing.assert_close(eps, noise)
    torch.testing.assert_close(SCHEDULE.predict_x0(x_t, EVERY, eps), x0, atol=1e-8, rtol=0)  # as samplers do


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("w", [0.0, 1.5])
def test_every_sampler_arrives_where_a_perfect_network_points(sampler: str, w: float) -> None:
    x0 = drawn(2)[0].float()

    def perfect(x_t: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, None]:
        eps = SCHEDULE.eps_from_x0(x_t.double(), t, tokens.double())
        return (eps - tokens).float(), None

    denoise = guided(conditioned(perfect, x0, torch.cat([x0, x0]), SCHEDULE), Guidance(w=w), SCHEDULE)
    made = sample(denoise, drawn(2, 1)[1].float(), SCHEDULE, sampler, 8, generators(2))
    torch.testing.assert_close(made, x0, atol=2e-3, rtol=0)


def direction(z: Tensor, s: float) -> Tensor:
    """A curved flow."""
    return torch.tanh(z) * (1 + s) - 0.3


def along_it(x_t: Tensor, t: Tensor) -> Estimate:
    """As samplers call a network that learned it, in float64."""

    def predict(x_t: Tensor, t: Tensor, _: Any) -> tuple[Tensor, None]:
        z, time = FlowInput(1000, 3.0)(x_t.double(), t)
        return direction(z, time[0].item() / 1000), None

    return guided(conditioned(predict, None, None, SCHEDULE), Guidance(w=0.0), SCHEDULE)(x_t, t)


def test_ddim_is_eulers_method_along_the_flow() -> None:
    z = x_T = drawn(1)[1]
    visited = sampling_timesteps(SCHEDULE, "ddim", 5)
    levels = [*flow_noise(1000, 3.0)[visited].flip(0).tolist(), 0.0]
    for now, then in itertools.pairwise(levels):
        z = z + (then - now) * direction(z, now)
    made = sample(along_it, x_T, SCHEDULE, "ddim", 5, generators(1))
    torch.testing.assert_close(made, z, atol=2e-5, rtol=0)


def test_an_image_goes_up_to_its_noise_and_back() -> None:
    image = drawn(1)[0] / 2
    trajectory = invert(along_it, image, SCHEDULE, 10, refinements=12)
    torch.testing.assert_close(resample(along_it, trajectory, trajectory.noise), image, atol=1e-2, rtol=0)
    assert (trajectory.noise - image).abs().max() > 0.5


def test_steps_are_even_and_end_in_noise() -> None:
    assert sampling_timesteps(SCHEDULE, "ddim", 4) == [249, 499, 749, 999]
    assert sampling_timesteps(SCHEDULE, "ddpm", 1) == [999]
    assert len(set(sampling_timesteps(SCHEDULE, "ddim", 1000))) == 1000
    solver = sampling_timesteps(SCHEDULE, "dpm++", 4)  # which begins where a little signal is left
    assert solver[-1] == max(t for t in range(1000) if SCHEDULE.signal_to_noise[t] >= torch.e ** (-2 * 5.1))
    assert max(b - a for a, b in itertools.pairwise(solver)) <= 246


def test_min_snr_bounds_the_weight_of_the_image() -> None:
    (x0, noise), other = drawn(1000), drawn(1000, 1)[0]
    x_t = SCHEDULE.q_sample(x0, EVERY, noise)
    far = (SCHEDULE.x0_from_flow(x_t, EVERY, other) - x0).square().sum((1, 2, 3))
    loss = (other - SCHEDULE.target(x0, noise, EVERY)).square().sum((1, 2, 3))
    bounded = SCHEDULE.snr(EVERY).double().clamp(max=5.0)
    torch.testing.assert_close(min_snr(SCHEDULE, EVERY).double() * loss, bounded * far, rtol=1e-4, atol=1e-12)


def test_a_scheduler_says_it_again() -> None:
    scheduler = scheduler_of(SPEC)
    assert spec_of(scheduler) == SPEC
    assert sampler_of(scheduler) == "dpm++"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"prediction": "epsilon"}, "a flow needs both; set both to 'flow' and 'flow_prediction', or neither"),
        ({"betas": "linear"}, "a flow needs both"),
        ({"beta_range": [0.1, 0.2]}, "'beta_range' has no effect with betas = 'flow'"),
        ({"clip": True}, "leave 'clip', 'threshold' and 'to_clean' out, or set clip to false"),
        ({"shift": 0.0}, "'shift' = 0.0: is too small"),
        ({"betas": "linear", "prediction": "epsilon"}, "'shift' has no effect with betas = 'linear'; leave it out"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        ScheduleSpec.parse(FLOW | values, "test")
