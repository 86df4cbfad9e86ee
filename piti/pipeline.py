"""The pipeline: conditions in, images out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from piti.conditions import Condition, condition_from_config
from piti.diffusion.conditioning import conditioned
from piti.diffusion.guidance import Guidance, guided
from piti.diffusion.samplers import OnStep, initial_noise, sample, sampling_timesteps
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import spec_of
from piti.errors import UserError
from piti.images import center_box, to_pil
from piti.models import Tokens, Translator
from piti.models.checkpoints import CONDITION_FILE, INDEX_FILE, write_model_folder

ConditionInput = str | Path | Image.Image | Tensor

SETTINGS = {"sampler": "ddpm", "steps": 50, "guidance": 1.0}
"""How a model is sampled where neither the caller nor the model's own defaults say."""


HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "local_files_only", "token", "force_download"})


class ModelError(UserError):
    """A model cannot be found or loaded. The message says what was looked for and what there is."""


@dataclass
class PITIPipelineOutput(BaseOutput):
    """What a pipeline returns."""

    images: list[Image.Image]
    """`num_images` for each condition, in the order of the conditions."""


@dataclass(frozen=True)
class Sampling:
    """How to sample, everything decided."""

    guidance: Guidance
    steps: int | str
    sampler: str


class PITIPipeline(DiffusionPipeline):
    """Translates conditions into images (PITI, section 3).

    base: the translator that makes the image; scheduler: the noise schedule it was trained with;
    condition: how its input is read; defaults: `sampler`, `steps` and `guidance` of this model.
    """

    base: Translator
    condition: Condition
    model_cpu_offload_seq = "base"

    def __init__(
        self,
        base: Translator,
        scheduler: DDPMScheduler,
        condition: Condition,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(base=base, scheduler=scheduler, condition=condition)
        self.defaults = SETTINGS | (defaults or {})
        self.schedule = NoiseSchedule(spec_of(scheduler))

    @torch.no_grad()
    def __call__(
        self,
        condition: ConditionInput | Sequence[ConditionInput],
        num_images: int = 1,
        guidance: float | Guidance | None = None,
        steps: int | str | None = None,
        sampler: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 8,
        on_step: OnStep | None = None,
    ) -> PITIPipelineOutput:
        """Translate one condition or several, `num_images` times each.

        condition: a file, a PIL image, or what the condition's `read` returns, [K, h, w]; what is not
        square is cropped at its centre. guidance: the paper's w for normalised guidance, 0 for none, or a
        `Guidance`. steps, sampler: see `piti.diffusion.samplers`. generator: decides the noise; the same
        generator gives the same images, whatever the batch; several: one an image. batch_size: images
        made at once. on_step: called with (steps done, steps in all, x̂₀ [B, 3, H, W] in [-1, 1]).

        Raises ConditionError or ImageError for a condition, ValueError for a setting.
        """
        inputs = list(condition) if isinstance(condition, Sequence) and not isinstance(condition, str) else [condition]
        if num_images < 1 or batch_size < 1:
            raise UserError(f"num_images {num_images} and batch_size {batch_size} must be at least 1")
        settings = self.sampling(guidance, steps, sampler)
        per_batch = len(sampling_timesteps(self.schedule, settings.sampler, settings.steps))
        raws = [self.read(item) for item in inputs]
        generators = _one_each(generator, len(raws) * num_images)
        owners = [k for k in range(len(raws)) for _ in range(num_images)]
        batches = list(_slices(len(owners), batch_size))
        images: list[Image.Image] = []
        with self.progress_bar(total=per_batch * len(batches)) as bar:  # pyright: ignore[reportCallIssue]

            def stepped(done: int, total: int, x0: Tensor) -> None:
                bar.update()
                if on_step is not None:
                    on_step(done, total, x0)

            for start, stop in batches:
                x0 = self._translate(raws, owners[start:stop], settings, generators[start:stop], stepped)
                images += to_pil(x0.float().cpu())
        return PITIPipelineOutput(images=images)

    def sampling(
        self,
        guidance: float | Guidance | None = None,
        steps: int | str | None = None,
        sampler: str | None = None,
    ) -> Sampling:
        """These settings, and the model's own where they are None. Raises UserError for impossible ones."""
        chosen = {"guidance": guidance, "steps": steps, "sampler": sampler}
        values = self.defaults | {key: value for key, value in chosen.items() if value is not None}
        rule = values["guidance"]
        if not isinstance(rule, Guidance):
            rule = Guidance.parse(rule if isinstance(rule, dict) else {"w": rule}, "guidance")
        sampling_timesteps(self.schedule, values["sampler"], values["steps"])
        return Sampling(rule, values["steps"], values["sampler"])

    def _translate(
        self,
        raws: list[Tensor],
        owners: list[int],
        settings: Sampling,
        generators: list[torch.Generator],
        on_step: OnStep,
    ) -> Tensor:
        """One batch: image i is of condition raws[owners[i]]. [B, 3, H, W] in [-1, 1]."""
        device, side = self.base.device, self.base.image_size
        tokens, both = self._encode(raws, owners, with_null=settings.guidance.w != 0)
        denoise = guided(conditioned(self._predict, tokens, both, self.schedule), settings.guidance, self.schedule)
        x_T = initial_noise((len(owners), 3, side, side), generators, device=device)
        return sample(denoise, x_T, self.schedule, settings.sampler, settings.steps, generators, on_step)

    def _encode(self, raws: list[Tensor], owners: list[int], with_null: bool) -> tuple[Tokens, Tokens | None]:
        """Tokens of a batch, and the same followed by null tokens. Every condition is encoded once."""
        distinct = sorted(set(owners))
        encoded = self.condition.encode(torch.stack([raws[k] for k in distinct])).to(self.base.device, self.base.dtype)
        tokens = self.base.encode(encoded).picked([distinct.index(k) for k in owners])
        if not with_null:
            return tokens, None
        null = self.condition.null(1, *encoded.shape[-2:], device=encoded.device, dtype=encoded.dtype)
        return tokens, tokens.joined(self.base.encode(null).picked([0] * len(owners)))

    def _predict(self, x_t: Tensor, t: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        return self.base(x_t.to(self.base.dtype), t, tokens)

    def read(self, item: ConditionInput) -> Tensor:
        """A condition in raw form at the encoder's size, [K, size, size]."""
        if isinstance(item, Tensor):
            raw = self.condition.checked(item, "the given tensor")
        elif isinstance(item, Image.Image):
            raw = self.condition.read(item, "the given image")
        else:
            raw = self.condition.load(item)
        box = center_box(raw.shape[-1], raw.shape[-2])
        return self.condition.crop_resize(raw, box, self.base.encoder.spec.size)

    # On disk

    def save_pretrained(self, save_directory: str | Path) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the model's folder."""
        parts = {"base": self.base, "scheduler": self.scheduler}
        defaults = {key: value for key, value in self.defaults.items() if value != SETTINGS.get(key)}
        if isinstance(rule := defaults.get("guidance"), Guidance):
            defaults["guidance"] = rule.to_dict()
        write_model_folder(Path(save_directory), parts, self.condition.to_config(), defaults)

    @classmethod
    def from_pretrained(cls, name: str | Path, torch_dtype: torch.dtype = torch.float32, **kwargs: Any) -> Self:  # pyright: ignore
        """Load a bundled model by name, a folder, or a model of the hub by its id.

        kwargs: passed on to the hub's download (`revision`, `cache_dir`, `local_files_only`, `token`).
        Raises ModelError.
        """
        unknown = kwargs.keys() - HUB_ARGUMENTS
        if unknown:
            known = ", ".join(sorted({"torch_dtype", *HUB_ARGUMENTS}))
            raise ModelError(f"from_pretrained: unknown argument {', '.join(sorted(unknown))}; known are {known}")
        folder = find_model(name, **kwargs)
        try:
            config = json.loads((folder / CONDITION_FILE).read_text(encoding="utf-8"))
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ModelError(f"{folder}: {error}; the model's folder is not complete") from None
        condition = condition_from_config(config, str(folder / CONDITION_FILE))
        try:
            base = Translator.from_pretrained(folder / "base", torch_dtype=torch_dtype)
            scheduler = cast(DDPMScheduler, DDPMScheduler.from_pretrained(folder / "scheduler"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}: {error}") from None
        return cls(base.eval(), scheduler, condition, index.get("defaults"))


def bundled_models() -> dict[str, Path]:
    """The models that come with the package, by name."""
    root = Path(str(files("piti") / "assets"))
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / INDEX_FILE).is_file()}


def find_model(name: str | Path, **kwargs: Any) -> Path:
    """The folder of a bundled model, of a path (also a training run's), or of a model of the hub.

    Raises ModelError that lists what there is.
    """
    path, bundled = Path(name), bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    for folder in (path, path / "model"):
        if (folder / INDEX_FILE).is_file():
            return folder
    known = f"bundled models: {', '.join(bundled) or 'none'}"
    if path.exists():
        raise ModelError(f"{path} holds no {INDEX_FILE}; give a model's folder or a training run's ({known})")
    if str(name).count("/") != 1:
        raise ModelError(f"there is no model '{name}': neither bundled, nor a folder, nor an id of the hub ({known})")
    return _download(str(name), known, **kwargs)


def _download(name: str, known: str, **kwargs: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.md", "*.yaml"], **kwargs))
    except Exception as error:  # the hub raises errors of many libraries
        raise ModelError(f"'{name}' is no folder, and the hub did not give it: {error} ({known})") from error


def _one_each(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator an image, its seed drawn from the given one in the order of the images."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise UserError(f"{len(generator)} generators for {count} images; give one, or one an image")
        return list(generator)
    seeds = torch.randint(0, 2**62, (count,), generator=generator, device=generator.device if generator else "cpu")
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _slices(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def usable_device(name: str | None = None) -> torch.device:
    """The named device, or the fastest kind that torch sees here. Raises UserError for one that is not there."""
    try:
        device = torch.device(name or _fastest_kind())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; cpu always works") from None
    return device


def _fastest_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@dataclass(frozen=True)
class ModelInfo:
    """A model that is at hand."""

    name: str
    where: str
    folder: Path

    def row(self) -> dict[str, str]:
        """For a table."""
        condition = json.loads((self.folder / CONDITION_FILE).read_text(encoding="utf-8"))
        size = sum(p.stat().st_size for p in self.folder.rglob("*.safetensors"))
        config = json.loads((self.folder / "base" / "config.json").read_text(encoding="utf-8"))
        return {
            "model": self.name,
            "condition": condition["kind"],
            "image": f"{config['image_size']} px",
            "weights": f"{size / 1e6:.1f} MB",
            "where": self.where,
        }


def list_models() -> list[ModelInfo]:
    """Bundled models, then those in the hub's cache."""
    found = [ModelInfo(name, "bundled", folder) for name, folder in bundled_models().items()]
    return found + [ModelInfo(name, "hub cache", folder) for name, folder in _cached_models()]


def _cached_models() -> Iterator[tuple[str, Path]]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    needed = (CONDITION_FILE, "base/config.json")
    for repository in sorted(repositories, key=lambda repo: repo.repo_id):
        for revision in repository.revisions:
            index = revision.snapshot_path / INDEX_FILE
            whole = all((revision.snapshot_path / name).is_file() for name in needed)
            if whole and index.is_file() and '"PITIPipeline"' in index.read_text(encoding="utf-8"):
                yield repository.repo_id, revision.snapshot_path
