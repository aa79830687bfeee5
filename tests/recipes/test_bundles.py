"""Finding recipes by name, and writing and reading them."""

import dataclasses
import json

import pytest

from cramming_train.errors import UsageError
from cramming_train.recipes import BUNDLES, DEFAULT_RECIPE, Recipe, apply_overrides, get_recipe


def test_the_default_is_there():
    assert BUNDLES[DEFAULT_RECIPE].name == DEFAULT_RECIPE


@pytest.mark.parametrize("name", BUNDLES)
def test_by_name(name):
    assert get_recipe(name) is BUNDLES[name]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError) as error:
        get_recipe("cramed-bert")
    message = str(error.value)
    assert message.startswith("unknown recipe 'cramed-bert' (did you mean 'crammed-bert'?); known: ")
    assert "\n" not in message and all(name in message for name in BUNDLES)
    with pytest.raises(UsageError) as error:
        get_recipe("qqqqqqqq")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", BUNDLES)
def test_round_trip_through_json(name):
    recipe = get_recipe(name)
    text = json.dumps(recipe.to_dict(), allow_nan=False)
    assert Recipe.from_dict(json.loads(text)) == recipe


def test_round_trip_of_a_changed_recipe():
    """Values other than the defaults, None and tuples among them."""
    changes = [
        "grad_clip=null", "training.betas=0.8,0.95", "evaluation.betas=[0.7,0.9]", "architecture.window=17",
        "data.max_rows=1000", "compression_threshold=none", "document_attention=true", "masking_rate=0.3",
    ]  # fmt: skip
    recipe = apply_overrides(get_recipe("crammed-bert"), changes)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe != get_recipe("crammed-bert") and hash(again) == hash(recipe)
    assert again.training.betas == (0.8, 0.95) and again.training.grad_clip is None


def content(**changes):
    return {**get_recipe("bert-tiny").to_dict(), **changes}


@pytest.mark.parametrize("broken, error", [
    ({k: v for k, v in content().items() if k != "data"}, KeyError),
    ({k: v for k, v in content().items() if k != "name"}, KeyError),
    (content(training={**content()["training"], "inertia": 0.9}), TypeError),
    (content(training={"name": "x", "peak_lr": -1.0}), ValueError),
    (content(architecture={"name": "x"}), TypeError),
    (content(evaluation={**content()["evaluation"], "betas": [0.9]}), ValueError),
])  # fmt: skip
def test_what_is_not_one_of_ours_is_refused(broken, error):
    with pytest.raises(error):
        Recipe.from_dict(broken)


def test_recipes_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("bert-tiny").training.peak_lr = 1.0
    copy = get_recipe("bert-tiny").to_dict()
    copy["training"]["peak_lr"] = 1.0
    assert get_recipe("bert-tiny").training.peak_lr == 1e-3
