"""Model folders on disk, in the layout of diffusers' pipelines: finding and opening them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from piti.checkpoints.lora import ADAPTER_CONFIG, load_adapted, read_adapter_config
from piti.checkpoints.shards import kinds_of
from piti.checkpoints.weights import WEIGHTS_FILE
from piti.conditions import Condition, condition_from_config
from piti.core import json_files
from piti.core.errors import UserError, first_line, flag, text_of, with_article
from piti.core.files import file_hash
from piti.core.walk import list_images
from piti.diffusion.distillation import StudentSpec
from piti.diffusion.samplers import Scheduler, scheduler_named
from piti.diffusion.schedulers import spec_of_config
from piti.models.space import AUTOENCODERS, Autoencoder, autoencoder_class, autoencoder_dtype
from piti.models.translator import Translator, TranslatorSpec

INDEX_FILE = "model_index.json"
CONDITION_FILE = "condition.json"
SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
"""Prefix of diffusers' weight files."""
SCHEDULERS = {"base": "scheduler", "upsampler": "upsampler_scheduler"}
"""The networks of a model, and the folders of their schedulers."""
AUTOENCODER = "vae"
"""The autoencoder of a base that works on latents, under diffusers' name."""
OF_UPSAMPLER = "upsampler_"
"""Prefix of an upsampler's settings."""
SHARED_UPSAMPLER = "shares_upsampler_of"
"""Index key that names the model whose upsampler is shared, so that its weights are stored only there."""
SHARED_SHA256 = "shares_upsampler_sha256"
"""Index key of the hash of those weights, if no others are accepted."""
EXAMPLES = "examples"
"""The folder of a model's example conditions."""

M = TypeVar("M", bound=ModelMixin)


class ModelError(UserError):
    """A model cannot be found, loaded or assembled. The message names what was expected and what exists."""


# Finding


def bundled_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    root = Path(str(files("piti") / "assets"))
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / INDEX_FILE).is_file()}


def imported_folder(name: str) -> Path:
    """The cache folder of an imported hub model of another family, in `piti/priors` of `$XDG_CACHE_HOME` or
    ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "piti" / "priors" / name.replace("/", "__")


def find_model(name: str | Path, **kwargs: Any) -> Path:
    """The folder of a bundled model, a path (also of a training run), or a model on the hub.

    A text-to-image model of another family on the hub is imported once, see `imported_folder`. kwargs: passed to
    `model_hub.fetched_model`. Raises ModelError that lists the bundled models.
    """
    path, bundled = Path(name), bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    for folder in (path, path / "model"):
        if (folder / INDEX_FILE).is_file():
            return folder
    if (imported_folder(str(name)) / INDEX_FILE).is_file():
        return imported_folder(str(name))
    known = f"bundled models: {', '.join(bundled) or 'none'}"
    if path.exists():
        raise ModelError(f"{path} has no {INDEX_FILE}; give the folder of a model or of a training run ({known})")
    if str(name).count("/") != 1:
        raise ModelError(f"there is no model '{name}': it is not a bundled model, a folder, or a hub id ({known})")
    from piti.checkpoints.model_hub import fetched_model  # which opens folders as this module does

    return fetched_model(str(name), known, **kwargs)


def lasting_name(name: str) -> str:
    """A model's name for references from other folders: paths are absolute, bundled names and hub ids unchanged."""
    path = Path(name)
    return str(path.resolve()) if name not in bundled_models() and path.exists() else name


def is_foreign(index: Path) -> bool:
    """Whether a model's index belongs to one of diffusers' own pipelines."""
    return read_json(index.parent, index.name).get("_class_name") not in (None, "PITIPipeline")


# Opening


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk, with its index and condition; weights are loaded one network at a time."""

    path: Path
    index: dict[str, Any]
    condition: Condition
    hub: Mapping[str, Any] = field(default_factory=dict)
    """Download options for models that this one refers to, such as the base model of adapters; see `find_model`."""

    @classmethod
    def open(cls, path: Path, **hub: Any) -> ModelFolder:
        """Read index and condition. hub: download options for models that it refers to.

        Raises ModelError, and ConditionError for an unknown condition.
        """
        index = path / INDEX_FILE
        if index.is_file() and not (path / CONDITION_FILE).exists() and is_foreign(index):
            kind = with_article(read_json(path, INDEX_FILE)["_class_name"])
            how = f"import it: piti import {path} {flag('out')} FOLDER"
            raise ModelError(f"{path}: is a diffusers folder, {kind}", remedy=how)
        condition = condition_from_config(read_json(path, CONDITION_FILE), str(path / CONDITION_FILE))
        return cls(path, read_json(path, INDEX_FILE), condition.found_in(path), hub)

    def __contains__(self, part: str) -> bool:
        return part in self.index

    @property
    def defaults(self) -> dict[str, Any]:
        """The model's default sampling settings. Raises ModelError."""
        found = self.index.get("defaults") or {}
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise ModelError(f"{self.path / INDEX_FILE}: 'defaults': expected an object, got {kind}; {_ANEW}")
        return found

    @property
    def lender(self) -> str | None:
        """The model whose upsampler this one shares; None if it has its own, or no upsampler."""
        return None if "upsampler" in self else self.index.get(SHARED_UPSAMPLER)

    def examples(self) -> list[Path]:
        """Example conditions of the model, or of the one whose upsampler it shares, if that reads the same."""
        own = self.path / EXAMPLES
        if own.is_dir():
            return list_images(own)
        lender = None if self.lender is None else ModelFolder.open(find_model(self.lender, **self.hub))
        same = lender is not None and lender.condition.to_config() == self.condition.to_config()  # units of files too
        return lender.examples() if lender is not None and same else []

    def check_lent(self, lender: ModelFolder) -> None:
        """Raises ModelError if the shared upsampler is not the one that the model was saved with."""
        said, weights = self.index.get(SHARED_SHA256), lender.path / "upsampler" / WEIGHTS_FILE
        if said is not None and (not weights.is_file() or file_hash(weights) != said):
            raise ModelError(f"{weights}: has changed since {self.path} was saved with it; restore the original")

    def config(self, network: str) -> dict[str, Any]:
        """A network's configuration. Raises ModelError."""
        return read_json(self.path / network, "config.json")

    def arguments(self, network: str) -> dict[str, Any]:
        """The arguments of a network's `Translator`. Raises ModelError, and SpecError that names file and key."""
        own = {key: value for key, value in self.config(network).items() if not key.startswith("_")}
        TranslatorSpec.parse(own, str(self.path / network / "config.json"))
        return own

    def student(self, network: str) -> StudentSpec | None:
        """The student spec of a distilled network, with its teacher if known (for adapters their base model); None for
        other networks, and if the model has no such network. Raises ModelError, SpecError."""
        given = self.config(network).get("student_spec") if network in self else None
        if not given:
            return None
        student = StudentSpec.parse(given, f"{self.path / network / 'config.json'}: student_spec")
        if not (self.path / network / ADAPTER_CONFIG).is_file():
            return student
        return student.model_copy(update={"teacher": read_adapter_config(self.path / network).prior})

    def has_variant(self, network: str, variant: str) -> bool:
        """Whether a network has weights of this variant."""
        return bool(_endings(self.path / network, variant))

    def check_translator(self, network: str) -> None:
        """Raises ModelError unless a network is a translator, not a baseline."""
        kind = self.config(network).get("_class_name", Translator.__name__)
        if kind != Translator.__name__:
            raise ModelError(f"{self.path}: its {network} is a {kind}, not a translator; use another model here")

    def load(self, network: str, torch_dtype: torch.dtype, **form: Any) -> tuple[Translator, Scheduler]:
        """A network in evaluation mode, and its scheduler. form: `variant` and `use_safetensors` as in diffusers.
        Raises ModelError.
        """
        self.check_translator(network)
        try:
            translator = self._translator(network, torch_dtype, **form)
        except UserError as error:
            raise ModelError(f"{self.path}: {text_of(error)}") from None
        except _ODD as error:
            raise ModelError(f"{self.path / network}: {first_line(error)}; {_ANEW}") from None
        return translator.eval(), self.scheduler(network)

    def autoencoder(self, torch_dtype: torch.dtype, **form: Any) -> Autoencoder | None:
        """The autoencoder of a base that works on latents, in float32 if its configuration requires that. Adapters use
        that of their prior. form: as for `load`, for one in this folder. Raises ModelError.
        """
        if AUTOENCODER not in self:
            if not (self.path / "base" / ADAPTER_CONFIG).is_file():
                return None
            return ModelFolder.open(self._beneath("base"), **self.hub).autoencoder(torch_dtype)
        config = self.config(AUTOENCODER)
        kind = autoencoder_class(config)
        if kind is None:
            known = " or ".join(map(with_article, AUTOENCODERS))
            other = with_article(str(config["_class_name"]))
            raise ModelError(f"{self.path / AUTOENCODER}: is {other}, expected {known}; {_ANEW}")
        dtype = autoencoder_dtype(config, torch_dtype)
        found = load_whole(kind, self.path / AUTOENCODER, torch_dtype=dtype, **form)
        return found.eval().requires_grad_(False)

    def scheduler(self, network: str) -> Scheduler:
        """A network's scheduler, of the class named in its file. Raises ModelError."""
        folder = self.path / SCHEDULERS[network]
        config, source = read_json(folder, SCHEDULER_FILE), str(folder / SCHEDULER_FILE)
        try:
            kind = scheduler_named(str(config.get("_class_name", DDPMScheduler.__name__)))
        except UserError as error:
            raise ModelError(f"{source}: {text_of(error)}") from None
        spec_of_config(config, source)
        try:
            return cast(Scheduler, kind.from_pretrained(folder))
        except _ODD as error:
            raise ModelError(f"{source}: {first_line(error)}; {_ANEW}") from None

    def _translator(self, network: str, torch_dtype: torch.dtype, **form: Any) -> Translator:
        folder, arguments = self.path / network, self.arguments(network)
        whole = form.get("variant") is not None  # next to adapters, or there are none
        if whole or not (folder / ADAPTER_CONFIG).is_file():
            _check_weights(folder, arguments)
            return load_whole(Translator, folder, torch_dtype=torch_dtype, **form)
        prior = self._beneath(network) / network
        translator = load_adapted(folder, read_adapter_config(folder), arguments, prior, torch_dtype)
        translator.student = self.student(network)
        return translator

    def _beneath(self, network: str) -> Path:
        """The folder of the base model of a network's adapters. Raises ModelError."""
        config = self.path / network / ADAPTER_CONFIG
        try:
            return find_model(read_adapter_config(config.parent).prior, **self.hub)
        except ModelError as error:
            said = f"{text_of(error)}; the adapters of {config.parent} were trained on it"
            remedy = f"restore it, or set 'prior' in {config} to its new path"
            raise ModelError(said, remedy=remedy) from None


_ANEW = "save the model again, or download it again"
_ODD = (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, ArithmeticError, RuntimeError)
# what libraries raise for invalid values


def load_whole(kind: type[M], folder: Path, **form: Any) -> M:
    """A network in diffusers' format from its folder, for any kind of weight files. form: options of `from_pretrained`.

    Raises ModelError, also for missing weights, which diffusers would initialise randomly.
    """
    if folder.is_dir() and not _weight_files(folder):  # for which diffusers reports a missing pickle
        raise ModelError(f"contains no weights, such as {WEIGHTS_FILE}", remedy=_ANEW, source=folder)
    endings, safe = _endings(folder, form.get("variant")), form.get("use_safetensors")
    if safe is None and endings == {"bin"}:  # by default diffusers does not find sharded pickles
        form["use_safetensors"] = False
    elif safe is not None and endings == ({"bin"} if safe else {"safetensors"}):
        other = "pickles" if safe else "safetensors"
        raise ModelError(
            f"its weights are only {other}", remedy="leave it out", option="use_safetensors", value=safe, source=folder
        )
    try:
        found, told = cast(Any, kind).from_pretrained(folder, output_loading_info=True, **form)
    except _ODD as error:
        variant = only_variant(folder) if form.get("variant") is None else None
        if variant is None:
            raise ModelError(first_line(error), remedy=_ANEW, source=folder) from None
        raise ModelError(
            f"its weights exist only as variant '{variant}'",
            remedy=f"load it by PITIPipeline.from_pretrained(FOLDER, variant='{variant}'), and save it without a "
            "variant",
            source=folder,
        ) from None
    lacking = sorted(told["missing_keys"])
    if lacking:
        what = f"'{lacking[0]}'" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
        raise ModelError(f"its weights lack {what}, which config.json requires", remedy=_ANEW, source=folder)
    return found


def weights_in_one_file(folder: Path) -> Path:
    """A network's weights in one safetensors file, for reading one tensor at a time. Raises ModelError."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    variant = only_variant(folder)
    asked = "FOLDER" if variant is None else f"FOLDER, variant='{variant}'"
    raise ModelError(
        f"has no {WEIGHTS_FILE}, but its weights are needed in this single file",
        remedy=f"save the model again: PITIPipeline.from_pretrained({asked}).save_pretrained(OTHER_FOLDER)",
        source=folder,
    )


_VARIANT = re.compile(rf"{WEIGHTS_STEM}\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")


def only_variant(folder: Path) -> str | None:
    """The only variant of a network's weights; None if there are others or none."""
    found = [_VARIANT.fullmatch(name) for name in _weight_files(folder)]
    return found[0][1] if found and found[0] and all(found) else None


def _endings(folder: Path, variant: str | None) -> set[str]:
    """The available formats of a network's weights of a variant: "safetensors", "bin"."""
    stem = WEIGHTS_STEM if variant is None else f"{WEIGHTS_STEM}.{variant}"
    names = [re.fullmatch(rf"{re.escape(stem)}(?:-\d+-of-\d+)?\.(\w+)", name) for name in _weight_files(folder)]
    return {found[1] for found in names if found and found[1] in ("safetensors", "bin")}


def _weight_files(folder: Path) -> list[str]:
    """The names of a network's weight files, in order."""
    return [path.name for path in sorted(folder.glob(f"{WEIGHTS_STEM}*")) if path.suffix != ".json"]


def _check_weights(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Raises ModelError unless a network's weights match its configuration (missing ones would be initialised
    randomly), WeightsError for an incomplete file. Nothing is loaded; sharded weights are left to diffusers.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        return
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in Translator(**arguments).state_dict().items()}
    held = {name: shape for name, (_, shape) in kinds_of(path).items()}
    odd = [name for name in sorted(expected.keys() | held.keys()) if expected.get(name) != held.get(name)]
    if odd:
        first = f"'{odd[0]}' is {held.get(odd[0], 'missing')}, where {expected.get(odd[0], 'nothing')} is expected"
        raise ModelError(
            f"{folder / 'config.json'}: {len(odd)} weights of {WEIGHTS_FILE} do not match this configuration: "
            f"{first}; {_ANEW}"
        )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model's folder, which may have been edited by hand. Raises ModelError."""
    path = folder / name
    if not path.is_file():
        raise ModelError("is missing; the model folder is incomplete", remedy=_ANEW, source=path)
    try:
        values = json_files.read_json(path)
    except UserError as error:
        raise ModelError.like(error) from None
    if not isinstance(values, dict):
        raise ModelError(f"expected an object, got {type(values).__name__}", remedy=_ANEW, source=path)
    return values
