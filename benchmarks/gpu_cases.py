"""Cases of `benchmarks/gpu.py`, and their setup."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor

from benchmarks.steps import Bare, Ours, Released
from piti.core.devices import PRECISIONS, check_compiles, usable_dtype
from piti.core.seeding import draws_on
from piti.diffusion.guidance import Guidance
from piti.diffusion.schedulers import scheduler_of
from piti.models import Translator
from piti.pipelines.canvas import fitted
from piti.pipelines.cascade import Batch
from piti.pipelines.computing import Computing
from piti.pipelines.options import SamplingOptions
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, read_recipe
from piti.training.build import build_translator

MASK = Path(__file__).resolve().parent.parent / "examples" / "street" / "high_street.png"
PLAIN, BARE, RELEASED = "diffusers loop", "bare loop", "released operations"
W = 1.0
"""Strength of plain guidance in both loops."""
TINY = (
    "model.unet={channels: [32], layers: 1, attention: [true], head_dim: 16, token_width: 32}",
    "model.image_size=32",
    "data.size=32",
    "model.encoder={size: 64, channels: [8, 16, 16, 16], width: 32, layers: 1, heads: 2, norm_groups: 4}",
    "data.condition_size=64",
)


@dataclass(frozen=True)
class Scale:
    """Size of the networks, and time per row."""

    images: int = 4
    steps: int = 20
    """Guided steps of the base."""
    upsampler_steps: int = 10
    """Unguided steps of the full-size upsampler."""
    batches: dict[str, int] = field(default_factory=lambda: {"street": 32, "full": 16})
    full: tuple[str, ...] = ()
    """Changes of the full-size recipe, KEY=VALUE."""
    whole: bool = True
    """Whether to sample whole models, not only bases."""
    compiled: tuple[str, ...] = ("street", "full")
    """The networks that are also compiled."""
    calls: int = 10
    seconds: float = 8.0
    """Duration of repeated calls of a row, after its first call."""
    share: float = 1.0
    """Share of a row's assumed duration on a GPU."""

    @classmethod
    def tiny(cls) -> Self:
        """A test on the CPU."""
        batches = {"street": 2, "full": 2}
        return cls(1, 2, 1, batches, TINY, whole=False, compiled=("full",), calls=1, seconds=0.1, share=0.1)


@dataclass(frozen=True)
class Case:
    """A case to measure."""

    task: str
    """sampling or training."""
    what: str
    """The network, and its use."""
    by: str
    dtype: str
    """fp32, bf16 or fp16."""
    compile: bool
    images: int
    """Images per call."""
    make: Callable[[Case, Scale, torch.device, Path], Callable[[], object]] = field(compare=False)
    """(case, scale, device, its own folder) => function to measure; may raise UserError."""

    @property
    def name(self) -> str:
        """Name in output."""
        return f"{self.task}: {self.what}, {self.by}, {self.dtype}{', compiled' if self.compile else ''}"


# Networks


@functools.cache
def street() -> PITIPipeline:
    """The bundled model, as loaded."""
    return PITIPipeline.from_pretrained("street")


def recipe_of(name: str, scale: Scale, data: Path, *changes: str) -> Recipe:
    """Recipe `street` or `full` with random weights, on synthetic data."""
    more = scale.full if name == "full" else ()
    given = [f"data.root={data}", "prior=null", f"batch={scale.batches[name]}", *more, *changes]
    return read_recipe(name, given).model_copy(update={"condition": street().condition.to_config()})


@functools.cache
def full_network(changes: tuple[str, ...], upsampler: bool) -> tuple[Translator, Any]:
    """A network of the paper's size with random weights, on the CPU, and its scheduler."""
    recipe = read_recipe("full-upsampler" if upsampler else "full", changes)
    return build_translator(recipe, street().condition).eval(), scheduler_of(recipe.schedule)


def pipeline_of(case: Case, scale: Scale, device: torch.device) -> PITIPipeline:
    """The case's model on the device, in its dtype."""
    if case.what.startswith("street"):
        loaded = street()
        parts: dict[str, Any] = dict(copy.deepcopy(loaded.components))
        pipe = PITIPipeline(**parts, defaults=loaded.defaults)
    else:
        base, scheduler = copy.deepcopy(full_network(scale.full, False))
        parts = {}
        if "upsampler" in case.what:
            parts = dict(zip(("upsampler", "upsampler_scheduler"), copy.deepcopy(full_network((), True)), strict=True))
        pipe = PITIPipeline(base, scheduler, street().condition, **parts)
    pipe.set_progress_bar_config(disable=True)
    return Computing(str(device), case.dtype, "torch", case.compile).applied(pipe)


# Sampling


def ours_sampling(case: Case, scale: Scale, device: torch.device, _: Path) -> Callable[[], object]:
    """The pipeline: a base alone by DDIM with guidance, or the whole model. The condition is already read."""
    pipe = pipeline_of(case, scale, device)
    flat: dict[str, Any] = {"sampler": "ddim", "steps": scale.steps, "guidance": Guidance(kind="plain", w=W)}
    if "upsampler" in case.what:
        flat |= {"upsampler_sampler": "ddim", "upsampler_steps": scale.upsampler_steps}
    elif "as shipped" in case.what:
        flat = {}
    else:
        flat["base_only"] = True
    prepared = pipe.prepare(MASK, SamplingOptions.from_flat({"square": True, **flat}))

    def run() -> object:
        generators = [torch.Generator(draws_on(device)).manual_seed(k) for k in range(case.images)]
        return pipe.generate(Batch.of([prepared], [0] * case.images, generators))

    return run


def diffusers_sampling(case: Case, scale: Scale, device: torch.device, _: Path) -> Callable[[], object]:
    """The same base in a loop as in diffusers' documentation."""
    pipe = pipeline_of(case, scale, device)
    base = pipe.base
    assert isinstance(base, Translator)
    prepared = pipe.prepare(MASK, SamplingOptions(square=True))
    encoded = pipe.condition.encode(fitted(pipe.condition, prepared.raw, prepared.canvas, base)[None])
    null = pipe.condition.null(1, encoded.shape[-2], encoded.shape[-1])
    pair = torch.cat([encoded.repeat(case.images, 1, 1, 1), null.repeat(case.images, 1, 1, 1)])
    trained: Any = pipe.scheduler
    scheduler: Any = DDIMScheduler.from_config(trained.config)

    @torch.no_grad()
    def run() -> Tensor:
        tokens = base.encode(pair.to(device, base.dtype))
        x = torch.randn(case.images, 3, base.image_size, base.image_size).to(device)
        scheduler.set_timesteps(scale.steps, device=device)
        for t in scheduler.timesteps:
            both = base(torch.cat([x, x]).to(base.dtype), t, tokens).output.float()
            conditional, unconditional = both.chunk(2)
            x = scheduler.step(conditional + W * (conditional - unconditional), t, x).prev_sample
        return x.clamp(-1, 1).cpu()

    return run


# Training


def made_data(folder: Path, side: int = 256, count: int = 32) -> Path:
    """Pairs of noise, since content does not affect time."""
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        photograph = rng.integers(0, 256, (side, side, 3), np.uint8)
        mask = rng.integers(0, 2, (8, 8), np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
        Image.fromarray(photograph).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "labels" / f"{number}.png")
    (folder / "splits.json").write_text(json.dumps({"train": [str(number) for number in range(count)]}))
    return folder


def training(case: Case, scale: Scale, device: torch.device, folder: Path) -> Callable[[], object]:
    """A training step of a recipe's stage, in one of three ways."""
    name, stage = case.what.split(", ")[:2]
    data = made_data(folder.parent / "data")
    changes = (f"precision='{PRECISIONS[case.dtype]}'", f"compile={str(case.compile).lower()}")
    recipe = recipe_of(name, scale, data, *changes)
    number = [one.name for one in recipe.stages].index(stage)
    usable_dtype(case.dtype, device)
    if case.compile:
        check_compiles(device)
    network = copy.deepcopy(full_network(scale.full, False)[0]) if name == "full" else None
    if case.by == "piti":
        return Ours(recipe, number, folder / "run", network)
    return {BARE: Bare, RELEASED: Released}[case.by](recipe, number, device, network)


# The rows


def cases(scale: Scale) -> list[Case]:
    """All cases, the most important first, and compiled ones last, since compilation takes longest."""
    rows = [*_sampling(scale), *_training(scale)]
    compiled = [row for row in rows if row.compile and row.what.startswith(scale.compiled)]
    return [row for row in rows if not row.compile] + compiled


def _sampling(scale: Scale) -> list[Case]:
    wholes = {
        "street": "street, as shipped",
        "full": f"full, {scale.steps} guided + {scale.upsampler_steps} of the upsampler",
    }
    rows = []
    for name, whole in wholes.items():
        what = f"{name}, base alone, {scale.steps} guided steps"
        ways = [(what, "piti", ours_sampling), (what, PLAIN, diffusers_sampling)]
        ways += [(whole, "piti", ours_sampling)] if scale.whole else []
        rows += [Case("sampling", *way[:2], dtype, False, scale.images, way[2]) for dtype in PRECISIONS for way in ways]
        rows.append(Case("sampling", what, "piti", "bf16", True, scale.images, ours_sampling))
    return rows


def _training(scale: Scale) -> list[Case]:
    joint = [("piti", "bf16", False), (BARE, "bf16", False), ("piti", "fp32", False), (BARE, "fp32", False)]
    joint += [(RELEASED, "fp32", False), ("piti", "fp16", False), ("piti", "bf16", True), (BARE, "bf16", True)]
    rows = []
    for name, batch in scale.batches.items():
        for stage, ways in {"joint": joint, "adapt": joint[:2]}.items():
            what = f"{name}, {stage}, batch {batch}"
            rows += [Case("training", what, *way, batch, training) for way in ways]
    return rows
