"""Conversion between noise schedules and configurations of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec


def scheduler_of(spec: ScheduleSpec) -> DDPMScheduler | DDIMScheduler | DPMSolverMultistepScheduler:
    """The default scheduler for a schedule: DDPM with learned variance, DDIM if it ends with residual noise,
    DPM-Solver++ for a flow."""
    if spec.betas == "flow":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=spec.steps,
            prediction_type=spec.prediction,
            use_flow_sigmas=True,
            flow_shift=spec.shift,
            final_sigmas_type="zero",
        )
    first, last = spec.beta_range or (0.1 / spec.steps, 20 / spec.steps)
    common: dict[str, Any] = {
        "num_train_timesteps": spec.steps,
        "beta_start": first,
        "beta_end": last,
        "beta_schedule": spec.betas,
        "prediction_type": spec.prediction,
        "timestep_spacing": "linspace",
        "clip_sample": spec.clip,
    }
    if spec.threshold is not None:
        common |= {
            "thresholding": True,
            "dynamic_thresholding_ratio": spec.threshold.ratio,
            "sample_max_value": spec.threshold.largest,
        }
    if not spec.to_clean:
        return DDIMScheduler(**common, set_alpha_to_one=False)
    return DDPMScheduler(**common, variance_type="learned_range")


def noise_schedule_of(scheduler: SchedulerMixin) -> NoiseSchedule:
    """The noise schedule of a scheduler's configuration. Raises SpecError as `spec_of`."""
    return _noise_schedule(spec_of(scheduler).model_dump_json())


@cache
def _noise_schedule(spec: str) -> NoiseSchedule:
    return NoiseSchedule(ScheduleSpec.model_validate_json(spec))


def spec_of(scheduler: SchedulerMixin) -> ScheduleSpec:
    """The spec of a scheduler's configuration. Raises SpecError for unsupported schedules."""
    return spec_of_config(cast(ConfigMixin, scheduler).config, "scheduler/scheduler_config.json")


_NAMES = {"steps": "num_train_timesteps", "betas": "beta_schedule", "prediction": "prediction_type",
          "clip": "clip_sample", "to_clean": "set_alpha_to_one"}  # fmt: skip


def spec_of_config(config: Mapping[str, Any], source: str) -> ScheduleSpec:
    """The spec of a scheduler's configuration, read from `source`. Raises SpecError."""
    if config.get("use_flow_sigmas"):
        steps, shift = config.get("num_train_timesteps", 1000), config.get("flow_shift", 1.0)
        flow = {"betas": "flow", "prediction": config.get("prediction_type"), "steps": steps, "shift": shift}
        return ScheduleSpec.parse(flow, source)
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in _NAMES.items() if theirs in config}
    given = (config.get("beta_start"), config.get("beta_end"))
    if values.get("betas") != "squaredcos_cap_v2" and None not in given:
        values["beta_range"] = given
    if config.get("thresholding"):
        ratio, largest = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        values["threshold"] = {"ratio": ratio, "largest": largest}
    return ScheduleSpec.parse(values, source)
