"""Edit an image by changing its condition: invert it, then sample along its own trajectory, with both networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from piti.conditions.base import is_source
from piti.core.images import Source, image_of_array, open_image, read_rgb, upright
from piti.diffusion.samplers import OnStep
from piti.editing.options import DEFAULTS, Edited, EditSettings, check_exact
from piti.editing.regions import EditError
from piti.editing.run import BATCH, EditInput, EditRun
from piti.pipelines.call import ConditionInput, image_of_output, images_each
from piti.pipelines.canvas import MAX_RATIO
from piti.pipelines.cascade import Prepared
from piti.pipelines.noise import one_each
from piti.pipelines.pipeline import PITIPipeline

Picture = Source | Image.Image | np.ndarray | Tensor
"""An input image: a file, a PIL image, its pixels as an array, or pipeline output of type "np" or "pt"."""


def edit(
    pipeline: PITIPipeline,
    image: Picture,
    to: ConditionInput,
    from_: ConditionInput | None = None,
    region: Picture | None = None,
    settings: EditSettings = DEFAULTS,
    num_images: int = 1,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    batch_size: int = BATCH,
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


def edit_prepared(
    pipeline: PITIPipeline,
    given: EditInput,
    settings: EditSettings,
    generators: Sequence[torch.Generator],
    batch_size: int = BATCH,
    on_step: OnStep | None = None,
) -> Edited:
    """Edit with one image per generator; otherwise as `edit`."""
    run, images = EditRun.of(pipeline, given, settings), []
    returned = run.sample(generators, batch_size, on_step, images.extend)
    return run.result(images, returned)
