"""The examination: checks that need no MPI, the start of MPI, then what all ranks do together.

A check is a function that returns a :class:`Finding`; a new one is a function and its name in
:data:`EVERYWHERE` or :data:`ONCE_PER_NODE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.runtime.doctor import cuda, links, machine, mpi, slurm, software, variables
from mpimomentum.runtime.doctor.finding import Finding, Row, Status, merge
from mpimomentum.runtime.doctor.place import Place
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.init import start
from mpimomentum.runtime.variables import Runtime, runtime

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker
    from mpimomentum.transport.library import Library
    from mpimomentum.transport.selftest import Line

Say = Callable[[Sequence[Row], int], None]
"""Shows the rows of a world of so many ranks; called on rank 0."""

Check = Callable[[Place], Finding]

EVERYWHERE: tuple[Check, ...] = (
    software.versions,
    software.kernels,
    software.optional,
    machine.huge_pages,
    machine.run_directory,
    variables.variables,
    cuda.device,
)
ONCE_PER_NODE: tuple[Check, ...] = (software.data_sets,)

END_S = 60.0
START_S = 120.0  # dozens of ranks on a few cores start within a minute
LINKS_LIMITS = 5  # limits of a self-test that the links of all pairs may take together
LET_RANK_0_SPEAK_S = 3.0


class Examination:
    """One rank's part of the doctor's work.

    Parameters
    ----------
    place : Place
    limit_s : float
        Longest that a self-test may take.
    say : callable
        Shows the report.
    picture : Path, optional
        Measure the links between all pairs of ranks, and draw them there.

    Attributes
    ----------
    links : Links, optional
        On rank 0, once they are measured.
    findings : list of Finding
        Of this rank, so far.
    """

    def __init__(self, place: Place, limit_s: float, say: Say, picture: Path | None = None) -> None:
        self.place = place
        self.findings: list[Finding] = []
        self._limit_s = limit_s
        self._say = say
        self._picture = picture
        self.links: links.Links | None = None
        self._how = Runtime()
        self._library: Library | None = None

    def run(self) -> bool:
        """Examine, and show the report on rank 0. Collective under a launcher.

        Returns
        -------
        bool
            Whether nothing failed, on any rank.
        """
        worker = self._start() if self._before_mpi() else None
        if worker is None:
            self._end_alone()
            return False
        return self._together(worker)

    # -- alone -------------------------------------------------------------------------------------

    def _before_mpi(self) -> bool:
        """Look at what is there, and say whether MPI may be started.

        Subprocesses come before MPI: not every MPI survives a fork.
        """
        for check in EVERYWHERE:
            self._note(check, self.place)
        library, failure = _loaded(self.place)
        first = self.place.local_rank == 0
        if first:
            for check in ONCE_PER_NODE:
                self._note(check, self.place)
            self._note(cuda.cuda, self.place)
        if library is None:
            self.findings.append(mpi.not_loaded(failure))
            return False
        self._library = library
        self._note(mpi.library, library)
        if first:
            self._note(mpi.mpirun, self.place, library)
        self._note(slurm.slurm, self.place, library.family)
        if text := mpi.foreboding(self.place, library):
            sys.stderr.write(f"rank {self.place.rank} | {text}\n")
            sys.stderr.flush()
        room = machine.shared_memory(self.place, library.family)
        if room.status is Status.FAIL:  # MPI would die of a Bus error, and say nothing
            self.findings.append(room)
        return room.status is not Status.FAIL

    def _start(self) -> MPIWorker | None:
        # a wrong variable is a finding already; ranks may differ in it, so start all the same
        with contextlib.suppress(BadInput):
            self._how = runtime(self.place.environ)
        # the watchdog would end the job before a self-test could be given up in order
        patience_s = max(self._how.timeout_s, 10 * self._limit_s)
        how = dataclasses.replace(self._how, timeout_s=patience_s)
        try:
            with self._deadline("the start of MPI", START_S):
                return start(how, "complete")
        except (RuntimeError, ValueError, MemoryError) as error:
            self.findings.append(mpi.not_started(self.place, str(error)))
            return None

    def _end_alone(self) -> None:
        """Report what was found on this rank; the others may be in the same trouble, or not."""
        if self.place.rank == 0:
            self._say(merge([self.findings]), self.place.size)
        else:
            time.sleep(LET_RANK_0_SPEAK_S)  # a rank that ends first has mpirun end rank 0
            self._speak_up()

    def _speak_up(self) -> None:
        for f in self.findings:
            if f.status is Status.FAIL:
                sys.stderr.write(f"rank {self.place.rank} | {f.name}: {f.found}: {f.remedy}\n")
        sys.stderr.flush()

    # -- together ----------------------------------------------------------------------------------

    def _together(self, worker: MPIWorker) -> bool:
        self.place = dataclasses.replace(
            self.place,
            rank=worker.rank,
            size=worker.size,
            local_rank=worker.env.local_rank,
            local_size=worker.env.local_size,
        )
        self._note(mpi.launch, self.place)
        self._note(mpi.thread_level, worker)
        self._note(mpi.driver, self.place, self._how)
        self._note(mpi.windows, worker)
        load = machine.Load.here()  # torch's threads are those of the program's thread
        line, broken, rows = worker.run(self._examine(worker, load), "the examination")
        if worker.rank == 0:
            self._say(rows, worker.size)
        if broken:
            self._end_the_job(worker, line)
        with self._deadline("the end", END_S):
            worker.close()
        return all(row.finding.status is not Status.FAIL for row in rows)

    async def _examine(self, worker: MPIWorker, load: machine.Load) -> tuple[Line, bool, list[Row]]:
        from mpimomentum.transport import selftest

        with self._deadline("the ranks' first words", 2 * self._limit_s):
            line = selftest.Line(worker)
            told = await line.tell(json.dumps(dataclasses.asdict(load)))
        loads = [machine.Load(**json.loads(text)) for text in told]
        same_host = sum(other.host == load.host for other in loads)
        self.place = dataclasses.replace(self.place, local_size=same_host)
        self._note(machine.threads, load, loads)
        family = self._library.family if self._library else ""
        self._note(machine.shared_memory, self.place, family)
        broken = False
        for test in selftest.TESTS:
            name = f"self-test: {test.name}"
            if broken:
                self.findings.append(
                    Finding(name, Status.NOTE, "not tried", "an earlier one had not come to an end")
                )
                continue
            # a rank that waits for a failed one gives up after the limit, then tells
            with self._deadline(name, 2.5 * self._limit_s):
                outcome = await selftest.run(worker, line, test, self._limit_s)
            self._note(mpi.self_test, outcome)
            broken = outcome.broken
        if self._picture is not None and not broken:
            await self._measure_links(worker, crowded=_crowded(loads))
        with self._deadline("the collection of the findings", 2 * self._limit_s):
            everyones = await line.tell(json.dumps([dataclasses.asdict(f) for f in self.findings]))
            if not broken:
                line.close()
        rows = merge([[Finding.of(fields) for fields in json.loads(text)] for text in everyones])
        return line, broken, rows

    async def _measure_links(self, worker: MPIWorker, crowded: bool) -> None:
        from mpimomentum.transport.links import SIZES, measure

        with self._deadline("links", LINKS_LIMITS * self._limit_s):
            seconds = await measure(worker)
            node = torch.tensor([worker.env.node])
            nodes = (await worker.collectives.allgather(node)).flatten().tolist()
        if worker.rank == 0:
            self.links = links.Links.of(seconds.numpy(), SIZES, nodes)
            self._note(links.finding, self.links, crowded)
            self._note(links.picture, self.links, self._picture)

    def _end_the_job(self, worker: MPIWorker, line: Line) -> None:
        """End all ranks without order: messages are under way that nobody will take."""

        async def end() -> None:
            if worker.rank != 0:  # rank 0 may still be writing its report
                await line.barrier()
            worker.env.abort()

        with self._deadline("the end", END_S):
            worker.run(end(), "the end after a failed self-test")

    # -- guards ------------------------------------------------------------------------------------

    def _note(self, check: Callable[..., Finding | list[Finding]], *args: Any) -> None:
        """Make a check; its own failure is a finding, not the end."""
        try:
            found = check(*args)
        except Exception as error:
            found = Finding(
                check.__name__.replace("_", " "),
                Status.FAIL,
                f"the check itself failed: {type(error).__name__}: {error}",
                "nothing is known about this",
                "please report this with the output of mpimomentum doctor --json",
            )
        self.findings += found if isinstance(found, list) else [found]

    @contextlib.contextmanager
    def _deadline(self, what: str, limit_s: float) -> Iterator[None]:
        """End this process, after a report, if `what` is not over in time.

        A call of MPI that does not return can be ended in no other way.
        """
        if self.place.rank != 0:
            limit_s += LET_RANK_0_SPEAK_S
        timer = threading.Timer(limit_s, self._give_up, (what, limit_s))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self, what: str, limit_s: float) -> None:
        self.findings.append(
            Finding(
                what,
                Status.FAIL,
                f"not over after {limit_s:g} s on rank {self.place.rank}",
                "a rank is inside a call of MPI, or never came here: a run would hang",
                "see docs/troubleshooting.md, 'It hangs'; if ranks outnumber the cores by far, try "
                f"a longer --limit-s than {self._limit_s:g}",
            )
        )
        if self.place.rank == 0:
            self._say(merge([self.findings]), self.place.size)
        else:
            self._speak_up()
        sys.stdout.flush()
        os._exit(1)


def _crowded(loads: Sequence[machine.Load]) -> bool:
    """Whether on some machine ranks outnumber the cores."""
    cores: dict[str, set[int]] = {}
    for load in loads:
        cores.setdefault(load.host, set()).update(load.cores)
    return any(sum(o.host == h for o in loads) > len(c) for h, c in cores.items())


def _loaded(place: Place) -> tuple[Library | None, Exception]:
    try:
        from mpimomentum.transport.library import library

        return library(place.environ), RuntimeError()
    except (ImportError, RuntimeError) as error:
        return None, error
