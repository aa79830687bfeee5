"""setuptools' build backend, which asks pip for nvcc where a driver is there and a compiler is not."""

from native_build import pip_requirements
from setuptools.build_meta import *  # noqa: F403  (a backend is a module of these functions)
from setuptools.build_meta import get_requires_for_build_editable as _editable
from setuptools.build_meta import get_requires_for_build_wheel as _wheel


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517."""
    return [*_wheel(config_settings), *pip_requirements()]


def get_requires_for_build_editable(config_settings=None):
    """PEP 660."""
    return [*_editable(config_settings), *pip_requirements()]
