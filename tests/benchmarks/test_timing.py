"""What runs on a card, with a stand-in for it: copies of inputs, turns, peers without capture, floors of its own."""

import pytest
import torch

from benchmarks import ceilings, devices, peers, timing
from benchmarks.devices import Card, Processor
from benchmarks.operations import DIRECTIONS, Operation, Shape, operations

SMALL = Shape(256, 64, 128)


class StandIn:
    """A card's interface: calls run on the CPU, and a clock that is told."""

    name, threads, compiles = "Stand In 9000", 0, True

    def __init__(self, cache_bytes=100_000):
        self.torch, self.dtype, self.cache_bytes, self.asked = torch.device("cpu"), torch.float32, cache_bytes, []

    def stopwatch(self, calls, *, capture=True):
        self.asked.append((len(calls), capture))

        def seconds():
            for call in calls:
                call()
            return 1e-3 * len(self.asked)

        return seconds


def test_the_interface_is_the_cards():
    for name in ("name", "threads", "compiles", "torch", "dtype", "cache_bytes", "stopwatch"):
        assert hasattr(StandIn(), name) and (hasattr(Card, name) or name in Card.__init__.__code__.co_names)
        assert hasattr(Processor(), name)


def test_inputs_are_more_than_the_cache_holds():
    operation = Operation("layer_norm", SMALL)
    a_tensor = 256 * 64 * 4
    for cache in (a_tensor, 4 * a_tensor, 7 * a_tensor):
        assert timing.copies(StandIn(cache), operation) * a_tensor >= 2 * cache
    assert (
        timing.copies(StandIn(10**12), operation) == timing.MOST_COPIES and timing.copies(Processor(), operation) == 1
    )


def test_peers_that_cannot_be_captured_are_not(monkeypatch):
    monkeypatch.setattr(peers, "UNCAPTURED", ("eager",))
    device = StandIn(0)
    assert set(timing.stopwatches(device, Operation("geglu", SMALL))) == {"ours", "eager"}
    assert device.asked == [(1, True), (1, False)]


@pytest.mark.parametrize("operation", operations(SMALL), ids=str)
def test_ours_and_eager_are_the_same_function(operation):
    problem = operation.problem(torch.device("cpu"), torch.float32)
    again = operation.problem(torch.device("cpu"), torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(problem.leaves, again.leaves, strict=True))
    results = []
    for who in ("ours", "eager"):
        torch.manual_seed(0)
        torch.testing.assert_close(problem.forward(who)(), problem.functions["eager"](*problem.leaves))
        torch.manual_seed(0)
        results.append(problem.step(who)())
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operation", operations(SMALL), ids=str)
def test_every_operation_has_a_floor(operation):
    rates = {"copy_bytes_per_second": 1e12, "gemm_flops_per_second": 1e14}
    floors = [ceilings.floor_seconds(operation, direction, 2, rates) for direction in (*DIRECTIONS, "step")]
    assert all(floor > 0 for floor in floors) and floors[2] == pytest.approx(floors[0] + floors[1])


def test_compulsory_bytes_are_those_of_the_counted_cost():
    from benchmarks.cost_attention import Shape as AttentionShape
    from benchmarks.cost_cases import Case

    shape = Shape(512, 128)
    for name in ("layer_norm", "add_layer_norm", "layer_norm_gelu", "gelu_layer_norm", "geglu", "rotary"):
        case = Case(name, 512, 256 if name == "geglu" else 128)
        for direction in DIRECTIONS:
            assert Operation(name, shape).compulsory(direction, 2) == case.compulsory(direction), (name, direction)
    same = AttentionShape(4, 128, heads=2)
    for direction in DIRECTIONS:
        assert Operation("attention", shape).compulsory(direction, 2) == same.compulsory(direction)
        assert Operation("attention", shape).flops(direction) == same.flops(direction)


def test_implementers_take_turns():
    order = []
    watches = {who: lambda who=who: order.append(who) or 1.0 for who in ("ours", "a", "b")}
    samples = timing.in_turn(watches, 3)
    assert {who: len(taken) for who, taken in samples.items()} == {"ours": 3, "a": 3, "b": 3}
    assert order[3:] == ["b", "a", "ours", "a", "b", "ours", "b", "a", "ours"]  # after one for nothing


def test_a_ratio_is_of_what_met_the_same_noise():
    assert timing.ratios({"ours": [1.0, 10.0, 3.0], "eager": [2.0, 20.0, 6.0]}) == {"eager": 0.5}


def test_measuring_again_adds_samples():
    left = iter([1.0] * 3 + [9.0] * 4 + [2.0] * 100)
    taken = timing.Measurement({"ours": lambda: next(left), "eager": lambda: 1.0}, seconds=0.0)
    assert taken.rounds == timing.ROUNDS[0]
    first = taken()["eager"]
    assert first == pytest.approx(9.0) or first == pytest.approx(5.5)
    for _ in range(3):
        last = taken()["eager"]
    assert last == 2.0 and len(taken.samples["ours"]) == 4 * timing.ROUNDS[0]


def test_the_backward_is_the_difference():
    seconds, ratios = timing.difference(
        {"ours": 3.0, "eager": 5.0, "odd": 1.0}, {"ours": 1.0, "eager": 1.0, "odd": 1.0}
    )
    assert seconds == {"ours": 2.0, "eager": 4.0} and ratios == {"eager": 0.5}


def test_the_name_of_a_card_is_a_key():
    device = StandIn()
    device.name = "NVIDIA GeForce RTX 3090 (Laptop)"
    assert devices.key(device) == "nvidia-geforce-rtx-3090-laptop"


def test_ceilings_of_a_device(monkeypatch):
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(ceilings, "GEMM_SIZE", {"cpu": 64})
    measured = ceilings.measure(StandIn())
    assert measured == {"copy_bytes_per_second": 2 * (1 << 20) / 2e-3, "gemm_flops_per_second": 2 * 64**3 / 2e-3}
