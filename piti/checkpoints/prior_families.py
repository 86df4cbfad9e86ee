"""The families of text-to-image models in diffusers' folders: what their pipelines are made of, and how they are
sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from piti.checkpoints.folder import ModelError
from piti.core.errors import with_article

WHOLE = "give a whole folder of a pipeline of diffusers, as it was published"


class PriorError(ModelError):
    """A folder is no model that can be imported. The message names the file, what it is, and the remedy."""


@dataclass(frozen=True)
class TextPart:
    """A text encoder of a family, and the tokenizer beside it."""

    encoder: str
    tokenizer: str
    kind: str
    """A kind of `LanguageModelSpec`."""
    classes: tuple[str, ...]
    """Of transformers, as `model_index.json` names them."""
    penultimate: bool = False
    masked: bool = False
    context: int | None = None
    """Tokens of a text; none: as many as the tokenizer and the encoder's positions say."""
    after: bool = False
    """It reads a text by a tokenizer of its own, and its tokens follow the others'. A model may come without it."""


@dataclass(frozen=True)
class Family:
    """What the pipelines of one class have in common."""

    name: str
    texts: tuple[TextPart, ...]
    sampling: Mapping[str, Any]
    """How it is sampled by default, under the flat keys of sampling options."""
    role: str = "base"
    latent: bool = True
    lower: bool = False
    """Texts are lower-cased."""
    zero_empty: bool = False
    """No text is tokens of zeros, unless the index says otherwise."""
    network: str = "unet"
    """The folder of the network that denoises."""
    classes: tuple[str, ...] = ("UNet2DConditionModel",)
    """What that network may be saved as."""
    mask: bool = False
    """Whether that network gets the text's attention mask."""
    shared: str = ""
    """Which parts several of its models may share, for a person."""
    pool_all: bool = False
    """The network takes the pooled tokens of all text encoders."""

    zeros: int = 0
    """Tokens of zeros that stand for a text encoder that a model came without."""

    def of(self, index: Mapping[str, Any]) -> Family:
        """The family of one model: without the text encoders that it may come without, if its index has none."""
        absent = [part for part in self.texts if part.after and (index.get(part.encoder) or [None])[0] is None]
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
    TextPart("text_encoder_3", "tokenizer_3", "t5", ("T5EncoderModel",), context=256, after=True),
)


def _plain(w: float) -> dict[str, Any]:
    return {"kind": "plain", "w": w}


def _pixart(name: str, context: int) -> Family:
    """A transformer that reads T5's tokens. context: tokens of a text."""
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


# Steps and guidance are those that diffusers' pipelines take by default (guidance_scale there is 1 + w), and so are
# DeepFloyd IF's ancestral steps. Published folders of Stable Diffusion name PNDM, DDIM or Euler's method as schedulers:
# all are sampled by DDIM here, whose images are diffusers' own where its pipeline is given DDIM.
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
}
"""By the class in `model_index.json`."""


def own_model(source: str) -> PriorError:
    """What is said of a model of this package, which needs no import."""
    return PriorError("is a model of this package already", remedy="name it as it is", source=source)


def family_of(index: Mapping[str, Any], source: str) -> Family:
    """The family that a `model_index.json` names. Raises PriorError for any other; source: names it there."""
    named = str(index.get("_class_name", ""))
    if named in FAMILIES:
        return FAMILIES[named].of(index)
    if not named:
        raise PriorError("does not name its pipeline ('_class_name')", remedy=WHOLE, source=source)
    if named == "PITIPipeline":
        raise own_model(source)
    why = next((reason for word, reason in _OTHERS.items() if word in named), "is none that is known here")
    raise PriorError(
        f"{with_article(named)} {why}",
        remedy=f"give a text-to-image model, one of {', '.join(FAMILIES)}",
        source=source,
    )


_OTHERS = {
    "Inpaint": "fills in pictures, and its UNet sees more than noise",
    "LatentConsistency": "is distilled for a few guided steps",
    "Img2Img": "starts from a picture",
    "ControlNet": "is a model with a ControlNet beside it",
    "InstructPix2Pix": "changes pictures, and its UNet sees more than noise",
    "Upscale": "enlarges pictures in latents beside their pixels, as what follows DeepFloyd IF's second stage does",
    "Flux": "is distilled: it takes the guidance strength as an input, or a few steps",
    "SanaSprint": "is distilled for a few guided steps",
    "SanaControlNet": "is a model with a ControlNet beside it",
}
