"""OptDigits: 1797 handwritten digits of 8×8 pixels, read from scikit-learn's installed file.

References
----------
E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49 (the test part, as scikit-learn ships it).
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mpimomentum.data.dataset import Dataset, from_pixels

FILE = "digits.csv.gz"
SAMPLES, PIXELS, CLASSES = 1797, 64, 10
CONTENT = f"{SAMPLES} rows of {PIXELS} pixels (0 to 16) and a label (0 to 9)"
TEST_EVERY = 5


def load(data_dir: Path | None = None) -> Dataset:
    """Read OptDigits; 1437 images for training and 360 for test, (1, 8, 8) each.

    Every fifth image of each class, in the order of the file, is for test: the same split
    everywhere, and stratified.

    Parameters
    ----------
    data_dir : Path, optional
        Folder that holds ``digits.csv.gz``; by default scikit-learn's.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is truncated or holds something else.
    """
    table = _read(_locate(data_dir))
    images = torch.from_numpy(table[:, :PIXELS].astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, PIXELS])
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[torch.argsort(labels, stable=True)[::TEST_EVERY]] = True
    return from_pixels(
        "digits",
        (images[~is_test], labels[~is_test]),
        (images[is_test], labels[is_test]),
        CLASSES,
    )


def _locate(data_dir: Path | None) -> Path:
    """Return the path of the file, which exists."""
    if data_dir is not None:
        path = data_dir / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} not found; expected {CONTENT}. Copy it there from scikit-learn's "
                f"datasets/data/, or leave data_dir out to use scikit-learn's own"
            )
        return path
    spec = importlib.util.find_spec("sklearn")  # finds it without the 1.6 s of importing it
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder) / "datasets" / "data" / FILE
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{FILE} not found: data set 'digits' is read from scikit-learn's datasets/data/{FILE} "
        f"({CONTENT}). Run `pip install scikit-learn`, or give a data_dir that holds {FILE}"
    )


def _read(path: Path) -> NDArray[np.int64]:
    """Return the table of `path`, int64, shape (1797, 65): pixels, then the label."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.int64, ndmin=2)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise _unexpected(path, str(error)) from error
    if table.shape != (SAMPLES, PIXELS + 1):
        raise _unexpected(path, f"shape {table.shape}")
    if table.min() < 0 or table.max() > 16 or table[:, PIXELS].max() >= CLASSES:
        raise _unexpected(path, "values out of range")
    return table


def _unexpected(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: expected {CONTENT}, found: {found}. The file is truncated or not OptDigits; "
        f"restore it with `pip install --force-reinstall scikit-learn`"
    )
