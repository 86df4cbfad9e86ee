"""A run on disk: checkpoints that are complete or absent, metrics, and the recipe beside them."""

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
"""The name of a complete one. Another name, such as `step-00001000-kept`, is a person's copy."""

_DISK = re.compile(
    r"No space left|File too large|quota|Read-only|Input/output error|PytorchStreamWriter|I/O error"
    r"|inline_container.* unexpected pos|iostream error",  # the last two: torch, while it saves
    re.I,
)

_CUT_OFF = re.compile(r"PytorchStreamReader|Number of custom checkpoints")
"""What torch and accelerate say of files that are not whole, or are missing."""


def _of_the_disk(error: BaseException) -> str | None:
    """What a disk says that failed, also through libraries that hide its error; none for another error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    first = (str(error).splitlines() or [""])[0]
    return first if _DISK.search(first) else None


class RunFolder:
    """The folder of a run.

    recipe.yaml (recipe-given.yaml: a person's, where flags changed it), metrics.jsonl, skipped.txt (samples left out),
    previews/, checkpoints/step-NNNNNNNN/ (weights, EMA, optimiser, step, random state, recipe, package version), model/
    (a pipeline with the averaged weights).

    A checkpoint is written under another name, flushed to the disk, and renamed when it is whole.
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
        """The checkpoint to go on from, or None to start afresh. Changes nothing.

        locks: whether this process is to take the lock; others of the same run can be here before it lets an earlier
        run's go. Raises RunError if the folder lies inside those of the data, or holds a run and `resume` is not asked
        for, or a `model` that belongs to no checkpoint, RunLockedError if another process trains in it, OutputError
        if it cannot be written into, and RecipeError if the recipe differs from that run's in more than a continued
        run may change.
        """
        check_place(self.root)
        self._check_apart(recipe)
        if locks:
            self.lock.check()
        newest = self.newest()
        if not resume and (newest or self.metrics.exists()):
            raise RunError(
                f"{self.root} holds a run already",
                remedy=f"add {option('resume')} to go on with it, or give another {option('out')}",
            )
        if newest is None and self.model.exists():  # a run writes it after a checkpoint
            raise RunError(
                f"{self.model} is there, without a checkpoint to go on from, and this run would replace it",
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
        """Raises RunError where previews would lie among the pictures that are trained on."""
        own = self.root.resolve()
        for folder in _folders_read(recipe):
            if folder.resolve() in (own, *own.parents):
                raise RunError(
                    f"lies inside {folder}, which is trained on, and the run's previews would be pictures there",
                    remedy=f"give another {option('out')}",
                    source=self.root,
                )

    def begin(self, recipe: Recipe) -> Path | None:
        """Lock the folder and make it ready, clearing away what a killed process left half-done.

        Returns where a person's text of another recipe is kept, that was in the place of the run's own; None where
        there was none. Raises RunLockedError; the lock is held until `lock.release`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for folder in (self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        for old in self._half_done(OLD):  # replaced but for the last rename
            final = old.with_name(old.name.removesuffix(OLD))
            if not final.exists():
                old.rename(final)
        for leftover in self._half_done(PARTIAL):
            shutil.rmtree(leftover)
        return self._keep_recipe(recipe)

    def _half_done(self, ending: str) -> list[Path]:
        """Folders that a killed process left under the names of checkpoints, or of the model, with this ending."""
        found = [path for path in self.checkpoints.glob("step-*" + ending) if path.is_dir()]
        models = (self.model.with_name(self.model.name + one) for one in (PARTIAL, OLD) if one.endswith(ending))
        return [*found, *(path for path in models if path.is_dir())]

    def _keep_recipe(self, recipe: Recipe) -> Path | None:
        """Write the run's recipe, unless the file that is there says the same: a person's keeps its comments. Where
        theirs says something else, as with changes by flags, it is kept beside it, and where is returned."""
        path = self.root / RECIPE_FILE
        try:
            if read_recipe(path) == recipe:
                return None
        except UserError:  # there is none, or none that can be read
            pass
        kept = None
        if path.is_file() and not is_written(path):
            kept = next(one for one in _names_beside(path) if not one.exists())
            shutil.copyfile(path, kept)
        write_recipe(recipe, path)
        return kept

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Convert disk errors within the block to a RunError. what: is written, such as "the model"."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, ImageError) as error:
            cause = _of_the_disk(error)
            if cause is None:
                raise
            newest = self.newest()
            kept = f"the newest whole checkpoint is {newest}" if newest else "there is no whole checkpoint yet"
            go_on = f"go on with {option('resume')}" if newest else "start again"
            raise RunError(
                f"{what} cannot be written ({cause}); {kept}",
                remedy=f"make room, then {go_on}",
                source=self.root,
            ) from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return (self._complete() or [None])[-1]

    def _complete(self) -> list[Path]:
        return sorted(p for p in self.checkpoints.glob("step-*") if _CHECKPOINT.fullmatch(p.name) and p.is_dir())

    def partial_checkpoint(self, step: int) -> Path:
        """Where the checkpoint of this step is to be written before it is whole."""
        return self.checkpoints / f"step-{step:08d}{PARTIAL}"

    def complete_checkpoint(self, partial: Path, state: RunState, recipe: Recipe, keep: int) -> Path:
        """Add state and recipe, make the checkpoint count, and drop the oldest beyond `keep`."""
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
        """Replace `model/` by what `write` puts into an empty folder."""
        partial = self.model.with_name(self.model.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        publish_folder(partial, self.model)

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON line to the metrics, and tell the trackers its numbers.

        Numbers are rounded to six digits; what is no number is null.
        """
        row = {key: _rounded(value) for key, value in row.items()}
        with self.writing(self.metrics.name), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.trackers.log(row["step"], row)

    def show(self, step: int, picture: Image.Image) -> None:
        """Keep a preview, and show it the trackers."""
        with self.writing(f"the preview of step {step}"):
            save_png(picture, self.previews / f"step-{step:08d}.png")
        self.trackers.show(step, picture)

    def skipped_of(self, rank: int) -> Path:
        """Where a process names the samples that it left out."""
        return self.root / ("skipped.txt" if rank == 0 else f"skipped-{rank}.txt")

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`, and a last line that was cut short."""
        if not self.metrics.exists():
            return
        text = self.metrics.read_text(encoding="utf-8", errors="replace")  # a machine that went down may leave anything
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
    """Bring what the accelerator prepared and registered to where a checkpoint was saved. Raises RunError where that
    is not whole, as where it was copied in part."""
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, EOFError, SafetensorError, UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _CUT_OFF.search(str(error)):
            raise
        raise not_whole(checkpoint, error) from error


def _folders_read(recipe: Recipe) -> list[Path]:
    """Folders of pictures that a recipe reads, in any depth."""
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
