"""What would stop a row, looked for before anything is trained: recipes, runs, data, priors, perceptual weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from piti.baselines.base import baseline_spec
from piti.core.errors import UserError, option, text_of
from piti.models.perceptual import PerceptualSpec, load_perceptual
from piti.reproduction.files import count_pairs
from piti.reproduction.rows import Plan, Row, Training
from piti.reproduction.runs import Workspace, check_pairs, pairs_of, progress_of, recipe_of
from piti.training import Recipe
from piti.training.build import build_condition, known_condition
from piti.training.plan import beginning

JUDGES = {"squeezenet1_1": "squeezenet", "alexnet": "alexnet"}
"""Perceptual networks that are feature networks too, by the latter's names."""


def perceptual_of(recipe: Recipe) -> PerceptualSpec | None:
    """The network of a recipe's perceptual loss; none where no loss with a weight uses it."""
    of_baseline = recipe.baseline is not None and baseline_spec(recipe.baseline).perceptual > 0
    of_stages = any(stage.perceptual is not None and stage.perceptual.weight > 0 for stage in recipe.stages)
    return recipe.perceptual if of_baseline or of_stages else None


def minimised(plan: Plan, row: Row, workspace: Workspace) -> frozenset[str]:
    """The feature networks that take part in training a row; none for one whose recipe cannot be read."""
    found = set()
    for training in row.trainings:
        try:
            spec = perceptual_of(recipe_of(plan, training, 0, workspace))
        except UserError:
            continue
        if spec is not None and spec.network in JUDGES:
            found.add(JUDGES[spec.network])
    return frozenset(found)


@dataclass
class Checker:
    """What was checked; each thing that several runs need is looked at once."""

    plan: Plan
    workspace: Workspace
    known: dict[str, str] = field(default_factory=dict)
    """What is wrong, by what was looked at; empty where nothing is."""
    stopped: dict[str, list[str]] = field(default_factory=dict)
    """The runs found so far that each problem stops."""
    pairs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The training pairs of data that runs were trained on; see `pairs_of`."""

    def problem(self, training: Training, seed: int) -> str:
        """What would stop a run before its first step; empty where nothing would, or nothing is to be trained."""
        what = self._problem(training, seed)
        if what:
            self.stopped.setdefault(what, []).append(f"{training.name}-{seed}")
        return what

    @property
    def told(self) -> list[str]:
        """The problems found so far, each with the runs that it stops."""
        return [f"{', '.join(runs)}: {what}" for what, runs in self.stopped.items()]

    def _problem(self, training: Training, seed: int) -> str:
        try:
            recipe = recipe_of(self.plan, training, seed, self.workspace)
            run = self.workspace.run(training, seed)
            if not self.workspace.train:
                return ""
            if progress_of(run, recipe).finished:
                check_pairs(run, recipe, self._pairs(recipe))
                return ""
        except (UserError, OSError) as error:
            return text_of(error)
        return "; ".join(filter(None, (self._data(recipe), self._prior(recipe), self._perceptual(recipe))))

    def _pairs(self, recipe: Recipe) -> dict[str, Any]:
        what = f"{recipe.data} {recipe.condition}"
        if what not in self.pairs:
            self.pairs[what] = pairs_of(recipe)
        return self.pairs[what]

    def _data(self, recipe: Recipe) -> str:
        """Of the pairs, as far as their names tell; training looks into each file."""
        if recipe.data.root is None:
            return ""
        return self._once(
            f"data {recipe.data.root} {recipe.data.conditions} {recipe.condition}",
            lambda: count_pairs(build_condition(recipe), recipe.data),
            f"give {option('data')} another folder",
        )

    def _prior(self, recipe: Recipe) -> str:
        """Whether it is there and fits."""
        if recipe.prior is None and recipe.init is None:
            return ""
        begun = (recipe.prior, recipe.init, recipe.model, recipe.schedule, recipe.condition, recipe.data.root)
        return self._once(
            f"prior {begun}",
            lambda: _begins(recipe),
            "have a model of this name in the working folder; docs/evidence/reproduce.md says how priors are made",
        )

    def _perceptual(self, recipe: Recipe) -> str:
        spec = perceptual_of(recipe)
        if spec is None:
            return ""
        return self._once(f"perceptual {spec}", lambda: load_perceptual(spec), f"give {option('perceptual')} FILE")

    def _once(self, what: str, look: Callable[[], object], remedy: str) -> str:
        if what not in self.known:
            try:
                look()
                self.known[what] = ""
            except (UserError, OSError) as error:
                self.known[what] = f"{text_of(error)}. Remedy: {remedy}"
        return self.known[what]


def _begins(recipe: Recipe) -> str:
    """What a run begins from. Raises ModelError, RecipeError."""
    condition = known_condition(recipe) if recipe.data.root is None else build_condition(recipe)
    return beginning(recipe, condition)
