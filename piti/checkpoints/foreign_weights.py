"""Weights of another family's networks, read from their original files under their own names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from piti.checkpoints.shards import WeightFiles
from piti.checkpoints.weights import WEIGHTS_FILE, check_finite, write_weights
from piti.models import Translator


@dataclass(frozen=True)
class ForeignNetwork:
    """A network whose weights are still in its original files; saved like a `Translator`, one tensor at a time."""

    saved_as: ClassVar[type] = Translator

    translator: Translator
    """On the meta device."""
    unet: WeightFiles
    texts: list[WeightFiles]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write configuration and weights. Raises WeightsError, OSError."""
        folder = Path(save_directory)
        folder.mkdir(parents=True)
        self.translator.save_config(folder)
        own = self.translator.state_dict()
        places = {name: self._place(name) for name in own}
        kinds = {name: files.kind(key, own[name].shape) for name, (files, key) in places.items()}
        self.unet.check_all_used(key for files, key in places.values() if files is self.unet)
        tensors = (_checked(files, key) for files, key in places.values())
        write_weights(folder / WEIGHTS_FILE, kinds, tensors)

    def _place(self, name: str) -> tuple[WeightFiles, str]:
        """The files, and the key in them, of a weight of the translator. Raises WeightsError."""
        if name.startswith("unet."):
            return self.unet, self.unet.find(name.removeprefix("unet."))
        _, _, number, key = name.split(".", 3)  # encoder.models.N.key
        files = self.texts[int(number)]
        plain = key.removeprefix("text_model.")
        return files, files.find(plain, f"text_model.{plain}", f"encoder.{key}", key.replace("embed_tokens", "shared"))


def _checked(files: WeightFiles, key: str) -> torch.Tensor:
    value = files.read(key)
    check_finite(files.path_of(key), key, value)
    return value
