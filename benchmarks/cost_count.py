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
KINDS = dict.fromkeys(("mean", "rstd", "lse"), STATISTIC) | dict.fromkeys(
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
Packed = dict[str, tuple[str, ...]]


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


def counted(
    simulation: Callable, call: Callable[[], Named], inputs: Named, multiprocessors: int, packed: Packed | None = None
) -> Counted:
    """Run ``call``, which returns its named outputs, in a simulation, and count.

    A buffer is told by its tensor: an input or an output, else it is a partial sum, that lives only within the call.
    ``packed``: the names of the parts of tensors [..., parts, heads, head dim], each counted as a tensor of its own.
    """
    with requests_by_buffer(bool(packed)) as requests, of_a_part(multiprocessors), simulation() as executed:
        outputs = call()
    named: dict[int, tuple[str, torch.Tensor]] = {}
    for name, x in {**inputs, **outputs}.items():
        named.setdefault(x.data_ptr(), (name, x))
        if packed:  # a view of a named tensor is that tensor
            named.setdefault(x.untyped_storage().data_ptr(), (name, x))
    tensors: dict[tuple, Tensor] = {}
    for _, result in executed:
        for region, (loaded, stored) in requests[id(result.stats)].items():
            if not isinstance(region.owner, list):
                continue  # constants of the module
            footprint = region.sectors_read.astype(int) + region.sectors_written
            for key, fresh, where in _buffers(region, named, packed or {}):
                tensor = tensors.setdefault(key, fresh)
                tensor.loaded += _bytes(loaded, where)
                tensor.stored += _bytes(stored, where)
                tensor.footprint += _bytes(footprint, where)
    every = [result.stats for _, result in executed]
    return Counted(
        list(tensors.values()),
        sum(stats.total_warp_instructions for stats in every),
        sum(stats.pipe_cycles["issue"] for stats in every),
        sum(stats.shared_load.bank_conflicts + stats.shared_store.bank_conflicts for stats in every),
        [(symbol, result.stats) for symbol, result in executed],
    )


def _bytes(sectors: np.ndarray | int, where: np.ndarray | None) -> int:
    """Of all sectors counted, or of some."""
    return SECTOR * int(np.sum(sectors) if where is None else np.sum(sectors * where))


def _buffers(region, named: dict, packed: Packed) -> Iterator[tuple[tuple, Tensor, np.ndarray | None]]:
    """(key, the tensor as yet uncounted, its sectors of the region or None for all) of what lies in a region."""
    owner = region.owner[0]
    storage = owner.untyped_storage()
    address = owner.data_ptr() if owner.data_ptr() in named or not packed else storage.data_ptr()
    if address not in named:
        yield (storage.data_ptr(),), Tensor("partials", PARTIAL, storage.nbytes()), None
        return
    name, x = named[address]
    if name not in packed:
        yield (address,), Tensor(name, KINDS.get(name, ACTIVATION), x.nbytes), None
        return
    parts = packed[name]
    first = owner.data_ptr() - x.data_ptr() - (region.lo - region.base)  # byte of x where the region's sectors begin
    byte = first + SECTOR * np.arange(region.sectors_read.size)
    part_of = byte // (x.shape[-2] * x.shape[-1] * x.itemsize) % len(parts)
    for i, part in enumerate(parts):
        yield (address, part), Tensor(part, ACTIVATION, x.nbytes // len(parts)), part_of == i


@contextmanager
def requests_by_buffer(by_sector: bool = False) -> Iterator[dict[int, dict]]:
    """Within this context: the id of a launch's statistics -> buffer -> [sectors loaded, sectors stored].

    Numbers; ``by_sector``: arrays, how often each sector of the buffer is asked for.
    """
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
        if first is last and not by_sector:
            of_launch[first][direction] += counter.sectors - before
            return
        if addr.shape[0] == 1:
            addr = np.repeat(addr, self.m.A.n)
        rows, _ = self.m.A.as_rows(addr)
        for region in [first] if first is last else self.memory.regions:
            inside = (rows >= region.lo) & (rows < region.hi)
            if not inside.any():
                continue
            rows_inside = np.where(inside, rows, -1)
            if by_sector:
                of_launch[region][direction] += _by_sector(rows_inside, region)
            else:
                of_launch[region][direction] += int(sectors_per_warp(rows_inside, width).sum())

    MemorySystem._count = count
    try:
        yield seen
    finally:
        MemorySystem._count = original


def _by_sector(rows: np.ndarray, region) -> np.ndarray:
    """How many of the warps, a row of addresses each (-1: none), ask for each sector of a region."""
    sectors = np.sort(np.where(rows >= 0, (rows - region.base) // SECTOR, -1), axis=1)
    fresh = sectors >= 0
    fresh[:, 1:] &= sectors[:, 1:] != sectors[:, :-1]
    return np.bincount(sectors[fresh], minlength=region.sectors_read.size)


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
    """The time of a copy of the compulsory bytes over the least time of the launches."""
    from ptxsim.cost import GPUS

    seconds, pipe = least_seconds(counted, part, ctas)
    return Bound(compulsory / (GPUS[part].dram_gbs * 1e9) / seconds, pipe)


def with_spills(counted: Counted, spilled: list[int]) -> Counted:
    """The same, with what the assembler spills: so many bytes of a thread, loads and stores together, of each launch.

    PTX knows nothing of them. They are counted as executed once, four bytes of all threads of a warp at a time, and as
    found in L1: the least, since those in a loop are executed in each of its turns.
    """
    launches = []
    for (name, stats), each in zip(counted.launches, spilled, strict=True):
        more = stats.ctas * stats.threads_per_cta // 32 * each // 4
        pipes = stats.pipe_cycles.copy()
        for pipe in ("lsu", "issue"):
            pipes[pipe] += more
        launches.append((name, replace(stats, pipe_cycles=pipes)))
    return replace(counted, launches=launches)


def least_seconds(counted: Counted, part: str, ctas: list[int]) -> tuple[float, str]:
    """The sum of the launches' least times, and what sets it in the longest.

    Instructions are those of the simulated grid; only the division of CTAs over multiprocessors is the part's own.
    """
    import ptxsim

    estimates = [
        ptxsim.estimate(replace(stats, ctas=number), part)
        for (_, stats), number in zip(counted.launches, ctas, strict=True)
    ]
    longest = max(estimates, key=lambda estimate: estimate.seconds)
    return sum(estimate.seconds for estimate in estimates), longest.binding
