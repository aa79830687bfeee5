"""What the benchmarks of a session share: the device, its ceilings and floors, the results; printed at the end."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from benchmarks import ceilings as ceilings_of
from benchmarks import devices
from benchmarks.floors import ALLOWANCE, Floors
from benchmarks.results import FOLDER, Results, versions
from cramming_train.allocator import keep_freed_memory

FLOORS, RESULTS = pytest.StashKey[Floors](), pytest.StashKey[Results]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """One benchmark at a time: side by side, as tests are run, they would time each other."""
    config.option.numprocesses, config.option.dist = 0, "no"


def pytest_addoption(parser):
    """Options of the benchmarks alone."""
    group = parser.getgroup("cramkernels benchmarks")
    group.addoption("--results", type=Path, help="folder of results (default benchmarks/results/<machine>)")
    group.addoption("--floors", type=Path, help="folder of floors (default benchmarks/results/floors)")
    group.addoption("--bench-threads", type=int, default=1, help="of the CPU; 1 (default) counts processor time")


@pytest.fixture(scope="module", autouse=True)
def _collected_once():
    """What the counts leave, millions of objects, is not gone through again within what is timed after them."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", name="device")
def _device(request):
    """A card where there is one, else the CPU, with memory kept as in training."""
    device = devices.present(request.config.getoption("--bench-threads"))
    if device.torch.type == "cpu":
        torch.set_num_threads(device.threads)
        keep_freed_memory()
    return device


@pytest.fixture(scope="session", name="floors")
def _floors(request, device):
    folder = request.config.getoption("--floors")
    found = Floors(devices.key(device), folder) if folder else Floors(devices.key(device))
    request.config.stash[FLOORS] = found
    return found


@pytest.fixture(scope="session", name="ceilings")
def _ceilings(device):
    return ceilings_of.measure(device)


@pytest.fixture(scope="session", name="results")
def _results(request, device, ceilings):
    folder = request.config.getoption("--results") or FOLDER / devices.key(device)
    found = Results(folder)
    found.machine = {
        "name": device.name, "key": devices.key(device), "device": device.torch.type, "threads": device.threads,
        "dtype": str(device.dtype).removeprefix("torch."), "versions": versions(), "ceilings": ceilings,
    }  # fmt: skip
    request.config.stash[RESULTS] = found
    return found


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter, config):
    """What was measured: calls, ratios, counted kernels; then the files that were written."""
    line = terminalreporter.write_line
    session = getattr(config, "_benchmarksession", None)
    every = [(bench.name, bench.extra_info) for bench in getattr(session, "benchmarks", [])]
    for name, info in every:
        if "microseconds_a_call" in info:
            line(f"{name}: {info['microseconds_a_call']} us a call, {info['microseconds_of_the_backend_alone']} us of "
                 f"them the backend's; {info['microseconds_with_autograd']} us with autograd")  # fmt: skip
        if "packed_over_padded" in info:
            rates = info["examples_per_second"]
            line(f"{name}, {info['lengths']}: {rates['packed']} examples/s packed, {rates['padded']} padded: "
                 f"{info['packed_over_padded']} x; by task {info['by_task']}")  # fmt: skip
    results = config.stash.get(RESULTS, None)
    if results and results.rows:
        _ratios(terminalreporter, results)
    for name, info in every:
        if "ratio_to_peer" in info:
            line(f"{name}: " + ", ".join(f"{ratio:.3f} of {peer}" for peer, ratio in info["ratio_to_peer"].items()))
    _write(terminalreporter, results, config.stash.get(FLOORS, None))


def _ratios(terminalreporter, results: Results) -> None:
    line, machine = terminalreporter.write_line, results.machine
    terminalreporter.section("time against peers, in turn")
    rates = machine["ceilings"]
    line(f"{machine['name']}, {machine['dtype']}, torch {torch.__version__}; "
         f"copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, product {rates['gemm_flops_per_second'] / 1e9:.0f} "
         "GFLOP/s, both measured")  # fmt: skip
    line(f"{'median, ms':36} {'':8} {'ours':>9}  ratio to")
    for row in results.rows:
        ratios = ", ".join(f"{peer} {ratio:.3f}" for peer, ratio in row["ratios"].items())
        line(f"{row['name']:36} {row['direction']:8} {1e3 * row['seconds']['ours']:9.3f}  {ratios}")


def _write(terminalreporter, results: Results | None, floors: Floors | None) -> None:
    line = terminalreporter.write_line
    try:
        if results and (path := results.write()):
            line(f"results: {path} (python -m benchmarks.report {path.parent} makes pages of them)")
        if floors and (path := floors.write()):
            line(f"floors written, to be committed: {path} ({', '.join(floors.fresh)}); from now on a ratio more than "
                 f"{ALLOWANCE - 1:.0%} above them fails")  # fmt: skip
    except OSError as error:
        line(f"not written: {error}")
