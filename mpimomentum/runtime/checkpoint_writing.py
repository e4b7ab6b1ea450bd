"""Writing a checkpoint beside the training: a thread a rank writes, ranks tell each other of it.

All that a rank has to write was copied before; its thread writes, syncs and renames. What the
threads have come to the ranks tell each other on a channel of their own, which the communication
thread looks after between all else: when the files of all are on the disk, rank 0's thread writes
the manifest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.checkpoint_files import File, Manifest, Packed
from mpimomentum.runtime.errors import RunFailed
from mpimomentum.runtime.timeline import on_disk

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker
    from mpimomentum.transport.progress import Task
    from mpimomentum.transport.side_channel import SideChannel

_DONE = "done "  # what a rank's answer begins with
_ANSWER_BYTES = 2048


class _RankDied(Exception):
    """A rank has died, which the others survive, before it had done its part."""


class Writing:
    """What one rank does to write checkpoints; never two at once.

    For coroutines of the run, on the communication thread; all ranks call :meth:`open`,
    :meth:`begin`, :meth:`settle` and :meth:`close` together.

    Parameters
    ----------
    directory : Path
        Of the checkpoints.
    keep : int
        How many of the last ones stay.

    Attributes
    ----------
    last : Path or None
        The newest checkpoint that is there in whole.
    failure : str
        Why one could not be written, the same on all ranks; nothing if all could.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.last: Path | None = None
        self.failure = ""
        self._directory, self._keep = directory, keep
        self._thread: ThreadPoolExecutor | None = None
        self._channel: SideChannel | None = None
        self._task: Task[None] | None = None
        self._under_way: Future[object] | None = None

    def open(self, w: MPIWorker) -> None:
        """Be ready to write."""
        self._channel = w.side_channel()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mpimomentum-checkpoint")

    def begin(self, w: MPIWorker, mine: Packed, manifest: Manifest) -> None:
        """Write what is `mine`, of which nothing may be changed before :meth:`settle` returns.

        Parameters
        ----------
        w : MPIWorker
        mine : Packed
        manifest : Manifest
            All but the files.
        """
        assert self._task is None, "the one before is not settled"
        writing = on_disk(w, self._write(w, mine, manifest))
        self._task = w.spawn(writing, "writing a checkpoint")

    async def settle(self, w: MPIWorker) -> float:
        """Wait until what was begun is there; return how many seconds that took.

        Raises
        ------
        RunFailed
            On all ranks, if one could not write; what was written is removed.
        """
        began_s = time.monotonic()
        if self._task is not None:
            while not self._task.done:
                await self._next(w, self._task, self._under_way)
            self._task.result()
            self._task = None
        if self.failure:
            raise RunFailed(self.failure)
        return time.monotonic() - began_s

    async def close(self, w: MPIWorker) -> None:
        """Settle, for the last time."""
        await self.settle(w)
        if self._thread is not None:
            self._thread.shutdown()

    async def _next(self, w: MPIWorker, task: Task[None], now: Future[object] | None) -> None:
        """Wait until the thread is at something else than `now`."""
        if now is not None:  # on the program's thread: a slow disk must not pass for a dead rank
            await w.compute(lambda: wait([now]), "writing a checkpoint")
        await w.until(lambda: task.done or self._under_way is not now, "writing a checkpoint")

    async def _write(self, w: MPIWorker, mine: Packed, manifest: Manifest) -> None:
        path = files.path_of(self._directory, manifest.number)

        def commit() -> None:
            parts = [File(**json.loads(text)) for text in written]
            files.commit(path, replace(manifest, files=parts))
            previous = None if self.last is None else files.number_of(self.last)
            files.prune(self._directory, manifest.number, self._keep, previous)

        try:
            await self._together(w, path, lambda: files.prepare(path), only=0)
            written = await self._together(
                w, path, lambda: json.dumps(asdict(files.write_part(path, w.rank, mine)))
            )
            await self._together(w, path, commit, only=0)
        except _RankDied:  # the others go on; what has no manifest is no checkpoint
            return
        except RunFailed as failed:
            self.failure = str(failed)
        else:
            self.last = path

    async def _together(
        self,
        w: MPIWorker,
        path: Path,
        attempt: Callable[[], object],
        only: int | None = None,
    ) -> list[str]:
        """Make `attempt` on all ranks or one; return what each came to, or fail on all."""
        answer = _DONE
        if only is None or w.rank == only:
            try:
                answer += str(await self._in_thread(w, attempt))
            except OSError as error:
                answer = str(error) or repr(error)
        answers = await self._exchanged(w, answer)
        failed = [rank for rank, said in enumerate(answers) if not said.startswith(_DONE)]
        if failed and not answers[failed[0]]:
            raise _RankDied
        if failed:
            if w.rank == 0:
                await self._in_thread(w, lambda: files.discard(path))
            await self._exchanged(w, "")
            valid = f"{self.last} is the last valid one" if self.last else "there is none yet"
            raise RunFailed(
                f"rank {failed[0]} cannot write the checkpoint {path}: {answers[failed[0]]}. The "
                f"run ends; {valid}. Make room or give write access, then use --resume auto"
            )
        return [said.removeprefix(_DONE) for said in answers]

    async def _in_thread(self, w: MPIWorker, attempt: Callable[[], object]) -> object:
        assert self._thread is not None, "not open"
        self._under_way = now = self._thread.submit(attempt)
        # by chances: what is written is not in flight, so a run comes to its next pause meanwhile
        await w.chance(now.done, "a checkpoint to be written")
        self._under_way = None
        return now.result()

    async def _exchanged(self, w: MPIWorker, text: str) -> list[str]:
        assert self._channel is not None, "not open"
        answers = self._channel.exchange(text, _ANSWER_BYTES)
        await w.chance(answers.test, "the other ranks' part of a checkpoint")
        return answers.result()
