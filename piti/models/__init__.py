"""Networks: encoders, the UNet, and the translator that joins them."""

from piti.models.encoders import AlignedEncoder, AlignedEncoderSpec, ConditionEncoder, EncoderSpec, Tokens
from piti.models.pixel_head import PixelHead, PixelHeadSpec
from piti.models.text import TextEncoder, TextEncoderSpec
from piti.models.translator import Prediction, Translator, TranslatorSpec
from piti.models.unet import UNetSpec, build_unet

__all__ = [
    "AlignedEncoder",
    "AlignedEncoderSpec",
    "ConditionEncoder",
    "EncoderSpec",
    "PixelHead",
    "PixelHeadSpec",
    "Prediction",
    "TextEncoder",
    "TextEncoderSpec",
    "Tokens",
    "Translator",
    "TranslatorSpec",
    "UNetSpec",
    "build_unet",
]
