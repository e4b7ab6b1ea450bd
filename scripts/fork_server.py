#!/usr/bin/env python
"""The process of which the ranks of ``forked.py`` are forks.

usage: fork_server.py SOCKET MODULE...

Imports the modules, says "!" on standard output once it listens, and forks a rank for every stub
that asks. If its standard input is a pipe it stays until that is closed; else it ends soon after
its last rank. The socket's folder, and ranks that are left, end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any

from forked import whole

BEGIN_S, END_S = 60.0, 2.0
"""How long it waits for its first rank, and after its last one's end."""

PR_SET_PDEATHSIG = 1


class Forks:
    """Forks a rank for each stub that asks.

    Parameters
    ----------
    path : Path
        Of the socket on which stubs ask.
    added : dict
        Variables that the imports have set: a rank has them unless its stub has them otherwise.
    """

    def __init__(self, path: Path, added: dict[str, str]) -> None:
        self._path, self._added = path, added
        path.unlink(missing_ok=True)
        self._here = socket.socket(socket.AF_UNIX)
        self._here.bind(str(path))
        self._here.listen(1024)
        self._stays = stat.S_ISFIFO(os.fstat(0).st_mode)
        self._events = selectors.DefaultSelector()
        self._events.register(self._here, selectors.EVENT_READ, "asked")
        if self._stays:
            self._events.register(0, selectors.EVENT_READ, "closed")
        self._ranks: dict[int, tuple[int, socket.socket]] = {}  # pid -> pidfd, line
        os.write(1, b"!")

    def serve(self) -> list[str]:
        """Fork ranks as long as they are wanted; return, in each of them, what it is to run."""
        end_s = time.monotonic() + BEGIN_S
        while self._stays or self._ranks or time.monotonic() < end_s:
            for key, _ in self._events.select(1.0):
                argv = None
                if key.data == "asked":
                    argv = self._fork()
                elif key.data == "closed":
                    self._leave()
                elif key.data > 0:
                    self._ended(key.data)
                    end_s = time.monotonic() + END_S
                elif -key.data in self._ranks:  # its stub is gone
                    os.kill(-key.data, signal.SIGKILL)
                if argv is not None:
                    return argv
        self._leave()
        return []

    def _leave(self) -> None:
        shutil.rmtree(self._path.parent)
        os._exit(0)

    def _fork(self) -> list[str] | None:
        """Fork one; returns in the rank what it is to run, else None."""
        line, _ = self._here.accept()
        size, files, _, _ = socket.recv_fds(line, 8, 16)
        if len(size) < 8:  # the stub was killed
            line.close()
            return None
        asked = json.loads(whole(line, struct.unpack("<q", size)[0]))
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            self._events.close()
            self._here.close()
            line.close()
            for pidfd, other in self._ranks.values():
                os.close(pidfd)
                other.close()
            asked["environ"] = self._added | asked["environ"]
            return _become(asked, files)
        for number in files:
            os.close(number)
        pidfd = os.pidfd_open(pid)
        self._ranks[pid] = pidfd, line
        self._events.register(pidfd, selectors.EVENT_READ, pid)
        self._events.register(line, selectors.EVENT_READ, -pid)
        with contextlib.suppress(OSError):  # the stub was killed
            line.sendall(struct.pack("<q", pid))
        return None

    def _ended(self, pid: int) -> None:
        """Tell a stub how its rank ended."""
        _, status = os.waitpid(pid, 0)
        pidfd, line = self._ranks.pop(pid)
        self._events.unregister(pidfd)
        self._events.unregister(line)
        with contextlib.suppress(OSError):  # the stub was killed
            line.sendall(struct.pack("<q", status))
        os.close(pidfd)
        line.close()


def _become(asked: dict[str, Any], files: list[int]) -> list[str]:
    """Take over a stub's files, folder, processors and environment."""
    safe = 1 + max(*files, *asked["files"])
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, safe) for number in files]
    for number in files:
        os.close(number)
    for number, wanted in zip(moved, asked["files"], strict=True):
        os.dup2(number, wanted, inheritable=True)
        os.close(number)
    os.chdir(asked["cwd"])
    os.sched_setaffinity(0, asked["cpus"])
    os.environ.clear()
    os.environ.update(asked["environ"])
    if "numpy" in sys.modules:  # of Python's own generator Python takes care
        sys.modules["numpy"].random.seed()
    argv: list[str] = asked["argv"]
    return argv


class End:
    """The end of a rank: it leaves its memory to the system.

    To free what torch has registered, a rank would have to write into all the pages that it shares.
    Made before anything is imported, so that what others have registered for the end comes first.
    """

    def __init__(self) -> None:
        self.code = 1
        self._libc = ctypes.CDLL(None)
        atexit.register(self._leave)

    def in_rank(self) -> None:
        """Be called after what MPI registers, before what torch has."""
        self._libc.on_exit(self._libc._exit, None)

    def _leave(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._libc.exit(self.code)


def run(argv: list[str]) -> None:
    """Run ``PROGRAM ARG...`` or ``-m MODULE ARG...`` as Python does."""
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")


def main() -> None:
    end = End()
    path, *modules = sys.argv[1:]
    before = set(os.environ)
    for name in modules:  # MPI begins in each rank
        importlib.import_module(name)
    added = {name: os.environ[name] for name in set(os.environ) - before}
    del sys.path[0]  # this file's folder
    gc.freeze()  # a collection in a rank would write into every object, and copy its page
    argv = Forks(Path(path), added).serve()
    end.in_rank()
    try:
        run(argv)
        end.code = 0
    except SystemExit as error:
        end.code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise


if __name__ == "__main__":
    main()
