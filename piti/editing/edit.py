"""Edit an image by changing its condition: invert it, then sample along its own trajectory, with both networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from piti.conditions import Condition
from piti.conditions.base import is_source
from piti.core.errors import option
from piti.core.images import (
    Box,
    Source,
    as_rgb,
    image_of_array,
    open_image,
    quantized,
    read_rgb,
    same_proportions,
    to_pil,
    to_tensor,
    upright,
)
from piti.diffusion.samplers import OnStep
from piti.editing.options import DEFAULTS, VARIETY, Edited, EditSettings, check_exact
from piti.editing.regions import EditError, changed, derived, mixed, resized_to, softened, white_of
from piti.editing.trajectory import Inverted, Progress, Redraw, Walk
from piti.models import Tokens
from piti.pipelines.call import ConditionInput, image_of_output, images_each
from piti.pipelines.canvas import MAX_RATIO, Canvas, extended
from piti.pipelines.cascade import Batch, Network, NetworkSampling, Prepared
from piti.pipelines.noise import one_each, upsampler_generators
from piti.pipelines.pipeline import PITIPipeline

Picture = Source | Image.Image | np.ndarray | Tensor
"""An input image: a file, a PIL image, its pixels as an array, or pipeline output of type "np" or "pt"."""


@dataclass(frozen=True)
class EditInput:
    """Inputs of an edit."""

    image: Image.Image
    to: Prepared
    """The new condition, from `prepare_edit`."""
    from_: Tensor | None = None
    """The current condition as a raw tensor; None if unknown."""
    region: Image.Image | None = None
    """White where the image is repainted; None: where the conditions differ."""


def edit(
    pipeline: PITIPipeline,
    image: Picture,
    to: ConditionInput,
    from_: ConditionInput | None = None,
    region: Picture | None = None,
    settings: EditSettings = DEFAULTS,
    num_images: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Edited:
    """Edit an image from condition `from_` to condition `to`, and keep the rest of it (PITI, appendix B, figure 20).

    image: a PIL image, its file, or its pixels as an array, of any size, with the aspect ratio of the conditions;
    converted by `as_rgb`. to, from_: the new and the current condition, as for a pipeline call. Without `from_` the
    image is inverted under the null condition. region: an image of the same aspect ratio, white where to repaint. By
    default where the conditions differ, dilated and feathered; without `from_` everything. num_images, generator,
    batch_size: as for a pipeline call; the generator determines the fresh noise. on_step: called as (steps done, total
    steps, x̂₀), counted over inversion and sampling of both networks; an exception raised by it ends the edit.

    Images have the size at which they are generated, or the input's with `settings.keep_exact`.

    Raises EditError if nothing differs, aspect ratios disagree, the input cannot be kept exactly, or the model is not a
    diffusion model; ConditionError or ImageError for an invalid condition or image, UserError for an invalid setting.
    """
    count = images_each(num_images, None, batch_size)
    if settings.keep_exact and is_source(image):
        check_exact(image, str(image))
    picture, white = _picture(image, "image"), None if region is None else _picture(region, "region")
    prepared = prepare_edit(pipeline, picture, to, settings)
    before = None if from_ is None else pipeline.read(from_)
    given = EditInput(picture, prepared, before, white)
    return edit_prepared(pipeline, given, settings, one_each(generator, count), batch_size, on_step)


def _picture(given: Any, name: str) -> Image.Image:
    """Decode an image. name: of the argument. Raises EditError for other types, ImageError for an unreadable file."""
    if isinstance(given, Image.Image):
        return given
    if is_source(given):
        return open_image(given) if name == "region" else read_rgb(given)
    if isinstance(given, np.ndarray):
        numbers = given.ndim == 3 and given.dtype.kind == "f"  # as a pipeline gives an image
        return (image_of_output if numbers else image_of_array)(given, f"the given {name}")
    if isinstance(given, Tensor):
        return image_of_output(given, f"the given {name}")
    raise EditError(f"expected an image, its file or an array, got {type(given).__name__}", option=name)


def prepare_edit(pipeline: PITIPipeline, image: Image.Image, to: ConditionInput, settings: EditSettings) -> Prepared:
    """Prepare the new condition of an edit, on a canvas of its aspect ratio (of the image's for a text).

    Raises EditError for an aspect ratio above `MAX_RATIO` and for a model that is not a diffusion model, UserError for
    invalid settings.
    """
    sampling, raw, spatial = settings.resolve(pipeline), pipeline.read(to), pipeline.condition.spatial
    columns, rows = (raw.shape[-1], raw.shape[-2]) if spatial else upright(image).size
    if min(rows, columns) * MAX_RATIO < max(rows, columns):
        raise EditError(
            f"the {'condition' if spatial else 'image'} is {columns} x {rows} pixels; at most {MAX_RATIO}:1 is "
            "supported; crop the image and its conditions in the same way"
        )
    return pipeline.prepare(raw, sampling, over=(rows, columns))


@torch.no_grad()
def edit_prepared(
    pipeline: PITIPipeline,
    given: EditInput,
    settings: EditSettings,
    generators: list[torch.Generator],
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Edited:
    """Edit with one image per generator; otherwise as `edit`."""
    if settings.keep_exact:
        check_exact(given.image, "the image")
    work = _Work.of(pipeline, replace(given, image=as_rgb(given.image, "the image")), settings)
    progress = Progress(on_step, work.steps(math.ceil(len(generators) / batch_size)))
    try:
        canvases, returned = work.made(generators, batch_size, progress)
    finally:
        pipeline.maybe_free_model_hooks()
    return work.finished(canvases, returned)


@dataclass(frozen=True)
class _Work:
    """An edit with all inputs read, checked and encoded."""

    base: Walk
    upsampler: Walk | Redraw | None
    canvas: Canvas
    original: Image.Image
    """The input at its own size."""
    region: Tensor
    """[h, w] over the image, 0 outside."""
    white: Tensor | None
    """[h, w], the given region at its own size; pixels outside it must not change. None without one."""
    shows: Tensor | None
    variety: float
    settings: EditSettings

    @classmethod
    def of(cls, pipeline: PITIPipeline, given: EditInput, settings: EditSettings) -> _Work:
        """Read, check and encode an edit. Raises as `edit`."""
        condition, image, after = pipeline.condition, given.image, given.to.raw
        canvas, sampling = given.to.canvas, given.to.sampling
        before = None if given.from_ is None else _like(pipeline, given.from_, after)
        if condition.spatial:
            _check_proportions("the image", image.size, "the condition", (after.shape[-1], after.shape[-2]))
        white = None if given.region is None else white_of(given.region)
        if white is not None:
            _check_proportions("the region", (white.shape[1], white.shape[0]), "the image", image.size)
        size, off = (canvas.image_height, canvas.image_width), _off(given.from_, after)
        soft = _soft_region(condition, before, after, white, size, settings, off)  # [h, w]
        if settings.keep_exact:
            _check_kept(soft, before, white)
        everything = bool((soft == 1).all())
        variety = settings.variety if settings.variety is not None else (0.0 if everything else VARIETY)
        large = on_canvas(image, canvas)  # [1, 3, H, W]
        own = None if before is None else given.to.with_raw(before)

        def of_canvas(network: Network, scale: int) -> tuple[Tensor, Tensor | None]:
            pixels = large if scale == 1 else reduced(large, scale)
            factor = network.space.spec.factor
            part = None if everything else _region_canvas(soft, canvas, scale * factor).to(network.device)
            return network.space.points(pixels.to(network.device)), part

        def walk(network: Network, chosen: NetworkSampling, scale: int) -> Walk:
            tokens = _encoded(network, own, given.to, guided=chosen.guidance.w != 0)
            fresh = variety if network.translator.low_res is None else 0.0
            return Walk(network.exact(), chosen, settings.refinements, fresh, *of_canvas(network, scale), *tokens)

        base, second, chosen = pipeline.base_network(), pipeline.upsampler_network(), sampling.upsampler
        assert isinstance(base, Network)
        small, upper = walk(base, sampling.base, canvas.scale), None
        if chosen is not None and second is not None:
            if second.translator.noised is not None:
                raise EditError(
                    "this upsampler takes a noised small image, and cannot be inverted",
                    remedy=f"edit at the base's size, by {option('base_only')}",
                )
            one_step = second.translator.one_step
            redraw = Redraw(second, chosen, variety > 0, *of_canvas(second, 1), given.to) if one_step else None
            upper = redraw or walk(second, chosen, 1)
        shows = after
        if white is not None and not everything:
            shows = None if before is None else mixed(condition, before, after, white)
        return cls(small, upper, canvas, image, soft, white, shows, variety, settings)

    def steps(self, batches: int) -> int:
        """Total steps of both networks, including inversion and reconstruction."""
        walks = [walk for walk in (self.base, self.upsampler) if walk is not None]
        return sum(walk.steps(batches, self.settings.measure) for walk in walks)

    def made(
        self, generators: list[torch.Generator], batch_size: int, progress: Progress
    ) -> tuple[Tensor, float | None]:
        """Whole canvases [N, 3, H, W] in [-1, 1] on the CPU, and the reconstruction PSNR if it is measured."""
        small = self.base.invert(progress)
        large = None if self.upsampler is None else self.upsampler.invert(progress, self.base.pixels())
        returned = self._returned(small, large, progress) if self.settings.measure else None
        canvases = []
        for start in range(0, len(generators), batch_size):
            own = generators[start : start + batch_size]
            second = upsampler_generators(own)  # before the base draws
            images = small.sample(own, progress)
            if large is not None:
                images = large.sample(second, progress, self._seen(images))
            canvases.append(images.float().cpu())
        return torch.cat(canvases), returned

    def _returned(self, small: Inverted, large: Inverted | Redraw | None, progress: Progress) -> float:
        """The PSNR of the image inverted and sampled back; of the small canvas for a one-step upsampler."""
        back, target = small.back(progress), self.base.pixels()
        if isinstance(large, Redraw):
            return psnr(quantized(back), target)
        if large is not None:
            back, target = large.back(progress, self._seen(back)), large.up.pixels()
        return psnr(self.canvas.crop(quantized(back)), self.canvas.crop(target))

    def _seen(self, small: Tensor) -> Tensor:
        """Small images rounded to 8 bits for the upsampler, on its device."""
        assert self.upsampler is not None
        return self.upsampler.settings.in_8_bits(small).to(self.upsampler.network.device)

    def finished(self, canvases: Tensor, returned: float | None) -> Edited:
        """Crop the images, blend them over the input if it is to be kept exactly, and compare them with it."""
        size = (self.canvas.image_width, self.canvas.image_height)
        short = min(size)
        images = [to_pil(self.canvas.crop(made)) for made in canvases]
        grey = Image.fromarray((self.region * 255).ceil().to(torch.uint8).numpy())
        like = _sized(self.original, size)
        if self.settings.keep_exact:
            like, size = self.original, self.original.size
            grey = self._within_white(grey.resize(size, Image.Resampling.BILINEAR))  # 0 stays 0 but for the rim
            images = [Image.composite(_sized(made, size), like, grey) for made in images]
        outside = np.asarray(grey) == 0
        found = [_psnr_outside(made, like, outside) for made in images]
        small = returned is not None and isinstance(self.upsampler, Redraw)
        share = 1 - float(outside.mean())
        return Edited(images, grey, share, found, self.shows, self.variety, short, returned, small)

    def _within_white(self, grey: Image.Image) -> Image.Image:
        """A region at the input's own size, set to 0 where the given region is not white."""
        if self.white is None:
            return grey
        inside = resized_to(self.white, (grey.height, grey.width)).numpy()
        return Image.fromarray(np.where(inside, np.asarray(grey), 0).astype(np.uint8))


# Preparing


def _like(pipeline: PITIPipeline, before: Tensor, after: Tensor) -> Tensor:
    """The current condition at the size of the new one. Raises EditError if they do not fit the same image."""
    if before.shape == after.shape or not pipeline.condition.spatial:
        return before
    (rows, columns), size = before.shape[-2:], (after.shape[-2], after.shape[-1])
    _check_proportions("the image's own condition", (columns, rows), "the changed one", (size[1], size[0]))
    return pipeline.condition.crop_resize(before, Box(0, 0, columns, rows), size)


def _off(before: Tensor | None, after: Tensor) -> int:
    """Tolerance, in pixels of the new condition, for edges of a current condition of another size."""
    if before is None or before.shape == after.shape:
        return 0
    return math.ceil(max(after.shape[axis] / before.shape[axis] for axis in (-2, -1)))


def _check_proportions(one: str, size: tuple[int, int], other: str, like: tuple[int, int]) -> None:
    """Raise EditError unless the aspect ratios of two (width, height) agree up to rounding to a pixel."""
    if not same_proportions(size, like):
        (width, height), (columns, rows) = size, like
        raise EditError(
            f"{one} is {width} x {height} and {other} is {columns} x {rows}, but both belong to the same image; give "
            "both the same aspect ratio"
        )


def _soft_region(
    condition: Condition,
    before: Tensor | None,
    after: Tensor,
    white: Tensor | None,
    size: tuple[int, int],
    settings: EditSettings,
    within: int,
) -> Tensor:
    """The feathered region [h, w] for an image of `size` (height, width). within: see `changed`.

    Raises EditError if nothing would be repainted.
    """
    if white is not None:
        if not white.any():
            raise EditError(
                "the region is black everywhere, so nothing would be repainted; paint the part to change white"
            )
        return softened(resized_to(white, size), round(settings.feather * min(size)))
    if before is None:
        return torch.ones(size)
    differs = changed(condition, before, after, within)
    if not differs.any():
        raise EditError(
            "the two conditions are equal, so nothing would change",
            remedy=f"change the new condition, or give a {option('region')} to repaint under the same condition",
        )
    return derived(differs, size, settings.dilate, settings.feather)


def _check_kept(soft: Tensor, before: Tensor | None, white: Tensor | None) -> None:
    """Raise EditError if the whole image would be repainted, so that nothing is left to keep exactly."""
    if bool((soft == 0).any()) or not (white is None or bool(white.all())):
        return
    remedies = ["paint less of the region white" if white is not None else f"give a {option('region')}"]
    if white is None and before is None:
        remedies.insert(0, f"give the current condition, as {option('from')} or {option('from_text')}")
    raise EditError(
        f"the whole image would be repainted, but {option('keep_exact')} is to keep a part of it",
        remedy=", or ".join([*remedies, f"leave {option('keep_exact')} out"]),
    )


def _encoded(
    network: Network, before: Prepared | None, after: Prepared, guided: bool
) -> tuple[tuple[Tokens, None], tuple[Tokens, Tokens | None]]:
    """Tokens of the current condition (None: of the null condition), and of the new one."""
    tokens, both = network.encode(Batch([after], [0], []), with_null=guided or before is None)
    if before is not None:
        own, _ = network.encode(Batch([before], [0], []), with_null=False)
    else:
        own = tokens if both is None else both.picked([1])
    return (own, None), (tokens, both if guided else None)


def on_canvas(image: Image.Image, canvas: Canvas) -> Tensor:
    """An image over the whole canvas, [1, 3, H, W] in [-1, 1]; its edges repeated beyond it."""
    resized = to_tensor(_sized(image, (canvas.image_width, canvas.image_height)))
    return extended(resized, canvas.size)[None]


def reduced(canvas: Tensor, scale: int) -> Tensor:
    """A canvas reduced to the base's size, [1, 3, H / scale, W / scale], rounded to 8 bits."""
    height, width = canvas.shape[-2:]
    small = to_pil(canvas[0]).resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return to_tensor(small)[None]


def _region_canvas(soft: Tensor, canvas: Canvas, scale: int) -> Tensor:
    """A region [h, w] over the whole canvas, [1, 1, H, W]; averaged to the base's pixels."""
    whole = extended(soft[None], canvas.size)[None]
    return F.avg_pool2d(whole, scale) if scale > 1 else whole


# Finishing


def _sized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to (width, height)."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _psnr_outside(made: Image.Image, like: Image.Image, outside: np.ndarray) -> float | None:
    """PSNR over the pixels where `outside` [h, w] is true; None if there are none."""
    if not outside.any():
        return None
    one, other = (torch.from_numpy(np.asarray(image)[outside]).float() / 127.5 for image in (made, like))
    return psnr(one, other)


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]; infinite if they are equal."""
    error = float((one - other).square().mean(dtype=torch.float64))
    return math.inf if error == 0 else 10 * math.log10(2**2 / error)
