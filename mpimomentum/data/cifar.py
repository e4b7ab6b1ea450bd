"""CIFAR-10 and CIFAR-100 in the layout of their python version: pickles of dictionaries.

References
----------
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html describes the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpimomentum.data import plain_pickle
from mpimomentum.data.augment import CropAndFlip
from mpimomentum.data.dataset import Dataset, from_pixels
from mpimomentum.data.files import found, unexpected

SHAPE = (3, 32, 32)
PIXELS = 3072
AUGMENT = CropAndFlip(padding=4, flip=True)


@dataclass(frozen=True)
class Layout:
    """Which files one of the two consists of."""

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str  # key
    classes: int

    @property
    def remedy(self) -> str:
        """How to get the files."""
        return (
            f"Get {self.archive} from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it "
            f"(tar xzf {self.archive}) and name the folder that holds {self.folder} with --data-dir"
        )


CIFAR10 = Layout(
    "cifar10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    tuple(f"data_batch_{k}" for k in range(1, 6)),
    ("test_batch",),
    "labels",
    10,
)
CIFAR100 = Layout(
    "cifar100",
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    ("train",),
    ("test",),
    "fine_labels",
    100,
)


def cifar10(data_dir: Path | None = None) -> Dataset:
    """Read CIFAR-10; 50000 images for training and 10000 for test, (3, 32, 32) each.

    Parameters
    ----------
    data_dir : Path
        ``cifar-10-batches-py``, or the folder that holds it; it has no usual place.

    Raises
    ------
    FileNotFoundError
        If a file is missing, or no folder is given.
    ValueError
        If one is truncated or foreign; nothing in it is executed.
    """
    return _read(CIFAR10, data_dir)


def cifar100(data_dir: Path | None = None) -> Dataset:
    """Read CIFAR-100 with its fine labels; as :func:`cifar10`, from ``cifar-100-python``."""
    return _read(CIFAR100, data_dir)


def _read(layout: Layout, data_dir: Path | None) -> Dataset:
    if data_dir is None:
        raise FileNotFoundError(f"data set {layout.name!r} has no usual place. {layout.remedy}")
    folder = data_dir / layout.folder
    if not folder.is_dir() and (data_dir / layout.test[0]).is_file():
        folder = data_dir
    train, test = (_part(layout, folder, files) for files in (layout.train, layout.test))
    return from_pixels(layout.name, train, test, layout.classes, AUGMENT)


def _part(layout: Layout, folder: Path, files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (n, 3, 32, 32), and labels, int64 (n,)."""
    what = f"a pickle of images with {layout.labels}"
    paths = [found(folder, (file,), what, layout.remedy) for file in files]  # all, before any
    parts = [_batch(layout, path) for path in paths]
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
    return torch.from_numpy(pixels), torch.from_numpy(np.concatenate([y for _, y in parts]))


def _batch(layout: Layout, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels, uint8 (n, 3072), and labels, int64 (n,), of one file."""

    def refuse(expected: str, found: str) -> ValueError:
        return unexpected(path, expected, found, layout.remedy)

    try:
        table = plain_pickle.loads(path.read_bytes())
    except ValueError as error:
        raise refuse("a pickle of plain data", str(error)) from error
    if not isinstance(table, dict):
        raise refuse("a dictionary", type(table).__name__)
    # keys are bytes where Python 2 wrote the file
    named = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in table.items()}
    if not {"data", layout.labels} <= named.keys():
        keys = ", ".join(sorted(str(key) for key in named)) or "none"
        raise refuse(f"keys data and {layout.labels}", f"keys {keys}")
    pixels, labels = named["data"], named[layout.labels]
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (PIXELS,) or not len(pixels):
        raise refuse(f"an array of n x {PIXELS} pixels", str(getattr(pixels, "shape", pixels))[:80])
    if not isinstance(labels, list) or len(labels) != len(pixels):
        count = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise refuse(f"{len(pixels)} labels, as many as images", f"{count}")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < layout.classes:
            raise refuse(f"labels 0 to {layout.classes - 1}", repr(label)[:80])
    return pixels, np.array(labels, dtype=np.int64)
