"""The model card: front matter that the hub understands, and words that are the run's."""

import json

import pytest
from huggingface_hub import ModelCard

from cramming_train.card import model_card
from cramming_train.data.hub import PILE_ROWS
from cramming_train.errors import RunError
from tests.training.run_folder import add_scores, make_run


def change(run, **changes):
    summary = run.summary
    summary["data"].update(changes.pop("data", {}))
    (run.path / "summary.json").write_text(json.dumps({**summary, **changes}))
    return run


def test_front_matter(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    data = ModelCard(model_card(run)).data
    assert data.language == "en" and data.license == "apache-2.0" and data.pipeline_tag == "fill-mask"
    assert data.library_name == "transformers" and "cramming" in data.tags and data.mask_token == "<mask>"
    assert data.datasets is None and data.eval_results is None


@pytest.mark.parametrize(("data", "datasets"), [
    ({"source": "some/set:en", "source_kind": "hub"}, ["some/set"]),
    ({"source": PILE_ROWS, "source_kind": "rows"}, [PILE_ROWS]),
    ({"source": "my/rows", "source_kind": "rows"}, None),
    ({"source": "my/text", "source_kind": "files"}, None),
])  # fmt: skip
def test_data_sets_of_the_hub_are_linked(data, datasets, tmp_path):
    run = change(make_run(tmp_path / "a-run", steps=0, validations=0), data=data)
    assert ModelCard(model_card(run)).data.datasets == datasets


def test_the_words(tmp_path):
    text = model_card(make_run(tmp_path / "a-run", steps=0, validations=0))
    for words in (
        "# a-run\n", "11,015,169 parameters (architecture `crammed-bert-mini`)", "pretrained from scratch",
        "4 layers, hidden size 256, 4 heads", "(a machine); it used 1:30 for 1,234,567 tokens of books",
        "| held-out masked-LM loss | 5.6789 nats |", "| held-out accuracy | 12.34% |",
        "1. **kept**: a transformer trained", "3. **open**: any raw text", "AutoModelForMaskedLM.from_pretrained",
        "--run a-run", "- mind the rows", "not evaluated on CoLA, SST-2",
    ):  # fmt: skip
        assert words in text, words
    assert "None" not in text and "## GLUE" not in text


def test_scores(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    add_scores(run, cola=(0.123, True), mnli_mm=(0.841, True), rte=(0.561, False))
    text = model_card(run)
    assert "| CoLA | acc | 12.3 | 56.5 | 44.5 | 0.0 |" in text and "| RTE | acc | 56.1* |" in text
    assert "median of 3 seeds" in text and "Not the whole official data" in text
    assert "not evaluated on SST-2, MRPC" in text
    results = ModelCard(text).data.eval_results
    assert [(r.dataset_config, r.dataset_split, r.metric_value) for r in results] == [
        ("cola", "validation", 0.123), ("mnli", "validation_mismatched", 0.841),
    ]  # fmt: skip


def test_imported_weights(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    summary = {
        "imported": "/models/bert", "parameters": 110, "finished": "2030-01-01", "train_loss": None,
        "data": {"source": "not known", "source_kind": "imported", "notices": ["from far"], "unigram_loss": None},
        "rules": [{"rule": "one", "kept": False, "why": "imported"}],
    }  # fmt: skip
    (run.path / "summary.json").write_text(json.dumps(summary))
    text = model_card(run)
    assert "that started from /models/bert" in text and "**broken**: one (imported)" in text and "None" not in text


def test_a_run_that_has_not_ended(tmp_path):
    with pytest.raises(RunError, match="has not ended"):
        model_card(make_run(tmp_path / "a-run", steps=0, validations=0, summary=False))
