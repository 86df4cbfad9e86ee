"""What each table is made of, as data: its rows, what they train, and how they are sampled and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from piti.core.errors import UserError, option
from piti.core.spec import choices
from piti.diffusion.guidance import Guidance
from piti.generation.options import GenerationOptions

FOLDER = Path(__file__).parent
SCALES = ("small", "paper")
TABLES = ("table1", "table3a", "table3b", "table4")
FIGURES = ("figure6",)


class PlanError(UserError):
    """There is no such table or scale, or its data is not given. The message names what there is."""


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


def _images(**values: Any) -> GenerationOptions:
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
    options: GenerationOptions = field(default_factory=_images)
    """How its images are made; seed and square are the table's."""
    name: str = ""
    """Of its images; by default that of its base."""
    pairs: int | None = None
    """How many training pairs its method is said to have; 0: all that there are; none: not said."""

    @property
    def heading(self) -> str:
        """Above its samples."""
        return self.method if self.pairs is None else f"{self.method}, {self.pairs or 'all'}"

    @property
    def data(self) -> str:
        """Its data set's name."""
        return self.base.data

    @property
    def images(self) -> str:
        """The name of its images and results, but for the seed."""
        return self.name or self.base.name

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


def plan_of(table: str, scale: str) -> Plan:
    """The plan of a table. Raises PlanError for one that is not known."""
    if scale not in SCALES:
        raise PlanError("unknown", remedy=choices(scale, SCALES), option="scale", value=scale)
    if table not in TABLES:
        study = "table 2 is a study with raters, see piti study make; " if table == "table2" else ""
        raise PlanError(f"{table}: no such table; {study}{choices(table, (*TABLES, *FIGURES))}")
    return _PLANS[scale][table]()


def data_folders(plan_sets: Sequence[str], given: Sequence[str]) -> dict[str, Path]:
    """Each data set's folder, from values of --data: one folder, or NAME=FOLDER for each.

    A single folder stands for the only data set, or holds a folder of each name. Raises PlanError where one is
    missing, unknown or no folder.
    """
    named = {name: Path(folder) for name, sign, folder in (value.partition("=") for value in given) if sign}
    plain = [Path(value) for value in given if "=" not in value]
    for name in named:
        if name not in plan_sets:
            raise PlanError(
                f"{option('data')} {name}=…: this table takes {', '.join(plan_sets)}", remedy="name one of them"
            )
    if len(plain) > 1:
        raise PlanError(
            f"{len(plain)} folders without a name",
            remedy=f"write NAME=FOLDER for {', '.join(plan_sets)}",
            option="data",
        )
    if plain and not named:
        named = {name: plain[0] if len(plan_sets) == 1 else plain[0] / name for name in plan_sets}
    elif plain:
        raise PlanError("others are named", remedy="write NAME=FOLDER for it too", option="data", value=plain[0])
    missing = [name for name in plan_sets if name not in named]
    if missing:
        raise PlanError(f"is missing for {', '.join(missing)}", remedy=_wanted(missing), option="data")
    absent = [f"{named[name]} ({name}: {SETS[name].prepared})" for name in plan_sets if not named[name].is_dir()]
    if absent:
        raise PlanError(f"no such folder: {', '.join(absent)}", remedy="check the path", option="data")
    return {name: named[name] for name in plan_sets}


def described(name: str, folder: Path) -> str:
    """The title of a data set by its folder: that of a known one, else the folder's name and for what it stands."""
    own = folder.resolve().name
    if own.lower() in SETS:
        return SETS[own.lower()].title
    return f"`{own}` (in the place of {SETS[name].title})"


def _wanted(names: Sequence[str]) -> str:
    what = "FOLDER" if len(names) == 1 else f"{names[0]}=FOLDER and so on, or one folder that holds them"
    return f"give {option('data')} {what}; made by " + "; ".join(f"{SETS[name].prepared} ({name})" for name in names)


# Small: masks of streets at 64 px, what a CPU trains in minutes

_W = 1.0
_GUIDED = _images(steps=50, sampler="ddpm", guidance=Guidance(w=_W))
_SMALL_NOTES = (
    "Every row saw 16,384 training images at 64 px with networks narrow enough for a CPU; nothing was tuned on the "
    "validation masks. It shows how methods compare when little is trained, not what they reach.",
    "One image a condition, so that every row has as many, also of methods that know one image alone.",
)
_ABOUT_OASIS = (
    "OASIS has its adversary alone to learn from, without a perceptual loss; 16,384 images are far too few for that. "
    "Its learning rate falls over the second half of the run here, which its paper's does not."
)
_ABOUT_ALONE = (
    "Without its perceptual loss: the same recipe with that loss's weight at 0, so that nothing which judges took part "
    "in training."
)

_ABOUT_3A = (
    "Encoder alone: the prior's UNet, which is the decoder, stays frozen. Both at once: encoder and UNet learn from "
    "the first step. Two stages: the encoder first, then both."
)


def _small(name: str, recipe: str = "", *changes: str) -> Training:
    return Training(name, recipe or name, "camvid", changes)


_ALONE = ("baseline.perceptual=0",)


def _small_plan(
    table: str, title: str, rows: tuple[Row, ...], side: int = 64, notes: tuple[str, ...] = _SMALL_NOTES
) -> Plan:
    """Judged by the distance to the training photographs, since few are held out."""
    return Plan(table, title, "small", rows, side, "train", notes, own_data=True, own_speed=True)


def _small_table1() -> Plan:
    rows = (
        Row("Pix2PixHD", "pix2pixhd", _small("pix2pixhd")),
        Row("Pix2PixHD without its perceptual loss", "", _small("pix2pixhd-alone", "pix2pixhd", *_ALONE)),
        Row("SPADE", "spade", _small("spade")),
        Row("SPADE without its perceptual loss", "", _small("spade-alone", "spade", *_ALONE)),
        Row("OASIS", "oasis", _small("oasis")),
        Row("from scratch", "scratch", _small("scratch"), options=_GUIDED),
        Row("PITI", "piti", _small("piti"), options=_GUIDED),
    )
    notes = (*_SMALL_NOTES, _ABOUT_OASIS, _ABOUT_ALONE)
    return _small_plan("table1", "Table 1: comparison of methods", rows, notes=notes)


def _small_table3a() -> Plan:
    rows = (
        Row("from scratch", "scratch", _small("scratch"), options=_GUIDED),
        Row("encoder alone", "encoder-only", _small("encoder-only"), options=_GUIDED),
        Row("both at once", "one-stage", _small("one-stage"), options=_GUIDED),
        Row("two stages (PITI)", "piti", _small("piti"), options=_GUIDED),
    )
    notes = (*_SMALL_NOTES, _ABOUT_3A)
    return _small_plan("table3a", "Table 3a: pretraining and finetuning", rows, notes=notes)


def _small_table4() -> Plan:
    rows = []
    for limit in (None, 125, 31):
        for method, key in (("from scratch", "scratch"), ("PITI", "piti")):
            end = "" if limit is None else f"-{limit}"
            changes = () if limit is None else (f"data.limit={limit}",)
            training = _small(f"{key}{end}", key, *changes)
            rows.append(Row(method, f"{key}{end}", training, options=_GUIDED, pairs=limit or 0))
    return _small_plan("table4", "Table 4: small training data", tuple(rows))


def _small_table3b() -> Plan:
    piti = _small("piti")
    rows = _upsampler_rows(lambda name, *changes: Training(f"up-{name}", "upsampler", "camvid", changes), piti, _GUIDED)
    notes = (
        "The upsampler takes 64 px to 256 px, needs no condition, and is trained without a prior; the base is that of "
        "PITI in table 1.",
    )
    return _small_plan("table3b", "Table 3b: the upsampler", rows, 256, notes)


def _upsampler_rows(
    training: Callable[..., Training], base: Training, options: GenerationOptions, whole: Training | None = None
) -> tuple[Row, ...]:
    """The upsampler's parts, one added after the other. training: a run of a name and changes; whole: one with all."""
    plain = _guided_by(options, Guidance(kind="plain", w=_W))
    no_adversary = "stages.1.adversarial=null"
    no_losses = ("stages.1.perceptual=null", no_adversary)
    full = whole or training("all")
    steps = (
        ("plain", training("plain", "degradation=null", *no_losses), plain),
        ("+ degradation (BSR, L0)", training("degradation", *no_losses), plain),
        ("+ perceptual loss", training("perceptual", no_adversary), plain),
        ("+ adversarial loss", full, plain),
        ("+ normalised guidance", full, _guided_by(options, Guidance(w=_W))),
    )
    names = ("plain", "degradation", "perceptual", "adversarial", "normalised")
    return tuple(
        Row(method, name, base, upsampler, chosen, f"{base.name}-up-{name}")
        for name, (method, upsampler, chosen) in zip(names, steps, strict=True)
    )


def _guided_by(options: GenerationOptions, rule: Guidance) -> GenerationOptions:
    base = options.sampling.base.model_copy(update={"guidance": rule})
    return replace(options, sampling=options.sampling.model_copy(update={"base": base}))


_SMALL = {"table1": _small_table1, "table3a": _small_table3a, "table3b": _small_table3b, "table4": _small_table4}


# Paper: its settings on its data sets, 64 px enlarged to 256

_PAPER_SAMPLING = _images(num=1, steps=250, sampler="ddpm", guidance=Guidance(w=_W), upsampler_steps="fast27")
_PAPER_NOTES = (
    "Rates, batch, average, dropout and iterations are the paper's where it states them (section 4, appendix A); those "
    "of the baselines are their papers'.",
)


def _on(data: str, method: str, recipe: str, *changes: str) -> Training:
    return Training(f"{method}-{data}", recipe, data, (*SETS[data].changes, *changes))


def _cascade(method: str, key: str, data: str, base: str, upsampler: str, *changes: str, end: str = "") -> Row:
    """A method of two networks; end: what tells its runs from those of the whole data."""
    small = _on(data, f"{base}{end}", base, *changes)
    large = _on(data, f"{upsampler}{end}", upsampler, *changes)
    return Row(method, key, small, large, _PAPER_SAMPLING)


_SEEN = {"ade20k": 200 * 20_210, "coco-stuff": 100 * 118_287, "coco-sketch": 100 * 118_287, "diode": 200 * 25_458}
"""Images that a baseline sees: epochs by pairs, for ADE20K and COCO as SPADE and OASIS train."""
_BATCHES = {"pix2pixhd": 16, "spade": 32, "oasis": 32}


def _epochs(data: str, baseline: str) -> tuple[str, ...]:
    """What a baseline's recipe, which is for ADE20K, changes for another data set."""
    return () if data == "ade20k" else (f"stages.0.steps={_SEEN[data] // _BATCHES[baseline]}",)


def _paper_table1() -> Plan:
    rows: list[Row] = []
    for data, described in SETS.items():
        if data == "camvid":
            continue
        baselines = {"pix2pixhd": "Pix2PixHD", "spade": "SPADE"} | ({"oasis": "OASIS"} if described.classes else {})
        rows += [Row(title, key, _on(data, key, key, *_epochs(data, key))) for key, title in baselines.items()]
        rows.append(_cascade("from scratch", "scratch", data, "scratch", "scratch-upsampler"))
        rows.append(_cascade("PITI", "piti", data, "piti", "upsampler"))
    notes = (*_PAPER_NOTES, "OASIS needs masks: its discriminator tells classes apart.")
    return Plan("table1", "Table 1: comparison of methods", "paper", tuple(rows), 256, "val", notes)


def _paper_table3a() -> Plan:
    rows = (
        _cascade("from scratch", "scratch", "ade20k", "scratch", "upsampler"),
        _cascade("encoder alone", "encoder-only", "ade20k", "encoder-only", "upsampler"),
        _cascade("both at once", "one-stage", "ade20k", "one-stage", "upsampler"),
        _cascade("two stages (PITI)", "piti", "ade20k", "piti", "upsampler"),
    )
    rows = tuple(replace(row, name=f"{row.base.name}-same-upsampler") for row in rows)
    notes = (*_PAPER_NOTES, _ABOUT_3A, "All rows have the upsampler of PITI, so that only the base differs.")
    return Plan("table3a", "Table 3a: pretraining and finetuning", "paper", rows, 256, "val", notes)


def _paper_table3b() -> Plan:
    piti = _on("ade20k", "piti", "piti")

    def upsampler(name: str, *changes: str) -> Training:
        return _on("ade20k", f"upsampler-{name}", "upsampler", *changes)

    rows = _upsampler_rows(upsampler, piti, _PAPER_SAMPLING, _on("ade20k", "upsampler", "upsampler"))
    return Plan("table3b", "Table 3b: the upsampler", "paper", rows, 256, "val", _PAPER_NOTES)


def _paper_table4() -> Plan:
    rows = []
    for limit in (None, 5052, 1263):
        end = "" if limit is None else f"-{limit}"
        changes = () if limit is None else (f"data.limit={limit}",)
        for method, key, upsampler in (("from scratch", "scratch", "scratch-upsampler"), ("PITI", "piti", "upsampler")):
            row = _cascade(method, f"{key}{end}", "ade20k", key, upsampler, *changes, end=end)
            rows.append(replace(row, pairs=limit or 0))
    return Plan("table4", "Table 4: small training data", "paper", tuple(rows), 256, "val", _PAPER_NOTES)


_PAPER = {"table1": _paper_table1, "table3a": _paper_table3a, "table3b": _paper_table3b, "table4": _paper_table4}

_PLANS = {"small": _SMALL, "paper": _PAPER}
