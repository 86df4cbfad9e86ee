"""Tiny models with weights derived from their tensors' names, and inputs for them and for bundled models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.conditions import TextCondition, condition_from_config
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.models import Translator
from piti.pipelines.pipeline import PITIPipeline
from tests.evaluation.seen import NOISELESS, baseline_pipeline
from tests.recorded import recipe_tensor

CLASSES: dict[str, Any] = {
    "names": ["sky", "road", "car"],
    "ids": [0, 1, 2],
    "colours": [[128, 128, 128], [128, 64, 128], [64, 0, 128]],
}
ENCODER: dict[str, Any] = {"size": 16, "channels": [8, 16, 16], "width": 16, "layers": 1, "heads": 2, "norm_groups": 4}
ENCODER |= {"residuals": True}
UNET: dict[str, Any] = {"channels": [16, 32], "layers": 1, "attention": [False, True], "head_dim": 8, "token_width": 16}
UNET |= {"norm_groups": 8}
MASK = {"kind": "mask", "classes": CLASSES}


def piti(*arguments: object) -> str:
    """Run a command in this process; what it prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


# Models


def draw_weights(network: torch.nn.Module) -> None:
    """Give a network weights that follow from the names and shapes of its tensors."""
    state = network.state_dict()
    drawn = {key: recipe_tensor(key, tuple(value.shape)) for key, value in state.items() if value.is_floating_point()}
    network.load_state_dict(state | drawn)
    network.eval()


def base(**changes: Any) -> Translator:
    """A translator that makes images of 16 px."""
    specs = {"encoder_spec": ENCODER, "unet_spec": UNET} | changes
    network = Translator(**specs, image_size=16, patch_size=2)
    draw_weights(network)
    return network


def upsampler() -> Translator:
    """A translator that enlarges 16 px to 32 and reads the condition too."""
    encoder = ENCODER | {"size": 32}
    network = Translator(encoder_spec=encoder, unet_spec=UNET, image_size=32, patch_size=2, low_res=16)
    draw_weights(network)
    return network


def save_models(folder: Path) -> None:
    """Write the models cascade, sketch, text, several and baseline."""
    mask, sketch = condition_from_config(MASK), condition_from_config({"kind": "sketch", "clip": 16})
    parts = {"kind": "several", "parts": {"mask": MASK, "sketch": {"kind": "sketch", "clip": 8}}}
    several = condition_from_config(parts)
    text = {"vocabulary": 256, "context": 12, "width": 16, "layers": 1, "heads": 2}
    linear, usual = ScheduleSpec(betas="linear", prediction="epsilon"), ScheduleSpec()
    fast: dict[str, Any] = {"steps": 2, "upsampler_steps": 2, "upsampler_guidance": 0.5}
    pipelines = {
        "cascade": PITIPipeline(base(), scheduler_of(usual), mask, upsampler(), scheduler_of(linear), fast),
        "sketch": PITIPipeline(base(encoder_spec=ENCODER | {"in_channels": 1}), scheduler_of(usual), sketch),
        "text": PITIPipeline(base(encoder_spec=None, text_spec=text), scheduler_of(usual), TextCondition(context=12)),
        "several": PITIPipeline(
            base(encoder_spec=ENCODER | {"in_channels": several.channels}), scheduler_of(usual), several
        ),
        "baseline": baseline_pipeline(NOISELESS),
    }
    draw_weights(pipelines["baseline"].base)
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)


# Inputs


def mask_file(path: Path, moved: int = 0, classes: tuple[int, ...] = (0, 1, 2), repeat: int = 1) -> Path:
    """A mask, 40 x 30: sky over a road with a car, which may have moved."""
    sky, road, car = classes
    labels = np.full((30, 40), sky, np.uint8)
    labels[15:] = road
    labels[11:19, 8 + moved : 20 + moved] = car
    Image.fromarray(labels.repeat(repeat, 0).repeat(repeat, 1)).save(path)
    return path


def street_file(path: Path) -> Path:
    """The same in classes of the bundled model, with a building and a tree."""
    labels = np.zeros((30, 40), np.uint8)
    labels[6:, :14], labels[8:, 30:] = 1, 5
    labels[17:], labels[13:21, 16:28] = 3, 8
    Image.fromarray(labels.repeat(3, 0).repeat(3, 1)).save(path)
    return path


def sketch_file(path: Path, width: int = 40, height: int = 30) -> Path:
    """Lines, white on black."""
    lines = np.zeros((height, width), np.uint8)
    lines[height // 2], lines[:, width // 3] = 255, 255
    for k in range(min(width, height)):
        lines[k, k] = 255
    Image.fromarray(lines).save(path)
    return path


def photograph_file(path: Path) -> Path:
    """A photograph of blocks, 40 x 30."""
    blocks = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(blocks.repeat(5, 0).repeat(5, 1)).save(path)
    return path


def pairs(root: Path) -> Path:
    """Ten photographs of 32 x 32 with masks, two of them for validation."""
    random = np.random.RandomState(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    classes = [
        {"id": k, "name": name, "color": colour}
        for k, name, colour in zip(CLASSES["ids"], CLASSES["names"], CLASSES["colours"], strict=True)
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    keys = [f"scene-{k}" for k in range(10)]
    for key in keys:
        label = random.randint(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(label).save(root / "labels" / f"{key}.png")
        Image.fromarray(np.stack([label * 100, 255 - label * 80, label], 2)).save(root / "images" / f"{key}.png")
    (root / "splits.json").write_text(json.dumps({"train": keys[:8], "val": keys[8:]}))
    return root


# Recipes


def base_recipe(root: Path, steps: int = 20, **changes: Any) -> dict[str, Any]:
    """A recipe of two stages: the encoder alone, then all."""
    half = steps // 4
    values: dict[str, Any] = {
        "name": "unchanged",
        "model": {"image_size": 16, "patch_size": 2, "encoder": ENCODER, "unet": UNET},
        "data": {"root": str(root), "size": 16},
        "stages": [
            {"name": "adapt", "trains": ["encoder"], "steps": half, "lr": 1e-3},
            {"name": "joint", "steps": steps - half, "lr": 1e-3, "decay": 0.5},
        ],
        "batch": 4,
        "precision": "no",
        "workers": 0,
        "log_every": 1,
        "preview": {"every": steps, "count": 1, "steps": 1},
        "checkpoint": {"every": steps, "keep": 2},
    }
    return values | changes


def upsampler_recipe(root: Path, steps: int = 20, **changes: Any) -> dict[str, Any]:
    """A recipe of an upsampler with an adversary."""
    adversarial = {"kind": "wgan_gp", "weight": 0.1, "after": 2, "noise": [0.0, 0.75]}
    unet = {"channels": [16, 32], "attention": [False, False], "layers": 1, "token_width": None, "norm_groups": 8}
    values: dict[str, Any] = {
        "model": {"image_size": 32, "low_res": 16, "patch_size": 2, "encoder": None, "unet": unet},
        "condition": {"kind": "none"},
        "condition_dropout": 0.0,
        "data": {"root": str(root), "size": 32, "crop_scale": [1.0, 1.0]},
        "discriminator": {"channels": [4, 8]},
        "stages": [{"name": "upsample", "trains": ["unet"], "steps": steps, "lr": 1e-3, "adversarial": adversarial}],
    }
    return base_recipe(root, steps, **(values | changes))
