"""Lossless import of GLIDE's and PITI's released files as model folders; `export` is the inverse."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from piti.checkpoints.compatibility import check_cascade
from piti.checkpoints.folder import (
    AUTOENCODER,
    CONDITION_FILE,
    INDEX_FILE,
    SCHEDULERS,
    ModelFolder,
    find_model,
    weights_in_one_file,
)
from piti.checkpoints.lora import ADAPTER_CONFIG
from piti.checkpoints.release import ExchangeError, Heads, Released, identify, our_tensors
from piti.checkpoints.release_keys import Rule, same
from piti.checkpoints.released_conditions import Masks, Reading, condition_of
from piti.checkpoints.weights import (
    WEIGHTS_FILE,
    check_finite,
    check_sums,
    read_checkpoint,
    read_weights,
    write_weights,
)
from piti.checkpoints.writing import Saveable, write_model_folder
from piti.conditions import Condition, TextCondition
from piti.conditions.tokenizers import TOKENIZER_FOLDER
from piti.core.errors import Message, UserError, option
from piti.core.files import check_folder, whole_folder
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of, spec_of
from piti.models import Translator

SCHEDULES = {
    "base": ScheduleSpec(betas="squaredcos_cap_v2", prediction="epsilon"),
    "upsampler": ScheduleSpec(betas="linear", prediction="epsilon"),
}
"""The noise schedules of all released networks."""

# How the releases sample: family => network => settings. Their guidance_scale is 1 + w.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "PITI": {
        "base": {"sampler": "ddpm", "steps": 250, "guidance": {"kind": "plain", "w": 0.3}},
        "upsampler": {"upsampler_sampler": "ddpm", "upsampler_truncates": True},
    },
    "GLIDE": {
        "base": {"sampler": "ddpm", "steps": 100, "guidance": {"kind": "plain", "w": 2.0}},
        "upsampler": {"upsampler_sampler": "ddim", "upsampler_truncates": False},
    },
}
_UPSAMPLING = {
    "upsampler_steps": "fast27",
    "upsampler_noise": 0.997,
    "upsampler_guidance": {"kind": "plain", "w": 0.0},
}

_MODEL_HOLDS = {
    AUTOENCODER,
    INDEX_FILE,
    CONDITION_FILE,
    TOKENIZER_FOLDER,
    *SCHEDULERS,
    *SCHEDULERS.values(),
    "README.md",
    "recipe.yaml",
}
_READS_NOTHING = f"cannot read text yet: import again with {option('tokenizer')} FOLDER {option('overwrite')}"
_KNOWS_NOTHING = "samples as if no part of the image were known"


@dataclass(frozen=True)
class ImportSettings:
    """Settings that the files do not contain."""

    prior: str | Path | None = None
    """The model whose UNet is combined with an encoder alone: a released base, or a model of this package."""
    classes: Path | None = None
    """A classes.json instead of COCO-Stuff's, or of one-hot masks."""
    tokenizer: Path | None = None
    """A folder with GPT-2's tokenizer, for GLIDE."""
    heads: Heads = field(default_factory=Heads)
    overwrite: bool = False
    raw: bool = False
    """Import the raw weights if a file also has averaged ones."""
    masks: Masks | None = None
    """Encoding of masks; None: inferred from the number of channels."""

    @property
    def reading(self) -> Reading:
        """How its base's condition is determined."""
        return Reading(self.classes, self.tokenizer, self.masks)


@dataclass(frozen=True)
class Converted:
    """Summary of an import or export."""

    what: str
    """Such as "PITI base"."""
    source: Path
    target: Path
    parameters: int
    notes: tuple[str, ...] = ()
    """Notes for the user, such as "GLIDE base cannot read text yet: …"."""

    def row(self) -> dict[str, str]:
        """As a row of a table."""
        return {
            "what": self.what,
            "from": str(self.source),
            "to": str(self.target),
            "parameters": f"{self.parameters / 1e6:.1f}M",
        }


# Import


@dataclass(frozen=True)
class _Part:
    """A file, and the tensors of a network that it contains."""

    path: Path
    rules: list[Rule]
    raw: bool = False
    """Whether raw weights are used instead of averaged ones."""

    def kinds(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors on "meta", by name, in the order of `tensors`. weights: the file's contents."""
        found: dict[str, Tensor] = {}
        for rule in self.rules:
            kind = torch.empty_like(weights[rule.source], device="meta")
            found |= dict(zip(rule.targets, rule.split(kind), strict=True))
        return found

    def tensors(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Our tensors, one at a time. Raises WeightsError for one that is not finite."""
        for rule in self.rules:
            check_finite(self.path, rule.source, weights[rule.source])
            yield from rule.split(weights[rule.source])


class _Network:
    """A network that is still in its released files; saved like a `Translator`, one tensor at a time."""

    saved_as: ClassVar[type] = Translator

    def __init__(self, what: str, config: Mapping[str, Any], schedule: ScheduleSpec, parts: list[_Part]) -> None:
        self.what, self.schedule, self.parts = what, schedule, parts
        with torch.device("meta"):
            self.translator = Translator(**config)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write configuration and weights. Raises WeightsError, OSError."""
        folder = Path(save_directory)
        folder.mkdir(parents=True)
        self.translator.save_config(folder)
        held = [(part, read_weights(part.path, part.raw)) for part in self.parts]
        kinds: dict[str, Tensor] = {}
        for part, weights in held:
            kinds |= part.kinds(weights)
        assert kinds.keys() == self.translator.state_dict().keys()
        tensors = (tensor for part, weights in held for tensor in part.tensors(weights))
        write_weights(folder / WEIGHTS_FILE, kinds, tensors)

    def exchanged(self, target: Path, assumed: str) -> Converted:
        """Summary of what was written to `target`. assumed: notes on its condition."""
        told = [assumed] if assumed else []
        told += [_KNOWS_NOTHING] if self.translator.config["inpaint"] else []
        notes = tuple(Message(f"{self.what} {note}") for note in told)
        found = {part.path: read_checkpoint(part.path, part.raw).note for part in self.parts}
        notes += tuple(Message(f"{path}: {note}") for path, note in found.items() if note)
        return Converted(self.what, self.parts[0].path, target, self.translator.num_parameters(), notes)


def import_release(
    base: Path, out: Path, upsampler: Path | None = None, settings: ImportSettings | None = None
) -> list[Converted]:
    """Write the model folder `out` from a released base and, optionally, an upsampler.

    The files are identified by keys and shapes (`piti.checkpoints.release.identify`); the weights keep their dtype.
    `out` is written atomically. Raises UserError: WeightsError for a file that cannot be read or holds NaN,
    ReleaseError for one in another layout, ExchangeError and ModelError for files that do not fit each other,
    OutputError for `out`.
    """
    chosen = settings or ImportSettings()
    check_outside(out, base, upsampler, chosen.prior)
    check_folder(out, chosen.overwrite, is_model)
    found = _released(base, chosen)
    networks, families = {"base": _base(found, base, chosen)}, {"base": found.family}
    if upsampler is not None:
        second = _released(upsampler, chosen)
        networks["upsampler"], families["upsampler"] = _upsampler(second, upsampler, chosen), second.family
    condition, assumed = condition_of(found.encoder, base, chosen.reading)
    _check_together(condition, networks, base, upsampler)
    with whole_folder(out, chosen.overwrite, is_model) as folder:
        parts: dict[str, Saveable] = {}
        defaults: dict[str, Any] = {}
        for name, network in networks.items():
            parts |= {name: network, SCHEDULERS[name]: scheduler_of(network.schedule)}
            defaults |= DEFAULTS[families[name]][name] | (_UPSAMPLING if name == "upsampler" else {})
        write_model_folder(folder, parts, condition.saved_in(folder).to_config(), defaults)
    if isinstance(condition, TextCondition) and chosen.tokenizer is None:
        assumed = _READS_NOTHING
    return [network.exchanged(out / name, assumed if name == "base" else "") for name, network in networks.items()]


def is_model(folder: Path) -> bool:
    """Whether an import may replace a folder: a model of this package and nothing else."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_ours = isinstance(index, dict) and index.get("_class_name") == "PITIPipeline"
    return is_ours and {path.name for path in folder.iterdir()} <= _MODEL_HOLDS


def check_outside(out: Path, *inputs: str | Path | None) -> None:
    """Raises ExchangeError if replacing `out` would remove an input."""
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(out.resolve()):
            raise ExchangeError(f"contains {path}, an input", remedy=f"give another {option('out')}", source=out)


def _check_together(condition: Condition, networks: Mapping[str, _Network], base: Path, upsampler: Path | None) -> None:
    """Raises ModelError, or ExchangeError, unless the networks fit each other and the condition."""
    check_cascade(condition, networks["base"].translator, None)
    if upsampler is None:
        return
    try:
        check_cascade(condition, networks["base"].translator, networks["upsampler"].translator)
    except UserError as error:
        raise ExchangeError(  # the error's own remedy is for those who choose the condition
            error.problem,
            remedy=f"give the upsampler that was released with {base}",
            option="upsampler",
            value=upsampler,
        ) from None


def _released(path: Path, chosen: ImportSettings) -> Released:
    """Identify a file. Raises WeightsError, also for a damaged file, and ReleaseError."""
    shapes = {name: tuple(tensor.shape) for name, tensor in read_weights(path, chosen.raw).items()}
    check_sums(path)
    return identify(shapes, str(path), chosen.heads)


def _base(found: Released, path: Path, chosen: ImportSettings) -> _Network:
    if found.config.get("low_res") is not None:
        raise ExchangeError(
            f"is a {found.name}", remedy=f"give it as {option('upsampler')}, beside a base", source=path
        )
    if found.unet is not None:
        if chosen.prior is not None:
            raise ExchangeError(
                f"{path} is a {found.name}, which has its own UNet",
                remedy=f"leave {option('prior')} out",
                option="prior",
                value=chosen.prior,
            )
        return _Network(found.name, found.config, SCHEDULES["base"], [_Part(path, found.rules, chosen.raw)])
    if chosen.prior is None:
        raise ExchangeError(
            "is only an encoder, as saved by PITI's first stage",
            remedy=(f"give the base whose UNet it was trained with, {option('prior')} GLIDE_BASE.pt or a model folder"),
            source=path,
        )
    return _joined(found, path, chosen.prior, chosen)


def _upsampler(found: Released, path: Path, chosen: ImportSettings) -> _Network:
    if found.config.get("low_res") is None:
        alone = " only, but an upsampler needs its UNet too" if found.unet is None else "; give it as BASE"
        raise ExchangeError(f"is a {found.name}{alone}", option="upsampler", value=path)
    return _Network(found.name, found.config, SCHEDULES["upsampler"], [_Part(path, found.rules, chosen.raw)])


# An encoder combined with another model's UNet


def _joined(found: Released, path: Path, prior: str | Path, chosen: ImportSettings) -> _Network:
    config, schedule, part = _prior_file(Path(prior), chosen) if Path(prior).is_file() else _prior_folder(prior)
    if config.get("low_res") is not None:
        raise ExchangeError("is an upsampler", remedy="give a base", option="prior", value=prior)
    width = config["unet_spec"]["token_width"]
    if width != found.encoder.width:
        raise ExchangeError(
            f"its UNet takes tokens of width {width}, but {path} produces {found.encoder.width}",
            remedy="give the base that the encoder was trained with",
            option="prior",
            value=prior,
        )
    merged = {**config, **found.config, "text_spec": None}
    what = f"{found.name} with the UNet of {Path(prior).name}"
    return _Network(what, merged, schedule, [_Part(path, found.rules, chosen.raw), part])


def _prior_file(path: Path, chosen: ImportSettings) -> tuple[dict[str, Any], ScheduleSpec, _Part]:
    found = _released(path, chosen)
    if found.unet is None:
        raise ExchangeError("is only an encoder, too", remedy="give a base", option="prior", value=path)
    rules = [rule for rule in found.rules if rule.targets[0].startswith("unet.")]
    return found.config, SCHEDULES["base"], _Part(path, rules, chosen.raw)


def _prior_folder(name: str | Path) -> tuple[dict[str, Any], ScheduleSpec, _Part]:
    folder = ModelFolder.open(find_model(name))
    config, schedule, network = saved_network(folder, "base", f"{option('prior')} {name}")
    weights = weights_in_one_file(network)
    expected, held = our_tensors(config, "unet."), read_weights(weights)
    odd = next((key for key, kind in expected.items() if key not in held or held[key].shape != kind.shape), None)
    if odd is not None:
        raise ExchangeError(f"{weights}: lacks '{odd}' of the size in config.json; save the model again")
    return config, schedule, _Part(weights, [same(key) for key in expected])


def saved_network(folder: ModelFolder, network: str, source: str) -> tuple[dict[str, Any], ScheduleSpec, Path]:
    """A network's configuration, schedule and folder. Raises ExchangeError, ModelError."""
    if network not in folder:
        raise ExchangeError(f"{source}: has no {network}; give a model with one")
    path = folder.path / network
    if (path / ADAPTER_CONFIG).is_file():
        raise ExchangeError(
            f"{source}: its {network} is a set of low-rank adapters for another model",
            remedy="save the merged model, PITIPipeline.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER), and "
            "give that",
        )
    return folder.arguments(network), spec_of(folder.scheduler(network)), path
