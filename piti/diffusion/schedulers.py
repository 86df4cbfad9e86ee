"""A schedule spec as the diffusers scheduler that is saved beside a model, and back."""

from __future__ import annotations

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from piti.diffusion.schedule import ScheduleSpec


def scheduler_of(spec: ScheduleSpec) -> DDPMScheduler:
    """The ancestral scheduler with learned variance that a model of this schedule is sampled with."""
    return DDPMScheduler(
        num_train_timesteps=spec.steps,
        beta_start=0.1 / spec.steps,
        beta_end=20 / spec.steps,
        beta_schedule=spec.betas,
        prediction_type=spec.prediction,
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=True,
    )


def spec_of(scheduler: DDPMScheduler) -> ScheduleSpec:
    """The spec of a scheduler's configuration. Raises SpecError for a schedule that is not one of ours."""
    config = scheduler.config
    values = {
        "betas": config["beta_schedule"],
        "steps": config["num_train_timesteps"],
        "prediction": config["prediction_type"],
    }
    return ScheduleSpec.parse(values, "scheduler/scheduler_config.json")
