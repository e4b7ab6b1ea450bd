"""The table of algorithms: a new paper is one file and one line here."""

from __future__ import annotations

import difflib
from typing import Any

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

ALGORITHMS: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        AllReduceSGD,
        AsyncServer,
        DPSGD,
        ADPSGD,
        DecentralizedMomentum,
        LocalMomentum,
        D2,
        GradientTracking,
        QuasiGlobalMomentum,
        SGP,
        KatyushaX,
        SlowMo,
        ElasticAveraging,
        Signum,
    )
}


def by_name(name: str) -> type[Any]:
    """Return the class that the command line calls `name`.

    Raises
    ------
    ValueError
        With the nearest name, and all of them.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    near = difflib.get_close_matches(name, ALGORITHMS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown algorithm {name!r}: {hint}There are {', '.join(ALGORITHMS)}")
