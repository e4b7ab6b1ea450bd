"""What is installed."""

from __future__ import annotations

import platform
from importlib import metadata, util

from mpimomentum import data
from mpimomentum.codecs import extension
from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import Place

_OPTIONAL = {  # module -> what it is for
    "torchvision": "image folders and more models",
    "tensorboard": "curves in the browser",
    "cupy": "packed signs of cupy arrays",
}


def versions(place: Place) -> Finding:
    """Name the versions of what every run uses."""
    packages = (f"{name} {_version(name)}" for name in ("torch", "numpy", "mpi4py"))
    return Finding(
        "versions",
        Status.OK,
        f"mpimomentum {_version('mpimomentum')}, Python {platform.python_version()}, "
        + ", ".join(packages),
        "the same on every rank, or weights may differ",
    )


def kernels(place: Place) -> Finding:
    """Look for the C++ extension."""
    path = extension.built()
    if path is None:
        return Finding(
            "C++ extension",
            Status.NOTE,
            "not built: torch/numpy reference used",
            "the results are the same; packed signs and mixing are slower",
        )
    return Finding("C++ extension", Status.OK, path, "native kernels are used")


def optional(place: Place) -> Finding:
    """Look for packages that some features need."""
    here = [f"{name} {_version(name)}" for name in _OPTIONAL if util.find_spec(name) is not None]
    missing = [name for name in _OPTIONAL if util.find_spec(name) is None]
    return Finding(
        "optional packages",
        Status.NOTE if missing else Status.OK,
        ", ".join([*here, *(f"no {name}" for name in missing)]),
        "; ".join(f"{name}: {use}" for name, use in _OPTIONAL.items()),
        f"pip install {' '.join(missing)}, if you want that" if missing else "",
    )


def data_sets(place: Place) -> Finding:
    """Try to read every data set."""
    data_dir = place.environ.get("MPIMOMENTUM_DATA_DIR")
    here, missing = [], {}
    for name in data.names():
        try:
            data.load(name, data_dir)
        except (ValueError, OSError) as error:
            missing[name] = " ".join(str(error).split())
        else:
            here.append(name)
    return Finding(
        "data sets",
        Status.NOTE if missing else Status.OK,
        f"found {', '.join(here) or 'none'}" + (f"; not {', '.join(missing)}" if missing else ""),
        "what --data can train on here",
        "; ".join(f"{name}: {why}" for name, why in missing.items()),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(version unknown)"
