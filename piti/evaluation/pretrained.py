"""Networks of transformers from a hub or a local folder, with their image processors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from piti.core.errors import UserError, first_line, text_of
from piti.core.errors import option as mention
from piti.core.files import file_hash
from piti.models.perceptual import hub_folder

_WANTED = ("*.json", "model*.safetensors")
_OLDER = ("pytorch_model*.bin",)
_WEIGHTS = (*_WANTED[1:], *_OLDER)
_PREPARED = "preprocessor_config.json"


class JudgeError(UserError):
    """An evaluation network cannot be loaded or used. The message names it and the remedy."""


@runtime_checkable
class Named(Protocol):
    """An evaluation network, with what identifies it."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def source(self) -> str:
        """The hub repository, folder or file that it was opened from, as given."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weights."""
        ...


@dataclass(frozen=True)
class Pretrained:
    """A frozen network with its weights, and the processor of its `preprocessor_config.json`."""

    network: Any
    processor: Any
    source: str
    """The hub repository or folder, as given."""
    sha256: str
    """SHA-256 of the weights' file; for several, of their concatenated hashes, sorted by name."""

    @property
    def name(self) -> str:
        """The last part of the source."""
        return Path(self.source).name

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device

    def prepared(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Preprocessed images of one size, without a centre crop, so that whole images are evaluated.

        Raises JudgeError for images of several sizes.
        """
        sizes = sorted({image.size for image in images})
        if len(sizes) != 1:
            raise JudgeError(f"expected images of one size, got {sizes}; pass each size separately")
        settings = {"do_center_crop": False} if getattr(self.processor, "do_center_crop", False) else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **settings)
        return {key: value.to(self.device) for key, value in inputs.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class ByPretrained:
    """An evaluation network of transformers."""

    judge: Pretrained

    @property
    def name(self) -> str:
        """The last part of the source."""
        return self.judge.name

    @property
    def source(self) -> str:
        """The hub repository or folder."""
        return self.judge.source

    @property
    def sha256(self) -> str:
        """Of the weights."""
        return self.judge.sha256


def load_pretrained(
    source: str, tasks: Mapping[str, Sequence[str]], what: str, option: str, device: torch.device
) -> Pretrained:
    """Load a network for one of these tasks, float32, frozen, in evaluation mode.

    source: a hub repository or a local folder; tasks: names as in transformers' AutoModelFor…, each with the supported
    model types (empty for all); the first that matches the network is used. what, option: description and option, for
    errors. No code of a repository is run. Raises JudgeError if transformers, the folder, its files, or some of the
    weights are missing.
    """
    transformers = import_transformers(mention(option))
    folder = _folder(source, what, option)
    files = _weights(folder, source, option)
    with _explained(source, option), quietly(transformers):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        task = _task(transformers, tasks, config, what, (option, source))
        network, report = task.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below
            dtype=torch.float32,
        )
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, config=config, local_files_only=True, backend="pil"
        )
    _check_complete(report, (option, source), type(network).__name__, what)
    network.requires_grad_(False).eval().to(device)
    return Pretrained(network, processor, source, _hash(files))


def pretrained_sha256(source: str, what: str, option: str) -> str:
    """The hash of the weights that `load_pretrained` loads for this name. Raises JudgeError."""
    return _hash(_weights(_folder(source, what, option), source, option))


def _check_complete(report: Mapping[str, Any], given: tuple[str, str], network: str, what: str) -> None:
    """Raises JudgeError if weights were missing or had other shapes, and so are random."""
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    if missing:
        named = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise JudgeError(
            f"{len(missing)} tensors of {network} ({named}) are missing from its weights, or have other shapes, so it "
            f"was not trained as {what}",
            remedy="give a model that was",
            option=given[0],
            value=given[1],
        )


def import_transformers(what: str) -> Any:
    """Import transformers for `what`. Raises JudgeError with installation instructions."""
    try:
        import transformers
    except ImportError:
        raise JudgeError(f"{what} needs transformers, which is not installed; pip install 'piti[eval]'") from None
    return transformers


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Silence transformers' warnings, such as on unused weights, and its progress bars."""
    log = transformers.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def repository_folder(repository: str, remedy: str) -> Path:
    """A model's folder from the hub or its cache: configs and weights, pickles only without safetensors.

    remedy: alternative stated in errors. Raises UserError.
    """
    found = hub_folder(repository, _WANTED, remedy)
    return found if list(found.glob(_WANTED[1])) else hub_folder(repository, [*_WANTED, *_OLDER], remedy)


def _folder(source: str, what: str, option: str) -> Path:
    """The folder of the files, downloaded from the hub if `source` is not a folder."""
    place = Path(source).expanduser()
    if place.is_dir():
        return place
    remedy = f"give a hub repository, OWNER/NAME, or a folder of a transformers model that is {what}"
    if place.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise JudgeError("no such folder", remedy=remedy, option=option, value=source)
    try:
        return repository_folder(source, remedy)
    except UserError as error:
        raise JudgeError(text_of(error), option=option) from error


def _weights(folder: Path, source: str, option: str) -> list[Path]:
    """The weight files. Raises JudgeError if they or other required files are missing."""
    for name in ("config.json", _PREPARED):
        if not (folder / name).is_file():
            raise JudgeError(
                f"has no {name}",
                remedy="save the model and its image processor in the same folder",
                option=option,
                value=source,
            )
    for pattern in _WEIGHTS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise JudgeError(
        f"has no weights ({', '.join(_WEIGHTS)})", remedy="save the model there again", option=option, value=source
    )


def _task(transformers: Any, tasks: Mapping[str, Sequence[str]], config: Any, what: str, given: tuple[str, str]) -> Any:
    """The AutoModel class of the first task that the network's config supports."""
    for task, kinds in tasks.items():
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", task).upper()
        serves = type(config) in getattr(transformers, f"MODEL_FOR_{words}_MAPPING")
        if serves and (not kinds or config.model_type in kinds):
            return getattr(transformers, f"AutoModelFor{task}")
    usable = [f"AutoModelFor{task}" + (f" ({', '.join(kinds)} only)" if kinds else "") for task, kinds in tasks.items()]
    raise JudgeError(
        f"contains a network of type {config.model_type}, which cannot be used as {what}",
        remedy=f"give one of transformers' {' or '.join(usable)}",
        option=given[0],
        value=given[1],
    )


@contextmanager
def _explained(source: str, option: str) -> Iterator[None]:
    """Turn transformers' errors on unusable files into JudgeErrors with their path."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    wrong = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise JudgeError(first_line(error), remedy="or use another network", option=option, value=source) from error
    except (*wrong, SafetensorError, StrictDataclassError) as error:
        raise JudgeError(
            f"cannot be loaded ({first_line(error)})", remedy="save or download it again", option=option, value=source
        ) from error


def _hash(files: Sequence[Path]) -> str:
    hashes = [file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
