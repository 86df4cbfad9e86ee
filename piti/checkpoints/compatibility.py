"""Compatibility of a base, an upsampler and their condition."""

from __future__ import annotations

from piti.baselines import ImageNetwork
from piti.checkpoints.folder import ModelError
from piti.conditions import Condition, TextCondition
from piti.models import LanguageSpec, TextEncoderSpec, Translator
from piti.models.any_encoder import AnyEncoderSpec


def check_cascade(condition: Condition, base: ImageNetwork, upsampler: Translator | None) -> None:
    """Raises ModelError unless base and upsampler have these roles, matching sizes, and read the condition."""
    if base.low_res is not None:
        made = f"{base.low_res} -> {base.image_size} px"
        raise ModelError(
            f"the base is an upsampler ({made})", remedy=f"give it as the upsampler of a {base.low_res} px base"
        )
    if base.one_pass:
        if base.baseline.channels != condition.channels:
            raise _other_channels("base", base.baseline.channels, condition)
    elif base.encoder is None:
        raise ModelError("the base takes no condition", remedy="give one that was trained with an encoder")
    if upsampler is not None:
        _check_chain(base, upsampler)
    for name, translator in (("base", base), ("upsampler", upsampler)):
        reads = None if translator is None or translator.one_pass else translator.reads
        if reads is not None:
            _check_read(name, reads, condition)


_OTHER_CONDITION = "give the condition that it was trained with"


def _check_read(name: str, spec: AnyEncoderSpec, condition: Condition) -> None:
    if isinstance(spec, TextEncoderSpec | LanguageSpec) != isinstance(condition, TextCondition):
        what = "text" if isinstance(spec, TextEncoderSpec | LanguageSpec) else "pictures"
        raise ModelError(f"the {name} reads {what}, not the condition '{condition.kind}'", remedy=_OTHER_CONDITION)
    if isinstance(spec, TextEncoderSpec | LanguageSpec):
        if isinstance(condition, TextCondition) and (spec.context, spec.vocabulary) != (
            condition.context,
            condition.tokenizer.size,
        ):
            raise ModelError(
                f"the {name} reads {spec.context} tokens of {spec.vocabulary}, but the condition has "
                f"{condition.context} of {condition.tokenizer.size}",
                remedy=_OTHER_CONDITION,
            )
    elif spec.in_channels != condition.channels:
        raise _other_channels(name, spec.in_channels, condition)


def _other_channels(name: str, channels: int, condition: Condition) -> ModelError:
    return ModelError(
        f"the {name} reads {channels} channels, but the condition '{condition.kind}' has {condition.channels}",
        remedy=_OTHER_CONDITION,
    )


def _check_chain(base: ImageNetwork, upsampler: Translator) -> None:
    if upsampler.low_res is None:
        raise ModelError(
            f"the upsampler is a base translator ({upsampler.image_size} px)",
            remedy=f"give an upsampler of {base.image_size} px images",
        )
    if upsampler.low_res != base.image_size:
        raise ModelError(
            f"the base makes {base.image_size} px images, but the upsampler takes {upsampler.low_res} px ones "
            f"to {upsampler.image_size} px",
            remedy=f"give an upsampler of {base.image_size} px images, or a base of {upsampler.low_res} px",
        )
