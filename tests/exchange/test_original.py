"""Weights of the original project become runs: equal logits, whatever the special tokens' ids and the file's kind."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cramming_train import import_checkpoint
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.evaluate import main as evaluate
from cramming_train.report import main as report
from cramming_train.runs import Run
from tests.exchange.helpers import SHUFFLED, Original, foreign_tokenizer, our_logits

WORDS = [f"w{number}" for number in range(90)] + ["w", "##x"]
VOCAB = len(SHUFFLED) + len(WORDS)


def write(folder, original, weights=None, config=None, order=SHUFFLED):
    folder.mkdir(parents=True, exist_ok=True)
    weights = original.weights if weights is None else weights
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "model_config.json").write_text(json.dumps(config or original.config()))
    foreign_tokenizer(list(order), WORDS).save(str(folder / "tokenizer.json"))
    return folder


def call(folder, tmp_path, name="taken"):
    return import_checkpoint.main(["--from", str(folder), "--to", name, "--out", str(tmp_path / "runs")])


def imported(folder, tmp_path, name="taken"):
    assert call(folder, tmp_path, name) == 0
    return Run(tmp_path / "runs" / name)


def assert_same_logits(run, original, theirs):
    """Token by token by its name, on rows of every id and of odd lengths."""
    model, ours = run.load_model(), run.tokenizer()
    to_ours = torch.tensor([ours.token_to_id(theirs.id_to_token(index)) for index in range(VOCAB)])
    assert sorted(to_ours.tolist()) == list(range(VOCAB))
    generator = torch.Generator().manual_seed(3)
    for length in (1, 7, original.length):
        ids_BS = torch.randint(0, VOCAB, (3, length), generator=generator)
        for row, expected in zip(ids_BS, original.logits(ids_BS), strict=True):
            torch.testing.assert_close(our_logits(model, to_ours[row])[:, to_ours], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("crammed", [True, False], ids=["crammed-bert", "crammed-bert-simple"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_logits(crammed, prefix, tmp_path):
    original = Original(crammed, VOCAB)
    weights = {prefix + name: tensor for name, tensor in original.weights.items()}
    run = imported(write(tmp_path / "theirs", original, weights), tmp_path)
    assert_same_logits(run, original, foreign_tokenizer(SHUFFLED, WORDS))
    assert [run.tokenizer().token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert run.tokenizer().encode("W3 w88 wx ?", add_special_tokens=False).tokens == ["w3", "w88", "w", "##x", "<unk>"]


@pytest.mark.parametrize("content", ["state_dict", "training checkpoint"])
def test_a_pth_file(content, tmp_path):
    original = Original(True, VOCAB)
    folder = write(tmp_path / "theirs", original)
    (folder / "model.safetensors").unlink()
    weights = {name: tensor if "norm_factor" in name else tensor.half() for name, tensor in original.weights.items()}
    stored = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    if content == "training checkpoint":
        stored = {"model": stored, "optim": {"state": {}}, "metadata": {"step": 3}}
    torch.save(stored, folder / "final.pth")
    original.weights = {name: tensor.float() for name, tensor in weights.items()}
    assert_same_logits(imported(folder, tmp_path), original, foreign_tokenizer(SHUFFLED, WORDS))


def test_a_hub_folder_with_the_decoder_alone(tmp_path):
    """config.json with ``arch``; of the two tied matrices only the decoder's was kept."""
    original = Original(False, VOCAB)
    weights = dict(original.weights)
    del weights["encoder.embedding.word_embedding.weight"]
    folder = write(tmp_path / "theirs", original, weights)
    (folder / "model_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "crammedBERT", "arch": original.config()}))
    assert_same_logits(imported(folder, tmp_path), original, foreign_tokenizer(SHUFFLED, WORDS))


def test_the_run_says_what_it_is(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = imported(write(tmp_path / "theirs", Original(True, VOCAB)), tmp_path)
    summary = run.summary
    assert summary["imported"] == str((tmp_path / "theirs").resolve()) and summary["tokens"] is None
    assert [rule["kept"] for rule in summary["rules"]] == [False, False, None, None, None]
    assert all(str(tmp_path / "theirs") in rule["why"] for rule in summary["rules"][:2])
    assert report(["--run", "taken", "--out", str(tmp_path / "runs")]) == 0
    page = (run.path / "report" / "report.html").read_text()
    assert "eights imported from" in page and "None" not in page
    assert evaluate(["--run", "taken", "--out", str(tmp_path / "runs"), "--suite", "mlm"]) == 1
    assert "does not say where the prepared data is" in capsys.readouterr().err


def test_an_existing_run_is_kept(tmp_path, capsys):
    folder = write(tmp_path / "theirs", Original(True, VOCAB))
    imported(folder, tmp_path)
    assert call(folder, tmp_path) == 2 and "exists already" in capsys.readouterr().err
    assert call(folder, tmp_path, "a/b") == 2 and "--to a/b" in capsys.readouterr().err


CHANGES = [
    ({"norm": "RMSNorm"}, "norm is RMSNorm"),
    ({"nonlin": "ReLU"}, "nonlin is ReLU; the architectures here have GELU or GELUglu"),
    ({"architectures": ["ScriptableFunnelLM"]}, "architectures is"),
    ({"num_transformer_layers": 3}, "encoder.blocks.2.attention_out.weight is missing"),
    ({"num_transformer_layers": 1}, "encoder.blocks.1.attention_out.weight is more than"),
    ({"intermed_size": 38}, "its configuration says [38, 24]"),
    ({"hidden_size": 23}, "embedding_dim is 24"),
    ({"norm_eps": None}, "model_config.json: "),
    ({"attention": {"rotary_embedding": True}}, "rotary_embedding is True"),
    ({"attention": {"type": "fourier"}}, "type is fourier"),
    ({"attention": {"num_attention_heads": 5}}, "heads = 5"),
    ({"attention": {"qkv_bias": True}}, "qkv_bias is True"),
    ({"embedding": {"pos_embedding": "rotary"}}, "pos_embedding is rotary"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_other_architectures_are_refused(change, words, tmp_path, capsys):
    original = Original(True, VOCAB)
    config = original.config()
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    assert call(write(tmp_path / "theirs", original, config=config), tmp_path) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and words in error[0]
    assert not (tmp_path / "runs").exists()


def test_bad_folders(tmp_path, capsys):
    original = Original(True, VOCAB)

    def refused(status, words):
        assert call(folder, tmp_path) == status
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and words in error[0], error
        assert not (tmp_path / "runs").exists()

    folder = tmp_path / "nowhere"
    refused(2, "no such folder")
    folder.mkdir()
    refused(2, "no config.json or model_config.json")
    write(folder, original)
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    refused(1, "the file is damaged")
    (folder / "model.safetensors").unlink()
    refused(2, "(there: none)")
    torch.save({"w": torch.zeros(2), "f": print}, folder / "a.pth")
    refused(1, "could run code")
    (folder / "a.pth").write_bytes(b"PK")
    refused(1, "a.pth: ")
    torch.save([torch.zeros(2)], folder / "a.pth")
    refused(1, "want a dictionary of tensors")
    torch.save({}, folder / "b.pth")
    refused(2, "(there: a.pth, b.pth)")
    write(folder, original, {**original.weights, "decoder.weight": torch.zeros(VOCAB, 24)})
    refused(2, "only models with a tied decoder")
    write(folder, original, {**original.weights, "encoder.adapter.weight": torch.zeros(2)})
    refused(2, "encoder.adapter.weight has no place")
    write(folder, original)
    foreign_tokenizer(SHUFFLED, WORDS[:-1]).save(str(folder / "tokenizer.json"))
    refused(2, f"the embedding has {VOCAB} rows, the tokenizer {VOCAB - 1} tokens")
    (folder / "tokenizer.json").unlink()
    refused(2, "no tokenizer.json and no vocab.txt")
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")
    refused(1, "not UTF-8")
    (folder / "model_config.json").write_text("[]")
    refused(2, "want a JSON object")
    (folder / "model_config.json").write_text(json.dumps({**original.config(), "embedding": "learned"}))
    refused(2, "model_config.json: ")
    (folder / "model_config.json").write_text('{"model_type": "gpt2"}')
    refused(2, "the model type is gpt2")
