"""Sampling steps do not synchronise with the device: they run from noise to images on "meta", where tensors have no
values. Between the networks of a cascade the small images are read once, to refuse non-finite ones."""

from __future__ import annotations

import pytest
import torch

from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import SAMPLERS
from piti.pipelines.cascade import Batch, Network
from piti.pipelines.options import SamplingOptions
from tests.pipelines.test_cascade import tiny_cascade
from tests.pipelines.test_pipeline import mask


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rule", ["normalized", "apg"])
def test_a_guided_cascade(sampler: str, rule: str) -> None:
    pipeline = tiny_cascade()
    options = SamplingOptions.from_flat(
        {"sampler": sampler, "steps": 2, "guidance": Guidance(kind=rule, w=1.0), "upsampler_sampler": sampler}
    )
    prepared = pipeline.prepare(mask(1), options)
    pipeline.to("meta")
    batch = Batch([prepared], [0, 0], [torch.Generator().manual_seed(k) for k in range(2)])
    base, upsampler = pipeline.base_network(), pipeline.upsampler_network()
    assert isinstance(base, Network)
    assert upsampler is not None
    assert prepared.sampling.upsampler is not None
    small = base.sample(batch, prepared.sampling.base, lambda done, x0: None)
    made = upsampler.sample(batch.upsampled(), prepared.sampling.upsampler, lambda done, x0: None, small)
    assert small.is_meta
    assert made.is_meta
    assert made.shape[0] == 2
