"""A run on disk: checkpoints that are complete or absent, metrics, and the recipe beside them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from piti.core.errors import UserError, option, quoted
from piti.core.files import check_place, flush, flush_all, follow_umask
from piti.core.images import ImageError
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import differences, read_recipe, write_recipe
from piti.training.run_lock import RunLock

if TYPE_CHECKING:
    from accelerate import Accelerator

PARTIAL = ".partial"
OLD = ".old" + PARTIAL
RUN_FILE = "run.json"
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
    teacher_sha256: str | None = None
    """Of the weights that a run reads anew whenever it begins and does not train: a distillation's teacher, the
    autoencoder of a model on latents. None in checkpoints of versions that did not note it, which are not compared."""
    pairs_sha256: str | None = None
    """Of the training pairs' keys in order, see `SampleSet.identity`. None of shards and in checkpoints of versions
    that did not note it, which are not compared."""
    contents_sha256: str | None = None
    """Of what is in the training pairs' files, None where `pairs_sha256` is. Another one is told, and not refused."""


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
        self.lock = RunLock(self.root)

    def check(self, recipe: Recipe, resume: bool, locks: bool = True) -> Path | None:
        """The checkpoint to go on from, or None to start afresh. Changes nothing.

        locks: whether this process is to take the lock; others of the same run can be here before it lets an earlier
        run's go. Raises RunError if the folder holds a run and `resume` is not asked for, or a `model` that belongs to
        no checkpoint, RunLockedError if another process trains in it, OutputError if it cannot be written into, and
        RecipeError if the recipe differs from that run's in more than a continued run may change.
        """
        check_place(self.root)
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
                raise _not_whole(newest, FileNotFoundError(f"there is no {RECIPE_FILE}"))
            changed = differences(read_recipe(newest / RECIPE_FILE), recipe)
            if changed:
                raise RecipeError(
                    f"{newest} was trained with another recipe; undo these changes or give another {option('out')}:"
                    + "".join(f"\n  {change}" for change in changed)
                )
        return newest

    def begin(self, recipe: Recipe) -> None:
        """Lock the folder and make it ready, clearing away what a killed process left half-done.

        Raises RunLockedError; the lock is held until `lock.release`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for folder in (self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        for old in self.root.rglob("*" + OLD):  # replaced but for the last rename
            final = old.with_name(old.name.removesuffix(OLD))
            if not final.exists():
                old.rename(final)
        for leftover in [*self.checkpoints.glob("*" + PARTIAL), *self.root.glob("*" + PARTIAL)]:
            shutil.rmtree(leftover)
        self._keep_recipe(recipe)

    def _keep_recipe(self, recipe: Recipe) -> None:
        """Write the run's recipe, unless the file that is there says the same: a person's keeps its comments."""
        path = self.root / RECIPE_FILE
        try:
            same = read_recipe(path) == recipe
        except UserError:  # there is none, or none that can be read
            same = False
        if not same:
            write_recipe(recipe, path)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """A failing disk within the block is a RunError in words. what: is written, such as "the model"."""
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
        """Append one JSON line to the metrics, and its numbers to TensorBoard's where `board` is open.

        Numbers are rounded to six digits; what is no number is null.
        """
        row = {key: _rounded(value) for key, value in row.items()}
        with self.writing(self.metrics.name), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()

    def skipped_of(self, rank: int) -> Path:
        """Where a process names the samples that it left out."""
        return self.root / ("skipped.txt" if rank == 0 else f"skipped-{rank}.txt")

    def open_board(self, step: int) -> None:
        """Write to TensorBoard from now on, which forgets what it was told after `step`. Raises RunError where it is
        not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError(
                "tensorboard: true needs TensorBoard; install it with pip install 'piti[track]', or leave it out"
            ) from None
        self.board = SummaryWriter(str(self.root / "tensorboard"), purge_step=step + 1)

    def forget_after(self, step: int) -> None:
        """Drop what was logged after `step`, and a last line that was cut short."""
        if not self.metrics.exists():
            return
        kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        partial = self.metrics.with_name(self.metrics.name + ".new")
        with self.writing(self.metrics.name):
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(self.metrics)


def read_state(checkpoint: Path) -> RunState:
    """The state saved in a checkpoint. Raises RunError."""
    try:
        return RunState(**json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:  # the last: keys of another version
        raise _not_whole(checkpoint, error) from None


def load_state(accelerator: Accelerator, checkpoint: Path) -> None:
    """Bring what the accelerator prepared and registered to where a checkpoint was saved. Raises RunError where that
    is not whole, as where it was copied in part."""
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, EOFError, SafetensorError, UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _CUT_OFF.search(str(error)):
            raise
        raise _not_whole(checkpoint, error) from error


def _not_whole(checkpoint: Path, error: Exception) -> RunError:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = f"copy it again, or remove it: then {option('resume')} goes on from the one before"
    return RunError(f"a file of the checkpoint cannot be read ({cause})", remedy=remedy, source=checkpoint)


_NOT_ALWAYS_NOTED = ("teacher_sha256", "pairs_sha256")


def matching_state(checkpoint: Path, now: RunState, recipe: Recipe) -> RunState:
    """A checkpoint's state. Raises RunError if what else decides the run has changed since."""
    decides = ("processes", "pairs", "condition", "prior_sha256", *_NOT_ALWAYS_NOTED)
    return checked_state(checkpoint, {what: getattr(now, what) for what in decides}, recipe)


def checked_state(checkpoint: Path, now: Mapping[str, Any], recipe: Recipe) -> RunState:
    """The same, where only some of what decides the run is known. now: fields of `RunState`."""
    saved = read_state(checkpoint)
    for what, new in now.items():
        old = getattr(saved, what)
        unknown = (old is None and what in _NOT_ALWAYS_NOTED) or (new is None and what == "pairs_sha256")
        if old != new and not unknown:
            raise RunError(
                f"{checkpoint} was trained with {_changed(what, old, new)}",
                remedy=f"undo the change, or give another {option('out')}",
            )
    places = [(stage.name, done) for stage, done in recipe.stages_left(saved.step)]
    if (saved.stage, saved.within) not in places[:1]:
        raise RunError(
            f"{checkpoint} is at step {saved.within} of stage '{saved.stage}', which the recipe does not have there",
            remedy=f"undo the change of 'stages', or give another {option('out')}",
        )
    return saved


def other_contents(saved: RunState, now: str | None) -> str | None:
    """In words, that files hold something else than when a checkpoint was saved; None where they do not, and where
    that is not known. now: `SampleSet.contents`."""
    if None in (saved.contents_sha256, now) or saved.contents_sha256 == now:
        return None
    since = f"training pairs of the same names hold something else than up to step {saved.step}"
    return f"{since}; the run goes on with them"


def _changed(what: str, old: Any, new: Any) -> str:
    if what == "pairs_sha256":
        return "other pairs: now there are as many, and their names are others"
    return condition_changes(old, new) if what == "condition" else f"{what} = {old}, now it is {new}"


def condition_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what two configurations of a condition differ, one that a checkpoint has and the present one."""
    parts, others = (", ".join(str(part.get("name")) for part in config.get("parts", ())) for config in (old, new))
    if parts != others:
        return f"the parts {parts or 'none'}, in this order, now they are {others or 'none'}"
    before, after = _by_key(old), _by_key(new)
    classes = [key for key in before if key.endswith("names") and before[key] != after.get(key)]
    if classes:
        return "other classes: " + _other_names(before[classes[0]], after.get(classes[0]) or [])
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    shown = [f"{key} = {quoted(str(before.get(key)))}, now it is {quoted(str(after.get(key)))}" for key in keys[:3]]
    more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"another condition: {'; '.join(shown)}{more}"


def _other_names(old: Sequence[str], new: Sequence[str]) -> str:
    gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
    said = [f"{', '.join(map(repr, gone[:5]))} {'is' if len(gone) == 1 else 'are'} gone"] if gone else []
    said += [f"{', '.join(map(repr, come[:5]))} {'is' if len(come) == 1 else 'are'} new"] if come else []
    if not said:
        first = next(k for k, (one, other) in enumerate(zip(old, new, strict=True)) if one != other)
        said = [f"in another order, {old[first]!r} was class {first}, where {new[first]!r} is now"]
    return " and ".join(said)


def _by_key(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data as one level, lists of single values whole, entries of other lists by position."""
    if isinstance(config, list) and any(isinstance(one, Mapping | list | tuple) for one in config):
        config = dict(enumerate(config))
    if not isinstance(config, Mapping):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _by_key(value, f"{prefix}.{key}" if prefix else str(key))
    return found


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
