"""MPI runtime for PyTorch training with momentum when workers do not wait for each other.

Examples
--------
Four virtual workers, one ten times slower, on this machine's one process:

>>> import torch, mpimomentum as mm
>>> run = mm.simulate(
...     mm.ADPSGD(lr=0.1), lambda rank, size: mm.Quadratic(b=torch.ones(3)), size=4,
...     duration_s=200, clock=mm.Clock(slow={0: 10}))
>>> bool((run.mean - 1).abs().max() < 1e-6)
True

The same on MPI ranks: ``mm.run(algorithm, objective, steps=…, worker=mm.init())`` in a script that
``mpirun`` or ``srun`` starts.
"""

import os

from mpimomentum import topology
from mpimomentum.algorithms import (
    ADPSGD,
    D2,
    DPSGD,
    SGP,
    AllReduceSGD,
    AsyncServer,
    DecentralizedMomentum,
    ElasticAveraging,
    GradientTracking,
    KatyushaX,
    LocalMomentum,
    QuasiGlobalMomentum,
    Signum,
    SlowMo,
)
from mpimomentum.codecs import mix, sign
from mpimomentum.runtime.broadcast import broadcast_parameters
from mpimomentum.runtime.checkpoint import Checkpoints
from mpimomentum.runtime.export import save_model
from mpimomentum.runtime.init import init
from mpimomentum.runtime.objective import (
    LeastSquares,
    NonconvexQuadratics,
    Quadratic,
    SoftmaxRegression,
    StreamingPCA,
    TorchObjective,
)
from mpimomentum.runtime.optimizer import DistributedOptimizer
from mpimomentum.runtime.run import Run, run, simulate
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.runtime.shard import shard
from mpimomentum.simulator import Clock

__all__ = [
    "ADPSGD",
    "D2",
    "DPSGD",
    "SGP",
    "AllReduceSGD",
    "AsyncServer",
    "Checkpoints",
    "Clock",
    "DecentralizedMomentum",
    "DistributedOptimizer",
    "ElasticAveraging",
    "GradientTracking",
    "KatyushaX",
    "LRSchedule",
    "LeastSquares",
    "LocalMomentum",
    "NonconvexQuadratics",
    "Quadratic",
    "QuasiGlobalMomentum",
    "Run",
    "Signum",
    "SlowMo",
    "SoftmaxRegression",
    "StreamingPCA",
    "TorchObjective",
    "broadcast_parameters",
    "init",
    "mix",
    "run",
    "save_model",
    "shard",
    "sign",
    "simulate",
    "topology",
]

# Vectors of tens of megabytes come and go every step; in pages of 4 KB each one costs thousands of
# page faults. torch reads this before its first large allocation; a value set by the user stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
