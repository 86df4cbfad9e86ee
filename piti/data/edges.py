"""Line extraction from photographs, for sketches: HED, an extractor without weights, thinning, and removal of short
lines."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from piti.core.errors import UserError, option
from piti.core.spec import Spec, choices
from piti.data.filters import l0_smooth, resize_antialiased

_SOFT = (5, 5), (1.0, 1.0)  # the Gaussian before the gradients: taps, pixels
_SMALLEST = 8  # shorter sides are padded to this many pixels before filtering
_NEIGHBOURS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # clockwise from above


class LineSpec(Spec):
    """Settings of the built-in line extractor."""

    smoothing: float = Field(default=0.02, ge=0, le=0.5)
    """Strength of the L0 smoothing that first removes texture; 0: none."""
    low: float = Field(default=0.1, gt=0)
    """Low threshold of Canny's hysteresis: gradients above it are kept if connected to one above `high`. A sharp
    greyscale step has a gradient of 2.6 times its height (black to white is 1)."""
    high: float = Field(default=0.2, gt=0)
    """High threshold: gradients above it are always kept."""
    shortest: int = Field(default=10, ge=1)
    """Lines with fewer pixels are removed."""
    side: int = Field(default=256, ge=16)
    """Larger photographs are reduced to this short side in pixels, and their lines enlarged afterwards."""
    thin: bool = False
    """Thin the lines to one pixel; enlarged lines are wider."""

    @model_validator(mode="after")
    def _in_order(self) -> LineSpec:
        if self.low > self.high:
            raise ValueError(
                f"low = {self.low} is above high = {self.high}; gradients above high begin a line, those above low "
                "continue it: lower low, or raise high"
            )
        return self


def draw_lines(photograph: UInt8[np.ndarray, "h w 3"], spec: LineSpec | None = None) -> Bool[Tensor, "h w"]:
    """Lines of a photograph, True on a line: Canny's edges (1986) after L0 smoothing (Xu et al. 2011).

    Smoothing uses colours, edge detection greyscale: a border between colours of equal brightness is not a line. A
    border between two areas gives one line, one pixel wide where the photograph is not larger than `side`.
    """
    from kornia.filters import canny  # takes a second to import, and is rarely needed

    spec = spec or LineSpec()
    image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255  # [1, 3, h, w]
    height, width = image.shape[-2:]
    shrink = min(1.0, spec.side / min(height, width))
    if shrink < 1:
        image = resize_antialiased(image, (round(height * shrink), round(width * shrink)))
    inner = image.shape[-2:]
    image = F.pad(image, (0, max(0, _SMALLEST - inner[1]), 0, max(0, _SMALLEST - inner[0])), mode="replicate")
    if spec.smoothing:
        image = l0_smooth(image, spec.smoothing).clamp(0, 1)
    _, edges = canny(image, spec.low, spec.high, *_SOFT)  # [1, 1, h', w']
    lines = without_short(edges[..., : inner[0], : inner[1]] > 0, spec.shortest)
    if shrink < 1:
        lines = F.interpolate(lines.float(), (height, width), mode="nearest-exact") > 0
    return thinned(lines[0, 0]) if spec.thin else lines[0, 0]


def without_short(lines: Bool[Tensor, "B 1 h w"], shortest: int) -> Bool[Tensor, "B 1 h w"]:
    """Remove connected lines (8-connectivity) of fewer than `shortest` pixels.

    Labels are propagated by their maximum, `shortest` times. A short line then has a single label; a line with several
    adjacent labels is long.
    """
    if shortest <= 1:
        return lines
    numbers = torch.arange(1, lines.numel() + 1, dtype=torch.float64, device=lines.device).view(lines.shape)
    labels = numbers * lines
    for _ in range(shortest):
        labels = _highest_near(labels) * lines
    lowest_near = -_highest_near(torch.where(lines, -labels, -torch.inf))
    meeting = lines & ((_highest_near(labels) != labels) | (lowest_near != labels))
    labels = labels.long()
    long = labels.flatten().bincount(minlength=lines.numel() + 1) >= shortest
    long[labels[meeting]] = True
    return lines & long[labels]


def _highest_near(values: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B 1 h w"]:
    return F.max_pool2d(values, 3, 1, 1)


def thinned(lines: Bool[Tensor, "*batch h w"]) -> Bool[Tensor, "*batch h w"]:
    """Lines one pixel wide, connected as they were (Zhang and Suen 1984); thinning again changes nothing.

    Lines are shortened by about half their width at their ends. An isolated block of two by two pixels vanishes.
    """
    while True:
        before = lines
        for first in (True, False):
            lines = lines & ~_removable(lines, first)
        if torch.equal(lines, before):
            return lines


def _removable(lines: Bool[Tensor, "*batch h w"], first: bool) -> Bool[Tensor, "*batch h w"]:
    """Border pixels that a sub-iteration removes: at the south-east in the first, at the north-west in the second."""
    height, width = lines.shape[-2:]
    padded = F.pad(lines.to(torch.uint8), (1, 1, 1, 1))
    near = [padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in _NEIGHBOURS]
    count = torch.stack(near).sum(0)
    crossings = torch.stack([near[i - 1] < near[i] for i in range(8)]).sum(
        0
    )  # transitions from 0 to 1 around the pixel
    north, east, south, west = near[0], near[2], near[4], near[6]
    border = (north * east * south, east * south * west) if first else (north * east * west, north * south * west)
    return (count >= 2) & (count <= 6) & (crossings == 1) & (border[0] == 0) & (border[1] == 0)


def binarised(strength: Float[Tensor, "*batch h w"], threshold: float, thin: bool = True) -> Bool[Tensor, "*batch h w"]:
    """Binarise a soft edge map in [0, 1] at `threshold`; optionally thin it to one pixel."""
    lines = strength > threshold
    return thinned(lines) if thin else lines


LineSource = Callable[[UInt8[np.ndarray, "h w 3"]], Bool[Tensor, "h w"]]
"""Extracts the lines of a photograph: same size, True on a line."""


class DetectorError(UserError):
    """Lines cannot be extracted as requested. The message names the detector and what to do."""


class HEDSpec(Spec):
    """Settings of HED; by default binarised as in the released code."""

    threshold: float = Field(default=0.6, gt=0, lt=1)
    """Threshold of lines, between 0 and 1."""
    thin: bool = False
    """Thin the lines to one pixel; the network's are several pixels wide."""
    shortest: int = Field(default=1, ge=1)
    """Lines with fewer pixels are removed."""
    side: int = Field(default=256, ge=64)
    """Larger photographs are reduced to this short side in pixels, and their edges enlarged afterwards; the released
    code uses squares of 256."""
    weights: str | None = Field(default=None, exclude=True)
    """The file of the network's weights."""
    device: str = Field(default="cpu", exclude=True)
    """Device of the network."""


class LearnedSpec(Spec):
    """Settings of a learned detector of `controlnet_aux`."""

    threshold: float = Field(default=0.35, gt=0, lt=1)
    """Threshold of lines, between 0 and 1."""
    thin: bool = True
    """Thin the lines to one pixel; a learned detector's are several pixels wide."""
    shortest: int = Field(default=10, ge=1)
    """Lines with fewer pixels are removed."""
    side: int = Field(default=512, ge=64)
    """Short side in pixels of the photograph given to the network."""
    weights: str = Field(default="lllyasviel/Annotators", exclude=True)
    """A hub repository, or a folder with the detector's file."""
    device: str = Field(default="cpu", exclude=True)
    """Device of the network."""


@dataclass(frozen=True)
class Detector:
    """A line detector: its settings class, and its factory."""

    spec: type[Spec]
    source: Callable[[Any], LineSource]


def line_source(name: str, settings: Mapping[str, Any] | None = None) -> tuple[Spec, LineSource]:
    """The detector `name` with these settings, and all of its settings.

    Raises DetectorError for an unknown name, or if it cannot be loaded; SpecError for invalid settings.
    """
    detector, spec = detector_spec(name, settings)
    return spec, detector.source(spec)


def detector_spec(name: str, settings: Mapping[str, Any] | None = None) -> tuple[Detector, Spec]:
    """A detector and its checked settings; nothing is loaded yet. Raises DetectorError or SpecError."""
    if name not in DETECTORS:
        raise DetectorError("unknown", remedy=choices(name, DETECTORS), option="detector", value=name)
    detector = DETECTORS[name]
    return detector, detector.spec.parse(settings or {}, f"the settings of {option('detector')} {name}")


def _built_in(spec: LineSpec) -> LineSource:
    return lambda photograph: draw_lines(photograph, spec)


def _hed(spec: HEDSpec) -> LineSource:
    """Raises DetectorError without a file, UserError for a file that is not HED's."""
    if spec.weights is None:
        raise DetectorError(
            "needs a weights file",
            remedy=f"give it as {option('weights')}, or use {option('detector')} lines, which needs none",
            option="detector",
            value="hed",
        )
    from piti.models.hed import load_hed  # imports all networks, which is rarely needed

    network = load_hed(Path(spec.weights).expanduser()).to(spec.device)

    def draw(photograph: UInt8[np.ndarray, "h w 3"]) -> Bool[Tensor, "h w"]:
        image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None]  # [1, 3, h, w]
        size = image.shape[-2:]
        shrink = min(1.0, spec.side / min(size))
        if shrink < 1:
            smaller = resize_antialiased(image.float(), (round(size[0] * shrink), round(size[1] * shrink)))
            image = smaller.round().clamp(0, 255).to(torch.uint8)
        soft = network(image.to(spec.device)).cpu()  # [1, h', w']
        if shrink < 1:
            soft = F.interpolate(soft[None], size, mode="bilinear")[0]
        lines = binarised(soft[0], spec.threshold, spec.thin)
        return without_short(lines[None, None], spec.shortest)[0, 0]

    return draw


def _learned(name: str, network: str) -> Callable[[LearnedSpec], LineSource]:
    """The factory of the line detector `name` from a class of `controlnet_aux`."""

    def source(spec: LearnedSpec) -> LineSource:
        detect = _loaded(name, network, spec)

        def draw(photograph: UInt8[np.ndarray, "h w 3"]) -> Bool[Tensor, "h w"]:
            lines = binarised(_strength(detect, photograph, spec.side), spec.threshold, spec.thin)
            return without_short(lines[None, None], spec.shortest)[0, 0]

        return draw

    return source


def _strength(detect: Callable[..., Any], photograph: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Tensor, "h w"]:
    """A learned detector's soft edges in [0, 1], resized to the photograph.

    The networks need sides that are multiples of 64; the detectors ensure that, and return a grey RGB image (or array)
    of that size.
    """
    found = np.asarray(detect(photograph, detect_resolution=side, image_resolution=side))
    soft = torch.from_numpy(np.array(found[..., 0] if found.ndim == 3 else found)).float() / 255
    height, width = photograph.shape[:2]
    return F.interpolate(soft[None, None], (height, width), mode="bilinear", antialias=True)[0, 0].clamp(0, 1)


def _loaded(name: str, network: str, spec: LearnedSpec) -> Callable[..., Any]:
    """Load a class of `controlnet_aux` with its weights. Raises DetectorError."""
    try:
        kind = getattr(importlib.import_module("controlnet_aux"), network)
    except (ImportError, AttributeError, RuntimeError) as error:  # a torchvision of another torch: RuntimeError
        raise DetectorError(
            f"needs the package controlnet-aux, which cannot be imported ({error})",
            remedy=(
                "pip install controlnet-aux, with a torchvision that fits this torch, or use "
                f"{option('detector')} lines, which needs neither"
            ),
            option="detector",
            value=name,
        ) from error
    try:
        return kind.from_pretrained(spec.weights).to(spec.device)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DetectorError(
            f"cannot load its weights from {spec.weights} ({error})",
            remedy=(
                f"check the connection, or give a folder with its file as {option('weights')}, or use "
                f"{option('detector')} lines, which needs none"
            ),
            option="detector",
            value=name,
        ) from error


DETECTORS: dict[str, Detector] = {
    "lines": Detector(LineSpec, _built_in),
    "hed": Detector(HEDSpec, _hed),
    "pidinet": Detector(LearnedSpec, _learned("pidinet", "PidiNetDetector")),
}
"""All line detectors by name: `lines`, which needs no weights; `hed` (Xie and Tu 2015), the paper's, which needs a
file; `pidinet` (Su et al. 2021), which needs the package controlnet-aux."""
