"""A run on disk: checkpoints that are complete or absent, metrics, and the recipe beside them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from piti.core.errors import UserError, option
from piti.core.files import flush, flush_all
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import differences, read_recipe, write_recipe

PARTIAL = ".partial"
OLD = ".old" + PARTIAL
RUN_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"


class RunError(UserError):
    """A run's folder cannot be used as asked. The message says what to do."""


@dataclass(frozen=True)
class RunState:
    """How far a run has come, and what else decides how it goes on."""

    step: int
    """Optimiser steps done, over all stages."""
    stage: str
    """The stage that made the last of them, and `within` how many of them are its own."""
    within: int
    images_seen: int
    seconds: float
    """Time spent training, interruptions left out."""
    processes: int
    pairs: int
    """Training pairs."""
    condition: dict[str, Any]
    """The condition's configuration, classes included."""
    version: str
    """Of the package that wrote it."""
    prior_sha256: str | None = None
    """Of the weights that low-rank adapters belong to, where a run trains such."""


class RunFolder:
    """The folder of a run.

    recipe.yaml, metrics.jsonl, skipped.txt (samples left out), previews/, checkpoints/step-NNNNNNNN/ (weights, EMA,
    optimiser, step, random state, recipe, package version), model/ (a pipeline with the averaged weights).

    A checkpoint is written under another name, flushed to the disk, and renamed when it is whole.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.checkpoints = self.root / "checkpoints"
        self.previews = self.root / "previews"
        self.model = self.root / "model"
        self.metrics = self.root / "metrics.jsonl"
        self.board: Any = None

    def check(self, recipe: Recipe, resume: bool) -> Path | None:
        """The checkpoint to go on from, or None to start afresh. Changes nothing.

        Raises RunError if the folder holds a run and `resume` is not asked for, and RecipeError if the
        recipe differs from that run's in more than a continued run may change.
        """
        newest = self.newest()
        if not resume and (newest or self.metrics.exists()):
            raise RunError(
                f"{self.root} holds a run already",
                remedy=f"add {option('resume')} to go on with it, or give another {option('out')}",
            )
        if newest is not None:
            changed = differences(read_recipe(newest / RECIPE_FILE), recipe)
            if changed:
                raise RecipeError(
                    f"{newest} was trained with another recipe; undo these changes or give another {option('out')}:"
                    + "".join(f"\n  {change}" for change in changed)
                )
        return newest

    def begin(self, recipe: Recipe) -> None:
        """Make the folder ready, clearing away what a killed process left half-done."""
        for folder in (self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        for old in self.root.rglob("*" + OLD):  # replaced but for the last rename
            final = old.with_name(old.name.removesuffix(OLD))
            if not final.exists():
                old.rename(final)
        for leftover in [*self.checkpoints.glob("*" + PARTIAL), *self.root.glob("*" + PARTIAL)]:
            shutil.rmtree(leftover)
        write_recipe(recipe, self.root / RECIPE_FILE)

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return (self._complete() or [None])[-1]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*") if not p.name.endswith(PARTIAL))

    def partial_checkpoint(self, step: int) -> Path:
        """Where the checkpoint of this step is to be written before it is whole."""
        return self.checkpoints / f"step-{step:08d}{PARTIAL}"

    def complete_checkpoint(self, partial: Path, state: RunState, recipe: Recipe, keep: int) -> Path:
        """Add state and recipe, make the checkpoint count, and drop the oldest beyond `keep`."""
        write_recipe(recipe, partial / RECIPE_FILE)
        (partial / RUN_FILE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        publish_folder(partial, final)
        for old in self._complete()[:-keep]:
            shutil.rmtree(old.rename(old.with_name(old.name + PARTIAL)))
        return final

    def write_model(self, write: Callable[[Path], None]) -> None:
        """Replace `model/` by what `write` puts into an empty folder."""
        partial = self.model.with_name(self.model.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        publish_folder(partial, self.model)

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON line to the metrics, and its numbers to TensorBoard's where `board` is open.

        Numbers are rounded to six digits; what is no number is null.
        """
        row = {key: _rounded(value) for key, value in row.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()

    def skipped_of(self, rank: int) -> Path:
        """Where a process names the samples that it left out."""
        return self.root / ("skipped.txt" if rank == 0 else f"skipped-{rank}.txt")

    def open_board(self) -> None:
        """Write to TensorBoard from now on. Raises RunError where it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError(
                "tensorboard: true needs TensorBoard; install it with pip install 'piti[track]', or leave it out"
            ) from None
        self.board = SummaryWriter(str(self.root / "tensorboard"))

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`, and a last line that was cut short."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        partial = self.metrics.with_name(self.metrics.name + ".new")
        partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.metrics)


def read_state(checkpoint: Path) -> RunState:
    """The state saved in a checkpoint."""
    return RunState(**json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8")))


def matching_state(checkpoint: Path, now: RunState, recipe: Recipe) -> RunState:
    """A checkpoint's state. Raises RunError if what else decides the run has changed since."""
    saved = read_state(checkpoint)
    for what in ("processes", "pairs", "condition", "prior_sha256"):
        old, new = getattr(saved, what), getattr(now, what)
        if old != new:
            raise RunError(
                f"{checkpoint} was trained with {what} = {old}, now it is {new}", remedy=f"give another {option('out')}"
            )
    places = [(stage.name, done) for stage, done in recipe.stages_left(saved.step)]
    if (saved.stage, saved.within) not in places[:1]:
        raise RunError(
            f"{checkpoint} is at step {saved.within} of stage '{saved.stage}', which the recipe does not have there",
            remedy=f"undo the change of 'stages', or give another {option('out')}",
        )
    return saved


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def publish_folder(partial: Path, final: Path) -> None:
    """Flush a finished folder to the disk and rename it to its final name, replacing what was there.

    Unlike `whole_folder` it leaves what a killed process needs to put things right, see `RunFolder.begin`.
    """
    flush_all(partial)
    old = final.with_name(final.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
