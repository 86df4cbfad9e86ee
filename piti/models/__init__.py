"""Networks: encoders, the UNet, and the translator that joins them."""

from piti.models.encoders import ConditionEncoder, EncoderSpec, Tokens
from piti.models.text import TextEncoder, TextEncoderSpec
from piti.models.translator import Prediction, Translator
from piti.models.unet import UNetSpec, build_unet

__all__ = [
    "ConditionEncoder",
    "EncoderSpec",
    "Prediction",
    "TextEncoder",
    "TextEncoderSpec",
    "Tokens",
    "Translator",
    "UNetSpec",
    "build_unet",
]
