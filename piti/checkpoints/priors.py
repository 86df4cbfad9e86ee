"""Import of text-to-image models of other families from diffusers folders: Stable Diffusion 1 to 3, SDXL, DeepFloyd IF,
PixArt, Sana, FLUX.1. A folder is recognised by its `model_index.json` and the configurations of its components.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piti.checkpoints.convert import Converted, check_outside, is_model
from piti.checkpoints.folder import AUTOENCODER, INDEX_FILE, SCHEDULERS, bundled_models, imported_folder
from piti.checkpoints.prior_families import PriorError, family_of, own_model, read_config
from piti.checkpoints.prior_folders import Recognised, recognised
from piti.checkpoints.prior_hub import fetched, fetched_configurations, is_id
from piti.checkpoints.writing import Saveable, write_model_folder
from piti.core.files import check_folder, whole_folder
from piti.diffusion.schedulers import scheduler_of

_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def is_pipeline(source: str) -> bool:
    """Whether a name refers to a diffusers folder or a hub id rather than a weights file, even if it does not exist."""
    path = Path(source)
    return path.is_dir() or (path.suffix not in _FILES and not path.exists())


def refuse_release_options(source: str, **options: object) -> None:
    """Raises PriorError for options of released files, which do not apply to a diffusers folder."""
    for name, value in options.items():
        if value is not None:
            raise PriorError(
                f"does not apply: {source} is a diffusers folder, which defines it",
                remedy="leave it out",
                option=name,
                value=value,
            )


def import_prior(source: str | Path, out: Path, overwrite: bool = False) -> Converted:
    """Write the model folder `out` from a diffusers folder, or from a hub model.

    Weights are read only from safetensors, one tensor at a time except for the autoencoder, and keep their dtype. `out`
    is written atomically. Raises PriorError for a folder that is not in `FAMILIES`, WeightsError, OutputError.
    """
    folder = Path(source)
    _check_name(str(source))
    if not folder.exists():
        if str(source) in bundled_models():
            raise own_model(str(source))
        folder = fetched(str(source), _weights_wanted)
    check_outside(out, folder)
    check_folder(out, overwrite, is_model)
    found = recognised(folder)
    network = found.network()
    with whole_folder(out, overwrite, is_model) as partial_folder:
        parts: dict[str, Saveable] = {
            found.family.role: network,
            SCHEDULERS[found.family.role]: scheduler_of(found.schedule),
        }
        if found.family.latent:
            parts[AUTOENCODER] = found.autoencoder()
        condition = found.condition.saved_in(partial_folder)
        write_model_folder(partial_folder, parts, condition.to_config(), dict(found.family.sampling))
    parameters = network.translator.num_parameters()
    return Converted(found.what, folder, out, parameters, found.notes())


def not_imported(name: str) -> Recognised | None:
    """Recognise a hub model of another family, given by its id, that has not been imported yet, by its configurations;
    None for any other name. Raises ModelError."""
    path = Path(name)
    if path.exists() or not is_id(name) or (imported_folder(name) / INDEX_FILE).is_file():
        return None
    _check_name(name)
    folder = fetched_configurations(name)
    if read_config(folder / INDEX_FILE).get("_class_name") == "PITIPipeline":
        return None
    return recognised(folder)


_DISTILLED = ("turbo", "schnell")
"""Words in the names of models that are distilled for a few steps."""


def _check_name(source: str) -> None:
    """Raises PriorError for the name of a distilled model, whose files may not tell, as those of Stable Diffusion 3.5
    Large Turbo do not."""
    name = Path(source).name.lower()
    word = next((word for word in _DISTILLED if word in name), None)
    if word is not None:
        raise PriorError(
            f"its name suggests that it is distilled for a few steps ({word}), and such models take no guidance",
            remedy="give the model that it was distilled from, or rename the folder if it is not distilled",
            source=source,
        )


def _weights_wanted(index: Mapping[str, Any], source: str) -> list[str]:
    """The folders of a repository whose weights an import reads. Raises PriorError."""
    family = family_of(index, source)
    return [family.network, *(part.encoder for part in family.texts), *(["vae"] if family.latent else [])]
