#!/usr/bin/env python
"""Ranks that share one import of torch: many more of them fit into a machine, and start sooner.

``import torch`` takes a second or two and 140 MB, in each rank anew, and to free that at the end
takes half a second more. Here one process imports it, and each rank is a fork, which shares what
it does not change::

    mpirun -n 128 python -S scripts/forked.py scripts/scaling_point.py --csv scaling.csv
    mpirun -n 128 python -S scripts/forked.py -m mpimomentum train

What mpirun starts is a stub. It hands its files and its environment over to the process that forks
(``fork_server.py``), which the first stub started unless FORK_SERVER is the socket of one, waits
for its rank, and ends as that did; a rank whose stub is gone is killed. For one machine, to try out
numbers of ranks and for tests, not to train.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
IMPORTED = ("torch", "mpimomentum.runtime.run", "mpimomentum.transport", "scaling_point")


def main(argv: list[str]) -> None:
    """Have a rank forked, and end as it does."""
    environ = dict(os.environ)
    path = environ.pop("FORK_SERVER", "")
    # the launcher's others are those of other ranks, which it forgot to close
    files = [0, 1, 2, *(int(environ[name]) for name in ("PMI_FD",) if name in environ)]
    asked = {
        "files": files,
        "argv": argv,
        "cwd": os.getcwd(),  # noqa: PTH109  # to import pathlib would take as long as all this
        "environ": environ,
        "cpus": list(os.sched_getaffinity(0)),
    }
    text = json.dumps(asked).encode()
    line = _connected(path) if path else _connected_to_own()
    socket.send_fds(line, [struct.pack("<q", len(text))], files)
    line.sendall(text)
    (pid,) = struct.unpack("<q", whole(line, 8))
    for number in PASSED_ON:
        signal.signal(number, lambda n, _: _pass_on(pid, n))
    (status,) = struct.unpack("<q", whole(line, 8))
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.waitstatus_to_exitcode(status))


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def whole(line: socket.socket, nbytes: int) -> bytes:
    """Receive so many bytes."""
    got = b""
    while len(got) < nbytes:
        piece = line.recv(nbytes - len(got))
        if not piece:
            sys.exit("the process that forks the ranks has ended")
        got += piece
    return got


def _connected(path: str) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    return line


def _connected_to_own() -> socket.socket:
    """Return a line to the process of all stubs of this launcher, started if it is not there."""
    import fcntl
    import subprocess
    from pathlib import Path

    folder = Path(f"/tmp/mpimomentum-forked-{os.getuid()}-{os.getppid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        sys.exit(f"{folder} is somebody else's")
    path = str(folder / "socket")
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return _connected(path)
        except OSError:
            program = Path(__file__).with_name("fork_server.py")
            command = [sys.executable, str(program), path, *IMPORTED]
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            assert server.stdout is not None
            if not server.stdout.read(1):  # said once it listens
                sys.exit(f"{' '.join(command)}: it ended; its message is above")
            return _connected(path)


if __name__ == "__main__":
    main(sys.argv[1:])
