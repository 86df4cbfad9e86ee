"""Training: recipes, stages, the loop, and resumable runs."""

from piti.training.distill import distillation_recipe
from piti.training.divergence import TrainingDiverged
from piti.training.loop import TrainingInterrupted
from piti.training.plan import plan
from piti.training.recipe import Recipe, RecipeError
from piti.training.recipe_io import read_recipe, write_recipe
from piti.training.run import train
from piti.training.run_folder import RunFolder
from piti.training.run_state import RunError
from piti.training.stages import Stage

__all__ = [
    "Recipe",
    "RecipeError",
    "RunError",
    "RunFolder",
    "Stage",
    "TrainingDiverged",
    "TrainingInterrupted",
    "distillation_recipe",
    "plan",
    "read_recipe",
    "train",
    "write_recipe",
]
