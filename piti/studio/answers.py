"""What the studio answers over HTTP."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

Colour = tuple[int, int, int]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ClassInfo(_Answer):
    """A class of a mask."""

    id: int = Field(description="Its value in pictures of class ids.")
    name: str
    colour: Colour = Field(description="Red, green and blue in 0..255, in pictures of colours.")


class Defaults(_Answer):
    """How a model is sampled where a request does not say."""

    guidance: float
    steps: int | str
    sampler: str
    upsampler_steps: int | str | None = Field(description="None: no upsampler.")
    upsampler_sampler: str | None


class Bounds(_Answer):
    """The most that a request may ask for."""

    num: int
    steps: int
    size: int
    upload_bytes: int
    pixels: int
    seconds: float


class ModelInfo(_Answer):
    """A model that is served."""

    name: str = Field(examples=["street"])
    kind: str = Field(description="What it reads: mask, palette (a mask too), sketch, geometry or text.")
    image_size: int = Field(description="Short side of its pictures in pixels.")
    small_size: int = Field(description="The same with base_only.")
    classes: list[ClassInfo] = Field(description="Of a mask; else empty.")
    unlabelled: Colour | None = Field(description="Of a mask: the colour that stands for no class.")
    samplers: list[str] = Field(description="Empty for a baseline, which makes its pictures in one pass.")
    defaults: Defaults
    limits: Bounds


class PictureAnswer(_Answer):
    """A picture that was made."""

    number: int = Field(description="0 for the first; with the seed it decides the noise.")
    width: int
    height: int
    address: str = Field(description="Where it can be fetched for a while.", examples=["/pictures/7Yz….png"])
    png: str = Field(description="The file in base64; its text says how it was made (piti translate --like).")


class ResultAnswer(_Answer):
    """The pictures of a request."""

    model: str
    seed: int
    seconds: float = Field(description="Since the job began to run.")
    pictures: list[PictureAnswer]
    notes: list[str] = Field(description="What else a person should know.")


class ErrorAnswer(_Answer):
    """What was wrong, and what to do."""

    error: str = Field(examples=["num = 99: this studio allows at most 8"])
    details: list[str] = Field(default=[], description="One line for each mistake, where there are several.")


class Health(_Answer):
    """That the studio answers."""

    status: str = "ok"
    version: str
    models: list[str]
    jobs: int = Field(description="Waiting and running.")
