"""A baseline's generator as a model: saved, loaded, and put where a base translator stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Shaped
from torch import Tensor

from piti.baselines.base import baseline_from_config
from piti.models import Translator


class BaselineNetwork(ModelMixin, ConfigMixin):
    """The generator of a baseline: a condition and noise => an image, in one pass.

    baseline: `kind`, and settings of that kind; channels, classes: of the encoded condition, see `Baseline`;
    image_size: side of the images in pixels. Raises BaselineError, SpecError.
    """

    config_name = "config.json"

    role = "base"
    low_res: int | None = None
    scale = 1
    """As a base translator's."""

    @register_to_config
    def __init__(
        self,
        baseline: Mapping[str, Any] | None = None,
        channels: int = 1,
        classes: bool = False,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        self.baseline = baseline_from_config(baseline or {}, channels, classes, image_size)
        self.image_size = image_size
        self.generator = self.baseline.generator()

    @property
    def condition_side(self) -> int:
        """The side in pixels of what it reads for a square image: the image's own."""
        return self.image_size

    @property
    def granularity(self) -> int:
        """The sides of an image are multiples of this."""
        return self.baseline.granularity

    def forward(
        self, condition: Shaped[Tensor, "b c h w"], noise: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """condition: as `Condition.encode` gives it; noise: standard normal, `baseline.noise_shape` a sample.

        Returns images in [-1, 1].
        """
        return self.generator(self.baseline.seen(condition), noise)


ImageNetwork = Translator | BaselineNetwork
"""What makes images from conditions."""
