"""Model folders written: an index, a sub-folder for each part, and the condition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffusers.models.modeling_utils import ModelMixin

from piti.checkpoints.folder import CONDITION_FILE, INDEX_FILE, WEIGHTS_STEM
from piti.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_FILE
from piti.conditions import Condition
from piti.core.compiled import uncompiled
from piti.core.errors import option
from piti.core.files import filled_folder, follow_umask


@runtime_checkable
class Saveable(Protocol):
    """What diffusers can save into a folder: models and schedulers; or what saves itself as one, `saved_as` a class."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class WeightsForm:
    """In which files a network's weights are written."""

    safe: bool = True
    """As safetensors, else as PyTorch's pickles."""
    variant: str | None = None
    """A name in those of the files, such as "fp16"."""
    max_shard_size: int | str | None = None
    """Of one file, in bytes or such as "5GB"; by default all in one."""

    def save(self, network: ModelMixin, folder: Path) -> None:
        """Write a network into a folder without one."""
        sharded: dict[str, Any] = {} if self.max_shard_size is None else {"max_shard_size": self.max_shard_size}
        network.save_pretrained(folder, safe_serialization=self.safe, variant=self.variant, **sharded)

    def others(self, folder: Path) -> set[Path]:
        """What a network of a folder may be read from in the place of one that is written there in this form: weights
        of the same variant, and adapters, unless it is a variant beside them."""
        middle = "" if self.variant is None else f".{self.variant}"
        patterns = [
            f"{WEIGHTS_STEM}{pattern}"
            for ending in ("safetensors", "bin")
            for pattern in (f"{middle}.{ending}", f"{middle}-*-of-*.{ending}", f".{ending}.index{middle}.json")
        ]
        patterns += [ADAPTER_CONFIG, ADAPTER_FILE] if self.variant is None else []
        return {path for pattern in patterns for path in folder.glob(pattern)}


def save_model_folder(
    folder: Path, parts: Mapping[str, Saveable], condition: Condition, defaults: dict[str, Any], form: WeightsForm
) -> None:
    """`write_model_folder` over what is there: until all is written that stays as it was, and what else lies there,
    such as other variants, stays.

    Raises OutputError where it cannot be written.
    """
    with filled_folder(folder, option("save_directory")) as partial:
        write_model_folder(partial, parts, condition.saved_in(partial).to_config(), defaults, form)
        written = {folder / path.relative_to(partial) for path in partial.rglob("*")}
    for stale in {path for name in parts for path in form.others(folder / name)} - written:
        stale.unlink()


def write_model_folder(
    folder: Path,
    parts: Mapping[str, Saveable],
    condition: dict[str, Any],
    defaults: dict[str, Any],
    form: WeightsForm = WeightsForm(),
) -> None:
    """Write `model_index.json`, a sub-folder for each part, and the condition, into a folder without a model.

    parts: name => what is saved there: `base` and `scheduler`, `upsampler` and `upsampler_scheduler`, or all
    four; condition: a condition's configuration; defaults: settings with which the model is sampled where a
    caller gives none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": "PITIPipeline"}
    for name, part in parts.items():
        with uncompiled(part) as plain:
            if isinstance(plain, ModelMixin):
                form.save(plain, folder / name)
            else:
                plain.save_pretrained(folder / name)
        _forget_origin(folder / name)
        for weights in (folder / name).glob("*.safetensors"):
            follow_umask(weights)
        kind = getattr(plain, "saved_as", type(plain))
        index[name] = [kind.__module__.partition(".")[0], kind.__name__]
    index["defaults"] = defaults
    (folder / CONDITION_FILE).write_text(json.dumps(condition, indent=1), encoding="utf-8")
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _forget_origin(folder: Path) -> None:
    """Drop the path that a part was loaded from, which diffusers saves with it."""
    for path in folder.glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
