"""Checks whether another model's weights fit a recipe: classes, noise schedule and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piti.conditions import Condition, MaskCondition
from piti.diffusion.schedule import ScheduleSpec
from piti.models import EncoderSpec, TextEncoderSpec, Translator, UNetSpec
from piti.models.flow import grown_shift
from piti.models.foreign import foreign_network
from piti.training.recipe import RecipeError

READING = ("encoder.stem.convs.0.weight", "encoder.convs.0.weight")
"""Encoder weights with the condition's channels as inputs, [out, channels, k, k]."""


def channel_order(learned: Condition, condition: Condition, name: str, key: str = "init") -> list[int] | None:
    """For each channel of a condition, the corresponding channel of a model's condition, by the names of parts and
    classes; None if the order is the same.

    name, key: the model's name and the recipe's key, for errors. Raises RecipeError if classes or parts differ.
    """
    theirs, ours = learned.named_parts(), condition.named_parts()
    if not any(isinstance(part, MaskCondition) for part in (*theirs.values(), *ours.values())):
        return None  # channels of other kinds have a fixed meaning
    if {part: one.kind for part, one in theirs.items()} != {part: one.kind for part, one in ours.items()}:
        raise RecipeError(
            f"{key}: {name} reads {', '.join(theirs)}, but this recipe {', '.join(ours)}; give a model of the same "
            "kinds"
        )
    start, starts = 0, dict[str, int]()
    for kind, part in theirs.items():
        starts[kind], start = start, start + part.channels
    order = [starts[kind] + place for kind, part in ours.items() for place in _places(theirs[kind], part, name, key)]
    return None if order == list(range(start)) else order


def _places(learned: Condition, condition: Condition, name: str, key: str) -> list[int]:
    """The same within one part."""
    if not (isinstance(learned, MaskCondition) and isinstance(condition, MaskCondition)):
        return list(range(condition.channels))
    theirs, ours = learned.classes, condition.classes
    if condition.channels != ours.count:  # colours
        return list(range(condition.channels))
    if set(theirs.names) != set(ours.names):
        lacking = [f"'{one}'" for one in ours.names if one not in theirs.names]
        surplus = [f"'{one}'" for one in theirs.names if one not in ours.names]
        raise RecipeError(
            f"{key}: the classes of {name} differ: it lacks {_few(lacking)} and has {_few(surplus)}",
            remedy="rename the data's classes to match, or start from its UNet only (prior)",
        )
    return [theirs.names.index(one) for one in ours.names]


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}" if names else "none"


_OF_SAMPLING = {"clip", "threshold", "to_clean"}
"""Keys of a schedule that affect only sampling."""


def check_schedule(learned: ScheduleSpec, schedule: ScheduleSpec, name: str) -> str:
    """A note if a prior is sampled with other settings than the recipe's model. Raises RecipeError if it was trained
    with another noise schedule."""
    odd = schedule_differences(learned, schedule)
    wrong = [said for key, said in odd.items() if key not in _OF_SAMPLING]
    if wrong:
        raise RecipeError(
            f"prior: {name} was trained with another noise schedule than the recipe's ({', '.join(wrong)})",
            remedy="copy its schedule into the recipe",
        )
    return f"; it was sampled with other settings ({', '.join(odd.values())})" if odd else ""


def learned_at(
    learned: ScheduleSpec, theirs: Mapping[str, Any], translator: Translator, asked: ScheduleSpec, name: str
) -> ScheduleSpec:
    """A prior's schedule for the images of a recipe's model, with whose size its shift may grow; see `grown_shift`.

    theirs: the arguments of the prior's `Translator`; asked: the recipe's schedule. Raises RecipeError if the recipe's
    shift grows otherwise, or is not that for its size.
    """
    growth, own = theirs.get("shift_growth") or 0.0, translator.shift_growth
    if not math.isclose(growth, own, rel_tol=_DIGITS):
        raise RecipeError(
            f"prior: the shift of {name} grows with the image, by {growth:.8g} per token, and by {own:.8g} in this "
            f"recipe; set model.shift_growth: {growth:.8g}"
        )
    if not growth or asked.flow_shift is None:
        return learned
    before, after = (side**2 / translator.reduction**2 for side in (theirs["image_size"], translator.image_size))
    shift = grown_shift(learned.shift, growth, before, after)
    if not math.isclose(shift, asked.shift, rel_tol=_DIGITS):
        raise RecipeError(
            f"prior: the shift of {name} grows with the image: it is {shift:.8g} for images of {translator.image_size} "
            f"px, and 'schedule.shift' is {asked.shift:.8g}; set schedule.shift: {shift:.8g}"
        )
    return learned.model_copy(update={"shift": asked.shift})


_DIGITS = 1e-6
"""Relative difference of numbers that are equal as written in a recipe."""


def schedule_differences(learned: ScheduleSpec, schedule: ScheduleSpec) -> dict[str, str]:
    """The keys in which a model's schedule differs from a recipe's, with descriptions."""
    theirs, ours = learned.to_dict(), schedule.to_dict()
    return {key: f"{key} {theirs[key]} there, here {ours[key]}" for key in ours if theirs[key] != ours[key]}


def check_settings(translator: Translator, theirs: Mapping[str, Any], name: str, key: str, unet_only: bool) -> None:
    """Raises RecipeError if networks of this package differ from those of the model given by `key` in settings that
    leave the shapes of weights as they are, such as attention heads: the weights would fit, and compute something else.

    theirs: the model's configuration. unet_only: whether only its UNet is used.
    """
    ours, learned = (_shapeless(config, unet_only) for config in (translator.config, theirs))
    odd = [setting for setting, value in ours.items() if learned.get(setting, value) != value]
    if odd:
        named = ", ".join(f"{setting}: {learned[setting]} there, here {ours[setting]}" for setting in odd)
        raise RecipeError(f"{key}: {name} has the same weights with other settings ({named})", remedy="copy them")


def _shapeless(config: Mapping[str, Any], unet_only: bool) -> dict[str, Any]:
    """The settings of a translator's networks that affect what they compute, but no shape of a weight."""
    found: dict[str, Any] = {}
    if config.get("unet_config") is None:
        unet = UNetSpec.parse(config.get("unet_spec") or {}, "unet_spec")
        found["model.unet.norm_groups"] = unet.norm_groups
        if unet.token_width is not None:  # with tokens the middle block attends in every case
            found["model.unet.head_dim"] = unet.head_dim
    if config.get("encoder_spec") and not unet_only:
        encoder = EncoderSpec.parse(config["encoder_spec"], "encoder_spec")
        found["model.encoder.norm_groups"] = encoder.norm_groups
        if encoder.layers:
            found["model.encoder.heads"] = encoder.heads
    if config.get("text_spec") and not unet_only:
        found["model.text.heads"] = TextEncoderSpec.parse(config["text_spec"], "text_spec").heads
    return found


def check_config(translator: Translator, theirs: Mapping[str, Any], name: str, key: str = "prior") -> None:
    """Raises RecipeError if a UNet of another family has another configuration than the model given by `key`, even if
    its weights would fit."""
    if translator.config.get("unet_config") is None:
        return
    if theirs:
        with torch.device("meta"):  # for defaults and derived values
            theirs = dict(foreign_network(theirs).config)
    ours = {key: value for key, value in translator.unet.config.items() if not key.startswith("_")}
    odd = [key for key, value in sorted(ours.items()) if not _same(value, theirs.get(key))]
    if odd:
        named = ", ".join(f"{key}: {theirs.get(key)} there, here {ours[key]}" for key in odd[:3])
        raise RecipeError(
            f"{key}: 'model.unet_config' differs from that of {name} ({named}); copy it from its config.json"
        )


def _same(value: Any, theirs: Any) -> bool:
    """Whether two settings of a UNet are equal. Null and false are equal, as for SDXL's published
    `upcast_attention`."""
    if value is False and theirs is None:
        return True
    return _plain(value) == _plain(theirs)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_shapes(
    key: str, folder: Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: Iterable[str]
) -> None:
    """Raises RecipeError if weights with these names are missing on one side, or differ in shape. key, folder: origin
    of `given`, for errors."""
    wrong = sorted(name for name in names if _shape(own, name) != _shape(given, name))
    if wrong:
        named = ", ".join(f"{name}: {_shape(given, name)} there, here {_shape(own, name)}" for name in wrong[:3])
        raise RecipeError(f"{key}: {len(wrong)} weights of {folder} do not fit this recipe's model ({named} …)")


def _shape(weights: Mapping[str, Tensor], key: str) -> list[int] | None:
    return list(weights[key].shape) if key in weights else None
