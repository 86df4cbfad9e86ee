"""What a run leaves on its way: previews with a validation loss, checkpoints, and where else it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from piti.core.spec import Spec, choices
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import sampler_named


class PreviewSpec(Spec):
    """Validation after each `every` steps: the loss on fixed timesteps and noise, and samples of fixed conditions, by
    `sampler` in so many `steps`."""

    every: int = Field(default=1000, ge=1)
    count: int = Field(default=8, ge=1)
    """Pairs that are shown."""
    judged: int = Field(default=64, ge=1)
    """Pairs over which the loss is taken, at most."""
    sampler: str = "ddim"
    steps: int = Field(default=20, ge=1)
    guidance: Guidance = Guidance()

    @field_validator("sampler")
    @classmethod
    def _known(cls, name: str) -> str:
        sampler_named(name)
        return name


class CheckpointSpec(Spec):
    """A run is saved after each `every` steps, and the newest `keep` checkpoints are kept."""

    every: int = Field(default=1000, ge=1)
    keep: int = Field(default=2, ge=1)


TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")
"""By accelerate's names. TensorBoard has a key of its own in a recipe: it forgets what a resumed run takes again."""


def by_name(value: Any) -> Any:
    """A recipe's trackers, a list of names or a mapping of names to options, as such a mapping. Raises ValueError."""
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
"""By a tracker's name what its own `init` takes, and `project`."""
