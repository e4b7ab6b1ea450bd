"""Your own images, a folder a class: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``).

The layout is that of torchvision's ImageFolder. Images are decoded by Pillow, as torchvision does
it, so torchvision itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpimomentum.data.dataset import Dataset, from_pixels

NAME = "image-folder"
TEST = ("test", "val")
SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE)"


def load(data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """Read images in colour; the classes are the folders in ``train``, in alphabetical order.

    All of them are held in memory, 3 bytes a pixel.

    Parameters
    ----------
    data_dir : Path
        Folder that holds ``train`` and ``test`` or ``val``.
    image_size : int, optional
        Resize each image so that its shorter side has so many pixels, and keep the middle square.
        Without it all images must be of one size.

    Raises
    ------
    FileNotFoundError
        If a folder is missing, or no folder is given.
    ValueError
        If a file cannot be decoded, if sizes differ, if a class of the test images is not one of
        the training images, or if Pillow is missing.
    """
    if data_dir is None:
        raise FileNotFoundError(f"data set '{NAME}' needs --data-dir, a folder with {LAYOUT}")
    pillow = _pillow()
    train_dir = _folder(data_dir, ("train",))
    test_dir = _folder(data_dir, TEST)
    classes = _classes(train_dir)
    strange = [name for name in _classes(test_dir) if name not in classes]
    if strange:
        raise ValueError(
            f"{test_dir / strange[0]}: expected classes of {train_dir} ({_some(classes)}), found "
            f"{strange[0]!r}. Rename or remove that folder"
        )
    files = [_files(folder, classes) for folder in (train_dir, test_dir)]
    reader = _Reader(pillow, image_size, files[0][0][0])
    train, test = (
        (reader.pixels([path for path, _ in part]), torch.tensor([label for _, label in part]))
        for part in files
    )
    return from_pixels(NAME, train, test, len(classes))


class _Reader:
    """Decodes images to one size: that of `first`, unless they are resized."""

    def __init__(self, pillow: ModuleType, image_size: int | None, first: Path) -> None:
        self._image = pillow
        self._square = image_size
        self._first = first
        self._shape = self.decode(first).shape

    def pixels(self, paths: Sequence[Path]) -> Tensor:
        """Return all images, uint8 (n, 3, height, width)."""
        out = np.empty((len(paths), *self._shape), dtype=np.uint8)
        for row, path in zip(out, paths, strict=True):
            image = self.decode(path)
            if image.shape != self._shape:
                raise ValueError(
                    f"{path}: expected {_size(self._shape)} pixels as in {self._first}, found "
                    f"{_size(image.shape)}. Give --image-size N to resize all images to N x N"
                )
            row[:] = image
        return torch.from_numpy(out)

    def decode(self, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return one image, uint8 (3, height, width)."""
        try:
            with self._image.open(path) as file:
                image = file.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
            raise ValueError(
                f"{path}: expected an image, found: {error}. Replace or remove the file"
            ) from error
        if self._square is not None:
            image = self._squared(image, self._square)
        return np.asarray(image).transpose(2, 0, 1)

    def _squared(self, image: Any, side: int) -> Any:
        width, height = image.size
        scale = side / min(width, height)
        width, height = max(round(width * scale), side), max(round(height * scale), side)
        image = image.resize((width, height), self._image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another library
        raise ValueError(
            f"data set '{NAME}' needs Pillow, which does not import ({error}): pip install pillow"
        ) from error
    return Image


def _folder(data_dir: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    raise FileNotFoundError(
        f"{data_dir / names[0]} not found; expected {LAYOUT}. Name the folder that holds them with "
        f"--data-dir"
    )


def _classes(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise ValueError(f"{folder}: expected a folder for each class, found none: {LAYOUT}")
    return names


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images of each class with its number, in alphabetical order."""
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    counts = np.bincount([label for _, label in found], minlength=len(classes))
    if folder.name == "train" and not counts.all():
        empty = classes[int(np.argmin(counts))]
        raise ValueError(
            f"{folder / empty}: expected images ({', '.join(SUFFIXES)}), found none. Add some, or "
            f"remove the folder"
        )
    if not found:
        raise ValueError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    return found


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
