"""What ranks must agree on before they begin: a failure of one is a failure of all."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from mpimomentum.runtime.errors import BadInput

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

T = TypeVar("T")

MESSAGE_BYTES = 8192  # of what ranks tell each other before a run; a path fits


def agreed(worker: MPIWorker, attempt: Callable[[], T]) -> T:
    """Make `attempt` on every rank; if it fails on one, it fails on all. Collective.

    Raises
    ------
    BadInput
        With the message of the lowest rank on which it failed with a ValueError or OSError.
    """
    try:
        value, failure = attempt(), ""
    except (ValueError, OSError) as error:
        failure = str(error) or repr(error)
    failures = told(worker, failure)
    for rank, message in enumerate(failures):
        if message:
            everyone = all(other == message for other in failures)
            raise BadInput(message if everyone or rank == 0 else f"rank {rank}: {message}")
    return value


def same(worker: MPIWorker, facts: Mapping[str, object]) -> None:
    """Refuse a run whose ranks were not asked for the same. Collective.

    Parameters
    ----------
    worker : MPIWorker
    facts : mapping
        Name → value, of one line each; what all ranks must have in common.

    Raises
    ------
    BadInput
        On all ranks, with the fact that differs, both values and the ranks.
    """
    text = "".join(f"{name} = {value}\n" for name, value in facts.items())
    if len(set(told(worker, hashlib.sha256(text.encode()).hexdigest(), 64))) == 1:
        return
    everyones = [dict(_pairs(theirs)) for theirs in told(worker, text)]
    differing = [
        name for name in {k: 0 for each in everyones for k in each} if _varies(everyones, name)
    ]
    if not differing:  # beyond what fits a message
        raise BadInput("the ranks' configurations differ: start all ranks alike")
    name = differing[0]
    values = [each.get(name, "nothing") for each in everyones]
    usual = Counter(values).most_common(1)[0][0]
    odd = next(rank for rank, value in enumerate(values) if value != usual)
    more = f" (and in {', '.join(differing[1:])})" if differing[1:] else ""
    raise BadInput(
        f"the ranks differ in {name}{more}: rank {odd} has {values[odd]}, rank "
        f"{values.index(usual)} has {usual}; give all ranks the same flags, MPIMOMENTUM_* "
        "variables and TOML file, and the same installation on every node"
    )


def versions() -> dict[str, str]:
    """Return what computes: mpimomentum, down to its source files, torch and Python."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return {
        "version of mpimomentum": f"{version('mpimomentum')} (code {digest.hexdigest()[:8]})",
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
    }


def told(worker: MPIWorker, text: str, size_bytes: int = MESSAGE_BYTES) -> list[str]:
    """Return the text of every rank, each cut to `size_bytes`, alike on all. Collective."""
    exchange = exchanged(worker, text, size_bytes)
    return worker.run(exchange, "the ranks' answers before a run")


async def exchanged(worker: MPIWorker, text: str, size_bytes: int = MESSAGE_BYTES) -> list[str]:
    """Do the same as :func:`told` inside a run."""
    encoded = text.encode()[:size_bytes]
    padded = torch.frombuffer(bytearray(encoded.ljust(size_bytes, b"\0")), dtype=torch.uint8)
    rows = await worker.allgather(padded)
    return [row.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]


async def exchanged_whole(worker: MPIWorker, text: str) -> list[str]:
    """Do the same as :func:`exchanged`, but cut nothing."""
    mine = torch.tensor([len(text.encode())])
    return await exchanged(worker, text, int((await worker.allgather(mine)).max()))


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (li.partition(" = ") for li in text.splitlines())]


def _varies(everyones: list[dict[str, str]], name: str) -> bool:
    return len({each.get(name) for each in everyones}) > 1
