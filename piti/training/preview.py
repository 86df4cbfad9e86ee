"""What a run looks like on the way: the loss on fixed noise, and samples of fixed conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from piti.conditions import Condition
from piti.data.batches import Batch
from piti.diffusion.conditioning import conditioned
from piti.diffusion.guidance import guided
from piti.diffusion.samplers import initial_noise, sample
from piti.diffusion.schedule import NoiseSchedule
from piti.images import grid, to_pil
from piti.models import Prediction, Translator
from piti.seeding import generator_for
from piti.training.recipes import PreviewSpec

LOSS_TIMESTEPS = 8  # evenly spread; every validation image is judged at each


@dataclass
class Validation:
    """Fixed pairs to judge a run on, each centre-cropped."""

    condition: Condition
    batches: list[Batch]
    schedule: NoiseSchedule
    seed: int

    @torch.no_grad()
    def loss(self, predict: Callable[..., Prediction]) -> float:
        """Mean of eq. 3's loss, unweighted, over all pairs and over fixed timesteps and noise."""
        levels = [int((k + 0.5) * len(self.schedule) / LOSS_TIMESTEPS) for k in range(LOSS_TIMESTEPS)]
        total, count = 0.0, 0
        for number, batch in enumerate(self.batches):
            condition = self.condition.encode(batch.condition)
            for level in levels:
                generator = generator_for(self.seed, "validation", level, number)
                noise = torch.randn(batch.image.shape, generator=generator).to(batch.image.device)
                t = torch.full((len(noise),), level, device=noise.device)
                output, _ = predict(self.schedule.q_sample(batch.image, t, noise), t, condition)
                target = self.schedule.target(batch.image, noise, t)
                total += (output.float() - target).square().mean(dim=(1, 2, 3)).sum().item()
                count += len(noise)
        return total / count

    @torch.no_grad()
    def picture(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Image.Image:
        """Rows of condition, sample and photograph for the first `spec.count` pairs."""
        first = self.batches[0]
        raw = first.condition[: spec.count]
        samples = to_pil(self.samples(translator, predict, spec))
        photographs = to_pil(first.image[: spec.count])
        conditions = [self.condition.preview(one.cpu()) for one in raw]
        columns = zip(conditions, samples, photographs, strict=True)
        return grid([list(row) for row in zip(*columns, strict=True)])

    def samples(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Tensor:
        """One sample for each of the first `spec.count` conditions, [B, 3, H, W] in [-1, 1]."""
        condition = self.condition.encode(self.batches[0].condition[: spec.count])
        count, _, height, width = condition.shape
        tokens = translator.encode(condition)
        both = None
        if spec.guidance.w != 0:
            null = self.condition.null(count, height, width, device=condition.device)
            both = tokens.joined(translator.encode(null))
        denoise = conditioned(predict, tokens, both, self.schedule)
        side = translator.image_size
        generators = [generator_for(self.seed, "preview", k) for k in range(count)]
        x_T = initial_noise((count, 3, side, side), generators, device=condition.device)
        return sample(
            guided(denoise, spec.guidance, self.schedule),
            x_T,
            self.schedule,
            spec.sampler,
            spec.steps,
            generators,
        )
