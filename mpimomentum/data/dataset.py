"""What every reader returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpimomentum.data.augment import Augment

CHUNK = 1024  # images counted at once


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, split into training and test; pixels stay bytes until they are used.

    Parameters
    ----------
    name : str
        What the command line calls it.
    train_x, test_x : torch.Tensor
        Pixels, uint8, shape (n, channels, height, width). Shared by the ranks of a node: never
        to be written.
    train_y, test_y : torch.Tensor
        Labels 0 … classes − 1, int64, shape (n,).
    classes : int
        Number of classes.
    mean, std : torch.Tensor
        Of each channel of the training images, in pixel units, float32, shape (channels,).
    augment : Augment, optional
        The augmentation that is standard for these images.

    Raises
    ------
    ValueError
        If shapes or dtypes are not those above.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: Tensor
    std: Tensor
    augment: Augment | None = None

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        for part, x, y in (
            ("train", self.train_x, self.train_y),
            ("test", self.test_x, self.test_y),
        ):
            if x.ndim != 4 or x.dtype != torch.uint8 or x.shape[1:] != self.shape:
                raise ValueError(
                    f"{self.name}: {part}_x must be uint8 of shape (n, channels, height, width), "
                    f"the same for training and test; got {x.dtype} {tuple(x.shape)}"
                )
            if y.shape != x.shape[:1] or y.dtype != torch.int64:
                raise ValueError(
                    f"{self.name}: {part}_y must be int64 of shape ({len(x)},); "
                    f"got {y.dtype} {tuple(y.shape)}"
                )
        for part, v in (("mean", self.mean), ("std", self.std)):
            if v.shape != self.shape[:1] or v.dtype != torch.float32:
                raise ValueError(
                    f"{self.name}: {part} must be float32 of shape ({self.shape[0]},), one a "
                    f"channel; got {v.dtype} {tuple(v.shape)}"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, height, width)."""
        return tuple(self.train_x.shape[1:])

    def inputs(self, x: Tensor) -> Tensor:
        """Standardise pixels: what a model takes.

        Parameters
        ----------
        x : torch.Tensor
            Pixels, uint8, shape (n, channels, height, width), on any device.

        Returns
        -------
        torch.Tensor
            (x − mean) / std, float32, same shape and device; the caller's own.
        """
        mean, std = (v.to(x.device)[:, None, None] for v in (self.mean, self.std))
        return x.to(torch.float32).sub_(mean).div_(std)

    def tensors(self) -> list[Tensor]:
        """Return everything another rank needs for :func:`mpimomentum.data.from_tensors`."""
        parts = [self.train_x, self.train_y, self.test_x, self.test_y, self.mean, self.std]
        return [*parts, torch.tensor([self.classes])]


def from_pixels(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    augment: Augment | None = None,
) -> Dataset:
    """Make a data set of pixels; mean and deviation are those of the training part.

    Parameters
    ----------
    name : str
        What the command line calls it.
    train, test : tuple of torch.Tensor
        Images, uint8, shape (n, channels, height, width); labels, int64, shape (n,).
    classes : int
        Number of classes.
    augment : Augment, optional
        The augmentation that is standard for these images.
    """
    return Dataset(name, *train, *test, classes, *_mean_and_std(train[0]), augment)


def from_tensors(name: str, tensors: Sequence[Tensor], augment: Augment | None) -> Dataset:
    """Put a data set together again from its :meth:`Dataset.tensors`."""
    train_x, train_y, test_x, test_y, mean, std, classes = tensors
    return Dataset(name, train_x, train_y, test_x, test_y, int(classes), mean, std, augment)


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, float32; exact but for the last digit.

    From the counts of the 256 values: whole numbers, and no second copy of the images in float.
    """
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64)
    for chunk in torch.split(x, CHUNK):
        for channel, count in enumerate(counts):
            count += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = weights @ values
    std = (weights * (values - mean[:, None]).square()).sum(dim=1).sqrt()
    std[std == 0] = 1.0  # a channel of one value everywhere
    return mean.float(), std.float()
