"""Lossless export of model folders to files in GLIDE's or PITI's released layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from piti.checkpoints.convert import SCHEDULES, Converted, check_outside, saved_network
from piti.checkpoints.folder import SCHEDULERS, ModelFolder, find_model, weights_in_one_file
from piti.checkpoints.release import ExchangeError, as_released, is_released
from piti.checkpoints.release_keys import Rule
from piti.checkpoints.released_conditions import RELEASED_GEOMETRY, lost_in_release
from piti.checkpoints.weights import read_weights
from piti.conditions import SeveralCondition
from piti.core.errors import Message, UserError, text_of
from piti.core.files import whole_file, whole_folder

_FILE_SUFFIXES = (".pt", ".pth", ".ckpt")
_OTHER_SUFFIXES = (".safetensors", ".bin")
_EXPORTED = {network: f"{network}.pt" for network in SCHEDULERS}


@dataclass(frozen=True)
class _Export:
    """A network of this package that has a released layout."""

    what: str
    rules: list[Rule]
    weights: Path
    notes: tuple[str, ...]

    def write(self, path: Path) -> int:
        """Write the released file, and return its number of parameters. Raises WeightsError, OSError."""
        ours = read_weights(self.weights)
        if ours.keys() != {name for rule in self.rules for name in rule.targets}:
            raise ExchangeError(f"{self.weights}: its tensors do not match config.json; save the model again")
        released = {rule.source: _alone(rule.join(tuple(ours.pop(t) for t in rule.targets))) for rule in self.rules}
        try:
            with path.open("xb") as file:  # for its own files, torch does not report the cause
                torch.save(released, file)
        except RuntimeError as error:  # from its archive, which a failing write left incomplete
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        return sum(tensor.numel() for tensor in released.values())


def export_release(model: str | Path, out: Path, overwrite: bool = False) -> list[Converted]:
    """Write a model's networks in GLIDE's or PITI's released layout, as `torch.save` does.

    out: a file ending in .pt, .pth or .ckpt, for a model of one network, or a folder for base.pt and upsampler.pt.
    Written atomically; weights keep their dtype, and imported models are exported bit for bit, in the same order. The
    notes say what the release's code cannot use, and which options an import needs. Raises ReleaseError for a network
    without a released layout, ExchangeError, ModelError and OutputError.
    """
    folder = ModelFolder.open(find_model(model))
    exports = {network: _export(folder, network) for network in SCHEDULERS if network in folder}
    check_outside(out, *(folder.path / network for network in exports))
    if out.suffix in _FILE_SUFFIXES:
        if len(exports) != 1:
            raise ExchangeError(
                f"{folder.path} has {' and '.join(exports)}", remedy="give a folder for both", option="out", value=out
            )
        with whole_file(out, overwrite) as partial:
            return [_exchanged(export, partial, out) for export in exports.values()]
    if out.suffix in _OTHER_SUFFIXES:
        remedy = f"end the name in {' or '.join(_FILE_SUFFIXES)}, or give a folder"
        raise ExchangeError("released files are written by torch.save", remedy=remedy, option="out", value=out)
    with whole_folder(out, overwrite, _is_export) as partial:
        return [
            _exchanged(export, partial / _EXPORTED[name], out / _EXPORTED[name]) for name, export in exports.items()
        ]


def _exchanged(export: _Export, path: Path, final: Path) -> Converted:
    return Converted(export.what, export.weights.parent, final, export.write(path), export.notes)


def _export(folder: ModelFolder, network: str) -> _Export:
    source = str(folder.path / network)
    config, schedule, path = saved_network(folder, network, str(folder.path))
    condition, reads = folder.condition, config.get("encoder_spec") is not None
    if reads and isinstance(condition, SeveralCondition) and not condition.reads_like(RELEASED_GEOMETRY):
        raise ExchangeError(
            f"{source}: reads {', '.join(condition.parts)} at once; the layout cannot store which "
            "channels are whose, and its readers know one condition: only models of one can be exported"
        )
    try:
        found = as_released(config)
    except UserError as error:
        raise ExchangeError.like(error).about(source) from None
    if schedule != SCHEDULES[network]:
        own, theirs = schedule.to_dict(), SCHEDULES[network].to_dict()
        odd = {key: value for key, value in own.items() if value != theirs[key]}
        have = ", ".join(f"{key} = {value}" for key, value in odd.items())
        want = ", ".join(f"{key} = {theirs[key]}" for key in odd)
        raise ExchangeError(
            f"{source}: was trained with {have}; the layout stands for {want}, and cannot store another"
        )
    told = f" (to import: {text_of(found.options)})" if found.options else ""
    notes = lost_in_release(condition) if reads and network == "base" else []
    texts = tuple(Message(f"{found.name}: {note}") for note in notes)
    return _Export(Message(found.name + told), found.rules, weights_in_one_file(path), texts)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with its own storage, so that `torch.save` writes only its values."""
    shares = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shares else tensor


def _is_export(folder: Path) -> bool:
    """Whether a folder contains only an earlier export: base.pt and upsampler.pt, in the layout."""
    paths = list(folder.iterdir())
    return {path.name for path in paths} <= set(_EXPORTED.values()) and all(map(is_released, paths))
