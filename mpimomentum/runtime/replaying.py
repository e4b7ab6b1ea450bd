"""A recorded run once more, in one process, one rank after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mpimomentum import topology as topologies
from mpimomentum.base_worker import torch_seed
from mpimomentum.runtime import decay
from mpimomentum.runtime.loop import Observe, Stop, check, model_of, roles, train
from mpimomentum.runtime.own_stream import OwnStream
from mpimomentum.runtime.recording import LabelledAlgorithm
from mpimomentum.runtime.run import MakeObjective, Run, TopologyLike, by_time, part_of
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.runtime.statistics import mean_of, statistics_of
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.simulator.replay import Replay
from mpimomentum.worker import Algorithm


def replay(
    algorithm: Algorithm[Any],
    objective: MakeObjective,
    recorded: Sequence[Recorded],
    topology: TopologyLike = "ring",
    seed: int = 0,
    observe: Observe | None = None,
    schedule: LRSchedule | None = None,
    stories: list[list[tuple[int, str]]] | None = None,
) -> Run:
    """Repeat a run: the same gradients of the same models, in the recorded order of everything.

    Parameters
    ----------
    algorithm, objective, topology, seed, schedule
        Of the recorded run.
    recorded : sequence of Recorded
        One a rank; used up.
    observe : callable, optional
        Called after every step with the worker and its State.
    stories : list, optional
        Gets, for each rank, what others had part in, with the rank's step then.

    Returns
    -------
    Run
        Without times and traffic.

    Raises
    ------
    Diverged
        If it takes another course: algorithm, objective or seed are not those of the run.
    ValueError
        If what is asked is not possible.
    """
    size = len(recorded)
    graph = topologies.build(topology, size)
    check(algorithm, graph)
    workers, _ = roles(algorithm, size)
    states: list[Any] = [None] * size
    objectives: list[Any] = [None] * size
    ranks = Replay(graph, seed, recorded)

    async def rank(w: Any) -> None:
        f = OwnStream(part_of(algorithm, objective, workers, w.rank), torch_seed(seed, w.rank))
        objectives[w.rank] = f
        w.bind(f, float(algorithm.lr), decay.own_decay(algorithm))
        stop = Stop(steps=recorded[w.rank].steps)
        labelled: Any = LabelledAlgorithm(algorithm, w)
        states[w.rank] = await train(w, labelled, f.initial(), stop, observe or _ignore, schedule)

    ranks.run(rank)
    if stories is not None:
        stories.extend(w.story for w in ranks.workers)
    x = torch.stack([model_of(s) for s in states])
    mean = x.mean(dim=0)
    made = [(statistics_of(f), w.step) for f, w in zip(objectives, ranks.workers, strict=True)]
    return Run(
        x=x,
        mean=mean,
        consensus_distance=float((x - mean).square().sum(dim=1).mean().sqrt()),
        time_s=0.0,
        updates=np.array([w.step for w in ranks.workers]),
        records=by_time([w.records for w in ranks.workers]),
        bytes_sent=0,
        messages_sent=0,
        busy_rate=0.0,
        statistics=mean_of(made),
        tallies=[w.tally for w in ranks.workers],
    )


def _ignore(w: Any, state: Any) -> None:
    pass
