"""Requests of the page and over HTTP, their limits, and responses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from piti.conditions.class_table import Colour
from piti.core.errors import UserError, spelled
from piti.core.spec import Spec, choices
from piti.diffusion.samplers import SAMPLERS
from piti.editing import EditSettings
from piti.generation.options import GenerationOptions
from piti.pipelines.cascade import ResolvedSampling


def _known(name: str) -> str:
    if name not in SAMPLERS:
        raise UserError(f"is not a sampler; {choices(name, SAMPLERS)}")
    return name


def _listed(schema: dict[str, Any]) -> None:
    schema["enum"] = list(SAMPLERS)


SamplerName = Annotated[str, AfterValidator(_known), Field(json_schema_extra=_listed)]
"""A name in `SAMPLERS`, including added ones."""
Strength = Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class LimitError(UserError):
    """A request exceeds a limit. The message names the field and the limit."""


class TooLarge(LimitError):
    """A body or a picture is larger than this studio takes."""


@dataclass(frozen=True)
class Limits:
    """How much a studio takes on; each is a flag of `piti studio`."""

    upload_bytes: int = 24 * 2**20
    """Bytes of a request, all its files together."""
    upload_seconds: float = 60.0
    """How long a request's body may take to arrive."""
    pixels: int = 16_000_000
    """Of an uploaded picture, told from its header before it is decoded."""
    samples: int = 8
    """Pictures of one request."""
    steps: int = 250
    """Denoising steps that may be asked for, of base and upsampler each."""
    size: int = 1024
    """Short side of the pictures that may be asked for."""
    waiting: int = 32
    """Jobs that wait."""
    waiting_bytes: int = 256 * 2**20
    """What waiting jobs may hold together, in bytes of pictures and conditions."""
    seconds: float = 120.0
    """How long a job may run."""
    kept_results: int = 200
    """Pictures that can be fetched again, and edited; the oldest go first."""
    kept_bytes: int = 256 * 2**20
    """The same, in bytes of PNG and conditions."""

    def __post_init__(self) -> None:
        """Raises LimitError for limits with which nothing can be done."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 1:
                raise LimitError(f"limit {field.name} = {value}: nothing could be generated; give at least 1")

    def of_fields(self) -> dict[str, int]:
        """The most that the fields of a request may say."""
        return {"num": self.samples, "size": self.size, "steps": self.steps, "upsampler_steps": self.steps}

    def check(self, request: TranslateRequest | EditRequest) -> None:
        """Raises LimitError for a request that asks for more."""
        for key, most in self.of_fields().items():
            value = getattr(request, key)
            if isinstance(value, int) and value > most:
                raise LimitError(f"{key} = {value}: this studio allows at most {most}")


class _Request(Spec):
    """Fields of translations and edits; defaults are the model's own."""

    model: str = Field(description="Name of the model; GET /api/models lists them.", examples=["street"])
    num: Count = Field(4, description="Number of images.", examples=[1])
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="The same seed, input and settings give the same images."
    )
    guidance: Strength | None = Field(None, description="Guidance strength w, 0 is off; the model's own by default.")
    steps: Count | None = Field(None, description="Denoising steps of the base.")
    upsampler_steps: Count | Literal["fast27"] | None = Field(
        None, description="Denoising steps of the upsampler: a number, or fast27 as released."
    )
    size: Count | None = Field(None, description="Short side of the images in pixels; the model's own by default.")
    base_only: bool = Field(False, description="Return the base's small images, without the upsampler.")


class TranslateRequest(_Request):
    """Generation of images from a condition."""

    sampler: SamplerName | None = Field(None, description="Sampler of the base; the model's own by default.")
    upsampler_sampler: SamplerName | None = Field(None, description="Sampler of the upsampler.")

    def options(self) -> GenerationOptions:
        """Which pictures are to be made, and how."""
        return GenerationOptions.from_flat(**self.model_dump(exclude={"model"}))


class EditRequest(_Request):
    """Editing of an image where its condition changes."""

    num: Count = Field(1, description="Number of versions; with variety 0 all are the same.")
    keep_exact: bool = Field(
        False, description="Keep the input's size, and every pixel outside the region bit for bit."
    )
    variety: Share | None = Field(
        None, description="Share of fresh noise inside the region; 0.7 by default, 0 if everything is repainted."
    )
    dilate: Share | None = Field(
        None, description="How far the region extends beyond the change, as a share of the short side."
    )
    feather: Share | None = Field(
        None, description="Width over which the region fades out, as a share of the short side."
    )

    def settings(self) -> EditSettings:
        """The edit's settings; missing ones have editing's defaults."""
        return EditSettings.from_flat(**self.model_dump(exclude={"model", "num", "seed"}, exclude_none=True))


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ClassInfo(_Answer):
    """A class of a mask."""

    id: int = Field(description="Its value in images of class ids.")
    name: str
    colour: Colour = Field(description="Red, green and blue in 0..255, in images of colours.")


class Defaults(_Answer):
    """A model's default sampling settings."""

    guidance: float
    steps: int | str
    sampler: str
    upsampler_steps: int | str | None = Field(description="Null without an upsampler.")
    upsampler_sampler: str | None

    @classmethod
    def of(cls, sampling: ResolvedSampling) -> Self:
        """A model's defaults, without any options."""
        base, upsampler = sampling.base, sampling.upsampler
        return cls(
            guidance=base.guidance.w,
            steps=base.steps,
            sampler=base.sampler,
            upsampler_steps=None if upsampler is None else upsampler.steps,
            upsampler_sampler=None if upsampler is None else upsampler.sampler,
        )


class Bounds(_Answer):
    """Limits of a request."""

    num: int
    steps: int
    size: int
    upload_bytes: int
    pixels: int
    seconds: float


class ModelInfo(_Answer):
    """A served model."""

    name: str = Field(examples=["street"])
    kind: str = Field(
        description="Kind of condition: mask, palette (also a mask), sketch, geometry, picture, text, or a custom kind."
    )
    image_size: int = Field(description="Short side of its images in pixels.")
    small_size: int = Field(description="The same with base_only.")
    classes: list[ClassInfo] = Field(description="The classes of a mask; else empty.")
    unlabelled: Colour | None = Field(description="The colour of unlabelled pixels in a mask.")
    samplers: list[str] = Field(
        description="Supported samplers: a single one for a few-step model, none for a baseline, which generates in "
        "one pass."
    )
    fixed: list[str] = Field(
        description="Which of guidance, steps and sampler are fixed by its weights and must be left out.",
        examples=[[]],
    )
    edits: bool = Field(
        description="Whether POST /api/edit supports it; not for distilled models, baselines and priors."
    )
    defaults: Defaults
    limits: Bounds


class PictureAnswer(_Answer):
    """A generated image."""

    number: int = Field(description="0 for the first; with the seed it determines the noise.")
    width: int
    height: int
    address: str = Field(description="Where it can be downloaded for a while.", examples=["/pictures/7Yz….png"])
    png: str = Field(description="The file in base64; its metadata record how it was made.")


class ResultAnswer(_Answer):
    """The generated images of a request."""

    model: str
    seed: int
    seconds: float = Field(description="Time since the job started to run.")
    pictures: list[PictureAnswer]
    notes: list[str] = Field(description="Notes for the user.")


class ErrorAnswer(_Answer):
    """An error: what is wrong and what to do."""

    error: str = Field(examples=["num = 99: this studio allows at most 8"])
    details: list[str] = Field(default=[], description="One line per mistake, if there are several.")


class Health(_Answer):
    """State of the studio."""

    status: str = "ok"
    version: str
    models: list[str]
    jobs: int = Field(description="Number of waiting and running jobs.")


def for_browser(error: UserError) -> str:
    """An error's text for clients without terminal and files, with options as fields."""
    return spelled(error.text(local=False))
