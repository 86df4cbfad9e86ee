"""Validation during training: the loss on fixed noise, and samples of fixed conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from piti.conditions import Condition
from piti.core.images import to_pil
from piti.core.seeding import derive_seed, generator_for, noise_for
from piti.core.sheets import grid, zoomed
from piti.data.batches import LowRes, SampleSet, TrainingBatch, centers, collate
from piti.diffusion.guidance import conditioned, guided
from piti.diffusion.samplers import initial_noise, sample
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.timesteps import evenly
from piti.models import PIXELS, Prediction, Space, Tokens, Translator
from piti.training.outputs import PreviewSpec
from piti.training.recipe import Recipe

LOSS_TIMESTEPS = 8
"""Number of evenly spaced timesteps of the validation loss."""


SHOWN_SIDE = 192
"""Largest size to which images are enlarged in previews, in pixels."""


def shown(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """A preview: rows of images, small ones enlarged by nearest neighbour."""
    return grid([[zoomed(image, SHOWN_SIDE) for image in row] for row in rows])


@dataclass
class Validation:
    """Validation on fixed centre-cropped pairs."""

    condition: Condition
    batches: list[TrainingBatch]
    schedule: NoiseSchedule
    seed: int
    levels: list[int]
    """The timesteps used for every image."""
    space: Space = PIXELS

    @torch.no_grad()
    def loss(self, predict: Callable[..., Prediction]) -> float:
        """Unweighted mean of eq. 3 over all pairs, fixed timesteps and noise."""
        total, count = 0.0, 0
        for batch in self.batches:
            condition, points = self.condition.encode(batch.condition), self.space.points(batch.image)
            numbers = range(count, count + len(batch.image))
            count += len(numbers)
            for level in self.levels:
                noise = noise_for(derive_seed(self.seed, "validation", level), numbers, points.shape[1:])
                noise = noise.to(points.device)
                t = torch.full((len(noise),), level, device=noise.device)
                output, _ = predict(self.schedule.q_sample(points, t, noise), t, condition, batch.low_res)
                target = self.schedule.target(points, noise, t)
                total += (output.float() - target).square().mean(dim=(1, 2, 3)).sum().item()
        return total / (count * len(self.levels))

    @torch.no_grad()
    def picture(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Image.Image:
        """Condition or small image, sample and photograph for the first `spec.count` pairs, in three rows."""
        first = self.batches[0]
        samples = to_pil(self.samples(translator, predict, spec))
        photographs = to_pil(first.image[: spec.count])
        if first.low_res is None:
            given = [self.condition.preview(one.cpu()) for one in first.condition[: spec.count]]
        else:
            size = photographs[0].size
            given = [one.resize(size, Image.Resampling.BICUBIC) for one in to_pil(first.low_res[: spec.count])]
        return shown([given, samples, photographs])

    def samples(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Tensor:
        """One sample for each of the first `spec.count` conditions, [B, 3, H, W] in [-1, 1]."""
        first = self.batches[0]
        condition = self.condition.encode(first.condition[: spec.count])
        low_res = None if first.low_res is None else first.low_res[: spec.count]
        count, _, height, width = condition.shape
        tokens = translator.encode(condition)
        both = None
        if spec.guidance.w != 0:
            null = self.condition.null(count, height, width, device=condition.device)
            both = tokens.joined(translator.encode(null))

        def with_low_res(x_t: Tensor, t: Tensor, given: Tokens) -> Prediction:
            if low_res is None:
                return predict(x_t, t, given)
            return predict(x_t, t, given, low_res.repeat(len(x_t) // count, 1, 1, 1))

        if translator.one_step:  # its only number of steps
            spec = spec.model_copy(update={"sampler": "ddim", "steps": 1})
        denoise = conditioned(with_low_res, tokens, both, self.schedule)
        generators = [generator_for(self.seed, "preview", k) for k in range(count)]
        shape = (count, *self.space.shape(*first.image.shape[-2:]))
        x_T = initial_noise(shape, generators, device=condition.device)
        points = sample(
            guided(denoise, spec.guidance, self.schedule),
            x_T,
            self.schedule,
            spec.sampler,
            spec.steps if translator.student is None else translator.student.visited(spec.steps),
            generators,
        )
        return self.space.images(points)


def validation_of(
    recipe: Recipe,
    condition: Condition,
    samples: SampleSet,
    low_res: LowRes | None,
    device: torch.device,
    space: Space = PIXELS,
) -> Validation:
    """The first samples of a set, at most `preview.judged`; low_res: creates an upsampler's small images."""
    schedule, batches = NoiseSchedule(recipe.schedule), fixed_batches(recipe, samples, low_res, device)
    levels = evenly(len(schedule), LOSS_TIMESTEPS)
    if recipe.one_step:  # its only timestep
        levels = [len(schedule) - 1]
    return Validation(condition, batches, schedule, recipe.seed, levels, space)


def fixed_batches(
    recipe: Recipe, samples: SampleSet, low_res: LowRes | None, device: torch.device
) -> list[TrainingBatch]:
    """The first samples of a set, each centre-cropped, at most `preview.judged`, with their small images if any."""
    chosen = centers(samples, recipe.preview.judged)
    small = []
    if low_res is not None:
        small = [low_res(one.image, generator_for(recipe.seed, "validation", k)) for k, one in enumerate(chosen)]
    size = max(recipe.batch, recipe.preview.count)  # one batch has all shown pairs
    starts = range(0, len(chosen), size)
    return [collate(chosen[k : k + size], small[k : k + size]).to(device) for k in starts]
