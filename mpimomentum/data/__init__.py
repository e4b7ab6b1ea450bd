"""Data sets by name, and their division among ranks."""

from mpimomentum.data.dataset import Dataset
from mpimomentum.data.partition import shard
from mpimomentum.data.registry import load, names

__all__ = ["Dataset", "load", "names", "shard"]
