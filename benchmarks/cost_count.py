"""What launches ask of memory, tensor by tensor: the simulator's counts, attributed to the buffers of the callers.

The simulator counts the sectors of all warps together. Here the count of every request is also put down to the buffer
that it went to, loads and stores apart, and the distinct sectors (what DRAM must move) are taken from the same buffers.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

import cramkernels.cuda.arguments
import cramkernels.triton.launch
from tests.simulation.cuda import SIMULATOR

SECTOR = 32
PARTS = ("rtx3090", "rtx4090", "a100", "h100")
MULTIPROCESSORS = {"rtx3090": 82, "rtx4090": 128, "a100": 108, "h100": 132}
ACTIVATION, STATISTIC, PARAMETER, PARTIAL = "activation", "statistic", "parameter", "partial"
KINDS = dict.fromkeys(("mean", "rstd"), STATISTIC) | dict.fromkeys(
    ("weight", "bias", "linear_bias", "dweight", "dbias", "dlinear_bias", "seed", "cos", "sin", "cu_seqlens"), PARAMETER
)  # by name; else an activation or gradient, or, without a name, a partial sum


@dataclass
class Tensor:
    """One buffer: what it is, and the bytes that warps requested of it and that DRAM must move."""

    name: str
    kind: str
    bytes: int
    loaded: int = 0
    stored: int = 0
    footprint: int = 0

    @property
    def ratio(self) -> float:
        """Requested over own bytes; an in-place tensor is read once and written once, so each direction counts."""
        return max(self.loaded, self.stored) / self.bytes


@dataclass
class Counted:
    """All launches of one call."""

    tensors: list[Tensor]
    warp_instructions: int
    issued: float  # machine instructions: register moves and other PTX that becomes nothing left out
    bank_conflicts: int
    launches: list = field(default_factory=list)  # (kernel, the simulator's statistics)

    def of(self, *kinds: str) -> list[Tensor]:
        """Tensors of these kinds."""
        return [tensor for tensor in self.tensors if tensor.kind in kinds]

    def worst(self) -> Tensor:
        """The activation or gradient that is requested most, relative to its bytes."""
        return max(self.of(ACTIVATION), key=lambda tensor: tensor.ratio)

    def footprint(self, *kinds: str) -> int:
        """Bytes of distinct sectors, summed over the launches."""
        return sum(tensor.footprint for tensor in self.of(*kinds))


Named = dict[str, torch.Tensor]


def obstacle() -> str | None:
    """Why nothing can be counted here, or None: then ptxsim can be imported."""
    if not SIMULATOR.is_dir():
        return "the cost table needs the simulator ptxsim, in ../shared/tools/ptxsim beside the checkout"
    if (folder := str(SIMULATOR.resolve())) not in sys.path:
        sys.path.insert(0, folder)
    return None


@contextmanager
def of_a_part(multiprocessors: int) -> Iterator[None]:
    """Launchers size their grids for this many multiprocessors, not for the few of the tests."""
    modules = cramkernels.cuda.arguments, cramkernels.triton.launch
    before = [module.SIMULATED_MULTIPROCESSORS for module in modules]
    for module in modules:
        module.SIMULATED_MULTIPROCESSORS = multiprocessors
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.SIMULATED_MULTIPROCESSORS = value


def counted(simulation: Callable, call: Callable[[], Named], inputs: Named, multiprocessors: int) -> Counted:
    """Run ``call``, which returns its named outputs, in a simulation, and count.

    A buffer is told by its tensor: an input or an output, else it is a partial sum, that lives only within the call.
    """
    with requests_by_buffer() as requests, of_a_part(multiprocessors), simulation() as executed:
        outputs = call()
    names: dict[int, str] = {}
    for name, x in {**inputs, **outputs}.items():
        names.setdefault(x.data_ptr(), name)
    tensors: dict[int, Tensor] = {}
    for _, result in executed:
        for region, (loaded, stored) in requests[id(result.stats)].items():
            if not isinstance(region.owner, list):
                continue  # constants of the module
            owner = region.owner[0]
            storage = owner.untyped_storage()
            if owner.data_ptr() in names:
                name = names[owner.data_ptr()]
                key, fresh = owner.data_ptr(), Tensor(name, KINDS.get(name, ACTIVATION), owner.nbytes)
            else:
                key, fresh = storage.data_ptr(), Tensor("partials", PARTIAL, storage.nbytes())
            tensor = tensors.setdefault(key, fresh)
            tensor.loaded += SECTOR * loaded
            tensor.stored += SECTOR * stored
            tensor.footprint += SECTOR * int(region.sectors_read.sum() + region.sectors_written.sum())
    every = [result.stats for _, result in executed]
    return Counted(
        list(tensors.values()),
        sum(stats.total_warp_instructions for stats in every),
        sum(stats.pipe_cycles["issue"] for stats in every),
        sum(stats.shared_load.bank_conflicts + stats.shared_store.bank_conflicts for stats in every),
        [(symbol, result.stats) for symbol, result in executed],
    )


@contextmanager
def requests_by_buffer() -> Iterator[dict[int, dict]]:
    """Within this context: the id of a launch's statistics -> buffer -> [sectors loaded, sectors stored]."""
    from ptxsim.access import MemorySystem
    from ptxsim.stats import sectors_per_warp

    seen: dict[int, dict] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    original = MemorySystem._count

    def count(self, counter, kind, addr, width) -> None:
        before = counter.sectors
        original(self, counter, kind, addr, width)
        if counter is not self.stats.global_load and counter is not self.stats.global_store:
            return
        of_launch, direction = seen[id(self.stats)], int(counter is self.stats.global_store)
        first, last = self.memory.region_of(int(addr.min())), self.memory.region_of(int(addr.max()))
        if first is last:
            of_launch[first][direction] += counter.sectors - before
            return
        rows, _ = self.m.A.as_rows(addr)
        for region in self.memory.regions:
            inside = (rows >= region.lo) & (rows < region.hi)
            if inside.any():
                of_launch[region][direction] += int(sectors_per_warp(np.where(inside, rows, -1), width).sum())

    MemorySystem._count = count
    try:
        yield seen
    finally:
        MemorySystem._count = original


def grids(simulation: Callable, call: Callable[[], object], multiprocessors: int) -> list[int]:
    """CTAs of each launch on a part with so many multiprocessors; nothing is executed."""
    import ptxsim
    from ptxsim.module import Result
    from ptxsim.stats import Stats

    original = ptxsim.Module.launch

    def launch(self, name=None, grid=(1, 1, 1), **_):
        x, y, z = (*grid, 1, 1)[:3]
        return Result(Stats(ctas=x * y * z), 0.0)

    ptxsim.Module.launch = launch
    try:
        with of_a_part(multiprocessors), simulation() as executed:
            call()
    finally:
        ptxsim.Module.launch = original
    return [result.stats.ctas for _, result in executed]


@dataclass
class Bound:
    """An upper bound on the fraction of copy bandwidth, and the pipe that sets it."""

    fraction: float
    pipe: str


def bound(counted: Counted, compulsory: int, part: str, ctas: list[int]) -> Bound:
    """The time of a copy of the compulsory bytes over the sum of the launches' least times.

    Instructions are those of the simulated grid; only the division of CTAs over multiprocessors is the part's own.
    """
    import ptxsim
    from ptxsim.cost import GPUS

    estimates = [
        ptxsim.estimate(replace(stats, ctas=number), part)
        for (_, stats), number in zip(counted.launches, ctas, strict=True)
    ]
    copy = compulsory / (GPUS[part].dram_gbs * 1e9)
    longest = max(estimates, key=lambda estimate: estimate.seconds)
    return Bound(copy / sum(estimate.seconds for estimate in estimates), longest.binding)
