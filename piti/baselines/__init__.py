"""The paper's baselines: Pix2PixHD, SPADE and OASIS, each following its own paper."""

from piti.baselines.base import Baseline, BaselineError, BaselineNetwork, ImageNetwork, baseline_from_config, noise_of
from piti.baselines.oasis import Oasis, OasisSpec
from piti.baselines.pix2pixhd import Pix2PixHD, Pix2PixHDSpec
from piti.baselines.spade import Spade, SpadeSpec

__all__ = [
    "Baseline",
    "BaselineError",
    "BaselineNetwork",
    "ImageNetwork",
    "Oasis",
    "OasisSpec",
    "Pix2PixHD",
    "Pix2PixHDSpec",
    "Spade",
    "SpadeSpec",
    "baseline_from_config",
    "noise_of",
]
