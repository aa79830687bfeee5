"""Imported weights are judged as any run: text goes through their own tokenizer, pairs and all."""

import json

from safetensors.torch import save_file

from cramming_train import evaluate, import_checkpoint
from cramming_train.runs import Run
from tests.evaluation.conftest import WORDS
from tests.exchange.helpers import SHUFFLED, Original, foreign_tokenizer


def test_evaluate_takes_an_import(toy_glue, tmp_path, capsys):
    source = tmp_path / "theirs"
    source.mkdir()
    original = Original(crammed=True, vocab_size=len(SHUFFLED) + len(WORDS))
    save_file(original.weights, source / "model.safetensors")
    (source / "model_config.json").write_text(json.dumps(original.config()))
    foreign_tokenizer(SHUFFLED, WORDS).save(str(source / "tokenizer.json"))
    runs = ["--out", str(tmp_path / "runs")]
    assert import_checkpoint.main(["--from", str(source), "--to", "theirs", *runs]) == 0
    short = ["--seeds", "1", "--epochs", "1", "--set", "evaluation.learning_rate=2e-3"]
    arguments = [*runs, "--run", "theirs", "--task-dir", str(toy_glue), "--tasks", "cola", "mnli", *short]
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "runs/theirs/evaluation/glue.json").read_text())
    assert set(scores["tasks"]) == {"cola", "mnli"}
    rules = Run(tmp_path / "runs" / "theirs").summary["rules"]
    assert rules[4]["why"].startswith("judged on cola, mnli") and not rules[0]["kept"]
