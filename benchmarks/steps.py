"""Training steps in three ways: the package's, a bare loop's, and the released code's operations.

All three train the network of a recipe's stage on the device that accelerate selects. The package's step is everything
in `piti train` except logging, previews and checkpoints: loading, losses, EMA, checks. The bare loop has its batch on
the device and only runs forward, eq. 3's loss, backward, clipping and a fused AdamW in the recipe's precision: its lead
over an upsampler's stage is the cost of the image losses. The released way has the released trainer's operations around
the same network (not the released network): float32, losses sorted into quarters of the timesteps and read one by one,
norms of gradients and weights read per tensor, AdamW and EMA per parameter.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from piti.core.devices import usual_workers
from piti.data.batches import BatchStream, loader
from piti.diffusion.losses import Losses, diffusion_loss
from piti.diffusion.schedule import NoiseSchedule
from piti.models import Translator
from piti.models.compiling import compile_blocks
from piti.training import Recipe, Stage
from piti.training.build import (
    Run,
    build_condition,
    build_discriminator,
    build_perceptual,
    build_translator,
    low_res_of,
    open_data,
)
from piti.training.distributed import build_accelerator
from piti.training.loop import Trainer
from piti.training.run_folder import RunFolder
from piti.training.stages import FUSED, freeze_all_but

MANY = 100_000
"""More steps than any measurement runs."""
TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def at_once(stage: Stage) -> Stage:
    """The stage with image losses from the start, and without an end."""
    losses = {name: getattr(stage, name) for name in ("perceptual", "adversarial")}
    acting = {name: loss.model_copy(update={"after": 0}) for name, loss in losses.items() if loss is not None}
    return stage.model_copy(update={"steps": MANY, **acting})


class Ours:
    """The package's step."""

    def __init__(self, recipe: Recipe, number: int, folder: Path, network: Translator | None = None) -> None:
        """number: of the stage, from 0; folder: of the run, to which nothing is written."""
        stage = at_once(recipe.stages[number])
        recipe = recipe.model_copy(update={"stages": (stage,)})
        accelerator, condition = build_accelerator(recipe), build_condition(recipe)
        training, _ = open_data(recipe, condition)
        network = build_translator(recipe, condition) if network is None else network
        judges = {"perceptual": build_perceptual(recipe), "discriminator": build_discriminator(recipe, condition)}
        run = Run(recipe, condition, network, training, None, RunFolder(folder), accelerator, **judges)  # type: ignore[arg-type]
        self.trainer = Trainer(run, Console(quiet=True))
        self.given = self.trainer.begin(stage)
        workers = usual_workers() if recipe.workers is None else recipe.workers
        parts = recipe.accumulation
        self.batches = loader(self.trainer.stream, 0, MANY * parts, workers, pinned=accelerator.device.type == "cuda")

    def __call__(self) -> None:
        trainer = self.trainer
        trainer.train_step(*self.given, self.batches, trainer.state.step)
        trainer.state = replace(trainer.state, step=trainer.state.step + 1)
        if trainer.state.step % trainer.recipe.log_every == 0:
            trainer.check()
        trainer.checked.clear()


class Plain:
    """A network of a recipe's stage, and eq. 3's loss on a batch on the device."""

    def __init__(self, recipe: Recipe, number: int, device: torch.device, network: Translator | None = None) -> None:
        condition = build_condition(recipe)
        training, _ = open_data(recipe, condition)
        batch = BatchStream(training, recipe.batch, recipe.seed, low_res=low_res_of(recipe))[0].to(device)
        network = build_translator(recipe, condition) if network is None else network
        self.translator, self.device, self.batch = network.to(device).train(), device, batch
        self.encoded, self.schedule = condition.encode(batch.condition), NoiseSchedule(recipe.schedule)
        self.learning = freeze_all_but(self.translator, recipe.stages[number].trains)

    def losses(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Losses]:
        """Timesteps and losses. dtype: of autocast."""
        x0, autocast = self.batch.image, dtype != torch.float32
        t = torch.randint(0, len(self.schedule), (len(x0),))
        noise = torch.randn_like(x0)
        x_t = self.schedule.q_sample(x0, t, noise)
        with torch.autocast(self.device.type, dtype if autocast else None, enabled=autocast):
            output, variance = self.translator(x_t, t.to(self.device), self.encoded, self.batch.low_res)
        variance = None if variance is None else variance.float()
        return t, diffusion_loss(output.float(), variance, x0, x_t, t, noise, self.schedule)


class Bare(Plain):
    """A plain loop's step, in the recipe's precision."""

    def __init__(self, recipe: Recipe, number: int, device: torch.device, network: Translator | None = None) -> None:
        super().__init__(recipe, number, device, network)
        self.dtype = TYPES[recipe.precision]
        if recipe.compile:
            compile_blocks(self.translator)
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4, fused=device.type in FUSED)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def __call__(self) -> None:
        _, losses = self.losses(self.dtype)
        self.scaler.scale(losses.total).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Released(Plain):
    """The released trainer's operations around the network, in float32."""

    def __init__(self, recipe: Recipe, number: int, device: torch.device, network: Translator | None = None) -> None:
        super().__init__(recipe, number, device, network)
        self.optimizer = torch.optim.AdamW(self.learning, lr=1e-4, foreach=False, fused=False)
        self.average = [parameter.detach().clone() for parameter in self.translator.parameters()]
        self.logged: dict[str, float] = {}

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        t, losses = self.losses()
        for name in ("simple", "vb", "each"):
            for at, loss in zip(t.tolist(), getattr(losses, name).detach(), strict=True):
                self.logged[f"{name}_q{4 * at // len(self.schedule)}"] = loss.item()
        losses.each.mean().backward()
        for name, values in (("param", self.learning), ("grad", [parameter.grad for parameter in self.learning])):
            norms = [0.0 if value is None else value.detach().norm().item() for value in values]
            self.logged[f"{name}_norm"] = math.hypot(*norms)
        self.optimizer.step()
        for average, parameter in zip(self.average, self.translator.parameters(), strict=True):
            average.mul_(0.9999).add_(parameter.detach(), alpha=1 - 0.9999)
