"""Who talks to whom, and with which weights: ``build("ring", 8)`` is the way in."""

from mpimomentum.topology.build import build, from_matrix, load, names
from mpimomentum.topology.mixing import (
    is_column_stochastic,
    is_doubly_stochastic,
    is_row_stochastic,
    is_symmetric,
)
from mpimomentum.topology.topology import Topology

__all__ = [
    "Topology",
    "build",
    "from_matrix",
    "is_column_stochastic",
    "is_doubly_stochastic",
    "is_row_stochastic",
    "is_symmetric",
    "load",
    "names",
]
