"""The data sets there are. A new one is a reader in a file of its own and a row here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from mpimomentum.data import digits
from mpimomentum.data.dataset import Dataset

_READERS: dict[str, tuple[Callable[[Path | None], Dataset], str]] = {
    "digits": (digits.load, "OptDigits: 1437 + 360 images of 8x8, 10 classes (scikit-learn's)"),
}


def names() -> dict[str, str]:
    """Return each data set's name with a line about it."""
    return {name: about for name, (_, about) in _READERS.items()}


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Read the data set `name`; the same images in the same order on every rank.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    data_dir : str or Path, optional
        Folder that holds its files, where they are not at their usual place.

    Raises
    ------
    ValueError
        If there is no such data set, or a file of it is damaged.
    FileNotFoundError
        If a file of it is missing; the message says where to get it.
    """
    if name not in _READERS:
        near = difflib.get_close_matches(name, _READERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(_READERS)}"
        raise ValueError(f"unknown data set {name!r}: {hint}")
    read, _ = _READERS[name]
    return read(None if data_dir is None else Path(data_dir))
