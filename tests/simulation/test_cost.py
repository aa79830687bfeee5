"""The counted cost of the row kernels at training shapes: what they move, and how many instructions that takes.

The smallest shape that keeps the ratios honest: rows of the real widths, and enough of them that a CTA of a real part,
82 multiprocessors, walks over several. Bank conflicts, which belong to a kernel's text, are counted on fewer rows.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks import cost, cost_peers
from benchmarks.cost_cases import CUDA, DIRECTIONS, LANGUAGES, Case
from benchmarks.cost_count import ACTIVATION, PARTIAL, STATISTIC

pytest.importorskip("triton", reason="triton is not installed")
TOKENS, SLACK, PARTIAL_BYTES = 4096, 1.02, 4 << 20
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
    """Per element, of the launches that see activations: Liger leaves the last sum to torch, uncounted."""
    launches = [stats for kernel, stats in counted(case, direction, language).launches if "reduce" not in kernel]
    return 32 * sum(stats.total_warp_instructions for stats in launches) / case.elements


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
def test_fewer_instructions_than_liger(case, direction, language):
    if not cost_peers.liger_installed():
        pytest.skip("liger-kernel is not installed")
    assert instructions(case, direction, language) < instructions(case, direction, cost_peers.LIGER)


def test_a_second_read_is_noticed():
    """The counts themselves: torch.compile's or any kernel's repeated request must show, here that of a parameter."""
    case = Case("layer_norm", TOKENS, 768)
    few, many = counted(case, "forward", CUDA), counted(replace(case, rows=2 * TOKENS), "forward", CUDA)
    assert few.of("parameter")[0].loaded == many.of("parameter")[0].loaded, "parameters are read once a CTA"
    assert 2 * few.of(ACTIVATION)[0].loaded == many.of(ACTIVATION)[0].loaded
