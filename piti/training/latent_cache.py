"""Disk cache of the latents of training images, by content, so that each is encoded once."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from piti.core.errors import option
from piti.core.files import OutputError, follow_umask, whole_file
from piti.models import Space

log = logging.getLogger(__name__)

_KEY = "moments"


class CachedSpace:
    """A space that caches the moments of images in a folder; without a folder, or for pixels, they are always
    computed."""

    def __init__(self, space: Space, folder: Path | None, most: int = 2**40) -> None:
        """folder: created if missing; each autoencoder's weights have a sub-folder. most: largest size in bytes, beyond
        which nothing is cached. Raises OutputError if it cannot be created."""
        self.space = space
        self.folder = None
        self.most, self.bytes = most, 0
        if folder is not None and space.autoencoder is not None:
            self.folder = folder / weights_digest(space.autoencoder)[:16]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.bytes = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
            except OSError as error:
                raise OutputError(
                    f"the folder cannot be made ({error.strerror})",
                    remedy=f"give another one with {option('set')} latent_cache=FOLDER",
                    source=f"latent_cache: {folder}",
                ) from None

    def moments(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        """See `Space.moments`. images: in [-1, 1]; those not cached yet are encoded as one batch."""
        if self.folder is None:
            return self.space.moments(images)
        places = [self.folder / f"{_content(image)}.safetensors" for image in images]
        found = [_read(place) for place in places]
        missing = [k for k, one in enumerate(found) if one is None]
        if missing:
            made = self.space.moments(images[missing])
            for k, one in zip(missing, made, strict=True):
                found[k] = one
                self._keep(places[k], one)
        return torch.stack([one.to(images.device) for one in found if one is not None])

    def _keep(self, place: Path, moments: Tensor) -> None:
        """Write an entry, if the size limit allows it."""
        if self.bytes >= self.most:
            return
        _write(place, moments)
        self.bytes += place.stat().st_size
        if self.bytes >= self.most:
            log.warning(
                "latent_cache: %s has reached %.3g GiB (latent_cache_gib); other crops are encoded each time",
                self.folder,
                self.most / 2**30,
            )


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _content(image: Tensor) -> str:
    values = image.detach().float().cpu().contiguous()
    return hashlib.sha256(f"{list(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()


def _read(place: Path) -> Tensor | None:
    """Read an entry; None if there is no complete file."""
    try:
        return load_file(place)[_KEY]
    except (OSError, SafetensorError, KeyError):
        return None


def _write(place: Path, moments: Tensor) -> None:
    with whole_file(place, overwrite=True) as partial:
        save_file({_KEY: moments.detach().float().cpu().contiguous()}, partial)
        follow_umask(partial)
