"""The state of a run in a checkpoint, and the parts that must not change on resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piti.core.errors import UserError, first_line, option, quoted
from piti.data.batches import SampleSet
from piti.data.generated import WithGenerated
from piti.training.recipe import Recipe

RUN_FILE = "run.json"


class RunError(UserError):
    """A run's folder cannot be used as requested. The message says what to do."""


@dataclass(frozen=True)
class RunState:
    """Progress of a run, and everything else that determines its continuation."""

    step: int
    """Optimiser steps done, over all stages."""
    stage: str
    """The stage of the last step; `within` is the number of its steps."""
    within: int
    images_seen: int
    seconds: float
    """Training time without interruptions."""
    processes: int
    pairs: int
    """Number of training pairs."""
    condition: dict[str, Any]
    """The condition's configuration, including classes."""
    version: str
    """Version of the package that wrote it."""
    prior_sha256: str | None = None
    """Hash of the base model's weights, if the run trains low-rank adapters."""
    teacher_sha256: str | None = None
    """Hash of frozen weights that are loaded at every start: a distillation's teacher, or the autoencoder of a model on
    latents. None in checkpoints of versions that did not record it, which are not compared."""
    begun_sha256: str | None = None
    """Hash of the initial weights, `init` or `prior`, see `piti.training.init.begun_sha256`. None for newly initialised
    weights or without files, and in checkpoints of versions that did not record it."""
    pairs_sha256: str | None = None
    """Hash of the training pairs' keys in order, see `SampleSet.identity`. None for shards, and in checkpoints of
    versions that did not record it, which are not compared."""
    contents_sha256: str | None = None
    """Hash of the training pairs' contents, see `SampleSet.contents`. None in checkpoints of versions that did not
    record it. A change is reported, not refused."""
    validation_pairs: int | None = None
    """Number and hashes of validation pairs. None without validation, and in checkpoints of versions that did not
    record it; then they are not compared."""
    validation_sha256: str | None = None
    validation_contents_sha256: str | None = None
    generated_sha256: str | None = None
    """Hashes of the names and contents of an upsampler's generated images; None as above."""
    generated_contents_sha256: str | None = None


def data_state(training: SampleSet, validation: SampleSet | None) -> dict[str, Any]:
    """The fields of `RunState` that follow from a run's data, without unknown ones."""
    found: dict[str, Any] = {
        "pairs": len(training),
        "pairs_sha256": training.identity(),
        "contents_sha256": training.contents(),
    }
    if validation is not None:
        found["validation_pairs"] = len(validation)
        found["validation_sha256"] = validation.identity()
        found["validation_contents_sha256"] = validation.contents()
    if isinstance(training, WithGenerated):
        found["generated_sha256"] = training.images_identity()
        found["generated_contents_sha256"] = training.images_contents()
    return {what: value for what, value in found.items() if value is not None}


def read_state(checkpoint: Path) -> RunState:
    """The state saved in a checkpoint. Raises RunError."""
    try:
        return RunState(**json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:  # TypeError: keys of another version
        raise not_whole(checkpoint, error) from None


def not_whole(checkpoint: Path, error: Exception) -> RunError:
    """The error for an unreadable file of a checkpoint."""
    remedy = f"copy it again, or remove it: then {option('resume')} continues from the previous one"
    return RunError(f"a file of the checkpoint cannot be read ({first_line(error)})", remedy=remedy, source=checkpoint)


_ALWAYS_NOTED = ("processes", "pairs", "condition", "prior_sha256")
_CONTENTS = {
    "contents_sha256": "training pairs",
    "validation_contents_sha256": "validation pairs",
    "generated_contents_sha256": "generated images",
}
"""Keys whose change is reported but not refused."""
_OTHER_NAMES = {
    "pairs_sha256": "other pairs: their number is the same, but their names differ",
    "validation_sha256": "other validation pairs: their number is the same, but their names differ",
    "generated_sha256": "other images in 'generated.root': their names differ",
}


def matching_state(checkpoint: Path, now: RunState, recipe: Recipe) -> RunState:
    """A checkpoint's state. Raises RunError if anything that determines the run or its validation has changed.

    Missing pairs and images, or those with unknown names, are not compared.
    """
    fixed = {what: getattr(now, what) for what in (*_ALWAYS_NOTED, "teacher_sha256")}
    of_data = {what: getattr(now, what) for what in ("validation_pairs", *_OTHER_NAMES)}
    known = {what: new for what, new in of_data.items() if new is not None}
    return checked_state(checkpoint, fixed | known, recipe)


def checked_state(checkpoint: Path, now: Mapping[str, Any], recipe: Recipe) -> RunState:
    """The same with only some of the present state. now: fields of `RunState`."""
    saved = read_state(checkpoint)
    for what, new in now.items():
        old = getattr(saved, what)
        unknown = what in _CONTENTS or (old is None and what not in _ALWAYS_NOTED)
        if old != new and not unknown:
            raise RunError(
                f"{checkpoint} was trained with {_changed(what, old, new)}",
                remedy=f"undo the change, or give another {option('out')}",
            )
    places = [(stage.name, done) for stage, done in recipe.stages_left(saved.step)]
    if (saved.stage, saved.within) not in places[:1]:
        raise RunError(
            f"{checkpoint} is at step {saved.within} of stage '{saved.stage}', which the recipe does not have at this "
            "step",
            remedy=f"undo the change of 'stages', or give another {option('out')}",
        )
    return saved


def other_contents(saved: RunState, now: Mapping[str, Any]) -> str | None:
    """A note that file contents have changed since a checkpoint was saved; None if not, or unknown. now: fields of
    `RunState`, see `data_state`."""
    pairs = {named: (getattr(saved, what), now.get(what)) for what, named in _CONTENTS.items()}
    changed = [named for named, both in pairs.items() if None not in both and both[0] != both[1]]
    if not changed:
        return None
    return f"the contents of {', '.join(changed)} have changed since step {saved.step}; the run continues with them"


def _changed(what: str, old: Any, new: Any) -> str:
    if what == "begun_sha256":
        return "other initial weights than its recipe's prior (or 'init') has now"
    if what in _OTHER_NAMES:
        return _OTHER_NAMES[what]
    return condition_changes(old, new) if what == "condition" else f"{what} = {old}, now it is {new}"


def condition_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe the differences between a checkpoint's configuration of a condition and the present one."""
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
    """Flatten nested data, keeping lists of single values, with entries of other lists by position."""
    if isinstance(config, list) and any(isinstance(one, Mapping | list | tuple) for one in config):
        config = dict(enumerate(config))
    if not isinstance(config, Mapping):
        return {prefix: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _by_key(value, f"{prefix}.{key}" if prefix else str(key))
    return found
