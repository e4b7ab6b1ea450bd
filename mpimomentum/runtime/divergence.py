"""A loss that is not finite ends a run, with one message on behalf of all ranks.

Nothing is agreed upon between ranks while they work, so several may find it, at the same step if
they hold the same model. The one that makes the file ``failure.txt`` in the run directory speaks
and ends the job; the others wait for that.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpimomentum.non_finite import NonFinite, words_of
from mpimomentum.runtime.errors import RunFailed
from mpimomentum.runtime.loop import Observe

FAILURE = "failure.txt"
EVERY = 10  # steps between two looks: each may have to wait for a GPU
WAIT_S = 30.0  # for the rank that speaks to end the job


def finite(observe: Observe) -> Observe:
    """Return an `observe` that raises RunFailed, on the rank that saw it, at a loss not finite.

    Parameters
    ----------
    observe : callable
        Called first.
    """

    def look(w: Any, state: Any) -> None:
        observe(w, state)
        if w.step % EVERY != 1 or (loss := w.objective.last_loss) is None:
            return
        if not math.isfinite(loss):
            raise RunFailed(
                f"rank {w.rank}: the training loss is {loss} at step {w.step}, with lr="
                f"{words_of(w.lr)}: the run diverged; use a smaller --lr or --mu, or fewer workers"
            )

    return look


def check_end(loss: float | None) -> None:
    """Raise RunFailed if a run ended with a model whose loss (None: as JSON has it) is no number.

    Raises
    ------
    RunFailed
    """
    if loss is None or not math.isfinite(loss):
        raise RunFailed(
            f"the averaged model's training loss is {math.nan if loss is None else loss}: the run "
            "diverged; use a smaller --lr or --mu, or fewer workers"
        )


@contextlib.contextmanager
def once(directory: Path) -> Iterator[None]:
    """Let the failure of the first rank through, as RunFailed; other ranks wait for the end.

    Parameters
    ----------
    directory : Path
        Of the run, the same on all ranks.
    """
    try:
        yield
    except (RunFailed, NonFinite, MemoryError) as error:
        try:
            with (directory / FAILURE).open("x", encoding="utf-8") as file:
                file.write(f"{error}\n")
        except FileExistsError:
            time.sleep(WAIT_S)
        except OSError:  # better said twice than not at all
            pass
        if not isinstance(error, RunFailed):  # windows, or this rank, had no room; or not finite
            raise RunFailed(str(error)) from error
        raise
