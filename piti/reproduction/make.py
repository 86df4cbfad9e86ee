"""A table from its plan: every row trained, sampled and judged, what fails named, and the table written as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from piti.baselines.rrdb import load_real_esrgan
from piti.conditions import Condition, MaskCondition
from piti.core.distributed import started
from piti.core.errors import Message, UserError, flag, option, text_of
from piti.evaluation.features import open_features
from piti.evaluation.result import Evaluation
from piti.evaluation.segmentation import matched_labels, open_segmenter, read_aliases
from piti.pipelines.pipeline import usable_device
from piti.reproduction import pictures, table_files
from piti.reproduction.checks import Checker, minimised
from piti.reproduction.files import DatasetFiles, as_png, choose, contents_sha256
from piti.reproduction.images import begin_folder, generated, sampled
from piti.reproduction.plans import described
from piti.reproduction.rows import Plan, Row, Training
from piti.reproduction.runs import Judges, Workspace, evaluated, recipe_on, trained
from piti.reproduction.tables import Facts, Line, Table
from piti.training import TrainingInterrupted
from piti.training.build import build_condition

Work = tuple[int, Row]
"""A seed and a row."""


@dataclass
class Results:
    """What was found so far."""

    evaluations: dict[Work, Evaluation] = field(default_factory=dict)
    failures: dict[Work, str] = field(default_factory=dict)
    broken: dict[tuple[Training, int], str] = field(default_factory=dict)
    """Trainings that failed, and why; they are not tried again for the next row that needs them."""
    photographs: dict[str, Evaluation] = field(default_factory=dict)
    """Of the photographs themselves."""
    unjudged: dict[str, str] = field(default_factory=dict)
    """Data sets whose photographs could not be judged, and why."""


def reproduce(plan: Plan, workspace: Workspace, console: Console) -> Table:
    """Make a table; it is written anew whenever one of its rows is done, as `TABLE.md`, `.json` and `.jpg`.

    A row that fails in training does not lose the others: it is named in the table. Raises UserError before anything
    is trained for all that can be known then: the data, the judges, and what a run to be trained needs.
    """
    check_alone()
    check_all(plan, workspace, console)
    workspace.out.mkdir(parents=True, exist_ok=True)
    chosen = {name: dataset_files(plan, name, workspace) for name in plan.sets}
    found = Results()
    for name, files in chosen.items():
        _judge_photographs(plan, name, files, workspace, console, found)
    for seed in range(workspace.seeds):
        for row in plan.rows:
            _finish(plan, (seed, row), workspace, chosen[row.data], console, found)
            table = _table(plan, workspace, chosen, found)
            table_files.write(table, workspace.out)
            _draw(plan, workspace, chosen, found)
    return _table(plan, workspace, chosen, found)


def check_alone() -> None:
    """Raises UserError in one of several processes."""
    if started().world > 1:
        raise UserError(
            "piti reproduce runs in one process. Train the runs with several first, each by torchrun … "
            f"piti train RECIPE {flag('out')} OUT/runs/NAME-SEED as {flag('dry_run')} names them "
            "(batch is that of one process: divide it by their number), then start piti reproduce "
            "without torchrun: finished runs are taken as they are"
        )


def check_all(plan: Plan, workspace: Workspace, console: Console, judged: bool = True) -> None:
    """Raises UserError with everything that is known to stop the judges or a run, before anything is trained.

    judged: whether networks judge the images, or raters alone.
    """
    checker = Checker(plan, workspace)
    for training in plan.trainings:
        for seed in range(workspace.seeds):
            checker.problem(training, seed)
    if found := [*judges_lacking(plan, workspace, console, judged), *checker.told]:
        raise UserError("nothing was trained; it takes:\n  " + "\n  ".join(found))


def judges_lacking(plan: Plan, workspace: Workspace, console: Console, judged: bool = True) -> list[str]:
    """What is known to stop the judges, and what enlarges images in the place of an upsampler; empty where nothing is.

    judged: see `check_all`.
    """
    looks: list[Callable[[], object]] = []
    if judged:
        judged_by = _conditions(plan, workspace)
        looks.append(partial(check_judges, workspace.judges, workspace.device, console, plan.networks, judged_by))
    if workspace.real_esrgan is not None:
        looks.append(partial(load_real_esrgan, workspace.real_esrgan))
    return [line.strip() for said in _failures(looks) for line in said.splitlines()]


def _failures(looks: Iterable[Callable[[], object]]) -> list[str]:
    """What those say that fail, of all of them."""
    found = []
    for look in looks:
        try:
            look()
        except UserError as error:
            found.append(text_of(error))
    return found


def check_judges(
    judges: Judges,
    device: str | None,
    console: Console,
    wanted: Sequence[str] = (),
    conditions: Sequence[Condition] = (),
) -> None:
    """Open every network that judges, before anything is trained for them. wanted: feature networks that must be
    among them; conditions: those that images are judged by, whose classes the segmenter's labels must fit. Raises
    UserError with all that is lacking.
    """
    chosen: torch.device = usable_device(device)
    if not judges.features and judges.segmenter is None:
        raise UserError("nothing would judge the images", remedy=f"give {option('features')} or {option('segmenter')}")
    there: dict[str, str] = {}

    def open_network(name: str) -> None:
        network = open_features(name, chosen)
        if network.name in there:
            raise UserError(
                f"{there[network.name]} and {name} are both '{network.name}', and results could not be told apart",
                remedy="give one",
                option="features",
            )
        there[network.name] = name
        console.log(f"features: {network.name}, {network.dimensions} numbers an image")

    def see_segmenter(name: str) -> None:
        segmenter = open_segmenter(name, chosen)
        console.log(f"segmenter: {segmenter.name}")
        for condition in conditions:
            if isinstance(condition, MaskCondition):
                matched_labels(segmenter, condition, judges.aliases)

    found = _failures([partial(judges.options, 1, device, Path())])  # whether an evaluation could be asked for so
    found = found or _failures(partial(open_network, name) for name in judges.features)
    if not found and (lacking := [name for name in wanted if name not in there]):
        named = " and ".join(f"{option('features')} {name}" for name in wanted)
        found.append(
            f"this table is the distances of {' and '.join(wanted)}; {' and '.join(lacking)} is not among the judges; "
            f"give {named}; others may be added"
        )
    if judges.segmenter is not None:
        found += _failures([partial(see_segmenter, judges.segmenter)])
    if judges.aliases is not None:
        found += _failures([partial(read_aliases, judges.aliases)])
    if found:
        raise UserError("\n  ".join(dict.fromkeys(found)))


def _conditions(plan: Plan, workspace: Workspace) -> list[Condition]:
    """By what the images of each data set are judged; without what cannot be read, which is told with the runs."""
    found = []
    for name in workspace.data:
        with suppress(UserError):
            found.append(build_condition(recipe_on(plan, name, workspace)))
    return found


def dataset_files(plan: Plan, name: str, workspace: Workspace) -> DatasetFiles:
    """A data set's files."""
    recipe = recipe_on(plan, name, workspace)
    return choose(build_condition(recipe), recipe.data, plan.reference, workspace.out / "data" / name)


def _finish(
    plan: Plan, work: Work, workspace: Workspace, chosen: DatasetFiles, console: Console, found: Results
) -> None:
    """Bring a row of a seed to its evaluation, or note why there is none."""
    seed, row = work
    try:
        runs = [trained_once(plan, training, seed, workspace, console, found) for training in row.trainings]
        folder, made_of = sampled(row, runs, seed, workspace, chosen, console)
        found.evaluations[work] = evaluated(folder, made_of, plan.side, workspace, chosen, console)
    except TrainingInterrupted:
        raise
    except (UserError, OSError, RuntimeError) as error:
        found.failures[work] = Message(f"seed {seed}: {text_of(error)}")
        console.log(f"{row.images}-{seed} is missing: {error}", markup=False)
    else:
        console.log(f"{row.images}-{seed}: done")


def trained_once(
    plan: Plan, training: Training, seed: int, workspace: Workspace, console: Console, found: Results
) -> Path:
    """A run's folder, trained if need be; one that failed fails again at once. Raises UserError."""
    known = found.broken.get((training, seed))
    if known is not None:
        raise UserError(known)
    try:
        prepare = None
        if training.generated is not None:
            prepare = partial(generated, plan, training.generated, seed, workspace, console)
        return trained(plan, training, seed, workspace, console, prepare)
    except TrainingInterrupted:
        raise
    except (UserError, OSError, RuntimeError) as error:
        found.broken[training, seed] = text_of(error)
        raise


def _judge_photographs(
    plan: Plan, name: str, files: DatasetFiles, workspace: Workspace, console: Console, found: Results
) -> None:
    """Judge the held-out photographs in the place of results, where they are not what results are compared with."""
    if plan.reference == "val":
        return
    folder = workspace.out / "images" / f"photographs-{name}"
    made_of = {"photographs": contents_sha256(files.photographs)}
    try:
        begin_folder(folder, made_of)
        as_png(files.photographs, folder)
        with_masks = made_of | {"conditions": files.conditions_sha256}
        found.photographs[name] = evaluated(folder, with_masks, plan.side, workspace, files, console)
    except (UserError, OSError, RuntimeError) as error:
        found.unjudged[name] = Message(text_of(error))
        console.log(f"the photographs of {name} are not judged: {error}", markup=False)


def _table(plan: Plan, workspace: Workspace, chosen: Mapping[str, DatasetFiles], found: Results) -> Table:
    lines = []
    for row in plan.rows:
        works = [(seed, row) for seed in range(workspace.seeds)]
        evaluations = tuple(found.evaluations[work] for work in works if work in found.evaluations)
        missing = tuple(found.failures.get(work, f"seed {work[0]}: not made yet") for work in _missing(works, found))
        lines.append(Line(row, evaluations, missing, minimised(plan, row, workspace)))
    facts = {
        name: Facts(described(name, workspace.data[name]), files.training, len(files.stems))
        for name, files in chosen.items()
    }
    return Table(plan, workspace.seeds, tuple(lines), found.photographs, facts, found.unjudged)


def _missing(works: Iterable[Work], found: Results) -> list[Work]:
    return [work for work in works if work not in found.evaluations]


def _draw(plan: Plan, workspace: Workspace, chosen: dict[str, DatasetFiles], found: Results) -> None:
    """Samples of the first seed side by side, a picture a data set."""
    for name, files in chosen.items():
        rows = [row for row in plan.rows if row.data == name and (0, row) in found.evaluations]
        columns = [(row.heading, workspace.images(row, 0)) for row in rows]
        if columns:
            pictures.save_jpeg(pictures.samples(files, columns), workspace.out / table_files.picture_name(plan, name))
