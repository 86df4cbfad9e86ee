"""Noise schedules in diffusers' scheduler files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piti.checkpoints.prior_families import OTHER_MODEL, WHOLE, PriorError, read_config
from piti.core.errors import with_article
from piti.diffusion.schedule import BETAS, PREDICTIONS, ScheduleSpec
from piti.diffusion.schedulers import spec_of_config

FILE = "scheduler_config.json"
_DISTILLED = ("LCMScheduler", "TCDScheduler")
_DEFAULT_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}  # diffusers' defaults


def schedule_in(folder: Path, part: str, latent: bool, shift: float | None = None) -> ScheduleSpec:
    """The noise schedule in a scheduler's file. latent: x̂₀ is unbounded. shift: of a flow whose noise levels follow the
    images' size, see `dynamic_shift_in`. Raises PriorError."""
    path = folder / part / FILE
    config = read_config(path)
    kind = str(config.get("_class_name"))
    prediction = config.get("prediction_type", "epsilon")
    trailing = latent and config.get("timestep_spacing") == "trailing" and prediction == "epsilon"
    if kind in _DISTILLED or trailing:
        how = "" if kind in _DISTILLED else " with timestep_spacing 'trailing' in a model that predicts noise"
        raise PriorError(
            f"is {with_article(kind)}{how}: the model is distilled for a few steps (LCM, turbo)",
            remedy=OTHER_MODEL,
            source=path,
        )
    flow = bool(config.get("use_flow_sigmas"))
    if kind != _FLOW_EULER and flow != (prediction == "flow_prediction"):
        raise PriorError(
            f"'prediction_type' is '{prediction}' and 'use_flow_sigmas' {flow}: a flow has 'flow_prediction' and true",
            remedy=WHOLE,
            source=path,
        )
    if kind == _FLOW_EULER or flow:
        return _flow(path, kind, config, shift)
    if "FlowMatch" in kind or kind.startswith("EDM"):
        raise PriorError(f"is {with_article(kind)}: neither a DDPM process nor a flow, not supported", source=path)
    for key in ("rescale_betas_zero_snr", "trained_betas"):
        if config.get(key):
            raise PriorError(f"'{key}' is set: schedules with zero terminal SNR or explicit betas are not supported",
                             source=path)  # fmt: skip
    values = _DEFAULT_SCHEDULE | config
    for key, names in (("prediction_type", PREDICTIONS), ("beta_schedule", BETAS)):
        known = [name for name in names if "flow" not in name]
        if values[key] not in known:
            raise PriorError(f"'{key}' is {values[key]!r}; only {', '.join(known)} are supported", source=path)
    if latent:
        clean = config.get("set_alpha_to_one", kind != "PNDMScheduler")
        values |= {"clip_sample": False, "thresholding": False, "set_alpha_to_one": clean}
    elif config.get("clip_sample_range", 1.0) != 1.0:
        raise PriorError(f"'clip_sample_range' is {config['clip_sample_range']}; only 1 is supported", source=path)
    return spec_of_config(values, str(path))


_FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
_OTHER_FLOWS = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas")
"""Settings that make the noise levels depend on the image or the call."""


def _flow(path: Path, kind: str, config: Mapping[str, Any], shift: float | None) -> ScheduleSpec:
    """The noise schedule of a rectified flow. shift: instead of the configuration's, if it follows the images' size.
    Raises PriorError for noise levels that depend on anything else."""
    for key in _OTHER_FLOWS if shift is None else _OTHER_FLOWS[1:]:
        if config.get(key):
            raise PriorError(
                f"'{key}' is set: only flows with the same noise levels for every image are supported",
                remedy="give a model with one 'shift', such as Sana",
                source=path,
            )
    if shift is None:
        shift = config.get("shift" if kind == _FLOW_EULER else "flow_shift", 1.0)
    steps = config.get("num_train_timesteps", 1000)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return spec_of_config(flow | {"num_train_timesteps": steps}, str(path))


# Noise levels that follow the image's size


@dataclass(frozen=True)
class DynamicShift:
    """log(shift) as a linear function of an image's tokens; see `grown_shift`."""

    base_shift: float
    max_shift: float
    base_image_seq_len: float
    max_image_seq_len: float

    @property
    def growth(self) -> float:
        """Of log(shift) by one token."""
        return (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)

    def shift(self, tokens: int) -> float:
        """For images of so many tokens; at most e^100, which is far above what a schedule may have."""
        return math.exp(min(100.0, self.base_shift + self.growth * (tokens - self.base_image_seq_len)))


_DEFAULT_SHIFTS = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


def dynamic_shift_in(folder: Path) -> DynamicShift | None:
    """The dynamic shift of the flow in a folder's scheduler; None if its shift is fixed. Raises PriorError."""
    path = folder / "scheduler" / FILE
    config = read_config(path)
    if config.get("_class_name") != _FLOW_EULER or not config.get("use_dynamic_shifting"):
        return None
    if (kind := config.get("time_shift_type", "exponential")) != "exponential":
        raise PriorError(f"'time_shift_type' is '{kind}'; only 'exponential' is supported", source=path)
    values = {key: config.get(key, usual) for key, usual in _DEFAULT_SHIFTS.items()}
    for key, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise PriorError(f"'{key}' is {value}, expected a number", remedy=WHOLE, source=path)
    found = DynamicShift(**values)
    if found.base_image_seq_len >= found.max_image_seq_len or found.growth < 0:
        named = ", ".join(f"{key} {value:g}" for key, value in values.items())
        raise PriorError(f"its shift ({named}) does not grow with the image", remedy=WHOLE, source=path)
    return found
