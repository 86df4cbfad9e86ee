"""Train a small segmentation network for evaluation, if none can be downloaded: `python tools/segmenter.py DATA OUT`.

Trains a UPerNet (Xiao et al. 2018, arXiv 1807.10221) with a small four-level ConvNeXt from random weights on DATA's
training split at 64 px, and writes it to OUT in transformers' format: `piti evaluate images … --segmenter OUT`. Prints
pixel accuracy and mIoU on photographs of the validation split. It is not trained on generated images; its augmentation
blurs, darkens and adds noise to photographs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

from piti.conditions import MaskCondition
from piti.conditions.class_table import ClassTable
from piti.core.devices import fast_in_bfloat16
from piti.core.files import follow_umask
from piti.data import FolderSpec, PairedFolder
from piti.data.batches import BatchStream
from piti.models.perceptual import IMAGENET_MEAN, IMAGENET_STD

SIDE, BATCH, RATE = 64, 16, 2e-3


def build(classes: ClassTable) -> UperNetForSemanticSegmentation:
    """The network with random weights from torch's generator."""
    levels: dict[str, Any] = {
        "patch_size": 2,
        "hidden_sizes": [32, 64, 128, 192],
        "depths": [2, 2, 2, 2],
        "drop_path_rate": 0.1,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    head: dict[str, Any] = {
        "hidden_size": 64,
        "pool_scales": [1, 2, 4],
        "use_auxiliary_head": False,
        "num_labels": classes.count,
        "id2label": dict(enumerate(classes.names)),
        "label2id": {name: k for k, name in enumerate(classes.names)},
    }
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=ConvNextConfig(**levels), **head))


def normalised(images: Tensor) -> Tensor:
    """Images in [-1, 1], normalised with ImageNet's mean and standard deviation, as in the preprocessor below."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def worsened(images: Tensor) -> Tensor:
    """Augment brightness, contrast and tint of each image, with blur or noise."""
    count = len(images)
    gain, shift = 1 + 0.3 * (torch.rand(count, 3, 1, 1) - 0.5), 0.3 * (torch.rand(count, 1, 1, 1) - 0.5)
    blurred = F.interpolate(F.avg_pool2d(images, 2), images.shape[-2:], mode="bilinear")
    share = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.5)
    noise = 0.1 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)
    return (images.lerp(blurred, share) * gain + shift + noise).clamp(-1, 1)


def train(network: UperNetForSemanticSegmentation, folder: PairedFolder, steps: int, count: int) -> None:
    """Train the network on the folder's masks of `count` classes; other pixels are ignored."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    stream = BatchStream(folder, BATCH, seed=0)
    for step in range(steps):
        rate = RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = stream[step]
        labels = batch.condition[:, 0].long()
        labels = torch.where(labels < count, labels, 255)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_in_bfloat16(torch.device("cpu"))):
            logits = network(normalised(worsened(batch.image))).logits
        loss = F.cross_entropy(logits.float(), labels, ignore_index=255)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def save(network: UperNetForSemanticSegmentation, out: Path) -> None:
    """Write the network and its preprocessor in transformers' format."""
    network.save_pretrained(out)
    follow_umask(out / "model.safetensors")
    preprocessor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))


def confusion(network: UperNetForSemanticSegmentation, folder: PairedFolder, count: int) -> Tensor:
    """Confusion matrix [N, N] in pixels."""
    found = torch.zeros(count, count)
    for k in range(len(folder)):
        sample = folder.center(k)
        with torch.no_grad():
            guess = network(normalised(sample.image[None])).logits.argmax(1)[0]
        truth = sample.condition[0].long()
        kept = truth < count
        found += torch.bincount(truth[kept] * count + guess[kept], minlength=count**2).view(count, count)
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("data", type=Path)
    ask.add_argument("out", type=Path)
    ask.add_argument("--steps", type=int, default=1200)
    given = ask.parse_args()
    torch.manual_seed(0)
    condition = MaskCondition(ClassTable.read(given.data / "classes.json"))
    count = condition.classes.count
    spec = FolderSpec(root=given.data, size=SIDE, crop_scale=(0.6, 1.0))
    training, held_out = PairedFolder(spec, condition, "train"), PairedFolder(spec, condition, "val")
    network = build(condition.classes).train()
    train(network, training, given.steps, count)
    save(network.eval(), given.out)
    found = confusion(network, held_out, count)
    hit, union = found.diag(), found.sum(0) + found.sum(1) - found.diag()
    present = found.sum(1) > 0
    print(f"pixel accuracy {100 * hit.sum() / found.sum():.1f}, mIoU {100 * (hit / union)[present].mean():.1f}")


if __name__ == "__main__":
    main()
