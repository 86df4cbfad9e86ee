"""The encoders that a translator may have: one chosen by its arguments, and built for its UNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piti.core.errors import UserError
from piti.models.encoders import AlignedEncoder, AlignedEncoderSpec, ConditionEncoder, EncoderSpec
from piti.models.language import LanguageEncoder, LanguageSpec
from piti.models.text import TextEncoder, TextEncoderSpec
from piti.models.wiring import Wiring

AnyEncoderSpec = EncoderSpec | TextEncoderSpec | AlignedEncoderSpec | LanguageSpec
AnyEncoder = ConditionEncoder | TextEncoder | AlignedEncoder | LanguageEncoder


def encoder_spec_of(
    unet: Wiring,
    fields: Mapping[str, Any] | None,
    text: Mapping[str, Any] | None,
    aligned: Mapping[str, Any] | None,
    language: Mapping[str, Any] | None,
) -> AnyEncoderSpec | None:
    """The encoder's spec, none where the UNet takes no condition. Raises UserError unless the two fit."""
    given = {"encoder_spec": fields, "text_spec": text, "aligned_spec": aligned, "language_spec": language}
    named = [f"'{name}'" for name, value in given.items() if value]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} are given; a translator has one encoder: remove the others")
    if unet.sequence is None:
        if fields or text or language:
            raise UserError("an encoder is given, but the UNet's 'token_width' is null; leave one of them out")
        return AlignedEncoderSpec.parse(aligned, "aligned_spec") if aligned else None
    if aligned:
        raise UserError("'aligned_spec' has no tokens, but the UNet's 'token_width' is set; make it null")
    if language:
        return LanguageSpec.parse(language, "language_spec")
    encoder = TextEncoderSpec.parse(text, "text_spec") if text else EncoderSpec.parse(fields or {}, "encoder_spec")
    _check_widths(encoder, unet)
    return encoder


def _check_widths(encoder: EncoderSpec | TextEncoderSpec, unet: Wiring) -> None:
    """Raises UserError unless an encoder's tokens are as wide as the UNet's, and its maps have somewhere to go."""
    if isinstance(encoder, EncoderSpec) and encoder.residuals and not unet.aligned:
        raise UserError(
            "the encoder's aligned path goes through a UNet's skip connections or between the blocks of Sana, Stable "
            "Diffusion 3 or FLUX.1; a transformer of PixArt takes no maps: set its 'residuals' to false"
        )
    if encoder.token_width != unet.sequence:
        raise UserError(
            f"the encoder's 'width' {encoder.token_width} is not the UNet's 'token_width' {unet.sequence}; make them "
            "equal"
        )
    if unet.pooled is not None and encoder.pooled_width != unet.pooled_width:
        raise UserError(
            f"the encoder's pooled token has width {encoder.pooled_width}, the UNet takes {unet.pooled_width}; make "
            "them equal"
        )


def built_encoder(encoder: AnyEncoderSpec | None, unet: Wiring, sample_size: int) -> AnyEncoder | None:
    """The encoder of a spec, for a UNet whose first level has this side."""
    if encoder is None:
        return None
    if isinstance(encoder, TextEncoderSpec):
        return TextEncoder(encoder)
    if isinstance(encoder, LanguageSpec):
        return LanguageEncoder(encoder)
    if isinstance(encoder, AlignedEncoderSpec):
        return AlignedEncoder(encoder, list(unet.aligned), sample_size)
    return ConditionEncoder(encoder, list(unet.aligned), sample_size)
