"""Model folders on disk, in the layout of diffusers' pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

INDEX_FILE = "model_index.json"
CONDITION_FILE = "condition.json"


@runtime_checkable
class Saveable(Protocol):
    """What diffusers can save into a folder: models and schedulers."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any: ...


def write_model_folder(
    folder: Path, parts: dict[str, Saveable], condition: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Write `model_index.json`, a sub-folder for each part, and the condition.

    parts: name => what is saved there, such as `base` and `scheduler`; condition: a condition's
    configuration; defaults: settings with which the model is sampled where a caller gives none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": "PITIPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        _forget_origin(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    index["defaults"] = defaults
    (folder / CONDITION_FILE).write_text(json.dumps(condition, indent=1), encoding="utf-8")
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _forget_origin(folder: Path) -> None:
    """Drop the path that a part was loaded from, which diffusers saves with it."""
    for path in folder.glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
