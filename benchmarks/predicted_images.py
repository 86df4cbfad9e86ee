"""Quality of the upsampler's x̂₀ at each timestep, for choosing the timesteps of image losses.

    python benchmarks/predicted_images.py --model RUN --photographs FOLDER_OR_TAR \\
        --perceptual squeezenet1_1-b8a52dc0.pth [--count 32]

For photographs of 256 px, shrunk and noised to t, the upsampler's x̂₀ is compared with the photograph: PSNR, eq. 4's
perceptual distance relative to bicubic enlargement, and detail, the mean gradient relative to the photograph's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from piti.checkpoints.folder import ModelFolder, find_model
from piti.conditions import NoCondition
from piti.data import FolderSpec, PairedFolder
from piti.data.degrade import downsample
from piti.diffusion.losses import perceptual_loss
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import spec_of
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec, load_perceptual

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)


def detail(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def compare(images: Tensor, photographs: Tensor, network: PerceptualNetwork) -> tuple[float, float, float]:
    """PSNR in dB, perceptual distance, and detail relative to the photographs."""
    error = (images - photographs).square().mean(dim=(1, 2, 3)) / 4
    distance = perceptual_loss(network(images), network(photographs), network.layer_weights).mean()
    return float((-10 * error.log10()).mean()), float(distance), float(detail(images) / detail(photographs))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--perceptual", required=True)
    parser.add_argument("--network", default="squeezenet1_1")
    parser.add_argument("--count", type=int, default=32)
    options = parser.parse_args()
    folder = ModelFolder.open(find_model(options.model))
    upsampler, scheduler = folder.load("upsampler", torch.float32)
    schedule = NoiseSchedule(spec_of(scheduler))
    network = load_perceptual(PerceptualSpec(network=options.network, weights=options.perceptual))
    spec = FolderSpec(photographs=(options.photographs,), size=upsampler.image_size, crop_scale=(1.0, 1.0), cache=False)
    photographs = PairedFolder(spec, NoCondition(), "val")
    count = min(options.count, len(photographs))
    x0 = torch.stack([photographs.center(k).image for k in range(count)])  # [B, 3, H, W]
    low_res = downsample(x0, upsampler.scale)
    bicubic = F.interpolate(low_res, x0.shape[-2:], mode="bicubic").clamp(-1, 1)
    psnr, unit, share = compare(bicubic, x0, network)
    print(f"{'t / T':>8s} {'PSNR':>8s} {'perceptual':>11s} {'detail':>7s}   of {count} photographs")
    print(f"{'bicubic':>8s} {psnr:8.2f} {1.0:11.2f} {share:7.2f}")
    nothing = torch.empty(count, 0, 1, 1)
    for place in SHARES:
        t = torch.full((count,), int(place * len(schedule)))
        x_t = schedule.q_sample(x0, t, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))
        parts = zip(x_t.split(8), t.split(8), nothing.split(8), low_res.split(8), strict=True)
        output = torch.cat([upsampler(*part).output for part in parts])
        psnr, distance, share = compare(schedule.to_x0(output, x_t, t).clamp(-1, 1), x0, network)
        print(f"{place:8.2f} {psnr:8.2f} {distance / unit:11.2f} {share:7.2f}", flush=True)


if __name__ == "__main__":
    main()
