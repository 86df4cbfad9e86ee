"""One edit: inputs checked and encoded, then images sampled in batches and blended over the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from piti.conditions import Condition
from piti.core.errors import option
from piti.core.images import Box, as_rgb, quantized, same_proportions, to_pil, to_tensor
from piti.diffusion.samplers import OnStep
from piti.editing.options import VARIETY, Edited, EditSettings, check_exact
from piti.editing.regions import EditError, changed, derived, mixed, resized_to, softened, white_of
from piti.editing.trajectory import Inverted, Progress, Redraw, Walk
from piti.models import Tokens
from piti.pipelines.canvas import Canvas, extended
from piti.pipelines.cascade import Batch, Network, NetworkSampling, Prepared
from piti.pipelines.noise import upsampler_generators
from piti.pipelines.pipeline import PITIPipeline

BATCH = 8
"""Default number of images sampled at once."""

OnImages = Callable[[list[Image.Image]], None]
"""Called with the finished images of each batch."""


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


@dataclass(frozen=True)
class EditRun:
    """An edit with all inputs checked and encoded; `sample` generates its images."""

    pipeline: PITIPipeline
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
    """See `Edited`; likewise `variety`."""
    variety: float
    settings: EditSettings

    @classmethod
    @torch.no_grad()
    def of(cls, pipeline: PITIPipeline, given: EditInput, settings: EditSettings) -> EditRun:
        """Check and encode the inputs of an edit. Raises as `edit`."""
        if settings.keep_exact:
            check_exact(given.image, "the image")
        given = replace(given, image=as_rgb(given.image, "the image"))
        condition, after, canvas = pipeline.condition, given.to.raw, given.to.canvas
        before = None if given.from_ is None else _like(pipeline, given.from_, after)
        white = None if given.region is None else white_of(given.region)
        _check_inputs(condition, given, white)
        size, tolerance = (canvas.image_height, canvas.image_width), _tolerance(given.from_, after)
        soft = _soft_region(condition, before, after, white, size, settings, tolerance)  # [h, w]
        if settings.keep_exact:
            _check_kept(soft, before, white)
        everything = bool((soft == 1).all())
        variety = settings.variety if settings.variety is not None else (0.0 if everything else VARIETY)
        inputs = _NetworkInputs(given, before, None if everything else soft, settings.refinements, variety)
        shows = after
        if white is not None and not everything:
            shows = None if before is None else mixed(condition, before, after, white)
        base, upsampler = inputs.of_base(pipeline), inputs.of_upsampler(pipeline)
        return cls(pipeline, base, upsampler, canvas, given.image, soft, white, shows, variety, settings)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the images."""
        return self.original.size if self.settings.keep_exact else self._edited_size

    @property
    def short_side(self) -> int:
        """The short side at which the image is edited."""
        return min(self._edited_size)

    @property
    def _edited_size(self) -> tuple[int, int]:
        return self.canvas.image_width, self.canvas.image_height

    @torch.no_grad()
    def sample(
        self,
        generators: Sequence[torch.Generator],
        batch_size: int = BATCH,
        on_step: OnStep | None = None,
        on_images: OnImages | None = None,
    ) -> float | None:
        """Invert the image, and sample one image per generator, `batch_size` at once.

        on_step: as for `edit`; on_images: called with the images of each batch as soon as they are done. Returns the
        PSNR of the reconstruction in dB with `settings.measure`, else None. Without generators nothing is inverted,
        unless it is to be measured.
        """
        batches = [generators[start : start + batch_size] for start in range(0, len(generators), batch_size)]
        if not batches and not self.settings.measure:
            return None
        try:
            return self._sampled(batches, Progress(on_step, self._steps(len(batches))), on_images)
        finally:
            self.pipeline.maybe_free_model_hooks()

    def _steps(self, batches: int) -> int:
        """Total steps of both networks, including inversion and reconstruction."""
        walks = [walk for walk in (self.base, self.upsampler) if walk is not None]
        return sum(walk.steps(batches, self.settings.measure) for walk in walks)

    def _sampled(
        self, batches: Sequence[Sequence[torch.Generator]], progress: Progress, on_images: OnImages | None
    ) -> float | None:
        small = self.base.invert(progress)
        large = None if self.upsampler is None else self.upsampler.invert(progress, self.base.pixels())
        returned = self._reconstruction(small, large, progress) if self.settings.measure else None
        for generators in batches:
            second = upsampler_generators(generators)  # before the base draws
            images = small.sample(generators, progress)
            if large is not None:
                images = large.sample(second, progress, self._seen(images))
            if on_images is not None:
                on_images([self._finished(canvas) for canvas in images.float().cpu()])
        return returned

    def _reconstruction(self, small: Inverted, large: Inverted | Redraw | None, progress: Progress) -> float:
        """The PSNR of the image inverted and sampled back; of the small canvas for a one-step upsampler."""
        back, target = small.back(progress), self.base.pixels()
        if isinstance(large, Redraw):
            return psnr(quantized(back), target)
        if large is not None:
            back, target = large.back(progress, self._seen(back)), large.walk.pixels()
        return psnr(self.canvas.crop(quantized(back)), self.canvas.crop(target))

    def _seen(self, small: Tensor) -> Tensor:
        """Small images rounded to 8 bits for the upsampler, on its device."""
        assert self.upsampler is not None
        return self.upsampler.settings.in_8_bits(small).to(self.upsampler.network.device)

    def _finished(self, canvas: Tensor) -> Image.Image:
        """The image on a canvas [3, H, W], blended over the input if that is to be kept exactly."""
        image = to_pil(self.canvas.crop(canvas))
        if not self.settings.keep_exact:
            return image
        return Image.composite(_sized(image, self.size), self.original, self._grey)

    @cached_property
    def _grey(self) -> Image.Image:
        """The region as a greyscale image of the images' size: 0 is kept, 255 repainted."""
        grey = Image.fromarray((self.region * 255).ceil().to(torch.uint8).numpy())
        if not self.settings.keep_exact:
            return grey
        resized = grey.resize(self.size, Image.Resampling.BILINEAR)  # 0 stays 0, except at the region's rim
        if self.white is None:
            return resized
        inside = resized_to(self.white, (resized.height, resized.width)).numpy()
        return Image.fromarray(np.where(inside, np.asarray(resized), 0).astype(np.uint8))

    @cached_property
    def resized(self) -> Image.Image:
        """The input at the size of the images."""
        return _sized(self.original, self.size)

    def result(self, images: list[Image.Image], returned: float | None = None) -> Edited:
        """The result of an edit, with the images compared with the input. returned: from `sample`."""
        grey = self._grey
        outside = np.asarray(grey) == 0
        found = [_psnr_outside(made, self.resized, outside) for made in images]
        small = returned is not None and isinstance(self.upsampler, Redraw)
        share = 1 - float(outside.mean())
        return Edited(images, grey, share, found, self.shows, self.variety, self.short_side, returned, small)


@dataclass(frozen=True)
class _NetworkInputs:
    """What both networks of an edit get: the image, the region and the conditions."""

    given: EditInput
    before: Tensor | None
    """The current condition at the size of the new one; None if unknown."""
    soft: Tensor | None
    """The feathered region [h, w]; None: everything."""
    refinements: int
    variety: float

    def of_base(self, pipeline: PITIPipeline) -> Walk:
        """The base's trajectory."""
        network = pipeline.base_network()
        assert isinstance(network, Network)  # see `check_edits`
        return self._walk(network, self.given.to.sampling.base, self.given.to.canvas.scale, self.variety)

    def of_upsampler(self, pipeline: PITIPipeline) -> Walk | Redraw | None:
        """The upsampler's trajectory; None without one. Raises EditError for one that cannot be inverted."""
        network, chosen = pipeline.upsampler_network(), self.given.to.sampling.upsampler
        if network is None or chosen is None:
            return None
        if network.translator.noised is not None:
            raise EditError(
                "this upsampler takes a noised small image, and cannot be inverted",
                remedy=f"edit at the base's size, by {option('base_only')}",
            )
        if network.translator.one_step:
            return Redraw(network, chosen, self.variety > 0, *self._on_canvas(network, 1), self.given.to)
        return self._walk(network, chosen, 1, 0.0)

    def _walk(self, network: Network, chosen: NetworkSampling, scale: int, variety: float) -> Walk:
        """scale: pixels of the image for one of the network's, along a side."""
        own = None if self.before is None else self.given.to.with_raw(self.before)
        tokens = _encoded(network, own, self.given.to, guided=chosen.guidance.w != 0)
        return Walk(network.exact(), chosen, self.refinements, variety, *self._on_canvas(network, scale), *tokens)

    @cached_property
    def _large(self) -> Tensor:
        """The image over the whole canvas, [1, 3, H, W]."""
        return on_canvas(self.given.image, self.given.to.canvas)

    def _on_canvas(self, network: Network, scale: int) -> tuple[Tensor, Tensor | None]:
        """The image and the region over the whole canvas, in the network's space and on its device."""
        pixels = self._large if scale == 1 else reduced(self._large, scale)
        image = network.space.points(pixels.to(network.device))
        if self.soft is None:
            return image, None
        region = _region_canvas(self.soft, self.given.to.canvas, scale * network.space.spec.factor)
        return image, region.to(network.device)


# Preparing


def _like(pipeline: PITIPipeline, before: Tensor, after: Tensor) -> Tensor:
    """The current condition at the size of the new one. Raises EditError if they do not fit the same image."""
    if before.shape == after.shape or not pipeline.condition.spatial:
        return before
    (rows, columns), size = before.shape[-2:], (after.shape[-2], after.shape[-1])
    _check_proportions("the image's own condition", (columns, rows), "the changed one", (size[1], size[0]))
    return pipeline.condition.crop_resize(before, Box(0, 0, columns, rows), size)


def _tolerance(before: Tensor | None, after: Tensor) -> int:
    """Tolerance, in pixels of the new condition, for edges of a current condition of another size."""
    if before is None or before.shape == after.shape:
        return 0
    return math.ceil(max(after.shape[axis] / before.shape[axis] for axis in (-2, -1)))


def _check_inputs(condition: Condition, given: EditInput, white: Tensor | None) -> None:
    """Raise EditError unless the new condition and the region have the image's aspect ratio."""
    image, after = given.image.size, given.to.raw
    if condition.spatial:
        _check_proportions("the image", image, "the condition", (after.shape[-1], after.shape[-2]))
    if white is not None:
        _check_proportions("the region", (white.shape[1], white.shape[0]), "the image", image)


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
