"""One run at a time writes to a run's directory: rank 0 holds a lock there.

Without it a second run with the same ``--out``, started while the first waits in a queue or is not
over yet, would cut its records and remove its checkpoints. The kernel takes the lock back when the
process ends, however it ends; so ranks that outlive rank 0 (``on_failure=continue``) have none.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

from mpimomentum.runtime.errors import BadInput

LOCK = ".lock"

_log = logging.getLogger(__name__)
_held: dict[Path, TextIO] = {}  # of this process, to which POSIX locks belong


class Claim:
    """The right of this process to write to a directory, until :meth:`give_back` or its end.

    Parameters
    ----------
    directory : Path
        Made if need be; what was made is removed by :meth:`give_back`, if nothing came into it.

    Raises
    ------
    BadInput
        If another process has it, or nothing can be written there. An earlier start of the same
        Slurm job does not count: it has ended, and a file server may not know yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._path = self._directory / LOCK
        self._made = False
        self._mine = self._path not in _held
        if not self._mine:  # a loop in a loop; and closing the file again would lose the lock
            return
        try:
            self._made = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+", encoding="utf-8")
            while not self._locked(file):  # given back, and so removed, since it was opened
                file.close()
                file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"out={directory}: {error}; choose a writable directory") from error
        file.truncate(0)
        file.write(json.dumps(_this()))
        file.flush()
        _held[self._path] = file

    def give_back(self) -> None:
        """Let others write there, unless an earlier claim of this process still stands."""
        if self._mine and (file := _held.pop(self._path, None)):
            self._path.unlink(missing_ok=True)
            file.close()
            if self._made:
                with contextlib.suppress(OSError):  # there is a run in it
                    self._directory.rmdir()

    def _locked(self, file: TextIO) -> bool:
        """Lock the file; return whether it is still the one that others will find."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _read(file)
            if not _earlier_start(holder):
                file.close()
                raise BadInput(
                    f"out={self._directory}: another run is writing there ({_words(holder)}): wait "
                    "for its end, end it, or choose another directory"
                ) from None
            # on a node that died, perhaps; once its lock lapses nobody has one
            _log.warning("%s is still locked by an earlier start of this job", self._directory)
        except OSError as error:  # a file system without locks
            _log.info("%s cannot be locked (%s): see that one run writes", self._directory, error)
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


def _this() -> dict[str, str]:
    names = {"job": "SLURM_JOB_ID", "start": "SLURM_RESTART_COUNT"}
    job = {key: os.environ[name] for key, name in names.items() if name in os.environ}
    return {"host": socket.gethostname(), "pid": str(os.getpid()), **job}


def _read(file: TextIO) -> dict[str, str]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:  # it has just begun
        return {}
    return found if isinstance(found, dict) else {}


def _earlier_start(holder: dict[str, str]) -> bool:
    mine = _this()
    if "job" not in mine or holder.get("job") != mine["job"]:
        return False
    return int(holder.get("start", 0)) < int(mine.get("start", 0))


def _words(holder: dict[str, str]) -> str:
    if not holder:
        return "it has just begun"
    job = f", Slurm's job {holder['job']}" if "job" in holder else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
