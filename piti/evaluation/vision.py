"""CLIP and DINOv2 as feature networks, through transformers, from a folder or a hub repository."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from PIL import Image
from torch import Tensor, nn

from piti.core.errors import UserError, first_line
from piti.core.files import file_hash
from piti.evaluation.fitting import BICUBIC, Fitting, centre_square, normalised, shorter_side, stretched
from piti.evaluation.pretrained import import_transformers, quietly
from piti.models.perceptual import HUB_FILES, IMAGENET_MEAN, IMAGENET_STD

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images in [0, 1] (Radford et al. 2021)."""
DINOV2_SIDE = 224
"""Input size for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675); DINOv2 itself accepts any multiple of its patch
size."""
REMEDY = "give a folder with config.json and model.safetensors, as transformers saves them"
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


@dataclass(frozen=True)
class VisionNetwork:
    """RGB images of any size => features [N, D], float64, not normalised."""

    name: str
    source: str
    sha256: str
    dimensions: int
    fitting: Fitting
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: nn.Module
    output: str
    """The model output that is used as features."""
    device: torch.device
    settings: str = ""
    """A hash of config.json and preprocessor_config.json, which affect the features besides the weights."""

    @property
    def resize(self) -> str:
        """Description of how an image is resized for the network."""
        return self.fitting.words

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Float64[Tensor, "n d"]:
        x = normalised([self.fitting.apply(image) for image in images], self.mean, self.std, self.device)
        return getattr(self.model(pixel_values=x), self.output).double().cpu()


def open_folder(folder: Path, source: str, device: torch.device) -> VisionNetwork:
    """Load a folder saved by transformers: CLIP (whole, or its vision model) or DINOv2, by its config.json.

    source: the name in results. Raises UserError.
    """
    config = _read_json(folder / _CONFIG)
    weights = weights_in(folder)
    kind = config.get("model_type")
    if kind not in _OPENERS:
        raise UserError(f"{folder / _CONFIG}: model_type {kind!r} is not supported; expected {', '.join(_OPENERS)}")
    prepared = _read_json(folder / _PREPROCESSOR) if (folder / _PREPROCESSOR).is_file() else {}
    try:
        network = _OPENERS[kind](folder, source, file_hash(weights), prepared, device)
        return replace(network, settings=_hash_of(config, prepared))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: {_CONFIG} or {_PREPROCESSOR} is not as expected ({error}); {REMEDY}") from error


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder. Raises UserError."""
    found = [folder / name for name in HUB_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} contains no weights ({' or '.join(HUB_FILES)}, unsharded); {REMEDY}")
    return found[0]


def _open_clip(
    folder: Path, source: str, sha256: str, prepared: Mapping[str, Any], device: torch.device
) -> VisionNetwork:
    """CLIP's image embeddings, for FID-C (Kynkäänniemi et al. 2022), or CMMD with ViT-L/14 at 336 px."""
    model = _load("CLIPVisionModelWithProjection", folder).to(device)
    config: Any = model.config
    side = int(config.image_size)
    resample = Image.Resampling(prepared.get("resample", BICUBIC))
    of_cmmd = (side, int(config.patch_size)) == (336, 14)
    short, crop = _side(prepared.get("size", side), "shortest_edge"), _side(prepared.get("crop_size", side), "height")
    if crop != side:
        raise UserError(f"{folder / _PREPROCESSOR}: crop_size {crop}, but the network's image_size is {side}")
    return VisionNetwork(
        name="clip-l" if of_cmmd else "clip",
        source=source,
        sha256=sha256,
        dimensions=int(config.projection_dim),
        fitting=centre_square(side, resample) if of_cmmd else shorter_side(short, crop, resample),
        mean=_three(prepared.get("image_mean", CLIP_MEAN)),
        std=_three(prepared.get("image_std", CLIP_STD)),
        model=model,
        output="image_embeds",
        device=device,
    )


def _open_dinov2(
    folder: Path, source: str, sha256: str, prepared: Mapping[str, Any], device: torch.device
) -> VisionNetwork:
    """DINOv2's class token after the last norm, as in FD-DINOv2, for images stretched to 224 px."""
    model = _load("Dinov2Model", folder).to(device)
    config: Any = model.config
    if DINOV2_SIDE % int(config.patch_size):
        raise UserError(f"{folder / _CONFIG}: patch_size {config.patch_size} does not divide {DINOV2_SIDE} px")
    return VisionNetwork(
        name="dinov2",
        source=source,
        sha256=sha256,
        dimensions=int(config.hidden_size),
        fitting=stretched(DINOV2_SIDE),
        mean=_three(prepared.get("image_mean", IMAGENET_MEAN)),
        std=_three(prepared.get("image_std", IMAGENET_STD)),
        model=model,
        output="pooler_output",
        device=device,
    )


_OPENERS = {"clip": _open_clip, "clip_vision_model": _open_clip, "dinov2": _open_dinov2}
"""Functions that load a folder, by config.json's model_type."""


def _load(kind: str, folder: Path) -> nn.Module:
    """A transformers model with all weights from the folder, float32, frozen. Raises UserError."""
    transformers = import_transformers(kind)
    with quietly(transformers):
        try:
            model, report = getattr(transformers, kind).from_pretrained(
                folder, output_loading_info=True, local_files_only=True
            )
        except Exception as error:  # of many libraries
            raise UserError(f"{folder}: {kind} cannot be read from it ({first_line(error)}); {REMEDY}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{folder}: {len(missing)} weights are missing (such as {missing[0]}); download it again")
    return model.float().eval().requires_grad_(False)


def _hash_of(*settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _side(value: Any, key: str) -> int:
    """A side in pixels from a preprocessor config: a number, or a dictionary with one."""
    return int(value[key] if isinstance(value, Mapping) else value)


def _three(values: Any) -> tuple[float, ...]:
    """One number per channel."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} contains no {path.name}; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {REMEDY}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; {REMEDY}")
    return values
