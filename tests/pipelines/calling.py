"""Tiny pipelines called as in diffusers' tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from piti.pipelines.pipeline import PITIPipeline
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask, seeded, tiny_pipeline

KINDS = pytest.mark.parametrize("tiny", [tiny_pipeline, tiny_cascade], ids=["base", "cascade"])
CLOSE = 1e-4


def inputs(pipe: PITIPipeline, **changes: Any) -> dict[str, Any]:
    """As diffusers' tests call a pipeline: a generator, few steps, an array out."""
    given = {"condition": pipe.read(mask(1)), "generator": seeded(), "num_inference_steps": 2, "output_type": "np"}
    return given | changes


def called(pipe: PITIPipeline, **changes: Any) -> np.ndarray:
    return pipe(**inputs(pipe, **changes))[0]  # type: ignore[return-value]


def networks(pipe: PITIPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
