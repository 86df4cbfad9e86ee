"""Caption accuracy of a prior's samples, and their distance to photographs.

    python benchmarks/prior.py --model scenes-prior --photographs TAR [TAR …] --features SQUEEZENET.safetensors \\
        [--count 40] [--runs dpm++sde:20:2 ddpm:50:2]

`count` samples of every caption, seed 0, at sampler:steps:guidance. Caption accuracy is that of a linear probe on
SqueezeNet features, fitted to the training photographs; held-out photographs serve as reference. fd is a Fréchet
distance on the same features to the training photographs, comparable only within one table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from piti.conditions import TextCondition
from piti.core.images import save_png, to_tensor
from piti.core.sheets import grid
from piti.data import FolderSpec, PairedFolder
from piti.models.perceptual import PerceptualNetwork, PerceptualSpec, load_perceptual
from piti.pipelines.pipeline import PITIPipeline

RIDGE = 1.0
SIDE = 128  # input size for features


@torch.no_grad()
def features(network: PerceptualNetwork, images: Iterable[Tensor]) -> Tensor:
    """Pooled features of the last layer, [N, D]; images [3, h, w] in [-1, 1]."""
    rows = []
    for image in images:
        large = torch.nn.functional.interpolate(image[None], (SIDE, SIDE), mode="bilinear", antialias=True)
        rows.append(network(large)[-1].mean((2, 3)))
    return torch.cat(rows).double()


def fitted_probe(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression onto one-hot classes, [D + 1, K]."""
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    targets = torch.nn.functional.one_hot(y).double()
    return torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ targets)


def accuracy(probe: Tensor, x: Tensor, y: Tensor) -> float:
    guessed = (torch.cat([x, torch.ones(len(x), 1)], 1) @ probe).argmax(1)
    return 100 * (guessed == y).double().mean().item()


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features, as Gaussians (Heusel et al. 2017, eq. 6)."""
    first, second = a.T.cov(), b.T.cov()
    eigenvalues = torch.linalg.eigvals(first @ second).real.clamp(min=0)
    difference = (a.mean(0) - b.mean(0)).square().sum()
    return (difference + first.trace() + second.trace() - 2 * eigenvalues.sqrt().sum()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes-prior")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--limit", type=int, default=2000, help="number of training photographs to use")
    parser.add_argument("--runs", nargs="*", default=["dpm++sde:20:2"])
    parser.add_argument("--sheet", type=Path, help="file for a picture of some samples")
    options = parser.parse_args()
    pipeline = PITIPipeline.from_pretrained(options.model, base_only=True)
    pipeline.set_progress_bar_config(disable=True)
    condition, size = pipeline.condition, pipeline.base.image_size
    assert isinstance(condition, TextCondition)
    network = load_perceptual(PerceptualSpec(network="squeezenet1_1", weights=str(options.features)))
    spec = FolderSpec(photographs=tuple(options.photographs), size=size, cache=False)
    sets = {}
    for split in ("train", "val"):
        folder = PairedFolder(spec, condition, split)
        chosen = range(0, len(folder), max(1, len(folder) // options.limit))
        samples = [folder.center(k) for k in chosen]
        sets[split] = features(network, (s.image for s in samples)), [condition.text(s.condition) for s in samples]
    captions = sorted(set(sets["train"][1]))
    labels = {split: torch.tensor([captions.index(text) for text in texts]) for split, (_, texts) in sets.items()}
    probe = fitted_probe(sets["train"][0], labels["train"])
    real = sets["val"][0]
    print(f"{'photographs':20s} accuracy {accuracy(probe, real, labels['val']):5.1f}  "
          f"fd {frechet(real, sets['train'][0]):7.1f}  ({len(real)} held out)", flush=True)  # fmt: skip
    wanted = torch.arange(len(captions)).repeat_interleave(options.count)
    for run in options.runs:
        sampler, steps, guidance = run.split(":")
        generator = torch.Generator().manual_seed(0)
        chosen = {"guidance": float(guidance), "steps": int(steps), "sampler": sampler}
        images = pipeline(captions, options.count, generator, batch_size=32, **chosen).images
        made = features(network, (to_tensor(image) for image in images))
        print(f"{run:20s} accuracy {accuracy(probe, made, wanted):5.1f}  "
              f"fd {frechet(made, sets['train'][0]):7.1f}  ({len(made)} samples)", flush=True)  # fmt: skip
        if options.sheet is not None:
            rows = [images[k * options.count : k * options.count + 8] for k in range(len(captions))]
            save_png(grid(rows), options.sheet.with_name(f"{options.sheet.stem}-{run.replace(':', '-')}.png"))


if __name__ == "__main__":
    main()
