"""Tiny pipelines of other families, each built and imported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.priors import tiny


def _folder(factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return factory.mktemp("prior")


@pytest.fixture(scope="session")
def stable(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """Stable Diffusion 1, which predicts noise."""
    return tiny.imported(tiny.stable_diffusion, _folder(tmp_path_factory))


@pytest.fixture(scope="session")
def stable_v(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """Stable Diffusion 2, which predicts v."""
    return tiny.imported(tiny.stable_diffusion, _folder(tmp_path_factory), prediction="v_prediction", width=24)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    return tiny.imported(tiny.sdxl, _folder(tmp_path_factory))


@pytest.fixture(scope="session")
def floyd(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """DeepFloyd IF's first stage."""
    return tiny.imported(tiny.floyd, _folder(tmp_path_factory), sample_size=8)


@pytest.fixture(scope="session")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """PixArt-Σ: a transformer."""
    return tiny.imported(tiny.pixart, _folder(tmp_path_factory), sigma=True)


@pytest.fixture(scope="session")
def sana(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """Sana: a transformer that learned a flow."""
    return tiny.imported(tiny.sana, _folder(tmp_path_factory))


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """Stable Diffusion 3: a transformer that learned a flow, and reads a text by two tokenizers."""
    return tiny.imported(tiny.stable_diffusion_3, _folder(tmp_path_factory))


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """FLUX.1-dev: a guidance-distilled transformer, which learned a flow whose noise levels follow the image's size."""
    return tiny.imported(tiny.flux, _folder(tmp_path_factory))


@pytest.fixture(scope="session")
def floyd_upsampler(tmp_path_factory: pytest.TempPathFactory) -> tiny.Imported:
    """DeepFloyd IF's second stage, for images of 8 px."""
    return tiny.imported(tiny.floyd_upsampler, _folder(tmp_path_factory), sample_size=32)
