"""Inversion: compared with the release, exact for known denoisers, and sampling with the trajectory."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.inversion import Trajectory, ddim_inversion_step, ddim_step, invert, resample
from piti.diffusion.samplers import SAMPLERS, sample, x0_of
from piti.diffusion.schedule import Estimate, NoiseSchedule
from piti.diffusion.spacing import space_timesteps
from tests.diffusion.test_samplers import PROCESSES, SCHEDULE, Recorded, gaussian, generators

IMAGE = (0.1 + 0.18 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))).double()


@pytest.mark.parametrize(("betas", "spacing"), PROCESSES)
def test_reverse_steps_equal_the_recorded_ones(golden: Path, betas: str, spacing: str) -> None:
    case = Recorded(golden, betas, spacing)
    rows = [slice(i, i + 1) for i in range(len(case.t))]
    steps = case.t.tolist()
    x_t, x0 = case.x_t.double(), case.x0.double()
    ours = [ddim_inversion_step(x_t[row], x0[row], k, case.schedule) for row, k in zip(rows, steps, strict=True)]
    torch.testing.assert_close(
        torch.cat(ours).float(), case.want["ddim_reverse_sample"], atol=2e-4, rtol=0
    )  # float32 there


def test_a_step_is_the_samplers_and_the_reverse_undoes_it() -> None:
    """For an estimate that does not change between the two timesteps."""
    spaced = SCHEDULE.respaced(space_timesteps(1000, 50))
    scheduler = SAMPLERS["ddim"].build(spaced)
    for k in (0, 1, 21, 49):
        x_k, x0 = IMAGE + 0.3, IMAGE.clamp(-1, 1)
        ours = ddim_step(x_k, x0, k, spaced)
        torch.testing.assert_close(ours, scheduler.step(x0, k, x_k).prev_sample, atol=1e-5, rtol=0)
        if k > 0:
            torch.testing.assert_close(ddim_inversion_step(ours, x0, k - 1, spaced), x_k, atol=1e-9, rtol=0)


def test_an_image_is_clean_also_where_the_sampler_leaves_a_rest_of_noise() -> None:
    schedule = NoiseSchedule(SCHEDULE.spec.model_copy(update={"to_clean": False}))
    spaced, x_k, x0 = schedule.respaced(space_timesteps(1000, 50)), IMAGE + 0.3, IMAGE.clamp(-1, 1)
    torch.testing.assert_close(ddim_step(x_k, x0, 0, spaced), x0)
    left = SAMPLERS["ddim"].build(spaced).step(x0, 0, x_k).prev_sample
    torch.testing.assert_close(left, x_k)  # which is where it ends
    trajectory = invert(gaussian, IMAGE, schedule, 50, 100)
    torch.testing.assert_close(resample(gaussian, trajectory, trajectory.noise), IMAGE, atol=1e-6, rtol=0)


def returned(steps: int | str, refinements: int) -> float:
    """The largest error of an image of Gaussian pixels that is inverted and sampled back."""
    trajectory = invert(gaussian, IMAGE, SCHEDULE, steps, refinements)
    return float((resample(gaussian, trajectory, trajectory.noise) - IMAGE).abs().max())


def test_the_error_of_plain_inversion_falls_with_the_steps() -> None:
    """First order: half of it for twice the steps."""
    errors = [returned(steps, 0) for steps in (50, 100, 200, 400)]
    for one, other in pairwise(errors):
        assert 1.6 < one / other < 2.5, errors
    assert errors[0] > 1e-3


@pytest.mark.parametrize("steps", [10, 50, "fast27"])
def test_refinements_make_it_exact(steps: int | str) -> None:
    errors = [returned(steps, refinements) for refinements in (0, 1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0] / 2
    assert returned(steps, 100) < 1e-6


def test_it_arrives_at_noise() -> None:
    noise = invert(gaussian, IMAGE, SCHEDULE, 100, 2).noise
    # what a denoiser of N(0.1, 0.18²) makes of an image is its standardised self
    torch.testing.assert_close(noise, (IMAGE - 0.1) / 0.18, atol=0.1, rtol=0.1)


def test_the_sampler_visits_the_same_states() -> None:
    trajectory = invert(gaussian, IMAGE, SCHEDULE, 20, 150)
    seen: list[Tensor] = []

    def watched(x_t: Tensor, t: Tensor) -> Estimate:
        seen.append(x_t)
        return gaussian(x_t, t)

    image = sample(watched, trajectory.noise, SCHEDULE, "ddim", 20, generators(2))
    torch.testing.assert_close(image, IMAGE, atol=1e-5, rtol=0)
    for visited, state in zip(seen, reversed(trajectory.states), strict=False):
        torch.testing.assert_close(visited, state, atol=1e-5, rtol=0)
    assert len(trajectory.states) == len(seen) + 1
    assert torch.equal(trajectory.states[0], IMAGE)


def test_outside_a_region_every_state_is_the_trajectorys() -> None:
    trajectory = invert(gaussian, IMAGE[:1], SCHEDULE, 10, 30)
    region = torch.zeros(1, 1, 8, 8)
    region[..., 4:], region[..., 3] = 1.0, 0.25
    seen: list[Tensor] = []

    def other(x_t: Tensor, t: Tensor) -> Estimate:
        seen.append(x_t)
        return Estimate(gaussian(x_t, t).eps - 0.5, None)

    x_T = trajectory.noise.repeat(3, 1, 1, 1)
    edited = resample(other, trajectory, x_T, region)
    free = resample(other, trajectory, x_T)
    assert edited.shape == free.shape == (3, 3, 8, 8)
    for k, visited in enumerate(reversed(seen[:10])):
        state = trajectory.states[k + 1]
        torch.testing.assert_close(visited[..., :3], state.expand_as(visited)[..., :3])
    torch.testing.assert_close(edited[..., 4:], free[..., 4:])
    # one step of another denoiser away from the image, and no further
    spaced = trajectory.schedule
    k0 = torch.zeros(1, dtype=torch.long)
    x_0 = trajectory.states[1]
    off = gaussian(x_0, spaced.timesteps[:1])
    last = x0_of(spaced, x_0, k0, off._replace(eps=off.eps - 0.5))
    torch.testing.assert_close(edited[:1, ..., :3], last[..., :3])
    mixed = 0.25 * seen[10 + 1][:1, ..., 3] + 0.75 * trajectory.states[9][..., 3]
    torch.testing.assert_close(seen[1][:1, ..., 3], mixed)


def test_steps_are_reported_and_an_error_stops_it() -> None:
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int, x0: Tensor) -> None:
        told.append((done, total))
        assert x0.shape == IMAGE.shape
        if len(told) == 7:
            raise KeyError("stop")

    trajectory: Trajectory = invert(gaussian, IMAGE, SCHEDULE, 4, 1, stop)
    with pytest.raises(KeyError):
        resample(gaussian, trajectory, trajectory.noise, on_step=stop)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 4), (2, 4), (3, 4)]


def test_what_cannot_be_inverted() -> None:
    with pytest.raises(UserError, match=r"refinements = -1"):
        invert(gaussian, IMAGE, SCHEDULE, 4, -1)
    with pytest.raises(UserError, match=r"^steps 0: "):
        invert(gaussian, IMAGE, SCHEDULE, 0)
