"""Turn a training run into a bundled model: averaged weights in half precision, and the settings to sample with.

    python tools/bundle.py runs/street piti/assets/street --sampler dpm++sde --steps 20 --guidance 2 \\
        [--upsampler runs/street-upsampler --upsampler-sampler ddim --upsampler-steps 10] [--share street]

--share names the bundled model whose upsampler this one is to use, so that its weights lie in the package once.

Prints the size, and the largest difference that half precision makes to an image of an example, in levels of
255.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from piti.checkpoints.joining import share_upsampler
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline

EXAMPLES = {
    "mask": Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png",
    "sketch": Path(__file__).resolve().parent.parent / "examples" / "sketch" / "mountain.png",
    "text": "a photo of a forest",
}


def number_or_name(text: str) -> int | str:
    """A count of steps, or a respacing by name."""
    return int(text) if text.isdecimal() else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--sampler", required=True)
    parser.add_argument("--steps", type=number_or_name, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--upsampler")
    parser.add_argument("--share")
    parser.add_argument("--upsampler-sampler")
    parser.add_argument("--upsampler-steps", type=number_or_name)
    options = parser.parse_args()
    names = ("sampler", "steps", "guidance", "upsampler_sampler", "upsampler_steps")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    full = PITIPipeline.from_pretrained(options.run, upsampler=options.upsampler)
    half = PITIPipeline.from_pretrained(options.run, torch_dtype=torch.float16, upsampler=options.upsampler)
    half.defaults = SamplingOptions.from_flat(settings).networks_over(half.defaults)
    half.save_pretrained(options.target)
    if options.share:
        share_upsampler(options.target, options.share)
    pictures = []
    for pipeline in (full, PITIPipeline.from_pretrained(options.target, base_only=bool(options.share))):
        generator = torch.Generator().manual_seed(0)
        images = pipeline(EXAMPLES[pipeline.condition.kind], **settings, generator=generator).images
        pictures.append(np.asarray(images[0], np.int16))
    size = sum(path.stat().st_size for path in options.target.rglob("*.safetensors"))
    print(f"{size / 1e6:.1f} MB; half precision changes a pixel by {np.abs(pictures[0] - pictures[1]).max()} at most")


if __name__ == "__main__":
    main()
