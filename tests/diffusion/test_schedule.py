"""Schedules compared with the release's tables, and consistency of x₀, ε and v."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from piti.core.spec import SpecError
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.diffusion.spacing import space_timesteps

PROCESSES = [(betas, spacing) for betas in ("squaredcos_cap_v2", "linear") for spacing in ("1000", "250", "fast27")]
COSINE = NoiseSchedule(ScheduleSpec())


def spaced(betas: str, spacing: str, prediction: str = "epsilon") -> NoiseSchedule:
    spec = ScheduleSpec.parse({"betas": betas, "prediction": prediction}, "test")
    return NoiseSchedule(spec).respaced(space_timesteps(1000, spacing))


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Within `tolerance`, absolute up to 1 and relative above."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance, check_dtype=False)


def test_tables_equal_the_recorded_ones(golden: Path) -> None:
    recorded = load_file(golden / "schedules_f64.safetensors")
    assert len(recorded) == 8 * 13
    for key, values in recorded.items():
        betas, spacing, table = key.split("|")
        ours = getattr(spaced(betas, spacing), table)
        assert ours.dtype == torch.float64
        assert_near(ours, values, 1e-6)


def test_respacing_twice_maps_to_the_original_steps() -> None:
    once = COSINE.respaced([10, 500, 999])
    twice = once.respaced([2, 0])
    assert twice.timesteps.tolist() == [10, 999]
    assert_near(twice.alphas_cumprod, COSINE.alphas_cumprod[[10, 999]], 1e-15)
    with pytest.raises(ValueError, match=r"0 … 2"):
        once.respaced([3])
    with pytest.raises(ValueError, match="at least one"):
        once.respaced([])


def test_the_usual_range_written_out_is_the_same_schedule() -> None:
    usual = ScheduleSpec(betas="linear", steps=500)
    written = ScheduleSpec.parse(usual.to_dict() | {"beta_range": [0.1 / 500, 20 / 500]}, "recipe.yaml")
    assert written == usual
    assert ScheduleSpec(betas="linear", steps=500, beta_range=(1e-4, 0.02)) != usual


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(SpecError, match="at least 21"):
        ScheduleSpec.parse({"betas": "linear", "steps": 20}, "recipe.yaml")
    with pytest.raises(SpecError, match="did you mean 'betas'"):
        ScheduleSpec.parse({"beta": "linear"}, "recipe.yaml")


@pytest.mark.parametrize(("betas", "spacing"), PROCESSES)
def test_formulas_equal_the_recorded_ones(golden: Path, betas: str, spacing: str) -> None:
    recorded = load_file(golden / "diffusion_math.safetensors")
    schedule = spaced(betas, spacing)
    x0, noise = recorded["x_start"], recorded["noise"]
    eps, variance = recorded["model_output"].chunk(2, dim=1)
    want = {key.split("|", 2)[2]: v for key, v in recorded.items() if key.startswith(f"{betas}|{spacing}|")}
    t = want["t"]
    assert_near(schedule.timesteps[t], want["model_saw_timesteps"], 0)

    x_t = schedule.q_sample(x0, t, noise)
    pred_x0 = schedule.predict_x0(x_t, t, eps)
    clipped = pred_x0.clamp(-1, 1)
    log_variance = schedule.log_variance(variance, t)
    assert_near(x_t, want["q_sample"], 1e-5)
    assert_near(schedule.at("sqrt_alphas_cumprod", t, x0) * x0, want["q_mean"], 1e-5)
    assert_near(1 - schedule.at("alphas_cumprod", t, x0), want["q_var"], 1e-5)
    assert_near(schedule.posterior_mean(x0, x_t, t), want["post_mean"], 1e-5)
    assert_near(schedule.at("posterior_variance", t, x0), want["post_var"], 1e-5)
    assert_near(schedule.at("posterior_log_variance_clipped", t, x0), want["post_logvar"], 1e-5)
    assert_near(schedule.at("log_one_minus_alphas_cumprod", t, x0), want["q_logvar"], 1e-5)
    assert_near(log_variance, want["p_mean_variance.clip1.log_variance"], 1e-5)
    assert_near(log_variance.exp(), want["p_mean_variance.clip1.variance"], 1e-5)
    assert_near(pred_x0, want["p_mean_variance.clip0.pred_xstart"], 1e-5)
    assert_near(clipped, want["p_mean_variance.clip1.pred_xstart"], 1e-5)
    assert_near(schedule.posterior_mean(pred_x0, x_t, t), want["p_mean_variance.clip0.mean"], 1e-5)
    assert_near(schedule.posterior_mean(clipped, x_t, t), want["p_mean_variance.clip1.mean"], 1e-5)
    assert_near(schedule.eps_from_x0(x_t, t, clipped), want["eps_from_xstart"], 1e-5)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**31),
    step=st.integers(0, 999),
    betas=st.sampled_from(["squaredcos_cap_v2", "linear"]),
)
def test_x0_eps_and_v_convert_into_each_other(seed: int, step: int, betas: str) -> None:
    schedule = NoiseSchedule(ScheduleSpec.parse({"betas": betas}, "test"))
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = torch.tensor([step, 999 - step])
    x_t = schedule.q_sample(x0, t, noise)
    v = schedule.v_from(x0, noise, t)
    assert_near(schedule.predict_x0(x_t, t, noise), x0, 1e-9)
    assert_near(schedule.eps_from_x0(x_t, t, x0), noise, 1e-9)
    assert_near(schedule.eps_from_v(x_t, t, v), noise, 1e-9)
    assert_near(schedule.x0_from_v(x_t, t, v), x0, 1e-9)
    assert_near(schedule.predict_x0(x_t, t, schedule.to_epsilon(v, x_t, t)), schedule.to_x0(v, x_t, t), 1e-9)
    assert_near(schedule.target(x0, noise, t), v, 0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), step=st.integers(1, 999))
def test_the_posterior_is_bayes_rule(seed: int, step: int) -> None:
    """The posterior's mean and variance are those of the product of its two Gaussian factors."""
    schedule = COSINE
    x0, x_t = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beta, before = schedule.betas[step], schedule.alphas_cumprod_prev[step]
    precision = (1 - beta) / beta + 1 / (1 - before)  # q(x_t | x_{t−1}) as a function of x_{t−1}, times q(x_{t−1} | x₀)
    mean = ((1 - beta).sqrt() * x_t / beta + before.sqrt() * x0 / (1 - before)) / precision
    assert_near(schedule.posterior_mean(x0, x_t, torch.tensor([step])), mean, 1e-9)
    assert_near(schedule.posterior_variance[step], 1 / precision, 1e-9)


def test_learned_variance_spans_its_two_bounds() -> None:
    t = torch.tensor([1, 500])
    ends = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 1, 1)
    log_variance = COSINE.log_variance(ends, t)[:, :, 0, 0]
    assert_near(log_variance[:, 0], COSINE.posterior_variance[t].log(), 1e-6)
    assert_near(log_variance[:, 1], COSINE.betas[t].log(), 1e-6)


def test_a_float32_v_model_keeps_its_x0_at_the_last_step() -> None:
    """ε in float32 would be off by 2e-3 there: see `to_epsilon`."""
    x0, noise = torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.full((8,), 999)
    x_t = COSINE.q_sample(x0, t, noise)
    v = COSINE.v_from(x0, noise, t)
    exact = COSINE.x0_from_v(x_t, t, v)
    through_eps = COSINE.predict_x0(x_t, t, COSINE.to_epsilon(v, x_t, t))
    through_float32 = COSINE.predict_x0(x_t, t, COSINE.eps_from_v(x_t, t, v))
    assert (through_eps - exact).abs().max() < 1e-6
    assert (through_float32 - exact).abs().max() > 1e-4  # or float64 is no longer needed


def test_formulas_keep_float32_and_lift_half() -> None:
    t = torch.tensor([3])
    x = torch.zeros(1, 3, 2, 2)
    assert COSINE.q_sample(x, t, x).dtype == torch.float32
    assert COSINE.predict_x0(x, t, x).dtype == torch.float32
    assert COSINE.v_from(x.bfloat16(), x.bfloat16(), t).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_the_output_of_a_perfect_model(prediction: str) -> None:
    schedule = spaced("squaredcos_cap_v2", "1000", prediction)
    x0, noise = (torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    t = torch.tensor([0, 10, 500, 900, 999])
    x_t, output = schedule.q_sample(x0, t, noise), schedule.target(x0, noise, t)
    assert_near(schedule.to_x0(output, x_t, t), x0, 1e-9)
    assert_near(schedule.to_epsilon(output, x_t, t), noise, 1e-9)
