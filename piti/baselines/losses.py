"""Losses of the baselines, each [B], the mean per sample.

Least squares: Mao et al. 2017 (arXiv 1611.04076). Feature matching: Wang et al. 2018 (arXiv 1711.11585). N+1 classes
and LabelMix: Schönfeld et al. 2021 (arXiv 2012.04781). The hinge is in `piti.diffusion.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from piti.core.errors import UserError
from piti.diffusion.losses import AdversarialLoss, perceptual_loss
from piti.models.perceptual import PerceptualNetwork

Logits = Float[Tensor, "b ..."]


def least_squares_generator(fake_logits: Logits) -> Float[Tensor, " b"]:
    """Target 1 for fake images (Mao et al., eq. 2 with b = c = 1, a = 0, without the factor 1/2)."""
    # (D(x̂) − 1)²
    return _per_sample((fake_logits.float() - 1).square())


def least_squares_real(real_logits: Logits) -> Float[Tensor, " b"]:
    """Target 1 for real images (Mao et al., eq. 2)."""
    # ½ (D(x) − 1)²
    return _per_sample((real_logits.float() - 1).square()) / 2


def least_squares_fake(fake_logits: Logits) -> Float[Tensor, " b"]:
    """Target 0 for fake images (Mao et al., eq. 2)."""
    # ½ D(x̂)²
    return _per_sample(fake_logits.float().square()) / 2


LEAST_SQUARES = AdversarialLoss(least_squares_generator, least_squares_real, least_squares_fake)


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Float[Tensor, " b"]:
    """Distance of a discriminator's feature maps, summed over layers (Wang et al., eq. 4).

    fake, real: of one scale, without logits. No gradient flows to `real`.
    """
    # Σ_i 1/N_i ‖D⁽ⁱ⁾(s, x) − D⁽ⁱ⁾(s, x̂)‖₁
    return torch.stack(
        [_per_sample((f.float() - r.detach().float()).abs()) for f, r in zip(fake, real, strict=True)]
    ).sum(0)


def perceptual_difference(
    fake: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"], network: PerceptualNetwork | None
) -> Float[Tensor, " b"]:
    """Weighted distance of the features of both images. No gradient flows to `real`.

    Raises UserError without a network.
    """
    if network is None:
        raise UserError(
            "a perceptual loss needs a network; give the recipe's 'perceptual', or set the baseline's 'perceptual' to 0"
        )
    with torch.no_grad():
        theirs = network(real)
    return perceptual_loss(network(fake), theirs, network.layer_weights)


def check_sizes(seen: Float[Tensor, "b s h w"], images: Float[Tensor, "b 3 h2 w2"]) -> None:
    """Raises UserError unless conditions and images have the same size."""
    if seen.shape[-2:] != images.shape[-2:]:
        (height, width), (high, wide) = seen.shape[-2:], images.shape[-2:]
        raise UserError(
            f"conditions of {width} × {height} px, images of {wide} × {high}: a baseline needs both of one size; leave "
            "'data.condition_size' out"
        )


def class_weights(labels: Int[Tensor, "b h w"], classes: int) -> Float[Tensor, " n"]:
    """Weight of the pixels of each class, larger for rare classes in the batch (Schönfeld et al., α_c).

    labels: 0 … N - 1, N for ignored; these, and classes that do not occur, have weight 0. As in the release, the
    weights are scaled so that their mean over all pixels, including ignored ones, is 1.
    """
    # α_c = B·H·W / Σ_{b,i,j} t_{b,i,j,c}, over the number of classes that occur
    flat = labels.flatten()
    counts = torch.zeros(classes + 1, device=flat.device).scatter_add(
        0, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    counts = counts[:classes]
    present = (counts > 0).sum().clamp(min=1)
    return torch.where(counts > 0, labels.numel() / (present * counts.clamp(min=1)), 0.0)


def class_loss(
    logits: Float[Tensor, "b n1 h w"], labels: Int[Tensor, "b h w"], weights: Float[Tensor, " n"]
) -> Float[Tensor, " b"]:
    """Weighted cross-entropy of the pixels' classes (Schönfeld et al., L_G, and L_D of real ones).

    logits: of N classes, and of `fake` last; labels: 0 … N - 1, N for ignored pixels, which do not count.
    """
    # −Σ_c α_c t_c log D(x)_c
    ignored = labels == len(weights)
    entropy = F.cross_entropy(logits.float(), labels.masked_fill(ignored, 0), reduction="none")  # [B, H, W]
    return _per_sample(entropy * F.pad(weights, (0, 1))[labels])


def fake_loss(logits: Float[Tensor, "b n1 h w"]) -> Float[Tensor, " b"]:
    """Cross-entropy of the last class, `fake`, at every pixel (Schönfeld et al., L_D of fake images)."""
    # −log D(x̂)_{N+1}
    return _per_sample(-logits.float().log_softmax(dim=1)[:, -1])


def label_mix(labels: Int[Tensor, "b h w"], uniform: Float[Tensor, "b n1"]) -> Bool[Tensor, "b 1 h w"]:
    """Pixels taken from the real image: whole classes, each with probability 1/2 (Schönfeld et al., LabelMix).

    uniform: a number in [0, 1) for each class of each sample, the last for ignored pixels.
    """
    coins = uniform.to(labels.device) < 0.5
    return coins.gather(1, labels.flatten(1)).view(labels.shape)[:, None]


def mix(
    mask: Bool[Tensor, "b 1 h w"], real: Float[Tensor, "b c h w"], fake: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Mix images or logits: real where the mask is true, fake elsewhere."""
    # M ⊙ x + (1 − M) ⊙ x̂
    return torch.where(mask, real, fake)


def label_mix_consistency(
    mixed: Float[Tensor, "b n1 h w"],
    real: Float[Tensor, "b n1 h w"],
    fake: Float[Tensor, "b n1 h w"],
    mask: Bool[Tensor, "b 1 h w"],
) -> Float[Tensor, " b"]:
    """Distance of the logits of the mixed image to the mixed logits (Schönfeld et al., L_LM)."""
    # ‖D(LabelMix(x, x̂, M)) − LabelMix(D(x), D(x̂), M)‖², the mean over logits, as in the release
    return _per_sample((mixed.float() - mix(mask, real.float(), fake.float())).square())


def _per_sample(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    return x.flatten(1).mean(dim=1)
