"""Samplers: single steps compared with the release, whole runs with an exact denoiser."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    initial_noise,
    sample,
    sampling_timesteps,
    with_variance,
    x0_of,
)
from piti.diffusion.schedule import Denoise, Estimate, NoiseSchedule, ScheduleSpec
from piti.diffusion.spacing import space_timesteps

PROCESSES = [(betas, spacing) for betas in ("squaredcos_cap_v2", "linear") for spacing in ("1000", "250", "fast27")]
SCHEDULE = NoiseSchedule(ScheduleSpec())
MEAN, STD = 0.1, 0.18  # of the Gaussian data: within [−1, 1] by 5 standard deviations


class Recorded:
    """The release's inputs and steps for one process."""

    def __init__(self, golden: Path, betas: str, spacing: str) -> None:
        recorded = load_file(golden / "diffusion_math.safetensors")
        self.want = {k.split("|", 2)[2]: v for k, v in recorded.items() if k.startswith(f"{betas}|{spacing}|")}
        self.t, self.noise = self.want["t"], recorded["step_noise"]
        spec = ScheduleSpec.parse({"betas": betas, "prediction": "epsilon"}, "test")
        self.schedule = NoiseSchedule(spec).respaced(space_timesteps(1000, spacing))
        self.x_t = self.schedule.q_sample(recorded["x_start"], self.t, recorded["noise"])
        self.estimate = Estimate(*recorded["model_output"].chunk(2, dim=1))
        self.x0 = x0_of(self.schedule, self.x_t, self.t, self.estimate)


@pytest.mark.parametrize(("betas", "spacing"), PROCESSES)
def test_ancestral_steps_equal_the_recorded_ones(
    golden: Path, monkeypatch: pytest.MonkeyPatch, betas: str, spacing: str
) -> None:
    case = Recorded(golden, betas, spacing)
    scheduler = SAMPLERS["ddpm"].build(case.schedule)
    output = with_variance(case.x0, case.estimate)
    for i, k in enumerate(case.t.tolist()):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, row=case.noise[i : i + 1], **__: row)
        ours = scheduler.step(output[i : i + 1], k, case.x_t[i : i + 1]).prev_sample
        torch.testing.assert_close(ours[0], case.want["p_sample"][i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("betas", "spacing"), PROCESSES)
def test_ddim_steps_equal_the_recorded_ones(golden: Path, betas: str, spacing: str, eta: float) -> None:
    case = Recorded(golden, betas, spacing)
    scheduler = SAMPLERS["ddim"].build(case.schedule)
    for i, k in enumerate(case.t.tolist()):
        row = slice(i, i + 1)
        ours = scheduler.step(case.x0[row], k, case.x_t[row], eta=eta, variance_noise=case.noise[row]).prev_sample
        torch.testing.assert_close(ours[0], case.want[f"ddim_sample.eta{eta}"][i], atol=1e-4, rtol=0)


def test_the_schedulers_know_the_previous_timestep() -> None:
    """At 250 evenly spaced steps t − 1000 // 250 is now and then off by one; our step k − 1 is not."""
    spaced = SCHEDULE.respaced(space_timesteps(1000, 250))
    x_t, x0 = torch.full((1, 3, 2, 2), 0.7), torch.full((1, 3, 2, 2), -0.2)
    scheduler = SAMPLERS["ddim"].build(spaced)
    for k in range(1, 250):
        now, before = SCHEDULE.alphas_cumprod[spaced.timesteps[[k, k - 1]]]
        eps = (0.7 + 0.2 * now.sqrt()) / (1 - now).sqrt()
        want = -0.2 * before.sqrt() + (1 - before).sqrt() * eps  # DDIM, eq. 12
        ours = scheduler.step(x0, k, x_t).prev_sample
        torch.testing.assert_close(ours, torch.full_like(ours, want.item()), atol=2e-6, rtol=0)


# Data whose pixels are independently N(MEAN, STD²): everything is known in closed form


def exact_eps(x_t: Tensor, t: Tensor) -> Tensor:
    """E[ε | x_t], in float64."""
    alpha, sigma = (
        SCHEDULE.at(f"sqrt_{name}", t, x_t.double()) for name in ("alphas_cumprod", "one_minus_alphas_cumprod")
    )
    return sigma * (x_t.double() - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def gaussian(x_t: Tensor, t: Tensor) -> Estimate:
    return Estimate(exact_eps(x_t, t), None)


def gaussian_with_variance(spaced: NoiseSchedule) -> Denoise:
    """Also the raw variance that makes each reverse step of `spaced` exact."""
    step_of = {t: k for k, t in enumerate(spaced.timesteps.tolist())}

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        k = torch.tensor([step_of[int(step)] for step in t])
        like = x_t.double()
        alphas_cumprod, beta = spaced.at("alphas_cumprod", k, like), spaced.at("betas", k, like)
        var_x0 = STD**2 * (1 - alphas_cumprod) / (alphas_cumprod * STD**2 + 1 - alphas_cumprod)
        lower = spaced.at("posterior_log_variance_clipped", k, like)
        variance = spaced.at("posterior_variance", k, like) + spaced.at("posterior_mean_coef1", k, like) ** 2 * var_x0
        raw = 2 * (variance.log() - lower) / (beta.log() - lower) - 1
        return Estimate(exact_eps(x_t, t), raw.expand(x_t.shape))

    return denoise


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def draw(
    sampler: str,
    steps: int | str,
    denoise: Denoise = gaussian,
    count: int = 8,
    first: int = 0,
    eta: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x_T and its samples."""
    own = generators(count, first)
    x_T = initial_noise((count, 3, 16, 16), own)
    return x_T, sample(denoise, x_T, SCHEDULE, sampler, steps, own, eta=eta)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta", "error"),
    [
        ("ddpm", 250, 0.0, 0.05),
        ("ddim", 100, 0.0, 0.05),
        ("ddim", 250, 1.0, 0.05),
        ("ddim", "fast27", 0.0, 0.1),
        ("dpm++", 10, 0.0, 0.06),
        ("dpm++", 20, 0.0, 0.02),
        ("dpm++", "50", 0.0, 0.1),
        ("dpm++sde", 50, 0.0, 0.03),
        ("unipc", 10, 0.0, 0.06),
        ("unipc", 20, 0.0, 0.02),
    ],
)
def test_every_sampler_recovers_the_data(sampler: str, steps: int | str, eta: float, error: float) -> None:
    _, x0 = draw(sampler, steps, eta=eta)
    assert abs(x0.mean() - MEAN) < 0.01
    assert abs(x0.std() / STD - 1) < error


def test_the_ancestral_sampler_uses_the_learned_variance() -> None:
    """With the exact variance few steps suffice; without, the spread of x̂₀ given x_t is lost at each."""
    spaced = SCHEDULE.respaced(sampling_timesteps(SCHEDULE, "ddpm", 12))
    _, learned = draw("ddpm", 12, gaussian_with_variance(spaced))
    _, fixed = draw("ddpm", 12)
    assert abs(learned.std() / STD - 1) < 0.04
    assert fixed.std() / STD < 0.9


@pytest.mark.parametrize(("sampler", "steps", "error"), [("ddim", 100, 0.04), ("dpm++", 20, 0.01), ("unipc", 20, 0.01)])
def test_deterministic_samplers_follow_the_ode(sampler: str, steps: int, error: float) -> None:
    """The probability flow of Gaussian data maps x_T linearly; twice the steps come nearer to it."""
    x_T, x0 = draw(sampler, steps)
    alpha = SCHEDULE.alphas_cumprod[sampling_timesteps(SCHEDULE, sampler, steps)[-1]].sqrt()
    exact = MEAN + STD * (x_T - alpha * MEAN) / (alpha**2 * STD**2 + 1 - alpha**2).sqrt()
    coarse = draw(sampler, steps // 2)[1]
    assert (x0 - exact).abs().max() < error
    assert (x0 - exact).abs().mean() < (coarse - exact).abs().mean() / 1.8


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_sample_is_the_same_in_any_batch(sampler: str) -> None:
    eta = 0.7 if SAMPLERS[sampler].takes_eta else 0.0
    _, together = draw(sampler, 9, count=4, eta=eta)
    for i in range(4):
        _, alone = draw(sampler, 9, count=1, first=i, eta=eta)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)
    assert (together[0] - together[1]).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("sampler", "eta", "random"),
    [
        ("ddpm", 0.0, True),
        ("ddim", 0.0, False),
        ("ddim", 0.5, True),
        ("dpm++", 0.0, False),
        ("dpm++sde", 0.0, True),
        ("unipc", 0.0, False),
    ],
)
def test_only_stochastic_samplers_draw_noise_on_the_way(sampler: str, eta: float, random: bool) -> None:
    x_T = initial_noise((1, 3, 8, 8), generators(1))
    first, second = (sample(gaussian, x_T, SCHEDULE, sampler, 20, generators(1, s), eta=eta) for s in (1, 2))
    assert ((first - second).abs().mean() > 0.02) == random


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_wild_estimates_stay_within_the_image_range(sampler: str) -> None:
    """x̂₀ is clipped at every step, so a net that is wrong at high noise cannot explode."""

    def wild(x_t: Tensor, t: Tensor) -> Estimate:
        eps = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(int(t[0])))
        return Estimate(eps, torch.zeros_like(eps))

    seen: list[float] = []
    own = generators(2)
    x_T = initial_noise((2, 3, 8, 8), own)
    x0 = sample(wild, x_T, SCHEDULE, sampler, 15, own, on_step=lambda i, n, x0: seen.append(x0.abs().max().item()))
    assert x0.isfinite().all()
    assert x0.abs().max() <= 1
    assert max(seen) == 1


def test_the_loop_visits_the_trained_timesteps_and_reports_each() -> None:
    visited: list[int] = []
    reported: list[tuple[int, int]] = []

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        assert x_t.dtype == torch.float32
        assert t.shape == (2,)
        visited.append(int(t[0]))
        return gaussian(x_t, t)

    own = generators(2)
    x_T = initial_noise((2, 3, 4, 4), own)
    sample(denoise, x_T, SCHEDULE, "ddim", "fast27", own, on_step=lambda i, n, x0: reported.append((i, n)))
    assert visited == space_timesteps(1000, "fast27")[::-1]
    assert reported == [(i + 1, 27) for i in range(27)]
    visited.clear()
    respaced = SCHEDULE.respaced(space_timesteps(1000, 250))
    sample(denoise, x_T, respaced, "ddim", 5, own)
    assert visited == respaced.timesteps[space_timesteps(250, 5)].tolist()[::-1]


def kept_texture(sampler: str, steps: int | str, std: float) -> float:
    """How much of a fine texture N(0, std²) a run keeps: the gain from x_T to x₀, 1 when exact."""

    def texture(x_t: Tensor, t: Tensor) -> Estimate:
        x_t = x_t.double()
        alpha, sigma = (SCHEDULE.at(f"sqrt_{a}", t, x_t) for a in ("alphas_cumprod", "one_minus_alphas_cumprod"))
        return Estimate(sigma * x_t / (alpha**2 * std**2 + sigma**2), None)

    x0 = sample(texture, torch.ones(1, 3, 2, 2), SCHEDULE, sampler, steps, generators(1))
    return x0.mean().item() / std


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_few_solver_steps_keep_fine_texture(sampler: str) -> None:
    for std in (0.05, 0.1, 0.4):
        assert 0.9 < kept_texture(sampler, 10, std) < 1.08
        assert 0.92 < kept_texture(sampler, 20, std) < 1.03


def test_timesteps_by_name_are_the_released_ones() -> None:
    assert sampling_timesteps(SCHEDULE, "ddim", 27) == space_timesteps(1000, 27)
    assert sampling_timesteps(SCHEDULE, "ddpm", "fast27") == space_timesteps(1000, "fast27")
    assert sampling_timesteps(SCHEDULE, "dpm++", "27")[:-1] == space_timesteps(1000, 27)[:-1]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 10, 50, 500, 900])
def test_a_count_gives_so_many_timesteps_from_the_noise_down(sampler: str, steps: int) -> None:
    kept = sampling_timesteps(SCHEDULE, sampler, steps)
    assert len(kept) == steps
    assert kept == sorted(set(kept))
    assert kept[-1] == (995 if SAMPLERS[sampler].quadratic else 999)


def test_solvers_start_where_diffusers_would() -> None:
    theirs = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    theirs.set_timesteps(20)
    for steps in (20, "27", "1000"):
        assert sampling_timesteps(SCHEDULE, "dpm++", steps)[-1] == theirs.timesteps.max()


def test_our_solvers_step_as_diffusers_would() -> None:
    """Handing over x̂₀ on a respaced process changes nothing but the rounding."""
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, thresholding=True, sample_max_value=1.0
    )
    theirs.set_timesteps(timesteps=sampling_timesteps(SCHEDULE, "dpm++", 20)[::-1])
    x_T, ours = draw("dpm++", 20)
    x_t = x_T
    for step in theirs.timesteps:
        eps = exact_eps(x_t, step.expand(len(x_t))).float()
        x_t = theirs.step(eps, step, x_t, return_dict=False)[0]
    torch.testing.assert_close(ours, x_t.clamp(-1, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta", "message"),
    [
        (
            "dmp++",
            20,
            0.0,
            "'dmp\\+\\+'; did you mean 'dpm\\+\\+'.*ddpm, ddim, dpm\\+\\+, dpm\\+\\+sde, unipc",
        ),
        ("euler", 20, 0.0, "ddpm, ddim"),
        ("ddim", 1001, 0.0, "steps 1001: 'ddim' takes 1 … 1000"),
        ("ddpm", 0, 0.0, "steps 0: "),
        ("ddpm", "0", 0.0, "steps '0': keeps no timestep"),
        ("dpm++", 1000, 0.0, "takes 1 … 99"),
        ("unipc", "ddim300", 0.0, "ddim250"),
        ("ddpm", 20, 0.5, "'ddim', or eta = 0"),
        ("ddim", 20, 1.5, "eta = 1.5"),
    ],
)
def test_impossible_requests_are_refused_before_the_first_step(
    sampler: str, steps: int | str, eta: float, message: str
) -> None:
    def never(x_t: Tensor, t: Tensor) -> Estimate:
        raise AssertionError("ran")

    with pytest.raises(ValueError, match=message):
        draw(sampler, steps, never, count=1, eta=eta)


def test_each_sample_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="expected 3 generators, one per sample"):
        initial_noise((3, 3, 4, 4), generators(2))
    with pytest.raises(ValueError, match="expected 2 generators, one per sample"):
        sample(gaussian, torch.zeros(2, 3, 4, 4), SCHEDULE, "ddim", 5, generators(1))


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_few_steps_work(sampler: str, steps: int) -> None:
    _, x0 = draw(sampler, steps, count=1)
    assert abs(x0.mean() - MEAN) < 0.05
    assert np.isfinite(x0.numpy()).all()


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (Sampler(EulerDiscreteScheduler), "noise of standard deviation"),
        (Sampler(HeunDiscreteScheduler), "noise of standard deviation"),
        (Sampler(DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}), "chooses its own timesteps"),
    ],
)
def test_a_scheduler_that_would_not_follow_the_process_is_refused(sampler: Sampler, said: str) -> None:
    """It would end at another image, and be no error: the last step arrives at whatever x̂₀ was then."""
    with pytest.raises(UserError, match=said):
        sampler.build(SCHEDULE.respaced(space_timesteps(1000, 10)))
    Sampler(DEISMultistepScheduler).build(SCHEDULE.respaced(space_timesteps(1000, 10)))
