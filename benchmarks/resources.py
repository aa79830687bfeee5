"""What each CUDA kernel takes on each architecture: ``python -m benchmarks.resources [--write]``.

Registers, shared memory, stack and spills are from ptxas's reports of the present build (csrc/native_build.py keeps
them; what has changed since is compiled first), threads per CTA and the widest global access from the PTX. Occupancy
follows from these and the architecture's limits. ``--write`` stores the table, which tests/build holds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import cramkernels
from cramkernels import library
from cramkernels.cuda import arguments as arguments_of
from cramkernels.cuda import attention
from cramkernels.dispatch import simulate_backend

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("results") / "resources.json"

sys.path.insert(0, str(ROOT / "csrc"))

import native_build  # noqa: E402

LONGEST_ROW = 200_000  # classes: beyond what registers and shared memory hold, in every dtype
REGISTERS = 65536  # of a multiprocessor, on all these architectures; given out 256 to a warp, warps four at a time


class Limits(NamedTuple):
    """Of one multiprocessor (CUDA programming guide, compute capabilities); shared memory in bytes."""

    threads: int
    ctas: int
    shared: int
    shared_of_cta: int
    reserved: int = 1024  # the system's shared memory of each CTA
    unit: int = 128  # shared memory is given out in

    def resident(self, threads: int, registers: int, shared: int) -> int:
        """CTAs that run at the same time."""
        warps = -(-threads // 32)
        registers_of_warp = _round_up(32 * registers, 256)
        by_registers = REGISTERS // registers_of_warp // 4 * 4 // warps
        taken = _round_up(shared + self.reserved, self.unit)
        by_shared = self.shared // taken if taken else self.ctas
        return min(self.ctas, self.threads // (32 * warps), by_registers, by_shared)


LIMITS = {
    75: Limits(1024, 16, 64 << 10, 64 << 10, reserved=0, unit=256),
    80: Limits(2048, 32, 164 << 10, 163 << 10),
    86: Limits(1536, 16, 100 << 10, 99 << 10),
    89: Limits(1536, 24, 100 << 10, 99 << 10),
    90: Limits(2048, 32, 228 << 10, 227 << 10),
    120: Limits(1536, 24, 100 << 10, 99 << 10),
}


class Row(NamedTuple):
    """One kernel on one architecture; shared memory is what is declared and what its launcher asks for."""

    kernel: str
    architecture: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    threads: int
    ctas: int  # resident on a multiprocessor
    occupancy: float  # resident warps of those that there is room for
    widest_access: int  # bytes of global memory in one instruction of one thread


def measure(nvcc: Path, architectures: list[int], work: Path = ROOT / "build" / "native") -> list[Row]:
    """The rows of the present sources, by kernel and architecture; none for a kernel that is a trap there."""
    asked, rows = shared_bytes_asked_for(), []
    for made in native_build.compile_sources(nvcc, architectures, work):
        entries, traps = {}, set()
        for path in made.with_suffix(".ptx").glob("*.ptx"):
            entries.update(read_ptx(path.read_text()))
            traps |= read_traps(path.read_text())
        for kernel, architecture, *numbers in read_report(made.with_suffix(".ptxas").read_text()):
            virtual = max(number for name, number in entries if name == kernel and number <= architecture)
            if (kernel, virtual) in traps:
                continue
            numbers[1] += asked.get((kernel, virtual), 0)
            rows.append(_row(kernel, architecture, numbers, *entries[kernel, virtual]))
    return sorted(rows)


def shared_bytes_asked_for() -> dict[tuple[str, int], int]:
    """(kernel, virtual architecture) -> the most dynamic shared memory that its launcher tells a launch hook."""
    asked: dict[tuple[str, int], int] = {}
    before = arguments_of.SIMULATED_CAPABILITY
    for virtual in (75, 80):

        def hook(launch: library.Launch, virtual=virtual) -> None:
            kernel = launch.symbol.decode(), virtual
            asked[kernel] = max(asked.get(kernel, 0), launch.shared_bytes)

        arguments_of.SIMULATED_CAPABILITY = divmod(virtual, 10)
        try:
            with library.launch_hook(hook), simulate_backend("cuda"):
                _launch_what_asks()
        finally:
            arguments_of.SIMULATED_CAPABILITY = before
    return asked


def _launch_what_asks() -> None:
    """Every kernel with dynamic shared memory, at the shapes that ask for most."""
    one = torch.tensor([0, 1], dtype=torch.int32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for head_dim in attention.HEAD_DIMS:
            for longest in (1, attention.SHORT_TOKENS + 1, attention.MID_TOKENS + 1):
                qkv = torch.zeros(1, 3, 1, head_dim, dtype=dtype, requires_grad=True)
                cramkernels.attention(qkv, one, longest).sum().backward()
        _loss(dtype, LONGEST_ROW, "chunked")
    for dtype in (torch.float16, torch.bfloat16):
        _loss(dtype, 128, "recompute")


def _loss(dtype: torch.dtype, vocabulary: int, mode: str) -> None:
    hidden, weight = (torch.zeros(n, 8, dtype=dtype, requires_grad=True) for n in (1, vocabulary))
    cramkernels.mlm_loss(hidden, weight, torch.zeros(1, dtype=torch.int64), mode=mode).loss.backward()


def _row(kernel: str, architecture: int, numbers: list[int], threads: int, widest: int) -> Row:
    registers, shared, spill, stack = numbers
    limits = LIMITS[architecture]
    ctas = limits.resident(threads, registers, shared)
    occupancy = round(ctas * -(-threads // 32) * 32 / limits.threads, 4)
    return Row(kernel, architecture, registers, shared, spill, stack, threads, ctas, occupancy, widest)


def read_report(text: str) -> list[tuple[str, int, int, int, int, int]]:
    """ptxas -v -> (kernel, architecture, registers, shared bytes, spill bytes, stack bytes)."""
    found = []
    for part in re.split(r"Compiling entry function ", text)[1:]:
        kernel, architecture = re.match(r"'(\w+)' for 'sm_(\d+)", part).groups()
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        stack = max(int(frame[0]) for frame in frames)
        spill = sum(int(stores) + int(loads) for _, stores, loads in frames)  # with those of called functions
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        shared = re.search(r"(\d+) bytes smem", part)
        found.append((kernel, int(architecture), registers, int(shared.group(1)) if shared else 0, spill, stack))
    return found


def read_ptx(text: str) -> dict[tuple[str, int], tuple[int, int]]:
    """(kernel, virtual architecture) -> (threads per CTA, widest global access in bytes)."""
    architecture = int(re.search(r"^\.target sm_(\d+)", text, re.M).group(1))
    found = {}
    for kernel, body in re.findall(r"\.entry (\w+)\((.*?)^\}", text, re.M | re.S):
        sizes = [int(n) for n in re.search(r"^\.maxntid (\d+)(?:, *(\d+))?(?:, *(\d+))?", body, re.M).groups("1")]
        found[kernel, architecture] = (sizes[0] * sizes[1] * sizes[2], widest_access(body))
    return found


def read_traps(text: str) -> set[tuple[str, int]]:
    """(kernel, virtual architecture) of kernels that only trap: what that architecture cannot do, never launched."""
    architecture = int(re.search(r"^\.target sm_(\d+)", text, re.M).group(1))
    bodies = re.findall(r"\.entry (\w+)\(.*?\n\{(.*?)^\}", text, re.M | re.S)
    return {(kernel, architecture) for kernel, body in bodies if re.search(r"\btrap;", body) and "ld." not in body}


def widest_access(body: str) -> int:
    """Bytes of the widest load, store or asynchronous copy of global memory, 0 where there is none."""
    widths = [
        int(count or 1) * int(bits) // 8
        for count, bits in re.findall(r"\b(?:ld|st)(?:\.\w+)*?\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bufs](\d+)\s", body)
    ]
    widths += [int(size) for size in re.findall(r"\bcp\.async\.c[ag]\.[^;]*\], *\[[^;]*\], *(\d+)", body)]
    return max(widths, default=0)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def committed() -> tuple[str, list[Row]]:
    """The stored table: nvcc's release and the rows."""
    stored = json.loads(TABLE.read_text())
    assert stored["columns"] == list(Row._fields), "an older table: python -m benchmarks.resources --write"
    return stored["nvcc"], [Row(*row) for row in stored["rows"]]


def write(release: str, rows: list[Row]) -> None:
    """Store the table, a row a line."""
    head = f'{{"nvcc": {json.dumps(release)},\n "columns": {json.dumps(Row._fields)},\n "rows": [\n'
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(head + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")


def printed(rows: list[Row]) -> str:
    """A line a kernel; registers and occupancy on each architecture."""
    architectures = sorted({row.architecture for row in rows})
    lines = [
        f"{'registers, occupancy':42} threads shared spill stack access"
        + "".join(f"{f'sm_{number}':>10}" for number in architectures)
    ]
    for kernel in dict.fromkeys(row.kernel for row in rows):
        of = {row.architecture: row for row in rows if row.kernel == kernel}
        most = [max(values) for values in zip(*(row[3:7] for row in of.values()), strict=True)]
        shared, spill, stack, threads = most
        widest = min(row.widest_access for row in of.values())
        lines.append(
            f"{kernel:42} {threads:7} {shared:6} {spill:5} {stack:5} {widest:6}"
            + "".join(
                f"{of[number].registers:5}{of[number].occupancy:5.0%}" if number in of else f"{'-':>10}"
                for number in architectures
            )
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"store {TABLE.relative_to(ROOT)} (all architectures)")
    arguments = parser.parse_args()
    nvcc = native_build.find_nvcc()
    if nvcc is None:
        sys.exit("nvcc is not installed")
    rows = measure(nvcc, native_build.choose_architectures(nvcc, everywhere=arguments.write))
    print(printed(rows))
    if arguments.write:
        write(native_build.release(nvcc), rows)


if __name__ == "__main__":
    main()
