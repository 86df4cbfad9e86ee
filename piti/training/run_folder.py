"""A run on disk: atomic checkpoints, metrics and the recipe."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors import SafetensorError

from piti.core.errors import UserError, option
from piti.core.files import check_place, flush, flush_all, follow_umask
from piti.core.images import ImageError, save_png
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import differences, is_written, read_recipe, write_recipe
from piti.training.run_lock import RunLock
from piti.training.run_state import RUN_FILE, RunError, RunState, not_whole
from piti.training.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

PARTIAL = ".partial"
OLD = ".old" + PARTIAL
RECIPE_FILE = "recipe.yaml"


_CHECKPOINT = re.compile(r"step-\d+")
"""Name of a complete checkpoint. Others, such as `step-00001000-kept`, are the user's copies."""

_DISK = re.compile(
    r"No space left|File too large|quota|Read-only|Input/output error|PytorchStreamWriter|I/O error"
    r"|inline_container.* unexpected pos|iostream error",  # the last two: from torch, while saving
    re.I,
)

_CUT_OFF = re.compile(r"PytorchStreamReader|Number of custom checkpoints")
"""Errors of torch and accelerate for incomplete or missing files."""


def _of_the_disk(error: BaseException) -> str | None:
    """The message of a disk error, also through libraries that hide it; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    first = (str(error).splitlines() or [""])[0]
    return first if _DISK.search(first) else None


class RunFolder:
    """The folder of a run.

    recipe.yaml (recipe-given.yaml: the user's file, if flags changed it), metrics.jsonl, skipped.txt (skipped samples),
    previews/, checkpoints/step-NNNNNNNN/ (weights, EMA, optimiser, step, random state, recipe, package version), model/
    (a pipeline with the averaged weights).

    A checkpoint is written under a temporary name, flushed to disk, and renamed when complete.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.checkpoints = self.root / "checkpoints"
        self.previews = self.root / "previews"
        self.model = self.root / "model"
        self.metrics = self.root / "metrics.jsonl"
        self.trackers = Trackers()
        self.lock = RunLock(self.root)

    def check(self, recipe: Recipe, resume: bool, locks: bool = True) -> Path | None:
        """The checkpoint to continue from, or None for a new run. Changes nothing.

        locks: whether this process takes the lock; others of the same run do not check it. Raises RunError if the
        folder is inside a data folder, or contains a run without `resume`, or a `model` without a checkpoint,
        RunLockedError if another process trains in it, OutputError if it is not writable, and RecipeError if the recipe
        differs from that run's in keys that must not change.
        """
        check_place(self.root)
        self._check_apart(recipe)
        if locks:
            self.lock.check()
        newest = self.newest()
        if not resume and (newest or self.metrics.exists()):
            raise RunError(
                f"{self.root} already contains a run",
                remedy=f"add {option('resume')} to continue it, or give another {option('out')}",
            )
        if newest is None and self.model.exists():  # a run writes it after a checkpoint
            raise RunError(
                f"{self.model} exists without a checkpoint to continue from, and this run would replace it",
                remedy=f"give another {option('out')}, or move it away",
            )
        if newest is not None:
            if not (newest / RECIPE_FILE).is_file():
                raise not_whole(newest, FileNotFoundError(f"there is no {RECIPE_FILE}"))
            changed = differences(read_recipe(newest / RECIPE_FILE), recipe)
            if changed:
                raise RecipeError(
                    f"{newest} was trained with another recipe; undo these changes or give another {option('out')}:"
                    + "".join(f"\n  {change}" for change in changed)
                )
        return newest

    def _check_apart(self, recipe: Recipe) -> None:
        """Raises RunError if previews would be written into a folder of training images."""
        own = self.root.resolve()
        for folder in _folders_read(recipe):
            if folder.resolve() in (own, *own.parents):
                raise RunError(
                    f"lies inside {folder}, a folder of training data, and the run's previews would be added to it",
                    remedy=f"give another {option('out')}",
                    source=self.root,
                )

    def begin(self, recipe: Recipe) -> Path | None:
        """Lock and prepare the folder, and remove partial files of a killed process.

        Returns the path to which the user's file of another recipe was moved from the run's own; None if there was
        none. Raises RunLockedError; the lock is held until `lock.release`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for folder in (self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        for old in self._half_done(OLD):  # replaced except for the last rename
            final = old.with_name(old.name.removesuffix(OLD))
            if not final.exists():
                old.rename(final)
        for leftover in self._half_done(PARTIAL):
            shutil.rmtree(leftover)
        return self._keep_recipe(recipe)

    def _half_done(self, ending: str) -> list[Path]:
        """Folders of checkpoints or the model with this suffix, left by a killed process."""
        found = [path for path in self.checkpoints.glob("step-*" + ending) if path.is_dir()]
        models = (self.model.with_name(self.model.name + one) for one in (PARTIAL, OLD) if one.endswith(ending))
        return [*found, *(path for path in models if path.is_dir())]

    def _keep_recipe(self, recipe: Recipe) -> Path | None:
        """Write the run's recipe, unless the existing file is equal, so that the user's comments are kept. A different
        file of the user, such as before changes by flags, is kept under another name, which is returned."""
        path = self.root / RECIPE_FILE
        try:
            if read_recipe(path) == recipe:
                return None
        except UserError:  # missing or unreadable
            pass
        kept = None
        if path.is_file() and not is_written(path):
            kept = next(one for one in _names_beside(path) if not one.exists())
            shutil.copyfile(path, kept)
        write_recipe(recipe, path)
        return kept

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Convert disk errors within the block to a RunError. what: the object being written, such as "the model"."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, ImageError) as error:
            cause = _of_the_disk(error)
            if cause is None:
                raise
            newest = self.newest()
            kept = f"the newest complete checkpoint is {newest}" if newest else "there is no complete checkpoint yet"
            go_on = f"continue with {option('resume')}" if newest else "start again"
            raise RunError(
                f"{what} cannot be written ({cause}); {kept}",
                remedy=f"free disk space, then {go_on}",
                source=self.root,
            ) from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return (self._complete() or [None])[-1]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*") if _CHECKPOINT.fullmatch(p.name) and p.is_dir())

    def partial_checkpoint(self, step: int) -> Path:
        """The temporary folder for writing the checkpoint of this step."""
        return self.checkpoints / f"step-{step:08d}{PARTIAL}"

    def complete_checkpoint(self, partial: Path, state: RunState, recipe: Recipe, keep: int) -> Path:
        """Add state and recipe, publish the checkpoint, and delete the oldest beyond `keep`."""
        write_recipe(recipe, partial / RECIPE_FILE)
        (partial / RUN_FILE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        for weights in partial.glob("*.safetensors"):
            follow_umask(weights)
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        publish_folder(partial, final)
        for old in self._complete()[:-keep]:
            shutil.rmtree(old.rename(old.with_name(old.name + PARTIAL)))
        return final

    def write_model(self, write: Callable[[Path], None]) -> None:
        """Replace `model/` by the output of `write` in an empty folder."""
        partial = self.model.with_name(self.model.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        publish_folder(partial, self.model)

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON line to the metrics, and log its numbers to the trackers.

        Numbers are rounded to six digits; NaN and infinity become null.
        """
        row = {key: _rounded(value) for key, value in row.items()}
        with self.writing(self.metrics.name), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.trackers.log(row["step"], row)

    def show(self, step: int, picture: Image.Image) -> None:
        """Save a preview, and log it to the trackers."""
        with self.writing(f"the preview of step {step}"):
            save_png(picture, self.previews / f"step-{step:08d}.png")
        self.trackers.show(step, picture)

    def skipped_of(self, rank: int) -> Path:
        """The file in which a process lists the samples that it skipped."""
        return self.root / ("skipped.txt" if rank == 0 else f"skipped-{rank}.txt")

    def forget_after(self, step: int) -> None:
        """Remove lines logged after `step`, and a truncated last line."""
        if not self.metrics.exists():
            return
        text = self.metrics.read_text(encoding="utf-8", errors="replace")  # a crashed machine may leave anything
        kept = [line for line in text.splitlines() if _step(line) <= step]
        partial = self.metrics.with_name(self.metrics.name + ".new")
        with self.writing(self.metrics.name):
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(self.metrics)


def _names_beside(path: Path) -> Iterator[Path]:
    """Such as recipe-given.yaml, recipe-given-2.yaml, …, of recipe.yaml."""
    first = f"{path.stem}-given"
    return (path.with_stem(first if number == 1 else f"{first}-{number}") for number in count(1))


def load_state(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore the accelerator's prepared and registered objects from a checkpoint. Raises RunError if it is incomplete,
    for example after a partial copy."""
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, EOFError, SafetensorError, UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _CUT_OFF.search(str(error)):
            raise
        raise not_whole(checkpoint, error) from error


def _folders_read(recipe: Recipe) -> list[Path]:
    """Folders of images that a recipe reads, at any depth."""
    data = recipe.data
    if data.root is None or data.shards:
        return list(data.photographs)
    conditions = [data.conditions] if isinstance(data.conditions, str) else data.conditions.values()
    return [*data.photographs, *(data.root / name for name in (data.images, *conditions))]


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
    """Flush a finished folder to disk and rename it to its final name, replacing an existing one.

    Unlike `whole_folder`, it can be recovered after a killed process, see `RunFolder.begin`.
    """
    flush_all(partial)
    old = final.with_name(final.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)
