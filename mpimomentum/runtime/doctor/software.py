"""What is installed."""

from __future__ import annotations

import platform
from importlib import metadata, util
from pathlib import Path
from zlib import crc32

from mpimomentum import data
from mpimomentum.codecs import extension
from mpimomentum.data import image_folder
from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import Place
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.variables import check_instruction_set

_OPTIONAL = {  # module -> what it is for
    "PIL": "--data image-folder",
    "torchvision": "its models by name",
    "tensorboard": "curves in the browser",
    "cupy": "packed signs of cupy arrays",
}
_PACKAGES = {"PIL": "pillow"}  # module -> its name in the index, where that is another


def versions(place: Place) -> Finding:
    """Name the versions of what every run uses."""
    packages = (f"{name} {_version(name)}" for name in ("torch", "numpy", "mpi4py"))
    return Finding(
        "versions",
        Status.OK,
        f"mpimomentum {_version('mpimomentum')} ({_build()}), Python {platform.python_version()}, "
        + ", ".join(packages),
        "the same on every rank, or weights may differ",
    )


def kernels(place: Place) -> Finding:
    """Look for the C++ extension, and say which of its kernels compute."""
    path = extension.built()
    if path is None:
        return Finding(
            "C++ extension",
            Status.WARN,
            f"cannot be loaded ({extension.problem}): torch computes instead",
            "the results are the same; packed signs, mixing and momentum steps are slower",
            "install again where a C++ compiler is: pip install --force-reinstall --no-deps -v .",
        )
    try:
        check_instruction_set(place.environ)
    except BadInput as error:
        return Finding("C++ extension", Status.FAIL, path, "no kernel can compute", str(error))
    cuda = "CUDA kernels for sm_80, sm_90 and later" if extension.cuda() else "no CUDA kernels"
    return Finding(
        "C++ extension",
        Status.OK,
        f"kernels for {extension.instruction_set()}, {cuda}, in {path}",
        "CUDA tensors need an installation where nvcc is, with MPIMOMENTUM_CUDA=1"
        if not extension.cuda()
        else "packed signs, mixing and momentum steps run at the memory's speed",
    )


def optional(place: Place) -> Finding:
    """Look for packages that some features need."""
    uses = {_PACKAGES.get(name, name): use for name, use in _OPTIONAL.items()}
    missing = [_PACKAGES.get(n, n) for n in _OPTIONAL if util.find_spec(n) is None]
    here = [f"{name} {_version(name)}" for name in uses if name not in missing]
    return Finding(
        "optional packages",
        Status.NOTE if missing else Status.OK,
        ", ".join([*here, *(f"no {name}" for name in missing)]),
        "; ".join(f"{name}: {use}" for name, use in uses.items()),
        f"pip install {' '.join(missing)}, if you want that" if missing else "",
    )


def data_sets(place: Place) -> Finding:
    """Try to read every data set; of images of one's own, look for the folder."""
    folder = place.environ.get("MPIMOMENTUM_DATA_DIR")
    here, missing, damaged = [], [], []
    for name in data.names():
        try:
            if name != image_folder.NAME:
                data.load(name, folder)
            elif folder is None or not (Path(folder) / "train").is_dir():
                missing.append(name)  # it may be large: not to be decoded here
                continue
        except FileNotFoundError:
            missing.append(name)
        except (ValueError, OSError) as error:
            damaged.append(" ".join(str(error).split()))
        else:
            here.append(name)
    found = f"found {', '.join(here) or 'none'}"
    found += f"; not {', '.join(missing)}" if missing else ""
    if damaged:
        return Finding(
            "data sets",
            Status.WARN,
            "; ".join([found, *damaged]),
            "a file is there, but cannot be read",
            "put a whole copy of it in its place",
        )
    return Finding(
        "data sets",
        Status.NOTE if missing else Status.OK,
        found,
        "what --data can train on here",
        "`mpimomentum list data` says which files each needs in --data-dir" if missing else "",
    )


def _build() -> str:
    """Return what tells one build of the C++ extension from another."""
    path = extension.built()
    return "no build" if path is None else f"build {crc32(Path(path).read_bytes()):08x}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(version unknown)"
