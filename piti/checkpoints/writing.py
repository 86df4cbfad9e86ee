"""Writing model folders: an index, a sub-folder per component, and the condition."""

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
    """A model or scheduler that diffusers can save, or an object that saves itself as class `saved_as`."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class WeightsForm:
    """File format of a network's weights."""

    safe: bool = True
    """Whether to write safetensors, rather than PyTorch's pickles."""
    variant: str | None = None
    """Variant name in the file names, such as "fp16"."""
    max_shard_size: int | str | None = None
    """Largest size of a file, in bytes or such as "5GB"; by default one file."""

    def save(self, network: ModelMixin, folder: Path) -> None:
        """Write a network into a folder without one."""
        sharded: dict[str, Any] = {} if self.max_shard_size is None else {"max_shard_size": self.max_shard_size}
        network.save_pretrained(folder, safe_serialization=self.safe, variant=self.variant, **sharded)

    def others(self, folder: Path) -> set[Path]:
        """Existing files that would be loaded instead of a network written in this form: weights of the same variant,
        and adapters, unless a variant is written."""
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
    """`write_model_folder` into an existing folder: it is unchanged until everything is written, and other contents,
    such as other variants, are kept.

    Raises OutputError if it cannot be written.
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

    parts: the components by name: `base` and `scheduler`, `upsampler` and `upsampler_scheduler`, or all four.
    condition: a condition's configuration. defaults: default sampling settings.
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
    """Remove the path that a component was loaded from, which diffusers would save."""
    for path in folder.glob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
