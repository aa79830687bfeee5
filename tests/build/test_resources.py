"""Registers, shared memory, spills and access widths of every kernel, against the committed table."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import resources
from cramkernels import library
from tests.build.helpers import native_build


@pytest.fixture(scope="module")
def architectures(nvcc):
    """Of the library that is installed, else of the one that would be."""
    built = library.load()
    return native_build.choose_architectures(nvcc, everywhere=False) if isinstance(built, str) else built.architectures


@pytest.fixture(scope="module")
def rows(nvcc, architectures):
    """Of the present build; what has changed since is compiled first."""
    try:
        return resources.measure(nvcc, list(architectures))
    except native_build.BuildError as error:
        pytest.fail(str(error))


BY_ELEMENT = ("ck_reduce_partials", "ck_loss_count_kernel", "ck_loss_finish_kernel", "ck_loss_combine_kernel")


def serves_any(kernel: str) -> bool:
    """Element by element on purpose."""
    return "any" in kernel.split("_") or kernel in BY_ELEMENT


def not_for_sm_75(kernel: str) -> bool:
    """It has no bf16 for its tensor cores, no shared memory for whole wide heads or 256 keys: these are traps there."""
    wide = kernel.startswith("ck_attention_short") and kernel.endswith("128")
    return (
        wide
        or kernel.startswith("ck_attention_mid")
        or (kernel.startswith(("ck_attention_short", "ck_attention_long")) and "bf16" in kernel)
    )


def check(rows, right) -> None:
    """All rows that are not right, in one message."""
    wrong = [row for row in rows if not right(row)]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_every_kernel_on_every_architecture_of_the_build(rows, architectures):
    """No kernel is missing in the report of one architecture."""
    kernels = {row.kernel for row in rows}
    assert {(row.kernel, row.architecture) for row in rows} == {
        (k, a) for k in kernels for a in architectures if a != 75 or not not_for_sm_75(k)
    }
    assert len(rows) == len({row[:2] for row in rows})
    folder = resources.ROOT / "build" / "native" / "-".join(map(str, architectures))
    defined = sum(path.read_text().count(".visible .entry") for path in folder.glob("*.ptx/*.ptx"))
    assert defined == len(kernels) * len({75 if number < 80 else 80 for number in architectures})


def test_no_spills(rows):
    """Nor a stack: no register array indexed at run time."""
    check(rows, lambda row: row.spill_bytes == 0 and row.stack_bytes == 0)


def test_shared_memory_fits(rows):
    """One CTA's share of each architecture."""
    most = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
    check(rows, lambda row: row.shared_bytes <= most[row.architecture] << 10)


def test_sixteen_byte_accesses(rows):
    """All but those that serve any width and address."""
    check(rows, lambda row: (row.widest_access == 16) != serves_any(row.kernel))
    assert any(serves_any(row.kernel) for row in rows) and not all(serves_any(row.kernel) for row in rows)


def multipliers(rows):
    """Kernels that multiply 16-bit matrices, with the architectures that do it; sm_75 has no bf16."""
    for row in rows:
        if re.match(r"ck_(loss_(tiles|slice)|attention_(short|mid|long))_", row.kernel):
            if row.architecture != 75 or "bf16" not in row.kernel:
                yield row.kernel, row.architecture


def test_kernels_that_multiply_use_tensor_cores(rows, architectures):
    """mma.sync in the PTX of each; on sm_75 in halves."""
    folder = resources.ROOT / "build" / "native" / "-".join(map(str, architectures))
    found = {}
    for path in folder.glob("*.ptx/*.ptx"):
        text = path.read_text()
        virtual = int(re.search(r"^\.target sm_(\d+)", text, re.M).group(1))
        for kernel, body in re.findall(r"\.entry (\w+)\((.*?)^\}", text, re.M | re.S):
            found[kernel, virtual] = set(re.findall(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)", body))
    checked = list(multipliers(rows))
    assert len({kernel for kernel, _ in checked}) == 32
    for kernel, number in checked:
        assert found[kernel, min(number, 80)] == {"m16n8k8" if number == 75 else "m16n8k16"}, (kernel, number)


def test_the_assembler_keeps_them(rows, nvcc, architectures):
    """HMMA in the machine code of each of them for each architecture, of the shape that the PTX has."""
    beside = importlib.util.find_spec("triton")  # it brings the program, too
    places = [nvcc.parent, *([Path(beside.origin).parent / "backends" / "nvidia" / "bin"] if beside else [])]
    program = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(map(str, places)))
    if program is None:
        pytest.skip("cuobjdump is not installed")
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(program).parent), os.environ["PATH"]])}  # nvdisasm
    folder = resources.ROOT / "build" / "native" / "-".join(map(str, architectures))
    found = {}
    for pattern in ("loss-loss_recompute", *(f"attention-attention_{name}" for name in ("short", "mid", "long"))):
        for built in folder.glob(f"{pattern}*.cu.o"):
            run = subprocess.run([program, "-sass", built], capture_output=True, text=True, check=True, env=environment)
            for part in re.split(r"^\s*code for sm_", run.stdout, flags=re.M)[1:]:
                for body in re.split(r"^\s*Function : ", part, flags=re.M)[1:]:
                    shapes = set(re.findall(r"\bHMMA\.(\d+)\.F32", body))
                    found[re.match(r"\w+", body).group(), int(re.match(r"\d+", part).group())] = shapes
    for kernel, number in multipliers(rows):
        assert found[kernel, number] == {"1688" if number == 75 else "16816"}, (kernel, number)


def test_a_cta_fits(rows):
    """At least one is resident, or nothing can be launched."""
    check(rows, lambda row: row.ctas >= 1 and 0 < row.occupancy <= 1)


def test_the_committed_table(rows, nvcc):
    """The same kernels, threads, shared memory and widths; the same registers where the compiler is the same."""
    release, committed = resources.committed()
    assert {row.architecture for row in committed} == set(native_build.ARCHITECTURES)
    built = {row.architecture for row in rows}
    table = {(row.kernel, row.architecture): row for row in committed if row.architecture in built}
    assert {(row.kernel, row.architecture) for row in rows} == set(table), "python -m benchmarks.resources --write"
    check(rows, lambda row: _of_the_source(row) == _of_the_source(table[row[:2]]))
    if native_build.release(nvcc) != release:
        pytest.skip(f"registers: the table is of nvcc {release}, this is {native_build.release(nvcc)}")
    check(rows, lambda row: row == table[row[:2]])


def _of_the_source(row):
    """What no compiler's release changes."""
    return row.threads, row.shared_bytes, row.widest_access


@pytest.mark.parametrize("architecture, threads, registers, shared, ctas", [
    (80, 1024, 64, 0, 1),  # registers: 64 * 1024 is all there are
    (80, 128, 32, 0, 16),  # threads
    (80, 32, 16, 0, 32),  # CTAs
    (80, 128, 32, 16 << 10, 9),  # shared memory: 164 / (16 + 1)
    (80, 128, 33, 0, 12),  # registers come by eight a thread: 65536 / (40 * 128)
    (80, 96, 168, 0, 4),  # 12 warps: warps come by four
    (75, 128, 32, 16 << 10, 4),  # 64 / 16: nothing is reserved
    (75, 32, 16, 0, 16),
    (86, 256, 32, 0, 6),
    (86, 32, 16, 0, 16),
    (89, 32, 16, 0, 24),
    (90, 1024, 32, 0, 2),
    (90, 256, 32, 227 << 10, 1),
    (120, 128, 32, 49 << 10, 2),
    (120, 128, 32, 50 << 10, 1),
])  # fmt: skip
def test_residency(architecture, threads, registers, shared, ctas):
    """By hand from the programming guide's limits."""
    assert resources.LIMITS[architecture].resident(threads, registers, shared) == ctas


@pytest.mark.parametrize("line, bytes_", [
    ("ld.global.f32 %f1, [%rd1];", 4),
    ("ld.global.u16 %rs1, [%rd1];", 2),
    ("ld.global.nc.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];", 16),
    ("ld.global.L1::no_allocate.v2.u64 {%rd1, %rd2}, [%rd1];", 16),
    ("ld.volatile.global.v2.u32 {%r1, %r2}, [%rd1];", 8),
    ("st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};", 16),
    ("st.global.cs.v2.f32 [%rd1], {%f1, %f2};", 8),
    ("cp.async.cg.shared.global [%r1], [%rd1], 16;", 16),
    ("cp.async.ca.shared.global [%r1], [%rd1], 4, %r2;", 4),
    ("st.shared.v4.f32 [%r1], {%f1, %f2, %f3, %f4};", 0),
    ("ld.param.v4.u32 {%r1, %r2, %r3, %r4}, [p];", 0),
])  # fmt: skip
def test_widths_are_read_from_ptx(line, bytes_):
    """Global memory only."""
    assert resources.widest_access(f"    {line}\n    ld.global.u8 %rs1, [%rd1];" if bytes_ else line) == bytes_


REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'ck_a' for 'sm_75'
ptxas info    : Function properties for ck_a
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 12.489 ms
ptxas info    : Compiling entry function 'ck_b' for 'sm_90a'
ptxas info    : Function properties for ck_b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 400 bytes cmem[0]
"""


def test_the_report_is_read():
    """Both directions of spilling count; no shared memory is not mentioned in a report."""
    assert resources.read_report(REPORT) == [("ck_a", 75, 255, 1024, 20, 24), ("ck_b", 90, 16, 0, 0, 0)]
