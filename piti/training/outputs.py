"""Outputs of a run at intervals: previews with a validation loss, checkpoints, and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from piti.core.spec import Spec, choices, known_by
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import sampler_named


class PreviewSpec(Spec):
    """Validation every `every` steps: the loss on fixed timesteps and noise, and samples of fixed conditions with
    `sampler` in `steps` steps."""

    every: int = Field(default=1000, ge=1)
    count: int = Field(default=8, ge=1)
    """Number of pairs shown."""
    judged: int = Field(default=64, ge=1)
    """Largest number of pairs for the loss."""
    sampler: Annotated[str, known_by(sampler_named)] = "ddim"
    steps: int = Field(default=20, ge=1)
    guidance: Guidance = Guidance()


class CheckpointSpec(Spec):
    """Save the run every `every` steps, and keep the newest `keep` checkpoints."""

    every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)


TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
"""Trackers by accelerate's names. TensorBoard has its own recipe key, since it discards steps that a resumed run
repeats."""


def by_name(value: Any) -> Any:
    """A recipe's trackers, a list of names or a mapping of names to options, as a mapping. Raises ValueError."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        value = dict.fromkeys(value)
    if not isinstance(value, Mapping):
        return value
    for name in value:
        if name == "tensorboard":
            raise ValueError("TensorBoard has its own key; give tensorboard: true")
        if name not in TRACKERS:
            raise ValueError(f"no tracker '{name}'; {choices(str(name), TRACKERS)}")
    return {name: {} if options is None else options for name, options in value.items()}


TrackerOptions = Annotated[dict[str, dict[str, Any]], BeforeValidator(by_name)]
"""By a tracker's name, the arguments of its `init`, and `project`."""
