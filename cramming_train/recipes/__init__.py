"""Recipes are data. A bundle names an architecture, a training, a data and an evaluation recipe."""

from cramming_train.recipes.architecture import ARCHITECTURES, Architecture
from cramming_train.recipes.bundle import BUNDLES, Recipe, default_recipe, get_recipe
from cramming_train.recipes.data import DATASETS, Data
from cramming_train.recipes.evaluation import EVALUATIONS, Evaluation
from cramming_train.recipes.overrides import apply_overrides, is_set
from cramming_train.recipes.training import TRAININGS, Training

__all__ = [
    "ARCHITECTURES",
    "BUNDLES",
    "DATASETS",
    "EVALUATIONS",
    "TRAININGS",
    "Architecture",
    "Data",
    "Evaluation",
    "Recipe",
    "Training",
    "apply_overrides",
    "default_recipe",
    "get_recipe",
    "is_set",
]
