"""What an algorithm asks of a problem that goes over all samples, again and again (``finite_sum``).

Its gradient over all samples and those over mini-batches must be of the same function.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mpimomentum.runtime.errors import BadInput
from mpimomentum.worker import Algorithm, Objective


def needs_finite_sum(algorithm: Algorithm[Any]) -> bool:
    """Whether the algorithm asks for gradients over all samples."""
    return bool(getattr(algorithm, "finite_sum", False))


def samples_per_step(algorithm: Algorithm[Any], batch_size: int, samples: float) -> float:
    """Return of how many samples one worker computes the gradient in a step, on average.

    Parameters
    ----------
    algorithm : Algorithm
        With ``finite_sum``, it has a number of ``inner_steps``, each with a mini-batch at two
        points.
    batch_size : int
        Samples of a mini-batch, for each worker.
    samples : float
        All that a worker has.
    """
    if not needs_finite_sum(algorithm):
        return batch_size
    inner_steps: int = algorithm.inner_steps  # type: ignore[attr-defined]
    return samples + 2 * inner_steps * batch_size


def check_objective(algorithm: Algorithm[Any], objective: Objective) -> Objective:
    """Return `objective`, unless the algorithm needs more than it has.

    Raises
    ------
    BadInput
        With the remedy.
    """
    if needs_finite_sum(algorithm):
        for name in ("full_gradient", "samples"):
            if not getattr(objective, name, None):
                raise BadInput(
                    f"{algorithm.name} goes over all data of a rank, but {type(objective).__name__}"
                    f" has no {name}: give it full_gradient(x), samples, and "
                    f"sample(rng, indices) that takes the samples it is given; or choose another "
                    f"algorithm"
                )
        check_model(algorithm, getattr(objective, "model", None))
    return objective


def check_model(algorithm: Algorithm[Any], model: nn.Module | None) -> None:
    """Refuse a model whose loss is no sum over samples, if the algorithm needs one.

    Raises
    ------
    BadInput
        With the module and the remedy.
    """
    if model is None or not needs_finite_sum(algorithm):
        return
    for name, module in model.named_modules():
        what = type(module).__name__
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            why = "what a sample adds to the loss depends on the others of its mini-batch"
        elif isinstance(module, _DropoutNd) and module.training and module.p > 0:
            why = "two gradients at one point differ"
        else:
            continue
        raise BadInput(
            f"{algorithm.name} corrects gradients of samples by those of an earlier point, but "
            f"with {what} ({name or 'the model'}), {why}: choose a model without it, put it "
            f"into eval() mode, or choose another algorithm"
        )
