"""Recipes are data. A bundle names an architecture, a training, a data and an evaluation recipe."""

from cramming_train.recipes.architecture import ARCHITECTURES, Architecture
from cramming_train.recipes.bundle import BUNDLES, DEFAULT_RECIPE, Recipe, get_recipe
from cramming_train.recipes.data import DATASETS, Data
from cramming_train.recipes.evaluation import EVALUATIONS, Evaluation
from cramming_train.recipes.overrides import apply_overrides, is_replaced, is_set
from cramming_train.recipes.training import TRAININGS, Training

__all__ = [
    "ARCHITECTURES",
    "BUNDLES",
    "DATASETS",
    "DEFAULT_RECIPE",
    "EVALUATIONS",
    "TRAININGS",
    "Architecture",
    "Data",
    "Evaluation",
    "Recipe",
    "Training",
    "apply_overrides",
    "get_recipe",
    "is_replaced",
    "is_set",
]
