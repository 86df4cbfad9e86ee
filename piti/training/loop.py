"""The training loop."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

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
from piti.training.recipes import Recipe, Stage, write_recipe
from piti.training.stages import build_optimizer, freeze_all_but
from piti.training.state import RECIPE_FILE, RunError, RunFolder, RunState, read_state


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
    accelerator: Accelerator


class Trainer:
    """Trains a run's stages one after the other and keeps its folder up to date."""

    def __init__(self, run: Run, console: Console) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.console, self.accelerator = run, recipe, console, run.accelerator
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.schedule = NoiseSchedule(recipe.schedule)
        self.translator = run.translator.to(self.device)
        self.ema = EMAModel(self.translator.parameters(), decay=recipe.ema, foreach=True)
        self.accelerator.register_for_checkpointing(self.ema)
        self.stream = BatchStream(run.train, recipe.batch, recipe.seed, self.rank, self.world)
        self.validation = self._validation()
        self.state = RunState(
            step=0,
            stage=recipe.stages[0].name,
            within=0,
            images_seen=0,
            seconds=0.0,
            processes=self.world,
            pairs=len(run.train),
            condition=run.condition.to_config(),
            version=piti.__version__,
        )
        self.stop_asked = False

    # The loop

    def fit(self, resume_from: Path | None) -> Path:
        """Train to the end of the last stage, and return the folder of the model.

        Raises RunError if the checkpoint is of other data, TrainingDiverged, and TrainingInterrupted after
        Ctrl-C or SIGTERM.
        """
        if resume_from is not None:
            self.state = self._state_of(resume_from)
        if self.accelerator.is_main_process:
            self.run.folder.forget_after(self.state.step)
        with self._stop_signals(), training_bar(self.console, self.recipe, self.state) as bar:
            for stage, done in self.recipe.stages_left(self.state.step):
                self.run_stage(stage, done, resume_from if done else None, bar)
        return self.run.folder.model

    def run_stage(self, stage: Stage, within: int, resume_from: Path | None, bar: Meter) -> None:
        """Train one stage from its step `within` to its end.

        A checkpoint holds the optimiser of the stage that wrote it, so that stage loads it, even at its end.
        """
        learning = freeze_all_but(self.translator, stage.trains)
        optimizer = build_optimizer(learning, stage, self.recipe.optimizer)
        model, optimizer = self.accelerator.prepare(self.translator, optimizer)
        self.ema.to(self.device)
        if resume_from is not None:
            self.accelerator.load_state(str(resume_from))
            self.write_model()  # it may lag behind the checkpoint
        model.train()
        bar.stage(stage.name)
        batches = self._batches(stage.steps - within)
        while within < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.lr_at(within)
            numbers = self.train_step(model, optimizer, learning, batches)
            within += 1
            self._advance(stage, within, bar)
            self.report(stage, bar, numbers | {"lr": stage.lr_at(within - 1)})
            last, stop = within == stage.steps, self._on_any_process(self.stop_asked)
            if last or stop or self.state.step % self.recipe.checkpoint.every == 0:
                self.save()
            if last or self.state.step % self.recipe.preview.every == 0:
                self.preview(model)
            if stop and self.state.step < self.recipe.steps:
                raise TrainingInterrupted(
                    f"stopped and saved at step {self.state.step}; to go on, give the same command with --resume"
                )
        self._release(model)

    def train_step(
        self, model: Any, optimizer: Any, learning: list[torch.nn.Parameter], batches: Iterator[Batch]
    ) -> dict[str, float]:
        """One optimiser step: losses, backward, step, average."""
        step, parts = self.state.step, self.recipe.accumulation
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
        scaled = self.accelerator.scaler is not None  # the scaler skips steps whose gradient overflows
        broken = not math.isfinite(numbers["loss"]) or not (scaled or math.isfinite(numbers["grad_norm"]))
        if not self._on_any_process(broken):
            return
        newest = self.run.folder.newest()
        where = f"step {self.state.step + 1}: loss {numbers['loss']}, gradient norm {numbers['grad_norm']}"
        kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        if not broken:
            raise TrainingDiverged(f"{where} here, not a number in another process; {kept}")
        files = [f"{pair.image}, {pair.condition}" for pair in self.run.train.pairs if pair.key in keys]
        raise TrainingDiverged(
            f"{where}; {kept}. Look at this batch, or go on with --resume and a lower rate "
            "(--set stages.0.lr=… or --set optimizer.clip=…):\n  " + "\n  ".join(files)
        )

    def _on_any_process(self, flag: bool) -> bool:
        """Whether the flag is set on one process at least; every process gets the same answer."""
        if self.world == 1:
            return flag
        flags = self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum")
        return float(cast(Tensor, flags)) > 0

    def _release(self, model: Any) -> None:
        """Undo `prepare`, so that the next stage can prepare the network anew, autocast included."""
        bare = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)
        self.accelerator.free_memory()

    # On a cadence

    def _advance(self, stage: Stage, within: int, bar: Meter) -> None:
        images = self.recipe.batch * self.recipe.accumulation * self.world
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            stage=stage.name,
            within=within,
            images_seen=self.state.images_seen + images,
            seconds=self.state.seconds + bar.tick(),
        )

    def report(self, stage: Stage, bar: Meter, numbers: dict[str, float]) -> None:
        """Show the step, and log it every `log_every` steps."""
        if not self.accelerator.is_main_process:
            return
        bar.show(numbers["loss"], self.state)
        if self.state.step % self.recipe.log_every:
            return
        row = {
            "step": self.state.step,
            "stage": stage.name,
            **numbers,
            "loss": bar.mean_loss(),
            "images_seen": self.state.images_seen,
            "images_per_second": bar.rate * self.world,
            "seconds": self.state.seconds,
        }
        self.run.folder.log({key: _rounded(value) for key, value in row.items()})
        bar.line(row)

    def preview(self, model: Any) -> None:
        """Validation loss and a picture of samples, both with the averaged weights."""
        if self.validation is None or not self.accelerator.is_main_process:
            return
        with self._averaged():
            predict = self.accelerator.unwrap_model(model)  # keeps the autocast wrapper
            loss = self.validation.loss(predict)
            picture = self.validation.picture(self.translator, predict, self.recipe.preview)
        save_png(picture, self.run.folder.previews / f"step-{self.state.step:08d}.png")
        self.run.folder.log({"step": self.state.step, "validation_loss": _rounded(loss)})
        self.console.log(f"step {self.state.step}: validation loss {loss:.4f}")

    def save(self) -> None:
        """Write a checkpoint, and the model with the averaged weights."""
        folder = self.run.folder
        partial = folder.partial_checkpoint(self.state.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder.complete_checkpoint(partial, self.state, self.recipe, self.recipe.checkpoint.keep)
        self.write_model()

    def write_model(self) -> None:
        """Bring the run's `model/` up to date."""
        if self.accelerator.is_main_process:
            with self._averaged():
                self.run.folder.write_model(self._write_model)
        self.accelerator.wait_for_everyone()

    def _write_model(self, target: Path) -> None:
        parts = {"base": self.translator, "scheduler": scheduler_of(self.recipe.schedule)}
        write_model_folder(target, parts, self.run.condition.to_config(), defaults={})
        write_recipe(self.recipe, target / RECIPE_FILE)

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
        start = self.state.step * parts
        return iter(loader(self.stream, start, start + steps * parts, self.recipe.workers))

    def _validation(self) -> Validation | None:
        if self.run.validation is None:
            return None
        count = min(len(self.run.validation), self.recipe.preview.judged)
        samples = [self.run.validation.center(k) for k in range(count)]
        step = self.recipe.batch
        batches = [collate(samples[k : k + step]).to(self.device) for k in range(0, count, step)]
        return Validation(self.run.condition, batches, self.schedule, self.recipe.seed)

    def _state_of(self, checkpoint: Path) -> RunState:
        """A checkpoint's state. Raises RunError if what else decides the run has changed."""
        saved, now = read_state(checkpoint), self.state
        for what in ("processes", "pairs", "condition"):
            old, new = getattr(saved, what), getattr(now, what)
            if old != new:
                raise RunError(f"{checkpoint} was trained with {what} = {old}, now it is {new}; give another --out")
        places = [(stage.name, done) for stage, done in self.recipe.stages_left(saved.step)]
        if (saved.stage, saved.within) not in places[:1]:
            raise RunError(
                f"{checkpoint} is at step {saved.within} of stage '{saved.stage}', which the recipe does not have "
                "there; undo the change of 'stages', or give another --out"
            )
        return saved

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop after the step in hand; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            yield
            return
        owner = os.getpid()

        def ask(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a worker of the loader, which ends when its owner does
                return
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
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
