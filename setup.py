"""Build entry point. Metadata lives in pyproject.toml; torch is never needed to build."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before 70.1: build_ext is all that one is asked for, wheels are made by what pyproject.toml names
    bdist_wheel = object

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build  # noqa: E402


class BuildLibrary(build_ext):
    """Compiles csrc/ into the package where there is an nvcc; else the package is pure Python, and says so."""

    def run(self):
        self.built = []
        editable = self.inplace or self.editable_mode
        output = (ROOT if editable else Path(self.build_lib)) / "cramkernels" / native_build.LIBRARY
        if native_build.mode() == "off":
            output.unlink(missing_ok=True)  # an earlier build's
            return print("CRAMKERNELS_CUDA=off: no CUDA kernels are built")
        nvcc = native_build.find_nvcc()
        if nvcc is None:
            if native_build.mode() == "force":
                raise native_build.BuildError("CRAMKERNELS_CUDA=force, but there is no nvcc: set CUDACXX or CUDA_HOME")
            output.unlink(missing_ok=True)
            return print("no nvcc: no CUDA kernels are built (set CUDACXX or CUDA_HOME if there is one)")
        architectures = native_build.choose_architectures(nvcc, everywhere=not editable)
        print(f"{nvcc}: compiling csrc/ for sm_{', sm_'.join(map(str, architectures))}")
        native_build.build(nvcc, architectures, ROOT / "build" / "native", output)
        self.built = [str(output)]

    def get_outputs(self):
        return self.built

    def get_output_mapping(self):
        return {}


class TagWheel(bdist_wheel):
    """One wheel for every Python 3: the library has a plain C ABI. Without it, one for every platform too."""

    def get_tag(self):
        platform = super().get_tag()[2]
        has_library = any(Path(self.bdist_dir).rglob(native_build.LIBRARY))  # what is about to be zipped
        return "py3", "none", platform if has_library else "any"


setup(
    ext_modules=[Extension("cramkernels.native", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
)
