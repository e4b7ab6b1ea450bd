"""The data sets there are. A new one is a reader in a file of its own and a row here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mpimomentum.data import cifar, dataset, digits, idx, image_folder
from mpimomentum.data.augment import Augment
from mpimomentum.data.dataset import Dataset


@dataclass(frozen=True)
class _Reader:
    read: Callable[..., Dataset]  # (data_dir), and (data_dir, image_size) for image-folder
    about: str
    where: str
    augment: Augment | None = None
    placed: bool = False  # whether it is looked for without a data_dir, too


_READERS = {
    "digits": _Reader(
        digits.load,
        "OptDigits: 1437 + 360 images of 1x8x8, 10 classes",
        "scikit-learn's own files, or digits.csv.gz in --data-dir",
        placed=True,
    ),
    "fashion-mnist": _Reader(
        idx.fashion_mnist,
        "clothes: 60000 + 10000 images of 1x28x28, 10 classes",
        f"IDX files in {idx.FASHION_MNIST} or --data-dir",
        placed=True,
    ),
    "mnist": _Reader(
        idx.mnist,
        "handwritten digits: 60000 + 10000 images of 1x28x28, 10 classes",
        "IDX files in --data-dir",
    ),
    "cifar10": _Reader(
        cifar.cifar10,
        "photographs: 50000 + 10000 images of 3x32x32, 10 classes",
        f"{cifar.CIFAR10.folder}/ in --data-dir",
        cifar.AUGMENT,
    ),
    "cifar100": _Reader(
        cifar.cifar100,
        "photographs: 50000 + 10000 images of 3x32x32, 100 classes",
        f"{cifar.CIFAR100.folder}/ in --data-dir",
        cifar.AUGMENT,
    ),
    image_folder.NAME: _Reader(
        image_folder.load,
        "your own images, a folder a class, read by Pillow",
        f"{image_folder.LAYOUT} in --data-dir",
    ),
}


def names() -> dict[str, str]:
    """Return each data set's name with a line about it and where its files are looked for."""
    return {name: f"{row.about}; {row.where}" for name, row in _READERS.items()}


def check_place(name: str, data_dir: str | Path | None) -> None:
    """Refuse a data set that has no usual place where no folder is given. Reads nothing.

    Raises
    ------
    ValueError
        If there is no such data set.
    FileNotFoundError
        The message says where to get it.
    """
    if data_dir is None and not _row(name).placed:
        _row(name).read(None)


def load(name: str, data_dir: str | Path | None = None, image_size: int | None = None) -> Dataset:
    """Read the data set `name`; the same images in the same order on every rank.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    data_dir : str or Path, optional
        Folder that holds its files, where they are not at their usual place.
    image_size : int, optional
        For image-folder: resize images to squares of this side.

    Raises
    ------
    ValueError
        If there is no such data set, or a file of it is damaged.
    FileNotFoundError
        If a file of it is missing; the message says where to get it.
    """
    read = _row(name).read
    folder = None if data_dir is None else Path(data_dir)
    if image_size is None:
        return read(folder)
    if name != image_folder.NAME:
        raise ValueError(
            f"image_size={image_size}: the images of {name!r} have one size; leave it out, or use "
            f"--data {image_folder.NAME}"
        )
    return read(folder, image_size)


def from_tensors(name: str, tensors: Sequence[Tensor]) -> Dataset:
    """Make the data set `name` of the :meth:`Dataset.tensors` that another rank has read."""
    return dataset.from_tensors(name, tensors, _row(name).augment)


def _row(name: str) -> _Reader:
    if name not in _READERS:
        near = difflib.get_close_matches(name, _READERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_READERS)}"
        raise ValueError(f"unknown data set {name!r}: {hint}")
    return _READERS[name]
