"""The families of text-to-image models in diffusers' folders: the components of their pipelines, and their sampling
settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from piti.checkpoints.folder import ModelError
from piti.core.errors import with_article

WHOLE = "give the complete folder of a diffusers pipeline, as published"
OTHER_MODEL = "give the text-to-image model that it was derived from"


class PriorError(ModelError):
    """A folder cannot be imported. The message names the file, what it is, and what to do."""


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON configuration. Raises PriorError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PriorError(f"cannot be read ({why})", remedy=WHOLE, source=path) from None
    if not isinstance(values, dict):
        raise PriorError(f"expected an object, got {type(values).__name__}", source=path)
    return values


@dataclass(frozen=True)
class TextPart:
    """A text encoder of a family, and its tokenizer."""

    encoder: str
    tokenizer: str
    kind: str
    """A kind of `LanguageModelSpec`."""
    classes: tuple[str, ...]
    """Classes of transformers, as named in `model_index.json`."""
    penultimate: bool = False
    masked: bool = False
    context: int | None = None
    """Tokens per text; None: as given by the tokenizer and the encoder's positions."""
    after: bool = False
    """It has its own tokenizer, and its tokens follow the others'."""
    optional: bool = False
    """A model may omit it; tokens of zeros then stand in its place."""


@dataclass(frozen=True)
class Family:
    """Properties of the pipelines of one class."""

    name: str
    texts: tuple[TextPart, ...]
    sampling: Mapping[str, Any]
    """Default sampling options, under their flat keys."""
    role: str = "base"
    latent: bool = True
    lower: bool = False
    """Texts are lower-cased."""
    zero_empty: bool = False
    """The null text is tokens of zeros, unless the index says otherwise."""
    network: str = "unet"
    """The folder of the denoising network."""
    classes: tuple[str, ...] = ("UNet2DConditionModel",)
    """The classes of that network."""
    mask: bool = False
    """Whether that network takes the text's attention mask."""
    shared: str = ""
    """Components that several of its models may share, in words."""
    pool_all: bool = False
    """Whether the network takes the pooled tokens of all text encoders."""

    patch_size: int = 1
    """Side of the squares of latents that the pipeline folds into channels before the network."""
    sample_size: int | None = None
    """Side of the latents of an image, if the network's configuration has none."""
    embedded_guidance: float | None = None
    """The guidance scale that the network takes as an input, if it is guidance-distilled."""
    zeros: int = 0
    """Tokens of zeros in place of an omitted text encoder."""

    @property
    def dynamic(self) -> bool:
        """Whether its noise levels may follow the image's size."""
        return self.embedded_guidance is not None

    def of(self, index: Mapping[str, Any]) -> Family:
        """The family as used by one model, without optional text encoders that its index lacks."""
        absent = [part for part in self.texts if part.optional and (index.get(part.encoder) or [None])[0] is None]
        texts = tuple(part for part in self.texts if part not in absent)
        return replace(self, texts=texts, zeros=sum(part.context or 0 for part in absent))


_CLIP = TextPart("text_encoder", "tokenizer", "clip", ("CLIPTextModel",))
_T5 = TextPart("text_encoder", "tokenizer", "t5", ("T5EncoderModel",), masked=True, context=77)
_FLOYD_SHARES = "its text encoder, which pipelines of DeepFloyd IF may share"
_PROJECTED = ("CLIPTextModelWithProjection",)
_CLIP_G = TextPart("text_encoder_2", "tokenizer_2", "clip_projection", _PROJECTED, penultimate=True)
_XL = (TextPart("text_encoder", "tokenizer", "clip", ("CLIPTextModel",), penultimate=True), _CLIP_G)
_SD3 = (
    TextPart("text_encoder", "tokenizer", "clip_projection", _PROJECTED, penultimate=True),
    _CLIP_G,
    TextPart("text_encoder_3", "tokenizer_3", "t5", ("T5EncoderModel",), context=256, after=True, optional=True),
)
_FLUX = (
    TextPart("text_encoder", "tokenizer", "clip_pooled", ("CLIPTextModel",)),
    TextPart("text_encoder_2", "tokenizer_2", "t5", ("T5EncoderModel",), context=512, after=True),
)


def _plain(w: float) -> dict[str, Any]:
    return {"kind": "plain", "w": w}


def _pixart(name: str, context: int) -> Family:
    """A transformer on T5 tokens. context: tokens per text."""
    t5 = TextPart("text_encoder", "tokenizer", "t5", ("T5EncoderModel",), masked=True, context=context)
    shared = "its text encoder and its autoencoder, which models of PixArt may share"
    return Family(
        name,
        (t5,),
        sampling={"sampler": "dpm++", "steps": 20, "guidance": _plain(3.5)},
        lower=True,
        network="transformer",
        classes=("PixArtTransformer2DModel", "Transformer2DModel"),
        mask=True,
        shared=shared,
    )


# Steps and guidance are those that diffusers' pipelines take by default (guidance_scale there is 1 + w, for FLUX.1 the
# input of the network), and so are DeepFloyd IF's ancestral steps. Published folders of Stable Diffusion name PNDM,
# DDIM or Euler's method as schedulers: all are sampled by DDIM here, whose images are diffusers' own where its pipeline
# is given DDIM.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion", (_CLIP,), sampling={"sampler": "ddim", "steps": "leading50", "guidance": _plain(6.5)}
    ),
    "StableDiffusionXLPipeline": Family(
        "SDXL", _XL, zero_empty=True, sampling={"sampler": "ddim", "steps": "leading50", "guidance": _plain(4.0)}
    ),
    "IFPipeline": Family(
        "DeepFloyd IF stage I",
        (_T5,),
        latent=False,
        lower=True,
        sampling={"sampler": "ddpm", "steps": "ddim100", "guidance": _plain(6.0)},
        shared=_FLOYD_SHARES,
    ),
    "IFSuperResolutionPipeline": Family(
        "DeepFloyd IF stage II",
        (_T5,),
        role="upsampler",
        latent=False,
        lower=True,
        sampling={
            "upsampler_sampler": "ddpm",
            "upsampler_steps": "ddim50",
            "upsampler_guidance": _plain(3.0),
            "upsampler_noise": 1.0,
        },
        shared=_FLOYD_SHARES,
    ),
    "PixArtAlphaPipeline": _pixart("PixArt-α", 120),
    "PixArtSigmaPipeline": _pixart("PixArt-Σ", 300),
    "SanaPipeline": Family(
        "Sana",
        (TextPart("text_encoder", "tokenizer", "gemma", ("Gemma2Model",), masked=True, context=300),),
        sampling={"sampler": "dpm++", "steps": 20, "guidance": _plain(3.5)},
        lower=True,
        network="transformer",
        classes=("SanaTransformer2DModel",),
        mask=True,
    ),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3",
        _SD3,
        sampling={"sampler": "ddim", "steps": 28, "guidance": _plain(6.0)},
        network="transformer",
        classes=("SD3Transformer2DModel",),
        pool_all=True,
    ),
    "FluxPipeline": Family(
        "FLUX.1",
        _FLUX,
        sampling={"sampler": "ddim", "steps": 28, "guidance": _plain(0.0)},
        network="transformer",
        classes=("FluxTransformer2DModel",),
        pool_all=True,
        patch_size=2,
        sample_size=128,
        embedded_guidance=3.5,
    ),
}
"""Families by the class in `model_index.json`."""


def own_model(source: str) -> PriorError:
    """The error for a model of this package, which needs no import."""
    return PriorError("is already a model of this package", remedy="use it directly", source=source)


def family_of(index: Mapping[str, Any], source: str) -> Family:
    """The family named in a `model_index.json`. Raises PriorError, naming `source`, for any other."""
    named = str(index.get("_class_name", ""))
    if named in FAMILIES:
        return FAMILIES[named].of(index)
    if not named:
        raise PriorError("does not name its pipeline ('_class_name')", remedy=WHOLE, source=source)
    if named == "PITIPipeline":
        raise own_model(source)
    why = next((reason for word, reason in _OTHERS.items() if word in named), "is not supported")
    raise PriorError(
        f"{with_article(named)} {why}",
        remedy=f"give a text-to-image model, one of {', '.join(FAMILIES)}",
        source=source,
    )


_OTHERS = {
    "Inpaint": "is an inpainting model, whose UNet has additional inputs",
    "LatentConsistency": "is distilled for a few guided steps",
    "Img2Img": "starts from an image",
    "ControlNet": "is a model with a ControlNet",
    "InstructPix2Pix": "is an image-editing model, whose UNet has additional inputs",
    "Upscale": "is a latent upscaler that also takes pixels, as used after DeepFloyd IF's second stage",
    "FluxFill": "is an inpainting model, whose transformer has additional inputs",
    "FluxControl": "takes an image as a further input",
    "FluxKontext": "is an image-editing model",
    "SanaSprint": "is distilled for a few guided steps",
    "SanaControlNet": "is a model with a ControlNet",
}
