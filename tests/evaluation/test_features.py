"""Feature networks: structure, preprocessing, where they come from; features of files, kept and not."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from piti.errors import UserError
from piti.evaluation import features, inception, vision
from piti.evaluation.features import FILES, FeatureNetwork, features_of, open_features
from piti.evaluation.fitting import Fitting, as_it_is, centre_square, normalised, shorter_side, stretched
from piti.evaluation.inception import Inception, load_inception, tf1_resize
from piti.evaluation.metrics import frechet_distance, kernel_estimate
from piti.images import ImageError, list_images
from piti.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, NETWORKS
from piti.models.weight_files import file_hash

CPU = torch.device("cpu")


def picture(width: int = 50, height: int = 36, seed: int = 0) -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(folder: Path, count: int, size: tuple[int, int] = (20, 16)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k}.png" for k in range(count)]
    for k, path in enumerate(paths):
        picture(*size, seed=k).save(path)
    return paths


class Mean:
    """A network whose features are the image's mean colour and its size."""

    name, source, sha256, resize, dimensions = "mean", "here", "00", "not at all", 5

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: list[Image.Image]) -> Tensor:
        self.batches.append(len(images))
        rows = [[*np.array(image).mean((0, 1)), *image.size] for image in images]
        return torch.tensor(rows, dtype=torch.float64)


# Inception


@pytest.fixture(scope="module")
def inception_net() -> Inception:
    """With random weights, whose features are of a size."""
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def inception_file(inception_net: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the port's: with the classifier of 1,008 classes, without counters; half precision, to be small."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    kept = {k: v.half() for k, v in inception_net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(kept | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_is_as_published(inception_net: Inception) -> None:
    assert sum(p.numel() for p in inception_net.parameters()) == 21_785_568  # Inception V3 without its classifier
    shapes = {key: tuple(value.shape) for key, value in inception_net.state_dict().items()}
    convolutions = [key for key in shapes if key.endswith(".conv.weight")]
    assert len(convolutions) == 94
    assert {key.rpartition(".conv")[0] + ".bn.running_var" for key in convolutions} <= shapes.keys()
    for name, shape in {
        "Conv2d_4a_3x3": (192, 80, 3, 3),
        "Mixed_5b.branch_pool": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2": (64, 48, 5, 5),
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2": (128, 128, 1, 7),
        "Mixed_6c.branch7x7dbl_5": (192, 160, 1, 7),
        "Mixed_6e.branch7x7_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_1": (448, 2048, 1, 1),
        "Mixed_7c.branch3x3dbl_3b": (384, 384, 3, 1),
    }.items():
        assert shapes[f"{name}.conv.weight"] == shape
    assert all(module.eps == 0.001 for module in inception_net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not inception_net.training
    assert not any(p.requires_grad for p in inception_net.parameters())


def test_inception_s_stages(inception_net: Inception) -> None:
    sizes: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: sizes.__setitem__(name, tuple(y.shape[1:])))
        for name, module in inception_net.named_children()
    ]
    found = inception_net(torch.rand(1, 3, 299, 299) * 2 - 1)
    for hook in hooks:
        hook.remove()
    assert found.shape == (1, 2048)
    assert sizes["Conv2d_2b_3x3"] == (64, 147, 147)
    assert sizes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert [sizes[f"Mixed_5{k}"] for k in "bcd"] == [(256, 35, 35), (288, 35, 35), (288, 35, 35)]
    assert {sizes[f"Mixed_6{k}"] for k in "abcde"} == {(768, 17, 17)}
    assert [sizes[f"Mixed_7{k}"] for k in "abc"] == [(1280, 8, 8), (2048, 8, 8), (2048, 8, 8)]


def test_what_fid_s_graph_has_of_its_own(inception_net: Inception) -> None:
    """Averages leave out the padding, in all blocks but those that halve and the last, which takes a maximum."""
    ramp = torch.arange(9.0).view(1, 1, 3, 3)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        pooled = inception_net.get_submodule(f"Mixed_{name}").pool(ramp)  # type: ignore[operator]
        assert pooled[0, 0].tolist() == [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]
    assert inception_net.Mixed_7c.pool(ramp)[0, 0].tolist() == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]
    assert inception_net.Mixed_6a.pool(ramp).shape == (1, 1, 1, 1)


def test_inception_from_a_file(inception_file: Path) -> None:
    network = open_features(str(inception_file), CPU)
    assert isinstance(network, FeatureNetwork)
    assert (network.name, network.source, network.dimensions) == ("inception", str(inception_file), 2048)
    assert network.sha256 == file_hash(inception_file)
    assert "TensorFlow 1" in network.resize
    images = [picture(50, 36), picture(299, 299, seed=1)]
    found = network(images)
    assert (found.shape, found.dtype) == ((2, 2048), torch.float64)
    own = load_inception(inception_file)
    pixels = torch.from_numpy(np.array(images[1])).permute(2, 0, 1)[None].float()
    assert torch.allclose(found[1:].float(), own((pixels - 128) / 128), rtol=1e-4, atol=1e-5)  # 299 px: as it is


def test_inception_is_found_where_torch_keeps_weights(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"'inception' are not at {tmp_path}.*{FILES['inception']}.*pytorch-fid"):
        open_features("inception", CPU)
    with pytest.raises(UserError, match=r"'squeezenet' are not at .* torchvision has"):
        open_features("squeezenet", CPU)
    place = tmp_path / "checkpoints" / FILES["inception"]
    place.parent.mkdir()
    place.symlink_to(inception_file)
    assert open_features("inception", CPU).source == str(place)


def test_files_that_are_not_inception_s(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.load(inception_file, mmap=True)
    key = "Mixed_7c.branch1x1.conv.weight"

    def refused(weights: dict[str, Tensor], match: str) -> None:
        monkeypatch.setattr(inception, "read_weights", lambda _: weights)
        with pytest.raises(UserError, match=match):
            load_inception(inception_file)

    refused({k: v for k, v in whole.items() if k != key}, f"1 of its 470 tensors are missing.*{key}")
    refused(whole | {"Mixed_8a.conv.weight": torch.zeros(1)}, r"1 unknown.*Mixed_8a.*pt_inception")
    refused(whole | {key: torch.zeros(320, 2048, 3, 3)}, f"1 of another shape.*{key}")
    refused(whole | {key: whole[key] * math.nan}, f"{key}' has .* NaN")


def test_resizing_as_tensorflow_1() -> None:
    row = torch.tensor([[[10.0, 20.0]]]).expand(3, 2, 2)
    assert tf1_resize(row, 4)[0, 0].tolist() == [10, 15, 20, 20]  # at 0, 0.5, 1 and 1.5, which is beyond the last
    assert tf1_resize(torch.arange(6.0).view(1, 1, 6).expand(1, 6, 6), 3)[0, 0].tolist() == [0, 2, 4]  # no average
    turned = tf1_resize(torch.rand(3, 7, 5), 9)
    assert turned.shape == (3, 9, 9)
    x = torch.rand(3, 11, 11)
    assert torch.equal(tf1_resize(x, 11), x)
    columns = torch.tensor([[1.0], [3.0]]).expand(1, 2, 2)
    assert tf1_resize(columns, 4)[0, :, 0].tolist() == [1, 2, 3, 3]


# SqueezeNet


def test_as_the_referee(judge: ModuleType, camvid: Path, squeezenet: Path) -> None:
    """The same features and the same distances, of a dozen photographs shrunk to 64 px."""
    paths = list_images(camvid / "images")[::40][:12]
    network = open_features(str(squeezenet), CPU)
    found = features_of(network, paths, resize=64, batch=5)
    expected = judge.squeezenet_features(paths, shrink=64)
    assert (found.shape, found.dtype) == ((12, 512), torch.float64)
    assert np.abs(found.numpy() - expected).max() < 1e-6
    ours, theirs = (found[:7], found[7:]), (expected[:7], expected[7:])
    # relative: of so few images most eigenvalues are 0, and the referee adds the roots of what rounding leaves there
    assert frechet_distance(*ours) == pytest.approx(judge.frechet(*theirs), rel=1e-6)
    assert kernel_estimate(*ours) == pytest.approx(judge.kernel_distance(*theirs), abs=1e-6)
    large = features_of(network, paths[:1], resize=None, batch=2)
    assert np.abs(large.numpy() - judge.squeezenet_features(paths[:1])).max() < 1e-6
    assert (network.name, network.sha256) == ("squeezenet", file_hash(squeezenet))
    assert "256 px, bicubic" in network.resize


def squeezenet_file(path: Path, scale: float = 0.05) -> Path:
    """Random weights."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"features": nn.Sequential(*NETWORKS["squeezenet1_1"].features())})
    save_file({key: value * scale for key, value in layers.state_dict().items()}, path)
    return path


def test_features_that_are_not_finite_name_the_file(tmp_path: Path) -> None:
    images = saved(tmp_path / "images", 5)
    network = open_features(str(squeezenet_file(tmp_path / "big.safetensors", scale=1e30)), CPU)
    with pytest.raises(UserError, match=r"images/0\.png: its features by squeezenet are NaN or infinite.*big"):
        features_of(network, images, None, 2)


# CLIP and DINOv2


def clip_config(**values: Any) -> dict[str, Any]:
    return {
        "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
        | {"intermediate_size": 8, "max_position_embeddings": 8},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 16, "image_size": 32, "patch_size": 8, "projection_dim": 12}
        | values,
        "projection_dim": 12,
    }


def clip_folder(folder: Path, **values: Any) -> Any:
    """A tiny CLIP, as transformers saves one; the model."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**clip_config(**values))).eval()
    model.save_pretrained(folder)
    side = model.config.vision_config.image_size
    prepared = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared | {"image_mean": [0.4, 0.5, 0.6]}))
    return model


def dinov2_folder(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=28
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(folder)
    return model


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

    refused(r"holds no config\.json; give a folder")
    clip_folder(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = load_file(weights)
    save_file({k: v for k, v in whole.items() if k != "visual_projection.weight"}, weights, {"format": "pt"})
    refused(r"1 weights are missing \(such as visual_projection\.weight\)")
    weights.write_bytes(b"no weights")
    refused("CLIPVisionModelWithProjection cannot be read from it")
    weights.unlink()
    refused("holds no weights")
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
    refused("model_type 'resnet'; features come from clip")


# Which network


def test_a_name_asks_the_hub_for_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path)
    asked: list[tuple[str, str]] = []

    def give(repository: str, name: str) -> str:
        asked.append((repository, name))
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    network = open_features("clip", CPU)
    assert {repository for repository, _ in asked} == {"openai/clip-vit-base-patch32"}
    assert {name for _, name in asked} == {"preprocessor_config.json", "config.json", "model.safetensors"}
    assert network.source == "openai/clip-vit-base-patch32"
    assert open_features("someone/clip-of-theirs", CPU).source == "someone/clip-of-theirs"


def test_the_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("dinov2", "clip-l", "someone/else"):
        with pytest.raises(UserError, match=r"the hub cannot be reached .*; give a folder with config\.json"):
            open_features(name, CPU)


def test_what_is_no_network(tmp_path: Path) -> None:
    for name in ("inceptoin", str(tmp_path / "weights" / "of.pth"), "weights/of.safetensors"):
        with pytest.raises(UserError, match="no feature network"):
            open_features(name, CPU)
    with pytest.raises(UserError, match="did you mean 'inception'"):
        open_features("inceptoin", CPU)
    picture().save(tmp_path / "weights.png")
    with pytest.raises(UserError, match="features come from files of weights"):
        open_features(str(tmp_path / "weights.png"), CPU)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.safetensors")
    with pytest.raises(UserError, match=r"does not hold .*Inception.* nor SqueezeNet 1\.1"):
        open_features(str(tmp_path / "vgg.safetensors"), CPU)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dinov2_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*piti\[eval\]"):
        open_features(str(tmp_path), CPU)


# Fitting


def pixels(fitting: Fitting, image: Image.Image) -> np.ndarray:
    return np.array(fitting.apply(image))


def test_ways_to_a_size() -> None:
    wide = picture(60, 40)
    bicubic = Image.Resampling.BICUBIC
    assert np.array_equal(pixels(centre_square(20), wide), wide.crop((10, 0, 50, 40)).resize((20, 20), bicubic))
    assert np.array_equal(pixels(stretched(20), wide), wide.resize((20, 20), bicubic))
    assert np.array_equal(pixels(shorter_side(20, 16), wide), wide.resize((30, 20), bicubic).crop((7, 2, 23, 18)))
    assert as_it_is("so").apply(wide) is wide
    tall = pixels(shorter_side(20, 20), picture(40, 61))
    assert np.array_equal(tall, picture(40, 61).resize((20, 30), bicubic).crop((0, 5, 20, 25)))


def test_numbers_of_pixels() -> None:
    image = Image.new("RGB", (3, 2), (255, 51, 0))
    x = normalised([image, image], (0.5, 0.2, 0.1), (0.25, 1, 0.1), CPU)
    assert x.shape == (2, 3, 2, 3)
    assert x[1, :, 1, 2].tolist() == pytest.approx([2, 0, -1], abs=1e-6)


# Many files


def test_features_of_files_in_their_order(tmp_path: Path) -> None:
    paths = saved(tmp_path / "images", 7)
    network, steps = Mean(), []
    found = features_of(network, paths[::-1], None, 3, lambda done, total: steps.append((done, total)))
    assert network.batches == [3, 3, 1]
    assert steps == [(3, 7), (6, 7), (7, 7)]
    expected = torch.stack([network([Image.open(path)])[0] for path in paths[::-1]])
    assert torch.equal(found, expected)
    assert features_of(network, [], None, 3).shape == (0, 5)
    resized = features_of(network, paths, 8, 100)
    square = centre_square(8).apply(Image.open(paths[0]))
    assert torch.equal(resized[0], network([square])[0])
    assert resized[:, 3:].unique().tolist() == [8]


def test_images_of_several_sizes_and_kinds(tmp_path: Path) -> None:
    Image.new("L", (30, 20), 7).save(tmp_path / "grey.png")
    Image.new("RGBA", (10, 20), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    found = features_of(Mean(), [tmp_path / "grey.png", tmp_path / "clear.png"], None, 2)
    assert found.tolist() == [[7, 7, 7, 30, 20], [255, 255, 255, 10, 20]]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match="broken"):
        features_of(Mean(), [tmp_path / "grey.png", tmp_path / "broken.png"], None, 1)
    for resize, batch in ((0, 1), (None, 0)):
        with pytest.raises(UserError, match="at least 1"):
            features_of(Mean(), [tmp_path / "grey.png"], resize, batch)


def test_kept_features(tmp_path: Path) -> None:
    paths = saved(tmp_path / "images", 3)
    network, cache = Mean(), tmp_path / "cache"

    def computed(images: Sequence[Path] = paths, resize: int | None = None, net: Any = network) -> int:
        """How many images the network looked at."""
        before = len(network.batches)
        found = features_of(net, images, resize, 10, cache=cache)
        seen = network.batches[before:]
        assert torch.equal(found, features_of(network, images, resize, 10))
        return sum(seen)

    assert computed() == 3
    assert computed() == 0
    assert computed(resize=8) == 3
    assert computed(paths[::-1]) == 3
    moved = tmp_path / "moved.png"
    shutil.copyfile(paths[0], moved)
    assert computed([moved, *paths[1:]]) == 0  # by contents
    picture(20, 16, seed=9).save(paths[0])
    assert computed() == 3
    for path in cache.iterdir():
        path.write_bytes(b"damaged")
    assert computed() == 3
    assert computed() == 0
    steps: list[tuple[int, int]] = []
    features_of(network, paths, None, 10, lambda *step: steps.append(step), cache)
    assert steps == [(3, 3)]
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        features_of(network, [tmp_path / "gone.png"], None, 10, cache=cache)


def test_another_network_s_features_are_not_taken(tmp_path: Path) -> None:
    paths, cache = saved(tmp_path / "images", 2), tmp_path / "cache"
    first = open_features(str(squeezenet_file(tmp_path / "a.safetensors")), CPU)
    assert isinstance(first, features.FileNetwork)
    other = replace(first, sha256="other")
    features_of(first, paths, None, 2, cache=cache)
    features_of(other, paths, None, 2, cache=cache)
    assert len(list(cache.iterdir())) == 2
