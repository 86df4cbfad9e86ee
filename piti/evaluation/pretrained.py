"""Networks of transformers from a hub or a local folder; judges by name, with what prepares images for them."""

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
    """A network that is to judge images cannot be had or used. The message names it and the remedy."""


@runtime_checkable
class Named(Protocol):
    """A network that judges images, and what it takes to find the same one again."""

    @property
    def name(self) -> str:
        """For tables."""
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
    """A network with its weights, frozen, and the processor that its `preprocessor_config.json` describes."""

    network: Any
    processor: Any
    source: str
    """The hub repository or folder, as it was given."""
    sha256: str
    """Of the weights' file; of several, the hash of their hashes, one after the other, sorted by name."""

    @property
    def name(self) -> str:
        """The last part of the source."""
        return Path(self.source).name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def prepared(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Images of one size as the network reads them, by its preprocessing, but for a centre crop: all is judged.

        Raises JudgeError for images of several sizes.
        """
        sizes = sorted({image.size for image in images})
        if len(sizes) != 1:
            raise JudgeError(f"images of one size are judged at a time, got {sizes}; give each size by itself")
        settings = {"do_center_crop": False} if getattr(self.processor, "do_center_crop", False) else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **settings)
        return {key: value.to(self.device) for key, value in inputs.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class ByPretrained:
    """A judge that is a network of transformers."""

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
    """A network for one of these tasks, float32, frozen, in evaluation mode.

    source: a hub repository or a local folder; tasks: as in transformers' AutoModelFor…, of which the first that its
    kind of network serves is taken, each with the kinds that can be used, all where there are none; what: it is;
    option: which one names it. Both are for errors. No code of a repository is run.
    Raises JudgeError where transformers, the folder, its files, or some of the weights are missing.
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
            ignore_mismatched_sizes=True,  # they are told below
            dtype=torch.float32,
        )
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, config=config, local_files_only=True, backend="pil"
        )
    _check_complete(report, (option, source), type(network).__name__, what)
    network.requires_grad_(False).eval().to(device)
    return Pretrained(network, processor, source, _hash(files))


def pretrained_sha256(source: str, what: str, option: str) -> str:
    """The hash of the weights that `load_pretrained` takes by this name. Raises JudgeError."""
    return _hash(_weights(_folder(source, what, option), source, option))


def _check_complete(report: Mapping[str, Any], given: tuple[str, str], network: str, what: str) -> None:
    """Raises JudgeError where weights were missing or of other shapes, and so are random."""
    missing = {str(key) for key in report["missing_keys"]} | {str(key[0]) for key in report["mismatched_keys"]}
    if missing:
        named = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise JudgeError(
            f"its weights lack {len(missing)} tensors of {network} ({named}), or have them in other shapes, so it was "
            f"not trained as {what}",
            remedy="give one that was",
            option=given[0],
            value=given[1],
        )


def import_transformers(what: str) -> Any:
    """The package. what: needs it. Raises JudgeError that says how to get it."""
    try:
        import transformers
    except ImportError:
        raise JudgeError(f"{what} needs transformers, which is not installed; pip install 'piti[eval]'") from None
    return transformers


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without transformers' reports, such as on weights that are left over, and without its bars beside ours."""
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
    """A model's folder from the hub or its cache: configs and weights, pickles only where there is nothing better.

    remedy: what errors say can be done instead. Raises UserError.
    """
    found = hub_folder(repository, _WANTED, remedy)
    return found if list(found.glob(_WANTED[1])) else hub_folder(repository, [*_WANTED, *_OLDER], remedy)


def _folder(source: str, what: str, option: str) -> Path:
    """Where the files are, fetched from the hub if `source` is no folder."""
    place = Path(source).expanduser()
    if place.is_dir():
        return place
    remedy = f"give a hub repository, OWNER/NAME, or a folder with a model of transformers that is {what}"
    if place.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise JudgeError("there is no such folder", remedy=remedy, option=option, value=source)
    try:
        return repository_folder(source, remedy)
    except UserError as error:
        raise JudgeError(text_of(error), option=option) from error


def _weights(folder: Path, source: str, option: str) -> list[Path]:
    """The files of weights. Raises JudgeError where they, or others that are needed, are missing."""
    for name in ("config.json", _PREPARED):
        if not (folder / name).is_file():
            raise JudgeError(
                f"has no {name}",
                remedy="save the model and its image processor there together",
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
    """The AutoModel class of the first task that a kind of network serves."""
    for task, kinds in tasks.items():
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", task).upper()
        serves = type(config) in getattr(transformers, f"MODEL_FOR_{words}_MAPPING")
        if serves and (not kinds or config.model_type in kinds):
            return getattr(transformers, f"AutoModelFor{task}")
    usable = [f"AutoModelFor{task}" + (f" ({', '.join(kinds)} only)" if kinds else "") for task, kinds in tasks.items()]
    raise JudgeError(
        f"holds a network of the kind {config.model_type}, which cannot serve as {what}",
        remedy=f"give one of transformers' {' or '.join(usable)}",
        option=given[0],
        value=given[1],
    )


@contextmanager
def _explained(source: str, option: str) -> Iterator[None]:
    """What transformers says of files that it cannot use, with their place."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    wrong = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise JudgeError(first_line(error), remedy="or give another network", option=option, value=source) from error
    except (*wrong, SafetensorError, StrictDataclassError) as error:
        raise JudgeError(
            f"cannot be loaded ({first_line(error)})", remedy="save or fetch it again", option=option, value=source
        ) from error


def _hash(files: Sequence[Path]) -> str:
    hashes = [file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
