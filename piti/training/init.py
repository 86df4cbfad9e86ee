"""Initial weights: all of another model, or a prior's UNet with a new encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from piti.checkpoints.folder import (
    ModelError,
    ModelFolder,
    bundled_models,
    find_model,
    imported_folder,
    lasting_name,
    weights_in_one_file,
)
from piti.checkpoints.lora import ADAPTER_CONFIG, Adapted, AdapterConfig, approach, inject
from piti.checkpoints.prior_hub import is_id
from piti.checkpoints.priors import not_imported
from piti.checkpoints.weights import WEIGHTS_FILE, read_weights
from piti.conditions import Condition
from piti.core.errors import flag, option, text_of
from piti.core.files import file_hash
from piti.core.seeding import derive_seed
from piti.diffusion.samplers import Scheduler
from piti.diffusion.schedule import NoiseSchedule, ScheduleSpec
from piti.diffusion.schedulers import spec_of
from piti.models import Translator
from piti.training.fitting import (
    READING,
    channel_order,
    check_config,
    check_schedule,
    check_settings,
    check_shapes,
    learned_at,
    schedule_differences,
)
from piti.training.recipe import Recipe, RecipeError

UNET = "unet."
ENCODER = "encoder."


def begin(translator: Translator, recipe: Recipe, condition: Condition | None = None, only_check: bool = False) -> str:
    """Load the recipe's `init` or `prior`, if any, and describe it in a line.

    condition: the recipe's, for matching channels by classes; None if not known yet. only_check: check without loading.
    Raises ModelError if there is no such model, RecipeError if it does not fit.
    """
    if recipe.init is not None:
        student, other = _student_of(recipe), _learned_otherwise(translator, recipe)
        if recipe.adapts:
            return _begin_beneath(translator, recipe, condition, student, only_check)
        key, name = ("init", recipe.init) if student is None else ("distillation.student", student)
        moved = load_weights(translator, name, NoiseSchedule(recipe.schedule), condition, key, only_check)
        return f"all weights of {name}{', channels matched to classes by name' if moved else ''}{other}"
    if recipe.prior is not None:
        return load_prior(translator, recipe.prior, recipe.schedule, only_check, recipe.adapts)
    first = recipe.stages[0]
    if "unet" not in first.trains:
        return f"newly initialised weights: stage '{first.name}' freezes an untrained UNet; set a 'prior'"
    return "newly initialised weights"


def _begin_beneath(
    translator: Translator, recipe: Recipe, condition: Condition | None, student: str | None, only_check: bool
) -> str:
    """Load the base model of a distilled model's adapters, and check the student that they start from.

    Raises ModelError, and RecipeError if the model's encoder, which is not trained, reads the classes in another order.
    """
    assert recipe.init is not None  # ensured by the recipe
    schedule = NoiseSchedule(recipe.schedule)
    for key, name in {"distillation.student": student, "init": recipe.init}.items():
        if name is None:
            continue
        moved = load_weights(translator, name, schedule, condition, key, only_check or key != "init")
        if moved and "encoder" not in recipe.trained:
            raise RecipeError(
                f"{key}: {name} has the same classes in another order, and adapters do not change its encoder",
                remedy="put the data's classes in its order, or train 'encoder' too",
            )
    _beneath(_network_of(translator, recipe.init, "init"), "init")
    near = "" if student is None else f"; adapters approximate the student {student}"
    return f"all weights of {recipe.init}{near}"


def _learned_otherwise(translator: Translator, recipe: Recipe) -> str:
    """A note if `init` was trained with another noise schedule than the recipe's; else empty.

    Raises RecipeError for a distilled model, unless it is distilled further.
    """
    assert recipe.init is not None
    folder = _network_of(translator, recipe.init, "init")
    model = ModelFolder.open(folder.parent)
    if recipe.distillation is None:
        _check_no_student(model, folder.name, recipe.init, "init")
    odd = schedule_differences(spec_of(model.scheduler(folder.name)), recipe.schedule)
    return f"; they were trained with another schedule ({', '.join(odd.values())})" if odd else ""


def _student_of(recipe: Recipe) -> str | None:
    """The student that another one starts from. Raises ModelError, and RecipeError if it is not a student, or knows
    only a few timesteps when all are needed."""
    spec = recipe.distillation
    if spec is None or spec.student is None:
        return None
    folder = ModelFolder.open(find_model(spec.student))
    known = folder.student("base")
    if known is None:
        raise RecipeError(
            f"distillation.student: {spec.student} was not distilled",
            remedy="give a model or run made by piti distill, or remove the key",
        )
    if spec.steps is None and known.timesteps is not None:
        raise RecipeError(
            f"distillation.student: {spec.student} was distilled to a few steps, but this student needs all",
            remedy="remove the key, or give a student with only guidance distilled",
        )
    return spec.student


def begun_sha256(recipe: Recipe) -> str | None:
    """Hash of a recipe's initial weights, by their files. None for newly initialised weights, and for a model that is
    not on this machine: nothing is downloaded."""
    name = recipe.init or recipe.prior
    if name is None or not (name in bundled_models() or Path(name).exists() or imported_folder(name).exists()):
        return None
    try:
        network = find_model(name) / ("base" if recipe.model.low_res is None else "upsampler")
    except ModelError:
        return None
    files = sorted(path for ending in ("safetensors", "bin") for path in network.glob(f"*.{ending}"))
    return hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest() if files else None


def adapt(translator: Translator, recipe: Recipe, anew: bool = True) -> Adapted:
    """Insert the recipe's low-rank adapters into a translator with the UNet of its prior or of the distilled model.
    anew: initialise them as in the recipe; else they add nothing until they are loaded. Raises UserError,
    ModelError."""
    key, name = ("init", recipe.init) if recipe.prior is None else ("prior", recipe.prior)
    assert name is not None  # ensured by the recipe
    path = _beneath(_network_of(translator, name, key), key)
    torch.manual_seed(derive_seed(recipe.seed, "adapters"))
    inject(translator, recipe.lora)
    student = _student_of(recipe) if anew else None
    if student is not None:
        target = _load(_network_of(translator, student, "distillation.student"))[0].state_dict()
        approach(translator, target, recipe.lora)  # checked by `begin`
    own_encoder = recipe.prior is not None or "encoder" in recipe.trained
    config = AdapterConfig(prior=lasting_name(name), sha256=file_hash(path), lora=recipe.lora, own_encoder=own_encoder)
    return Adapted(translator, config)


def _beneath(folder: Path, key: str) -> Path:
    """The weights file of a network, as base of adapters. Raises RecipeError."""
    try:
        return weights_in_one_file(folder)
    except ModelError as error:
        raise RecipeError(f"{key}: {text_of(error)}") from None


def load_weights(
    translator: Translator,
    name: str,
    schedule: NoiseSchedule,
    condition: Condition | None = None,
    key: str = "init",
    only_check: bool = False,
) -> bool:
    """Start from a model's weights. Raises ModelError if there is no such model, RecipeError if a weight does not fit.

    schedule: the recipe's, whose noise levels are part of an upsampler's preconditioning. condition: the translator's;
    if the model has the same classes in another order, its channels are reordered, and True is returned. key: the
    recipe's key, for errors. only_check: check without loading. Also raises RecipeError for other classes.
    """
    folder = _network_of(translator, name, key)
    learned = ModelFolder.open(folder.parent).condition
    order = None if condition is None or translator.encoder is None else channel_order(learned, condition, name, key)
    theirs, own = _load(folder)[0], translator.state_dict()
    given = theirs.state_dict()
    check_config(translator, theirs.config.get("unet_config") or {}, name, key)
    before, here = (one.config.get("embedded_guidance") for one in (theirs, translator))
    if before != here:
        raise RecipeError(
            f"{key}: {name} learned with 'embedded_guidance' {before}, and this recipe has {here}; make them equal"
        )
    check_shapes(key, folder, own, given, own.keys() | given.keys())
    check_settings(translator, theirs.config, name, key, unet_only=False)
    if only_check:
        return order is not None
    if order is not None:
        given |= {one: given[one][:, order] for one in READING if one in given}
    translator.load_state_dict(given)
    if translator.preconditioning is not None:
        translator.preconditioning.set_noise(schedule.alphas_cumprod)
    return order is not None


def load_prior(
    translator: Translator, name: str, schedule: ScheduleSpec, only_check: bool = False, adapts: bool = False
) -> str:
    """Load a prior's UNet, and keep the new encoder (PITI, section 3.3). adapts: with low-rank adapters, which do not
    change the UNet's weights.

    Returns a line on what was loaded and what was dropped. Raises ModelError if there is no such model; RecipeError if
    a weight of the UNet is missing or has another shape, if the prior was distilled, or if it was trained with another
    schedule or another kind of prediction.
    """
    found = not_imported(name) if only_check else None
    if found is not None:
        check_config(translator, found.unet, name)
        learned = learned_at(found.schedule, found.arguments(), translator, schedule, name)
        sampled = check_schedule(learned, schedule, name)
        return f"prior {name}: {found.what}; downloaded and imported when the run starts{sampled}"
    folder = _network_of(translator, name, "prior")
    model = ModelFolder.open(folder.parent)
    _check_no_student(model, folder.name, name, "prior")
    config = model.config(folder.name)
    if adapts:
        _beneath(folder, "prior")
    given, scheduler = _weights(folder)
    own = translator.state_dict()
    check_config(translator, config.get("unet_config") or {}, str(folder))
    given, widened = _widened(translator, given, bool(config.get("inpaint")), name)
    if widened and adapts:
        raise RecipeError(
            f"prior: {name} does not inpaint, and adapters cannot add inputs to its UNet; remove 'model.inpaint', "
            "or train 'unet'"
        )
    unet = [key for key in own.keys() | given.keys() if key.startswith(UNET)]
    check_shapes("prior", folder, own, given, unet)
    check_settings(translator, config, name, "prior", unet_only=True)
    learned = learned_at(spec_of(scheduler), config, translator, schedule, name)
    sampled = check_schedule(learned, schedule, str(folder.parent))
    if not only_check:
        translator.load_state_dict({key: given[key] for key in unet}, strict=False)
    left = sorted(key for key in given if key.startswith(ENCODER))
    named = f" ({', '.join(left[:2])}, …)" if left else ""
    new = "; new input channels for the known image start at zero" if widened else ""
    return (
        f"prior {name}: {len(unet)} weights of its UNet loaded, {len(left)} of its encoder dropped{named}{new}{sampled}"
    )


def _check_no_student(model: ModelFolder, network: str, name: str, key: str) -> None:
    """Raises RecipeError for a student, whose UNet contains guidance and may know only a few timesteps."""
    student = model.student(network)
    if student is not None:
        given = "" if student.teacher is None else f" ({option('set')} {key}={student.teacher})"
        raise RecipeError(
            f"{key}: {name} was distilled, so its UNet cannot serve as a prior",
            remedy=f"give {student.origin}{given}",
        )


def _widened(
    translator: Translator, given: Mapping[str, Tensor], inpaints: bool, name: str
) -> tuple[Mapping[str, Tensor], bool]:
    """Extend the weights of a prior for an inpainting translator: the new channels start at zero, as in GLIDE (Nichol
    et al. 2021, arXiv 2112.10741), so it initially generates like the prior. inpaints: whether the prior does. Raises
    RecipeError if only the prior inpaints.
    """
    if inpaints and not translator.inpaint:
        raise RecipeError(f"prior: {name} inpaints, but this recipe's model does not; set model.inpaint: true")
    key, squared = f"{UNET}conv_in.weight", translator.patch_size**2
    weight = given.get(key)
    if inpaints or not translator.inpaint or weight is None:
        return given, False
    noisy, small = weight[:, : 3 * squared], weight[:, 3 * squared :]  # x_t, then an upsampler's small image
    zeros = weight.new_zeros(len(weight), 4 * squared, *weight.shape[2:])
    return {**given, key: torch.cat([noisy, zeros, small], dim=1)}, True


def _weights(folder: Path) -> tuple[Mapping[str, Tensor], Scheduler]:
    """A network's weights and its scheduler; a single weights file is memory-mapped, so that an unused text encoder
    takes no memory. Raises ModelError."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() or (folder / ADAPTER_CONFIG).is_file():
        loaded, scheduler = _load(folder)
        return loaded.state_dict(), scheduler
    model = ModelFolder.open(folder.parent)
    model.check_translator(folder.name)
    return read_weights(path), model.scheduler(folder.name)


def _network_of(translator: Translator, name: str, key: str) -> Path:
    """The folder of a model's network with the translator's role. Raises ModelError, RecipeError."""
    if translator.config.get("unet_config") is not None and not Path(name).exists() and not is_id(name):
        raise ModelError(
            f"{key}: there is no model '{name}' yet",
            remedy=f"import it: piti import FOLDER_OR_HUB_ID {flag('out')} {name}; or give its hub id, "
            f"{option('set')} {key}=OWNER/NAME",
        )
    if key == "prior" and name.startswith(("./", "../", "/")) and not Path(name).exists():
        upsampler = f" {flag('upsampler')} UPSAMPLER.pt" if translator.role == "upsampler" else ""
        raise ModelError(
            f"{key}: there is no model '{name}' yet",
            remedy=f"import it, such as GLIDE's files: piti import BASE.pt{upsampler} {flag('out')} {name}; or give "
            f"another model or run, {option('set')} {key}=NAME",
        )
    folder = find_model(name) / translator.role
    if not folder.is_dir():
        try:
            ModelFolder.open(folder.parent)
        except ModelError as error:  # not a model of this package
            raise RecipeError(f"{key}: {text_of(error)}") from None
        raise RecipeError(f"{key}: {folder.parent} has no {translator.role}; give a model with one")
    return folder


def _load(folder: Path) -> tuple[Translator, Scheduler]:
    """A network and its scheduler from the network's folder. Raises ModelError."""
    return ModelFolder.open(folder.parent).load(folder.name, torch.float32)
