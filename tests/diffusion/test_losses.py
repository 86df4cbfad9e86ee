"""Losses compared with the release's values and closed forms."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from piti.diffusion.losses import (
    diffusion_loss,
    discretized_gaussian_log_likelihood,
    min_snr,
    normal_kl,
    vb_bits_per_dim,
)
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.diffusion.spacing import space_timesteps

SPACINGS = ["1000", "250", "fast27"]
V_SCHEDULE = NoiseSchedule(ScheduleSpec())
EPS_SCHEDULE = NoiseSchedule(ScheduleSpec(prediction="epsilon"))
X0_SCHEDULE = NoiseSchedule(ScheduleSpec(prediction="sample"))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(5, 3, 8, 8, generator=generator) * 2 - 1
    return x0, torch.randn(x0.shape, generator=generator), torch.tensor([0, 1, 300, 700, 999])


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_mse_and_bound_equal_the_recorded_ones(golden: Path, betas: str, spacing: str) -> None:
    recorded = load_file(golden / "diffusion_math.safetensors")
    spec = ScheduleSpec.parse({"betas": betas, "prediction": "epsilon"}, "test")
    schedule = NoiseSchedule(spec).respaced(space_timesteps(1000, spacing))
    want = {key.split("|", 2)[2]: v for key, v in recorded.items() if key.startswith(f"{betas}|{spacing}|")}
    x0, noise, t = recorded["x_start"], recorded["noise"], want["t"]
    eps, variance = recorded["model_output"].chunk(2, dim=1)
    x_t = schedule.q_sample(x0, t, noise)
    losses = diffusion_loss(eps, variance, x0, x_t, t, noise, schedule)
    unweighted = vb_bits_per_dim(schedule.predict_x0(x_t, t, eps), variance, x0, x_t, t, schedule)
    torch.testing.assert_close(losses.simple, want["training_losses.mse"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.vb, want["training_losses.vb"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unweighted, want["vb_terms_bpd.clip0"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses.total, want["training_losses.loss"].mean(), atol=1e-5, rtol=1e-5)


def test_kl_and_likelihood_equal_the_recorded_ones(golden: Path) -> None:
    want = load_file(golden / "losses_nn.safetensors")
    kl = normal_kl(want["mean1"], want["logvar1"], want["mean2"], want["logvar2"])
    likelihood = discretized_gaussian_log_likelihood(want["x"], want["means"], want["log_scales"])
    torch.testing.assert_close(kl, want["normal_kl"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(likelihood, want["dgll"], atol=1e-5, rtol=1e-5)


def test_the_likelihood_is_a_distribution_over_bytes() -> None:
    levels = (torch.arange(256) / 127.5 - 1).view(1, 256)
    mean, log_scale = torch.tensor([[-1.1], [0.013], [1.05]]), torch.tensor([[-1.0], [-3.0], [-2.0]])
    mass = discretized_gaussian_log_likelihood(levels, mean, log_scale).exp().sum(dim=1)
    torch.testing.assert_close(mass, torch.ones(3), atol=1e-4, rtol=0)


def test_kl_agrees_with_torch() -> None:
    a, b = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-1.0, 2.0)
    ours = normal_kl(*map(torch.tensor, (0.3, 2 * math.log(0.7), -1.0, 2 * math.log(2.0))))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(a, b))


@pytest.mark.parametrize("schedule", [V_SCHEDULE, EPS_SCHEDULE, X0_SCHEDULE])
def test_a_perfect_prediction_costs_nothing(schedule: NoiseSchedule) -> None:
    x0, noise, t = batch()
    x_t = schedule.q_sample(x0, t, noise)
    losses = diffusion_loss(schedule.target(x0, noise, t), torch.full_like(x0, -1), x0, x_t, t, noise, schedule)
    assert losses.simple.max() == 0
    assert losses.vb[1:].abs().max() < 1e-4  # the true mean with the posterior's variance: no divergence


def test_the_bound_is_the_same_for_a_v_model_and_an_eps_model() -> None:
    x0, noise, t = (part.double() if part.is_floating_point() else part for part in batch())
    x_t = V_SCHEDULE.q_sample(x0, t, noise)
    v = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    variance = torch.tanh(v)
    by_v = diffusion_loss(v, variance, x0, x_t, t, noise, V_SCHEDULE).vb
    eps = V_SCHEDULE.to_epsilon(v, x_t, t)
    by_eps = diffusion_loss(eps, variance, x0, x_t, t, noise, EPS_SCHEDULE).vb
    torch.testing.assert_close(by_v, by_eps, atol=1e-9, rtol=1e-6)


def test_the_bound_trains_the_variance_alone() -> None:
    x0, noise, t = batch()
    x_t = V_SCHEDULE.q_sample(x0, t, noise)
    output = torch.zeros_like(x0, requires_grad=True)
    variance = torch.zeros_like(x0, requires_grad=True)
    diffusion_loss(output, variance, x0, x_t, t, noise, V_SCHEDULE).vb.sum().backward()
    assert output.grad is None
    assert variance.grad is not None
    assert variance.grad.isfinite().all()
    assert (variance.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_without_learned_variance_the_total_is_the_simple_loss() -> None:
    x0, noise, t = batch()
    x_t = V_SCHEDULE.q_sample(x0, t, noise)
    losses = diffusion_loss(torch.zeros_like(x0), None, x0, x_t, t, noise, V_SCHEDULE)
    assert losses.vb.abs().max() == 0
    torch.testing.assert_close(losses.total, losses.simple.mean())
    torch.testing.assert_close(losses.simple, V_SCHEDULE.v_from(x0, noise, t).square().mean(dim=(1, 2, 3)))


def test_the_weight_of_the_bound_can_be_chosen() -> None:
    x0, noise, t = batch()
    x_t = V_SCHEDULE.q_sample(x0, t, noise)
    zeros = torch.zeros_like(x0)
    as_released = diffusion_loss(zeros, zeros, x0, x_t, t, noise, V_SCHEDULE)
    off = diffusion_loss(zeros, zeros, x0, x_t, t, noise, V_SCHEDULE, vb_weight=0.0)
    half = diffusion_loss(zeros, zeros, x0, x_t, t, noise, V_SCHEDULE, vb_weight=0.5)
    torch.testing.assert_close(off.total, off.simple.mean())
    torch.testing.assert_close(half.vb, as_released.vb / 2)  # T/1000 = 1


def test_the_bound_counts_as_a_share_of_a_thousand_steps() -> None:
    x0, noise, _ = batch()
    schedule, t = V_SCHEDULE.respaced(range(0, 1000, 4)), torch.tensor([1, 50, 100, 200, 249])
    x_t, zeros = schedule.q_sample(x0, t, noise), torch.zeros_like(x0)
    weighted = diffusion_loss(zeros, zeros, x0, x_t, t, noise, schedule).vb
    whole = diffusion_loss(zeros, zeros, x0, x_t, t, noise, schedule, vb_weight=1.0).vb
    torch.testing.assert_close(weighted, whole / 4)


def test_the_first_step_costs_the_likelihood_of_the_image() -> None:
    """With x̂₀ = x₀ and a wide Gaussian, the mass of a bin is the density times its width of 2/255."""
    x0, _, _ = batch()
    x0, t = 0.5 * x0, torch.zeros(5, dtype=torch.int64)
    raw = torch.full_like(x0, 15.0)  # far outside −1 … 1, for a deviation of 0.06
    std = V_SCHEDULE.log_variance(raw, t).mul(0.5).exp().flatten()[0].item()
    assert std > 0.05
    want = math.log2(std * math.sqrt(2 * math.pi) * 255 / 2)
    bits = vb_bits_per_dim(x0, raw, x0, x0, t, V_SCHEDULE)
    torch.testing.assert_close(bits, torch.full((5,), want), atol=0.02, rtol=0)


@pytest.mark.parametrize("schedule", [V_SCHEDULE, EPS_SCHEDULE, X0_SCHEDULE])
def test_min_snr_weighs_the_error_of_x0_by_the_clipped_snr(schedule: NoiseSchedule) -> None:
    """Whatever is predicted, the weighted loss is min(SNR, 5) · ‖x₀ − x̂₀‖²."""
    x0, noise, t = (part.double() if part.is_floating_point() else part for part in batch())
    t = t.clamp(min=1)
    x_t = schedule.q_sample(x0, t, noise)
    output = schedule.target(x0, noise, t) + 0.1
    snr = schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t])
    error = (schedule.to_x0(output, x_t, t) - x0).square().mean(dim=(1, 2, 3))
    losses = diffusion_loss(output, None, x0, x_t, t, noise, schedule, weighting="min_snr")
    torch.testing.assert_close(losses.total, (snr.clamp(max=5) * error).mean(), atol=1e-6, rtol=1e-5)
    assert min_snr(schedule, t).shape == t.shape


def test_an_unknown_weighting_names_the_nearest() -> None:
    x0, noise, t = batch()
    with pytest.raises(ValueError, match="'min-snr'; did you mean 'min_snr'"):
        diffusion_loss(x0, None, x0, x0, t, noise, V_SCHEDULE, weighting="min-snr")
