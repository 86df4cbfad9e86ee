"""Data sets, trainings, rows and plans of tables."""

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
    """A data set, and the changes of a mask recipe for it."""

    title: str
    task: str
    prepared: str
    """How to prepare its folder."""
    validation: int
    """Approximate number of validation conditions, for estimates."""
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
    """A training run without its seed. Rows and tables with the same one share it."""

    name: str
    recipe: str
    """A file in the scale's folder, without its suffix."""
    data: str
    changes: tuple[str, ...] = ()
    """Changes of the recipe, KEY=VALUE."""
    generated: Generated | None = None
    """For an upsampler that is also trained on a base's images of the training conditions."""


@dataclass(frozen=True)
class Generated:
    """A base's images for training an upsampler."""

    base: Training
    options: GenerationOptions


Enlarger = Literal["", "bicubic", "real-esrgan"]
"""Method that enlarges a base's images instead of a trained upsampler; empty for none."""


def sampled_by(**values: Any) -> GenerationOptions:
    """Generation options of a row by flat keys; unset options are the model's own."""
    return GenerationOptions.from_flat(batch=16, **values)


@dataclass(frozen=True)
class Row:
    """A row of a table: a method on a data set."""

    method: str
    """Name of the method in tables."""
    key: str
    """Key in `piti.reproduction.published`; empty without a published row."""
    base: Training
    upsampler: Training | None = None
    options: GenerationOptions = field(default_factory=sampled_by)
    """Generation options of its images; seed and square are the table's."""
    name: str = ""
    """Name of its images; by default that of its trainings."""
    pairs: int | None = None
    """Number of training pairs stated with its method; 0: all; None: not stated."""
    enlarger: Enlarger = ""

    @property
    def heading(self) -> str:
        """Heading above its samples."""
        words = self.method.strip("*")  # italic in Markdown
        return words if self.pairs is None else f"{words}, {self.pairs or 'all'}"

    @property
    def data(self) -> str:
        """Its data set's name."""
        return self.base.data

    @property
    def images(self) -> str:
        """The name of its images and results, without the seed, derived from what they depend on, since tables share a
        folder."""
        return self.name or "-".join(training.name for training in self.trainings)

    @property
    def sampled(self) -> Row:
        """The row whose images are sampled: with `enlarger` the base's, which rows share."""
        return replace(self, enlarger="", name="") if self.enlarger else self

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Its trainings, in order."""
        return (self.base,) if self.upsampler is None else (self.base, self.upsampler)


@dataclass(frozen=True)
class Plan:
    """A table: its rows, and their evaluation."""

    table: str
    title: str
    scale: str
    rows: tuple[Row, ...]
    side: int
    """Side in pixels to which the centre squares of photographs and results are resized for evaluation."""
    reference: str
    """The split of the reference photographs for distances. Conditions are always from `val`."""
    notes: tuple[str, ...] = field(default=())
    own_data: bool = False
    """Whether no published numbers exist for the data: those of every data set are quoted, to compare only the
    order."""
    own_speed: bool = False
    """Whether hours are estimated from local runs; otherwise for a GPU."""
    networks: tuple[str, ...] = ()
    """Required feature networks."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Its data sets, each once."""
        return tuple(dict.fromkeys(row.data for row in self.rows))

    @property
    def trainings(self) -> tuple[Training, ...]:
        """All trainings, each once, bases before upsamplers."""
        return tuple(dict.fromkeys(training for row in self.rows for training in row.trainings))

    def recipe_file(self, training: Training) -> Path:
        """Path of a training's recipe."""
        return FOLDER / self.scale / f"{training.recipe}.yaml"

    def published_on(self, row: Row) -> tuple[str, ...]:
        """The data sets whose published numbers are quoted for a row: its own, or with `own_data` all of the same
        task."""
        if not self.own_data:
            return (row.data,)
        return tuple(name for name, one in SETS.items() if one.task == SETS[row.data].task)


def guided_by(options: GenerationOptions, rule: Guidance) -> GenerationOptions:
    """The same options with another guidance of the base."""
    base = options.sampling.base.model_copy(update={"guidance": rule})
    return replace(options, sampling=options.sampling.model_copy(update={"base": base}))


def upsampler_rows(
    training: Callable[..., Training],
    base: Training,
    options: GenerationOptions,
    strength: float,
    whole: Training | None = None,
) -> tuple[Row, ...]:
    """Rows with other methods, then with the upsampler's parts added one by one. training: a run by name and changes;
    strength: w; whole: a training with all parts."""
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
