"""CLIP and DINOv2 as feature networks: preprocessing, folders, the hub."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.core.errors import UserError
from piti.core.files import file_hash
from piti.evaluation import vision
from piti.evaluation.features import FeatureNetwork, open_features
from piti.evaluation.fitting import centre_square
from piti.models.perceptual import IMAGENET_MEAN, IMAGENET_STD
from tests.evaluation.tiny_features import CPU, clip_folder, dinov2_folder, picture


@pytest.mark.parametrize("size", [(50, 36), (20, 33), (32, 32)])
def test_clip_from_a_folder(tmp_path: Path, size: tuple[int, int]) -> None:
    """Prepared as transformers' own processor does, through both halves of the model as they were saved."""
    model = clip_folder(tmp_path)
    network = open_features(str(tmp_path), CPU)
    assert isinstance(network, FeatureNetwork)
    assert (network.name, network.source, network.dimensions) == ("clip", str(tmp_path), 12)
    assert network.sha256 == file_hash(tmp_path / "model.safetensors")
    assert network.resize.startswith("shorter side to 32 px, bicubic")
    found = network([picture(*size), picture(40, 40, seed=1)])
    processor = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    x = processor.from_pretrained(tmp_path)(picture(*size), return_tensors="pt").pixel_values
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(x).pooler_output)
    assert (found.shape, found.dtype) == ((2, 12), torch.float64)
    assert torch.allclose(found[:1].float(), expected, atol=1e-5)
    assert not torch.allclose(found[:1], found[1:], atol=1e-3)


def test_clip_s_usual_numbers(tmp_path: Path) -> None:
    """Where a folder does not say how to prepare images: as OpenAI's CLIP, at the network's own size."""
    clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    network = open_features(str(tmp_path), CPU)
    assert isinstance(network, vision.VisionNetwork)
    assert network.mean == (0.48145466, 0.4578275, 0.40821073)
    assert network.std == (0.26862954, 0.26130258, 0.27577711)
    assert network.resize.endswith("centred square of 32 px")


def test_cmmd_s_clip_crops_first(tmp_path: Path) -> None:
    clip_folder(tmp_path, image_size=336, patch_size=14)
    network = open_features(str(tmp_path), CPU)
    assert (network.name, network.resize) == ("clip-l", centre_square(336).words)


def test_older_weights_and_the_vision_half_alone(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    image = [picture()]
    expected = open_features(str(tmp_path), CPU)(image)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({k: v for k, v in weights.items() if k.startswith("vis")}, tmp_path / "pytorch_model.bin")
    assert torch.allclose(open_features(str(tmp_path), CPU)(image), expected, atol=1e-5)


def test_dinov2_from_a_folder(tmp_path: Path) -> None:
    """The class token after the norm, of the image stretched to 224 px, with ImageNet's numbers."""
    model = dinov2_folder(tmp_path)
    network = open_features(str(tmp_path), CPU)
    assert (network.name, network.dimensions) == ("dinov2", 16)
    assert network.resize == "both sides to 224 px, bicubic with antialiasing, 8 bits"
    found = network([picture(), picture(seed=1)])
    pixels = np.array(picture().resize((224, 224), Image.Resampling.BICUBIC)) / 255
    x = torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = model(pixel_values=x).last_hidden_state[:, 0]
    assert torch.allclose(found[:1].float(), expected, atol=1e-5)
    assert (found.shape, found.dtype) == ((2, 16), torch.float64)


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            open_features(str(tmp_path), CPU)

    refused(r"contains no config\.json; give a folder")
    clip_folder(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = load_file(weights)
    save_file({k: v for k, v in whole.items() if k != "visual_projection.weight"}, weights, {"format": "pt"})
    refused(r"1 weights are missing \(such as visual_projection\.weight\)")
    weights.write_bytes(b"no weights")
    refused("CLIPVisionModelWithProjection cannot be read from it")
    weights.unlink()
    refused("contains no weights")
    save_file(whole, weights, {"format": "pt"})
    values = json.loads(config.read_text())
    prepared = tmp_path / "preprocessor_config.json"
    prepared.write_text('{"crop_size": 30}')
    refused("crop_size 30, but the network's image_size is 32")
    prepared.write_text('{"size": {"width": 30}}')
    refused("not as expected")
    prepared.write_text("{")
    refused("cannot be read")
    config.write_text(json.dumps(values | {"model_type": "resnet"}))
    refused("model_type 'resnet' is not supported; expected clip")


# From the hub


def test_a_name_asks_the_hub_for_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs and safetensors; a pickle only where there are none."""
    clip_folder(tmp_path)
    asked: list[tuple[str, list[str]]] = []

    def give(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    network = open_features("clip", CPU)
    assert asked == [("openai/clip-vit-base-patch32", ["*.json", "model*.safetensors"])]
    assert network.source == "openai/clip-vit-base-patch32"
    assert open_features("someone/clip-of-theirs", CPU).source == "someone/clip-of-theirs"
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    asked.clear()
    open_features("clip", CPU)
    assert [len(patterns) for _, patterns in asked] == [2, 3]
    assert "pytorch_model*.bin" in asked[1][1]


def test_the_hub_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked once, for the listing: our error alone is told, without waits and warnings of the hub's client."""
    from huggingface_hub.utils import logging as hub_logging

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited for {seconds} s")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", wait)
    before = hub_logging.get_verbosity()
    with caplog.at_level(logging.INFO):
        for name in ("dinov2", "clip-l", "someone/else"):
            with pytest.raises(UserError, match=r"the hub cannot be reached .*; give a folder with config\.json"):
                open_features(name, CPU)
    assert [record for record in caplog.records if record.name.startswith("huggingface_hub")] == []
    assert hub_logging.get_verbosity() == before


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dinov2_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*piti\[eval\]"):
        open_features(str(tmp_path), CPU)
