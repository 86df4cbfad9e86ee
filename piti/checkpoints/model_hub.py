"""Models on the hub: downloading the files that are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piti.checkpoints.folder import EXAMPLES, INDEX_FILE, WEIGHTS_STEM, ModelError, imported_folder, is_foreign
from piti.conditions.tokenizers import TOKENIZER_FOLDER

_SMALL = ["*.json", "*.safetensors", "*.md", "*.yaml", f"{TOKENIZER_FOLDER}/*", f"{EXAMPLES}/*.png"]
_WEIGHTS = f"*/{WEIGHTS_STEM}*"


def fetched_model(name: str, known: str, variant: str | None = None, **hub: Any) -> Path:
    """The folder of a model on the hub.

    Of several variants of a network's weights only the one to be loaded is downloaded: `variant`, else the default,
    else all that there are. A text-to-image model of another family is imported, see `imported_folder`. known: the
    bundled models, for the error; hub: arguments of the hub's download. Raises ModelError.
    """
    try:
        index = _snapshot(name, [INDEX_FILE], **hub) / INDEX_FILE
        if not (index.is_file() and is_foreign(index)):
            return _fetched(name, variant, **hub)
    except Exception as error:  # the hub raises errors of many libraries
        raise ModelError(
            f"there is no model '{name}': no folder or training run has this name, and it could not be downloaded "
            "from the hub",
            remedy=f"check the path ({known}); the hub's error: {error}",
        ) from error
    from piti.checkpoints.priors import import_prior  # which writes folders as this module does

    asked = [key for key, value in hub.items() if value]
    if asked:
        raise ModelError(
            f"'{name}' is a diffusers model of another family, which is imported in its current revision",
            remedy=f"leave {', '.join(asked)} out, or import it first: piti import",
        )
    import_prior(name, imported_folder(name), overwrite=True)
    return imported_folder(name)


def _fetched(name: str, variant: str | None, **hub: Any) -> Path:
    """The folder of a model of this package, with one variant of each network's weights."""
    folder = _snapshot(name, _SMALL, [f"{_WEIGHTS}.safetensors"], **hub)
    stem = f"*/{WEIGHTS_STEM}" if variant is None else f"*/{WEIGHTS_STEM}.{variant}"
    folder = _snapshot(name, [f"{stem}.safetensors", f"{stem}-*.safetensors"], **hub)
    without = [path.parent for path in folder.glob("*/config.json") if not any(path.parent.glob("*.safetensors"))]
    if without and (variant is None or any(folder.glob(f"{_WEIGHTS}.safetensors"))):
        folder = _snapshot(name, [f"{network.name}/{WEIGHTS_STEM}*.safetensors" for network in without], **hub)
    if any(folder.rglob("*.safetensors")):
        return folder
    return _snapshot(name, [f"{_WEIGHTS}.bin"], **hub)


def _snapshot(name: str, wanted: Sequence[str], unwanted: Sequence[str] = (), **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(wanted), ignore_patterns=list(unwanted), **hub))
