"""A run's model: its networks and schedulers, in the usual model layout."""

from __future__ import annotations

from pathlib import Path

from piti.checkpoints.folder import find_model, lasting_name
from piti.checkpoints.joining import join_base, join_upsampler
from piti.checkpoints.writing import write_model_folder
from piti.training.build import Run
from piti.training.distill import usual_sampling
from piti.training.objectives import Objective
from piti.training.recipe_io import write_recipe
from piti.training.run_folder import RECIPE_FILE


def write_run_model(target: Path, run: Run, objective: Objective) -> None:
    """Write the run's current networks, the networks that they are sampled with, and the recipe into an empty
    folder."""
    parts = objective.parts(run.adapted or run.translator, run.translator.role)
    write_model_folder(target, parts, run.condition.to_config(), usual_sampling(run.recipe))
    if run.base is not None:
        join_base(target, run.base)
    if run.recipe.distillation is not None and run.recipe.init is not None:
        lasting = lasting_name(run.recipe.init) if run.adapted else None
        join_upsampler(target, find_model(run.recipe.init), lasting)
    write_recipe(run.recipe, target / RECIPE_FILE)
