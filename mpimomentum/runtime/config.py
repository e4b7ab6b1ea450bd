"""A run as the user asks for it: what the flags, the variables and the TOML keys mean.

Every field is a flag of ``mpimomentum train`` or ``simulate``, a key of its TOML file and an
``MPIMOMENTUM_*`` variable; the docstrings are the flags' help. Nothing here starts anything.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from cyclopts import Parameter

from mpimomentum.algorithms.async_server import AsyncServer
from mpimomentum.algorithms.katyusha_x import KatyushaX
from mpimomentum.algorithms.registry import by_name
from mpimomentum.algorithms.signum import Signum
from mpimomentum.non_finite import Policy
from mpimomentum.runtime.checkpoint_config import Saving
from mpimomentum.runtime.decay import decoupled
from mpimomentum.runtime.device_config import Computing
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fault_config import Faults
from mpimomentum.runtime.hyper_parameters import with_field, with_hyper_parameters
from mpimomentum.runtime.identity import Identity
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.pace_config import Network, Pace
from mpimomentum.runtime.replay_config import REPLAYING, Replaying, check_recording
from mpimomentum.runtime.schedule_config import Schedule
from mpimomentum.runtime.task_config import Task
from mpimomentum.topology.build import FILES
from mpimomentum.worker import Algorithm

EPOCHS = 30.0  # the main job: AD-PSGD on 4 ranks reaches 97 to 99 % on the digits
LR = 0.05
SUM_LR = 0.3  # of gradients without most of their noise
SERVER_LR = 0.02  # every gradient is a step of the one model, and stale
VOTE_LR = 0.001  # where it is how far every coordinate moves a step
MU = 0.9  # for every algorithm that has a heavy ball
LOCAL_STEPS = 8
INNER_STEPS = 50

SEEDS = 2**63  # torch takes no others, nor does TOML

LENGTHS = ("epochs", "steps", "duration_s")


def usual(make: type[Any], error_feedback: bool = False) -> dict[str, float]:
    """Return the hyper-parameters of an algorithm that have a value without being given."""
    votes = make is Signum and not error_feedback
    special: dict[type[Any], float] = {AsyncServer: SERVER_LR, KatyushaX: SUM_LR}
    values = {
        "lr": VOTE_LR if votes else special.get(make, LR),
        "mu": MU,
        "inner_steps": INNER_STEPS,
    }
    known = {f.name: values[f.name] for f in dataclasses.fields(make) if f.name in values}
    needed = {f.name for f in dataclasses.fields(make) if f.default is dataclasses.MISSING}
    return known | ({"local_steps": LOCAL_STEPS} if "local_steps" in needed else {})


def _given(config: Any) -> list[tuple[str, Any]]:
    """Return the fields that are not None, with their names."""
    pairs = ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    return [(name, value) for name, value in pairs if value is not None]


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


@Parameter(name="*", group="Algorithm")
@dataclass(frozen=True)
@with_hyper_parameters
class Method:
    """An algorithm with its hyper-parameters; `mpimomentum list` shows which has which.

    Parameters
    ----------
    algorithm : str
        Name of the algorithm.
    lr : float, optional
        Step size; 0.05 unless given, 0.02 for async-server, 0.001 for signum without
        error_feedback, 0.3 for katyusha-x.
    mu : float or "auto", optional
        Heavy-ball momentum; 0.9 unless given, for the algorithms that have it. auto, for
        async-server and ad-psgd: by the measured staleness and stiffness.
    local_steps : int, optional
        Steps from one average to the next: local-momentum, slowmo, elastic-averaging, 8 unless
        given; ad-psgd, 1.
    inner_steps : int, optional
        katyusha-x: mean number of mini-batches between two gradients over all data; 50 unless
        given. A mini-batch is batch_size samples for each rank.
    """

    algorithm: str = "ad-psgd"
    lr: float | None = None
    mu: float | Literal["auto"] | None = None
    local_steps: int | None = None
    inner_steps: int | None = None

    def __post_init__(self) -> None:
        try:
            self.build()
        except ValueError as error:
            raise BadInput(str(error)) from error

    def parameters(self) -> dict[str, Any]:
        """Return all hyper-parameters of the algorithm, those not given included."""
        return dict(_given(self.build()))

    def build(self) -> Algorithm[Any]:
        """Make the algorithm.

        Raises
        ------
        ValueError
            If there is no such algorithm, it has no such hyper-parameter, or refuses a value.
        """
        make = by_name(self.algorithm)
        known = [f.name for f in dataclasses.fields(make)]
        given = {name: value for name, value in _given(self) if name != "algorithm"}
        for name in given:
            if name not in known:
                flags = ", ".join(n for n in known if n != "batch")  # which follows from another
                raise BadInput(
                    f"{name}={given[name]!r}: {self.algorithm} has no such parameter, it has "
                    f"{flags}; leave {name} out or choose another algorithm: {with_field(name)}"
                )
        algorithm: Algorithm[Any] = make(**(usual(make, bool(given.get("error_feedback"))) | given))
        return algorithm


@Parameter(name="*", group="Length (give one)")
@dataclass(frozen=True)
class Length:
    """When to stop.

    Parameters
    ----------
    epochs : float, optional
        Times that every worker goes through its own part of the data; 30 if nothing is given.
    steps : int, optional
        Steps of every worker.
    duration_s : float, optional
        Seconds for all: of the wall clock, or virtual ones in a simulation.
    """

    epochs: float | None = None
    steps: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        given = _given(self)
        if len(given) > 1:
            raise BadInput(
                f"{' and '.join(f'{name}={value}' for name, value in given)}: give only one of "
                f"{', '.join(LENGTHS)}"
            )
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise BadInput(f"epochs={self.epochs} must be above 0 and finite")
        if given and self.epochs is None:
            try:
                Stop(self.steps, self.duration_s)
            except ValueError as error:
                raise BadInput(str(error)) from error

    def stop(self, samples: int, per_step: float) -> Stop:
        """Return when a worker with `samples` of its own, `per_step` of them a step, stops.

        Raises
        ------
        ValueError
            If the number given is not possible.
        """
        if self.steps is not None or self.duration_s is not None:
            return Stop(self.steps, self.duration_s)
        epochs = EPOCHS if self.epochs is None else self.epochs
        return Stop(steps=math.ceil(epochs * samples / per_step))


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class Output:
    """Where results go.

    Parameters
    ----------
    out : Path, optional
        Run directory to make; runs/DATE-TIME-ALGORITHM-RANKS unless given.
    progress : str
        bar, lines, off, or auto: a bar on a terminal, else lines. (Under mpirun no rank sees the
        terminal, so auto means lines there.)
    log_every : int
        Steps between two losses in the records.
    tensorboard : bool
        Write for TensorBoard, too: `tensorboard --logdir DIR`.
    trace : bool
        Write each rank's timeline, trace-RANK.json, for https://ui.perfetto.dev; together:
        `mpimomentum trace merge DIR`.
    record : bool
        Write who did what when, and with which versions, for `mpimomentum simulate --replay DIR`.
    log_level : str
        debug, info, warning or error: what is said on standard error, about choices and fallbacks.
    """

    out: Path | None = None
    progress: Literal["auto", "bar", "lines", "off"] = "auto"
    log_every: int = 10
    tensorboard: bool = False
    trace: bool = False
    record: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "warning"

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise BadInput(f"log_every={self.log_every}: at least 1 step is needed")


@Parameter(name="*")
@dataclass(frozen=True)
class TrainConfig:
    """A training run on MPI ranks.

    Parameters
    ----------
    topology : str
        Name of the graph, or a file .npy or .csv with W.
    lazy : bool
        Mix with (W + I)/2, whose eigenvalues are not negative; d2 needs it on many graphs.
    seed : int
        Of everything random; equal seeds give equal data, models and draws.
    non_finite : str
        On NaN or infinity: abort; skip, which leaves out mini-batches whose gradient is not finite
        and averages with models that are not; or ignore.
    """

    method: Method = Method()
    schedule: Schedule = Schedule()  # noqa: RUF009  # frozen, as the others
    topology: str = "ring"
    lazy: bool = False
    task: Task = Task()  # noqa: RUF009  # frozen, as the others
    computing: Computing = Computing()  # noqa: RUF009  # frozen, as the others
    length: Length = Length()
    pace: Pace = Pace()  # noqa: RUF009  # frozen, as the others
    output: Output = Output()
    saving: Saving = Saving()  # noqa: RUF009  # frozen, as the others
    faults: Faults = Faults()  # noqa: RUF009  # frozen, as the others
    seed: int = 0
    non_finite: Policy = "abort"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise BadInput(f"seed={self.seed} must not be negative, and below 2^63")
        check_recording(self)

    def build(self, size: int) -> Algorithm[Any]:
        """Make the algorithm for `size` ranks.

        With the weight decay if it decays the weights itself, and with the samples of all ranks'
        mini-batches if it draws them itself.
        """
        algorithm: Any = self.method.build()
        if hasattr(algorithm, "batch"):
            algorithm = dataclasses.replace(algorithm, batch=size * self.task.batch_size)
        if decoupled(algorithm):
            algorithm = dataclasses.replace(algorithm, weight_decay=self.schedule.weight_decay)
        return algorithm  # type: ignore[no-any-return]

    def resolved(self) -> Self:
        """Return the same run with nothing left to a default or to the folder it is started in."""
        known = {f.name for f in dataclasses.fields(self.method)}
        parameters = {k: v for k, v in self.method.parameters().items() if k in known}
        length = self.length if _given(self.length) else Length(epochs=EPOCHS)
        is_file = self.topology.endswith(FILES)
        return dataclasses.replace(
            self,
            method=dataclasses.replace(self.method, **parameters),
            topology=str(_absolute(Path(self.topology))) if is_file else self.topology,
            task=dataclasses.replace(self.task, data_dir=_absolute(self.task.data_dir)),
            length=length,
        )

    def flat(self) -> dict[str, Any]:
        """Return what would have to be written to a TOML file to get this run again.

        Without what belongs to one run: `out`, `resume`, `resize`, `progress`, `log_level`, and
        how it is replayed.
        """
        values: dict[str, Any] = {}
        for name, value in _given(self.resolved()):
            values |= dict(_given(value)) if dataclasses.is_dataclass(value) else {name: value}
        for name in ("out", "resume", "resize", "progress", "log_level", *REPLAYING):
            values.pop(name, None)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def identity(self) -> dict[str, Any]:
        """Return what must be the same on all ranks: not where a node has its data and GPUs."""
        here = {"out": self.output.out, "resume": self.saving.resume, "resize": self.saving.resize}
        return {k: v for k, v in self.flat().items() if k not in ("data_dir", "device")} | here

    def pinned(self) -> Identity:
        """Return what must be the same in a run that goes on from a checkpoint."""
        plainest = dataclasses.replace(type(self)(), method=Method(self.method.algorithm))
        return Identity(self._pinned(), plainest._pinned())

    def _pinned(self) -> dict[str, Any]:
        free = {"lr", "data_dir", "non_finite", "device", "staging"}
        for group in (self.length, self.pace, self.output, self.saving, self.faults, self.schedule):
            free |= {f.name for f in dataclasses.fields(group)}
        free.discard("weight_decay")
        return {name: value for name, value in self.flat().items() if name not in free}

    def toml(self) -> str:
        """Return :meth:`flat` as TOML: ``mpimomentum train FILE`` repeats the run."""
        return tomli_w.dumps(self.flat())


@Parameter(name="*")
@dataclass(frozen=True)
class SimulateConfig(TrainConfig):
    """The same on a virtual clock.

    Parameters
    ----------
    workers : int
        Number of virtual workers.
    timing_only : bool
        Nothing is learnt: no gradients are computed, and models take no memory, so that many
        workers of a large one are a matter of seconds. Times, staleness and bytes are the same.
    """

    workers: int = 4
    timing_only: bool = False
    network: Network = Network()  # noqa: RUF009  # frozen, as the others
    replaying: Replaying = Replaying()  # noqa: RUF009  # frozen, as the others

    def __post_init__(self) -> None:
        super().__post_init__()
        self.saving.refuse("a simulation")
        self.faults.refuse("a simulation")
        self.computing.refuse("a simulation")
        if self.workers < 1:
            raise BadInput(f"workers={self.workers}: at least 1 is needed")

    def resolved(self) -> Self:
        """Return the same run with nothing left to a default or to the folder it is started in."""
        network = dataclasses.replace(self.network, calibration=_absolute(self.network.calibration))
        return dataclasses.replace(super().resolved(), network=network)
