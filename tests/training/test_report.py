"""The report: one page that a browser shows as it should, with nothing from elsewhere; its words are the run's."""

import base64
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from cramming_train import pictures, report
from cramming_train.page import sentence
from tests.training.browser import examine, screenshot
from tests.training.run_folder import add_scores, make_run

plt = pytest.importorskip("matplotlib.pyplot")
pytest.importorskip("jinja2")

TITLES = ["Loss", "Schedule", "Throughput", "Gradient norm"]
GLUE = dict(cola=0.443, sst2=0.921, mrpc=0.876, qqp=0.871, stsb=0.847, mnli=0.838, mnli_mm=0.841, qnli=0.895, rte=0.54)


class Document(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def images(self):
        shown = [attrs for tag, attrs in self.tags if tag == "img" and attrs["class"] == "light"]
        return [(attrs["alt"].split(":")[0], attrs["src"]) for attrs in shown]


def read(run):
    return Document(report.write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a run with everything that a page can show."""
    run = make_run(tmp_path_factory.mktemp("runs") / "a-run", steps=2000, validations=10, seconds=86390)
    add_scores(run, mean=0.786, **{task: (score, True) for task, score in GLUE.items()})
    return report.write_report(run)


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def opened(request, whole):
    """What a browser finds in it, phone and desktop, on a light and on a dark system."""
    return request.param, examine(whole, (400, 1200), dark=request.param)


def test_every_picture_is_rendered(opened):
    for width, found in opened[1].items():
        assert [alt.split(":")[0] for alt, *_ in found["images"]] == ["GLUE", *TITLES]
        for alt, complete, natural, shown in found["images"]:
            assert complete and natural > 0 and min(width - 40, 600) <= shown <= width, (width, alt)


def test_nothing_is_wider_than_the_window(opened):
    for width, found in opened[1].items():
        assert found["overflowing"] == [] and found["scroll_width"] == width


def test_nothing_is_asked_of_the_network(opened):
    for found in opened[1].values():
        assert found["requests"] == []


def test_colours_follow_the_system(opened):
    dark, found = opened
    background, ink = (sum(map(int, re.findall(r"\d+", found[1200][key]))) for key in ("background", "ink"))
    assert (background < 120 and ink > 500) if dark else (background == 765 and ink < 150)
    assert found[1200]["kinds"] == ["dark" if dark else "light"] * 5


def test_the_curves_are_on_the_screen(whole, tmp_path):
    """In the colours of their theme, and not in the other's."""
    for dark, theme, other in ((False, pictures.LIGHT, pictures.DARK), (True, pictures.DARK, pictures.LIGHT)):
        image = plt.imread(screenshot(whole, tmp_path / "page.png", 900, 3200, dark=dark))[..., :3] * 255
        for color in (theme.ours, theme.accent):
            assert pixels(image, color) > 200, color
        assert pixels(image, other.accent) == 0


def pixels(image, color):
    """How many pixels have very nearly this colour."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(image - rgb).max(axis=2) <= 4).sum())


def test_one_file_with_nothing_from_elsewhere(whole):
    document = Document(whole.read_text(encoding="utf-8"))
    assert sorted(path.name for path in whole.parent.iterdir()) == ["README.md", "report.html"]
    links = [attrs[key] for _, attrs in document.tags for key in ("src", "srcset", "href") if key in attrs]
    assert len(links) == 10 and all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in document.tags}
    style = whole.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert (
        style.count("prefers-color-scheme: dark") == style.count("@media screen and (prefers-color-scheme: dark)") == 2
    )
    assert "url(" not in style and "@import" not in style and "@media print" in style
    policy = next(attrs["content"] for _, attrs in document.tags if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert whole.stat().st_size < 1_500_000


def test_the_page_says_what_the_run_says(tmp_path):
    text = read(make_run(tmp_path / "a-run", steps=0, validations=0)).text
    for words in (
        "a-run", "crammed-bert-mini, 11.0 M parameters, pretrained from scratch in 1:30 on a machine", "5.679",
        "unigram model 7.500", "12.3 %", "1.23 M", "2.50 epochs", "13.8 k/s", "MFU 43.2 %", "mind the rows",
        "1. kept", "3. open", "5. open", "Random initialisation, seed 5.", "books", "98,765", "f1e2d3",
        "kernels: triton geglu", '"peak_lr": 0.001',
    ):  # fmt: skip
        assert words in text, words


def test_text_is_text(tmp_path):
    """A name or a source with HTML in it is shown, not obeyed."""
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    summary = run.summary
    summary["data"].update(source="<script>alert(1)</script>", notices=["a < b & c"])
    (run.path / "summary.json").write_text(json.dumps(summary))
    document = read(run)
    assert "<script>alert(1)</script>" in document.text and "a < b & c" in document.text
    assert not [tag for tag, _ in document.tags if tag == "script"]


def test_broken_rules_are_named(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    summary = run.summary
    summary["rules"][3].update(kept=False, why="2 processes on a machine")
    (run.path / "summary.json").write_text(json.dumps(summary))
    assert "4. broken One GPU, 24 hours. 2 processes on a machine." in read(run).text


def test_a_run_that_has_not_ended(tmp_path):
    run = make_run(tmp_path / "going", summary=False)
    document = read(run)
    assert "The run has not ended." in document.text and [title for title, _ in document.images()] == TITLES
    assert [path.name for path in (run.path / "report").iterdir()] == ["report.html"]
    empty = read(make_run(tmp_path / "empty", steps=0, validations=0, summary=False))
    assert "The run has not ended." in empty.text and empty.images() == []


def test_a_run_of_one_step(tmp_path):
    assert [title for title, _ in read(make_run(tmp_path / "one", steps=1, validations=1)).images()] == TITLES


def test_little_is_known_of_imported_weights(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    summary = {
        "name": "a-run", "recipe": "imported", "imported": "/models/bert", "parameters": 110, "train_loss": None,
        "data": {"source": "not known", "source_kind": "imported", "fingerprint": None, "rows": 0, "notices": ["far"],
                 "unigram_loss": None},
        "rules": [{"rule": "one", "kept": False, "why": "imported"}], "finished": "2030-01-01",
    }  # fmt: skip
    (run.path / "summary.json").write_text(json.dumps(summary))
    text = read(run).text
    assert "from /models/bert" in text and "1. broken One." in text and "None" not in text


def test_steps_gone_back_behind_are_left_out(tmp_path, monkeypatch):
    """After a resume from step 10, steps 11 to 40 are as if they had not been."""
    drawn = []
    for name in ("loss", "schedule", "throughput", "gradient"):
        stand_in = pictures.Picture(name, name, "data:light", "data:dark")
        monkeypatch.setattr(pictures, f"{name}_picture", lambda steps, *_, s=stand_in: drawn.append(len(steps)) or s)
    run = make_run(tmp_path / "a-run", steps=40)
    assert "What happened" not in read(run).text and drawn == [40] * 4
    with open(run.log, "a") as file:
        file.write(json.dumps({"event": "resume", "elapsed": 90, "step": 10}) + "\n")
    assert "after 1:30 Resume at step 10." in read(run).text and drawn[4:] == [10] * 4


def test_incomplete_scores_are_marked(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    add_scores(run, cola=(0.123, True), rte=(0.561, False))
    document = read(run)
    assert "CoLA acc 12.3 11.3–14.3 56.5 44.5 0.0" in document.text
    assert "RTE acc 56.1* 55.1–58.1 59.2 53.8 47.3" in document.text
    assert "* Incomplete data, not comparable" in document.text and "Missing: MNLI-m" not in document.text
    assert "Missing: SST-2, MRPC, QQP, STS-B, MNLI-m, MNLI-mm, QNLI." in document.text
    assert "Mean of the nine values: none" in document.text
    whole = make_run(tmp_path / "b-run", steps=0, validations=0)
    add_scores(whole, cola=(0.123, True), rte=(0.561, True))
    assert dict(document.images())["GLUE"] != dict(read(whole).images())["GLUE"]  # an open circle


def test_complete_scores_have_a_mean(whole):
    text = Document(whole.read_text(encoding="utf-8")).text
    assert "GLUE mean 78.6" in text and "mean 78.6 80.9 78.6 45.5" in text
    assert "ncomplete" not in text and "Missing" not in text


def test_scores_that_no_headline_has(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    add_scores(run, wnli=(0.5, True))
    document = read(run)
    assert "WNLI acc 50.0 49.0–52.0 – – –" in document.text and document.images() == []


def test_the_same_run_twice_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    add_scores(run, rte=(0.5, True))
    first = report.write_report(run).read_bytes()
    assert report.write_report(run).read_bytes() == first
    assert not plt.get_fignums()  # nothing is left open


def test_long_curves_keep_their_spikes():
    x = np.arange(86_400.0)
    y = np.random.default_rng(0).normal(size=len(x))
    y[[5, 40_000]] = 50, -50
    thin_x, thin_y = pictures._thinned(x, y)
    assert len(thin_x) == len(thin_y) <= pictures.MOST_POINTS
    assert {50, -50} <= set(thin_y) and (np.diff(thin_x) >= 0).all() and (y[thin_x.astype(int)] == thin_y).all()


def test_hours_minutes_and_tokens(tmp_path):
    """Units that fit, and losses that are not finite left out."""
    steps = [
        {"elapsed": 36_000.0, "tokens": 2_500_000, "loss": None},
        {"elapsed": 72_000.0, "tokens": 5e6, "loss": 2.0},
    ]
    hours, tokens = pictures._Hours(steps), pictures._Tokens(steps)
    assert hours(steps).tolist() == [10, 20] and "hours" in hours.label
    assert tokens(steps).tolist() == [2.5, 5] and "(M)" in tokens.label
    assert "minutes" in pictures._Hours([{"elapsed": 60.0}]).label
    drawn = pictures.loss_picture(steps, [], None)
    assert b"<svg" in base64.b64decode(drawn.light.split(",")[1])


def test_sentences():
    assert sentence("a b") == "A b." and sentence("A b!") == "A b!"


def test_as_a_command(tmp_path, capsys):
    run = make_run(tmp_path / "a-run", steps=0, validations=0)
    assert report.main(["--out", str(tmp_path), "--run", "a-run"]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "report" / "report.html")
    assert report.main(["--out", str(tmp_path), "--run", "b-run"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: no run named 'b-run'") and "\n" not in error


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_what_it_is_drawn_with(package, tmp_path, capsys, monkeypatch):
    """A notice, no report, no traceback; the command fails and says how to get it."""
    run = make_run(tmp_path / "a-run")
    monkeypatch.setitem(sys.modules, package, None)
    assert report.write_report(run) is None
    notice = capsys.readouterr().err
    assert f"{package} is not installed (pip install {package})" in notice and "\n" not in notice.strip()
    assert not (run.path / "report").exists()
    assert report.main(["--out", str(tmp_path)]) == 1
    assert f"pip install {package}" in capsys.readouterr().err


def test_damaged_scores_are_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "a-run")
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation" / "glue.json").write_text("{")
    assert report.main(["--out", str(tmp_path), "--run", "a-run"]) == 1
    error = capsys.readouterr().err.strip()
    assert "glue.json: not valid JSON" in error and "\n" not in error
