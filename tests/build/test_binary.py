"""The library as a file: what it asks of a system, and what it shows."""

import re
import shutil
import subprocess
import sys

import pytest

from cramkernels import library
from tests.build.helpers import ROOT

SYSTEM = ("libstdc++.so", "libm.so", "libgcc_s.so", "libc.so", "libpthread.so", "librt.so", "libdl.so", "ld-linux")


@pytest.fixture(autouse=True)
def _built():
    if not library.PATH.exists():
        pytest.skip("the CUDA library was not built")


def output_of(*command: str) -> str:
    """Of a program of binutils, or a skip."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([*command, str(library.PATH)], capture_output=True, text=True, check=True).stdout


def test_needs_nothing_but_the_system():
    """No libcuda, libcudart, torch or Python when it is loaded."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d"))
    assert needed and all(name.startswith(SYSTEM) for name in needed), needed
    undefined = re.findall(r" [Uw] (\S+)", output_of("nm", "-D", "--undefined-only"))
    assert undefined and not [name for name in undefined if re.match(r"_*cu[A-Z]|_*cuda|Py|_?nv", name)]


def test_shows_the_c_abi_alone():
    """Exactly what csrc/api.h declares; the CUDA runtime inside cannot meet torch's."""
    declared = set(re.findall(r"^CK_API .*?(ck_\w+)\(", (ROOT / "csrc" / "api.h").read_text(), re.M))
    shown = set(re.findall(r" T (\S+)", output_of("nm", "-D", "--defined-only")))
    assert {"ck_abi", *library.ENTRY_POINTS} <= declared
    assert shown - {"_init", "_fini"} == declared


def test_every_entry_point_is_bound():
    """Python knows all entry points that api.h declares with an argument block."""
    text = (ROOT / "csrc" / "api.h").read_text()
    assert set(re.findall(r"^CK_API int (ck_\w+)\(const ck_\w+ \*args", text, re.M)) == set(library.ENTRY_POINTS)
    assert int(re.search(r"#define CK_ABI (\d+)", text).group(1)) == library.ABI


def test_loads_in_a_bare_process():
    """ctypes only: no torch, and no driver is looked for until it is asked about."""
    code = f"""
import ctypes, sys
def mapped():
    return open("/proc/self/maps").read()
library = ctypes.CDLL({str(library.PATH)!r})
library.ck_architectures.restype = ctypes.c_char_p
print(library.ck_abi(), library.ck_architectures().decode(), "torch" in sys.modules)
print("libcuda" in mapped(), "libcudart" in mapped())
print(library.ck_driver_version() >= 0)
"""
    run = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    architectures = ",".join(map(str, library.load().architectures))
    assert run.stdout == f"{library.ABI} {architectures} False\nFalse False\nTrue\n"
