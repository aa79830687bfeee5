"""One more pass over memory in any kernel makes the guard of its counts fail.

Planted in the PTX that the simulator executes: every load (or store) of global memory is there twice. And in the counts
themselves, of one tensor at a time, and by torch beside the launches.
"""

import re
from contextlib import contextmanager

import pytest

from benchmarks import cost, guard
from benchmarks.cost_cases import CUDA, simulation
from benchmarks.guard import INSTRUCTIONS, Guarded, exceeded, guarded

pytest.importorskip("triton", reason="triton is not installed")
LOADS, STORES = r"ld\.global|cp\.async\.c", r"st\.global"
SIMPLE = Guarded("layer_norm", CUDA, "forward")
MULTIPLYING = ("attention short, CUDA C++, forward", "mlm_loss recompute, CUDA C++, forward")


def name(one):
    return str(one).replace(", ", "-").replace(" ", "_")


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    if (missing := cost.obstacle()) is not None:
        pytest.skip(missing)


def twice(ptx, which):
    """The text with these instructions doubled, but for a load that overwrites its own address."""
    instruction = re.compile(rf"^\s*(?:@!?%p\d+\s+)?(?:{which})[^;]*;", re.M)

    def doubled(found):
        text = found.group()
        target, _, address = text.partition("[")
        own = re.search(r"%rd\d+", address)
        overwritten = which == LOADS and own and re.search(rf"{own.group()}\b", target)
        return text if overwritten else f"{text}\n{text}"

    return instruction.sub(doubled, ptx)


@contextmanager
def planted(within, which):
    """A simulation, ``within``, of the kernels with an extra pass."""
    from ptxsim.module import Module, Program, lower_program, parse

    original, made = Module.program, {}

    def program(self, kernel):
        if (id(self), kernel) not in made:
            ast = parse(twice(self.ptx, which))
            made[id(self), kernel] = self, Program(ast, ast.functions[kernel], self._symbol)
            lower_program(made[id(self), kernel][1])
        return made[id(self), kernel][1]

    Module.program = program
    try:
        with within() as executed:
            yield executed
    finally:
        Module.program = original


def stands_for_others(one):
    """Triton's kernels are quick to run; of the CUDA ones, the simplest and one a family that multiplies."""
    return one.language != CUDA or str(one) in (str(SIMPLE), *MULTIPLYING)


EXTRA = [
    pytest.param(one, which, id=f"{name(one)}-{kind}", marks=[] if by_default(one) else pytest.mark.exhaustive)
    for which, kind, by_default in ((LOADS, "loads", stands_for_others), (STORES, "stores", SIMPLE.__eq__))
    for one in guarded()
]


@pytest.mark.parametrize("one, which", EXTRA)
def test_an_extra_pass_fails(one, which):
    counts = one.counts(lambda: planted(simulation(one.language), which))
    found = exceeded(guard.read()[1][str(one)], counts)
    assert any(("loaded" if which == LOADS else "stored") in line for line in found)


@pytest.mark.parametrize("one", guarded(), ids=name)
def test_an_extra_pass_over_any_one_tensor_fails(one):
    """By the counts: each tensor once more, however small."""
    committed = guard.read()[1][str(one)]
    assert exceeded(committed, committed) == []
    for entry, count in committed.items():
        tensor, _, what = entry.rpartition(" ")
        if what in ("loaded", "stored"):
            found = exceeded(committed, {**committed, entry: count + committed[f"{tensor} footprint"]})
            assert found and entry in found[0], entry


def test_a_copy_by_torch_fails(monkeypatch):
    from cramkernels.cuda import normalization

    original = normalization.layer_norm_forward
    monkeypatch.setattr(normalization, "layer_norm_forward", lambda x, *rest: original(x.clone(), *rest))
    found = exceeded(guard.read()[1][str(SIMPLE)], SIMPLE.counts())
    assert any(line.startswith("of torch: ") for line in found)


def test_a_tensor_that_was_not_there_and_more_instructions_fail():
    committed = {INSTRUCTIONS: 100, "x loaded": 1000}
    assert exceeded(committed, committed | {"scratch stored": 32}) == ["scratch stored: 32, committed 0"]
    assert exceeded(committed, committed | {INSTRUCTIONS: 111}) and not exceeded(committed, {INSTRUCTIONS: 109})
    assert not exceeded(committed, {INSTRUCTIONS: 200, "x loaded": 1010}, same_compilers=False)
    assert "benchmarks.guard --write" in exceeded(None, committed)[0]


def test_everything_is_committed():
    assert set(guard.read()[1]) == {str(one) for one in guarded()}


def test_the_command_without_the_simulator(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(guard.cost_count, "SIMULATOR", tmp_path / "absent")
    assert guard.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
