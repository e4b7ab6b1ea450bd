"""Which algorithms go on without ranks that die, and what they need for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from mpimomentum.algorithms import ADPSGD, ElasticAveraging
from mpimomentum.algorithms.elastic_averaging import HOME
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.loop import compressed_gossip, wire_of
from mpimomentum.topology import Topology
from mpimomentum.worker import Algorithm, Vector

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker, SurvivingWorker

MIXING = ("d-psgd", "decentralized-momentum", "quasi-global-momentum")
"""Those that only mix with neighbours, and keep nothing whose sum over all ranks must be right."""

SURVIVING = ("ad-psgd", *MIXING, "elastic-averaging")

_REASONS = {
    "gradient-tracking": "the sum of its trackers would keep the dead rank's gradients",
    "d2": "its extrapolation would carry on what the dead rank did in its last step",
    "sgp": "a part of the sum of its weights would die with the rank",
    "async-server": "the model is on the servers",
}


def check(algorithm: Algorithm[Any], topology: Topology) -> None:
    """Refuse what cannot go on without a rank that dies.

    Raises
    ------
    BadInput
        With the reason and the remedy.
    """
    refusal = _refusal(algorithm, topology)
    if refusal:
        raise BadInput(f"on_failure=continue: {refusal}")


def prepare(worker: MPIWorker, algorithm: Algorithm[Any], x0: Vector) -> None:
    """Make `worker` ready for a run of `algorithm`, if it is to outlive others. Collective.

    Raises
    ------
    BadInput
        On all ranks alike, if that cannot be.
    """
    if not worker.survives:
        return
    check(algorithm, worker.topology)
    surviving = cast("SurvivingWorker", worker)
    try:
        surviving.begin_anew()
    except ValueError as error:
        raise BadInput(f"on_failure=continue: {error}") from None
    if algorithm.name in MIXING:
        surviving.exchange_with_neighbors(x0)
    if isinstance(algorithm, ElasticAveraging):
        surviving.depend_on({HOME}, "the center was there")


def _refusal(algorithm: Algorithm[Any], topology: Topology) -> str:
    name = algorithm.name
    if name not in SURVIVING:
        why = _REASONS.get(name, "it sums over all ranks")
        return (
            f"{name} cannot go on without a rank, {why}; use {' or '.join(SURVIVING)}, or "
            "--checkpoint-every and --resume auto"
        )
    if isinstance(algorithm, ADPSGD) and algorithm.variant != "lockfree":
        return "ad-psgd's paired exchanges wait for the other end; use --variant lockfree"
    if isinstance(algorithm, ADPSGD) and algorithm.reweight:
        return "ad-psgd's reweight counts on all ranks' updates; leave it out"
    if compressed_gossip(algorithm):
        return (
            f"with wire={wire_of(algorithm)!r} neighbours hold replicas of each "
            "other, and those whom a death makes neighbours have none; use wire='float32'"
        )
    if name in MIXING:
        try:
            topology.check("symmetric")
        except ValueError as error:
            return f"the sum of the models would not be kept: {error}"
    return ""
