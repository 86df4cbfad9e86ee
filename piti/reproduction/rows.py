"""What tables are made of: data sets, trainings, rows and plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from piti.diffusion.guidance import Guidance
from piti.generation.options import GenerationOptions

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class DataSet:
    """A data set, and what a recipe for masks changes to read it."""

    title: str
    task: str
    prepared: str
    """How its folder is made, for a person."""
    validation: int
    """About how many validation conditions it has, for estimates."""
    changes: tuple[str, ...] = ()
    classes: bool = True
    """Whether its conditions are classes."""


SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "camvid": DataSet("CamVid", "mask to image", "a folder of images/, labels/, classes.json and splits.json", 31),
        "ade20k": DataSet("ADE20K", "mask to image", "piti prepare ade20k", 2000),
        "coco-stuff": DataSet("COCO-Stuff", "mask to image", "piti prepare coco-stuff", 5000),
        "coco-sketch": DataSet(
            "COCO",
            "sketch to image",
            "piti prepare sketch, of COCO's photographs",
            5000,
            ("condition={kind: sketch}", "data.conditions=sketches"),
            classes=False,
        ),
        "flickr": DataSet(
            "Flickr",
            "mask to image",
            "a folder of images/, labels/, classes.json and splits.json; the paper's landscapes are not public",
            2000,
        ),
        "flickr-sketch": DataSet(
            "Flickr",
            "sketch to image",
            "piti prepare sketch, of landscapes; the paper's are not public",
            2000,
            ("condition={kind: sketch}", "data.conditions=sketches"),
            classes=False,
        ),
        "diode": DataSet(
            "DIODE",
            "geometry to image",
            "piti prepare diode",
            771,
            ("condition={kind: geometry}", "data.conditions=depth"),
            classes=False,
        ),
    }
)


@dataclass(frozen=True)
class Training:
    """A training run but for its seed. Rows and tables that name the same one share it."""

    name: str
    recipe: str
    """A file in the scale's folder, without its suffix."""
    data: str
    changes: tuple[str, ...] = ()
    """On top of the recipe, KEY=VALUE."""
    generated: Generated | None = None
    """For an upsampler that learns from what a base makes of the training conditions."""


@dataclass(frozen=True)
class Generated:
    """A base's images that an upsampler learns from."""

    base: Training
    options: GenerationOptions


Enlarger = Literal["", "bicubic", "real-esrgan"]
"""What enlarges a base's images in the place of an upsampler of ours; empty: nothing does."""


def sampled_by(**values: Any) -> GenerationOptions:
    """How a row's images are made, by flat keys; what is not said is the model's own."""
    return GenerationOptions.from_flat(batch=16, **values)


@dataclass(frozen=True)
class Row:
    """A line of a table: a method on a data set."""

    method: str
    """For a person."""
    key: str
    """In `piti.reproduction.published`; empty where no paper has such a row."""
    base: Training
    upsampler: Training | None = None
    options: GenerationOptions = field(default_factory=sampled_by)
    """How its images are made; seed and square are the table's."""
    name: str = ""
    """Of its images; by default that of its trainings."""
    pairs: int | None = None
    """How many training pairs its method is said to have; 0: all that there are; none: not said."""
    enlarger: Enlarger = ""

    @property
    def heading(self) -> str:
        """Above its samples."""
        words = self.method.strip("*")  # italic in Markdown
        return words if self.pairs is None else f"{words}, {self.pairs or 'all'}"

    @property
    def data(self) -> str:
        """Its data set's name."""
        return self.base.data

    @property
    def images(self) -> str:
        """The name of its images and results, but for the seed: of what makes them, since tables share a folder."""
        return self.name or "-".join(training.name for training in self.trainings)

    @property
    def sampled(self) -> Row:
        """The row whose images are sampled: where `enlarger` enlarges them the base's, which rows share."""
        return replace(self, enlarger="", name="") if self.enlarger else self

    @property
    def trainings(self) -> tuple[Training, ...]:
        """What it needs, in order."""
        return (self.base,) if self.upsampler is None else (self.base, self.upsampler)


@dataclass(frozen=True)
class Plan:
    """A table: its rows, and how all of them are judged."""

    table: str
    title: str
    scale: str
    rows: tuple[Row, ...]
    side: int
    """To which the centre squares of photographs and results are shrunk before features are taken, in pixels."""
    reference: str
    """The split whose photographs the Fréchet distance is to. Conditions are always those of `val`."""
    notes: tuple[str, ...] = field(default=())
    own_data: bool = False
    """Whether the data is nobody else's: published numbers of every data set stand beside, to compare orders alone."""
    own_speed: bool = False
    """Whether hours are told by runs made here; else they are counted for a GPU."""
    networks: tuple[str, ...] = ()
    """Feature networks that must be among the judges."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The data sets that it needs, each once."""
        return tuple(dict.fromkeys(row.data for row in self.rows))

    @property
    def trainings(self) -> tuple[Training, ...]:
        """All that is to be trained, each once, bases before the upsamplers."""
        return tuple(dict.fromkeys(training for row in self.rows for training in row.trainings))

    def recipe_file(self, training: Training) -> Path:
        """Where a training's recipe lies."""
        return FOLDER / self.scale / f"{training.recipe}.yaml"

    def published_on(self, row: Row) -> tuple[str, ...]:
        """The data sets whose published numbers stand beside a row: its own, or where that is nobody else's, all of
        the same task."""
        if not self.own_data:
            return (row.data,)
        return tuple(name for name, one in SETS.items() if one.task == SETS[row.data].task)


def guided_by(options: GenerationOptions, rule: Guidance) -> GenerationOptions:
    """The same images by another guidance of the base."""
    base = options.sampling.base.model_copy(update={"guidance": rule})
    return replace(options, sampling=options.sampling.model_copy(update={"base": base}))


def upsampler_rows(
    training: Callable[..., Training],
    base: Training,
    options: GenerationOptions,
    strength: float,
    whole: Training | None = None,
) -> tuple[Row, ...]:
    """What is not ours, then the upsampler's parts, one added after the other. training: a run of a name and changes;
    strength: w; whole: a training with all of them."""
    plain = guided_by(options, Guidance(kind="plain", w=strength))
    no_adversary = "stages.1.adversarial=null"
    no_losses = ("stages.1.perceptual=null", no_adversary)
    full = whole or training("all")
    steps = (
        ("plain", training("plain", "degradation=null", *no_losses), plain),
        ("+ degradation (BSR, L0)", training("degradation", *no_losses), plain),
        ("+ perceptual loss", training("perceptual", no_adversary), plain),
        ("+ adversarial loss", full, plain),
        ("+ normalised guidance", full, guided_by(options, Guidance(w=strength))),
    )
    names = ("plain", "degradation", "perceptual", "adversarial", "normalised")
    others: tuple[tuple[str, Enlarger], ...] = (("*bicubic*", "bicubic"), ("*Real-ESRGAN x4plus*", "real-esrgan"))
    return (
        *(
            Row(method, "", base, options=options, name=f"{base.name}-up-{name}", enlarger=name)
            for method, name in others
        ),
        *(
            Row(method, name, base, upsampler, chosen, f"{base.name}-up-{name}")
            for name, (method, upsampler, chosen) in zip(names, steps, strict=True)
        ),
    )
