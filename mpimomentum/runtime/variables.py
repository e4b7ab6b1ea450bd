"""``MPIMOMENTUM_*`` variables that are no flags: how a rank runs, not what it computes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mpimomentum.codecs import extension
from mpimomentum.runtime.errors import BadInput

RUNTIME_VARIABLES: dict[str, tuple[str, str]] = {
    "MPIMOMENTUM_TIMEOUT_S": (
        "300",
        "Longest wait in which nothing moves; then the job ends and says who waited for whom.",
    ),
    "MPIMOMENTUM_BACKOFF_S": ("0.0002", "Nap between two polls of the communication thread."),
    "MPIMOMENTUM_DRIVER": ("thread", "inline: everything in one thread, for debugging."),
    "MPIMOMENTUM_ISA": ("the best", "baseline, avx2 or avx512: what the kernels may use."),
    "MPIMOMENTUM_CUDA": (
        "",
        "Read by the installation: 1 demands CUDA kernels, 0 leaves them out.",
    ),
    "MPIMOMENTUM_FAKE_NODES": ("", "Tests only: ranks of one node believe they are on so many."),
    "MPIMOMENTUM_PRETEND_GPUS": (
        "",
        "Tests only: each node believes it has so many GPUs, and computes on the CPU.",
    ),
}
"""Name → (default, meaning)."""

DRIVERS = ("thread", "inline")


@dataclass(frozen=True)
class Runtime:
    """How the communication of one rank runs."""

    driver: str = "thread"
    timeout_s: float = 300.0
    backoff_s: float = 200e-6


def runtime(environ: Mapping[str, str] = os.environ) -> Runtime:
    """Read and check the variables; no MPI is needed.

    Raises
    ------
    BadInput
        With the variable, its value and what is possible.
    """
    driver = environ.get("MPIMOMENTUM_DRIVER", "thread")
    if driver not in DRIVERS:
        raise BadInput(f"MPIMOMENTUM_DRIVER={driver}: choose 'thread' or 'inline'")
    check_instruction_set(environ)
    fake = environ.get("MPIMOMENTUM_FAKE_NODES", "1")
    if not fake.isdigit() or int(fake) < 1:
        raise BadInput(f"MPIMOMENTUM_FAKE_NODES={fake}: a number of nodes from 1 up is needed")
    pretended = environ.get("MPIMOMENTUM_PRETEND_GPUS", "0")
    if not pretended.isdigit():
        raise BadInput(f"MPIMOMENTUM_PRETEND_GPUS={pretended}: a number of GPUs is needed")
    return Runtime(
        driver,
        _seconds(environ, "MPIMOMENTUM_TIMEOUT_S", Runtime.timeout_s),
        _seconds(environ, "MPIMOMENTUM_BACKOFF_S", Runtime.backoff_s),
    )


def check_instruction_set(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a choice of kernels that are not there: a simulation has them, too.

    Raises
    ------
    BadInput
    """
    isa = environ.get("MPIMOMENTUM_ISA")
    if isa and extension.built() and isa not in extension.kernels.instruction_sets():
        known = ", ".join(extension.kernels.instruction_sets())
        raise BadInput(f"MPIMOMENTUM_ISA={isa}: this build and processor have {known}")


def _seconds(environ: Mapping[str, str], variable: str, default: float) -> float:
    text = environ.get(variable)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise BadInput(f"{variable}={text}: a number of seconds above 0 is needed")
    return value
