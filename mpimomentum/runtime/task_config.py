"""Model and data as the user asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cyclopts import Parameter

from mpimomentum.data.partition import Partition, check_alpha
from mpimomentum.runtime.errors import BadInput


@Parameter(name="*", group="Model and data")
@dataclass(frozen=True)
class Task:
    """What is learnt.

    Parameters
    ----------
    model : str
        Name of the model.
    data : str
        Name of the data set.
    data_dir : Path, optional
        Folder with its files, where they are not at their usual place.
    image_size : int, optional
        image-folder: resize images to squares of this side; else all must be of one size.
    augment : bool, optional
        Shift and mirror training images at random; unless given, where that is standard: cifar10
        and cifar100.
    partition : str
        iid: each worker has a random part of the data; label: few classes; dirichlet: between the
        two, by alpha.
    alpha : float, optional
        dirichlet: small for few classes a worker (0.1), large for nearly iid (100).
    batch_size : int
        Samples per gradient of one worker.
    """

    model: str = "cnn-small"
    data: str = "digits"
    data_dir: Path | None = None
    image_size: int | None = None
    augment: bool | None = None
    partition: Partition = "iid"
    alpha: float | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise BadInput(f"batch_size={self.batch_size}: at least 1 sample is needed")
        if self.image_size is not None and self.image_size < 1:
            raise BadInput(f"image_size={self.image_size}: at least 1 pixel is needed")
        try:
            check_alpha(self.partition, self.alpha)
        except ValueError as error:
            raise BadInput(str(error)) from error
