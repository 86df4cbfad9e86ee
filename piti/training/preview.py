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
from piti.diffusion.losses import diffusion_loss
from piti.diffusion.samplers import initial_noise, sample
from piti.diffusion.schedule import NoiseSchedule
from piti.images import grid, to_pil
from piti.models import Prediction, Translator
from piti.seeding import generator_for
from piti.training.recipes import LossSpec, PreviewSpec

LOSS_TIMESTEPS = 8  # evenly spread; every validation image is judged at each


@dataclass
class Validation:
    """Fixed pairs to judge a run on, each centre-cropped."""

    condition: Condition
    batch: Batch
    schedule: NoiseSchedule
    seed: int

    @torch.no_grad()
    def loss(self, predict: Callable[..., Prediction], spec: LossSpec) -> float:
        """Mean of eq. 3's loss over the batch and over fixed timesteps and noise."""
        image = self.batch.image
        condition = self.condition.encode(self.batch.condition)
        device, total = image.device, 0.0
        for k in range(LOSS_TIMESTEPS):
            level = int((k + 0.5) * len(self.schedule) / LOSS_TIMESTEPS)
            t = torch.full((len(image),), level, device=device)
            noise = torch.randn(image.shape, generator=generator_for(self.seed, "validation", k)).to(device)
            x_t = self.schedule.q_sample(image, t, noise)
            output, variance = predict(x_t, t, condition)
            losses = diffusion_loss(
                output, variance, image, x_t, t, noise, self.schedule, spec.weighting, spec.vb_weight
            )
            total += losses.simple.mean().item()
        return total / LOSS_TIMESTEPS

    @torch.no_grad()
    def picture(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Image.Image:
        """Rows of condition, sample and photograph for the first `spec.count` pairs."""
        raw = self.batch.condition[: spec.count]
        samples = to_pil(self.samples(translator, predict, spec))
        photographs = to_pil(self.batch.image[: spec.count])
        conditions = [self.condition.preview(one.cpu()) for one in raw]
        columns = zip(conditions, samples, photographs, strict=True)
        return grid([list(row) for row in zip(*columns, strict=True)])

    def samples(self, translator: Translator, predict: Callable[..., Prediction], spec: PreviewSpec) -> Tensor:
        """One sample for each of the first `spec.count` conditions, [B, 3, H, W] in [-1, 1]."""
        condition = self.condition.encode(self.batch.condition[: spec.count])
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
