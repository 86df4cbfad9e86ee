"""What a table would take, told before it starts: a row a run, with where it stands and the hours it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from piti.core.errors import Message, UserError, option
from piti.diffusion.guidance import Guidance
from piti.diffusion.samplers import sampler_of, sampling_timesteps
from piti.diffusion.schedule import NoiseSchedule
from piti.diffusion.schedulers import scheduler_of
from piti.pipelines.options import GENERAL_DEFAULTS, ONE_STEP, NetworkOptions
from piti.reproduction.cells import decimals_for, number
from piti.reproduction.checks import Checker
from piti.reproduction.files import count_pairs
from piti.reproduction.rows import SETS, Plan, Row, Training
from piti.reproduction.runs import Workspace, progress_of, recipe_of, recipe_on
from piti.training import Recipe, RunFolder, read_recipe
from piti.training.build import build_condition, known_condition, network_config
from piti.training.cost import DEFAULT_GPU, GPU, cost_of, gpu_named
from piti.training.run_folder import RECIPE_FILE
from piti.training.run_state import read_state

ASSUMED = 30.0
"""Training images a second of the small scale's networks where nothing was measured: about what two CPU cores do."""
FORWARD = 1 / 3
"""Work of a network's forward pass by that of a training step, for estimates of sampling."""
_HOUR = 3600


@dataclass(frozen=True)
class SpeedEstimate:
    """How fast a run trains."""

    rate: float
    """Training images a second."""
    basis: str


@dataclass
class CostTally:
    """What was found on the way through a plan."""

    checker: Checker
    hours: float
    rates: dict[Training, float]
    counted: dict[str, SpeedEstimate]
    """By what the work depends on, since counting takes seconds."""
    bases: dict[str, None]
    unknown: list[str]
    recipes: dict[Training, Recipe]


def dry_run(
    plan: Plan, workspace: Workspace, gpu: str = DEFAULT_GPU, lacking: Sequence[str] = ()
) -> tuple[list[dict[str, str]], list[str]]:
    """A row for each run, and notes on the hours of all and on what is lacking. Trains nothing and writes nothing.

    gpu: a name in `piti.training.cost.GPUS`, for the paper's scale. lacking: what else stops the table. Raises
    UserError for a GPU that is not known, and for a row whose options its networks cannot be sampled with.
    """
    chosen = gpu_named(gpu)
    tally = CostTally(Checker(plan, workspace), 0.0, {}, {}, {}, [], {})
    found = [
        _run(plan, training, seed, workspace, chosen, tally)
        for training in plan.trainings
        for seed in range(workspace.seeds)
    ]
    counts = {name: _validation(plan, name, workspace) for name in plan.sets}
    made = {row.sampled.images: row.sampled for row in plan.rows}.values()  # rows may share a base's images
    sampling = sum(counts[row.data] * _sampling(row, tally) for row in made) * workspace.seeds / _HOUR
    left_out = f", without {', '.join(tally.unknown)}" if tally.unknown else ""
    notes = [
        f"about {_hours(tally.hours)} hours of training to go{left_out}, and {_hours(sampling)} of sampling in all; "
        "judging comes on top"
    ]
    if tally.bases:
        notes.append(f"hours are of {'; '.join(tally.bases)}")
    decimals = min(2, decimals_for(hours for _, hours in found if hours is not None))
    rows = [row if hours is None else row | {"hours left": number(hours, decimals)} for row, hours in found]
    notes += [f"cannot be made: {problem}" for problem in (*tally.checker.told, *lacking)]
    return rows, [*map(Message, notes)]


def _run(
    plan: Plan, training: Training, seed: int, workspace: Workspace, gpu: GPU, tally: CostTally
) -> tuple[dict[str, str], float | None]:
    """A run's row, and its hours where they are known."""
    name = f"{training.name}-{seed}"
    problem = tally.checker.problem(training, seed)
    state = "cannot be made" if problem else ""
    try:
        recipe = recipe_of(plan, training, seed, workspace)
        now = progress_of(workspace.run(training, seed), recipe)
    except (UserError, OSError):
        tally.unknown.append(name)
        return {"run": name, "state": state, "images": "", "hours left": "", "what": "see below"}, None
    row = {"run": name, "state": state or str(now), "images": f"{_images(recipe):,}", "hours left": "?"}
    row["what"] = _what(recipe)
    tally.recipes[training] = recipe
    try:
        estimate = _measured(recipe, workspace) if plan.own_speed else _counted(recipe, gpu, tally.counted)
    except (UserError, TypeError, NotImplementedError):  # a network whose work is not counted
        tally.unknown.append(name)
        return row, None
    hours = 0.0 if now.finished else _images(recipe) * (1 - now.step / recipe.steps) / estimate.rate / _HOUR
    tally.hours += hours
    tally.rates[training] = estimate.rate
    tally.bases[estimate.basis] = None
    return row, hours


def _validation(plan: Plan, name: str, workspace: Workspace) -> int:
    """Validation conditions of a data set: counted where it is there, else about those that it should have."""
    if name in workspace.data:
        with suppress(UserError):  # which is told with the runs
            recipe = recipe_on(plan, name, workspace)
            return count_pairs(build_condition(recipe), recipe.data)[1]
    return SETS[name].validation


def _what(recipe: Recipe) -> str:
    """What a run trains, in words."""
    begins = f"from {recipe.prior}" if recipe.prior else "weights drawn anew"
    stages = ", then ".join(f"{' and '.join(stage.trains)} for {stage.steps:,} steps" for stage in recipe.stages)
    limit = f", {recipe.data.limit:,} pairs" if recipe.data.limit else ""
    return f"{begins}{limit}, batches of {recipe.batch * recipe.accumulation}: {stages}"


def _images(recipe: Recipe) -> int:
    return recipe.steps * recipe.batch * recipe.accumulation


def _hours(hours: float) -> str:
    return number(hours, min(2, decimals_for([hours])))


# Speeds


def _counted(recipe: Recipe, gpu: GPU, known: dict[str, SpeedEstimate]) -> SpeedEstimate:
    """By the work of a training step, on one GPU. known: what was counted before."""
    condition = known_condition(recipe)
    keys = ("model", "baseline", "stages", "batch", "accumulation", "precision", "perceptual", "discriminator")
    values = recipe.to_dict()
    key = repr([values.get(name) for name in keys] + [condition.channels if condition else 0])
    if key not in known:
        cost = cost_of(recipe, network_config(recipe, condition))
        rate = _images(recipe) / (cost.hours(gpu) * _HOUR)
        known[key] = SpeedEstimate(rate, f"one {gpu.name}, at the speed that piti train {option('dry_run')} takes")
    return known[key]


def _measured(recipe: Recipe, workspace: Workspace) -> SpeedEstimate:
    """By runs of the same networks in the same folder, or of any; else by an assumption."""
    runs = list(_finished(workspace.out / "runs"))
    speeds = [rate for other, rate in runs if _networks(other) == _networks(recipe)] or [rate for _, rate in runs]
    if not speeds:
        return SpeedEstimate(ASSUMED, f"a machine that trains {ASSUMED:.0f} images a second, which is assumed")
    return SpeedEstimate(
        sum(speeds) / len(speeds), f"the machine on which the runs in {workspace.out / 'runs'} were made"
    )


def _networks(recipe: Recipe) -> object:
    return recipe.baseline, recipe.model, recipe.data.size


def _finished(place: Path) -> Iterator[tuple[Recipe, float]]:
    """The runs with a checkpoint that can be read, and their images a second."""
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        newest = RunFolder(folder).newest()
        if newest is None:
            continue
        try:
            state, recipe = read_state(newest), read_recipe(newest / RECIPE_FILE)
        except UserError:  # it was copied in part, or another version wrote it: told with the run itself
            continue
        if state.seconds > 0 and state.images_seen > 0:
            yield recipe, state.images_seen / state.seconds


def _sampling(row: Row, tally: CostTally) -> float:
    """Seconds for a row's images of one condition, by the forward passes of its networks, which sample whole images
    even if they were trained on crops. Raises UserError."""
    asked = row.options.sampling
    networks: dict[Training, NetworkOptions] = {row.base: asked.base}
    if row.upsampler is not None and not asked.base_only:
        networks[row.upsampler] = asked.upsampler
    seconds = 0.0
    for one, own in networks.items():
        if one in tally.rates:
            recipe = tally.recipes[one]
            area = (recipe.model.image_size / recipe.data.size) ** 2
            seconds += row.options.num * _passes(recipe, own) * area * FORWARD / tally.rates[one]
    return seconds


def _passes(recipe: Recipe, asked: NetworkOptions) -> int:
    """Forward passes of a run's network for one image: one of a baseline's generator; else one for each step, two where
    that is guided. What is not asked is the model's own, as in `SamplingOptions.resolve`. Raises UserError."""
    if recipe.baseline is not None:
        return 1
    usual: NetworkOptions = GENERAL_DEFAULTS.base if recipe.model.low_res is None else GENERAL_DEFAULTS.upsampler
    usual = usual.model_copy(update={"sampler": sampler_of(scheduler_of(recipe.schedule))})
    if recipe.one_step:
        usual = usual.model_copy(update={"steps": ONE_STEP.steps, "sampler": ONE_STEP.sampler})
    chosen, schedule = asked.over(usual), NoiseSchedule(recipe.schedule)
    assert chosen.steps is not None
    assert isinstance(chosen.guidance, Guidance)
    visited = sampling_timesteps(schedule, str(chosen.sampler), chosen.steps)
    return sum(1 + chosen.guidance.active(t, len(schedule)) for t in visited)
