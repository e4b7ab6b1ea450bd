"""Build script; the metadata are in pyproject.toml. The C++/CUDA extension is declared here."""

from setuptools import setup

setup()
