"""What draws the lines of photographs, by name: the built-in extractor, or HED and PiDiNet where installed.

The learned detectors are those of the package `controlnet-aux`, which needs torchvision and timm. It is therefore no
dependency of this package, not even an extra, and nothing of it is imported until one of its detectors is asked for.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from piti.data.edges import LineSpec, binarised, draw_lines, without_short
from piti.errors import UserError
from piti.spec import Spec, choices

LineSource = Callable[[UInt8[np.ndarray, "h w 3"]], Bool[Tensor, "h w"]]
"""Draws a photograph: lines of its size, True on a line."""


class DetectorError(UserError):
    """Lines cannot be drawn as asked. The message names the detector and the remedy."""


class LearnedSpec(Spec):
    """How a learned detector draws a photograph."""

    threshold: float = Field(default=0.35, gt=0, lt=1)
    """What is stronger, between 0 and 1, is a line."""
    thin: bool = True
    """Thin the lines to one pixel; a learned detector's are several pixels wide."""
    shortest: int = Field(default=10, ge=1)
    """Lines of fewer pixels are left out."""
    side: int = Field(default=512, ge=64)
    """The short side, in pixels, with which the network sees a photograph."""
    weights: str = Field(default="lllyasviel/Annotators", exclude=True)
    """A repository of the hub, or a folder with the detector's file."""
    device: str = Field(default="cpu", exclude=True)
    """Where the network runs."""


@dataclass(frozen=True)
class Detector:
    """A line source that can be asked for: its settings, and how it is made of them."""

    spec: type[Spec]
    source: Callable[[Any], LineSource]


def line_source(name: str, settings: Mapping[str, Any] | None = None) -> tuple[Spec, LineSource]:
    """The detector `name` with these settings, and all of its settings.

    Raises DetectorError if there is none of this name, or if it cannot be loaded; SpecError for its settings.
    """
    detector, spec = detector_spec(name, settings)
    return spec, detector.source(spec)


def detector_spec(name: str, settings: Mapping[str, Any] | None = None) -> tuple[Detector, Spec]:
    """A detector and its checked settings; nothing is loaded yet. Raises DetectorError or SpecError."""
    if name not in DETECTORS:
        raise DetectorError(f"--detector {name}: unknown; {choices(name, DETECTORS)}")
    detector = DETECTORS[name]
    return detector, detector.spec.parse(settings or {}, f"the settings of --detector {name}")


def _built_in(spec: LineSpec) -> LineSource:
    return lambda photograph: draw_lines(photograph, spec)


def _learned(name: str, network: str) -> Callable[[LearnedSpec], LineSource]:
    """How to make the line source `name` of a class of `controlnet_aux`."""

    def source(spec: LearnedSpec) -> LineSource:
        detect = _loaded(name, network, spec)

        def draw(photograph: UInt8[np.ndarray, "h w 3"]) -> Bool[Tensor, "h w"]:
            lines = binarised(_strength(detect, photograph, spec.side), spec.threshold, spec.thin)
            return without_short(lines[None, None], spec.shortest)[0, 0]

        return draw

    return source


def _strength(detect: Callable[..., Any], photograph: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Tensor, "h w"]:
    """A learned detector's soft edges in [0, 1], brought from its own size to the photograph's.

    The networks want sides that are multiples of 64; the detectors see to that, and return a picture (or an
    array) of that size, grey as RGB.
    """
    found = np.asarray(detect(photograph, detect_resolution=side, image_resolution=side))
    soft = torch.from_numpy(np.array(found[..., 0] if found.ndim == 3 else found)).float() / 255
    height, width = photograph.shape[:2]
    return F.interpolate(soft[None, None], (height, width), mode="bilinear", antialias=True)[0, 0].clamp(0, 1)


def _loaded(name: str, network: str, spec: LearnedSpec) -> Callable[..., Any]:
    """A class of `controlnet_aux` with its weights. Raises DetectorError."""
    try:
        kind = getattr(importlib.import_module("controlnet_aux"), network)
    except (ImportError, AttributeError, RuntimeError) as error:  # a torchvision of another torch: RuntimeError
        raise DetectorError(
            f"--detector {name}: needs the package controlnet-aux, which cannot be imported ({error}); pip install "
            "controlnet-aux, with a torchvision that fits this torch, or take --detector lines, which needs neither"
        ) from error
    try:
        return kind.from_pretrained(spec.weights).to(spec.device)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DetectorError(
            f"--detector {name}: cannot load its weights from {spec.weights} ({error}); check the connection, or give "
            "a folder with its file as --weights, or take --detector lines, which needs none"
        ) from error


DETECTORS: dict[str, Detector] = {
    "lines": Detector(LineSpec, _built_in),
    "hed": Detector(LearnedSpec, _learned("hed", "HEDdetector")),
    "pidinet": Detector(LearnedSpec, _learned("pidinet", "PidiNetDetector")),
}
"""Every line source by its name: `lines` is built in; `hed` (Xie and Tu 2015) and `pidinet` (Su et al. 2021)."""
