"""Recognising text-to-image models of other families in diffusers' folders, by `model_index.json` and the
configurations of their components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from piti.checkpoints.folder import INDEX_FILE, load_whole
from piti.checkpoints.foreign_weights import ForeignNetwork
from piti.checkpoints.prior_families import (
    OTHER_MODEL,
    WHOLE,
    Family,
    PriorError,
    TextPart,
    family_of,
    read_config,
)
from piti.checkpoints.prior_schedules import dynamic_shift_in, schedule_in
from piti.checkpoints.shards import WeightFiles
from piti.checkpoints.weights import check_finite
from piti.conditions import TextCondition
from piti.conditions.tokenizers import JoinedTokenizer, PretrainedTokenizer
from piti.core.errors import UserError, text_of, with_article
from piti.diffusion.schedule import ScheduleSpec
from piti.models import LanguageSpec, SpaceSpec, Translator
from piti.models.foreign import plain_config
from piti.models.space import AUTOENCODERS, Autoencoder, autoencoder_class, widths_key

_PREDICTED = {"epsilon": "noise", "v_prediction": "v", "sample": "the image", "flow_prediction": "a flow"}
_SCALE = 4  # of DeepFloyd IF's second stage
_LEVEL = 250  # of the noise in its small images, as diffusers samples


@dataclass(frozen=True)
class Recognised:
    """A diffusers folder, with everything read except the weights."""

    folder: Path
    family: Family
    index: dict[str, Any]
    unet: dict[str, Any]
    schedule: ScheduleSpec
    language: LanguageSpec
    condition: TextCondition
    space: SpaceSpec
    shift_growth: float = 0.0
    """Of the logarithm of the schedule's shift by one token of a larger image; see `grown_shift`."""

    @property
    def what(self) -> str:
        """A summary such as "Stable Diffusion, noise, 512 px, tokens of 768"."""
        predicts = _PREDICTED[self.schedule.prediction]
        widths = ("joint_attention_dim", "caption_channels", "encoder_hid_dim", "cross_attention_dim")
        width = next(filter(None, map(self.unet.get, widths)))
        variance = " and its variance" if self._learned else ""
        return f"{self.family.name}, predicts {predicts}{variance}, {self._image_size} px, tokens of {width}"

    def use(self) -> str:
        """Which components are used and which are not, in words."""
        used = {self.family.network, "scheduler", *({"vae"} if self.family.latent else ())}
        used |= {name for part in self.family.texts for name in (part.encoder, part.tokenizer)}
        used |= {"image_noising_scheduler"} & self.index.keys()
        others = sorted(
            key for key, value in self.index.items() if isinstance(value, list) and value[:1] not in ([], [None])
        )
        left = [name for name in others if name not in used]
        return f"{self.what}: used {', '.join(sorted(used))}" + (f"; not used {', '.join(left)}" if left else "")

    def notes(self) -> tuple[str, ...]:
        """What is used, and what its files leave open, in words."""
        if not self.shift_growth:
            return (self.use(),)
        shift, size = self.schedule.shift, self._image_size
        grown = (
            f"its noise levels follow the image's size: shift {shift:.8g} for {size} px, the exponential of "
            f"{math.log(shift):.8g}, to which each token of a larger image adds {self.shift_growth:.8g}"
        )
        return (self.use(), grown)

    @property
    def _image_size(self) -> int:
        return _side(self.unet, self.family) * self.space.factor

    @property
    def _learned(self) -> bool:
        return self.unet.get("out_channels") == 2 * self.space.channels * self.family.patch_size**2

    def arguments(self) -> dict[str, Any]:
        """The arguments of its `Translator`."""
        found: dict[str, Any] = {
            "unet_config": self.unet,
            "language_spec": self.language.to_dict(),
            "space_spec": self.space.to_dict(),
            "image_size": self._image_size,
            "learned_variance": self._learned,
            "steps": self.schedule.steps,
            "flow_shift": self.schedule.flow_shift,
            "patch_size": self.family.patch_size,
            "shift_growth": self.shift_growth,
            "embedded_guidance": self.family.embedded_guidance,
        }
        if self.family.role == "upsampler":
            noising = schedule_in(self.folder, "image_noising_scheduler", latent=False)
            found["low_res"] = self._image_size // _SCALE
            found["noised_spec"] = {"level": _LEVEL, "schedule": noising.to_dict()}
        return found

    def network(self) -> ForeignNetwork:
        """The network, with weights still in its original files. Raises PriorError, WeightsError."""
        arguments = self.arguments()
        try:
            with torch.device("meta"):
                translator = Translator(**arguments)
        except UserError as error:
            raise PriorError(text_of(error), source=self.folder / self.family.network / "config.json") from None
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:  # as diffusers and transformers raise
            raise PriorError(
                f"its network configurations are invalid ({error})", remedy=WHOLE, source=self.folder
            ) from None
        texts = [WeightFiles.of(self.folder / part.encoder, "model") for part in self.family.texts]
        files = WeightFiles.of(self.folder / self.family.network, "diffusion_pytorch_model")
        return ForeignNetwork(translator, files, texts)

    def autoencoder(self) -> Autoencoder:
        """The autoencoder, fully loaded. Raises ModelError, WeightsError."""
        folder = self.folder / "vae"
        files = WeightFiles.of(folder, "diffusion_pytorch_model")
        kind = autoencoder_class(read_config(folder / "config.json"))
        assert kind is not None  # checked by `_space`
        found = load_whole(kind, folder, variant=files.variant, use_safetensors=True)
        for name, value in found.state_dict().items():
            check_finite(folder, name, value)
        return found


def recognised(folder: Path) -> Recognised:
    """Recognise a diffusers folder. Raises PriorError if it is not in `FAMILIES`, or lacks a component."""
    if not (folder / INDEX_FILE).is_file():
        raise PriorError(f"has no {INDEX_FILE}", remedy=WHOLE, source=folder)
    index = read_config(folder / INDEX_FILE)
    family = family_of(index, str(folder / INDEX_FILE))
    for name in _parts_of(family):
        _check_part(folder, index, name, family)
    path = folder / family.network / "config.json"
    unet = read_config(path)
    space = _space(folder) if family.latent else SpaceSpec()
    _check_unet(path, unet, space, family)
    dynamic = dynamic_shift_in(folder) if family.dynamic else None
    shift = None if dynamic is None else dynamic.shift((_side(unet, family) // family.patch_size) ** 2)
    schedule = schedule_in(folder, "scheduler", family.latent, shift)
    language, condition = _language(folder, index, family, unet)
    growth = 0.0 if dynamic is None else dynamic.growth
    return Recognised(folder, family, index, plain_config(unet), schedule, language, condition, space, growth)


def _side(unet: Mapping[str, Any], family: Family) -> int:
    """Side of what a network sees of a square image of its size: latents, or pixels."""
    return family.sample_size or unet["sample_size"]


def _parts_of(family: Family) -> list[str]:
    texts = [name for part in family.texts for name in (part.encoder, part.tokenizer)]
    noising = ["image_noising_scheduler"] if family.role == "upsampler" else []
    return [family.network, "scheduler", *texts, *(["vae"] if family.latent else []), *noising]


def _check_part(folder: Path, index: Mapping[str, Any], name: str, family: Family) -> None:
    told = index.get(name)
    if told is not None and not (isinstance(told, list) and len(told) == 2):
        kind = f"'{name}' is {told}, expected its library and class"
        raise PriorError(kind, remedy=WHOLE, source=folder / INDEX_FILE)
    if told is None or told[0] is None or not (folder / name).is_dir():
        own = any(name in (part.encoder, part.tokenizer) for part in family.texts) or name == "vae"
        more = f", with {family.shared}" if own and family.shared else ""
        raise PriorError(f"has no '{name}', which is needed", remedy=f"download the whole model{more}", source=folder)


def _check_unet(path: Path, unet: Mapping[str, Any], space: SpaceSpec, family: Family) -> None:
    """Raises PriorError for a UNet with other inputs or outputs than a text-to-image model's."""
    seen, made = unet.get("in_channels"), unet.get("out_channels")
    side = family.sample_size or unet.get("sample_size")
    kind = str(unet.get("_class_name", family.classes[0]))
    if kind not in family.classes:
        raise PriorError(f"is {with_article(kind)}, expected {' or '.join(family.classes)}", remedy=WHOLE, source=path)
    if not isinstance(side, int):
        raise PriorError(f"'sample_size' is {side}, expected one side in pixels or latents", remedy=WHOLE, source=path)
    point = space.channels * family.patch_size**2
    expected = point * (2 if family.role == "upsampler" else 1)
    folded = f", folded {family.patch_size} x {family.patch_size}" if family.patch_size > 1 else ""
    of = f", as its autoencoder has {space.channels}{folded}" if family.latent else ""
    if seen == 2 * space.channels + 1:
        raise PriorError(f"takes {seen} channels: it is an inpainting variant", remedy=OTHER_MODEL, source=path)
    if seen != expected:
        raise PriorError(f"takes {seen} channels, expected {expected}{of}", remedy=OTHER_MODEL, source=path)
    usual = (None,) if family.patch_size > 1 else ()  # FLUX.1's are as many as it takes, where nothing is said
    if made not in (point, 2 * point, *usual):
        raise PriorError(f"outputs {made} channels, expected {point}{of}", remedy=OTHER_MODEL, source=path)
    _check_guidance(path, unet, family)


def _check_guidance(path: Path, unet: Mapping[str, Any], family: Family) -> None:
    """Raises PriorError for a network that takes a guidance strength where its family does not, or the reverse."""
    if unet.get("time_cond_proj_dim") is not None:
        raise PriorError(
            "takes the guidance strength as an input ('time_cond_proj_dim'): it is distilled for a few guided steps",
            remedy=OTHER_MODEL,
            source=path,
        )
    if family.embedded_guidance is not None and unet.get("guidance_embeds") is not True:
        raise PriorError(
            "takes no guidance scale ('guidance_embeds' is not true), as FLUX.1-schnell, which is distilled for a few "
            "steps and takes no guidance; one without that input that is not distilled cannot be distinguished from it",
            remedy="give FLUX.1-dev, or a model derived from it",
            source=path,
        )


def _space(folder: Path) -> SpaceSpec:
    path = folder / "vae/config.json"
    config = read_config(path)
    if autoencoder_class(config) is None:
        kind, known = with_article(config["_class_name"]), " or ".join(map(with_article, AUTOENCODERS))
        raise PriorError(f"is {kind}", remedy=f"give a model whose autoencoder is {known}", source=path)
    for key in (widths_key(config), "latent_channels"):
        if not config.get(key):
            raise PriorError(f"lacks '{key}'", remedy=WHOLE, source=path)
    scale = config.get("scaling_factor", 1.0)
    if not isinstance(scale, (int, float)) or scale <= 0:
        raise PriorError(f"'scaling_factor' is {scale}, expected a number above 0", remedy=WHOLE, source=path)
    try:
        return SpaceSpec.of(config)
    except UserError as error:
        raise PriorError(text_of(error), source=path) from None


# Text


@dataclass(frozen=True)
class _Text:
    """A text encoder of a folder."""

    part: TextPart
    tokenizer: PretrainedTokenizer
    vocabulary: Mapping[str, int]
    config: dict[str, Any]
    most: int
    """The largest number of tokens that it reads."""

    @classmethod
    def of(cls, folder: Path, index: Mapping[str, Any], part: TextPart, lower: bool) -> _Text:
        """Raises PriorError for a text encoder of another class."""
        tokenizer = PretrainedTokenizer(folder / part.tokenizer, lower=lower)
        vocabulary = tokenizer.vocabulary()
        kind, path = str(index[part.encoder][1]), folder / part.encoder / "config.json"
        if kind not in part.classes:
            raise PriorError(f"is {with_article(kind)}, expected {' or '.join(part.classes)}", source=path)
        config = _own(read_config(path))
        most = part.context or min(tokenizer.most(), _positions(config, path))
        return cls(part, replace(tokenizer, size=len(vocabulary)), vocabulary, config, most)

    def spec(self) -> dict[str, Any]:
        """Fields of `LanguageModelSpec`."""
        return {
            "kind": self.part.kind,
            "config": self.config,
            "pad": self.tokenizer.pad(),
            "penultimate": self.part.penultimate,
            "masked": self.part.masked or bool(self.config.get("use_attention_mask")),
            "after": self.part.after,
        }


def _by_tokenizer(texts: Sequence[_Text], folder: Path) -> list[list[_Text]]:
    """Groups that read the same ids: all text encoders whose tokens are joined along the width, then each other one.
    Raises PriorError if the vocabularies of a group differ."""
    beside = [text for text in texts if not text.part.after]
    if any(text.vocabulary != beside[0].vocabulary for text in beside):
        raise PriorError("its tokenizers have different vocabularies, which is not supported", source=folder)
    return [beside, *([text] for text in texts if text.part.after)]


def _language(
    folder: Path, index: Mapping[str, Any], family: Family, unet: Mapping[str, Any]
) -> tuple[LanguageSpec, TextCondition]:
    """The text encoders and their condition. Raises PriorError, and ConditionError if transformers is not installed."""
    groups = _by_tokenizer([_Text.of(folder, index, part, family.lower) for part in family.texts], folder)
    tokenizers = tuple(group[0].tokenizer for group in groups)
    places = tuple(min(text.most for text in group) for group in groups)
    tokenizer, own = tokenizers[0], [{}]
    if len(groups) > 1:
        tokenizer = JoinedTokenizer(tokenizers, places)
        own = [{"ids": list(ids), "places": count} for ids, count in zip(tokenizer.ranges, places, strict=True)]
    models = [text.spec() | read for group, read in zip(groups, own, strict=True) for text in group]
    spec = {
        "models": models,
        "context": sum(places),
        "vocabulary": tokenizer.size,
        "empty": tokenizer.encode(""),
        "zero_empty": family.zero_empty and bool(index.get("force_zeros_for_empty_prompt", True)),
        "mask": family.mask,
        "pool_all": family.pool_all,
        "width": unet.get("joint_attention_dim"),
        "zeros": family.zeros,
    }
    return LanguageSpec.parse(spec, str(folder)), TextCondition(sum(places), tokenizer)


def _positions(config: Mapping[str, Any], path: Path) -> int:
    """The number of positions of a text encoder. Raises PriorError if it is not given."""
    count = config.get("max_position_embeddings")
    if not isinstance(count, int):
        raise PriorError(f"'max_position_embeddings' is {count}, expected a count", remedy=WHOLE, source=path)
    return count


_ABOUT = frozenset({"architectures", "model_type", "dtype", "torch_dtype", "transformers_version"})


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers configuration without keys about its origin."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _ABOUT}
