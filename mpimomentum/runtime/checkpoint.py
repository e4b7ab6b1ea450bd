"""Checkpoints of a run on MPI ranks: when they are taken, what is in them, and going on from one.

A checkpoint is taken at a moment at which every rank is between two steps and nothing is in flight.
Synchronous algorithms come to it by themselves, at the same step. Of an asynchronous one the rank
that has made `every` steps since the last checkpoint asks, by a word that every rank looks at
between two steps; nobody waits until somebody has asked.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.agreement import agreed, exchanged
from mpimomentum.runtime.checkpoint_files import DIRECTORY, Manifest, Packed, Tree
from mpimomentum.runtime.checkpoint_program import Part, collected, handed_out
from mpimomentum.runtime.checkpoint_search import search
from mpimomentum.runtime.checkpoint_writing import Writing
from mpimomentum.runtime.claim import Claim
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.identity import Identity, hyper_parameters
from mpimomentum.runtime.loop import Stop
from mpimomentum.runtime.resizing import RESIZED, Resizing, rules_of
from mpimomentum.runtime.state import Copies, restore, snapshot
from mpimomentum.runtime.stop_reason import StopReason
from mpimomentum.runtime.stop_vote import StopVote
from mpimomentum.worker import Algorithm

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker
    from mpimomentum.transport.request_word import RequestWord

CHECKPOINT, STOP = 1, 2
"""The bits of the request word that ask for a checkpoint, and for one that is the last."""

_REASON_BYTES = 64
_LONG_S = 1.0  # a wait that is worth a word
_SLOW = (
    "the run was held up for %.1f s until %s was written: checkpoints are asked for faster than "
    "the file system takes them; use a larger checkpoint_every"
)
_NOT_WHOLE = (
    "no checkpoints any more: ranks have died, whose part would be missing; the last one is %s"
)

_log = logging.getLogger(__name__)


class Checkpoints:
    """When and where a run saves itself, and from what it goes on; for one ``mm.run``.

    Parameters
    ----------
    out : Path
        The run's directory, the same on all ranks, on a file system that all ranks see.
        Checkpoints lie in ``out/checkpoints``.
    every : int, optional
        Steps of a rank between two checkpoints; one is taken at the end, too. None: none at all.
    keep : int
        How many of the last ones stay.
    resume : str or Path
        "never"; "auto": go on from the newest valid one in `out`, if there is one; or the
        directory of a checkpoint or of a run.
    about : mapping or Identity, optional
        Name -> text or number: what else the runs must have in common (model, data, …).
    parts : mapping, optional
        Name -> :class:`Part`.
    stop : callable, optional
        Returns why the run is to stop, or nothing; asked on every rank's communication thread after
        every step, and now and then between. A reason once given holds. As soon as one rank has one
        all stop, after a checkpoint, at the same step if they wait for each other.
    resize : bool
        Whether to go on, too, from what another number of ranks has left.
    by_epoch : bool
        Whether to do so from the same epoch, rather than at the same step of a worker.

    Attributes
    ----------
    stopped : str
        Why the run was stopped, and on which rank; nothing if it went to its end.
    last : Path or None
        The newest checkpoint, in whole, that this run wrote or went on from.
    held_up_s : list of float
        How long each checkpoint has held up this rank's training, from when all ranks were there
        to when all had copied what is written.
    found : Manifest or None
        Of the checkpoint that the run goes on from; known after :meth:`open`.

    Raises
    ------
    BadInput
        If `every` or `keep` is not possible.
    """

    def __init__(
        self,
        out: str | Path,
        every: int | None = None,
        keep: int = 2,
        resume: str | Path = "never",
        about: Mapping[str, Any] | Identity | None = None,
        parts: Mapping[str, Part] | None = None,
        stop: Callable[[], str] | None = None,
        resize: bool = False,
        by_epoch: bool = False,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value is not None and value < 1:
                raise BadInput(f"checkpoints: {name}={value}: at least 1 is needed")
        self.directory = Path(out).absolute() / DIRECTORY
        self.held_up_s: list[float] = []
        self.found: Manifest | None = None
        self.parts = dict(parts or {})
        self.stopped = ""
        self._writing = Writing(self.directory, keep)
        self._copies = Copies()
        self._reason: StopReason | None = None
        if every is not None or stop is not None:  # a failure stops all, too
            self._reason = StopReason(lambda: self._writing.failure or (stop() if stop else ""))
        self._vote = StopVote()
        self.every, self._resume = every, resume
        self._resize, self._by_epoch = resize, by_epoch
        self._resizing: dict[str, str] | str = ""  # of the State, for the manifest
        self._algorithm: Any = None
        self._about = about if isinstance(about, Identity) else Identity(dict(about or {}), {})
        self._identity: dict[str, Any] = {}
        self._loaded: Tree | None = None
        self._opened = False
        self._workers = 1
        self._synchronous = True
        self._stopping = False
        self._word: RequestWord | None = None
        self._listener: Any = None
        self._next: float = math.inf
        self._steps: list[int] = []  # of all ranks at the last checkpoint
        self._ended = False  # no more, since ranks have died

    # -- before a run ------------------------------------------------------------------------------

    def open(self, w: MPIWorker, algorithm: Algorithm[Any], dim: int, stop: Stop) -> None:
        """Find, check and read the checkpoint to go on from. Collective; a second time nothing.

        Raises
        ------
        BadInput
            On all ranks, if there is none where one is asked for, it is damaged, the run that
            wrote it was another, or has made more than the steps asked for; or if another run
            writes to `out`.
        """
        if self._opened:
            return
        here = {"algorithm": algorithm.name, "ranks": w.size, "topology": w.topology.name}
        here |= {"seed": w.seed, "dim": dim}
        about = (hyper_parameters(algorithm) | Identity(here, {}) | self._about).plain()
        self._identity = dict(about.values)  # as the manifest will say it
        resizing = Resizing(self._resize, algorithm, self._by_epoch)
        self._algorithm = algorithm
        with contextlib.ExitStack() as undone:  # if it is refused
            if self._reason is not None:  # before anything is read that another run may change
                claim = agreed(w, lambda: Claim(self.directory.parent) if w.rank == 0 else None)
                if claim is not None:
                    undone.callback(claim.give_back)
            found = search(w, self.directory, self._resume, about, stop, resizing)
            w.afterwards.append(undone.pop_all().close)
        if found is not None:
            self._writing.last, self.found, self._loaded = found.path, found.manifest, found.tree
            self._steps = [] if RESIZED in found.tree else found.manifest.steps
        self._opened = True

    @property
    def last(self) -> Path | None:  # noqa: D102  # above
        return self._writing.last

    def last_in(self, path: Path) -> str | None:
        """Return :attr:`last` as seen from a directory."""
        if self.last is None or not self.last.is_relative_to(path):
            return None if self.last is None else str(self.last)
        return str(self.last.relative_to(path))

    # -- during a run ------------------------------------------------------------------------------

    async def begin(self, w: MPIWorker, state: Any, workers: int, synchronous: bool) -> None:
        """Go on from the checkpoint found, if one was. Collective, before the first step."""
        self._workers, self._synchronous = workers, synchronous
        self._copies.lane = w.lane
        if self._loaded is not None:
            tree, self._loaded = self._loaded, None
            w.load_state_dict(tree["worker"])
            await restore(state, tree["state"], whole=RESIZED not in tree)
            await w.compute(lambda: handed_out(w, self.parts, tree), "going on from a checkpoint")
            if RESIZED in tree and hasattr(self._algorithm, "finish"):
                await w.collectives.barrier()  # all have what others take over
                await self._algorithm.finish(w, state)
        if self.every is not None:
            await snapshot(state, self._copies)  # refuses now what could not be saved later
        if self._reason is not None:
            self._resizing = rules_of(state, w.objective, self.parts)
            self._writing.open(w)
            if not synchronous:
                self._word = w.request_word()
        self._listen(w)
        self._plan(w.step)

    async def due(self, w: MPIWorker) -> bool:
        """Whether this rank is to come to a checkpoint; after every step. Asks the others."""
        mine = self.every is not None and w.step >= self._next
        stop = bool(self._why())
        if self._word is not None:
            if mine or stop:
                self._word.ask(CHECKPOINT * mine | STOP * stop)
            return self._word.asked() != 0
        if self._reason is not None and await self._vote.passed(w, stop):
            self._stopping = True
        return mine or self._stopping

    async def pause(self, w: MPIWorker, state: Any) -> bool:
        """Save the run if it has moved; when all ranks are here and nothing is in flight.

        What is saved is copied here and written beside the training. The last one of a run, and the
        one before if it is not written yet, is waited for.

        Returns
        -------
        bool
            Whether the run goes on: a rank had asked to come here, and none to stop. If none had
            asked, all have come to their end.

        Raises
        ------
        RunFailed
            On all ranks, if one could not write. The checkpoints before stay as they are.
        """
        if self._reason is None:
            return False
        if self._listener is not None:
            w.cancel(self._listener)
        if w.guard is not None:  # on a device it may not have got so far
            await w.until(w.guard.settled, "a look at what was sent, for NaN and infinity")
        await self._vote.settle()  # of synchronous ranks; whoever voted for a stop says so below
        asked = STOP * bool(self._why())
        if self._word is None:
            asked |= CHECKPOINT * (w.step >= self._next)
        else:
            asked |= self._word.asked()
            # before all have come to the next line nobody asks, but for a stop, and says so there
            self._word.clear()
        mine = torch.zeros((w.size, 3), dtype=torch.int64)
        mine[w.rank] = torch.tensor([w.step, asked, 1])
        rows = (await w.vote(mine.view(-1))).view(w.size, 3)
        steps = rows[:, 0].tolist()
        stopping = bool((rows[:, 1] & STOP).any())
        await self._take(w, state, steps, stopping, rows[:, 2])
        self._plan(w.step)
        goes_on = bool(rows[:, 1].any()) and not stopping
        if goes_on:
            self._listen(w)
        else:
            await self._writing.close(w)
        return goes_on

    async def keep(self, w: MPIWorker, state: Any, last: bool) -> bool:
        """Save the run where the program says so, likewise; return whether it goes on.

        It does not if this is the `last` time, or a rank is to stop.
        """
        mine = torch.zeros((w.size, 2), dtype=torch.int64)
        mine[w.rank] = torch.tensor([w.step, bool(self._why())])
        rows = (await w.vote(mine.view(-1))).view(w.size, 2)
        stopping = bool(rows[:, 1].any())
        everyone = torch.ones(w.size)  # a loop of one's own outlives nobody
        await self._take(w, state, rows[:, 0].tolist(), stopping, everyone)
        if stopping or last:
            await self._writing.close(w)
        return not (stopping or last)

    async def settle(self, w: MPIWorker) -> None:
        """Wait until what is being written is there."""
        await self._writing.settle(w)

    async def _take(
        self, w: MPIWorker, state: Any, steps: list[int], stopping: bool, here: torch.Tensor
    ) -> None:
        """Save the run if it has moved and all ranks are here; note who stops it."""
        waited_s = await self._writing.settle(w)
        if waited_s > _LONG_S and not stopping and w.rank == 0:
            _log.warning(_SLOW, waited_s, self.last)
        if steps != self._steps and (stopping or self.every is not None):
            if here.all():
                await self._save(w, state, steps)
            elif not self._ended:  # said once
                self._ended = True
                if w.rank == int(here.argmax()):
                    _log.warning(_NOT_WHOLE, self.last)
        if stopping:
            said = enumerate(await exchanged(w, self._why(), _REASON_BYTES))
            came = (f"{why} came to rank {rank}" for rank, why in said if why)
            self.stopped = next(came, "a rank asked for it, and died")

    def _why(self) -> str:
        return self._reason() if self._reason is not None else ""

    def _listen(self, w: MPIWorker) -> None:
        """Be ready to ask for a stop while this rank makes no step, after which it would."""
        if self._word is not None and self._reason is not None:
            asking = self._ask_for_stop(w, self._reason, self._word)
            self._listener = w.spawn(asking, "asking for a stop")

    async def _ask_for_stop(self, w: MPIWorker, reason: StopReason, word: RequestWord) -> None:
        await w.chance(reason.looked_up, "a reason to stop")
        word.ask(STOP)

    def _plan(self, step: int) -> None:
        if self.every is not None:
            phase = step % self.every if self._synchronous else 0
            self._next = step + self.every - phase

    async def _save(self, w: MPIWorker, state: Any, steps: list[int]) -> None:
        """Copy this rank's part; writing it goes on beside the training."""
        began_s = time.monotonic()
        previous = -1 if self.last is None else files.number_of(self.last)
        number = max(sum(steps) // self._workers, previous + 1)
        tree = {"worker": w.state_dict(), "state": await snapshot(state, self._copies)}
        tree |= await w.compute(lambda: collected(w, self.parts), "collecting a checkpoint")
        packed = Packed.of(tree)
        await w.collectives.barrier()  # no rank goes on before all have their copies
        manifest = Manifest(number, self._identity, steps, [], self._resizing)
        self._writing.begin(w, packed, manifest)
        self._steps = steps
        self.held_up_s.append(time.monotonic() - began_s)
