"""The counted cost of the row kernels at training shapes: what they move, and how many instructions that takes.

Rows of the real widths, and enough of them that a warp of a real part, 82 multiprocessors, walks over several: more
would only spread what a CTA does once. Bank conflicts, which belong to a kernel's text, are counted on fewer rows.
"""

from functools import cache

import pytest
import torch

from benchmarks import cost, cost_cases, cost_count, cost_peers, cost_report, cost_targets
from benchmarks.cost_cases import CUDA, DIRECTIONS, LANGUAGES, TRITON, Case
from benchmarks.cost_count import ACTIVATION, PARTIAL, STATISTIC

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")
TOKENS, SLACK, PARTIAL_BYTES = 2 * 4 * 4 * 82, 1.02, 4 << 20
WIDTHS = (768, 1024)


def both_widths(op, scale=1, **options):
    return [Case(op, TOKENS, scale * width, **options) for width in WIDTHS]


NORMS = [
    *both_widths("layer_norm"),
    *both_widths("layer_norm", dtype=torch.float32),
    *both_widths("add_layer_norm"),
    *both_widths("add_layer_norm", dropout_p=0.1),
    *both_widths("layer_norm_gelu", approximate="tanh"),
    *both_widths("gelu_layer_norm", approximate="tanh", linear_bias=True),
]
GEGLUS = [
    *both_widths("geglu", 2, approximate="tanh"),
    *both_widths("geglu", 2, approximate="tanh", linear_bias=True),
]
CASES = [*NORMS, *GEGLUS]  # erf or tanh moves the same bytes: the table has both
COMPARED = [case for case in CASES if cost_peers.compared(case)]


def name(value):
    if not isinstance(value, Case):
        return value.replace(" ", "_")
    words = [value.op, str(value.width), str(value.dtype).removeprefix("torch."), value.variant.replace(", ", "_")]
    return "-".join(word.replace(" ", "_") for word in words if word)


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    if (missing := cost.obstacle()) is not None:
        pytest.skip(missing)


@cache
def counted(case, direction, language):
    return cost.Row(case, direction, language).counted()


def instructions(case, direction, language):
    """Machine instructions per element, of the launches that see activations: Liger leaves the last sum to torch.

    Of PTX those that become machine code: compilers differ in how many register moves they write, the assembler removes
    them all.
    """
    launches = [stats for kernel, stats in counted(case, direction, language).launches if "reduce" not in kernel]
    return 32 * sum(stats.pipe_cycles["issue"] for stats in launches) / case.elements


every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
every_language = pytest.mark.parametrize("language", LANGUAGES, ids=name)


@every_language
@every_direction
@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_byte_moves_once(case, direction, language):
    counts = counted(case, direction, language)
    compulsory = case.compulsory(direction)
    activations = counts.of(ACTIVATION)
    assert sum(tensor.footprint for tensor in activations) >= compulsory, "a tensor was not counted"
    for tensor in activations:
        assert tensor.ratio <= SLACK, f"{tensor.name} is requested {tensor.ratio:.3f} x"
    assert counts.footprint(ACTIVATION, STATISTIC) <= SLACK * compulsory
    assert sum(tensor.bytes for tensor in counts.of(PARTIAL)) <= PARTIAL_BYTES


@every_language
@every_direction
@pytest.mark.parametrize("case", [case for case in CASES if case.width in (768, 2 * 768)], ids=name)
def test_no_bank_conflicts_in_loops(case, direction, language):
    assert cost.Row(case, direction, language).loop_conflicts() == 0


@every_language
@every_direction
@pytest.mark.parametrize("case", COMPARED, ids=name)
def test_fewer_instructions_than_liger(case, direction, language, request):
    if not cost_peers.liger_installed():
        pytest.skip("liger-kernel is not installed")
    assert instructions(case, direction, language) < instructions(case, direction, cost_peers.LIGER)


@triton.jit
def _reads_twice(x_ptr, y_ptr, WIDTH: tl.constexpr):
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    back = tl.program_id(0) * WIDTH + WIDTH - 1 - tl.arange(0, WIDTH)
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(x_ptr + back))


def test_a_second_read_is_noticed():
    x, y = torch.ones(64, 128), torch.zeros(64, 128)

    def call():
        _reads_twice[(64,)](x, y, WIDTH=128)  # a thread an element: whole sectors
        return {"y": y}

    counts = cost_count.counted(cost_cases.simulation(TRITON), call, {"x": x}, 82)
    assert {tensor.name: tensor.ratio for tensor in counts.of(ACTIVATION)} == {"x": 2.0, "y": 1.0}
    assert counts.footprint(ACTIVATION) == x.nbytes + y.nbytes


def test_a_partial_sum_is_no_activation():
    counts = counted(CASES[0], "backward", CUDA)
    assert {tensor.name for tensor in counts.of(ACTIVATION)} == {"x", "grad", "dx"}
    assert counts.of(PARTIAL) and counts.of(STATISTIC)


def test_table():
    rows = [cost.Row(Case("geglu", 64, 256), "forward", language).measured() for language in (CUDA, cost_peers.LIGER)]
    table = cost_report.text(rows)
    lines = table.splitlines()
    assert "CUDA C++" in lines[1] and "1.000 x" in lines[1]
    assert "Liger" in lines[2] and rows[1]["absent"] in lines[2]
    assert cost_report.markdown(rows, "command", {"torch": "2"}).count("\n| geglu | erf |") == 2


def test_misses_are_named():
    row = cost.Row(Case("geglu", 64, 256), "forward", CUDA).measured()
    assert any("requested 2.0 x" in line for line in cost_targets.misses([row | {"worst_request_ratio": 2.0}]))


def test_without_the_simulator(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cost_count, "SIMULATOR", tmp_path / "absent")
    assert cost.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
