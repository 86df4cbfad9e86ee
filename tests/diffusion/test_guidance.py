"""Guidance rules by their defining properties, and when the unconditional pass runs."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from piti.core.spec import SpecError
from piti.diffusion.guidance import (
    Guidance,
    Momentum,
    adaptive_projected_guidance,
    guided,
    normalized_guidance,
    plain_guidance,
    rescaled_guidance,
    sample_statistics,
)
from piti.diffusion.schedule import Estimate, NoiseSchedule, ScheduleSpec

SCHEDULE = NoiseSchedule(ScheduleSpec())
KINDS = ["normalized", "plain", "rescaled", "apg"]
SEEDS, STRENGTHS = st.integers(0, 2**31), st.floats(0.1, 8)


def pair(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64) * 1.3 + 0.2
    return cond, cond + 0.5 * torch.randn(cond.shape, generator=generator, dtype=torch.float64)


def apg(
    cond: Tensor,
    null: Tensor,
    w: float,
    step: int = 400,
    eta: float = 0,
    norm: float = 0,
    momentum: Momentum | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x̂₀ of the guided, the conditional and the null estimate."""
    x_t, t = torch.ones_like(cond), torch.full((len(cond),), step)
    eps = adaptive_projected_guidance(cond, null, w, x_t, t, SCHEDULE, eta=eta, norm=norm, momentum=momentum)
    guided_x0, x0, null_x0 = (SCHEDULE.predict_x0(x_t, t, e) for e in (eps, cond, null))
    return guided_x0, x0, null_x0


@pytest.mark.parametrize("rule", [plain_guidance, normalized_guidance, rescaled_guidance])
def test_no_strength_returns_the_conditional_estimate(
    rule: Callable[[Tensor, Tensor, float], Tensor],
) -> None:
    cond, null = pair(0)
    assert torch.equal(rule(cond, null, 0.0), cond)
    assert not torch.allclose(rule(cond, null, 1.0), cond)


def test_no_strength_returns_the_conditional_estimate_of_apg() -> None:
    cond, null = pair(0)
    t = torch.tensor([5, 999])
    assert torch.equal(adaptive_projected_guidance(cond, null, 0.0, cond, t, SCHEDULE), cond)
    assert not torch.allclose(adaptive_projected_guidance(cond, null, 1.0, cond, t, SCHEDULE), cond)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, w=STRENGTHS)
def test_normalised_guidance_keeps_mean_and_spread_and_the_direction(seed: int, w: float) -> None:
    cond, null = pair(seed)
    ours, plain = normalized_guidance(cond, null, w), plain_guidance(cond, null, w)
    for got, want in zip(sample_statistics(ours), sample_statistics(cond), strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    standardised = [(x - sample_statistics(x)[0]) / sample_statistics(x)[1] for x in (ours, plain)]
    torch.testing.assert_close(*standardised, atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, w=STRENGTHS)
def test_rescaled_guidance_restores_its_share_of_the_spread(seed: int, w: float) -> None:
    cond, null = pair(seed)
    plain = plain_guidance(cond, null, w)
    whole = rescaled_guidance(cond, null, w, phi=1.0)
    torch.testing.assert_close(sample_statistics(whole)[1], sample_statistics(cond)[1])
    torch.testing.assert_close(rescaled_guidance(cond, null, w, phi=0.0), plain)
    torch.testing.assert_close(rescaled_guidance(cond, null, w), 0.7 * whole + 0.3 * plain)


def test_a_constant_estimate_does_not_become_nan() -> None:
    flat = torch.full((1, 3, 4, 4), 0.5)
    torch.testing.assert_close(normalized_guidance(flat, torch.zeros_like(flat), 2.0), flat)
    assert rescaled_guidance(flat, torch.zeros_like(flat), 2.0).isfinite().all()


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, w=STRENGTHS)
def test_apg_moves_x0_across_itself(seed: int, w: float) -> None:
    cond, null = pair(seed)
    ours, x0, null_x0 = apg(cond, null, w)
    update, difference = (ours - x0).flatten(1), (x0 - null_x0).flatten(1)
    x0 = x0.flatten(1)
    assert ((update * x0).sum(1).abs() < 1e-8 * update.norm(dim=1) * x0.norm(dim=1)).all()
    across = difference - (difference * x0).sum(1, keepdim=True) / x0.square().sum(1, keepdim=True) * x0
    torch.testing.assert_close(update, w * across, atol=1e-8, rtol=1e-8)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, w=STRENGTHS)
def test_apg_that_keeps_everything_is_plain_guidance(seed: int, w: float) -> None:
    cond, null = pair(seed)
    t = torch.full((2,), 400)
    ours = adaptive_projected_guidance(cond, null, w, torch.ones_like(cond), t, SCHEDULE, eta=1.0, norm=0.0)
    torch.testing.assert_close(ours, plain_guidance(cond, null, w), atol=1e-9, rtol=1e-9)


def test_apg_bounds_each_sample_by_itself() -> None:
    cond, null = pair(3)
    null[1] = cond[1] + 1e-3 * (null[1] - cond[1])
    free, x0, _ = apg(cond, null, 1.0, eta=1.0)
    bound, *_ = apg(cond, null, 1.0, eta=1.0, norm=1.0)
    lengths = (bound - x0).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[0], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(bound[1], free[1])


def test_apg_momentum_is_the_running_difference() -> None:
    cond, null = pair(4)
    momentum = Momentum(-0.5)
    first, x0, _ = apg(cond, null, 1.0, eta=1.0, momentum=momentum)
    second, *_ = apg(cond, null, 1.0, eta=1.0, momentum=momentum)
    torch.testing.assert_close(second - x0, 0.5 * (first - x0))  # Δ − 0.5 Δ


class CountedModel:
    """Two fixed estimates; counts its conditional and null passes."""

    def __init__(self) -> None:
        self.cond, self.null = pair(9)
        self.variance = torch.zeros_like(self.cond)
        self.calls: list[bool] = []

    def __call__(self, x_t: Tensor, t: Tensor, with_null: bool) -> tuple[Estimate, Estimate | None]:
        self.calls.append(with_null)
        null = Estimate(self.null, self.variance + 1) if with_null else None
        return Estimate(self.cond, self.variance), null

    def run(self, guidance: Guidance, steps: list[int]) -> list[Estimate]:
        model = guided(self, guidance, SCHEDULE)
        return [model(torch.ones_like(self.cond), torch.full((2,), step)) for step in steps]


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_the_null_pass_is_skipped(kind: str) -> None:
    model = CountedModel()
    estimates = model.run(Guidance.parse({"kind": kind, "w": 0}, "test"), [999, 500, 0])
    assert model.calls == [False] * 3
    assert all(estimate.eps is model.cond for estimate in estimates)


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_interval_the_null_pass_is_skipped(kind: str) -> None:
    model = CountedModel()
    guidance = Guidance.parse({"kind": kind, "interval": [0.2, 0.8]}, "test")
    estimates = model.run(guidance, [999, 801, 800, 500, 200, 199, 0])
    assert model.calls == [False, False, True, True, True, False, False]
    changed = [not torch.equal(estimate.eps, model.cond) for estimate in estimates]
    assert changed == model.calls
    assert all(estimate.variance is model.variance for estimate in estimates)


def test_the_whole_interval_includes_both_ends() -> None:
    guidance = Guidance()
    assert guidance.active(0, 1000)
    assert guidance.active(999, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_chooses_the_rule(kind: str) -> None:
    model = CountedModel()
    cond, null, ones, t = model.cond, model.null, torch.ones_like(model.cond), torch.full((2,), 300)
    want = {
        "normalized": normalized_guidance(cond, null, 2.5),
        "plain": plain_guidance(cond, null, 2.5),
        "rescaled": rescaled_guidance(cond, null, 2.5, 0.4),
        "apg": adaptive_projected_guidance(cond, null, 2.5, ones, t, SCHEDULE, 0.3, 2.0),
    }
    spec = {"kind": kind, "w": 2.5, "phi": 0.4, "eta": 0.3, "norm": 2.0}
    (estimate,) = model.run(Guidance.parse(spec, "test"), [300])
    torch.testing.assert_close(estimate.eps, want[kind])


def test_each_run_has_its_own_momentum() -> None:
    model, guidance = CountedModel(), Guidance(kind="apg", norm=0)
    first, second = model.run(guidance, [500, 500])
    (fresh,) = model.run(guidance, [500])
    assert not torch.allclose(first.eps, second.eps)
    assert torch.equal(first.eps, fresh.eps)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval": [0.8, 0.2]}, "0 ≤ low < high ≤ 1"),
        ({"interval": [0.0, 1.5]}, "0 ≤ low < high ≤ 1"),
        ({"w": float("nan")}, "'w'"),
        ({"w": -2}, "'w' = -2"),
        ({"phi": 1.5}, "'phi'"),
        ({"kind": "strong"}, "'plain'"),
        ({"weight": 1}, "unknown key 'weight'"),
    ],
)
def test_impossible_guidance_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Guidance.parse(values, "flag")


def test_mixed_timesteps_and_a_missing_null_estimate_are_errors() -> None:
    model = CountedModel()
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        guided(model, Guidance(), SCHEDULE)(model.cond, torch.tensor([3, 4]))
    forgetful = guided(lambda x_t, t, with_null: (Estimate(x_t, None), None), Guidance(), SCHEDULE)
    with pytest.raises(ValueError, match="denoise returned None"):
        forgetful(model.cond, torch.tensor([3, 3]))
