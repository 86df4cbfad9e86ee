"""Small images that a base generated from training conditions, mixed into an upsampler's training.

An upsampler is given what a base makes, and that differs from photographs that were shrunk. No photograph belongs to
such an image: it is judged by the adversary and by its own small image alone.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from piti.conditions import Condition, NoCondition
from piti.conditions.base import meaning_hash
from piti.core.errors import flag, option
from piti.core.images import Box, image_size, own_text, read_rgb, same_proportions, to_tensor
from piti.core.spec import Spec
from piti.core.walk import flat, list_images
from piti.data.crops import Sample
from piti.data.folders import PairedFolder
from piti.data.order import Order
from piti.data.problems import DataError, Problems


class GeneratedSpec(Spec):
    """A folder of small images, as `piti translate LABELS --base-only --num N --out FOLDER` writes them."""

    root: Path
    """`STEM_NUMBER.png` of the training conditions `STEM`; those of other conditions are left alone."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of the samples of a run."""


class WithGenerated:
    """A folder's pairs, of which a share of samples is replaced by small images that a base generated.

    Such a sample has a small image and a condition; its photograph is grey and means nothing. scale: by how much the
    upsampler enlarges images of `low_res` pixels on the short side. Raises DataError for images that are of no training
    condition, of another kind of condition, no base's, of another size or smaller than a crop: all problems together.
    """

    def __init__(
        self, pairs: PairedFolder, spec: GeneratedSpec, condition: Condition, scale: int, low_res: int
    ) -> None:
        self.pairs, self.spec, self.condition, self.low_res = pairs, spec, condition, low_res
        self.side = pairs.spec.size // scale
        self.small = _by_pair(pairs, spec.root)
        self._check()
        self._with_images = sorted(self.small)
        self._pixels: dict[Path, np.ndarray] = {}

    @property
    def split(self) -> str | None:
        """Of the pairs."""
        return self.pairs.split

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        """A pair's random crop or, for `share` of the generators, one of a generated image."""
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        if draws[0] >= self.spec.share:
            return self.pairs.sample(index, generator)
        place = index if index in self.small else self._with_images[index % len(self._with_images)]
        files = self.small[place]
        return self._crop(place, files[int(draws[1] * len(files))], draws[2:], generator)

    def _crop(self, index: int, file: Path, place: Sequence[float], generator: torch.Generator) -> Sample:
        """A square of the small image and what lies over it of the condition, perhaps mirrored."""
        if file not in self._pixels:
            self._pixels[file] = np.asarray(read_rgb(file))
        small, raw = self._pixels[file], self.pairs.raw(index)  # [h, w, 3], [K, H, W]
        rows, columns = small.shape[:2]
        top, left = (int(u * (n - self.side + 1)) for u, n in zip(place, (rows, columns), strict=True))
        low_res = to_tensor(small[top : top + self.side, left : left + self.side])  # [3, l, l]
        size = self.pairs.spec.size
        condition = raw.new_zeros(len(raw), size, size)
        if not isinstance(self.condition, NoCondition):
            down, across = raw.shape[-2] / rows, raw.shape[-1] / columns
            box = Box(round(left * across), round(top * down), round(self.side * across), round(self.side * down))
            condition = self.condition.crop_resize(raw, box, self.pairs.spec.condition_side)
        if self.pairs.spec.flip and torch.rand(1, generator=generator).item() < 0.5:
            low_res, condition = low_res.flip(-1), self.condition.flip(condition)
        return Sample(torch.zeros(3, size, size), condition, self.pairs.pairs[index].key, low_res)

    def center(self, index: int) -> Sample:
        """A pair's: generated images do not validate."""
        return self.pairs.center(index)

    def order(self, seed: int, rank: int, world: int) -> Order:
        """As the pairs'."""
        return self.pairs.order(seed, rank, world)

    def files_of(self, keys: Sequence[str]) -> list[str]:
        """As the pairs'."""
        return self.pairs.files_of(keys)

    def identity(self) -> str:
        """As the pairs'."""
        return self.pairs.identity()

    def contents(self) -> str | None:
        """The pairs'."""
        return self.pairs.contents()

    def images_identity(self) -> str:
        """SHA-256 of the generated images' names in the order of their pairs, wherever they lie."""
        return _sha256(file.name for file in self._files())

    def images_contents(self) -> str:
        """SHA-256 of what is in the generated images, in the same order."""
        return _sha256(str(zlib.crc32(file.read_bytes())) for file in self._files())

    def _files(self) -> list[Path]:
        return [file for index in self._with_images for file in self.small[index]]

    def _check(self) -> None:
        problems = Problems()
        for index, files in self.small.items():
            for file in files:
                why = self._why_not(file, image_size(self.pairs.pairs[index].image))
                if why:
                    problems.add(why, str(file))
        problems.raise_if_any(self.spec.root)

    def _why_not(self, file: Path, whole: tuple[int, int]) -> str | None:
        """Why an image cannot be used; none if it can. whole: (width, height) of what it has to lie over."""
        width, height = image_size(file)
        if min(width, height) < self.side:
            return f"generated images smaller than the {self.side} px of a crop (data.size / scale)"
        if not same_proportions((width, height), whole):
            return f"images that show a part of their condition; generate them without {option('square')}"
        if min(width, height) != self.low_res:
            return f"images whose short side is not the {self.low_res} px that the upsampler enlarges (model.low_res)"
        said = own_text(file)
        if "base_only" not in said:  # written wherever no upsampler took part, also of a base that has none
            return f"images that no base generated; make them by piti translate … {flag('base_only')}"
        if not isinstance(self.condition, NoCondition) and _meaning_in(said) != meaning_hash(self.condition):
            return "images of another condition than this recipe's; generate them with a base that reads the same"
        return None


def _sha256(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _meaning_in(said: Mapping[str, str]) -> object:
    """The mark of what a picture's condition means, see `meaning_hash`; none where its metadata do not tell it."""
    try:
        form = json.loads(said.get("raw_form", ""))
    except ValueError:
        return None
    return form.get("reads") if isinstance(form, dict) else None


def _by_pair(pairs: PairedFolder, root: Path) -> Mapping[int, list[Path]]:
    """The generated images of every pair that has some, by the pair's index. Raises DataError where none is."""
    if not root.is_dir():
        raise DataError(
            f"generated.root: {root} is no folder",
            remedy=f"make it by piti translate … {flag('base_only')} {flag('out')} {root}",
        )
    stems: dict[str, int] = {}
    for index, pair in enumerate(pairs.pairs):
        other = stems.setdefault(flat(pair.key), index)
        if other != index:
            raise DataError(
                f"generated.root: images of {pairs.pairs[other].key} and {pair.key} would have one name",
                remedy="rename one of them in the data, and generate its images anew",
            )
    found: dict[int, list[Path]] = {}
    for file in list_images(root):
        stem, _, number = file.stem.rpartition("_")
        if number.isdigit() and stem in stems and file.suffix == ".png":
            found.setdefault(stems[stem], []).append(file)
    if not found:
        raise DataError(
            f"generated.root: {root} holds no STEM_NUMBER.png of the training conditions (such as "
            f"{next(iter(stems))}_0.png)",
            remedy=f"make them by piti translate … {flag('base_only')}",
        )
    return found
