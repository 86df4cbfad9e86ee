"""The interface of baselines: a generator, a discriminator, and their losses; images are generated in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor, nn

from piti.core.errors import UserError
from piti.core.spec import Spec, choices
from piti.models import Translator
from piti.models.casting import NetworkMixin
from piti.models.perceptual import PerceptualNetwork


class BaselineError(UserError):
    """A baseline cannot be built. The message names the key and what to do."""


class BaselineSpec(Spec):
    """Settings common to all baselines."""

    perceptual: float = Field(default=0.0, ge=0)
    """Weight of the perceptual loss; 0: none."""
    discriminator_lr: float = Field(default=4e-4, gt=0)
    """Learning rate of the discriminator's Adam; its betas are the generator's, those of the recipe."""


class Baseline(ABC):
    """A baseline method: its networks, its input from a condition, and its losses. It holds settings, not weights.

    spec: the method's settings; channels: of the encoded condition, C; classes: whether these channels are classes,
    one-hot; image_size: side of the images in pixels. Raises BaselineError for settings that do not fit each other.
    """

    kind: ClassVar[str]
    spec_type: ClassVar[type[BaselineSpec]]

    def __init__(self, spec: BaselineSpec, channels: int, classes: bool, image_size: int) -> None:
        self.spec, self.channels, self.classes, self.image_size = spec, channels, classes, image_size

    # Inputs of the networks

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one sample's standard normal noise; () if the generator takes none."""

    @abstractmethod
    def seen(self, encoded: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b s h w"]:
        """The input of both networks, from a condition as encoded by `Condition.encode`."""

    def check(self, encoded: Tensor) -> None:
        """Raises BaselineError for a condition of other channels, or of sides that the generator does not support."""
        if encoded.ndim != 4 or encoded.shape[1] != self.channels:
            raise BaselineError(
                f"{self.kind}: expected a condition [B, {self.channels}, h, w], got {list(encoded.shape)}; encode it "
                "with the condition that the model was made for"
            )
        height, width = encoded.shape[-2:]
        if height % self.granularity or width % self.granularity:
            raise BaselineError(
                f"{self.kind}: a condition of {width} × {height} px; its sides are those of the image, multiples of "
                f"{self.granularity}"
            )

    @property
    @abstractmethod
    def granularity(self) -> int:
        """The sides of an image are multiples of this."""

    # Networks, initialised with torch's generator as in the paper

    @abstractmethod
    def generator(self) -> nn.Module:
        """(what is seen [B, S, H, W], noise [B, …] or None) -> images in [-1, 1] [B, 3, H, W]."""

    @abstractmethod
    def discriminator(self) -> nn.Module:
        """The discriminator; only this method's losses call it."""

    @property
    def discriminator_lr(self) -> float:
        """Learning rate of the discriminator's Adam; its betas are the generator's, those of the recipe."""
        return self.spec.discriminator_lr

    @property
    def perceptual(self) -> float:
        """Weight of the perceptual loss; 0 if the method has none."""
        return self.spec.perceptual

    # Losses: weighted, each [B], the mean per sample; their sum is minimised

    @abstractmethod
    def generator_losses(
        self,
        discriminator: nn.Module,
        seen: Float[Tensor, "b s h w"],
        fake: Float[Tensor, "b 3 h w"],
        real: Float[Tensor, "b 3 h w"],
        perceptual: PerceptualNetwork | None,
    ) -> dict[str, Tensor]:
        """The generator's losses by name. fake: its images, differentiable; the weight `perceptual` is included."""

    @abstractmethod
    def discriminator_losses(
        self,
        discriminator: nn.Module,
        seen: Float[Tensor, "b s h w"],
        fake: Float[Tensor, "b 3 h w"],
        real: Float[Tensor, "b 3 h w"],
        uniform: Float[Tensor, "b draws"],
    ) -> dict[str, Tensor]:
        """The discriminator's losses by name. fake: without a gradient; uniform: `draws` random numbers in [0, 1) per
        sample, for the loss."""

    @property
    def draws(self) -> int:
        """Random numbers per sample in `discriminator_losses`."""
        return 1

    def to_config(self) -> dict[str, Any]:
        """Kind and settings as plain data."""
        return {"kind": self.kind, **self.spec.to_dict()}


BASELINES: dict[str, type[Baseline]] = {}
"""All baselines by name; `register` adds to them."""

_B = TypeVar("_B", bound=Baseline)


def register(baseline: type[_B]) -> type[_B]:
    """Class decorator: register a baseline for `baseline_from_config`."""
    BASELINES[baseline.kind] = baseline
    return baseline


def baseline_from_config(
    config: Mapping[str, Any], channels: int, classes: bool, image_size: int, source: str = "baseline"
) -> Baseline:
    """The baseline of kind `config["kind"]`, with the rest of `config` as settings.

    source: origin of the data, for errors. Raises BaselineError, SpecError.
    """
    chosen, spec = _chosen(config, source)
    return chosen(spec, channels, classes, image_size)


def _chosen(config: Mapping[str, Any], source: str) -> tuple[type[Baseline], BaselineSpec]:
    kind = config.get("kind")
    if kind not in BASELINES:
        said = f"unknown '{kind}'; {choices(str(kind), BASELINES)}"
        raise BaselineError(
            f"{source}: " + ("missing key 'kind'; known: " + ", ".join(BASELINES) if kind is None else said)
        )
    chosen = BASELINES[kind]
    return chosen, chosen.spec_type.parse({key: value for key, value in config.items() if key != "kind"}, source)


def noise_of(baseline: Baseline, generators: list[torch.Generator], device: torch.device) -> Tensor | None:
    """A method's noise [B, …], each sample's from its own generator; None if it takes none."""
    if not baseline.noise_shape:
        return None
    return torch.stack([torch.randn(baseline.noise_shape, generator=g, device=g.device) for g in generators]).to(device)


def baseline_spec(config: Mapping[str, Any], source: str = "baseline") -> BaselineSpec:
    """The settings of the baseline in `config`. Raises BaselineError, SpecError."""
    return _chosen(config, source)[1]


class BaselineNetwork(NetworkMixin, ConfigMixin):
    """The generator of a baseline: a condition and noise => an image, in one pass.

    baseline: `kind`, and settings of that kind; channels, classes: of the encoded condition, see `Baseline`;
    image_size: side of the images in pixels. Raises BaselineError, SpecError.
    """

    config_name = "config.json"

    role = "base"
    low_res: int | None = None
    scale = 1
    """Same as for a base translator."""
    one_pass = True
    """Whether images are made in one pass, without a noise schedule."""

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
        """The size in pixels of the condition for a square image: the image's."""
        return self.image_size

    @property
    def granularity(self) -> int:
        """The sides of an image are multiples of this."""
        return self.baseline.granularity

    def forward(
        self, condition: Shaped[Tensor, "b c h w"], noise: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """condition: from `Condition.encode`; noise: standard normal, `baseline.noise_shape` per sample.

        Returns images in [-1, 1].
        """
        return self.generator(self.baseline.seen(condition), noise)


ImageNetwork = Translator | BaselineNetwork
"""Networks that generate images from conditions."""
