"""What is to become of a run of which a rank dies, as the user asks for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.variables import Runtime

OnFailure = Literal["abort", "continue"]
ABORT: OnFailure = "abort"
CONTINUE: OnFailure = "continue"
FAILURE_TIMEOUT_S = 60.0


@Parameter(name="*", group="Faults (train only)")
@dataclass(frozen=True)
class Faults:
    """What the death of a rank does to the others.

    Parameters
    ----------
    on_failure : str
        abort: the job ends; continue: the others go on without it. That needs ad-psgd, d-psgd,
        decentralized-momentum, quasi-global-momentum or elastic-averaging, all ranks on one node,
        and a launcher that does not end the job (docs/faults.md).
    failure_timeout_s : float, optional
        With continue: seconds that a rank may not move before it is declared dead; 60 unless given.
        A rank that computes, however long, moves.
    """

    on_failure: OnFailure = ABORT
    failure_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in (ABORT, CONTINUE):
            raise BadInput(f"on_failure={self.on_failure!r}: choose abort or continue")
        if self.failure_timeout_s is None:
            return
        if not 0 < self.failure_timeout_s < math.inf:
            raise BadInput(f"failure_timeout_s={self.failure_timeout_s} must be above 0 and finite")
        if self.on_failure == ABORT:
            raise BadInput(
                f"failure_timeout_s={self.failure_timeout_s} without on_failure=continue does "
                "nothing: the job ends when nothing moves for MPIMOMENTUM_TIMEOUT_S; leave it out"
            )

    @property
    def timeout_s(self) -> float:
        """Seconds that a rank may not move."""
        return FAILURE_TIMEOUT_S if self.failure_timeout_s is None else self.failure_timeout_s

    def check(self, how: Runtime) -> None:
        """Refuse what the way in which ranks run does not allow.

        Raises
        ------
        BadInput
        """
        if self.on_failure == ABORT:
            return
        if how.driver != "thread":
            raise BadInput(
                f"on_failure=continue with MPIMOMENTUM_DRIVER={how.driver}: a rank that computes "
                "could not show that it lives; leave the variable out"
            )
        if self.timeout_s >= how.timeout_s:
            raise BadInput(
                f"failure_timeout_s={self.timeout_s:g} is not below MPIMOMENTUM_TIMEOUT_S="
                f"{how.timeout_s:g}, after which a job in which nothing moves ends: change one"
            )

    def refuse(self, what: str) -> None:
        """Refuse it for `what`, in which no rank dies.

        Raises
        ------
        BadInput
        """
        if self.on_failure != ABORT:
            raise BadInput(
                f"on_failure={self.on_failure}: {what} has no ranks that die; leave it out, or use "
                "`mpimomentum train`"
            )
