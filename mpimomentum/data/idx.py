"""MNIST and Fashion-MNIST: four files in IDX layout, gzipped or plain.

An IDX file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), the
dimensions as 32-bit integers, big end first, and the bytes.

References
----------
Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", 1998; the layout
is at the end of its page. H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpimomentum.data.dataset import Dataset, from_pixels
from mpimomentum.data.files import found, unexpected

SIDE, CLASSES = 28, 10
GZIP = b"\x1f\x8b"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist

_FASHION_REMEDY = (
    "Get the four files from github.com/zalandoresearch/fashion-mnist, or with "
    "`apt-get install dataset-fashion-mnist`, and name their folder with --data-dir"
)
_MNIST_REMEDY = (
    "Get the four files of MNIST (train-images-idx3-ubyte.gz and so on) and name their folder "
    "with --data-dir"
)


def fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Read Fashion-MNIST; 60000 images for training and 10000 for test, (1, 28, 28) each.

    Parameters
    ----------
    data_dir : Path, optional
        Folder of the four files; by default that of the Debian package dataset-fashion-mnist.

    Raises
    ------
    FileNotFoundError
        If one is missing.
    ValueError
        If one is truncated, foreign, or does not go with the others.
    """
    return _read("fashion-mnist", FASHION_MNIST if data_dir is None else data_dir, _FASHION_REMEDY)


def mnist(data_dir: Path | None = None) -> Dataset:
    """Read MNIST; 60000 images for training and 10000 for test, (1, 28, 28) each.

    Parameters
    ----------
    data_dir : Path
        Folder of the four files; it has no usual place.

    Raises
    ------
    FileNotFoundError
        If one is missing, or no folder is given.
    ValueError
        If one is truncated, foreign, or does not go with the others.
    """
    if data_dir is None:
        raise FileNotFoundError(f"data set 'mnist' has no usual place. {_MNIST_REMEDY}")
    return _read("mnist", data_dir, _MNIST_REMEDY)


def _read(name: str, folder: Path, remedy: str) -> Dataset:
    train, test = (_part(folder, stem, remedy) for stem in ("train", "t10k"))
    return from_pixels(name, train, test, CLASSES)


def _part(folder: Path, stem: str, remedy: str) -> tuple[Tensor, Tensor]:
    """Return images, uint8 (n, 1, 28, 28), and labels, int64 (n,)."""
    images_path, labels_path = (
        found(folder, (plain, f"{plain}.gz"), content, remedy)
        for plain, content in (
            (f"{stem}-images-idx3-ubyte", "images in IDX layout"),
            (f"{stem}-labels-idx1-ubyte", "labels in IDX layout"),
        )
    )
    images = _array(images_path, 3, remedy)
    if images.shape[1:] != (SIDE, SIDE):
        size = " x ".join(str(n) for n in images.shape[1:])
        raise unexpected(images_path, f"images of {SIDE} x {SIDE} pixels", f"{size}", remedy)
    labels = _array(labels_path, 1, remedy)
    if len(labels) != len(images):
        expected = f"{len(images)} labels, as many as {images_path.name} has images"
        raise unexpected(labels_path, expected, str(len(labels)), remedy)
    if labels.max() >= CLASSES:
        raise unexpected(labels_path, f"labels 0 to {CLASSES - 1}", f"{labels.max()}", remedy)
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))


def _array(path: Path, dims: int, remedy: str) -> NDArray[np.uint8]:
    """Return what `path` holds, uint8, with `dims` dimensions, at least one element."""
    content = _content(path, remedy)
    head = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))
    if content[:4] != magic:
        raise unexpected(
            path,
            f"bytes in IDX layout of {dims} dimensions (it begins with {magic.hex(' ')})",
            f"{content[:4].hex(' ')}" if content else "an empty file",
            remedy,
        )
    if len(content) < head:
        raise unexpected(path, f"{head} bytes of header", f"{len(content)}: truncated", remedy)
    shape = struct.unpack(f">{dims}I", content[4:head])
    count = int(np.prod(shape, dtype=object))
    if not count or len(content) - head != count:
        found = f"{len(content) - head}"
        text = " x ".join(str(n) for n in shape)
        what = "truncated or damaged" if len(content) - head < count else "not such a file"
        raise unexpected(path, f"{text} bytes after the header", f"{found}: {what}", remedy)
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape).copy()


def _content(path: Path, remedy: str) -> bytes:
    """Return the bytes of `path`, unpacked if they are gzipped, whatever it is called."""
    packed = path.read_bytes()
    if not packed.startswith(GZIP):
        return packed
    try:
        return gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise unexpected(path, "a whole gzip file", f"{error}: truncated", remedy) from error
