"""GPUs: what torch was built for, what the driver shows, and whether MPI takes device pointers.

Nothing of CUDA is loaded in this process: it all happens in a subprocess, and only where torch was
built for CUDA.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import Place

PROBE = (sys.executable, "-m", "mpimomentum.transport.cuda_probe")
PROBE_S = 90.0

_LAUNCHER_PREFIXES = ("OMPI_COMM_", "PMIX_", "PMI_", "MPI_LOCAL", "SLURM_", "PRTE_", "HYDI_")
_DEVICE = Path("/dev/nvidiactl")
_DRIVER = Path("/proc/driver/nvidia/version")


def cuda(place: Place) -> list[Finding]:
    """Look at torch's build, the devices and MPI's way with them."""
    gpu_here = _DEVICE.exists()
    if torch.version.cuda is None:
        return [_cpu_build(gpu_here)]
    learnt, ending = probe(place.environ)
    return [devices(learnt, gpu_here), cuda_aware(learnt, ending)]


def probe(environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Run the probe as a job of its own; return what it learnt and how it ended, "" if well."""
    alone = {k: v for k, v in environ.items() if not k.startswith(_LAUNCHER_PREFIXES)}
    try:
        done = subprocess.run(
            PROBE,
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


def devices(learnt: Mapping[str, Any], gpu_here: bool) -> Finding:
    """Whether torch can use the devices."""
    build = f"torch for CUDA {torch.version.cuda}"
    if learnt.get("usable"):
        names = ", ".join(learnt["devices"])
        return Finding("CUDA", Status.OK, f"{build}, {_driver()}: {names}", "models can run there")
    if gpu_here:
        return Finding(
            "CUDA",
            Status.WARN,
            f"{build}, {_driver()}: torch cannot use the GPU of this machine",
            "models run on the CPU",
            "nvidia-smi should show a driver for this CUDA version or a later one, and "
            "CUDA_VISIBLE_DEVICES must not be empty",
        )
    return Finding("CUDA", Status.OK, f"{build}, no GPU here", "models run on the CPU")


def cuda_aware(learnt: Mapping[str, Any], ending: str) -> Finding:
    """Whether MPI may be given device pointers."""
    name = "CUDA-aware MPI"
    says = {True: "says it is", False: "says it is not", None: "does not say"}[learnt.get("query")]
    found = f"the library {says}; "
    staged = "vectors go through host memory, which always works"
    if learnt.get("sendrecv"):
        return Finding(name, Status.OK, f"{found}a device buffer was sent", "MPI takes device data")
    if not learnt.get("usable"):
        return Finding(name, Status.OK, f"{found}not tried: no usable GPU", staged)
    if learnt.get("sendrecv") is False:
        found += "the probe sent a device buffer and got other data"
    else:
        found += f"the probe {ending or 'did not try'}"
    if learnt.get("query"):
        return Finding(
            name,
            Status.WARN,
            found,
            f"the library promises what it does not do; {staged}",
            "leave MPIMOMENTUM_STAGING at auto or pinned; on Cray set MPICH_GPU_SUPPORT_ENABLED=1",
        )
    return Finding(name, Status.NOTE, found, staged)


def _cpu_build(gpu_here: bool) -> Finding:
    if gpu_here:
        return Finding(
            "CUDA",
            Status.WARN,
            f"a GPU is here ({_driver()}), but torch is built for the CPU only",
            "models run on the CPU",
            "install a CUDA build of torch (pytorch.org, 'Get started')",
        )
    return Finding(
        "CUDA", Status.OK, "no GPU here, torch is built for the CPU", "models run on the CPU"
    )


def _driver() -> str:
    try:
        line = _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return "driver not seen"
    return "driver " + next((word for word in line.split() if word[:1].isdigit()), "unknown")


def _read(text: str) -> dict[str, Any]:
    learnt: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("{"):
            learnt |= json.loads(line)
    return learnt
