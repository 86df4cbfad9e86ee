"""Feature networks: their names, weights and preprocessing, and the features of many files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from PIL import Image
from torch import Tensor, nn

from piti.checkpoints.weights import read_weights
from piti.core.errors import UserError
from piti.core.files import file_hash, follow_umask, whole_file
from piti.core.images import center_box, crop_resize, read_rgb
from piti.core.spec import choices
from piti.evaluation import inception
from piti.evaluation.fitting import Fitting, as_it_is, centre_square, levels, normalised
from piti.evaluation.pretrained import Named, repository_folder
from piti.evaluation.vision import REMEDY, open_folder, weights_in
from piti.models.perceptual import IMAGENET_MEAN, IMAGENET_STD, NETWORKS, PerceptualSpec, load_perceptual

REPOSITORIES = {
    "clip": "openai/clip-vit-base-patch32",
    "clip-l": "openai/clip-vit-large-patch14-336",
    "dinov2": "facebook/dinov2-large",
}
"""Networks on a hub: those of FID-C, CMMD and FD-DINOv2."""
FILES = {
    "inception": inception.FILE,
    "squeezenet": NETWORKS["squeezenet1_1"].file,
    "alexnet": NETWORKS["alexnet"].file,
}
"""Networks with a weight file, by name; files are looked up in the folder of `torch.hub`."""
CLASSIFIER_SIDE = 256
"""Input size of the classifiers below in pixels."""


@dataclass(frozen=True)
class PooledLayer:
    """A layer of an ImageNet classifier, whose mean over positions is used as features."""

    network: str
    """A name in `piti.models.perceptual.NETWORKS`."""
    layer: int
    channels: int
    scale: float
    """Divisor of the means, so that they have about unit size, as KID's kernel expects."""
    mark: str
    """A tensor name that identifies its file."""
    shape: tuple[int, ...]
    """Shape of that tensor."""


CLASSIFIERS = {
    "squeezenet": PooledLayer("squeezenet1_1", 12, 512, 3.0, "features.12.expand3x3.weight", (256, 64, 3, 3)),
    "alexnet": PooledLayer("alexnet", 11, 256, 0.25, "features.0.weight", (64, 3, 11, 11)),
}
"""Networks without a published protocol: their distances are not comparable with FID."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_THREADS = 4  # decoding threads
_CACHE_FORMAT = "1"  # of cached features; changes when a network's features change


@runtime_checkable
class FeatureNetwork(Named, Protocol):
    """Images => features. Names are "inception", "clip", "clip-l", "dinov2", "squeezenet" and "alexnet"."""

    @property
    def resize(self) -> str:
        """Description of how an image is resized for the network."""
        ...

    @property
    def dimensions(self) -> int:
        """Number of features D."""
        ...

    @property
    def settings(self) -> str:
        """What else determines its features besides the weights and `resize`: a hash of its folder's configs, "" for a
        file."""
        ...

    def __call__(self, images: list[Image.Image]) -> Float64[Tensor, "n d"]:
        """RGB images, which may differ in size => pooled features, on the CPU."""
        ...


@dataclass(frozen=True)
class FileNetwork:
    """A network implemented here, with weights from a file."""

    name: str
    source: str
    sha256: str
    dimensions: int
    fitting: Fitting
    model: Callable[[list[Image.Image]], Tensor]
    """Resized images => features [N, D]."""
    settings: str = ""
    """Empty: all settings are in the code."""

    @property
    def resize(self) -> str:
        """Description of how an image is resized for the network."""
        return self.fitting.words

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> Float64[Tensor, "n d"]:
        return self.model([self.fitting.apply(image) for image in images]).cpu().double()


# Which network


def open_features(name: str, device: torch.device) -> FeatureNetwork:
    """Load a feature network by name ("inception", "clip", "clip-l", "dinov2", "squeezenet", "alexnet"), by hub
    repository or local folder of CLIP or DINOv2, or by weight file of Inception, SqueezeNet 1.1 or AlexNet.

    Raises UserError for other names, and if the weights cannot be downloaded or read.
    """
    place, source = _located(name)
    return open_folder(place, source, device) if place.is_dir() else _open_file(place, source, device)


def features_sha256(name: str) -> str:
    """The hash of the weights that `open_features` loads for this name. Raises UserError."""
    place, _ = _located(name)
    return file_hash(weights_in(place) if place.is_dir() else place)


def _located(name: str) -> tuple[Path, str]:
    """The folder or file of a network (in the cache for a repository), and its source as stated in results. Raises
    UserError."""
    if name in REPOSITORIES:
        return repository_folder(REPOSITORIES[name], REMEDY), REPOSITORIES[name]
    if name in FILES:
        return usual_file(name), str(usual_file(name))
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file():
        return path, name
    if path.suffix not in SUFFIXES and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return repository_folder(name, REMEDY), name
    known = choices(name, [*FILES, *REPOSITORIES])
    raise UserError(
        f"no feature network, file or folder '{name}'; {known}; or give a hub repository (OWNER/NAME) or a folder of "
        "CLIP or DINOv2, or a weight file of Inception, SqueezeNet 1.1 or AlexNet"
    )


def usual_file(name: str) -> Path:
    """The path of a named network's file, one of `FILES`. Raises UserError, which states where to get it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILES[name]
    if path.is_file():
        return path
    whose = "the pytorch-fid project (release fid_weights)" if name == "inception" else "torchvision"
    raise UserError(
        f"the weights of '{name}' are not at {path}, and are on no known hub; put the file of this name from {whose} "
        f"there, or give its path instead of '{name}'"
    )


def _open_file(path: Path, source: str, device: torch.device) -> FileNetwork:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a weight file ({', '.join(SUFFIXES)}) or a folder of a feature network")
    weights = read_weights(path)
    if inception.MARK in weights:
        return _open_inception(path, source, device)
    for name, pooled in CLASSIFIERS.items():
        if pooled.mark in weights and tuple(weights[pooled.mark].shape) == pooled.shape:
            return _open_classifier(name, pooled, path, source, device)
    marks = ", nor ".join(f"{pooled.network} ({pooled.mark})" for pooled in CLASSIFIERS.values())
    raise UserError(
        f"{path} does not contain FID's Inception ({inception.MARK}), nor {marks}; give "
        f"{' or '.join(FILES.values())}, or a folder of CLIP or DINOv2"
    )


def _open_inception(path: Path, source: str, device: torch.device) -> FileNetwork:
    """FID-I: pixels scaled as in TensorFlow's graph, (x − 128)/128 (Heusel et al. 2017)."""
    network = inception.load_inception(path).to(device)

    def model(images: list[Image.Image]) -> Tensor:
        small = [inception.tf1_resize(levels(image).to(device), inception.SIDE) for image in images]
        return network((torch.stack(small) - 128) / 128)

    words = f"both sides to {inception.SIDE} px, bilinear as TensorFlow 1 has it (no antialiasing, no half pixel)"
    return FileNetwork("inception", source, file_hash(path), inception.DIMENSIONS, as_it_is(words), model)


def _open_classifier(name: str, pooled: PooledLayer, path: Path, source: str, device: torch.device) -> FileNetwork:
    """The mean over positions of one layer's output, divided by its scale."""
    spec = PerceptualSpec(network=pooled.network, weights=str(path), layers=(pooled.layer,))
    layers: nn.Module = load_perceptual(spec).features.to(device)

    def model(images: list[Image.Image]) -> Tensor:
        x = normalised(images, IMAGENET_MEAN, IMAGENET_STD, device)  # [N, 3, 256, 256]
        return layers(x).mean((2, 3)).double() / pooled.scale  # [N, D]

    return FileNetwork(name, source, file_hash(path), pooled.channels, centre_square(CLASSIFIER_SIDE), model)


# Many files


def features_of(
    network: FeatureNetwork,
    images: Sequence[Path],
    resize: int | None,
    batch: int,
    on_step: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> Float64[Tensor, "n d"]:
    """The features of image files, in their order.

    resize: first resize the centre square to this side, bicubic, so that sets of different sizes are evaluated alike.
    on_step: called as (images done, total). cache: a folder of features, keyed by the files' contents, the network's
    weights and settings, and `resize`; damaged entries are recomputed. Raises ImageError for a file that is not an
    image, and UserError that names a file whose features are not finite.
    """
    if batch < 1 or (resize is not None and resize < 1):
        raise UserError(f"batch {batch}, resize {resize}: both must be at least 1")
    if not images:
        return torch.empty(0, network.dimensions, dtype=torch.float64)
    kept = cache / f"{_key(network, images, resize)}.safetensors" if cache else None
    found = _read_kept(kept, len(images), network.dimensions) if kept else None
    if found is None:
        found = _computed(network, images, resize, batch, on_step)
        if kept:
            _keep(found, kept)
    elif on_step:
        on_step(len(images), len(images))
    return found


def _computed(
    network: FeatureNetwork,
    images: Sequence[Path],
    resize: int | None,
    batch: int,
    on_step: Callable[[int, int], None] | None,
) -> Float64[Tensor, "n d"]:
    found = torch.empty(len(images), network.dimensions, dtype=torch.float64)
    done = 0
    for decoded in _batches(images, resize, batch):
        features = network(decoded)
        bad = (~features.isfinite()).any(1).nonzero()
        if len(bad):
            raise UserError(
                f"{images[done + int(bad[0])]}: its features by {network.name} are NaN or infinite; check the weights "
                f"({network.source}), or remove the image"
            )
        found[done : done + len(decoded)] = features
        done += len(decoded)
        if on_step:
            on_step(done, len(images))
    return found


def _batches(images: Sequence[Path], resize: int | None, batch: int) -> Iterator[list[Image.Image]]:
    """Decoded images; the next batch is decoded while the network processes this one."""

    def read(path: Path) -> Image.Image:
        image = read_rgb(path)
        return image if resize is None else crop_resize(image, center_box(*image.size), resize)

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            ahead = [pool.submit(read, path) for path in images[:batch]]
            for start in range(batch, len(images) + batch, batch):
                now, ahead = ahead, [pool.submit(read, path) for path in images[start : start + batch]]
                yield [job.result() for job in now]
        finally:
            pool.shutdown(cancel_futures=True)


# Cached features


def _key(network: FeatureNetwork, images: Sequence[Path], resize: int | None) -> str:
    """The cache key: a hash of everything that the features depend on."""
    facts = [_CACHE_FORMAT, network.name, network.sha256, network.resize, str(resize)]
    facts += [network.settings] if network.settings else []
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            facts += pool.map(file_hash, images)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check the path") from error
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _read_kept(path: Path, count: int, dimensions: int) -> Float64[Tensor, "n d"] | None:
    """The features cached at `path`, None if there are none or they are unusable."""
    if not path.is_file():
        return None
    try:
        found = read_weights(path).get("features")
    except UserError:
        return None
    usable = found is not None and found.shape == (count, dimensions) and found.dtype == torch.float64
    return found if usable and bool(found.isfinite().all()) else None  # type: ignore[union-attr]


def _keep(features: Float64[Tensor, "n d"], path: Path) -> None:
    from safetensors.torch import save_file

    with whole_file(path, overwrite=True) as partial:
        save_file({"features": features}, partial)
        follow_umask(partial)
