"""The table of launch configurations: every row compiles for its part and fits it, and others give the same results."""

import itertools
import re

import pytest
import torch

from benchmarks import tilings
from cramkernels import configurations, tune, tuned
from cramkernels.configurations import (
    BACKWARD,
    FORWARD,
    MASKED,
    MID_BACKWARD,
    PLAIN,
    ROWS,
    SHARED_BYTES,
    Key,
    candidates,
    kernel_of,
)
from tests.cramkernels.cases import BF16, AttentionCase
from tests.cramkernels.compare import assert_error_rule, exact, ours, plain
from tests.simulation.cuda import SIMULATOR
from tests.simulation.triton import compiled_only, simulated, taken

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(not SIMULATOR.is_dir(), reason="ptxsim: no ../shared/tools/ptxsim beside the checkout")
TRAINING = [(Key(kernel, 16, 64, 128), part) for kernel in (FORWARD, BACKWARD) for part in (86, 120)]
OTHERS = [
    (Key(FORWARD, 32, 128, 0), 86),
    (Key(BACKWARD, 16, 128, 0), 86),
    (Key(MID_BACKWARD + PLAIN, 16, 64, 0), 80),
    (Key(FORWARD + PLAIN, 16, 64, 0), 80),
]

OPTIONS = tuple(itertools.product((False, True), repeat=3))  # rotation, mask of keys, dropout


def and_the_rest(first):
    """These rows by default, all others of kernels in Triton where asked for."""
    rest = [row for row in ROWS if tilings.is_triton(row[0]) and row not in first]
    return [*first, *(pytest.param(*row, marks=pytest.mark.exhaustive) for row in rest)]


every_row = and_the_rest([*TRAINING, *OTHERS])


@pytest.mark.parametrize("key, part", every_row, ids=str)
def test_every_row_compiles_and_fits(key, part):
    tiling = ROWS[key, part]
    with compiled_only(part) as kernels:
        tilings.call_of(key)()
    kernel = kernels[-1]
    ptx = kernel.asm["ptx"]
    assert f".target sm_{part}" in ptx
    assert re.search(r"\b(wgmma|mma)\.", ptx), "no tensor cores"
    assert kernel.metadata.num_warps == tiling.warps and kernel.metadata.shared <= SHARED_BYTES[part]
    facts = tilings.measure(key, tiling, part)
    assert facts["warps"] >= tiling.warps, "not one program fits"
    assert facts["spilled"] == 0


@pytest.mark.parametrize(
    "key, part",
    [
        pytest.param(key, part, marks=() if (key, part) == (Key(BACKWARD, 16, 64, 128), 80) else pytest.mark.exhaustive)
        for key, part in ROWS
        if tilings.is_triton(key) and kernel_of(key) == key.kernel
    ],
    ids=str,
)
def test_no_call_spills(key, part):
    """Whatever its options: the compiler makes other code for each of them."""
    spilled = {}
    for rotated, masked, dropped in OPTIONS:
        with compiled_only(part) as kernels:
            tune.call(key, torch.device("cpu"), tilings.TOKENS, rotated, masked, dropped)()
        spilled[rotated, masked, dropped] = taken(kernels[-1], part)[1]
    assert not any(spilled.values()), spilled


@pytest.mark.parametrize("key, lengths", [
    (Key(FORWARD, 16, 64, 0), (150, 28)),
    pytest.param(Key(FORWARD + PLAIN, 16, 64, 0), (150, 28), marks=pytest.mark.exhaustive),
    (Key(BACKWARD + PLAIN, 16, 64, 128), (100, 28, 0, 3)),
    pytest.param(Key(BACKWARD, 16, 64, 128), (100, 28, 0, 3), marks=pytest.mark.exhaustive),
    pytest.param(Key(FORWARD, 16, 64, 128), (100, 28, 0, 3), marks=pytest.mark.exhaustive),
    pytest.param(Key(MID_BACKWARD, 16, 64, 0), (150, 28), marks=pytest.mark.exhaustive),
    pytest.param(Key(MID_BACKWARD + PLAIN, 16, 64, 0), (150, 28), marks=pytest.mark.exhaustive),
    pytest.param(Key(BACKWARD, 16, 64, 0), (520, 28), marks=pytest.mark.exhaustive),
], ids=str)  # fmt: skip
def test_launchers_take_another_configuration(key, lengths):
    """Other tiles, other programs, and right results."""
    kernel = kernel_of(key)
    rope = not key.kernel.endswith(PLAIN)
    dropped = rope and configurations.key_for(kernel, *key[1:], MASKED) == key  # the same row serves these calls
    options = (("window", 40), *((("dropout_p", 0.2), ("seed", 5)) if dropped else ()))
    case = AttentionCase("attention", BF16, lengths=lengths, heads=1, head_dim=64, rope=rope, options=options)
    arguments = case.arguments()
    expected = plain(case, arguments), exact(case, arguments)
    own = ROWS[key, 80]
    chosen = next(
        other for other in candidates(key, 80) if other.warps != own.warps and (other.tile != own.tile or own.whole)
    )
    with simulated(80) as executed, configurations.override(key, chosen):
        results = ours(case, arguments)
    name = {FORWARD: "forward", BACKWARD: "backward", MID_BACKWARD: "backward_mid"}[kernel]
    (stats,) = [result.stats for symbol, result in executed if f"_{name}_kernel" in symbol]
    assert stats.threads_per_cta == 32 * chosen.warps != 32 * own.warps
    assert_error_rule(results, *expected, case.dtype)


@pytest.mark.parametrize("count", [4, pytest.param(None, marks=pytest.mark.exhaustive)], ids=["some", "all"])
def test_the_tuner_launches_what_it_times(count, tmp_path, monkeypatch, capsys):
    """With a count of instructions for a clock: the choice is the least of them, and the file has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "ROUNDS", 1)
    key = Key(FORWARD, 16, 32, 64)
    some = candidates(key, 80)[:count]
    monkeypatch.setattr(configurations, "candidates", lambda *_: some)
    card = tuned.Card("simulated", 80, "1")
    counted = {}

    def clock(call):
        with simulated(80, check="none") as executed:
            call()
        tiling = next(iter(configurations._overrides.values()))
        counted[tiling] = executed[-1][1].stats.total_warp_instructions
        return counted[tiling]

    with simulated(80, check="none"):
        choices = tune.tune(card, torch.device("cpu"), 80, clock, [key], tokens=130)
    assert set(counted) == set(some)
    assert choices[key] == min(counted, key=counted.__getitem__) or counted[choices[key]] == counted[ROWS[key, 80]]
    assert tuned.load(card) == choices
    assert capsys.readouterr().out.startswith("1 of 1: triton.attention_forward, 16 bits, head dim 32, up to 64 tokens")
