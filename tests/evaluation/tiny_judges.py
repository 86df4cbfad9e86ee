"""Tiny transformers networks in folders, as in hub repositories, and stand-ins without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 32


def save_prepared(folder: Path, kind: str, **values: Any) -> None:
    given = {"image_processor_type": kind, "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    given |= {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(given | values))


def named(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {name: k for k, name in enumerate(labels)}}


def segformer(folder: Path, labels: Sequence[str] = ("Sky", "road", "car"), **prepared: Any) -> Path:
    """A SegFormer with random weights."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        **named(labels),
    )
    network = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(network.decode_head.classifier.weight, std=10)
    network.save_pretrained(folder)
    save_prepared(folder, "SegformerImageProcessor", **prepared)
    return folder


def mask2former(folder: Path, labels: Sequence[str] = ("sky", "road", "car")) -> Path:
    """A Mask2Former with random weights; its processor pads to multiples of 32."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=4,
        **named(labels),
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32, "longest_edge": 96}, "size_divisor": 32, "pad_size": None}
    save_prepared(folder, "Mask2FormerImageProcessor", **sizes)
    return folder


def dpt(folder: Path) -> Path:
    """A DPT for depth with random weights."""
    from transformers import DPTConfig, DPTForDepthEstimation

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    save_prepared(folder, "DPTImageProcessor", do_pad=False, keep_aspect_ratio=False, ensure_multiple_of=1)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def by_hand(image: Image.Image) -> Tensor:
    """What `save_prepared` says: [1, 3, SIDE, SIDE]."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    mean, std = (np.array(values, np.float32) for values in (MEAN, STD))
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class Seeing:
    """Sees what `seen` makes of the pixels [h, w, 3]."""

    labels: tuple[str, ...]
    seen: Callable[[np.ndarray], np.ndarray]
    name: str = "seeing"
    source: str = "nowhere"
    sha256: str = "0" * 64

    def __call__(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([torch.from_numpy(self.seen(np.asarray(image)).astype(np.int64)) for image in images])


@dataclass(frozen=True)
class Estimating:
    """Estimates depth as `seen` makes it of the pixels [h, w, 3]."""

    inverse: bool
    seen: Callable[[np.ndarray], np.ndarray]
    name: str = "estimating"
    source: str = "nowhere"
    sha256: str = "0" * 64

    def __call__(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([torch.from_numpy(self.seen(np.asarray(image)).astype(np.float32)) for image in images])
