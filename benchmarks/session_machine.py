"""The machine of a session, in facts that make its figures comparable: card, driver, clocks, power limit, versions."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from benchmarks.results import versions

# nvidia-smi's names -> ours
QUERIES = {
    "driver_version": "driver", "power.limit": "power limit", "power.default_limit": "power limit by default",
    "clocks.max.sm": "highest clock", "clocks.max.memory": "highest memory clock",
    "clocks.applications.graphics": "application clock", "temperature.gpu": "temperature, C",
    "persistence_mode": "persistence mode", "pcie.link.gen.max": "PCIe generation",
}  # fmt: skip


def facts() -> dict[str, str]:
    """In the order of the page."""
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    found = {
        "GPU": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}, {properties.multi_processor_count} multiprocessors",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "L2 cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        **of_the_driver(index),
        "CUDA of torch": str(torch.version.cuda),
        "system": platform.platform(),
    }
    return found | versions()


def of_the_driver(index: int) -> dict[str, str]:
    """What nvidia-smi says; nothing where it is not there or does not answer."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in said.strip().splitlines()[0].split(",")] if said.strip() else []
    return {name: value for name, value in zip(QUERIES.values(), values, strict=False) if "N/A" not in value}
