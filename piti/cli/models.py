"""`piti models`, `piti import` and `piti export`: list models, and convert released checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from piti.cli.console import print_notes, print_rows
from piti.cli.groups import with_groups
from piti.cli.options import MODEL_HELP, Overwrite

if TYPE_CHECKING:
    from piti.checkpoints.convert import ImportSettings


class Weights(StrEnum):
    """Which of a checkpoint's weights are imported."""

    AVERAGED = "averaged"
    RAW = "raw"


class Masks(StrEnum):
    """The encoding of an encoder's masks."""

    COLOURS = "colours"
    ONE_HOT = "one-hot"


class Layout(StrEnum):
    """Layouts that `export` can write."""

    RELEASE = "release"


def models() -> None:
    """List the bundled models and those in the hub's cache."""
    from piti.pipelines.pipeline import list_models

    print_rows([model.row() for model in list_models()])


@dataclass(frozen=True)
class ReleaseFlags:
    """Information that released files do not contain."""

    prior: Annotated[
        str | None, Option(help="For an encoder alone: the released base or model whose UNet it uses.")
    ] = None
    classes: Annotated[
        Path | None, Option(help="A classes.json, instead of COCO-Stuff's classes, or for one-hot masks.")
    ] = None
    masks: Annotated[
        Masks | None,
        Option(
            help="Encoding of masks, if the encoder's channels are ambiguous: in colours, or one channel per class."
        ),
    ] = None
    tokenizer: Annotated[Path | None, Option(help="A folder with GPT-2's tokenizer, for GLIDE.")] = None
    head_dim: Annotated[
        int | None, Option(min=1, help="Channels per attention head of the UNet, for unusual files.")
    ] = None
    heads: Annotated[
        int | None, Option(min=1, help="Attention heads of the encoder's transformer, for unusual files.")
    ] = None
    weights: Annotated[Weights, Option(help="If a file has both averaged (EMA) and raw weights: which to import.")] = (
        Weights.AVERAGED
    )

    def settings(self, overwrite: bool) -> ImportSettings:
        """The flags as `ImportSettings`."""
        from piti.checkpoints.convert import ImportSettings
        from piti.checkpoints.release import Heads

        seen, raw = None if self.masks is None else self.masks.value, self.weights is Weights.RAW
        heads = Heads(self.head_dim, self.heads)
        return ImportSettings(self.prior, self.classes, self.tokenizer, heads, overwrite, raw, seen)

    def without_default(self) -> dict[str, object]:
        """The flags as a dictionary; `weights` is None unless it differs from the default."""
        return {**vars(self), "weights": None if self.weights is Weights.AVERAGED else self.weights.value}


@with_groups
def import_(
    base: Annotated[
        str,
        Argument(
            help="A released GLIDE or PITI base, or a PITI encoder alone; or a diffusers folder or hub id of Stable "
            "Diffusion 1, 2 or 3, FLUX.1-dev, SDXL, DeepFloyd IF, PixArt or Sana."
        ),
    ],
    out: Annotated[Path, Option(help="The model's folder.")],
    released: ReleaseFlags,
    upsampler: Annotated[Path | None, Option(help="A released upsampler.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert released checkpoints (GLIDE, PITI, or their layout) or a diffusers text-to-image model to a folder."""
    from piti.checkpoints.convert import import_release
    from piti.checkpoints.priors import import_prior, is_pipeline, refuse_release_options

    if is_pipeline(base):
        refuse_release_options(base, upsampler=upsampler, **released.without_default())
        written = [import_prior(base, out, overwrite)]
    else:
        written = import_release(Path(base), out, upsampler, released.settings(overwrite))
    print_rows([done.row() for done in written])
    return print_notes(note for done in written for note in done.notes)


def export(
    model: Annotated[str, Argument(help=MODEL_HELP)],
    out: Annotated[Path, Option(help="A .pt file, or a folder for base.pt and upsampler.pt.")],
    layout: Annotated[Layout, Option(help="Key layout; release is that of GLIDE and PITI.")] = Layout.RELEASE,
    overwrite: Overwrite = False,
) -> None:
    """Write a model's weights in the released checkpoint layout."""
    from piti.checkpoints.export import export_release

    writers = {Layout.RELEASE: export_release}
    written = writers[layout](model, out, overwrite)
    print_rows([done.row() for done in written])
    print_notes(note for done in written for note in done.notes)
