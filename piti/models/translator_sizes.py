"""Checks that the sizes of a translator's parts go together."""

from __future__ import annotations

from piti.core.errors import UserError
from piti.models.any_encoder import AnyEncoderSpec
from piti.models.encoders import AlignedEncoderSpec
from piti.models.pixel_head import PixelHeadSpec
from piti.models.space import SpaceSpec


def check_space(
    space: SpaceSpec, image_size: int, patch_size: int, low_res: int | None, inpaint: bool, folds: bool
) -> None:
    """Raises UserError for a patch that does not fit, and for what has no meaning in latents. folds: whether the
    network sees latents folded into channels, as FLUX.1's."""
    if patch_size < 1 or image_size % patch_size:
        raise UserError(f"'image_size' {image_size} is not a multiple of 'patch_size' {patch_size}")
    if not space.latent:
        return
    for name, given in (
        ("low_res", low_res is not None),
        ("patch_size", patch_size != 1 and not folds),
        ("inpaint", inpaint),
    ):
        if given:
            raise UserError(f"'{name}' is for networks that work on pixels; this one works on latents: leave it out")
    if image_size % (space.factor * patch_size):
        patches = f" times 'patch_size' {patch_size}" if patch_size != 1 else ""
        raise UserError(f"'image_size' {image_size} is not a multiple of 'space_spec.factor' {space.factor}{patches}")


def check_sizes(
    image_size: int,
    patch_size: int,
    low_res: int | None,
    encoder: AnyEncoderSpec | None,
    head: PixelHeadSpec | None,
) -> None:
    """Raises UserError unless the sizes of a translator's parts go together."""
    if head is not None and 2 ** len(head.channels) != patch_size:
        raise UserError(
            f"'head_spec' has {len(head.channels)} 'channels' and 'patch_size' is {patch_size}; each of them "
            "doubles the sides, so give log2(patch_size) of them"
        )
    if low_res is not None and (low_res < 1 or image_size % low_res or image_size == low_res):
        raise UserError(
            f"'low_res' {low_res} does not chain with 'image_size' {image_size}; give {image_size} / 2, / 4 …"
        )
    if isinstance(encoder, AlignedEncoderSpec) and encoder.size != image_size:
        raise UserError(
            f"'aligned_spec.size' {encoder.size} is not 'image_size' {image_size}; an aligned condition has "
            "the image's own size: make them equal"
        )


def check_detail(detail: float | None, low_res: int | None, other: bool) -> None:
    """Raises UserError where the preconditioning has no meaning."""
    if detail is not None and (low_res is None or detail <= 0):
        raise UserError(f"'detail' {detail} is for upsamplers and above 0; set 'low_res', or leave it out")
    if detail is not None and other:
        raise UserError("'detail' does not go together with 'inpaint' and 'flow_shift'; leave one of them out")
