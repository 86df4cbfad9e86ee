"""Identifying released files: GLIDE or PITI, base or upsampler, and all sizes, from their tensors' shapes.

Three properties are not determined by the tensors. The image size: the lowest level of every released UNet has 8 px, so
that n levels give 8 · 2^(n-1) px (64 with four, 256 with six), and the upsampler's small image has a quarter. The head
size of the UNet: 64 if the UNet's first level and every width with attention are multiples of 64, as in all released
files, else 32. The heads of a transformer: of 64 channels if its width is a multiple of 64 and at least 256 (8 for the
released 512), else of 32. `Heads` overrides the last two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from piti.checkpoints.release_keys import Rule, encoder_rules, release_rules
from piti.checkpoints.weights import is_archive, read_weights
from piti.core.errors import Message, UserError, option
from piti.models.encoders import EncoderSpec
from piti.models.text import TextEncoderSpec
from piti.models.translator import Translator
from piti.models.unet import UNetSpec

Shapes = Mapping[str, tuple[int, ...]]

LOWEST_SIDE = 8
"""Pixels of the lowest level's side in every released UNet."""
ENLARGEMENT = 4
"""Enlargement factor of every released upsampler."""


class ReleaseError(UserError):
    """A file is not in the released layout, or a model has none. The message names keys and expectations."""


class ExchangeError(UserError):
    """A model cannot be imported or exported as requested. The message names the file or option and what to do."""


@dataclass(frozen=True)
class Heads:
    """Properties that shapes do not determine; None: by the rules above."""

    head_dim: int | None = None
    """Channels per attention head in the UNet."""
    heads: int | None = None
    """Heads of the transformer of the text or condition encoder."""


@dataclass(frozen=True)
class Released:
    """Description of a released file."""

    family: str
    """"GLIDE" or "PITI"."""
    role: str
    """"base", "upsampler", "inpaint base", "inpaint upsampler", or "encoder"."""
    encoder: EncoderSpec | TextEncoderSpec
    unet: UNetSpec | None
    """None for an encoder alone, as saved by PITI's first stage."""
    config: dict[str, Any]
    """The translator's configuration, without a missing encoder or UNet."""
    rules: list[Rule]

    @property
    def name(self) -> str:
        return f"{self.family} {self.role}"

    @property
    def options(self) -> Message:
        """The options that an import needs for unusual head sizes."""
        usual = None if self.unet is None else head_dim_of(self.unet.channels, self.unet.attention)
        told = []
        if self.unet is not None and self.unet.head_dim != usual:
            told.append(f"{option('head_dim')} {self.unet.head_dim}")
        if self.encoder.heads != heads_of(self.encoder.width):
            told.append(f"{option('heads')} {self.encoder.heads}")
        return Message(" ".join(told))


# Input channels of a UNet => (whether it enlarges a small image, whether it inpaints)
_ROLES = {
    3: (False, False, "base"),
    6: (True, False, "upsampler"),
    7: (False, True, "inpaint base"),
    10: (True, True, "inpaint upsampler"),
}
_CONDITION_STEM, _TEXT = "cnn.conv1.weight", "token_embedding.weight"
_FIRST, _LAST = "input_blocks.0.0.weight", "out.2.weight"


class _Layout(NamedTuple):
    """Key layout of a family."""

    family: str
    signs: tuple[str, str]
    """Keys that identify it."""
    encoder: str
    """Prefix of the encoder's keys."""
    unet: str | None
    """Prefix of the UNet's keys; None if there is no UNet."""


_LAYOUTS = (
    _Layout("PITI", ("encoder." + _CONDITION_STEM, "decoder." + _FIRST), "encoder.", "decoder."),
    _Layout("GLIDE", (_TEXT, _FIRST), "", ""),
    _Layout("PITI", ("encoder." + _CONDITION_STEM, "encoder.cls_token"), "encoder.", None),
    _Layout("PITI", (_CONDITION_STEM, "cls_token"), "", None),
)


def identify(shapes: Shapes, source: str, chosen: Heads | None = None) -> Released:
    """Identify the file `source` by its keys and shapes. Raises ReleaseError.

    All keys and shapes are compared with those of a translator of these sizes; missing, unexpected and differing ones
    are errors.
    """
    layout = _layout(shapes)
    if layout is None:
        raise ReleaseError(_unknown(shapes, source))
    try:
        found = _read(layout, shapes, chosen or Heads())
        _compare(shapes, found)
    except KeyError as error:
        raise ReleaseError(f"{source}: looks like {layout.family}'s layout, but has no '{error.args[0]}'") from None
    except UserError as error:
        raise ReleaseError.like(error).about(source) from None
    except (ValueError, IndexError):
        raise ReleaseError(f"{source}: has {layout.family}'s keys, but tensors of other dimensions") from None
    return found


def is_released(path: Path) -> bool:
    """Whether a file was written by `torch.save` and has the identifying keys of a layout; `identify` checks more."""
    try:
        return path.is_file() and is_archive(path) and _layout(read_weights(path)) is not None
    except (UserError, OSError):
        return False


def _layout(names: Container[str]) -> _Layout | None:
    return next((item for item in _LAYOUTS if all(key in names for key in item.signs)), None)


def _read(layout: _Layout, shapes: Shapes, chosen: Heads) -> Released:
    """Raises KeyError for a key that is missing, ValueError or IndexError for odd dimensions, else UserError."""
    of_encoder = _below(shapes, layout.encoder)
    if layout.family == "GLIDE":
        return _whole(layout.family, _text_spec(of_encoder, chosen), shapes, chosen)
    encoder = _encoder_spec(of_encoder, chosen)
    if layout.unet is not None:
        return _whole(layout.family, encoder, _below(shapes, layout.unet), chosen)
    rules = [rule.prefixed(layout.encoder, "encoder.") for rule in encoder_rules(encoder)]
    return Released(layout.family, "encoder", encoder, None, {"encoder_spec": encoder.to_dict()}, rules)


def _whole(family: str, encoder: EncoderSpec | TextEncoderSpec, shapes: Shapes, chosen: Heads) -> Released:
    """A file with an encoder and a UNet; shapes: the UNet's."""
    unet = _unet_spec(shapes, chosen)
    channels = shapes[_FIRST][1]
    if channels not in _ROLES:
        known = ", ".join(f"{count} ({role})" for count, (*_, role) in _ROLES.items())
        raise ReleaseError(f"'{_FIRST}' takes {channels} channels; known are {known}")
    enlarges, inpaint, role = _ROLES[channels]
    side = LOWEST_SIDE * unet.reduction
    config = {
        ("encoder_spec" if isinstance(encoder, EncoderSpec) else "text_spec"): encoder.to_dict(),
        "unet_spec": unet.to_dict(),
        "image_size": side,
        "low_res": side // ENLARGEMENT if enlarges else None,
        "learned_variance": shapes[_LAST][0] == 6,
        "inpaint": inpaint,
    }
    return Released(family, role, encoder, unet, config, release_rules(encoder, unet))


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


_OF_OTHERS = ("diffusion_model.", "first_stage_model.", "cond_stage_model.", "down_blocks.", "transformer_blocks.")
"""Prefixes of keys in Stable Diffusion's single files, and of networks in diffusers folders."""


def _unknown(shapes: Shapes, source: str) -> str:
    wanted = "; ".join(
        f"for {item.family}{' (an encoder alone)' if item.unet is None else ''} '{item.signs[0]}' and '{item.signs[1]}'"
        for item in _LAYOUTS
    )
    if any(key.startswith(_OF_OTHERS) for key in shapes):
        return (
            f"{source}: is a model of another family, or a part of one; give a diffusers folder, such as "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) makes for Stable Diffusion"
        )
    return (
        f"{source}: is neither a GLIDE nor a PITI checkpoint. Expected keys: {wanted}. Found: {_some(shapes)}; "
        "give a released checkpoint, or one that was finetuned in its layout"
    )


# Sizes


def _text_spec(shapes: Shapes, chosen: Heads) -> TextEncoderSpec:
    """Raises as `_read` does."""
    vocabulary, width = shapes[_TEXT]
    if "padding_embedding" not in shapes:
        raise ReleaseError(
            "has no 'padding_embedding': GLIDE without xf_padding, which pads texts with a token of their "
            "vocabulary, is not supported; the released files contain it"
        )
    sizes = {
        "vocabulary": vocabulary,
        "context": shapes["positional_embedding"][0],
        "width": width,
        "layers": _count(shapes, "transformer.resblocks"),
        "heads": _heads(width, chosen),
        "final_norm": "final_ln.weight" in shapes,
    }
    return TextEncoderSpec.parse(sizes, "its text transformer")


def _encoder_spec(shapes: Shapes, chosen: Heads) -> EncoderSpec:
    """Raises as `_read` does; shapes: the encoder's."""
    widths = [shapes[f"cnn.conv{k}.weight"][0] for k in range(1, _convolutions(shapes) + 1)]
    tokens, width = shapes["positional_embedding"][1:]
    grid = math.isqrt(tokens - 1)
    sizes = {
        "in_channels": shapes[_CONDITION_STEM][1],
        "size": grid * 2 ** (len(widths) - 2),
        "channels": widths[:-1],
        "width": width,
        "layers": _count(shapes, "transformer.resblocks"),
        "heads": _heads(width, chosen),
    }
    return EncoderSpec.parse(sizes, "its encoder")


def _unet_spec(shapes: Shapes, chosen: Heads) -> UNetSpec:
    """Levels are counted on the way up: each but the last ends with a second residual block, which doubles.

    Raises as `_read` does.
    """
    second = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight")
    doubling = {key.split(".")[1] for key in shapes if second.fullmatch(key)}
    levels, blocks = len(doubling) + 1, _count(shapes, "output_blocks")
    if blocks % levels or any(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key) for key in shapes):
        raise ReleaseError(
            f"its UNet has {blocks} output blocks in {levels} levels, or downsamples by a plain convolution; only "
            "GLIDE's arrangement is supported (the same number of blocks at each level, resblock_updown)"
        )
    starts = [1 + level * (blocks // levels) for level in range(levels)]
    channels = tuple(shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in starts)
    attention = tuple(f"input_blocks.{k}.1.qkv.weight" in shapes for k in starts)
    head_dim = chosen.head_dim or head_dim_of(channels, attention)
    if channels[-1] % head_dim:
        raise ReleaseError(
            f"its middle block attends over {channels[-1]} channels, not a multiple of {option('head_dim')} {head_dim}"
        )
    sizes = {
        "channels": channels,
        "layers": blocks // levels - 1,
        "attention": attention,
        "head_dim": head_dim,
        "token_width": shapes["transformer_proj.weight"][1],
    }
    return UNetSpec.parse(sizes, "its UNet")


def head_dim_of(channels: tuple[int, ...], attention: tuple[bool, ...]) -> int:
    """Channels of a head in a released UNet."""
    attending = [width for width, attends in zip(channels, attention, strict=True) if attends] + [channels[-1]]
    return 64 if all(width % 64 == 0 for width in (channels[0], *attending)) else 32


def heads_of(width: int) -> int | None:
    """Heads of a released transformer; None if the width is not a multiple of such heads."""
    size = 64 if width % 64 == 0 and width >= 256 else 32
    return None if width % size else width // size


def _heads(width: int, chosen: Heads) -> int:
    """The transformer's. Raises ReleaseError for a number that does not divide its width."""
    heads = chosen.heads or heads_of(width)
    if heads is not None and width % heads:
        raise ReleaseError(f"its transformer has width {width}, not a multiple of {option('heads')} {heads}")
    if heads is None:
        raise ReleaseError(
            f"its transformer of width {width} has an unusual head size",
            remedy=f"give the number of heads: {option('heads')}",
        )
    return heads


def _count(shapes: Shapes, list_name: str) -> int:
    """The number of modules in a list."""
    start = list_name + "."
    return len({key.removeprefix(start).split(".")[0] for key in shapes if key.startswith(start)})


def _convolutions(shapes: Shapes) -> int:
    return sum(re.fullmatch(r"cnn\.conv\d+\.weight", key) is not None for key in shapes)


# Both sides compared


def our_tensors(config: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """A translator's tensors by name, on "meta"; only those that start with `prefix`."""
    with torch.device("meta"):
        translator = Translator(**config)
    return {name: tensor for name, tensor in translator.state_dict().items() if name.startswith(prefix)}


def expected_shapes(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The released shapes of our tensors."""
    return {rule.source: tuple(rule.join(tuple(ours[name] for name in rule.targets)).shape) for rule in rules}


def _compare(shapes: Shapes, found: Released) -> None:
    """Raises ReleaseError unless the file has exactly the keys and shapes of such a model."""
    config = found.config
    if found.unet is None:  # any UNet that takes the encoder's tokens
        config = config | {"unet_spec": UNetSpec(token_width=found.encoder.width).to_dict()}
    want = expected_shapes(found.rules, our_tensors(config))
    missing, surplus = [key for key in want if key not in shapes], [key for key in shapes if key not in want]
    if missing or surplus:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unexpected {_some(surplus)}"] * bool(surplus)
        raise ReleaseError(f"is a {found.name} by its first keys, but {' and '.join(parts)}; it is not in that layout")
    odd = next((key for key in want if want[key] != tuple(shapes[key])), None)
    if odd is not None:
        raise ReleaseError(
            f"'{odd}' is {list(shapes[odd])}, but a {found.name} of these sizes has {list(want[odd])}; "
            "it is not in the released layout"
        )


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(f"'{key}'" for key in keys[:3]) + more or "nothing"


# The inverse


def as_released(config: Mapping[str, Any]) -> Released:
    """Describe a translator in the released layout. Raises ReleaseError if it has none."""
    if config.get("unet_config"):
        raise ReleaseError("is of another family and has no released layout; only GLIDE's and PITI's networks do")
    config = {"patch_size": 1, "image_size": 64, "low_res": None, "detail": None, "inpaint": False, **config}
    unet, text = UNetSpec.parse(config.get("unet_spec") or {}, "unet_spec"), config.get("text_spec")
    if text:
        encoder: EncoderSpec | TextEncoderSpec = TextEncoderSpec.parse(text, "text_spec")
    else:
        encoder = EncoderSpec.parse(config.get("encoder_spec") or {}, "encoder_spec")
    faults = [what for what, is_so in _faults(config, unet, encoder).items() if is_so]
    if faults:
        raise ReleaseError(f"has no released layout: {', '.join(faults)}; only GLIDE's and PITI's networks have one")
    kind = (config["low_res"] is not None, config["inpaint"])
    role = next(role for *this, role in _ROLES.values() if tuple(this) == kind)
    return Released("GLIDE" if text else "PITI", role, encoder, unet, dict(config), release_rules(encoder, unet))


def _faults(config: Mapping[str, Any], unet: UNetSpec, encoder: EncoderSpec | TextEncoderSpec) -> dict[str, bool]:
    """Features that no released network has => whether this one has them."""
    pictures = isinstance(encoder, EncoderSpec)
    side, small = LOWEST_SIDE * unet.reduction, config["low_res"]
    return {
        f"it uses patches of {config['patch_size']} px": config["patch_size"] != 1,
        "it takes no condition": unet.token_width is None,
        "it has aligned residuals": pictures and encoder.residuals,
        "it predicts details (detail)": config["detail"] is not None,
        f"it normalises {unet.norm_groups} groups, not 32": unet.norm_groups != 32,
        "its encoder normalises groups of channels": pictures and encoder.norm_groups is not None,
        f"it makes {config['image_size']} px, but its levels imply {side}": config["image_size"] != side,
        f"it enlarges {small} px, not {side // ENLARGEMENT}": small is not None and small * ENLARGEMENT != side,
    }
