"""GPUs: what torch was built for, what the driver shows, and whether MPI takes device pointers.

Nothing of CUDA is loaded in this process: it all happens in subprocesses, and only where torch was
built for CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mpimomentum.runtime import cuda_trial
from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import SRUN, Place
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.placement import AUTO, DEVICE, local_rank_of, placed
from mpimomentum.runtime.visible import Seen

_DEVICE = Path("/dev/nvidiactl")
_DRIVER = Path("/proc/driver/nvidia/version")
_BY_MPI = ("messages", "collectives", "sums", "rma")


def cuda(place: Place) -> list[Finding]:
    """Look at torch's build, the devices, MPI's way with them, and what a run would make of it."""
    gpu_here = _DEVICE.exists()
    if torch.version.cuda is None:
        return [_cpu_build(gpu_here)]
    found, known = cuda_trial.outcomes(place.environ)
    findings = [devices(known, gpu_here), cuda_aware(found, known)]
    return [*findings, ipc(found), staging(place, found)] if known.get("usable") else findings


def device(place: Place) -> Finding:
    """Say where this rank of a training run would compute."""
    asked = place.environ.get(DEVICE, AUTO)
    try:
        local_rank = local_rank_of(place.environ, place.local_rank)
        mine = placed(asked, Seen.here(place.environ), local_rank)
    except BadInput as error:
        return Finding(
            "device",
            Status.FAIL,
            str(error),
            "mpimomentum train refuses to start",
            "see docs/gpu.md, 'Which rank uses which GPU'; on the CPU: --device cpu",
        )
    pretended = ", pretended" if mine.pretended else ""
    meaning = "what mpimomentum train computes on; mm.init() does so if it is given device="
    return Finding("device", Status.OK, f"{mine.name}: {mine.why}{pretended}", meaning)


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


def cuda_aware(found: Mapping[str, str], known: Mapping[str, Any]) -> Finding:
    """Whether MPI may be given device pointers."""
    name = "CUDA-aware MPI"
    says = {True: "says it is", False: "says it is not", None: "does not say"}[known.get("query")]
    says = f"the library {says}; "
    staged = "vectors go through host memory, which always works"
    if not known.get("usable"):
        return Finding(name, Status.OK, f"{says}not tried: no usable GPU", staged)
    works = [kind for kind in _BY_MPI if not found[kind]]
    told = "; ".join(f"{kind}: {found[kind]}" for kind in _BY_MPI if found[kind])
    if works:
        took = f"{says}it took device memory in {', '.join(works)}"
        means = "MPI takes device data" + (
            ", of these kinds; the others are staged" if told else ""
        )
        return Finding(name, Status.OK, f"{took}; {told}" if told else took, means)
    if known.get("query"):
        return Finding(
            name,
            Status.WARN,
            says + told,
            f"the library promises what it does not do; {staged}",
            "leave MPIMOMENTUM_STAGING at auto or pinned; on Cray set MPICH_GPU_SUPPORT_ENABLED=1",
        )
    return Finding(name, Status.NOTE, says + told, staged)


def ipc(found: Mapping[str, str]) -> Finding:
    """Whether ranks of a node can open each other's device memory."""
    if found["ipc"]:
        return Finding(
            "CUDA IPC",
            Status.NOTE,
            f"a process could not open another's memory: {found['ipc']}",
            "windows are in host memory",
        )
    means = "windows of one node's ranks can be on the device"
    return Finding("CUDA IPC", Status.OK, "a process opened another's memory", means)


def staging(place: Place, found: Mapping[str, str]) -> Finding:
    """Which ways a run with these ranks would choose for the vectors of a device."""
    from mpimomentum.transport.staging import choose

    asked = place.environ.get("MPIMOMENTUM_STAGING", "auto")
    slurm = place.environ.get("SLURM_STEP_NUM_NODES", "")  # srun does not tell ranks of a node
    by_srun = place.launcher == SRUN and slurm.isdigit()
    nodes = int(slurm) if by_srun else -(-place.size // place.local_size)
    try:
        chosen = choose(asked, True, nodes, place.size, found)
    except ValueError as error:
        means = "a run on GPUs refuses to start"
        return Finding("staging", Status.FAIL, str(error), means, "unset MPIMOMENTUM_STAGING")
    return Finding("staging", Status.OK, str(chosen), "so vectors get from a GPU to other ranks")


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
