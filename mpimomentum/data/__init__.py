"""Data sets by name, and their division among ranks."""

from mpimomentum.data.augment import Augment, CropAndFlip
from mpimomentum.data.dataset import Dataset, from_pixels
from mpimomentum.data.partition import shard, shards
from mpimomentum.data.registry import check_place, from_tensors, load, names

__all__ = [
    "Augment",
    "CropAndFlip",
    "Dataset",
    "check_place",
    "from_pixels",
    "from_tensors",
    "load",
    "names",
    "shard",
    "shards",
]
