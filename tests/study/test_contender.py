"""Lines that name a contender."""

import pytest

from cramming_train.errors import UsageError
from cramming_train.recipes import get_recipe
from cramming_train.study.contender import parse_contender, parse_contenders


def test_a_recipe_alone_is_its_own_label():
    contender = parse_contender("crammed-bert-mini", 1000, None)
    assert (contender.label, contender.tokens, contender.hours) == ("crammed-bert-mini", 1000, None)
    assert contender.recipe == get_recipe("crammed-bert-mini") and contender.overrides == ()


def test_label_overrides_and_a_budget_of_its_own():
    contender = parse_contender("small batch: bert-tiny training.batch_size=16 peak_lr=2e-3 hours=0.5", 1000, None)
    assert contender.label == "small batch"
    assert (contender.tokens, contender.hours, contender.budget) == (None, 0.5, "0.5 hours")
    assert contender.overrides == ("training.batch_size=16", "peak_lr=2e-3")
    assert (contender.recipe.training.batch_size, contender.recipe.training.peak_lr) == (16, 2e-3)


def test_the_mark_is_of_recipe_and_budget_not_of_the_wording():
    first = parse_contender("a: bert-tiny training.peak_lr=0.002", 1000, None)
    same = parse_contender("b: bert-tiny peak_lr=2e-3 tokens=1000", None, 3.0)
    assert first.mark == same.mark
    for other in ("a: bert-tiny peak_lr=0.003", "a: bert-tiny peak_lr=0.002 tokens=1001", "a: bert-base"):
        assert parse_contender(other, 1000, None).mark != first.mark


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "names no recipe"),
        ("label:", "names no recipe"),
        ("bert-tinny", "did you mean 'bert-tiny'"),
        ("bert-tiny learning_rat=1", "learning_rat"),
        ("bert-tiny tokens=0", "tokens=0: want a positive number"),
        ("bert-tiny tokens=many", "tokens=many: want a positive number"),
        ("bert-tiny hours=inf", "hours=inf: want a positive number"),
        ("bert-tiny tokens=5 hours=1", "not both"),
    ],
)
def test_what_cannot_be_is_named(line, message):
    with pytest.raises(UsageError, match=message):
        parse_contender(line, 1000, None)


def test_labels_are_unique():
    with pytest.raises(UsageError, match="two are called 'bert-tiny'"):
        parse_contenders(["bert-tiny", "bert-tiny: bert-tiny peak_lr=1e-4"], 1000, None)
    assert len(parse_contenders(["bert-tiny", "other: bert-tiny"], 1000, None)) == 2
