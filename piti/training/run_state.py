"""What a checkpoint notes of its run, and what of it must not have changed where the run goes on."""

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
    begun_sha256: str | None = None
    """Of the weights that the run began from, its `init` or `prior`, see `piti.training.init.begun_sha256`. None of
    weights drawn anew or not known by their files, and in checkpoints of versions that did not note it."""
    pairs_sha256: str | None = None
    """Of the training pairs' keys in order, see `SampleSet.identity`. None of shards and in checkpoints of versions
    that did not note it, which are not compared."""
    contents_sha256: str | None = None
    """Of what is in the training pairs' files, None where `pairs_sha256` is. Another one is told, and not refused."""
    validation_pairs: int | None = None
    """How many there are, and the same two of them. None without validation and in checkpoints of versions that did not
    note it; neither is compared."""
    validation_sha256: str | None = None
    validation_contents_sha256: str | None = None
    generated_sha256: str | None = None
    """Of the names of an upsampler's generated images, and of what is in them; None as above."""
    generated_contents_sha256: str | None = None


def data_state(training: SampleSet, validation: SampleSet | None) -> dict[str, Any]:
    """The fields of `RunState` that follow from a run's data; what is not known, or not there, is left out."""
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
    except (OSError, ValueError, TypeError) as error:  # the last: keys of another version
        raise not_whole(checkpoint, error) from None


def not_whole(checkpoint: Path, error: Exception) -> RunError:
    """That a file of a checkpoint cannot be read, and what to do."""
    remedy = f"copy it again, or remove it: then {option('resume')} goes on from the one before"
    return RunError(f"a file of the checkpoint cannot be read ({first_line(error)})", remedy=remedy, source=checkpoint)


_ALWAYS_NOTED = ("processes", "pairs", "condition", "prior_sha256")
_CONTENTS = {
    "contents_sha256": "training pairs",
    "validation_contents_sha256": "validation pairs",
    "generated_contents_sha256": "generated images",
}
"""Keys whose change is noted but not refused."""
_OTHER_NAMES = {
    "pairs_sha256": "other pairs: now there are as many, and their names are others",
    "validation_sha256": "other validation pairs: now there are as many, and their names are others",
    "generated_sha256": "other images in 'generated.root': their names are others",
}


def matching_state(checkpoint: Path, now: RunState, recipe: Recipe) -> RunState:
    """A checkpoint's state. Raises RunError if what else decides the run, or what it is validated on, has changed.

    Pairs and images that are not there now, or whose names are not known, are not compared.
    """
    fixed = {what: getattr(now, what) for what in (*_ALWAYS_NOTED, "teacher_sha256")}
    of_data = {what: getattr(now, what) for what in ("validation_pairs", *_OTHER_NAMES)}
    known = {what: new for what, new in of_data.items() if new is not None}
    return checked_state(checkpoint, fixed | known, recipe)


def checked_state(checkpoint: Path, now: Mapping[str, Any], recipe: Recipe) -> RunState:
    """The same, where only some of what decides the run is known. now: fields of `RunState`."""
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
            f"{checkpoint} is at step {saved.within} of stage '{saved.stage}', which the recipe does not have there",
            remedy=f"undo the change of 'stages', or give another {option('out')}",
        )
    return saved


def other_contents(saved: RunState, now: Mapping[str, Any]) -> str | None:
    """In words, that files hold something else than when a checkpoint was saved; None where they do not, and where
    that is not known. now: fields of `RunState`, see `data_state`."""
    pairs = {named: (getattr(saved, what), now.get(what)) for what, named in _CONTENTS.items()}
    changed = [named for named, both in pairs.items() if None not in both and both[0] != both[1]]
    if not changed:
        return None
    since = f"{', '.join(changed)} of the same names hold something else than up to step {saved.step}"
    return f"{since}; the run goes on with them"


def _changed(what: str, old: Any, new: Any) -> str:
    if what == "begun_sha256":
        return "other weights to begin from than its recipe's prior (or 'init') has now"
    if what in _OTHER_NAMES:
        return _OTHER_NAMES[what]
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
