"""The training loop."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import Tensor

import piti
from piti.conditions import Condition
from piti.data.batches import Batch, BatchStream, collate, loader
from piti.data.folders import PairedFolder
from piti.diffusion.losses import Losses, diffusion_loss, timesteps_for
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import scheduler_of
from piti.errors import UserError
from piti.images import save_png
from piti.models import Translator
from piti.models.checkpoints import write_model_folder
from piti.seeding import derive_seed, generator_for
from piti.training.preview import Validation
from piti.training.progress import Meter, training_bar
from piti.training.recipes import Recipe, Stage
from piti.training.stages import build_optimizer, freeze_all_but
from piti.training.state import Progress, RunFolder, read_progress


class TrainingDiverged(UserError):
    """The loss or its gradient is not a number. The message names the step and the batch's files."""


class TrainingInterrupted(UserError):
    """The run was asked to stop, and was saved. The message says how to go on."""


@dataclass
class Run:
    """What the loop works with."""

    recipe: Recipe
    condition: Condition
    translator: Translator
    train: PairedFolder
    validation: PairedFolder | None
    folder: RunFolder


class Trainer:
    """Trains a run's stages one after the other and keeps its folder up to date."""

    def __init__(self, run: Run, console: Console | None = None) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.console = run, recipe, console or Console(stderr=True)
        self.accelerator = Accelerator(mixed_precision=recipe.precision)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.schedule = NoiseSchedule(recipe.schedule)
        self.translator = run.translator.to(self.device)
        self.ema = EMAModel(self.translator.parameters(), decay=recipe.ema, foreach=True)
        self.accelerator.register_for_checkpointing(self.ema)
        self.stream = BatchStream(run.train, recipe.batch, recipe.seed, self.rank, self.world)
        self.validation = self._validation()
        self.progress = Progress(step=0, images_seen=0, seconds=0.0, version=piti.__version__)
        self.stop_asked = False

    # The loop

    def fit(self, resume_from: Path | None) -> Path:
        """Train to the end of the last stage, and return the folder of the model.

        Raises TrainingDiverged, and TrainingInterrupted after Ctrl-C or SIGTERM.
        """
        if resume_from is not None:
            self.progress = read_progress(resume_from)
        self.run.folder.forget_after(self.progress.step)
        with self._stop_signals(), training_bar(self.console, self.recipe, self.progress) as bar:
            for stage, done in self.recipe.stages_left(self.progress.step):
                self.run_stage(stage, done, resume_from if done else None, bar)
        return self.run.folder.model

    def run_stage(self, stage: Stage, within: int, resume_from: Path | None, bar: Meter) -> None:
        """Train one stage from its step `within` to its end.

        A checkpoint holds the optimiser of the stage that wrote it, so that stage loads it, even at its end.
        """
        learning = freeze_all_but(self.translator, stage.trains)
        optimizer = build_optimizer(learning, stage, self.recipe.optimizer)
        model, optimizer = self.accelerator.prepare(self.translator, optimizer)
        if resume_from is not None:
            self.accelerator.load_state(str(resume_from))
        self.ema.to(self.device)
        model.train()
        bar.stage(stage.name)
        batches = self._batches(stage.steps - within)
        while within < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.lr_at(within)
            numbers = self.train_step(model, optimizer, learning, batches)
            within += 1
            self._advance(bar)
            last = within == stage.steps
            self.report(stage, bar, numbers | {"lr": stage.lr_at(within - 1)})
            if last or self.progress.step % self.recipe.preview.every == 0:
                self.preview(model)
            if last or self.stop_asked or self.progress.step % self.recipe.checkpoint.every == 0:
                self.save()
            if self.stop_asked and self.progress.step < self.recipe.steps:
                raise TrainingInterrupted(
                    f"stopped and saved at step {self.progress.step}; to go on, give the same command with --resume"
                )
        self.translator = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def train_step(
        self, model: Any, optimizer: Any, learning: list[torch.nn.Parameter], batches: Iterator[Batch]
    ) -> dict[str, float]:
        """One optimiser step: losses, backward, step, average."""
        step, parts = self.progress.step, self.recipe.accumulation
        torch.manual_seed(derive_seed(self.recipe.seed, "step", self.rank, step))  # for dropout
        losses, keys = [], []
        for part in range(parts):
            batch = next(batches)
            keys += batch.keys
            waits = part + 1 < parts
            with self.accelerator.no_sync(model) if waits else contextlib.nullcontext():
                losses.append(self.losses(model, batch, step * parts + part))
                self.accelerator.backward(losses[-1].total / parts)
        norm = self.accelerator.clip_grad_norm_(learning, self.recipe.optimizer.clip)
        numbers = _numbers(losses, norm)
        self._check_finite(numbers, keys)
        optimizer.step()
        optimizer.zero_grad()
        self.ema.step(self.translator.parameters())
        return numbers

    def losses(self, model: Any, batch: Batch, draw: int) -> Losses:
        """Eq. 3 with the bound on the learned variance, some conditions replaced by the null condition.

        draw: number of this backward pass within the run; with seed and rank it decides all noise.
        """
        seed, spec = self.recipe.seed, self.recipe.loss
        generator = generator_for(seed, "noise", self.rank, draw)
        x0 = batch.image.to(self.device)  # [B, 3, H, W]
        t = timesteps_for(len(x0), self.schedule, generator).to(self.device)  # [B]
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        x_t = self.schedule.q_sample(x0, t, noise)
        condition = self.run.condition.encode(batch.condition.to(self.device))  # [B, C, H, W]
        condition = self._drop(condition, generator)
        output, variance = model(x_t, t, condition)
        return diffusion_loss(output, variance, x0, x_t, t, noise, self.schedule, spec.weighting, spec.vb_weight)

    def _drop(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        dropped = torch.rand(len(condition), generator=generator) < self.recipe.condition_dropout
        null = self.run.condition.null(*condition[:, 0].shape, device=self.device)
        return torch.where(dropped.to(self.device).view(-1, 1, 1, 1), null, condition)

    def _check_finite(self, numbers: dict[str, float], keys: list[str]) -> None:
        scaled = self.recipe.precision == "fp16"  # its scaler skips steps whose gradient overflows
        if math.isfinite(numbers["loss"]) and (scaled or math.isfinite(numbers["grad_norm"])):
            return
        newest = self.run.folder.newest()
        files = [f"{pair.image}, {pair.condition}" for pair in self.run.train.pairs if pair.key in keys]
        kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        raise TrainingDiverged(
            f"step {self.progress.step + 1}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}; {kept}. "
            "Look at this batch, or lower 'lr' or 'optimizer.clip':\n  " + "\n  ".join(files)
        )

    # On a cadence

    def _advance(self, bar: Meter) -> None:
        images = self.recipe.batch * self.recipe.accumulation * self.world
        p = self.progress
        self.progress = Progress(p.step + 1, p.images_seen + images, p.seconds + bar.tick(), p.version)

    def report(self, stage: Stage, bar: Meter, numbers: dict[str, float]) -> None:
        """Show the step, and log it every `log_every` steps."""
        if not self.accelerator.is_main_process:
            return
        bar.show(numbers["loss"], self.progress)
        if self.progress.step % self.recipe.log_every:
            return
        row = {
            "step": self.progress.step,
            "stage": stage.name,
            **numbers,
            "loss": bar.mean_loss(),
            "images_seen": self.progress.images_seen,
            "images_per_second": bar.rate,
            "seconds": self.progress.seconds,
        }
        self.run.folder.log({key: _rounded(value) for key, value in row.items()})
        bar.line(row)

    def preview(self, model: Any) -> None:
        """Validation loss and a picture of samples, both with the averaged weights."""
        if self.validation is None or not self.accelerator.is_main_process:
            return
        with self._averaged():
            predict = self.accelerator.unwrap_model(model)  # keeps the autocast wrapper
            loss = self.validation.loss(predict, self.recipe.loss)
            picture = self.validation.picture(self.translator, predict, self.recipe.preview)
        save_png(picture, self.run.folder.previews / f"step-{self.progress.step:08d}.png")
        self.run.folder.log({"step": self.progress.step, "validation_loss": _rounded(loss)})
        self.console.log(f"step {self.progress.step}: validation loss {loss:.4f}")

    def save(self) -> None:
        """Write a checkpoint, and the model with the averaged weights."""
        folder, step = self.run.folder, self.progress.step
        partial = folder.partial_checkpoint(step)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder.complete_checkpoint(partial, self.progress, self.recipe, self.recipe.checkpoint.keep)
            with self._averaged():
                folder.write_model(self._write_model)
        self.accelerator.wait_for_everyone()

    def _write_model(self, target: Path) -> None:
        bare = self.accelerator.unwrap_model(self.translator, keep_fp32_wrapper=False)
        parts = {"base": bare, "scheduler": scheduler_of(self.recipe.schedule)}
        write_model_folder(target, parts, self.run.condition.to_config(), defaults={})
        shutil.copy(self.run.folder.root / "recipe.yaml", target)

    # Parts

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, and evaluation mode."""
        parameters = list(self.translator.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.translator.eval()
        try:
            yield
        finally:
            self.ema.restore(parameters)
            self.translator.train()

    def _batches(self, steps: int) -> Iterator[Batch]:
        parts = self.recipe.accumulation
        start = self.progress.step * parts
        return iter(loader(self.stream, start, start + steps * parts, self.recipe.workers))

    def _validation(self) -> Validation | None:
        held_out = self.run.validation
        if held_out is None or len(held_out) == 0:
            return None
        batch = collate([held_out.center(k) for k in range(len(held_out))])
        batch.image, batch.condition = batch.image.to(self.device), batch.condition.to(self.device)
        return Validation(self.run.condition, batch, self.schedule, self.recipe.seed)

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop after the step in hand; a second one stops at once."""

        def ask(number: int, frame: Any) -> None:
            if self.stop_asked:
                raise KeyboardInterrupt
            self.stop_asked = True
            self.console.log("stopping after this step; once more to stop at once without saving")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _numbers(losses: list[Losses], norm: Tensor | float | None) -> dict[str, float]:
    """What a step is judged by: means over its backward passes."""
    count = len(losses)
    return {
        "loss": sum(part.total.item() for part in losses) / count,
        "simple": sum(part.simple.mean().item() for part in losses) / count,
        "vb": sum(part.vb.mean().item() for part in losses) / count,
        "grad_norm": float(norm if norm is not None else 0.0),
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
