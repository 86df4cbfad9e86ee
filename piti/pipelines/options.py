"""How a translation is sampled, which images it makes, and where an image's noise comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from piti.core.seeding import derive_seed
from piti.diffusion.guidance import Guidance
from piti.pipelines.cascade import Sampling
from piti.pipelines.pipeline import PITIPipeline

SHEET = "sheet.png"
"""What a contact sheet beside results is called."""
MAX_ROWS = 64
"""Of a batch that an image's place is told in; one that is made again takes the time and memory of all of them."""


@dataclass(frozen=True)
class Place:
    """The row of its batch that an image is made in: kernels round otherwise in a batch of another size."""

    row: int
    rows: int
    order: int = 0
    """Of its condition among the distinct ones of the batch, by their first rows."""
    distinct: int = 1

    def filled(self, raw: Shaped[Tensor, "K h w"]) -> list[Tensor]:
        """A batch with the condition in this place; what fills it is the same condition, as other views."""
        others = [raw[:] for _ in range(self.distinct - 1)]
        batch = [*others[: self.order], raw]
        rest = iter(others[self.order :])
        while len(batch) < self.rows:
            batch.append(raw if len(batch) == self.row else next(rest, raw))
        return batch


@dataclass(frozen=True)
class Settings:
    """How to sample; None takes the model's default."""

    num: int = 1
    seed: int = 0
    guidance: float | Guidance | None = None
    """w of normalised guidance, or another rule."""
    steps: int | str | None = None
    sampler: str | None = None
    batch: int = 8
    base_only: bool = False
    """Stop at the base's small images."""
    upsampler_steps: int | str | None = None
    upsampler_sampler: str | None = None
    square: bool = False
    """Take the square at each condition's centre."""
    size: int | None = None
    """The short side of the images."""
    skip_bad: bool = False
    """Leave out conditions that cannot be used, instead of stopping."""
    numbers: tuple[int, ...] | None = None
    """Which images of each condition, by number; the first `num` by default."""
    place: Place | None = None
    """If there is one image to make: where in a batch, so that it comes out as it did there, to the bit."""

    def wanted(self) -> Sequence[int]:
        """The numbers of the images of each condition."""
        return range(self.num) if self.numbers is None else self.numbers

    def sampling(self, pipeline: PITIPipeline) -> Sampling:
        """Everything decided for this pipeline. Raises UserError for impossible settings."""
        return pipeline.sampling(
            self.guidance, self.steps, self.sampler, self.base_only, self.upsampler_steps, self.upsampler_sampler
        )


def seed_of(seed: int, fitted: Shaped[Tensor, "K h w"], number: int) -> int:
    """What the noise of a condition's image is drawn from.

    seed: what a person gave; fitted: the condition as the base's encoder sees it (`PITIPipeline.fitted`), so that
    neither a file's name nor the other files matter; number: of the image among those of the condition.
    """
    return derive_seed(seed, hashlib.sha256(fitted.cpu().numpy().tobytes()).hexdigest(), number)
