from . import topology
from .algorithms import (
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
from .codecs import mix, sign, wire
from .runtime.broadcast import broadcast_parameters
from .runtime.checkpoint import Checkpoints
from .runtime.export import save_model
from .runtime.init import init
from .runtime.objective import (
    LeastSquares,
    NonconvexQuadratics,
    Quadratic,
    SoftmaxRegression,
    StreamingPCA,
    TorchObjective,
)
from .runtime.optimizer import DistributedOptimizer
from .runtime.run import Run, run, simulate
from .runtime.saved_steps import saved_steps
from .runtime.schedule import LRSchedule
from .runtime.shard import shard
from .runtime.stop_signal import stop_on_signal
from .simulator import Clock

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
    "saved_steps",
    "shard",
    "sign",
    "simulate",
    "stop_on_signal",
    "topology",
    "wire",
]
