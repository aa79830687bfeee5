"""``python -m cramkernels.info``: which backend serves which operation on this machine, and why."""

from __future__ import annotations

import platform
import sys

import torch

from cramkernels import library
from cramkernels.dispatch import OPERATIONS, backend_for


def devices() -> list[tuple[torch.device, torch.dtype, str]]:
    """The devices of this machine, each with the dtype that training uses on it and its name."""
    found = [(torch.device("cpu"), torch.float32, platform.processor() or platform.machine())]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        dtype = torch.bfloat16 if major >= 8 else torch.float16
        found.append((torch.device("cuda", index), dtype, f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"))
    return found


def report() -> str:
    """The whole report as text."""
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, CUDA of torch: {torch.version.cuda or 'none'}",
        f"triton: {_version('triton')}",
        f"CUDA library: {_library()}",
    ]
    for device, dtype, name in devices():
        lines.append(f"\n{device} ({name}), {dtype}:")
        for op in OPERATIONS:
            choice = backend_for(op, dtype=dtype, device=device)
            lines.append(f"  {op:<16} {choice.backend:<10} {choice.reason}")
    if not torch.cuda.is_available():
        lines.append("\nno CUDA device: everything runs on the reference backend")
    return "\n".join(lines)


def _library() -> str:
    loaded = library.load()
    if isinstance(loaded, str):
        return loaded
    described = f"{library.PATH.name} for {', '.join(f'sm_{n}' for n in loaded.architectures)}"
    driver = loaded.handle.ck_driver_version()
    described += f", driver for CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else ", no driver here"
    if library.is_older_than_sources():
        described += "; OLDER THAN csrc/: run pip install -e . again"
    return described


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    print(report())
    sys.exit(0)
