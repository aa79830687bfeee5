"""Exports are loaded by transformers, and foreign BERTs by us: equal logits, equal ids, equal predictions."""

import json
import sys

import pytest
import tokenizers
import torch

from cramming_train import export, import_checkpoint, load
from cramming_train.data.special_tokens import SPECIAL_TOKENS
from cramming_train.evaluation.subject import TextPipeline
from cramming_train.exchange import bert, modernbert
from cramming_train.runs import Run
from tests.exchange.helpers import TEXT, VOCAB, make_run, our_logits, small_tokenizer
from tests.model.cases import small

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

STOCK = {
    "cram": (small("cram"), "ModernBertForMaskedLM"),
    "cram-second-gate": (
        small("cram", gate="second", linear_bias=True, norm_eps=1e-3, rope_base=500.0, decoder_bias=False),
        "ModernBertForMaskedLM",
    ),
    "cram-no windows": (small("cram", window=None, global_every=None), "ModernBertForMaskedLM"),
    "cram-windows but in every second": (small("cram", window=2, global_every=2), "ModernBertForMaskedLM"),
    "cram-windows but in the first": (small("cram", window=1, global_every=3), "ModernBertForMaskedLM"),
    "cram-documents": (small("cram", document_attention=True), "ModernBertForMaskedLM"),
    "bert-tiny": (small("bert-tiny"), "BertForMaskedLM"),
    "bert-base": (small("bert-base", norm_eps=1e-3), "BertForMaskedLM"),
}
OTHERS = {
    "crammed-bert": small("crammed-bert"),
    "crammed-bert-simple": small("crammed-bert-simple", window=3),
    "bert-large-izsak": small("bert-large-izsak"),
    "cram-window": small("cram", window=2, global_every=None),
    "crammed-windows but in every second": small("crammed-bert", window=2, global_every=2),
    "bert-window": small("bert-tiny", window=0),
    "bert-sinusoids": small("bert-tiny", positions="scaled-sinusoidal", ffn="geglu", final_norm=True),
}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Code that travels with weights is copied to a cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def exported(run, folder, *options):
    assert export.main(["--run", str(run.path), "--to", str(folder), *options]) == 0
    return folder


def assert_same_logits(run, loaded):
    """Rows of several lengths, alone and padded together."""
    model = run.load_model()
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, VOCAB, (length,), generator=generator) for length in (16, 1, 9, 4)]
    ids_BS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BS = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        padded = loaded(input_ids=ids_BS, attention_mask=mask_BS).logits
        for number, row in enumerate(rows):
            ours = our_logits(model, row)
            assert ours.std() > 0.3
            alone = loaded(input_ids=row[None]).logits[0]
            torch.testing.assert_close(alone, ours, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(padded[number, : len(row)], ours, atol=1e-5, rtol=1e-5)
        # without roundings, but for those of angles that transformers keeps in fp32
        model, loaded = model.double(), loaded.double()
        for row in rows:
            alone = loaded(input_ids=row[None]).logits[0].double()
            torch.testing.assert_close(alone, our_logits(model, row), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", STOCK)
def test_stock_classes(name, tokenizer, tmp_path):
    """And the way back gives the same weights."""
    architecture, stock_class = STOCK[name]
    run = make_run(tmp_path / "run", architecture, tokenizer)
    folder = exported(run, tmp_path / "export")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert type(loaded).__name__ == stock_class and loaded.dtype == torch.float32
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert_same_logits(run, loaded)
    assert import_checkpoint.main(["--from", str(folder), "--to", "back", "--out", str(tmp_path)]) == 0
    back, before = Run(tmp_path / "back").load_model().state_dict(), run.load_model().state_dict()
    if architecture.gate == "second" and architecture.ffn == "geglu":  # the halves have changed places
        for tensors in (back, before):
            for key in [key for key in tensors if "ffn_in" in key]:
                tensors[key] = tensors[key].sort(dim=0).values
    assert before.keys() == back.keys() and all(before[key].equal(back[key]) for key in before)
    assert Run(tmp_path / "back").tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", OTHERS)
def test_custom_code(name, tokenizer, tmp_path, capsys):
    run = make_run(tmp_path / "run", OTHERS[name], tokenizer)
    folder = tmp_path / "export"
    assert export.main(["--run", str(run.path), "--to", str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "no stock class" in error[0] and "--custom-code" in error[0]
    assert not folder.exists()
    exported(run, folder, "--custom-code")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(loaded).__name__ == "CramForMaskedLM" and type(loaded).__module__.startswith("transformers_modules.")
    assert_same_logits(run, loaded)
    with pytest.raises(ValueError, match="rows of 17 tokens"):
        loaded(input_ids=torch.zeros(1, 17, dtype=torch.int64))
    assert import_checkpoint.main(["--from", str(folder), "--to", "back", "--out", str(tmp_path)]) == 0
    back, before = Run(tmp_path / "back").load_model().state_dict(), run.load_model().state_dict()
    assert before.keys() == back.keys() and all(before[key].equal(back[key]) for key in before)


def test_the_loss_of_custom_code(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", OTHERS["crammed-bert"], tokenizer)
    folder = exported(run, tmp_path / "export", "--custom-code")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids, labels = torch.tensor([[4, 9, 6, 11, 5]]), torch.tensor([[-100, -100, 23, 11, -100]])
    expected = torch.nn.functional.cross_entropy(our_logits(run.load_model(), ids[0])[2:4], labels[0, 2:4])
    torch.testing.assert_close(loaded(input_ids=ids, labels=labels).loss, expected)


TEXTS = [
    "The Quick  BROWN fox", "Crème Brûlée — “Paris”…", "東京 jumps\u2003over\u00a0it", "a\x00b\x1bc\x7f\tdog\n",
    "ΟΔΟΣ İstanbul", "ﬁne", "", "  ", "e\u0301\u0328 `quoted´ ½", "zzz!?(1-2)", "<not a token> < mask >", "x" * 120,
]  # fmt: skip


@pytest.mark.parametrize("clean", ["ascii", "unicode"])
def test_the_tokenizer(clean, tmp_path):
    """The same ids as our text pipeline gives; a pair as fine-tuning frames it."""
    run = make_run(tmp_path / "run", small("cram"), small_tokenizer(clean), clean)
    stock = transformers.AutoTokenizer.from_pretrained(exported(run, tmp_path / "export"))
    pipeline = TextPipeline(clean, run.tokenizer())

    def ours(text):
        return pipeline.tokenizer.encode(pipeline.clean(text), add_special_tokens=False).ids

    for text in TEXTS:
        assert stock(text).input_ids == [4, *ours(text), 5], text
    assert stock("brown fox", "lazy dog").input_ids == [4, *ours("brown fox"), 5, *ours("lazy dog"), 5]
    assert set(stock("fox")) == {"input_ids", "attention_mask"}
    assert stock(["fox", "the lazy dog"], padding=True).input_ids[0][-1] == 0 and stock.padding_side == "right"
    assert stock(TEXT, truncation=True).input_ids == [4, *ours(TEXT)[:14], 5] and stock.model_max_length == 16
    tokens = [stock.pad_token, stock.bos_token, stock.eos_token, stock.unk_token, stock.cls_token, stock.sep_token]
    assert [*tokens, stock.mask_token] == list(SPECIAL_TOKENS)


def test_the_tokenizer_of_ready_made_rows(tmp_path):
    """It has a normaliser of its own, and text is cleaned before it: so it is in the export."""
    tokenizer = small_tokenizer()
    tokenizer.normalizer = tokenizers.normalizers.Replace("fox", "dog")
    run = make_run(tmp_path / "run", small("cram"), tokenizer)
    stock = transformers.AutoTokenizer.from_pretrained(exported(run, tmp_path / "export"))
    assert stock("The  FÓX").input_ids == [4, *tokenizer.encode("the dog", add_special_tokens=False).ids, 5]


@pytest.mark.parametrize("name", ["cram", "bert-tiny"])
def test_the_fill_mask_pipeline(name, tokenizer, tmp_path):
    run = make_run(tmp_path / "run", STOCK[name][0], tokenizer)
    folder = exported(run, tmp_path / "export")
    pipeline = transformers.pipeline("fill-mask", model=str(folder), tokenizer=str(folder))
    text = "The <mask> BROWN <mask> jumps"
    ours, theirs = load(run.path).fill(text, top=4), pipeline(text, top_k=4)
    assert len(ours) == len(theirs) == 2
    for own, other in zip(ours, theirs, strict=True):
        assert [prediction.id for prediction in own] == [prediction["token"] for prediction in other]
        assert [p.probability for p in own] == pytest.approx([prediction["score"] for prediction in other], rel=1e-4)


def plant(kind, monkeypatch, change):
    """The format's export with a mistake."""
    whole = kind.exported

    def exported(architecture, weights):
        result = whole(architecture, weights)
        change(result)
        return result

    monkeypatch.setattr(kind, "exported", exported)


def test_a_wrong_export_is_not_kept(tokenizer, tmp_path, monkeypatch, capsys):
    target = tmp_path / "export"
    run = make_run(tmp_path / "run", STOCK["cram"][0], tokenizer)
    with monkeypatch.context() as patch:
        plant(modernbert, patch, lambda r: r.update({"head.norm.bias": r["head.norm.bias"] * 1.01}))
        assert export.main(["--run", str(run.path), "--to", str(target)]) == 1
    assert "failed its proof and was not kept: logits differ" in capsys.readouterr().err
    run = make_run(tmp_path / "other", STOCK["bert-tiny"][0], tokenizer)
    with monkeypatch.context() as patch:
        plant(bert, patch, lambda result: result.pop("cls.predictions.bias"))
        assert export.main(["--run", str(run.path), "--to", str(target)]) == 1
    assert "cls.predictions" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other"}


def test_one_line_for_what_cannot_be_done(tokenizer, tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", STOCK["cram"][0], tokenizer)

    def refused(*arguments):
        assert export.main(["--out", str(tmp_path), *map(str, arguments)]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and error[0].startswith("error: ")
        return error[0]

    assert "no run named 'nobody'" in refused("--run", "nobody", "--to", tmp_path / "new")
    assert "not an empty folder" in refused("--run", run.path, "--to", run.path)
    assert "not an empty folder" in refused("--run", run.path, "--to", run.path / "recipe.json")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'cramkernels[hf]'" in refused("--run", run.path, "--to", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- foreign models


def foreign_bert(folder, lower=True, **changes):
    """A stock BERT with random weights, saved by transformers, and its vocabulary as vocab.txt."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the", "fox", "##es", "crème", "creme"]
    words += ["!", *(f"w{number}" for number in range(60))]
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 34}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **{**sizes, **changes})
    torch.manual_seed(11)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if "LayerNorm.weight" not in name else 0.0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    return model, words


def assert_same_as_bert(run, model, words):
    ours, tokenizer = run.load_model(), run.tokenizer()
    names = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<cls>", "[SEP]": "<sep>", "[MASK]": "<mask>"}
    to_ours = torch.tensor([tokenizer.token_to_id(names.get(word, word)) for word in words])
    for length in (16, 5):
        row = torch.randint(0, len(words), (length,), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(input_ids=row[None]).logits[0]
        logits = our_logits(ours, to_ours[row])
        torch.testing.assert_close(logits[:, to_ours], expected, atol=1e-5, rtol=1e-5)
        unknown = torch.tensor([tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")])
        assert logits.softmax(-1)[:, unknown].max() == 0
        assert logits.shape[1] == len(words) + 2


@pytest.mark.parametrize("files", ["as saved", "first names", "tokenizer.json"])
def test_a_foreign_bert(files, tmp_path):
    model, words = foreign_bert(tmp_path / "theirs")
    folder = tmp_path / "theirs"
    if files == "first names":  # of 2018: gamma and beta, and the heads of the next-sentence task
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights.items()
        }
        weights |= {"cls.seq_relationship.bias": torch.zeros(2), "bert.pooler.dense.bias": torch.zeros(24)}
        save_file(weights, folder / "model.safetensors")
    if files == "tokenizer.json":
        transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
        (folder / "vocab.txt").unlink(missing_ok=True)
        assert (folder / "tokenizer.json").is_file()
    assert import_checkpoint.main(["--from", str(folder), "--to", "taken", "--out", str(tmp_path)]) == 0
    run = Run(tmp_path / "taken")
    assert_same_as_bert(run, model, words)
    pipeline = TextPipeline(run.recipe.data.clean, run.tokenizer())
    assert pipeline.tokenizer.encode(pipeline.clean("The FOXES! <s> Crème"), add_special_tokens=False).tokens == [
        "the", "fox", "##es", "!", "<unk>", "<unk>", "<unk>", "creme",
    ]  # fmt: skip
    again = transformers.AutoTokenizer.from_pretrained(exported(run, tmp_path / "again"))  # proves its logits itself
    assert again("The FOXES!").input_ids == [
        4,
        *pipeline.tokenizer.encode("the foxes!", add_special_tokens=False).ids,
        5,
    ]


def test_a_cased_bert_keeps_its_case(tmp_path):
    model, words = foreign_bert(tmp_path / "theirs", lower=False)
    assert import_checkpoint.main(["--from", str(tmp_path / "theirs"), "--to", "taken", "--out", str(tmp_path)]) == 0
    run = Run(tmp_path / "taken")
    assert_same_as_bert(run, model, words)
    pipeline = TextPipeline(run.recipe.data.clean, run.tokenizer())
    tokens = pipeline.tokenizer.encode(pipeline.clean("The the crème"), add_special_tokens=False).tokens
    assert tokens == ["The", "the", "crème"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_act": "relu"}, "hidden_act is relu"), ({"tie_word_embeddings": False}, "tie_word_embeddings is False")],
)
def test_other_berts_are_refused(change, words, tmp_path, capsys):
    foreign_bert(tmp_path / "theirs", **change)
    assert import_checkpoint.main(["--from", str(tmp_path / "theirs"), "--to", "taken", "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [({"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "layer_types is"),
     ({"layer_types": ["full_attention", "sliding_attention", "full_attention"],
       "rope_parameters": {"sliding_attention": {"rope_theta": 7.0}}}, "rope_theta_of_windows is 7.0"),
     ({"norm_bias": False}, "norm_bias is False"), ({"mlp_bias": True}, "mlp_bias is True")],
)  # fmt: skip
def test_other_modernberts_are_refused(change, words, tokenizer, tmp_path, capsys):
    folder = exported(make_run(tmp_path / "run", STOCK["cram"][0], tokenizer), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert import_checkpoint.main(["--from", str(folder), "--to", "taken", "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
