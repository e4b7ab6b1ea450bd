"""What ranks must agree on before they begin: a failure of one is a failure of all."""

from __future__ import annotations

from collections.abc import Callable
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


def told(worker: MPIWorker, text: str) -> list[str]:
    """Return the text of every rank, cut to what fits a message. Collective."""
    encoded = text.encode()[:MESSAGE_BYTES]
    padded = torch.frombuffer(bytearray(encoded.ljust(MESSAGE_BYTES, b"\0")), dtype=torch.uint8)

    async def exchange() -> torch.Tensor:
        return await worker.allgather(padded)

    rows = worker.run(exchange(), "the ranks' answers before a run")
    return [row.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]
