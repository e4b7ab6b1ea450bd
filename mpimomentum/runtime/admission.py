"""What a DistributedOptimizer refuses before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mpimomentum.non_finite import Policy
from mpimomentum.runtime.agreement import told
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.finite_sum import check_model, needs_finite_sum
from mpimomentum.runtime.identity import hyper_parameters
from mpimomentum.runtime.loop import check, roles
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.worker import Algorithm

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker


OTHERS_OPTIONS = ("momentum", "dampening", "nesterov", "maximize", "betas", "eps", "amsgrad")
"""What torch's optimizers read from a group and these algorithms do not."""


def admissible(
    model: nn.Module, algorithm: Algorithm[Any], worker: MPIWorker, weight_decay: float
) -> None:
    """Refuse what cannot be run."""
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise BadInput(
            f"the model is wrapped in {type(model).__name__}, which would average gradients by "
            f"itself: pass model.module"
        )
    if not isinstance(model, nn.Module):
        raise BadInput(f"a torch.nn.Module is needed as the model; got {type(model).__name__}")
    if not any(p.requires_grad for p in model.parameters()):
        raise BadInput("the model has no trainable parameter (requires_grad=True)")
    try:
        check(algorithm, worker.topology)
    except TypeError as error:
        raise BadInput(str(error)) from error
    if not 0 <= weight_decay < float("inf"):
        raise BadInput(f"weight_decay={weight_decay} must be finite and not negative")
    workers, _ = roles(algorithm, worker.size)
    if len(workers) < worker.size:
        idle = sorted(set(range(worker.size)) - set(workers))
        raise BadInput(
            f"{algorithm!r}: ranks {idle} would only serve, and their loops never run: leave out "
            f"dedicated=True, or use mm.run"
        )
    if worker.survives:
        raise BadInput(
            "on_failure=continue is for mm.run and `mpimomentum train`: a loop of one's own would "
            "meet the dead at its own collectives; leave it out of mm.init"
        )
    if worker.closing:
        raise BadInput(
            "this worker has an optimizer already: close() that one first, or make it in a 'with'"
        )


def check_device(device: torch.device, worker: MPIWorker) -> None:
    """Refuse a model that is not where the algorithm's vectors are."""
    if device == worker.device:
        return
    instead = "mm.init(device='cuda')" if worker.device.type == "cpu" else "mm.init(device='cpu')"
    raise BadInput(
        f"the model is on {device}, this worker's vectors on {worker.device}: write "
        f"worker = {instead}, and model.to(worker.device) before this"
    )


def check_full_closure(
    model: nn.Module, algorithm: Algorithm[Any], full_closure: Callable[[], Any] | None
) -> None:
    """Refuse an algorithm that goes over all data without the means, and the means without need."""
    if needs_finite_sum(algorithm) and full_closure is None:
        raise BadInput(
            f"{algorithm.name} asks for gradients over all of a rank's data: give full_closure=, "
            f"which calls zero_grad(), computes the mean loss over them and calls backward()"
        )
    if full_closure is not None and not callable(full_closure):
        raise BadInput(f"full_closure={full_closure!r}: a function is needed")
    check_model(algorithm, model)


def check_groups(groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuse options of parameter groups that would do nothing, or harm."""
    for index, group in enumerate(groups):
        for name in ("lr", "weight_decay"):
            if name in group and not 0 <= float(group[name]) < float("inf"):
                raise BadInput(
                    f"group {index} has {name}={group[name]}: it must be finite and not negative"
                )
        for name in OTHERS_OPTIONS:
            if name in group:
                raise BadInput(
                    f"group {index} has {name!r}, which would do nothing: a group has its own lr "
                    f"and weight_decay, all else is the algorithm's"
                )


def same_everywhere(
    worker: MPIWorker, parameters: FlatModel, algorithm: Algorithm[Any], non_finite: Policy
) -> None:
    """Refuse models, algorithms or policies that differ between ranks."""
    layout = [(p.name, tuple(p.x.shape), str(p.parameter.dtype)) for p in parameters.parts]
    digest = hashlib.sha256(repr(layout).encode()).hexdigest()[:12]
    model = f"{len(layout)} parameters of {parameters.dim} numbers ({digest})"
    mine = f"{algorithm!r} with non_finite={non_finite!r} on {model}"
    texts = told(worker, mine)
    for rank, theirs in enumerate(texts):
        if theirs != texts[0]:
            raise BadInput(
                f"rank 0 has {texts[0]}, rank {rank} {theirs}: construct the same on every rank"
            )


def identity(algorithm: Algorithm[Any], worker: MPIWorker, parameters: FlatModel) -> dict[str, Any]:
    """Return what a saved state must agree with to be gone on from: all but the step size."""
    return {
        "algorithm": algorithm.name,
        "parameters": dict(hyper_parameters(algorithm).values),
        "rank": worker.rank,
        "size": worker.size,
        "dim": parameters.dim,
    }


def same_identity(
    saved: Mapping[str, Any] | None, mine: Mapping[str, Any], algorithm: Algorithm[Any]
) -> None:
    """Refuse a state of another algorithm, rank, number of ranks or model."""
    if saved is None:
        raise BadInput(
            "this state_dict is not of a DistributedOptimizer: load the model's own, then call "
            "publish()"
        )
    for key, value in mine.items():
        differs = saved[key] != value
        if key == "parameters":  # those that are newer than the state had their defaults
            differs = bool(hyper_parameters(algorithm).differences(saved[key]))
        if differs:
            raise BadInput(
                f"the state_dict has {key} {saved[key]!r}, this optimizer {value!r}: every rank "
                f"loads what it saved itself, with the same algorithm, model and number of ranks"
            )
