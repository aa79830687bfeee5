"""Compiling csrc/ with nvcc into one shared library with a plain C ABI. Needs the standard library alone.

Environment:
    CRAMKERNELS_CUDA        "auto" (default): with nvcc, compile; "force": fail where that cannot be done; "off": never.
    CRAMKERNELS_CUDA_ARCHS  architectures such as "86" or "80,90"; by default the present GPU's, all where there is no
                            GPU or a wheel is made.
    CUDACXX, CUDA_HOME      where nvcc is, before PATH and pip's nvidia packages.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libcramkernels.so"
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
# A driver newer than the toolkit serves; 13.0 wants driver 580
PIP_NVCC = [
    f"{name}>=13,<13.1" for name in ("nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-nvvm")
] + ["nvidia-cuda-cccl>=13,<13.1"]


class BuildError(SystemExit):
    """The library cannot be built; the message says why and what to do, and is all that a user sees of it."""


def mode() -> str:
    """CRAMKERNELS_CUDA, checked."""
    value = os.environ.get("CRAMKERNELS_CUDA", "auto")
    if value not in ("auto", "force", "off"):
        raise BuildError(f"CRAMKERNELS_CUDA: got {value!r}, want auto, force or off")
    return value


def pip_requirements() -> list[str]:
    """What pip has to bring before a build: nvcc, where it is wanted and the machine has none."""
    wanted = mode() == "force" or (mode() == "auto" and has_driver())
    return PIP_NVCC if wanted and _machine_nvcc() is None else []


def has_driver() -> bool:
    """NVIDIA's driver library is installed."""
    return ctypes.util.find_library("cuda") is not None


def find_nvcc() -> Path | None:
    """The machine's nvcc, or pip's."""
    return _machine_nvcc() or _pip_nvcc()


def _machine_nvcc() -> Path | None:
    places = [os.environ.get("CUDACXX"), "nvcc"]
    if os.environ.get("CUDA_HOME"):
        places.insert(1, str(Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"))
    found = (shutil.which(place) for place in places if place)  # which: files that can be executed
    return next((Path(place) for place in found if place), None)


def _pip_nvcc() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        found = sorted(Path(folder).glob("*/bin/nvcc"))
        if found:
            return found[-1]
    return None


def release(nvcc: Path) -> str:
    """Such as V13.0.88."""
    return re.search(r"V\d[\d.]*|$", _run([nvcc, "--version"])).group()


def known_architectures(nvcc: Path) -> list[int]:
    """Those of ours that this nvcc compiles for."""
    listed = _run([nvcc, "--list-gpu-arch"])
    known = {int(number) for number in re.findall(r"compute_(\d+)", listed)}
    return [architecture for architecture in ARCHITECTURES if architecture in known]


def choose_architectures(nvcc: Path, *, everywhere: bool) -> list[int]:
    """CRAMKERNELS_CUDA_ARCHS, else the present GPUs', else (or ``everywhere``) all known ones."""
    known = known_architectures(nvcc)
    asked = os.environ.get("CRAMKERNELS_CUDA_ARCHS")
    if asked:
        try:
            chosen = sorted({int(number) for number in re.split(r"[,; ]+", asked.strip())})
        except ValueError:
            raise BuildError(f"CRAMKERNELS_CUDA_ARCHS: got {asked!r}, want numbers such as 80,86") from None
        if not set(chosen) <= set(known):
            raise BuildError(f"CRAMKERNELS_CUDA_ARCHS: got {asked!r}, want some of {known} ({nvcc})")
        return chosen
    present = [] if everywhere else [number for number in _present_gpus() if number in known]
    return present or known


def _present_gpus() -> list[int]:
    try:
        listed = _run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    except BuildError:
        return []
    return sorted({int(line.replace(".", "")) for line in listed.split() if re.fullmatch(r"\d+\.\d", line)})


def build(nvcc: Path, architectures: list[int], work: Path, output: Path) -> None:
    """Compile what has changed since the last build in ``work`` and link ``output``."""
    with _alone(work):
        started = time.time()
        linked = _link(nvcc, architectures, _compile_all(nvcc, architectures, work))
        # Copied even where nothing was linked: ``output`` may be of another build
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(linked, output.with_suffix(".new"))
        os.utime(output.with_suffix(".new"), (started, started))  # older than sources that were changed meanwhile
        os.replace(output.with_suffix(".new"), output)  # never change a library that a process has mapped


def compile_sources(nvcc: Path, architectures: list[int], work: Path) -> list[Path]:
    """The objects, of which those that have changed are compiled, several at a time.

    Beside NAME.cu.o lie ptxas's report NAME.cu.ptxas and the PTX files NAME.cu.ptx/*.ptx that it was made from.
    """
    with _alone(work):
        return _compile_all(nvcc, architectures, work)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One build at a time: a second one waits, and then finds most of its work done."""
    import fcntl  # Linux is where there are CUDA libraries; this module is imported elsewhere too

    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _link(nvcc: Path, architectures: list[int], objects: list[Path]) -> Path:
    linked = objects[0].with_name(LIBRARY)
    # -cudart static: the driver is looked for at the first launch, not when the library is loaded
    command = [nvcc, *_code_flags(architectures), "-shared", "-cudart", "static", *_library_paths(nvcc), *objects]
    note, wanted = linked.with_suffix(".command"), _note(nvcc, command)
    if not _is_made(linked, note, wanted) or any(o.stat().st_mtime > linked.stat().st_mtime for o in objects):
        note.unlink(missing_ok=True)
        _run([*command, "-o", linked])
        note.write_text(wanted)
    return linked


def _compile_all(nvcc: Path, architectures: list[int], work: Path) -> list[Path]:
    work = work / "-".join(map(str, architectures))
    work.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, f'-DCK_ARCHITECTURES="{",".join(map(str, architectures))}"', *_code_flags(architectures)]
    command = [nvcc, *flags, "-Xptxas", "-v"]
    note = _note(nvcc, command)
    sources = sorted(SOURCES.rglob("*.cu"))
    objects = [work / f"{source.relative_to(SOURCES).as_posix().replace('/', '-')}.o" for source in sources]
    stale = [pair for pair in zip(sources, objects, strict=True) if _is_stale(*pair, note)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda pair: _compile(command, *pair, note), stale))
    return objects


def _code_flags(architectures: list[int]) -> list[str]:
    """Machine code for each architecture, and PTX for those to come.

    Two front-end passes serve all: nothing here needs more than sm_80's instructions, and sm_75 lacks those.
    """
    virtual = {number: 75 if number < 80 else 80 for number in architectures}
    real = [f"-gencode=arch=compute_{virtual[number]},code=sm_{number}" for number in architectures]
    newest = virtual[architectures[-1]]
    return [*real, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def _library_paths(nvcc: Path) -> list[str]:
    """pip's packages keep libraries in lib, where nvcc looks in lib64."""
    folder = nvcc.resolve().parent.parent / "lib"
    return [f"-L{folder}"] if (folder / "libcudart_static.a").exists() else []


def _note(nvcc: Path, command: list) -> str:
    """What an output was made with: the compiler's release, which may change in its place, and the command."""
    return f"{release(nvcc)}\n{' '.join(map(str, command))}"


def _is_made(made: Path, note: Path, wanted: str) -> bool:
    return made.exists() and note.exists() and note.read_text() == wanted


def _is_stale(source: Path, made: Path, note: str) -> bool:
    dependencies = made.with_suffix(".d")
    if not _is_made(made, made.with_suffix(".command"), note) or not dependencies.exists():
        return True
    named = re.findall(r"(?:\\ |\S)+", dependencies.read_text().partition(":")[2].replace("\\\n", " "))
    paths = [Path(name.replace("\\ ", " ")) for name in named]
    age = made.stat().st_mtime
    return any(not path.exists() or path.stat().st_mtime > age for path in [source, *paths])


def _compile(command: list, source: Path, made: Path, note: str) -> None:
    started = time.time()
    made.with_suffix(".command").unlink(missing_ok=True)  # until the compile is through, there is no object
    kept = made.with_suffix(".ptx")
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    noting = ["-keep", "-keep-dir", kept, "-MD", "-MF", made.with_suffix(".d")]
    report = _run([*command, *noting, "-c", source, "-o", made])
    for path in kept.iterdir():
        if path.suffix != ".ptx":
            path.unlink()
    made.with_suffix(".ptxas").write_text(report)
    os.utime(made, (started, started))  # older than sources that were changed meanwhile
    made.with_suffix(".command").write_text(note)


def _run(command: list) -> str:
    words = [str(word) for word in command]
    try:
        result = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{words[0]}: {error}") from None
    if result.returncode:
        raise BuildError(f"{' '.join(words)}\n{result.stdout}{result.stderr}".rstrip())
    return result.stdout + result.stderr
