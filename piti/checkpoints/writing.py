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
from piti.core.compiled import uncompiled
from piti.core.files import follow_umask


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
        """Write a network, and remove what it would be read from instead: weights of the same variant in another form,
        and adapters, unless it is a variant beside them."""
        sharded: dict[str, Any] = {} if self.max_shard_size is None else {"max_shard_size": self.max_shard_size}
        middle = "" if self.variant is None else f".{self.variant}"
        own, other = ("safetensors", "bin") if self.safe else ("bin", "safetensors")
        index = folder / f"{WEIGHTS_STEM}.{own}.index{middle}.json"
        index.unlink(missing_ok=True)
        network.save_pretrained(folder, safe_serialization=self.safe, variant=self.variant, **sharded)
        stale = [f"{middle}.{other}", f"{middle}-*-of-*.{other}", f".{other}.index{middle}.json"]
        stale += [f"{middle}.{own}"] if index.is_file() else []
        for path in (path for pattern in stale for path in folder.glob(f"{WEIGHTS_STEM}{pattern}")):
            path.unlink()
        if self.variant is None:
            for name in (ADAPTER_CONFIG, ADAPTER_FILE):
                (folder / name).unlink(missing_ok=True)


def write_model_folder(
    folder: Path,
    parts: Mapping[str, Saveable],
    condition: dict[str, Any],
    defaults: dict[str, Any],
    form: WeightsForm = WeightsForm(),
) -> None:
    """Write `model_index.json`, a sub-folder for each part, and the condition.

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
