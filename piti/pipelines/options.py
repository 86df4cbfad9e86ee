"""Sampling options of a cascade, and their resolution against a pipeline's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict

from pydantic import Field, field_validator

from piti.checkpoints.folder import OF_UPSAMPLER
from piti.core.errors import UserError, option, text_of
from piti.core.spec import Spec, SpecError, choices
from piti.diffusion.guidance import Guidance
from piti.pipelines.cascade import ONE_PASS, Network, NetworkSampling, OnePass, ResolvedSampling

if TYPE_CHECKING:
    from piti.pipelines.pipeline import PITIPipeline


class NetworkOptions(Spec):
    """Sampling options of one network; None is the model's default."""

    guidance: Guidance | float | None = None
    """A guidance rule, or a number: the strength w of the model's own rule."""
    steps: int | str | None = None
    """A count, or a respacing by name; see `sampling_timesteps`."""
    sampler: str | None = None

    @field_validator("guidance", mode="before")
    @classmethod
    def _possible_strength(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            if not -1 <= value < math.inf:
                raise ValueError(
                    "is not a guidance strength; give a number of at least -1, such as 1 (0 is no guidance)"
                )
            return float(value)
        return Guidance.parse(value, "guidance") if isinstance(value, Mapping) else value

    @field_validator("steps", mode="before")
    @classmethod
    def _count_of_digits(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    def over(self, other: Self) -> Self:
        """These options, with those of `other` for unset ones."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        if isinstance(self.guidance, float) and isinstance(other.guidance, Guidance):
            values["guidance"] = other.guidance.of_strength(self.guidance)
        return other.model_copy(update={key: value for key, value in values.items() if value is not None})


class UpsamplerOptions(NetworkOptions):
    """Sampling options of an upsampler; None is the model's default."""

    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Factor on the initial noise; the release's is 0.997."""
    truncates: bool | None = None
    """Truncate the small images to 8 bits, as PITI's release does, instead of rounding them."""


class SamplingKeywords(TypedDict, total=False):
    """`SamplingOptions` with flat keys, as used in keyword arguments, requests, PNGs and model folders."""

    guidance: float | Guidance | None
    steps: int | str | None
    sampler: str | None
    upsampler_guidance: float | Guidance | None
    upsampler_steps: int | str | None
    upsampler_sampler: str | None
    upsampler_noise: float | None
    upsampler_truncates: bool | None
    base_only: bool
    size: int | None
    square: bool


class SamplingOptions(Spec):
    """Sampling options of the images of a condition."""

    base: NetworkOptions = NetworkOptions()
    upsampler: UpsamplerOptions = UpsamplerOptions()
    base_only: bool = False
    """Return the base's small images, without the upsampler."""
    size: int | None = None
    """Short side of the images in pixels; by default the model's."""
    square: bool = False
    """Use only the centre square of the condition."""

    @classmethod
    def from_flat(cls, values: Mapping[str, Any] | SamplingKeywords, source: str = "sampling options") -> Self:
        """The options under the keys of `SamplingKeywords`. Raises SpecError, naming `source`."""
        options, others = cls.split(values, source)
        if others:
            key = next(iter(others))
            raise SpecError(f"{source}: unknown key '{key}'; {choices(key, FLAT_KEYS)}")
        return options

    @classmethod
    def split(
        cls, values: Mapping[str, Any] | SamplingKeywords, source: str = "sampling options"
    ) -> tuple[Self, dict[str, Any]]:
        """The options among flat values, and all other values. Raises SpecError, naming `source`."""
        ours = {key: value for key, value in values.items() if key in FLAT_KEYS}
        others = {key: value for key, value in values.items() if key not in FLAT_KEYS}
        upper = {key.removeprefix(OF_UPSAMPLER): ours.pop(key) for key in list(ours) if key.startswith(OF_UPSAMPLER)}
        base = {key: ours.pop(key) for key in list(ours) if key in NetworkOptions.model_fields}
        networks = {
            "base": NetworkOptions.parse(base, source),
            "upsampler": UpsamplerOptions.parse(upper, f"{source} of the upsampler"),
        }
        return cls.parse(networks | ours, source), others

    def to_flat(self) -> dict[str, Any]:
        """All options under their keys in `SamplingKeywords`; None if unset."""
        base = {key: getattr(self.base, key) for key in NetworkOptions.model_fields}
        upper = {f"{OF_UPSAMPLER}{key}": getattr(self.upsampler, key) for key in UpsamplerOptions.model_fields}
        return {**base, **upper, "base_only": self.base_only, "size": self.size, "square": self.square}

    def networks_over(self, other: SamplingOptions) -> SamplingOptions:
        """The options of both networks, with those of `other` for unset ones."""
        return SamplingOptions(base=self.base.over(other.base), upsampler=self.upsampler.over(other.upsampler))

    def with_sampler(self, network: Literal["base", "upsampler"], sampler: str) -> Self:
        """The same options with another sampler of a network."""
        one = getattr(self, network).model_copy(update={"sampler": sampler})
        return self.model_copy(update={network: one})

    def resolve(self, pipe: PITIPipeline) -> ResolvedSampling:
        """These options with the pipeline's defaults for unset ones. Raises UserError for invalid options."""
        pipe.check_parts()
        self._check_upsampler(pipe)
        network = pipe.base_network()
        own = _base_defaults(network, pipe.defaults.base)
        base = _as_settings(self.base.over(own))
        steps, upsampler = network.steps(base), None
        if pipe.upsampler is not None and not self.base_only:
            usual = pipe.defaults.upsampler
            if pipe.upsampler.one_step:
                usual = ONE_STEP.over(usual)
            upsampler, more = _upsampler_sampling(pipe, self.upsampler.over(usual))
            steps += more
        return ResolvedSampling(base, upsampler, steps, self.base_only, self.size, self.square)

    def _check_upsampler(self, pipe: PITIPipeline) -> None:
        """Raise UserError for upsampler options if there is no upsampler."""
        if pipe.upsampler is not None and not self.base_only:
            return
        for key, value in self.to_flat().items():
            if key.startswith(OF_UPSAMPLER) and value is not None:
                why = "base_only skips the upsampler" if self.base_only else "this model has no upsampler"
                raise UserError(f"does not apply: {why}", remedy="remove one of the two", option=key)


OWN_SAMPLING = SamplingOptions()
"""Options without any set value: the model's defaults."""

FLAT_KEYS = tuple(OWN_SAMPLING.to_flat())
"""The keys of `SamplingKeywords`."""

ONE_STEP = UpsamplerOptions(steps=1, sampler="ddim", noise=1.0)
"""The options of a network trained for one step from noise."""

GENERAL_DEFAULTS = SamplingOptions(
    base=NetworkOptions(guidance=Guidance(w=1.0), steps=50, sampler="ddpm"),
    upsampler=UpsamplerOptions(guidance=Guidance(w=0.0), steps="fast27", sampler="ddpm", noise=0.997, truncates=False),
)
"""Defaults for options that neither the caller nor the model sets; for the upsampler as in the release."""

_ONE_PASS = NetworkOptions(guidance=ONE_PASS.guidance, steps=ONE_PASS.steps, sampler=ONE_PASS.sampler)


def _base_defaults(network: Network | OnePass, usual: NetworkOptions) -> NetworkOptions:
    """The defaults of a base; settings fixed by its weights take precedence."""
    if isinstance(network, OnePass):
        return _ONE_PASS
    student = network.translator.student
    if network.translator.one_step:
        return usual.model_copy(update={"steps": ONE_STEP.steps, "sampler": ONE_STEP.sampler})
    if student is None:
        return usual
    own = usual.model_copy(update={"guidance": student.guidance})
    if student.timesteps is None:
        return own
    return own.model_copy(update={"steps": len(student.timesteps), "sampler": "ddim"})


def _as_settings(options: NetworkOptions) -> NetworkSampling:
    """Options that are all set, as settings."""
    assert isinstance(options.guidance, Guidance)
    assert options.steps is not None
    assert options.sampler is not None
    return NetworkSampling(options.guidance, options.steps, options.sampler)


def _upsampler_sampling(pipe: PITIPipeline, options: UpsamplerOptions) -> tuple[NetworkSampling, int]:
    """The upsampler's sampling settings and their number of steps. Raises UserError."""
    network, chosen = pipe.upsampler_network(), _as_settings(options)
    assert network is not None
    assert options.noise is not None
    if chosen.guidance.w != 0 and network.translator.encoder is None:
        raise UserError(
            "this upsampler takes no condition, so it has no guidance",
            remedy="leave it out, or set it to 0",
            option="upsampler_guidance",
            value=chosen.guidance.w,
        )
    chosen = NetworkSampling(chosen.guidance, chosen.steps, chosen.sampler, options.noise, bool(options.truncates))
    try:
        return chosen, network.steps(chosen)
    except UserError as error:
        raise UserError(
            f"with {option('upsampler_sampler')} {chosen.sampler!r}: {text_of(error)}",
            option="upsampler_steps",
            value=repr(chosen.steps),
        ) from None
