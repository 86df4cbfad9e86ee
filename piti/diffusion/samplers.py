"""Samplers by name, on diffusers' schedulers: noise in, image out, through any `denoise(x_t, t)`.

Papers: DDPM (Ho et al. 2020, arXiv 2006.11239), improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672), DDIM (Song et
al. 2020, arXiv 2010.02502), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), UniPC (Zhao et al. 2023, arXiv
2302.04867), rectified flows (Esser et al. 2024, arXiv 2403.03206).

Every scheduler gets the respaced process, so that its step k−1 is the previous timestep, and x̂₀, which is computed and
bounded here, so that it never divides by √ᾱ_t in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from piti.core.errors import UserError
from piti.core.spec import choices
from piti.diffusion.schedule import Denoise, Estimate, Images, NoiseSchedule, Timesteps
from piti.diffusion.schedulers import spec_of
from piti.diffusion.spacing import space_timesteps

OnStep = Callable[[int, int, Tensor], None]  # (steps done, steps in all, x̂₀ [B, C, H, W])
AfterStep = Callable[[int, Tensor], Tensor]  # (timestep done, x_{t−1} [B, C, H, W]) -> where the next step starts


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler, its settings, and what its `step` accepts."""

    scheduler: type[Any]
    settings: dict[str, Any] = field(default_factory=dict)
    draws_noise: bool = False  # `step` takes `generator`
    learned_variance: bool = False  # `step` takes the raw variance as C more channels
    takes_eta: bool = False
    log_snr: tuple[float, float] = (-math.inf, math.inf)  # visit λ = log(α/σ) within these bounds
    quadratic: bool = False  # a count of steps is spread evenly in √t, not in t

    def build(self, schedule: NoiseSchedule) -> Any:
        """A new scheduler that visits every step of `schedule`, len(schedule) − 1 … 0, and takes x̂₀. Raises UserError
        for schedulers or settings that do not."""
        scheduler = self.scheduler(
            num_train_timesteps=len(schedule),
            trained_betas=schedule.betas.tolist(),
            prediction_type="sample",
            timestep_spacing="trailing",
            **self.settings,
        )
        scheduler.betas = schedule.betas  # float64, where diffusers derives float32
        scheduler.alphas = 1 - schedule.betas
        scheduler.alphas_cumprod = schedule.alphas_cumprod
        if self.takes_eta:
            scheduler.final_alpha_cumprod = torch.tensor(schedule.final, dtype=torch.float64)
        scheduler.set_timesteps(len(schedule))
        _check_timesteps(scheduler, len(schedule))
        return scheduler


def _check_timesteps(scheduler: Any, steps: int) -> None:
    """Raise UserError for a scheduler that scales x_t or chooses its own timesteps."""
    name, deviation = type(scheduler).__name__, float(scheduler.init_noise_sigma)
    if deviation != 1:
        raise UserError(
            f"{name} starts from noise of standard deviation {deviation:.3g}; expected 1, as for a DDPM",
            remedy="use a scheduler whose init_noise_sigma is 1, such as DEISMultistepScheduler",
        )
    if scheduler.timesteps.tolist() != list(reversed(range(steps))):
        raise UserError(
            f"{name} with these settings chooses its own timesteps instead of the {steps} given ones",
            remedy="remove settings that choose timesteps or noise levels, such as use_karras_sigmas, and use a "
            "scheduler that calls the network once per step",
        )


_X0_SOLVER: dict[str, Any] = {"solver_order": 2, "final_sigmas_type": "zero"}
# DPM-Solver++ breaks down below λ = −5.1 with the cosine schedule; from λ = 4 the jump to x̂₀ leaves out less
# than 2.5 grey levels of noise
_BOUNDED: dict[str, Any] = {"log_snr": (-5.1, 4.0), "quadratic": True}

SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(
        DDPMScheduler,
        {"variance_type": "learned_range", "clip_sample": False},
        draws_noise=True,
        learned_variance=True,
    ),
    "ddim": Sampler(
        DDIMScheduler,
        {"clip_sample": False, "set_alpha_to_one": True},
        draws_noise=True,
        takes_eta=True,
    ),
    "dpm++": Sampler(DPMSolverMultistepScheduler, {**_X0_SOLVER, "algorithm_type": "dpmsolver++"}, **_BOUNDED),
    "dpm++sde": Sampler(
        DPMSolverMultistepScheduler,
        {**_X0_SOLVER, "algorithm_type": "sde-dpmsolver++"},
        draws_noise=True,
        **_BOUNDED,
    ),
    "unipc": Sampler(UniPCMultistepScheduler, _X0_SOLVER, **_BOUNDED),
}


def sampler_named(name: str) -> Sampler:
    """The sampler of that name. Raises UserError that lists the known ones."""
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler '{name}'; {choices(name, SAMPLERS)}")
    return SAMPLERS[name]


# Schedulers of diffusers, and the samplers that they select

Scheduler = DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler | UniPCMultistepScheduler
"""Scheduler classes of a pipeline: a noise schedule, and a sampler given by the class."""

_OF_SCHEDULE = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"}
    | {"clip_sample", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one"}
    | {"use_flow_sigmas", "flow_shift"}
)  # compared by the betas that they give, or applied by the schedule itself
_FIXED: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("linspace",),
    "steps_offset": (0,),
    "clip_sample_range": (1.0,),
    "variance_type": ("learned_range", "fixed_small", None),
}  # setting => accepted values, where they differ from those of `Sampler.build`, since steps are spaced outside


def scheduler_named(name: str) -> type[Scheduler]:
    """A supported scheduler class by name. Raises UserError that lists them."""
    known = {kind.scheduler.__name__: kind.scheduler for kind in SAMPLERS.values()}
    if name not in known:
        raise UserError(f"{name}: unsupported scheduler; {choices(name, known)}")
    return known[name]


def sampler_of(scheduler: SchedulerMixin) -> str:
    """The name of a scheduler's sampler. Raises UserError for unsupported settings."""
    name = type(scheduler).__name__
    kinds = {sampler: kind for sampler, kind in SAMPLERS.items() if kind.scheduler is scheduler_named(name)}
    schedule = NoiseSchedule(spec_of(scheduler))
    scheduler = cast(Scheduler, scheduler)
    flow = schedule.spec.betas == "flow"
    if not flow and not torch.allclose(scheduler.betas.double(), schedule.betas.double(), rtol=1e-3, atol=1e-6):
        raise UserError(
            f"{name}: its betas are not those of its beta_schedule '{scheduler.config['beta_schedule']}' and its range",
            remedy="create the scheduler by from_config(pipe.scheduler.config)",
        )
    odd = {sampler: _unsupported(scheduler, kind.build(schedule)) for sampler, kind in kinds.items()}
    fits = [sampler for sampler, settings in odd.items() if not settings]
    if not fits:
        settings = ", ".join(min(odd.values(), key=len))
        raise UserError(
            f"{name} with {settings} is not supported",
            remedy="remove the setting, and create the scheduler by from_config(pipe.scheduler.config)",
        )
    return fits[0]


def _unsupported(scheduler: Scheduler, built: Scheduler) -> list[str]:
    """Settings of a scheduler, with their values, that differ from those of `built`."""
    given, followed = dict(scheduler.config), dict(built.config)
    return [
        f"{key} = {given[key]!r}"
        for key in followed
        if not key.startswith("_") and key not in _OF_SCHEDULE and given[key] not in _FIXED.get(key, (followed[key],))
    ]


def initial_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Images:
    """x_T ~ N(0, I) of `shape` [B, C, H, W], with sample i drawn from generators[i].

    Drawn on the generators' device, then moved to `device`. Raises UserError unless there are B generators.
    """
    _one_generator_each(shape[0], generators)
    return randn_tensor(tuple(shape), generator=list(generators), device=torch.device(device))


@torch.no_grad()
def sample(
    denoise: Denoise,
    x_T: Images,
    schedule: NoiseSchedule,
    sampler: str,
    steps: int | str | Sequence[int],
    generators: Sequence[torch.Generator],
    on_step: OnStep | None = None,
    eta: float = 0.0,
    after_step: AfterStep | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Images:
    """Denoise x_T [B, C, H, W] to images in [−1, 1], or to latents if the schedule has no bounds.

    denoise: a model's noise estimate, see `guided`; called with the model's training timesteps, always on the CPU, so
    that sampling does not synchronise with the device.
    sampler: a name in `SAMPLERS`.
    steps: a count, a respacing of `space_timesteps`, or explicit timesteps, ascending, as for a distilled network.
    generators: one per sample, so that samples do not depend on the batch.
    on_step: called as (steps done, total steps, x̂₀) after each step.
    eta: DDIM's η, 0 … 1; "ddim" only.
    after_step: may replace the state after each step, and the result after the last.
    stopped: called before each step; if it returns true, sampling ends with the current state.

    Raises UserError for an unknown sampler, invalid steps, or eta with another sampler.
    """
    _one_generator_each(len(x_T), generators)
    kind = sampler_named(sampler)
    options = _step_options(kind, sampler, generators, eta)
    spaced = schedule.respaced(sampling_timesteps(schedule, sampler, steps))
    scheduler = kind.build(spaced)
    x_t = x_T
    for k in reversed(range(len(spaced))):
        if stopped():
            break
        step = torch.full((len(x_t),), k)
        estimate = denoise(x_t, torch.full_like(step, int(spaced.timesteps[k])))
        x0 = x0_of(spaced, x_t, step, estimate)  # [B, C, H, W]
        output = with_variance(x0, estimate) if kind.learned_variance else x0  # [B, C|2C, H, W]
        x_t = scheduler.step(output, k, x_t, **options).prev_sample
        if on_step is not None:
            on_step(len(spaced) - k, len(spaced), x0)
        if after_step is not None:
            x_t = after_step(int(spaced.timesteps[k]), x_t)
    return schedule.finished(x_t)


def sampling_timesteps(schedule: NoiseSchedule, sampler: str, steps: int | str | Sequence[int]) -> list[int]:
    """The timesteps, ascending, that `sample` visits.

    A respacing by name ("250", "fast27") is as released. A count is the same for "ddpm" and "ddim"; for the others it
    is spread evenly in √t between their bounds on λ, because steps uniform in t end at too much noise: with 20 of them
    a Gaussian texture of standard deviation 0.05 keeps 48% of that deviation, with these 93%. For a flow, a count is
    spread evenly up to the last timestep for every sampler (Esser et al. 2024, section 5.3.2). Explicit timesteps are
    unchanged. Raises UserError for less than one step, or more than there are.
    """
    kind = sampler_named(sampler)
    if not isinstance(steps, int | str):
        return list(steps)
    log_snr = 0.5 * schedule.signal_to_noise.log()
    low, high = kind.log_snr
    last = int((log_snr >= low).sum()) - 1
    first = min(int((log_snr > high).sum()), last) if kind.quadratic else 0
    most = last - first + 1
    if isinstance(steps, int) and not 1 <= steps <= most:
        raise UserError(
            f"{sampler!r} takes 1 … {most} steps of this schedule of {len(schedule)}", option="steps", value=steps
        )
    if isinstance(steps, int) and schedule.spec.betas == "flow":
        return (np.round(np.arange(1, steps + 1) * (last + 1) / steps).astype(int) - 1).tolist()
    if isinstance(steps, int) and kind.quadratic:
        return _even_in_root(first, last, steps)
    kept = sorted({min(t, last) for t in space_timesteps(len(schedule), steps)})
    if not kept:
        raise UserError("keeps no timestep", remedy="give at least 1", option="steps", value=repr(steps))
    return kept if len(kept) > 1 else [last]  # the release's single step is t = 0, which leaves pure noise


def _even_in_root(first: int, last: int, count: int) -> list[int]:
    """`count` distinct timesteps from `first` to `last`, dense towards `first`; one alone is `last`."""
    place = np.linspace(1, 0, count)[::-1]
    wanted = np.round(first + (last - first) * place**2).astype(int)
    order = np.arange(count)
    return (np.maximum.accumulate(wanted - order) + order).tolist()


def x0_of(schedule: NoiseSchedule, x_t: Images, t: Timesteps, estimate: Estimate) -> Images:
    """x̂₀ of an estimate within the schedule's bounds, in x_t's precision: the model's x̂₀ if it predicts that, else
    from its noise."""
    x0 = schedule.predict_x0(x_t, t, estimate.eps) if estimate.x0 is None else estimate.x0
    return schedule.bounded(x0).to(x_t.dtype)


def with_variance(x0: Images, estimate: Estimate) -> Float[Tensor, "b 2*c h w"]:
    """x̂₀ and the raw variance as input of "ddpm", [B, 2C, H, W]; without a learned variance its lower bound."""
    variance = torch.full_like(x0, -1) if estimate.variance is None else estimate.variance.to(x0.dtype)
    return torch.cat([x0, variance], dim=1)


def _step_options(kind: Sampler, name: str, generators: Sequence[torch.Generator], eta: float) -> dict[str, Any]:
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta}: give 0 (deterministic) … 1 (as noisy as 'ddpm')")
    if eta and not kind.takes_eta:
        raise UserError(f"eta = {eta} has no effect with the sampler {name!r}; use 'ddim', or eta = 0")
    options: dict[str, Any] = {"generator": list(generators)} if kind.draws_noise else {}
    return {**options, "eta": eta} if kind.takes_eta else options


def _one_generator_each(batch: int, generators: Sequence[torch.Generator]) -> None:
    if len(generators) != batch:
        raise UserError(f"expected {batch} generators, one per sample, got {len(generators)}")
