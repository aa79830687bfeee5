"""--set key=value: what it changes, and the one line that it answers with where it cannot."""

import dataclasses

import pytest

from cramming_train.errors import UsageError
from cramming_train.recipes import ARCHITECTURES, TRAININGS, apply_overrides, get_recipe, is_set

BASE = get_recipe("crammed-bert")


def changed(*settings):
    return apply_overrides(BASE, settings)


def test_nothing_to_change():
    assert changed() == BASE


@pytest.mark.parametrize("setting, part, field, value", [
    ("training.batch_size=64", "training", "batch_size", 64),
    ("training.batch_size=4_096", "training", "batch_size", 4096),
    ("peak_lr=3e-4", "training", "peak_lr", 3e-4),
    ("training.peak_lr = 1", "training", "peak_lr", 1.0),
    ("training.betas=0.8,0.9", "training", "betas", (0.8, 0.9)),
    ("training.betas=[0.8, 0.9]", "training", "betas", (0.8, 0.9)),
    ("grad_clip=none", "training", "grad_clip", None),
    ("grad_clip=NULL", "training", "grad_clip", None),
    ("grad_clip=2", "training", "grad_clip", 2.0),
    ("training.dropout=true", "training", "dropout", True),
    ("training.dropout=False", "training", "dropout", False),
    ("training.schedule=linear", "training", "schedule", "linear"),
    ("architecture.dropout=0.25", "architecture", "dropout", 0.25),
    ("document_attention=TRUE", "architecture", "document_attention", True),
    ("window=0", "architecture", "window", 0),
    ("positions=rope", "architecture", "positions", "rope"),
    ("max_rows=100", "data", "max_rows", 100),
    ("compression_threshold=null", "data", "compression_threshold", None),
    ("row_length=64", "data", "row_length", 64),
    ("evaluation.learning_rate=1e-5", "evaluation", "learning_rate", 1e-5),
])  # fmt: skip
def test_one_field(setting, part, field, value):
    """It has the value, of the field's type, and nothing else has changed."""
    recipe = changed(setting)
    got = getattr(getattr(recipe, part), field)
    assert got == value and type(got) is type(value)
    restored = dataclasses.replace(
        recipe,
        **{part: dataclasses.replace(getattr(recipe, part), **{field: getattr(getattr(BASE, part), field)})},
    )
    assert restored == BASE


def test_a_whole_part_by_name():
    recipe = changed("architecture=bert-base", "training=bert-izsak", "evaluation=glue", "data=crammed")
    assert recipe.architecture == ARCHITECTURES["bert-base"] and recipe.training == TRAININGS["bert-izsak"]
    assert recipe.evaluation.epochs == 10 and recipe.name == "crammed-bert"


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_parts_come_before_fields_in_any_order(order):
    settings = ["architecture=bert-tiny", "architecture.layers=5", "training.batch_size=96", "training=bert-o1"]
    recipe = changed(*settings[order])
    assert recipe.architecture == dataclasses.replace(ARCHITECTURES["bert-tiny"], layers=5)
    assert recipe.training == dataclasses.replace(TRAININGS["bert-o1"], batch_size=96)


def test_the_last_of_two_counts():
    assert changed("training.batch_size=64", "batch_ramp=0.1", "training.batch_size=32").training.batch_size == 32


@pytest.mark.parametrize("setting, words", [
    ("training.batchsize=64", "no such key (did you mean 'training.batch_size'?)"),
    ("peek_lr=1", "no such key (did you mean 'peak_lr'?)"),
    ("architectur=bert-base", "no such key (did you mean 'architecture'?)"),
    ("training.learning_rate=1", "no such key"),
    ("training.name=x", "no such key"),
    ("zzzzzz=1", "--set zzzzzz: no such key"),
    ("dropout=0.2", "could be architecture.dropout or training.dropout or evaluation.dropout"),
    ("seed", "want key=value, such as training.batch_size=64"),
    ("=3", "want key=value"),
    ("architecture=bert-bse", "unknown architecture recipe 'bert-bse' (did you mean 'bert-base'?); known: crammed"),
    ("training=none", "unknown training recipe 'none'"),
])  # fmt: skip
def test_unknown_keys_and_names(setting, words):
    assert words in refusal(setting)


@pytest.mark.parametrize("setting, words", [
    ("training.batch_size=many", "--set training.batch_size: got 'many', want int"),
    ("training.batch_size=1.5", "got '1.5', want int"),
    ("training.batch_size=", "got '', want int"),
    ("training.batch_size=none", "got 'none', want int"),
    ("peak_lr=fast", "--set training.peak_lr: got 'fast', want float"),
    ("training.dropout=1", "got '1', want bool"),
    ("training.betas=0.9", "training.betas"),
    ("training.betas=0.9;0.98", "got '0.9;0.98', want two numbers, such as 0.9,0.98"),
    ("training.betas=0.9,fast", "want two numbers"),
    ("training.betas=[[0.9],0.98]", "want two numbers"),
    ("max_rows=few", "got 'few', want int"),
    ("compression_threshold=low", "got 'low', want float"),
])  # fmt: skip
def test_values_of_the_wrong_type(setting, words):
    assert words in refusal(setting)


@pytest.mark.parametrize("setting", [
    "architecture.layers=0", "architecture.heads=-1", "architecture.heads=7", "architecture.hidden=772",
    "architecture.ffn_hidden=3071", "ffn=swiglu", "gate=third", "norm=sandwich", "positions=alibi", "window=-1",
    "architecture.dropout=1", "attention_dropout=-0.1", "embedding_dropout=nan", "norm_eps=0", "rope_base=0",
    "architecture.max_length=0", "init_std=-0.02",
    "training.batch_size=0", "micro_batch_size=0", "peak_lr=0", "peak_lr=nan", "training.betas=0.9,1.0",
    "training.betas=0.9,0.98,0.99", "training.eps=0", "training.weight_decay=-0.1", "grad_clip=0", "grad_clip=nan",
    "training.schedule=square", "training.warmup=1", "batch_ramp=1.5", "window_growth=0", "window_growth=1.5",
    "averaging=mean", "averaging_share=0",
    "first_window=0", "matrix_interval=0", "architecture.global_every=2", "batch_ramp=-0.5", "masking_rate=0",
    "masking_rate=1", "masking_rate_final=1.5", "random_share=1", "keep_share=-0.1", "precision=fp8",
    "compile=maybe", "optimizer=sgd",
    "clean=html", "vocab_size=63", "row_length=7", "row_length=129", "compression_threshold=0", "deduplicate=exact",
    "substring_characters=19", "order=alphabetical", "max_rows=0", "validation_fraction=0", "validation_fraction=1",
    "tokenizer_characters=0",
    "evaluation.learning_rate=0", "evaluation.epochs=0", "evaluation.seeds=0", "evaluation.batch_size=0",
    "evaluation.warmup=1", "evaluation.schedule=triangle", "evaluation.weight_decay=-1", "classifier_hidden=0",
    "evaluation.betas=1,0", "evaluation.dropout=1", "evaluation.max_length=0", "evaluation.eps=0",
    "training.weight_decay=nan", "evaluation.weight_decay=inf", "peak_lr=inf", "training.eps=inf", "init_std=inf",
    "rope_base=inf", "grad_clip=inf", "compression_threshold=inf",
])  # fmt: skip
def test_values_out_of_range(setting):
    """The message names the field and what was given."""
    key, _, value = setting.partition("=")
    message = refusal(setting)
    assert key.rpartition(".")[2].rpartition("_")[2] in message or key in message
    assert value.partition(",")[0] in message


def test_shares_that_add_up_to_more_than_all():
    assert "random_share + keep_share" in refusal("random_share=0.6", "keep_share=0.5")
    assert changed("random_share=0.5", "keep_share=0.5").training.keep_share == 0.5


def test_longer_rows_need_longer_positions():
    assert "architecture.max_length = 128; raise that as well" in refusal("row_length=512")
    assert changed("row_length=512", "architecture.max_length=512").data.row_length == 512


def refusal(*settings):
    """The one line of the UsageError."""
    with pytest.raises(UsageError) as error:
        changed(*settings)
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 250
    return message


def test_whether_a_field_was_given():
    key = "training.micro_batch_size"
    for settings in (["micro_batch_size=4"], ["training=bert-izsak", "training.micro_batch_size = 4"]):
        assert is_set(settings, key)
    for settings in ([], ["training=bert-izsak"], ["training.batch_size=4", "row_length=64"]):
        assert not is_set(settings, key)
    with pytest.raises(UsageError, match="no such key"):
        is_set(["micro_batch=4"], key)
