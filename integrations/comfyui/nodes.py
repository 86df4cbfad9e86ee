"""Three nodes for ComfyUI: load a model, translate conditions into images, edit an image under a changed condition.

Images are ComfyUI's: float32 [B, H, W, 3] in [0, 1]; a MASK is float32 [B, H, W], 1 where it is chosen. A condition is
an image in the form that the model reads: a mask in its classes' colours, a sketch's lines. The same "seed" makes the
same images of the same conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CATEGORY = "piti"
PIPELINE = "PITI_PIPELINE"
"""The type of the wire between the nodes."""

AS_MODEL = -1.0
"""Guidance of this strength is the model's own; so are 0 steps and a size of 0."""
_SEED = ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True})
_COUNT = ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Images of each condition."})
_GUIDANCE = (
    "FLOAT",
    {"default": AS_MODEL, "min": -1.0, "max": 20.0, "step": 0.1, "tooltip": "w: 0 is off, -1 the model's own."},
)
_STEPS = ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own."})
_SIZE = ("INT", {"default": 0, "min": 0, "max": 2048, "tooltip": "The short side in pixels; 0: the model's own."})


def to_images(batch: Tensor) -> list[Image.Image]:
    """ComfyUI's images [B, H, W, C] in [0, 1] as PIL images; of four channels the last is transparency, and left out.

    Raises ValueError for other shapes.
    """
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
        raise ValueError(f"expected images [B, H, W, 1, 3 or 4], got {list(batch.shape)}; connect an IMAGE")
    pixels = (batch[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(np.broadcast_to(one, (*one.shape[:2], 3)).copy()) for one in pixels]


def to_batch(images: list[Image.Image]) -> Tensor:
    """PIL images of one size as ComfyUI's, [B, H, W, 3] in [0, 1]. Raises ValueError for several sizes."""
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"images of {sorted(sizes)} px are no batch; give conditions of one size")
    arrays = [np.asarray(image.convert("RGB"), np.float32) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays))


def to_region(mask: Tensor) -> Image.Image:
    """A MASK [1, H, W] or [H, W] as the region of an edit, white where it is 1. Raises ValueError for several."""
    flat = mask[None] if mask.ndim == 2 else mask
    if flat.ndim != 3 or len(flat) != 1:
        raise ValueError(f"expected one mask [1, H, W], got {list(mask.shape)}; connect one")
    return Image.fromarray((flat[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def generator(seed: int) -> torch.Generator:
    """The noise of a seed."""
    return torch.Generator().manual_seed(seed)


def sampling(guidance: float, steps: int, size: int) -> dict[str, Any]:
    """Sampling options of the pipeline, without those that are the model's own."""
    given = {"guidance": None if guidance == AS_MODEL else guidance, "steps": steps or None, "size": size or None}
    return {key: value for key, value in given.items() if value is not None}


def progress(total: int) -> Callable[[int], None]:
    """ComfyUI's bar, set to the steps done; outside ComfyUI nothing."""
    try:
        from comfy.utils import ProgressBar  # pyright: ignore[reportMissingImports]
    except ImportError:
        return lambda done: None
    bar = ProgressBar(total)
    return lambda done: bar.update_absolute(done, total)


class PITILoad:
    """A bundled model by name, a folder, a training run, or a model of the hub by its id."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": ("STRING", {"default": "street", "tooltip": "street, sketch, a folder, or a hub id."}),
                "dtype": (["float32", "bfloat16", "float16"],),
                "device": (["auto", "cpu", "cuda", "mps"],),
            }
        }

    def load(self, model: str, dtype: str, device: str) -> tuple[Any]:
        """(the pipeline on its device,)"""
        from piti import PITIPipeline
        from piti.pipelines.pipeline import usable_device

        pipe = PITIPipeline.from_pretrained(model.strip(), torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return (pipe.to(usable_device(None if device == "auto" else device)),)


class PITITranslate:
    """Conditions to images: `num_images` for each, in the order of the conditions."""

    CATEGORY = CATEGORY
    FUNCTION = "translate"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "condition": ("IMAGE", {"tooltip": "A mask in the classes' colours, or a sketch."}),
                "seed": _SEED,
                "num_images": _COUNT,
            },
            "optional": {"guidance": _GUIDANCE, "steps": _STEPS, "size": _SIZE},
        }

    def translate(
        self,
        pipeline: Any,
        condition: Tensor,
        seed: int,
        num_images: int,
        guidance: float = AS_MODEL,
        steps: int = 0,
        size: int = 0,
    ) -> tuple[Tensor]:
        """(images [B · num_images, H, W, 3],)"""
        set_bar = None

        def on_step(done: int, total: int, x0: Tensor) -> None:
            nonlocal set_bar
            set_bar = set_bar or progress(total)
            set_bar(done)

        made = pipeline(
            to_images(condition), num_images, generator(seed), on_step=on_step, **sampling(guidance, steps, size)
        )
        return (to_batch(made.images),)


class PITIEdit:
    """An image again under a changed condition, the rest of it kept."""

    CATEGORY = CATEGORY
    FUNCTION = "edit"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "image": ("IMAGE",),
                "to": ("IMAGE", {"tooltip": "The condition that the image is to show."}),
                "seed": _SEED,
                "num_images": _COUNT,
            },
            "optional": {
                "before": ("IMAGE", {"tooltip": "The condition that the image shows now."}),
                "region": ("MASK", {"tooltip": "Where it is repainted; by default where the conditions differ."}),
                "guidance": _GUIDANCE,
                "steps": _STEPS,
            },
        }

    def edit(
        self,
        pipeline: Any,
        image: Tensor,
        to: Tensor,
        seed: int,
        num_images: int,
        before: Tensor | None = None,
        region: Tensor | None = None,
        guidance: float = AS_MODEL,
        steps: int = 0,
    ) -> tuple[Tensor]:
        """(images [num_images, H, W, 3],)"""
        from piti import EditSettings, SamplingOptions, edit

        edited = edit(
            pipeline,
            only(image, "image"),
            only(to, "to"),
            None if before is None else only(before, "before"),
            None if region is None else to_region(region),
            EditSettings(sampling=SamplingOptions.from_flat(sampling(guidance, steps, 0))),
            num_images,
            generator(seed),
        )
        return (to_batch(edited.images),)


def only(batch: Tensor, name: str) -> Image.Image:
    """The one image of a batch. Raises ValueError for several."""
    images = to_images(batch)
    if len(images) != 1:
        raise ValueError(f"'{name}' has {len(images)} images, and one is edited at a time; connect one")
    return images[0]


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "PITILoad": PITILoad,
    "PITITranslate": PITITranslate,
    "PITIEdit": PITIEdit,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PITILoad": "Load PITI model",
    "PITITranslate": "Translate condition (PITI)",
    "PITIEdit": "Edit image under a condition (PITI)",
}
