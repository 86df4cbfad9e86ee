"""Loading a pipeline's components from disk or the hub: weights, dtype, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging

from piti.baselines import BaselineNetwork, ImageNetwork
from piti.checkpoints.folder import (
    AUTOENCODER,
    INDEX_FILE,
    OF_UPSAMPLER,
    SCHEDULERS,
    ModelError,
    ModelFolder,
    find_model,
    load_whole,
)
from piti.conditions import Condition
from piti.core.devices import checked_device
from piti.core.errors import UserError, option, text_of
from piti.core.spec import choices
from piti.diffusion.samplers import Scheduler
from piti.models import Translator

logger = logging.get_logger(DiffusionPipeline.__module__)
"""diffusers' own, so that its verbosity holds for our pipeline too."""

HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "local_files_only", "token", "force_download"})
PARTS = ("base", "scheduler", "condition", "upsampler", "upsampler_scheduler", "vae")
NETWORKS = ("base", "upsampler", "vae")
DEFAULT = "default"
"""The key, in a dictionary of dtypes, for all components that it does not name."""

DType = torch.dtype | str


class DTypes(dict[str, torch.dtype]):
    """The dtype of each component's weights."""

    def __missing__(self, part: str) -> torch.dtype:
        return self.get(DEFAULT, torch.float32)


def dtypes_of(given: DType | Mapping[str, DType] | None) -> DTypes:
    """The requested dtypes: one, or one for each component and "default". Raises ModelError."""
    if given is None:
        return DTypes()
    named = given if isinstance(given, Mapping) else {DEFAULT: given}
    known = (*PARTS, DEFAULT)
    for part in named:
        if part not in known:
            raise ModelError(f"there is no component '{part}'; {choices(part, known)}", option="torch_dtype")
    return DTypes({part: _dtype(value) for part, value in named.items()})


def _dtype(value: DType) -> torch.dtype:
    found = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(
            "expected a floating-point torch.dtype or its name", remedy="give 'float16', 'bfloat16' or 'float32'",
            option="torch_dtype", value=repr(value),
        )  # fmt: skip
    return found


def split(others: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split arguments into those of the hub and given components. Raises ModelError for any other."""
    known = {*HUB_ARGUMENTS, *PARTS}
    unknown = others.keys() - known
    if unknown:
        first = min(unknown)
        named = sorted({"torch_dtype", "dtype", "base_only", "variant", "use_safetensors", "device_map", *known})
        raise ModelError(f"from_pretrained: unknown argument {first}; known are {', '.join(named)}")
    hub = {key: value for key, value in others.items() if key in HUB_ARGUMENTS}
    return hub, {key: value for key, value in others.items() if key not in HUB_ARGUMENTS}


@dataclass(frozen=True)
class ModelSource:
    """How a model's components are loaded."""

    dtypes: DTypes
    variant: str | None = None
    use_safetensors: bool | None = None
    hub: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """Components to use instead of loading them."""

    def parts(self, name: str | Path, upsampler: str | Path | Translator | None, base_only: bool) -> dict[str, Any]:
        """The arguments of `PITIPipeline`. name, upsampler, base_only: as `from_pretrained`. Raises ModelError."""
        if base_only and upsampler is not None:
            raise ModelError(
                f"cannot be combined with {option('base_only')}",
                remedy="remove one of the two",
                option="upsampler",
                value=upsampler if isinstance(upsampler, str | Path) else None,
            )
        folder = ModelFolder.open(find_model(name, variant=self.variant, **self.hub), **self._of_others)
        if "base" not in folder:
            raise ModelError(_without_base(folder, name))
        other = None if base_only else self._upsampler_folder(folder, upsampler)
        self._check_variant(folder, other)
        condition: Condition = self.given.get("condition", folder.condition)
        logger.info(f"Loaded condition as {type(condition).__name__} from {folder.path}.")
        base, scheduler = self._base(folder)
        form = self._form(folder, AUTOENCODER)
        vae = self.given.get("vae") or folder.autoencoder(self.dtypes["vae"], **form)
        parts = {"condition": condition, "base": base, "scheduler": scheduler, "vae": vae}
        if isinstance(upsampler, Translator):
            parts |= {"upsampler": upsampler, "upsampler_scheduler": self.given.get("upsampler_scheduler")}
        elif other is not None:
            parts["upsampler"], parts["upsampler_scheduler"] = self._upsampler(other, condition)
        self._check_used(parts)
        return {**parts, "defaults": self._defaults(folder, other)}

    def _check_used(self, parts: Mapping[str, Any]) -> None:
        """Raise ModelError for a given component that belongs to none of the networks."""
        for name, part in self.given.items():
            if part is not None and parts.get(name) is None:
                raise ModelError("there is no network that it belongs to", remedy="remove it", option=name)

    def _defaults(self, folder: ModelFolder, other: ModelFolder | None) -> dict[str, Any]:
        """The base's sampling settings from its folder, and the upsampler's from that of the loaded upsampler. Without
        the sampler of a network whose scheduler is given, since the scheduler's class selects it."""
        defaults = {key: value for key, value in folder.defaults.items() if not key.startswith(OF_UPSAMPLER)}
        if other is not None:
            defaults |= {key: value for key, value in other.defaults.items() if key.startswith(OF_UPSAMPLER)}
        for part, sampler in (("scheduler", "sampler"), ("upsampler_scheduler", f"{OF_UPSAMPLER}sampler")):
            if part in self.given:
                defaults.pop(sampler, None)
        return defaults

    @property
    def _of_others(self) -> dict[str, Any]:
        """Arguments for downloading models that the model refers to; `revision` applies only to the model itself."""
        return {"variant": self.variant, **{key: value for key, value in self.hub.items() if key != "revision"}}

    def _upsampler_folder(self, folder: ModelFolder, upsampler: str | Path | Translator | None) -> ModelFolder | None:
        """The folder of the upsampler: of the given one, of the model's own, or of the one that the model shares."""
        of_hub = self._of_others
        if isinstance(upsampler, Translator):
            return None
        if upsampler is not None:
            return ModelFolder.open(find_model(upsampler, **of_hub), **of_hub)
        if "upsampler" in folder:
            return folder
        return None if folder.lender is None else _lender_of(folder, **of_hub)

    def _check_variant(self, folder: ModelFolder, other: ModelFolder | None) -> None:
        """Raise ModelError if no network has the variant, and warn about each network that is loaded without it."""
        if self.variant is None:
            return
        networks = {"base": folder} if other is None else {"base": folder, "upsampler": other}
        networks |= {AUTOENCODER: folder} if AUTOENCODER in folder else {}
        without = [name for name, where in networks.items() if not where.has_variant(name, self.variant)]
        if len(without) == len(networks):
            raise ModelError(
                f"You are trying to load the model files of the `variant={self.variant}`, but {folder.path} has no "
                "such weight files",
                remedy="leave the variant out",
            )
        for name in without:
            logger.warning(f"{networks[name].path}: its {name} has no variant '{self.variant}'; the default is loaded")

    def _form(self, folder: ModelFolder, network: str) -> dict[str, Any]:
        variant = self.variant if self.variant and folder.has_variant(network, self.variant) else None
        return {"variant": variant, "use_safetensors": self.use_safetensors}

    def _base(self, folder: ModelFolder) -> tuple[ImageNetwork, Scheduler | None]:
        """A folder's base and its scheduler, which is None for a baseline. Raises ModelError."""
        base, scheduler = self.given.get("base"), None
        if isinstance(base, BaselineNetwork):
            return base, None
        if base is None and folder.config("base").get("_class_name") == BaselineNetwork.__name__:
            form = self._form(folder, "base")
            network = load_whole(BaselineNetwork, folder.path / "base", torch_dtype=self.dtypes["base"], **form)
            _log_loaded(folder, "base", network)
            return network.eval(), None
        if base is None:
            base, scheduler = self._loaded(folder, "base")
        scheduler = self.given.get("scheduler", scheduler)
        return base, folder.scheduler("base") if scheduler is None else scheduler

    def _upsampler(self, folder: ModelFolder, condition: Condition) -> tuple[Translator, Scheduler]:
        """A folder's upsampler and its scheduler. Raises ModelError if it has none or reads another condition."""
        if "upsampler" not in folder:
            other = "a model, a folder or a training run with one" if folder.lender is None else folder.lender
            uses = "" if folder.lender is None else f" but shares that of {folder.lender}"
            raise ModelError(f"{folder.path} has no upsampler{uses}; give {other}")
        upsampler, scheduler = self._loaded(folder, "upsampler")
        if upsampler.encoder is not None and not folder.condition.reads_like(condition):
            raise ModelError(
                f"{folder.path}: its upsampler reads another condition than the base (see condition.json in both); "
                "give one that was trained with the same condition, or without a condition"
            )
        return upsampler, self.given.get("upsampler_scheduler", scheduler)

    def _loaded(self, folder: ModelFolder, network: str) -> tuple[Translator, Scheduler]:
        translator, scheduler = folder.load(network, self.dtypes[network], **self._form(folder, network))
        _log_loaded(folder, network, translator)
        _log_loaded(folder, SCHEDULERS[network], scheduler)
        return translator, scheduler


def _log_loaded(folder: ModelFolder, name: str, part: object) -> None:
    logger.info(f"Loaded {name} as {type(part).__name__} from `{name}` subfolder of {folder.path}.")


def _lender_of(folder: ModelFolder, **of_hub: Any) -> ModelFolder:
    """The model whose upsampler this one shares. Raises ModelError."""
    try:
        lender = ModelFolder.open(find_model(str(folder.lender), **of_hub), **of_hub)
        folder.check_lent(lender)
        return lender
    except ModelError as error:
        raise ModelError(
            f"{text_of(error)}; {folder.path} shares its upsampler",
            remedy=f"load it without, by {option('base_only')}, or give another upsampler",
        ) from None


def _without_base(folder: ModelFolder, name: str | Path) -> str:
    """The message for a folder that is not a complete model."""
    if "upsampler" not in folder:
        return f"{folder.path}: its {INDEX_FILE} lists neither 'base' nor 'upsampler', so it is not a model of piti"
    return (
        f"{folder.path} contains only an upsampler, which enlarges a base's images; use a model "
        f"with a base, and add {option('upsampler')} {name}"
    )


# Devices


DeviceMap = str | int | torch.device | Mapping[str, Any]
"""A device, "balanced", or a device for each network."""


def place(pipe: DiffusionPipeline, device_map: DeviceMap | None) -> None:
    """Place a pipeline's networks on devices, see `from_pretrained`. Raises ModelError."""
    if device_map is None:
        return
    networks = [name for name in NETWORKS if getattr(pipe, name) is not None]
    if device_map == "balanced":
        devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]
        device_map = {name: devices[k % len(devices)] for k, name in enumerate(networks)}
    if not isinstance(device_map, Mapping):
        pipe.to(_device(device_map))
    else:
        if set(device_map) != set(networks):
            raise ModelError(f"expected a device for each of {', '.join(networks)}", option="device_map")
        for name in networks:
            getattr(pipe, name).to(_device(device_map[name]))
    pipe.hf_device_map = device_map  # pyright: ignore[reportAttributeAccessIssue]


def _device(value: Any) -> torch.device:
    try:
        return checked_device(value)
    except UserError as error:
        raise ModelError(
            error.problem,
            remedy="give one such as 'cpu', 'balanced', or one for each network",
            option="device_map",
            value=repr(value),
        ) from None
