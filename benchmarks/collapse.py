"""Intra-image collapse and possible remedies: objects of a class in one image, generated in several ways.

    python benchmarks/collapse.py --data DATA --out OUT --features alexnet.safetensors [--model street] [--samples 4]

The paper states as a limitation that similar objects within one image share style and colour. All ways start from the
same noise, without training:

- as it is: the model's own sampler and guidance.
- w of each region: every connected region of the mask has its own guidance strength, drawn for each sample from 0 to
  three times the model's; the normalised rule (eq. 8) restores the statistics of the whole image.
- no pooled token: the encoder's pooled token, which is added to the time embedding, is that of no condition; the other
  tokens and the aligned path are unchanged.

DATA is a paired folder with masks, of which the validation split is used. Images are kept in OUT/WAY and evaluated by
`piti evaluate images … --objects`: distances of colours within an image, between samples, and their ratio (1: objects
in one image are no more similar than those in different samples), distances to the training photographs, and with
--segmenter the agreement. The tables are printed and written as OUT/WAY.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from piti.conditions import MaskCondition
from piti.conditions.mask import nearest
from piti.core.connected_components import connected
from piti.core.images import Box, save_png, to_pil
from piti.core.seeding import generator_for
from piti.data import FolderSpec, PairedFolder
from piti.diffusion.guidance import conditioned, guided
from piti.diffusion.samplers import sample
from piti.diffusion.schedule import Denoise, Estimate
from piti.evaluation.evaluate import Options, evaluate_files
from piti.generation.options import seed_of
from piti.pipelines.cascade import Batch, Network, NetworkSampling, Prepared
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline

MOST = 3.0
"""Upper limit of the strengths of regions, relative to the model's own."""

Way = Callable[[Network, Batch, NetworkSampling], Denoise]
"""Creates the denoiser for a batch of samples of one mask."""


def as_it_is(network: Network, batch: Batch, settings: NetworkSampling) -> Denoise:
    """As in the pipeline."""
    return network.denoiser(*network.encode(batch, with_null=settings.guidance.w != 0), settings.guidance)


def without_pooled(network: Network, batch: Batch, settings: NetworkSampling) -> Denoise:
    """Replace the pooled token of the conditions by that of no condition."""
    tokens, both = network.encode(batch, with_null=True)
    assert both is not None
    null = both.pooled[len(tokens.pooled) :]
    bare = tokens._replace(pooled=null)
    return network.denoiser(bare, both._replace(pooled=torch.cat([null, null])), settings.guidance)


def by_region(network: Network, batch: Batch, settings: NetworkSampling) -> Denoise:
    """A guidance strength for each region of the mask, different in each sample."""
    tokens, both = network.encode(batch, with_null=True)
    strengths = strengths_of(batch, settings.guidance.w)
    pair = conditioned(network.translator, tokens, both, network.schedule)

    def away(x_t: Tensor, t: Tensor, with_null: bool) -> tuple[Estimate, Estimate | None]:
        cond, null = pair(x_t, t, with_null)
        if null is None:
            return cond, None
        return cond, Estimate(cond.eps - strengths * (cond.eps - null.eps), null.variance)

    return guided(away, settings.guidance.of_strength(1), network.schedule)  # 1 × the strengths: eq. 7-8


def strengths_of(batch: Batch, w: float) -> Tensor:
    """[B, 1, h, w] over the canvas: one value per region of the mask, different in each sample."""
    raw = batch.conditions[0].raw  # [1, h, w]
    regions = connected(nearest(raw, Box(0, 0, raw.shape[-1], raw.shape[-2]), batch.base_size)[0])
    maps = []
    for number in range(len(batch.rows)):
        drawn = torch.rand(int(regions.max()) + 1, generator=generator_for(0, "strength", number))
        maps.append(MOST * w * drawn[regions])
    return torch.stack(maps)[:, None]


WAYS: dict[str, Way] = {"as it is": as_it_is, "w of each region": by_region, "no pooled token": without_pooled}


@torch.no_grad()
def make(pipeline: PITIPipeline, prepared: Prepared, way: Way, samples: int) -> list[Tensor]:
    """Samples of one mask, [3, h, w] each in [-1, 1], with the same noise for all ways."""
    network, settings = pipeline.base_network(), prepared.sampling.base
    assert isinstance(network, Network)
    seeds = [seed_of(0, prepared.content_hash, number) for number in range(samples)]
    batch = Batch.of([prepared], [0] * samples, [torch.Generator().manual_seed(seed) for seed in seeds])
    x_T = network.noise(batch, settings)
    denoise = way(network, batch, settings)
    made = sample(denoise, x_T, network.schedule, settings.sampler, settings.steps, batch.generators)
    return [prepared.canvas.crop(x0) for x0 in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="street")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--features", action="append", required=True)
    parser.add_argument("--segmenter")
    given = parser.parse_args()
    pipeline = PITIPipeline.from_pretrained(given.model, base_only=True)
    condition = pipeline.condition
    if not isinstance(condition, MaskCondition):
        raise SystemExit(f"{given.model} reads {condition.kind}; objects are those of masks")
    network = pipeline.base_network()
    if not isinstance(network, Network) or network.translator.student is not None:
        raise SystemExit(f"{given.model} is a baseline or distilled: it has no guidance to change")
    pairs = PairedFolder(FolderSpec(root=given.data, cache=False), condition, "val").pairs
    masks = [Path(str(pair.condition)) for pair in pairs]
    options = SamplingOptions(square=True, base_only=True)
    judged = Options(
        tuple(given.features), pipeline.base.image_size, segmenter=given.segmenter, objects=True, device="cpu"
    )
    for name, way in WAYS.items():
        folder = given.out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for mask in masks:
            for number, image in enumerate(make(pipeline, pipeline.prepare(mask, options), way, given.samples)):
                save_png(to_pil(image), folder / f"{mask.stem}_{number}.png")
        found = evaluate_files(folder, judged, given.data, masks[0].parent, condition, split="train")
        found.write(given.out / f"{folder.name}.json", overwrite=True)
        print(f"\n{name}", flush=True)
        for row in found.rows():
            print("  " + "  ".join(value for value in row.values() if value), flush=True)


if __name__ == "__main__":
    main()
