"""Facts needed to repeat an evaluation, and warnings on its interpretation."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import piti
from piti.core.errors import option
from piti.evaluation.distances import CMMD_NETWORK, LEAST_FOR_SHARES, NOISE, SMALL, is_small
from piti.evaluation.features import FeatureNetwork
from piti.evaluation.material import Material
from piti.evaluation.options import Options
from piti.evaluation.pairing import described, sizes_of

_BLOCK = 2**20


@dataclass(frozen=True)
class Contents:
    """Hashes of files' contents."""

    sha256: str
    """SHA-256 over the names and contents, sorted by name."""
    each: tuple[str, ...]
    """SHA-256 of every file's contents, sorted by name."""

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Contents:
        """Reads every file once."""
        whole, each = hashlib.sha256(), []
        for path in sorted(paths, key=lambda path: (path.name, path)):
            whole.update(path.name.encode() + b"\0")
            own = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    whole.update(block)
                    own.update(block)
            each.append(own.hexdigest())
        return cls(whole.hexdigest(), tuple(each))


def facts_of(
    material: Material,
    options: Options,
    networks: Sequence[FeatureNetwork],
    device: torch.device,
    contents: tuple[Contents, Contents],
) -> dict[str, Any]:
    """Plain data: software, files and networks with their hashes, settings. contents: of the generated and the real
    images.
    """
    generated, real = contents
    told = _images(material.images, generated) | {"conditions": len(material.samples), "samples": _samples(material)}
    found: dict[str, Any] = {"versions": _versions(), "generated": {"folder": str(material.place)} | told}
    if material.real:
        split = {"split": material.split} if material.split else {}
        found["real"] = {"folder": str(material.real_place)} | split | _images(material.real, real)
    if material.given:
        found["conditions"] = [
            {"kind": given.condition.kind, "folder": given.place, "files": len(given.files), "used": len(given.samples)}
            for given in material.given
        ]
    found["networks"] = [network_facts(network) for network in networks]
    found["settings"] = {
        "resize": options.resize,
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "batch": options.batch,
        "device": str(device),
    }
    return found


def _images(paths: Sequence[Path], contents: Contents) -> dict[str, Any]:
    return {"images": len(paths), "sizes": described(sizes_of(paths)), "sha256": contents.sha256}


def network_facts(network: FeatureNetwork) -> dict[str, Any]:
    """A network's identity, by the hash of its weights, and its preprocessing."""
    return {
        "name": network.name,
        "source": network.source,
        "sha256": network.sha256,
        "resize": network.resize,
        "dimensions": network.dimensions,
    }


def _versions() -> dict[str, str]:
    """Versions of piti and of the packages that affect results."""
    others = [name for name in ("torch", "pillow", "transformers") if name != "transformers" or name in sys.modules]
    return {"piti": piti.__version__} | {name: version(name) for name in others}


def _samples(material: Material) -> dict[str, int]:
    """Number of conditions by number of images."""
    counts = Counter(len(images) for images in material.samples.values())
    return {str(samples): conditions for samples, conditions in sorted(counts.items())}


# Warnings


def notes_of(
    material: Material, options: Options, networks: Sequence[FeatureNetwork], contents: tuple[Contents, Contents]
) -> list[str]:
    """Warnings on the interpretation of the results. contents: of the generated and the real images."""
    if not networks:
        return []
    return [*_of_counts(material, options, networks), *_of_copies(*contents), *_of_sizes(material, options)]


def _of_counts(material: Material, options: Options, networks: Sequence[FeatureNetwork]) -> list[str]:
    generated, real = len(material.images), len(material.real)
    notes = []
    small = [network for network in networks if is_small(real, generated, network.dimensions)]
    if small:
        most = max(SMALL, *(network.dimensions for network in small))
        how = "intervals show their spread" if options.bootstrap else f"and {option('bootstrap')} 0 disables intervals"
        noise = (
            f". Below about {NOISE} images per side, the values are mostly noise"
            if min(generated, real) < NOISE
            else ""
        )
        notes.append(
            f"small sample: {generated:,} generated and {real:,} real images, fewer than {most:,}. FD and CMMD are "
            f"biased upwards for small sets: compare only evaluations with equal numbers of images; {how}{noise}"
        )
    if min(generated, real) < LEAST_FOR_SHARES and any(network.name != CMMD_NETWORK for network in networks):
        notes.append(f"precision and recall are not measured: they need at least {LEAST_FOR_SHARES} images per side")
    several = len(material.images) - len(material.samples)
    if several and small and options.bootstrap:
        notes.append(
            f"{generated:,} images are samples of {len(material.samples):,} conditions; the intervals assume "
            "independent images and are too narrow if samples of a condition are similar"
        )
    return notes


def _of_copies(generated: Contents, real: Contents) -> list[str]:
    """Warnings on files with the same contents on both sides."""
    there = set(real.each)
    count = sum(one in there for one in generated.each)
    if not count:
        return []
    what = f"{count:,} of {len(generated.each):,} generated images are identical files to real ones"
    return [f"{what}: distances are lower than they should be"]


def _of_sizes(material: Material, options: Options) -> list[str]:
    """Warnings on different image sizes of the two sides."""
    generated, real = (_short_sides(paths) for paths in (material.images, material.real))
    least, resize = min(generated + real), options.resize
    if resize is not None:
        enlarged = [what for what, sides in (("generated", generated), ("real", real)) if sides[0] < resize]
        too_large = (
            f"{option('resize')} {resize} enlarges {' and '.join(enlarged)} images; at most {least} enlarges none"
        )
        return [too_large] if enlarged else []
    notes = []
    if generated != real:
        notes.append(
            f"generated images have short sides of {_span(generated)}, real ones of {_span(real)}: each network "
            f"resizes both, and the missing detail of the smaller ones counts as a difference; {option('resize')} "
            f"{least} first resizes both to one size"
        )
    ours, theirs = (_proportions(paths) for paths in (material.images, material.real))
    if ours[1] < theirs[0] or theirs[1] < ours[0]:
        notes.append(
            "generated and real images differ in aspect ratio, and networks that take whole images stretch them (see "
            f"'networks' in the result): {option('resize')} {least} uses the centre squares of both"
        )
    return notes


def _proportions(paths: Sequence[Path]) -> tuple[float, float]:
    """The smallest and the largest aspect ratio (width by height), with a tolerance of one row or column."""
    sizes = sizes_of(paths)
    lows = [(width - 0.5) / (height + 0.5) for width, height in sizes]
    highs = [(width + 0.5) / (height - 0.5) for width, height in sizes]
    return min(lows), max(highs)


def _short_sides(paths: Sequence[Path]) -> tuple[int, int]:
    sides = [min(size) for size in sizes_of(paths)]
    return min(sides), max(sides)


def _span(sides: tuple[int, int]) -> str:
    return f"{sides[0]} px" if sides[0] == sides[1] else f"{sides[0]} to {sides[1]} px"
