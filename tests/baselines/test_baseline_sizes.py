"""Pix2PixHD, SPADE and OASIS at full width: parameters, shapes, incompatible settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from piti.baselines import Baseline, BaselineError, baseline_from_config
from piti.baselines.base import baseline_spec
from piti.baselines.modulated import level_widths
from piti.core.spec import SpecError
from tests.baselines.tiny import KINDS, noise, tiny


def whole(kind: str, size: int = 256, **changes: Any) -> Baseline:
    return baseline_from_config({"kind": kind, **changes}, 182, True, size)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks without numbers. There is no norm to be found, and looking for it takes seconds."""
    monkeypatch.setattr("torch.nn.utils.parametrizations._SpectralNorm._power_method", lambda *_: None)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [("pix2pixhd", 183.0, 5.9), ("spade", 97.5, 5.9), ("oasis", 75.2, 22.3)],
)
def test_parameters_of_182_classes_at_256_px(kind: str, generator: float, discriminator: float, on_meta: None) -> None:
    """Millions. Beside the classes Pix2PixHD and SPADE see ignored pixels and edges, OASIS ignored pixels."""
    baseline = whole(kind)
    sizes = [count(baseline.generator()), count(baseline.discriminator())]
    assert [round(size / 1e6, 1) for size in sizes] == [generator, discriminator]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: str, size: int, on_meta: None) -> None:
    """At full width."""
    baseline = baseline_from_config({"kind": kind}, 5, True, size)
    generator, discriminator = baseline.generator(), baseline.discriminator()
    seen = baseline.seen(torch.zeros(2, 5, size, size))
    noise = torch.zeros(2, *baseline.noise_shape) if baseline.noise_shape else None
    images = generator(seen, noise)
    judged = discriminator(images) if kind == "oasis" else discriminator(seen, images)
    assert images.shape == (2, 3, size, size)
    if kind == "oasis":
        assert judged.shape == (2, 6, size, size)
        return
    assert [len(maps) for maps in judged] == [5, 5]
    assert [maps[-1].shape[-1] for maps in judged] == [size // 8 + 3, size // 16 + 3]


def test_the_smallest_maps() -> None:
    """8 px for SPADE and OASIS, 16 for Pix2PixHD, whatever the image: fewer levels where it is smaller."""
    assert [whole("spade", size).upsamplings for size in (16, 64, 256, 512)] == [1, 3, 5, 6]  # type: ignore[attr-defined]
    assert [whole("pix2pixhd", size).downsamplings for size in (32, 64, 256, 512)] == [1, 2, 4, 4]  # type: ignore[attr-defined]
    assert whole("spade", 64, start=4).granularity == 16
    assert level_widths(64, 5) == [1024, 1024, 512, 256, 128, 64]
    assert level_widths(64, 6) == [1024, 1024, 1024, 512, 256, 128, 64]
    assert level_widths(16, 3) == [64, 64, 32, 16]


@pytest.mark.parametrize("kind", KINDS)
def test_other_sides_than_it_was_trained_on(kind: str) -> None:
    baseline = tiny(kind, size=32)
    wide = torch.zeros(1, 3, 16, 48)
    assert baseline.generator()(baseline.seen(wide), noise(baseline, 1)).shape == (1, 3, 16, 48)


@pytest.mark.parametrize(
    ("kind", "size", "changes", "said"),
    [
        ("pix2pixhd", 64, {"downsamplings": 6}, "cannot be halved 6 times to 2 px or more; lower 'downsamplings'"),
        ("pix2pixhd", 100, {"downsamplings": 4}, "choose a size of 32, 48"),
        ("pix2pixhd", 16, {"scales": 4}, "too small to be judged at 4 'scales'"),
        ("spade", 64, {"start": 64}, "not 'start' = 64 px doubled once or more"),
        ("spade", 96, {}, "choose a 'start' of 48, 24 .*, or a size of 16, 32, 64"),
        ("oasis", 18, {"start": 9}, "choose an even 'start'"),
        ("oasis", 256, {"start": 1}, "'start' = 1: .*give at least 2"),
        ("spade", 256, {"chanels": 3}, "unknown key 'chanels'; did you mean 'channels'"),
    ],
)
def test_what_does_not_fit_is_said(kind: str, size: int, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((BaselineError, SpecError), match=said):
        whole(kind, size, **changes)


def test_oasis_needs_classes() -> None:
    with pytest.raises(BaselineError, match=r"use a mask, or pix2pixhd or spade"):
        tiny("oasis", classes=False)


def test_settings_survive() -> None:
    for kind in KINDS:
        baseline = tiny(kind)
        again = baseline_from_config(baseline.to_config(), 3, True, 16)
        assert again.to_config() == baseline.to_config()
        assert (baseline_spec({"kind": kind}).perceptual > 0) == (kind != "oasis")
        assert not baseline_spec(baseline.to_config()).perceptual
    with pytest.raises(BaselineError, match="unknown 'spadé'; did you mean 'spade'"):
        baseline_from_config({"kind": "spadé"}, 3, True, 64)
    with pytest.raises(BaselineError, match=r"missing key 'kind'; known: .*spade"):
        baseline_from_config({}, 3, True, 64)
