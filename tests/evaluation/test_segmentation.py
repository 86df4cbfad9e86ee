"""Segmentation networks from folders: manual preprocessing and upsampling, hashes, and errors."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from piti.evaluation.pretrained import JudgeError, load_pretrained
from piti.evaluation.segmentation import Segmenter, open_segmenter, query_scores
from tests.evaluation.tiny_judges import by_hand, dpt, mask2former, named, noise, save_prepared, segformer

pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segformer(tmp_path_factory.mktemp("judges") / "tiny-segformer")


def test_a_network_in_a_folder_sees_what_its_parts_do(folder: Path) -> None:
    from transformers import SegformerForSemanticSegmentation

    segmenter = open_segmenter(str(folder), CPU)
    assert isinstance(segmenter, Segmenter)
    assert (segmenter.name, segmenter.source) == ("tiny-segformer", str(folder))
    assert segmenter.labels == ("Sky", "road", "car")
    assert segmenter.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    images = [noise(60, 40, seed) for seed in range(3)]
    found = segmenter(images)
    assert found.shape == (3, 40, 60)
    network = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    for image, guess in zip(images, found, strict=True):
        with torch.no_grad():
            logits = network(pixel_values=by_hand(image)).logits
        scores = F.interpolate(logits, (40, 60), mode="bilinear", align_corners=False)[0]
        first, second = scores.topk(2, dim=0).values
        clear = first - second > 1e-4  # of scores that are equal but for rounding either may win
        assert clear.float().mean() > 0.9
        assert torch.equal(scores.argmax(0)[clear], guess[clear])
    assert found.unique().numel() > 1


def test_its_preprocessing_is_that_of_its_file(folder: Path, tmp_path: Path) -> None:
    other = segformer(tmp_path / "other", image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])
    image = noise(32, 32)
    a, b = (open_segmenter(str(place), CPU).judge.prepared([image])["pixel_values"] for place in (folder, other))
    assert torch.allclose(a, by_hand(image), atol=1e-5)
    assert 0 <= b.min() <= b.max() <= 1
    assert not torch.allclose(a, b)


def test_a_centre_crop_is_left_out(tmp_path: Path) -> None:
    cropped = segformer(tmp_path / "cropped", do_center_crop=True, crop_size={"height": 16, "width": 16})
    prepared = open_segmenter(str(cropped), CPU).judge.prepared([noise(40, 40)])
    assert prepared["pixel_values"].shape == (1, 3, 32, 32)


def test_names_that_older_files_give_their_processors(tmp_path: Path) -> None:
    older = segformer(tmp_path / "older")
    save_prepared(older, "SegformerFeatureExtractor")
    image = noise(32, 32)
    assert torch.allclose(
        open_segmenter(str(older), CPU).judge.prepared([image])["pixel_values"], by_hand(image), atol=1e-5
    )


def test_sharded_weights_have_one_hash(folder: Path, tmp_path: Path) -> None:
    from transformers import SegformerForSemanticSegmentation

    network = SegformerForSemanticSegmentation.from_pretrained(folder)
    network.save_pretrained(tmp_path, max_shard_size="10KB")
    save_prepared(tmp_path, "SegformerImageProcessor")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    hashes = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in shards)
    assert open_segmenter(str(tmp_path), CPU).sha256 == hashlib.sha256(hashes.encode()).hexdigest()


class TestQueries:
    def test_scores_are_those_of_a_hand_computation(self) -> None:
        labels = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]])  # two queries, two labels and none
        masks = torch.tensor([[[[0.0, 4.0]], [[1.0, -1.0]]]])  # [1, 2, 1, 2]
        p, m = labels.softmax(-1)[0], masks.sigmoid()[0, :, 0]
        wanted = [[p[0, k] * m[0, x] + p[1, k] * m[1, x] for x in range(2)] for k in range(2)]
        assert torch.allclose(query_scores(labels, masks)[0, :, 0], torch.tensor(wanted))

    def test_padding_is_cut_off(self, tmp_path: Path) -> None:
        pytest.importorskip("scipy")  # Mask2Former's training loss wants it, even where nobody trains
        segmenter = open_segmenter(str(mask2former(tmp_path / "queries")), CPU)
        assert segmenter.labels == ("sky", "road", "car")
        prepared = segmenter.judge.prepared([noise(50, 40)])
        assert prepared["pixel_values"].shape[-2:] == (32, 64)
        guess = segmenter([noise(50, 40)])
        assert guess.shape == (1, 40, 50)
        assert guess.max() < 3

    def test_what_lies_in_the_padding_is_not_seen(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        segmenter = open_segmenter(str(folder), CPU)
        mask = torch.ones(1, 32, 32)
        mask[..., 16:] = 0
        inputs = {"pixel_values": torch.zeros(1, 3, 32, 32), "pixel_mask": mask}
        scores = torch.zeros(1, 3, 32, 32)
        scores[:, 0, :, :8], scores[:, 1, :, 8:16], scores[:, 2, :, 16:] = 1, 1, 1
        monkeypatch.setattr(type(segmenter.judge), "prepared", lambda self, images: inputs)
        monkeypatch.setattr(type(segmenter), "_scores", lambda self, given: scores)
        guess = segmenter([noise(40, 40)])
        assert guess[0, 0].tolist() == [0] * 20 + [1] * 20


class TestErrors:
    def test_a_package_that_a_network_needs(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import AutoModelForSemanticSegmentation

        def refuse(*_: object, **__: object) -> None:
            raise ImportError("\nthis network requires timm")

        monkeypatch.setattr(AutoModelForSemanticSegmentation, "from_pretrained", refuse)
        with pytest.raises(JudgeError, match="this network requires timm; or use another network"):
            open_segmenter(str(folder), CPU)

    def test_sizes_that_differ(self, folder: Path) -> None:
        with pytest.raises(JudgeError, match=r"one size.*\(30, 20\), \(40, 20\)"):
            open_segmenter(str(folder), CPU)([noise(40, 20), noise(30, 20)])

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(JudgeError, match=r"segmenter .*nowhere: no such folder; give a hub repository"):
            open_segmenter(str(tmp_path / "nowhere"), CPU)

    def test_the_hub_is_asked_for_what_is_no_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def refuse(repository: str, **_: object) -> str:
            raise OSError(f"no network for {repository}")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(JudgeError, match=r"the hub did not give.*no network for someone/net"):
            open_segmenter("someone/net", CPU)

    def test_what_the_hub_gives_is_loaded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, **_: str(folder))
        segmenter = open_segmenter("someone/net", CPU)
        assert (segmenter.name, segmenter.source) == ("net", "someone/net")

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
    def test_files_that_are_missing(self, tmp_path: Path, name: str) -> None:
        segformer(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(JudgeError, match="has no weights" if name.startswith("model") else f"has no {name}"):
            open_segmenter(str(tmp_path), CPU)

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
    def test_files_that_are_damaged(self, tmp_path: Path, name: str) -> None:
        segformer(tmp_path)
        (tmp_path / name).write_bytes(b"{ no")
        with pytest.raises(JudgeError, match="cannot be loaded"):
            open_segmenter(str(tmp_path), CPU)

    def test_weights_without_the_head_are_not_filled_with_noise(self, tmp_path: Path) -> None:
        weights = load_file(segformer(tmp_path) / "model.safetensors")
        backbone = {key: x for key, x in weights.items() if not key.startswith("decode_head")}
        save_file(backbone, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(JudgeError, match=r"\d+ tensors.*decode_head.*not trained as a network for semantic"):
            open_segmenter(str(tmp_path), CPU)

    def test_a_depth_network_is_no_segmenter(self, tmp_path: Path) -> None:
        with pytest.raises(JudgeError, match=r"tensors of DPTForSemanticSegmentation .* missing"):
            open_segmenter(str(dpt(tmp_path)), CPU)

    def test_a_network_of_another_kind(self, tmp_path: Path) -> None:
        segformer(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "oneformer"}))
        with pytest.raises(JudgeError, match=r"oneformer, which cannot be used.*\(mask2former, maskformer only\)"):
            open_segmenter(str(tmp_path), CPU)

    def test_scores_that_are_nan(self, tmp_path: Path) -> None:
        weights = load_file(segformer(tmp_path) / "model.safetensors")
        broken = {key: torch.full_like(x, torch.nan) if "classifier" in key else x for key, x in weights.items()}
        save_file(broken, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(JudgeError, match="NaN or infinite scores"):
            open_segmenter(str(tmp_path), CPU)([noise(32, 32)])

    def test_without_transformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(JudgeError, match=r"pip install 'piti\[eval\]'"):
            load_pretrained("x", {}, "a judge", "--judge", CPU)


def test_torchvision_is_not_needed(folder: Path) -> None:
    open_segmenter(str(folder), CPU)([Image.new("RGB", (32, 32))])
    assert "torchvision" not in sys.modules


def test_labels_without_names_are_told(tmp_path: Path) -> None:
    assert named(["a"])["label2id"] == {"a": 0}
    assert open_segmenter(str(segformer(tmp_path, ("LABEL_0", "LABEL_1"))), CPU).labels == ("LABEL_0", "LABEL_1")
