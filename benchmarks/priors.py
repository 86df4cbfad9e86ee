"""Cost of sampling with piti's pipeline relative to diffusers' own, on the same UNet.

    python benchmarks/priors.py [--width 64] [--size 256] [--steps 10] [--rounds 12]

A Stable Diffusion with random weights is built from diffusers' classes, imported, and sampled by both with the same
text and latents: DDIM with guidance, decoding included, in one process with the same threads. A round is theirs, ours,
ours, theirs, so that drift cancels; its ratio is that of both sums. Both CPU time, which other processes disturb less,
and wall time are compared. Prints the median of the rounds' ratios with quartiles, the same for theirs against theirs
(each round's last call against its first, as the measurement noise), the ratio of the fastest calls, and the difference
of the images. The smaller the UNet, the larger the share of other costs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from piti.checkpoints.priors import import_prior
from piti.diffusion.guidance import Guidance
from piti.pipelines.pipeline import PITIPipeline

TEXT = "a street in the rain"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters as tokens."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "!", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77)


def stable_diffusion(folder: Path, width: int, size: int) -> StableDiffusionPipeline:
    """A model with the architecture of Stable Diffusion 1 and `width` channels at its first level (320 in the real
    one)."""
    torch.manual_seed(0)
    autoencoder: dict[str, Any] = {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    text = CLIPTextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=53, eos_token_id=54, pad_token_id=54,
    )  # fmt: skip
    unet: dict[str, Any] = {
        "sample_size": size // 8,
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "cross_attention_dim": 64,
    }
    scheduler: Any = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**autoencoder, latent_channels=4).eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer(folder / "letters"),
        unet=UNet2DConditionModel(**unet).eval(),
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


Seconds = tuple[float, float]
"""CPU time and wall time."""
CLOCKS = ("CPU time", "wall time")


def timed(run: Callable[[], object]) -> Seconds:
    """Duration of a call; garbage is collected before and not during it."""
    gc.collect()
    gc.disable()
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    found = time.process_time() - cpu, time.perf_counter() - wall
    gc.enable()
    return found


def measured(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> list[tuple[Seconds, Seconds, Seconds, Seconds]]:
    """Seconds of theirs, ours, ours and theirs, per round."""
    return [(timed(theirs), timed(ours), timed(ours), timed(theirs)) for _ in range(rounds)]


def quartiles(ratios: list[float]) -> str:
    """The median of ratios with quartiles, as differences from 1."""
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return f"{median - 1:+.1%} (quartiles {lower - 1:+.1%} to {upper - 1:+.1%})"


def told(found: list[tuple[Seconds, Seconds, Seconds, Seconds]], clock: int) -> str:
    """Results by a clock of `CLOCKS`."""
    rounds = [[one[clock] for one in four] for four in found]
    ratios = [(b + c) / (a + d) for a, b, c, d in rounds]
    fastest = min(min(b, c) for _, b, c, _ in rounds) / min(min(a, d) for a, _, _, d in rounds)
    return (
        f"{CLOCKS[clock]}: ours beside theirs {quartiles(ratios)}, the fastest of each {fastest - 1:+.1%}; theirs "
        f"beside theirs {quartiles([d / a for a, _, _, d in rounds])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = stable_diffusion(folder, args.width, args.size)
        theirs.save_pretrained(folder / "diffusers")
        import_prior(folder / "diffusers", folder / "model")
        ours = PITIPipeline.from_pretrained(folder / "model")
        ours.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, args.size // 8, args.size // 8, generator=torch.Generator().manual_seed(0))
        asked: dict[str, Any] = {"latents": latents, "output_type": "pt"}

        def by_diffusers() -> Any:
            return theirs(TEXT, num_inference_steps=args.steps, guidance_scale=7.5, **asked)

        def by_us() -> Any:
            return ours(TEXT, steps=f"leading{args.steps}", guidance=Guidance(kind="plain", w=6.5), **asked)

        apart = (by_us().images - by_diffusers().images).abs().max().item()  # also a warm-up
        found = measured(by_us, by_diffusers, args.rounds)
    parameters = sum(one.numel() for one in theirs.unet.parameters()) / 1e6
    print(
        f"UNet of {parameters:.1f}M, {args.size} px, {args.steps} steps, {args.rounds} rounds on "
        f"{torch.get_num_threads()} threads; images differ by {apart:.1e}"
    )
    for clock in range(len(CLOCKS)):
        print(told(found, clock))


if __name__ == "__main__":
    main()
