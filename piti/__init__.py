"""Pretraining-based image-to-image translation (PITI, arXiv 2205.12952)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piti.baselines import BaselineNetwork
    from piti.diffusion.guidance import Guidance
    from piti.editing.edit import edit
    from piti.editing.options import EditSettings
    from piti.models import Translator
    from piti.pipelines.options import SamplingOptions
    from piti.pipelines.pipeline import PITIPipeline, PITIPipelineOutput

__version__ = "0.1.0"

__all__ = [
    "BaselineNetwork",
    "EditSettings",
    "Guidance",
    "PITIPipeline",
    "PITIPipelineOutput",
    "SamplingOptions",
    "Translator",
    "__version__",
    "edit",
]

_WHERE = {
    "BaselineNetwork": "piti.baselines",
    "EditSettings": "piti.editing.options",
    "Guidance": "piti.diffusion.guidance",
    "PITIPipeline": "piti.pipelines.pipeline",
    "PITIPipelineOutput": "piti.pipelines.pipeline",
    "SamplingOptions": "piti.pipelines.options",
    "Translator": "piti.models",
    "edit": "piti.editing.edit",
    "ModelMixin": "diffusers.models.modeling_utils",  # by which diffusers' loader knows how our networks are loaded
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more: `import piti` itself costs nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'piti' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
