"""Medians, spreads, and the time to the first contender's loss, from cells made by hand."""

import pytest

from cramming_train.study.pictures import draw
from cramming_train.study.table import crossing, make_rows, markdown


def cell(label, seed, loss, seconds, curve=None, held_out="rows", **changes):
    return {
        "label": label, "seed": seed, "loss": loss, "accuracy": 0.2, "bits_per_character": loss / 3, "tokens": 1000,
        "step_seconds": seconds, "processor_seconds": 2 * seconds, "held_out": held_out, "budget_tokens": 1000,
        "budget_hours": None, "curve": curve or [[500, seconds / 2, seconds, 8.0], [1000, seconds, 2 * seconds, loss]],
        **changes,
    }  # fmt: skip


CELLS = [
    cell("slow", 0, 6.0, 100), cell("slow", 1, 6.2, 110), cell("slow", 2, 6.1, 90),
    cell("fast", 0, 5.6, 50), cell("fast", 1, 5.5, 60),
]  # fmt: skip


def test_medians_and_spread():
    slow, fast = make_rows(["slow", "fast", "not there"], CELLS, "wall")
    assert (slow.label, slow.seeds, slow.loss, slow.seconds) == ("slow", 3, 6.1, 100)
    assert slow.spread == pytest.approx(0.2) and fast.spread == pytest.approx(0.1)
    assert fast.loss == pytest.approx(5.55) and fast.tokens_per_second == pytest.approx((1000 / 50 + 1000 / 60) / 2)
    assert make_rows(["slow"], CELLS, "processor")[0].seconds == 200


def test_time_to_the_first_ones_loss():
    """6.1 lies on the line from (25, 8.0) to (50, 5.6): at 25 + 25 * 1.9 / 2.4; likewise for the other seed."""
    slow, fast = make_rows(["slow", "fast"], CELLS, "wall")
    first, second = 25 + 25 * 1.9 / 2.4, 30 + 30 * 1.9 / 2.5
    assert fast.seconds_to_first == pytest.approx((first + second) / 2)
    assert slow.seconds_to_first is None  # one of its own seeds ends above their median
    (_, twice) = make_rows(["slow", "fast"], CELLS, "processor")
    assert twice.seconds_to_first == pytest.approx(first + second)


@pytest.mark.parametrize(
    "losses, expected",
    [([8, 7, 6], 25), ([7, 6.5, 6.4], 20), ([9, 8, 7], None), ([6, 5, 4], 10), ([6.4, 8, 6], 10), ([8, 8, 6.5], 30)],
)
def test_crossing(losses, expected):
    target = 6.5
    curve = [[100 * i, 10 * i, 20 * i, loss] for i, loss in enumerate(losses, 1)]
    assert crossing(curve, 1, target) == (None if expected is None else pytest.approx(expected))


def test_other_rows_are_not_compared():
    rows = make_rows(["slow", "other"], [*CELLS, cell("other", 0, 5.0, 10, held_out="more")], "wall")
    assert rows[1].seconds_to_first is None and not rows[1].comparable
    assert "5.000 (other rows)" in markdown(rows)


def test_markdown_has_a_line_a_contender():
    lines = markdown(make_rows(["slow", "fast"], CELLS, "wall")).splitlines()
    assert len(lines) == 4 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert lines[2].startswith("| slow | 0.001 M | 3 | 6.100 | 0.200 |")
    assert make_rows(["slow"], [], "wall") == []


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    draw(tmp_path / "loss.png", ["slow", "fast"], CELLS, "wall")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
