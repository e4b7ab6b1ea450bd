"""What every reader returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, split into training and test.

    Parameters
    ----------
    name : str
        What the command line calls it.
    train_x, test_x : torch.Tensor
        Images, float32, shape (n, channels, height, width), standardised with the mean and
        standard deviation of the training images.
    train_y, test_y : torch.Tensor
        Labels 0 … classes − 1, int64, shape (n,).
    classes : int
        Number of classes.

    Raises
    ------
    ValueError
        If shapes or dtypes are not those above.
    """

    name: str
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: int

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        for part, x, y in (
            ("train", self.train_x, self.train_y),
            ("test", self.test_x, self.test_y),
        ):
            if x.ndim != 4 or x.dtype != torch.float32 or x.shape[1:] != self.shape:
                raise ValueError(
                    f"{self.name}: {part}_x must be float32 of shape (n, channels, height, width), "
                    f"the same for training and test; got {x.dtype} {tuple(x.shape)}"
                )
            if y.shape != x.shape[:1] or y.dtype != torch.int64:
                raise ValueError(
                    f"{self.name}: {part}_y must be int64 of shape ({len(x)},); "
                    f"got {y.dtype} {tuple(y.shape)}"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, height, width)."""
        return tuple(self.train_x.shape[1:])


def from_pixels(
    name: str,
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    classes: int,
) -> Dataset:
    """Make a data set of raw pixels: both parts are standardised as the training part is.

    Parameters
    ----------
    name : str
        What the command line calls it.
    train, test : tuple of torch.Tensor
        Images, any real dtype, shape (n, channels, height, width); labels, int64, shape (n,).
    classes : int
        Number of classes.
    """
    train_x, test_x = train[0].float(), test[0].float()
    # Per channel, in double: sums over a whole data set exceed what float32 resolves.
    std, mean = torch.std_mean(train_x.double(), dim=(0, 2, 3), correction=0, keepdim=True)
    mean, std = mean[0].float(), std[0].float()
    return Dataset(name, (train_x - mean) / std, train[1], (test_x - mean) / std, test[1], classes)
