"""Loading a `PITIPipeline` with diffusers' own loader, for programs that use no other.

    from diffusers import DiffusionPipeline
    import piti.pipelines.custom as custom

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=custom.__file__, trust_remote_code=True)

diffusers copies this file and runs the copy, which is why it requires `trust_remote_code`; no other code is run. The
result is a `PITIPipeline`. FOLDER is a model's folder, also of a latent model. Bundled models by name, training runs,
and adapters on a prior's networks can only be loaded with `PITIPipeline.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class FromFolder(DiffusionPipeline):
    """Completes the components that diffusers loaded with the condition in the same folder."""

    _optional_components = ["scheduler", "upsampler", "upsampler_scheduler", "vae"]  # noqa: RUF012

    def __init__(
        self,
        base: Any,
        scheduler: Any = None,
        upsampler: Any = None,
        upsampler_scheduler: Any = None,
        vae: Any = None,
        defaults: Any = None,
        shares_upsampler_of: Any = None,
        shares_upsampler_sha256: Any = None,
    ) -> None:
        """Only a signature, which tells diffusers the keys of a model's index."""

    def __new__(
        cls,
        base: Any,
        scheduler: Any = None,
        upsampler: Any = None,
        upsampler_scheduler: Any = None,
        vae: Any = None,
        defaults: Any = None,
        shares_upsampler_of: str | None = None,
        shares_upsampler_sha256: str | None = None,
    ) -> Any:
        """A `PITIPipeline`. Raises ModelError, also if the shared upsampler has changed since the model was saved."""
        from piti.checkpoints.folder import OF_UPSAMPLER, ModelFolder, find_model
        from piti.core.seeding import global_generators_kept
        from piti.models.space import autoencoder_dtype
        from piti.pipelines import pipeline

        folder = ModelFolder.open(Path(base.config["_name_or_path"]).parent)
        settings = dict(defaults or {})
        if upsampler is None and shares_upsampler_of is not None:
            lender = ModelFolder.open(find_model(shares_upsampler_of))
            folder.check_lent(lender)
            with global_generators_kept():
                upsampler, upsampler_scheduler = lender.load("upsampler", base.dtype)
            settings |= {key: value for key, value in lender.defaults.items() if key.startswith(OF_UPSAMPLER)}
        if vae is not None:
            vae = vae.eval().requires_grad_(False)
            vae = vae.to(autoencoder_dtype(vae.config, vae.dtype))  # as in `ModelFolder.autoencoder`
        parts = base.eval(), scheduler, folder.condition, upsampler, upsampler_scheduler
        return pipeline.PITIPipeline(*parts, defaults=settings, vae=vae)
