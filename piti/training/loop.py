"""The training loop."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

import piti
from piti.baselines import BaselineNetwork, ImageNetwork
from piti.core.devices import usual_workers
from piti.core.distributed import together
from piti.core.errors import UserError, option
from piti.core.seeding import derive_seed
from piti.data.batches import Batches, BatchStream, TrainingBatch, loader, workers_watched
from piti.data.order import numbers_of
from piti.data.problems import Tally
from piti.models import Translator
from piti.models.compiling import compile_blocks
from piti.training.adversarial import LossOutput
from piti.training.baseline import BaselineObjective
from piti.training.build import Run
from piti.training.distill import DistillationObjective
from piti.training.distributed import is_sharded, lay_out, prepared, release, unsynced
from piti.training.divergence import check_finite
from piti.training.ema import Weights, whole
from piti.training.metrics import Ledger, Mean, sum_of
from piti.training.monitor import Meter, StopRequest, training_bar
from piti.training.objectives import DiffusionObjective, Objective
from piti.training.run_folder import load_state
from piti.training.run_model import write_run_model
from piti.training.run_state import RunError, RunState, data_state, matching_state, other_contents
from piti.training.scaling import adversary_scaler, backward, clipped
from piti.training.stages import Stage, build_optimizer, freeze_all_but, lay_out_moments


class TrainingInterrupted(UserError):
    """The run was stopped and saved. The message says how to continue."""


def objective_of(run: Run) -> Objective:
    """The objective of a run: baselines have their own losses and adversary, students a teacher."""
    network, recipe = run.translator, run.recipe
    if isinstance(network, BaselineNetwork):
        return BaselineObjective(recipe, run.condition, network.baseline, run.perceptual, run.accelerator, run.train)
    given = (recipe, run.condition, run.perceptual, run.accelerator, run.discriminator, run.space)
    return DiffusionObjective(*given) if run.teacher is None else DistillationObjective(*given, teacher=run.teacher)


class Trainer:
    """Trains a run's stages in order, and updates its folder."""

    def __init__(self, run: Run, console: Console) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.console, self.accelerator = run, recipe, console, run.accelerator
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.objective = objective_of(run)
        sharded = is_sharded(self.accelerator)
        self.translator = run.translator if sharded else run.translator.to(self.device)
        freeze_all_but(self.translator, recipe.trained, recipe.lora)
        self.weights = Weights(self.translator, recipe.ema, sharded)
        self.accelerator.register_for_checkpointing(self.weights)
        low_res, seed, max_bad = self.objective.low_res, recipe.seed, recipe.data.max_bad
        self.stream = BatchStream(run.train, recipe.batch, seed, self.rank, self.world, low_res, max_bad)
        self.tally = Tally(max_bad, run.folder.skipped_of(self.rank))
        self.validation = None if run.validation is None else self.objective.validator(run.validation)
        self.of_data = data_state(run.train, run.validation)
        self.state = RunState(
            step=0,
            stage=recipe.stages[0].name,
            within=0,
            images_seen=0,
            seconds=0.0,
            processes=self.world,
            condition=run.condition.to_config(),
            version=piti.__version__,
            prior_sha256=run.adapted.config.sha256 if run.adapted else None,
            teacher_sha256=run.frozen_digest(),
            begun_sha256=run.begun_sha256,
            **self.of_data,
        )
        self.stop = StopRequest(console, alone=self.world == 1)
        self.scaler = adversary_scaler(self.accelerator, recipe.adversarial)
        self.ledger = Ledger(self.accelerator)
        self.checked: list[dict[str, float]] = []
        """Metrics of steps that were fetched but not shown yet."""

    # The loop

    def fit(self, resume_from: Path | None) -> Path:
        """Train to the end of the last stage, and return the folder of the model.

        Raises RunError if the checkpoint has other data, TrainingDiverged, and TrainingInterrupted after Ctrl-C,
        SIGTERM or SIGHUP.
        """
        with together():
            if resume_from is not None:
                self._go_on(matching_state(resume_from, self.state, self.recipe))
            if self.accelerator.is_main_process:
                self.run.folder.forget_after(self.state.step)
        with workers_watched(), self.stop.listening(), training_bar(self.console, self.recipe, self.state) as bar:
            for stage, done in self.recipe.stages_left(self.state.step):
                self.run_stage(stage, done, resume_from if done else None, bar)
        return self.run.folder.model

    def _go_on(self, saved: RunState) -> None:
        """Continue from a checkpoint's state, and report changed data."""
        changed = other_contents(saved, self.of_data)
        if changed is not None:
            self.console.log(changed)
        self.state = replace(saved, **self.of_data)

    def run_stage(self, stage: Stage, within: int, resume_from: Path | None, bar: Meter) -> None:
        """Train one stage from its step `within` to its end, from its own checkpoint if there is one."""
        model, optimizer, learning = self.begin(stage, resume_from)
        bar.stage(stage.name)
        if stage.too_late():
            self.console.log(f"stage '{stage.name}': {stage.too_late()}")
        batches = self._batches(stage.steps - within)
        while within < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = stage.lr_at(within)
            self.objective.set_rates(stage.lr_at(within) / stage.lr)
            self.train_step(model, optimizer, learning, batches, within)
            within += 1
            self._advance(stage, within, bar)
            bar.wait(batches.waited())
            self._after_step(stage, within, model, bar)
        self.weights.end_stage()
        adversary = self.objective.adversary
        release(self.accelerator, model, *([adversary.network] if adversary else []))

    def begin(self, stage: Stage, resume_from: Path | None = None) -> tuple[Any, Any, list[torch.nn.Parameter]]:
        """The network and optimiser of a stage, ready for `train_step`, and the trained parameters.

        A checkpoint contains the optimiser of its stage, so that stage loads it, even at its end.
        """
        self.translator = self.weights.begin_stage()
        self._made_fast()
        learning = freeze_all_but(self.translator, stage.trains, self.recipe.lora)
        optimizer = build_optimizer(learning, stage, self.recipe.optimizer)
        model, optimizer = prepared(self.accelerator, self.recipe, self.translator, optimizer)
        learning = [parameter for parameter in self.translator.parameters() if parameter.requires_grad]  # or shards
        self.weights.prepared(self.device)
        self.objective.begin(stage)
        adversary = self.objective.adversary
        if adversary is not None and self.scaler is not None:
            adversary.optimizer.scaler = self.scaler
        if resume_from is not None:
            with together():
                load_state(self.accelerator, resume_from)
            for one in (optimizer, *([adversary.optimizer] if adversary else [])):
                lay_out_moments(one)
            self.write_model()  # it may lag behind the checkpoint
        model.train()
        return model, optimizer, learning

    def train_step(
        self,
        model: Any,
        optimizer: Any,
        learning: list[torch.nn.Parameter],
        batches: Iterator[TrainingBatch],
        within: int,
    ) -> None:
        """One step of the translator's optimiser and of the discriminator's, if any: losses, backward, step, average.
        Metrics go into the ledger; on a CPU, where that is free, they are checked before the step is taken."""
        step, parts, adversary = self.state.step, self.recipe.accumulation, self.objective.adversary
        torch.manual_seed(derive_seed(self.recipe.seed, "step", self.rank, step))  # for dropout
        rows: list[dict[str, Mean]] = []
        keys: list[str] = []
        for part in range(parts):
            batch = next(batches)
            keys += batch.keys
            waits = part + 1 < parts
            networks = [model, *([adversary.network] if adversary else [])]
            with unsynced(self.accelerator, *networks) if waits else contextlib.nullcontext():
                samples = numbers_of(step * parts + part, len(batch.image), self.rank, self.world)
                output = self.losses(model, batch, samples, within)
                backward(self.accelerator, optimizer, output.total / parts)
                rows.append({"loss": Mean.of(output.total), **output.metrics})
                if adversary is not None and output.adversarial is not None:
                    loss, metrics = self.objective.discriminator_loss(output.adversarial, samples)
                    backward(self.accelerator, adversary.optimizer, loss / parts)
                    rows[-1] |= metrics
        norm = clipped(self.accelerator, optimizer, learning, self.recipe.optimizer.clip)
        metrics = sum_of(rows) | {"grad_norm": _of_norm(norm)}
        critic = adversary if "discriminator" in metrics else None  # it has gradients once it acts
        if critic is not None:
            norm = clipped(self.accelerator, critic.optimizer, critic.network.parameters(), math.inf)
            metrics["discriminator_grad_norm"] = _of_norm(norm)
        self.ledger.add(step + 1, keys, metrics)
        if self.device.type == "cpu":
            self.check()
        optimizer.step()
        optimizer.zero_grad()
        if critic is not None:
            critic.optimizer.step()
            critic.optimizer.zero_grad()
        self.weights.step()

    def _made_fast(self) -> None:
        """Set the memory layout of the network's weights for its device, and compile its blocks if the recipe says
        so."""
        lay_out(self.accelerator, self.translator)
        if isinstance(self.translator, Translator) and self.translator.head is not None:
            lay_out(self.accelerator, self.translator.head, also_on="cpu")
        if self.recipe.compile:
            compile_blocks(self.translator)

    def losses(self, model: Any, batch: TrainingBatch, samples: range, within: int) -> LossOutput:
        """The model's losses on a batch. samples: their numbers within the run."""
        return self.objective.losses(model, batch, samples, within)

    def check(self) -> None:
        """Fetch the metrics since the last call, and check that they are finite. Raises TrainingDiverged.

        Called before anything is saved, so that checkpoints are finite.
        """
        for one in self.ledger.fetched():
            check_finite(one, self.run)
            self.checked.append(one.everywhere)

    def _on_any_process(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process; the same result in all."""
        if self.world == 1:
            return flag
        flags = self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum")
        return float(cast(Tensor, flags)) > 0

    # At intervals

    def _after_step(self, stage: Stage, within: int, model: Any, bar: Meter) -> None:
        """Check, report, save and preview at their intervals. Raises TrainingInterrupted, and DataError for too many
        unusable samples."""
        if self.recipe.data.shards and self._on_any_process(self.tally.too_many):
            with together():
                self.tally.check()
        last, stop = within == stage.steps, self._on_any_process(self.stop.asked)
        saves = last or stop or self.state.step % self.recipe.checkpoint.every == 0
        previews = last or self.state.step % self.recipe.preview.every == 0
        if saves or previews or self.state.step % self.recipe.log_every == 0:
            self.check()
        self.report(stage, bar, stage.lr_at(within - 1))
        with bar.aside():
            if saves:
                self.save()
            if previews:
                self.preview(model)
        if stop and self.state.step < self.recipe.steps:
            with together():
                raise TrainingInterrupted(
                    f"stopped and saved at step {self.state.step}",
                    remedy=f"to continue, run the same command with {option('resume')}",
                )

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

    def report(self, stage: Stage, bar: Meter, rate: float) -> None:
        """Show the checked steps, and log every `log_every`-th and the last of the run. rate: its own."""
        checked, self.checked = self.checked, []
        if not self.accelerator.is_main_process:
            return
        bar.show([numbers["loss"] for numbers in checked], self.state)
        if self.state.step % self.recipe.log_every and self.state.step < self.recipe.steps:
            return
        row = {
            "step": self.state.step,
            "stage": stage.name,
            **checked[-1],
            "lr": rate,
            "loss": bar.mean_loss(),
            "images_seen": self.state.images_seen,
            "images_per_second": bar.rate * self.world,
            "waiting": bar.waiting,
            "seconds": self.state.seconds,
        }
        if self.tally.bad:
            row["skipped"] = self.tally.bad
        self.run.folder.log(row)
        bar.line(row)

    def preview(self, model: Any) -> None:
        """Validation loss and an image of samples, both with the averaged weights."""
        if self.validation is None:
            return
        with together():
            if self._takes_part:
                with self.averaged() as translator:
                    if self.accelerator.is_main_process:
                        # unwrapping keeps the autocast wrapper; networks gathered from shards have none
                        predict = translator if self.weights.sharded else self.accelerator.unwrap_model(model)
                        self._preview(translator.to(self.device), predict)
                        if self.weights.sharded:
                            torch.nn.Module.to(translator, "cpu")

    def _preview(self, translator: ImageNetwork, predict: Any) -> None:
        assert self.validation is not None
        loss = self.validation.loss(predict)
        picture = self.validation.picture(translator, predict, self.recipe.preview)
        self.run.folder.show(self.state.step, picture)
        self.run.folder.log({"step": self.state.step, "validation_loss": loss})
        self.console.log(f"step {self.state.step}: validation loss {loss:.4f}")

    def save(self) -> None:
        """Write a checkpoint, and the model with the averaged weights."""
        folder = self.run.folder
        partial = folder.partial_checkpoint(self.state.step)
        what, failed = f"the checkpoint of step {self.state.step}", None
        self.accelerator.wait_for_everyone()
        try:
            with folder.writing(what):
                self.accelerator.save_state(str(partial))
        except RunError as error:  # raised below, in every process
            failed = error
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with together(), folder.writing(what):
            if failed is not None:
                raise failed
            if self.accelerator.is_main_process:
                folder.complete_checkpoint(partial, self.state, self.recipe, self.recipe.checkpoint.keep)
        self.write_model()

    def write_model(self) -> None:
        """Update the run's `model/`."""
        with together():
            if self._takes_part:
                with self.averaged():
                    if self.accelerator.is_main_process:
                        with self.run.folder.writing("the model"):
                            write = partial(write_run_model, run=self.run, objective=self.objective)
                            self.run.folder.write_model(write)

    # Parts

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ImageNetwork]:
        """The network with its averaged weights, ready for use; see `Weights.averaged`."""
        with self.weights.averaged() as network, self.objective.settled(network):
            yield network

    @property
    def _takes_part(self) -> bool:
        """Whether this process takes part in using the averaged weights."""
        return self.accelerator.is_main_process or self.weights.sharded

    def _batches(self, steps: int) -> Batches:
        parts = self.recipe.accumulation
        start = self.state.step * parts
        workers = self.recipe.workers
        if workers is None:
            workers = usual_workers(int(os.environ.get("LOCAL_WORLD_SIZE") or self.world))
        pinned = self.device.type == "cuda"
        return loader(self.stream, start, start + steps * parts, workers, self.tally, pinned)


def _of_norm(norm: Any) -> Mean:
    """A gradient's norm, gathered from shards first."""
    return Mean.of(whole(norm)) if isinstance(norm, Tensor) else Mean(float(norm or 0.0))
