"""Saving, loading and uploading pipelines, in the layout of diffusers' pipelines."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, Unpack

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from piti.baselines import ImageNetwork
from piti.checkpoints.folder import OF_UPSAMPLER
from piti.checkpoints.hub import UploadKeywords, upload_model
from piti.checkpoints.writing import Saveable, WeightsForm, save_model_folder
from piti.conditions import Condition
from piti.core.errors import UserError
from piti.core.seeding import global_generators_kept
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import Scheduler, sampler_of
from piti.models import Translator
from piti.models.casting import under_adapters
from piti.models.space import Autoencoder, autoencoder_dtype
from piti.pipelines.call import one_of
from piti.pipelines.loading import DeviceMap, DType, ModelSource, dtypes_of, place, split
from piti.pipelines.options import GENERAL_DEFAULTS, NetworkOptions, SamplingOptions, UpsamplerOptions


class SavedPipeline(DiffusionPipeline):
    """Saving, loading and uploading of `PITIPipeline`, and its saved settings."""

    base: ImageNetwork
    scheduler: Scheduler | None
    condition: Condition
    upsampler: Translator | None
    upsampler_scheduler: Scheduler | None
    vae: Autoencoder | None

    @property
    def defaults(self) -> SamplingOptions:
        """The model's default sampling options; part of its configuration, for `from_pipe`.

        Options that are not set have the general defaults. Setting it raises UserError for options that belong to a
        call.
        """
        return self._defaults

    @defaults.setter
    def defaults(self, options: SamplingOptions) -> None:
        completed = options.networks_over(self._general_defaults())
        for key in ("base_only", "size", "square"):
            if getattr(options, key) != getattr(completed, key):
                raise UserError(
                    "is an option of single calls, not a default of the model",
                    remedy="pass it to each call",
                    option=key,
                )
        self._defaults = completed
        self.register_to_config(defaults=self._own_defaults())

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers, except that an autoencoder that does not work in half precision stays in float32."""
        exact = {} if self.vae is None else self.vae.state_dict()
        super().to(*args, **kwargs)
        if self.vae is not None:
            dtype = autoencoder_dtype(self.vae.config, self.vae.dtype)
            if dtype is not self.vae.dtype:
                nn.Module.to(self.vae, dtype=dtype)  # diffusers' own method warns
                self.vae.load_state_dict(exact)  # the weights, which `super().to` rounded
        return self

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **hub: Unpack[UploadKeywords],
    ) -> None:
        """Write the model's folder, replacing an existing model only once everything is written.

        safe_serialization: weights as safetensors, else as PyTorch pickles. variant: part of the file names, such as
        "fp16". max_shard_size: of a weight file, such as "5GB". push_to_hub: also upload it, with a model card. hub:
        `repo_id`, by default the folder's name, and arguments of `push_to_hub`.

        Raises OutputError if it cannot be written.
        """
        folder = Path(save_directory)
        parts: dict[str, Saveable] = {"base": _saveable(self.base, "base")}
        if self.scheduler is not None:
            parts["scheduler"] = self.scheduler
        if self.upsampler is not None and self.upsampler_scheduler is not None:
            parts |= {
                "upsampler": _saveable(self.upsampler, "upsampler"),
                "upsampler_scheduler": self.upsampler_scheduler,
            }
        if self.vae is not None:
            parts["vae"] = self.vae
        form = WeightsForm(safe_serialization, variant, max_shard_size)
        save_model_folder(folder, parts, self.condition, self._own_defaults(), form)
        if push_to_hub:
            upload_model(folder, **{"repo_id": folder.name, **hub})
        elif hub:
            raise UserError("has no effect without push_to_hub", remedy="remove it", option=next(iter(hub)))

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Upload the model's folder, with a model card unless there is one. Returns its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant)
            return upload_model(Path(folder), repo_id, commit_message, private, token, create_pr)

    def _general_defaults(self) -> SamplingOptions:
        """`GENERAL_DEFAULTS`, with the samplers given by the schedulers."""
        first, second = self.scheduler, self.upsampler_scheduler
        by_class = SamplingOptions(
            base=NetworkOptions(sampler=None if first is None else sampler_of(first)),
            upsampler=UpsamplerOptions(sampler=None if second is None else sampler_of(second)),
        )
        return by_class.networks_over(GENERAL_DEFAULTS)

    def _own_defaults(self) -> dict[str, Any]:
        """Sampling settings saved in the model folder, under flat keys: those that differ from the general defaults."""
        general, own = self._general_defaults().to_flat(), self.defaults.to_flat()
        said = {key: value for key, value in own.items() if value != general[key]}
        if self.upsampler is None:
            said = {key: value for key, value in said.items() if not key.startswith(OF_UPSAMPLER)}
        return {key: _plain(value) if isinstance(value, Guidance) else value for key, value in said.items()}

    @classmethod
    @global_generators_kept()
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        name: str | Path,
        torch_dtype: DType | Mapping[str, DType] | None = None,
        upsampler: str | Path | Translator | None = None,
        base_only: bool = False,
        *,
        dtype: DType | Mapping[str, DType] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: DeviceMap | None = None,
        **others: Any,
    ) -> Self:
        """Load a bundled model by name, a folder, a training run, or a hub model by id.

        torch_dtype, or dtype: of the weights, float32 by default. A dictionary gives the dtype of each component, and
        under "default" that of the others. upsampler: a model, named as `name`, whose upsampler and upsampler settings
        replace the model's; or an upsampler itself, with its `upsampler_scheduler`. base_only: load no upsampler.
        variant: of the weight files, such as "fp16". device_map: a device, "balanced" (networks over all accelerators),
        or a device for each network. others: components to use instead of loading them (`base`, `scheduler`,
        `condition`, `vae`), and arguments of the hub's download (`cache_dir`, `local_files_only`, `token`, and
        `revision`, which applies only to `name`).

        The global random number generators are left unchanged. Raises ModelError.

        `DiffusionPipeline.from_pretrained` takes the same folders with `custom_pipeline`, see `piti.pipelines.custom`.
        """
        source = ModelSource(
            dtypes_of(one_of("torch_dtype", torch_dtype, "dtype", dtype)), variant, use_safetensors, *split(others)
        )
        pipe = cls(**source.parts(name, upsampler, base_only))
        pipe.register_to_config(_name_or_path=str(name))
        place(pipe, device_map)
        return pipe


def _saveable(network: ImageNetwork, name: str) -> ImageNetwork:
    """The network. Raises UserError if it cannot be saved: with offloaded weights, or with unmerged peft adapters."""
    if any(parameter.is_meta for parameter in network.parameters()):
        raise UserError(f"the {name}'s weights are offloaded and cannot be saved", remedy="call remove_all_hooks first")
    if under_adapters(network):
        raise UserError(
            f"the {name} has unmerged peft adapters, with which its folder could not be loaded",
            remedy=f"merge them first: pipe.{name}.unet.fuse_lora() and unload_lora(), or pipe.{name} = "
            f"pipe.{name}.merge_and_unload() of a PeftModel",
        )
    return network


def _plain(rule: Guidance) -> float | dict[str, Any]:
    """A rule for JSON: only its strength if all other values are the defaults."""
    return rule.w if rule == Guidance(w=rule.w) else rule.to_dict()
