"""The native library: found, checked, loaded, and called with one packed argument block."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

PATH = Path(__file__).with_name("libcramkernels.so")
SOURCES = Path(__file__).parents[1] / "csrc"  # beside an editable install
ABI = 2
MINIMUM_DRIVER = 13000  # as CUDA counts versions: a binary of nvcc 13 needs driver 580 or newer
ENTRY_POINTS = (
    "ck_norm_forward", "ck_norm_backward", "ck_norm_reduce", "ck_geglu_forward", "ck_geglu_backward",
    "ck_attention_short_forward", "ck_attention_short_backward", "ck_attention_long_forward",
    "ck_attention_long_backward", "ck_attention_mid_backward", "ck_attention_fp32_forward",
    "ck_attention_fp32_backward", "ck_rotary",
    "ck_loss_count", "ck_loss_rows", "ck_loss_tiles", "ck_loss_combine", "ck_loss_slice", "ck_loss_finish",
)  # fmt: skip

_hooks: list[Callable] = []  # the installed launch hook, kept alive


class Launch(ctypes.Structure):
    """What a launch hook is told: ``ck_launch`` of csrc/api.h."""

    _fields_ = [
        ("symbol", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("argument_bytes", ctypes.c_uint32),
        ("arguments", ctypes.c_void_p),
    ]


_HOOK = ctypes.CFUNCTYPE(None, ctypes.POINTER(Launch))


class Library(NamedTuple):
    """The loaded library."""

    handle: ctypes.CDLL
    architectures: tuple[int, ...]
    calls: dict[str, Callable[[bytes, int], int]]


class KernelError(RuntimeError):
    """A launch failed; the message has the entry point and CUDA's words."""


@cache
def load() -> Library | str:
    """The library, or in words why there is none."""
    if not PATH.exists():
        return "the CUDA library was not built (no nvcc at install time, or CRAMKERNELS_CUDA=off)"
    try:
        if not _is_whole(PATH):
            raise OSError("the file is cut off")
        handle = ctypes.CDLL(str(PATH))
    except OSError as error:
        return f"{PATH.name} cannot be loaded ({error}); run pip install again"
    abi = handle.ck_abi() if hasattr(handle, "ck_abi") else None
    if abi != ABI:
        return f"{PATH.name} is stale (ABI {abi}, this version wants {ABI}); run pip install again"
    handle.ck_architectures.restype = handle.ck_error_string.restype = ctypes.c_char_p
    calls = {}
    for name in ENTRY_POINTS:
        if not hasattr(handle, name):
            return f"{PATH.name} is stale (it has no {name}); run pip install again"
        calls[name] = getattr(handle, name)
        calls[name].argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    return Library(handle, tuple(int(n) for n in handle.ck_architectures().decode().split(",")), calls)


def _is_whole(path: Path) -> bool:
    """The table of sections, which ends an ELF file, is there: the loader would die of a file that is cut off."""
    with open(path, "rb") as file:
        head = file.read(64)
    table, size, count = (int.from_bytes(head[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return len(head) == 64 and table + size * count <= path.stat().st_size


def is_older_than_sources() -> bool:
    """An editable install whose csrc/ was changed after the last build."""
    if not PATH.exists() or not SOURCES.is_dir():
        return False
    built = PATH.stat().st_mtime
    return any(path.stat().st_mtime > built for path in SOURCES.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))


@cache
def obstacle(index: int) -> str | None:
    """Why the library cannot serve CUDA device ``index``, or None."""
    library = load()
    if isinstance(library, str):
        return library
    driver = library.handle.ck_driver_version()
    if driver < MINIMUM_DRIVER:
        return f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, the library needs 13.0 (driver 580)"
    return architecture_obstacle(torch.cuda.get_device_capability(index), library.architectures)


def architecture_obstacle(capability: tuple[int, int], built: tuple[int, ...]) -> str | None:
    """Code for sm_xy runs on every sm_xz with z >= y; the PTX of the newest architecture on everything after it."""
    major, minor = capability
    number = 10 * major + minor
    if any(n // 10 == major and n <= number for n in built) or number > built[-1]:
        return None
    return f"the library has no code for sm_{number} (it has {', '.join(f'sm_{n}' for n in built)})"


@contextmanager
def launch_hook(hook: Callable[[Launch], None]) -> Iterator[None]:
    """Within this context launches are reported to ``hook`` and do not reach a device.

    RuntimeError where there is no library. Exceptions of the hook are raised by :func:`call`.
    """
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)

    def guarded(launch) -> None:
        try:
            hook(launch.contents)
        except BaseException as error:  # it must not cross the C frames; call() raises it
            _failures.append(error)

    callback = _HOOK(guarded)
    _hooks.append(callback)
    library.handle.ck_set_launch_hook(callback)
    try:
        yield
    finally:
        _hooks.pop()
        library.handle.ck_set_launch_hook(_hooks[-1] if _hooks else _HOOK())


_failures: list[BaseException] = []


def hook_installed() -> bool:
    """A launch hook is installed."""
    return bool(_hooks)


def call(name: str, arguments: bytes, device: torch.device) -> None:
    """Call an entry point on the device's current stream.

    Raises:
        KernelError: a status that is not 0.
    """
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)
    index = device.index  # None for the CPU; much cheaper to ask for than the type
    if index is None:
        if not _hooks:
            raise RuntimeError(f"{name}: cpu tensors, and no launch hook")
        status = library.calls[name](arguments, None)
    elif index == torch.cuda.current_device():
        status = library.calls[name](arguments, torch._C._cuda_getCurrentRawStream(index))
    else:
        with torch.cuda.device(device):
            status = library.calls[name](arguments, torch._C._cuda_getCurrentRawStream(index))
    if _failures:
        raise _failures.pop()
    if status:
        raise KernelError(f"{name}: {library.handle.ck_error_string(status).decode()} (status {status})")
