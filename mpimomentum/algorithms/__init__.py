"""One paper a file; :mod:`mpimomentum.algorithms.registry` lists them."""

from mpimomentum.algorithms.ad_psgd import ADPSGD
from mpimomentum.algorithms.allreduce_sgd import AllReduceSGD
from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.algorithms.d2 import D2
from mpimomentum.algorithms.d_psgd import DPSGD
from mpimomentum.algorithms.decentralized_momentum import DecentralizedMomentum
from mpimomentum.algorithms.elastic_averaging import ElasticAveraging
from mpimomentum.algorithms.gradient_tracking import GradientTracking
from mpimomentum.algorithms.katyusha_x import KatyushaX
from mpimomentum.algorithms.local_momentum import LocalMomentum
from mpimomentum.algorithms.quasi_global_momentum import QuasiGlobalMomentum
from mpimomentum.algorithms.sgp import SGP
from mpimomentum.algorithms.signum import Signum
from mpimomentum.algorithms.slowmo import SlowMo

__all__ = [
    "ADPSGD",
    "D2",
    "DPSGD",
    "SGP",
    "AllReduceSGD",
    "AsyncServer",
    "DecentralizedMomentum",
    "ElasticAveraging",
    "GradientTracking",
    "KatyushaX",
    "LocalMomentum",
    "QuasiGlobalMomentum",
    "Signum",
    "SlowMo",
]
