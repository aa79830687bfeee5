"""Build entry point. Metadata lives in pyproject.toml; torch is never needed to build."""

from setuptools import setup

setup()
