"""Turn a training run into a bundled model: averaged weights in half precision, and the settings to sample with.

    python tools/bundle.py runs/street piti/assets/street --sampler dpm++sde --steps 20 --guidance 2 \\
        [--upsampler runs/street-upsampler --upsampler-sampler ddim --upsampler-steps 10] [--share street]

    python tools/bundle.py runs/light piti/assets/street-fast

--share names a bundled model whose upsampler is reused, so that the package contains its weights only once. A run of
low-rank adapters on a bundled model, such as a student, stays adapters, with the name of that model. Prints the size,
and the largest change of an example image by half precision, in levels of 255.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from piti.checkpoints.folder import ModelFolder, bundled_models, find_model
from piti.checkpoints.joining import share_upsampler
from piti.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_FILE, read_adapter_config
from piti.core.files import follow_umask
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline

EXAMPLES = {
    "mask": Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png",
    "sketch": Path(__file__).resolve().parent.parent / "examples" / "sketch" / "mountain.png",
    "text": "a photo of a forest",
}


def number_or_name(text: str) -> int | str:
    """A number of steps, or the name of a spacing."""
    return int(text) if text.isdecimal() else text


def copy_adapters(model: Path, target: Path) -> None:
    """Copy a model of low-rank adapters, in half precision and without its run's facts. Exits if its base model is not
    bundled, and if the target exists."""
    config = read_adapter_config(model / "base")
    lender = ModelFolder.open(model).lender
    for name in (config.prior, lender):
        if name is not None and name not in bundled_models():
            raise SystemExit(f"{model} belongs to {name}, which is not bundled; train with a bundled model")
    if target.exists():
        raise SystemExit(f"{target} already exists; remove it first")
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("recipe.yaml"))
    path = target / "base" / ADAPTER_FILE
    save_file({name: tensor.half().contiguous() for name, tensor in load_file(path).items()}, path)
    follow_umask(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=number_or_name)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--upsampler")
    parser.add_argument("--share")
    parser.add_argument("--upsampler-sampler")
    parser.add_argument("--upsampler-steps", type=number_or_name)
    options = parser.parse_args()
    names = ("sampler", "steps", "guidance", "upsampler_sampler", "upsampler_steps")
    settings = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    adapters = (find_model(options.run) / "base" / ADAPTER_CONFIG).is_file()
    if adapters and (settings or options.upsampler or options.share):
        parser.error("a run of adapters is copied unchanged; remove all other options")
    if not adapters and not {"sampler", "steps", "guidance"} <= settings.keys():
        parser.error("--sampler, --steps and --guidance are required, as the model's defaults")
    full = PITIPipeline.from_pretrained(options.run, upsampler=options.upsampler)
    if adapters:
        copy_adapters(find_model(options.run), options.target)
    else:
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
