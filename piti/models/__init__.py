"""Networks: encoders, the UNet, and the translator that joins them."""

from piti.models.encoders import AlignedEncoder, AlignedEncoderSpec, ConditionEncoder, EncoderSpec, Tokens
from piti.models.language import LanguageEncoder, LanguageSpec
from piti.models.pixel_head import PixelHead, PixelHeadSpec
from piti.models.space import PIXELS, Space, SpaceSpec
from piti.models.text import TextEncoder, TextEncoderSpec
from piti.models.translator import Prediction, Translator, TranslatorSpec
from piti.models.unet import UNetSpec, build_unet

__all__ = [
    "PIXELS",
    "AlignedEncoder",
    "AlignedEncoderSpec",
    "ConditionEncoder",
    "EncoderSpec",
    "LanguageEncoder",
    "LanguageSpec",
    "PixelHead",
    "PixelHeadSpec",
    "Prediction",
    "Space",
    "SpaceSpec",
    "TextEncoder",
    "TextEncoderSpec",
    "Tokens",
    "Translator",
    "TranslatorSpec",
    "UNetSpec",
    "build_unet",
]
