"""What this machine does with device memory, tried in processes that may die of it.

Nothing of CUDA is loaded in this process, and no device pointer reaches its MPI.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PROBE = (sys.executable, "-m", "mpimomentum.transport.cuda_probe")
PROBE_S = 90.0
KINDS = ("ipc", "messages", "collectives", "sums", "rma")

_LAUNCHER_PREFIXES = ("OMPI_COMM_", "PMIX_", "PMI_", "MPI_LOCAL", "SLURM_", "PRTE_", "HYDI_")


def outcomes(
    environ: Mapping[str, str], kinds: Sequence[str] = KINDS
) -> tuple[dict[str, str], dict[str, Any]]:
    """Try each of `kinds`, whatever the process of another one died of.

    Returns
    -------
    dict
        Kind → "" if it works, else why not.
    dict
        What else the probe said: devices, usable, query.
    """
    found: dict[str, str] = {}
    known: dict[str, Any] = {}
    while left := [kind for kind in kinds if kind not in found]:
        learnt, ending = probe(environ, left)
        known = learnt | known
        found |= {kind: learnt[kind] for kind in left if kind in learnt}
        left = [kind for kind in left if kind not in found]
        died_at = learnt.get("trying")
        if died_at in left:
            found[died_at] = f"the probe {ending}" if ending else "the probe does not say"
        else:  # it ended before it could try: so would the next
            why = f"the probe {ending}" if ending else "not tried: no usable GPU"
            found |= dict.fromkeys(left, why)
    return found, known


def probe(environ: Mapping[str, str], kinds: Sequence[str] = KINDS) -> tuple[dict[str, Any], str]:
    """Run the probe as a job of its own; return what it learnt and how it ended, "" if well."""
    alone = {k: v for k, v in environ.items() if not k.startswith(_LAUNCHER_PREFIXES)}
    try:
        done = subprocess.run(
            [*PROBE, *kinds],
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_S,
            stdin=subprocess.DEVNULL,
            env=alone,
        )
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b""
        text = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        return _read(text), f"was not over after {PROBE_S:g} s"
    learnt = _read(done.stdout)
    if done.returncode < 0:
        return learnt, f"died of {signal.Signals(-done.returncode).name}"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return learnt, f"ended with code {done.returncode}: {last}"
    return learnt, ""


def _read(text: str) -> dict[str, Any]:
    learnt: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("{"):
            learnt |= json.loads(line)
    return learnt
