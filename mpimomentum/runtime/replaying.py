"""A recorded run once more, in one process, one rank after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mpimomentum import topology as topologies
from mpimomentum.base_worker import torch_seed
from mpimomentum.runtime import decay
from mpimomentum.runtime.loop import Observe, Stop, check, model_of, roles, train
from mpimomentum.runtime.own_stream import OwnStream
from mpimomentum.runtime.recording import LabelledAlgorithm
from mpimomentum.runtime.run import (
    MakeObjective,
    Run,
    TakeRecord,
    TopologyLike,
    by_time,
    part_of,
)
from mpimomentum.runtime.schedule import LRSchedule
from mpimomentum.runtime.statistics import mean_of, statistics_of
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.simulator.replay import Replay
from mpimomentum.worker import Algorithm, Vector


def replay(
    algorithm: Algorithm[Any],
    objective: MakeObjective,
    recorded: Sequence[Recorded],
    topology: TopologyLike = "ring",
    seed: int = 0,
    observe: Observe | None = None,
    schedule: LRSchedule | None = None,
    until: int | None = None,
    take_record: TakeRecord | None = None,
    tell: Callable[[Any, str], None] | None = None,
    ends: list[str] | None = None,
) -> Run:
    """Repeat a run: the same gradients of the same models, in the recorded order of everything.

    One that failed is repeated as far as its chronicles go.

    Parameters
    ----------
    algorithm, objective, topology, seed, schedule
        Of the recorded run.
    recorded : sequence of Recorded
        One a rank; used up.
    observe : callable, optional
        Called after every step with the worker and its State.
    until : int, optional
        Steps of each rank after which to stop, at least 1; all of them unless given. Ranks on whose
        later steps others hang make those, too.
    take_record : callable, optional
        Called with every record, rank by rank in order; the Run then has none.
    tell : callable, optional
        Called with the worker and, in words, what others had part in, when it happens.
    ends : list of str, optional
        Gets, of a run that failed, where each rank ends, in words.

    Returns
    -------
    Run
        Without times and traffic. With `until`, of each rank the model that its next step would
        begin with; of one that only serves, as far as others needed it.

    Raises
    ------
    Diverged
        If it takes another course: algorithm, objective or seed are not those of the run.
    ValueError
        If what is asked is not possible.
    """
    if until is not None and until < 1:
        raise ValueError(f"until={until} must be at least 1: a replay makes steps")
    size = len(recorded)
    graph = topologies.build(topology, size)
    check(algorithm, graph)
    workers, _ = roles(algorithm, size)
    objectives: list[Any] = [None] * size
    models: list[Any] = [None] * size
    updates = [0] * size
    goals = None
    if until is not None:
        goals = [min(until, _steps(one)) if r in workers else 0 for r, one in enumerate(recorded)]
    ranks = Replay(graph, seed, recorded, goals)

    def seen(w: Any, state: Any) -> None:
        if observe is not None:
            observe(w, state)
        updates[w.rank] = w.step
        if goals is None or w.step < goals[w.rank]:
            return
        if w.step == goals[w.rank]:
            w.catch_up()
            models[w.rank] = partial(_same, model_of(state))
        updates[w.rank] = goals[w.rank]
        w.hold()

    async def rank(w: Any) -> None:
        f = OwnStream(part_of(algorithm, objective, workers, w.rank), torch_seed(seed, w.rank))
        objectives[w.rank] = f
        w.bind(f, float(algorithm.lr), decay.own_decay(algorithm))
        stop = Stop(steps=_steps(recorded[w.rank]))
        w.take_record = take_record
        if tell is not None:
            w.tell = partial(tell, w)
        labelled: Any = _Noting(algorithm, w, models)
        await train(w, labelled, f.initial(), stop, seen, schedule)

    ranks.run(rank)
    if ends is not None:
        ends.extend(ranks.ends)
    x = torch.stack([model() for model in models])
    mean = x.mean(dim=0)
    made = [(statistics_of(f), steps) for f, steps in zip(objectives, updates, strict=True)]
    return Run(
        x=x,
        mean=mean,
        consensus_distance=float((x - mean).square().sum(dim=1).mean().sqrt()),
        time_s=0.0,
        updates=np.array(updates),
        records=by_time([w.records for w in ranks.workers]),
        bytes_sent=0,
        messages_sent=0,
        busy_rate=0.0,
        statistics=mean_of(made),
        tallies=[w.tally for w in ranks.workers],
    )


class _Noting(LabelledAlgorithm):
    """An algorithm whose model can be read wherever the replay stops."""

    def __init__(self, algorithm: Any, w: Any, models: list[Any]) -> None:
        super().__init__(algorithm, w)
        self._models = models

    def init(self, w: Any, x0: Vector) -> Any:
        """Make the algorithm's State, and note how to come to its model."""
        state = self._algorithm.init(w, x0)
        self._models[w.rank] = partial(model_of, state)
        return state


def _steps(recorded: Recorded) -> int:
    return recorded.steps if recorded.ended else sys.maxsize


def _same(x: Vector) -> Vector:
    return x
