"""D-PSGD: decentralized parallel SGD; neighbours average their models every step.

Two variants with different fixed points::

    cta (combine then adapt, the paper):  x_i <- sum_j W_ij x_j - lr G_i(x_i)
    atc (adapt then combine):             x_i <- sum_j W_ij (x_j - lr G_j(x_j))

The gradient is taken at the model *before* mixing in both. cta sends the old model, which is known
before the gradient, so the exchange runs while the gradient is computed. ``wire``: models travel
in fewer bytes, see ``replicas.py``.

References
----------
X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu, "Can decentralized algorithms outperform
centralized algorithms?", NeurIPS 2017, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mpimomentum.algorithms import replicas
from mpimomentum.algorithms.checks import not_negative, one_of
from mpimomentum.codecs.wire import Wire
from mpimomentum.worker import Fresh, Mean, Requires, Vector, Worker


@dataclass
class State:
    """What one rank keeps."""

    x: Mean[Vector]  # (d,) this rank's iterate
    replicas: Fresh[Vector | None] = None  # (k, d) what neighbours know, if not all; replicas.py


@dataclass(frozen=True)
class DPSGD:
    """Decentralized parallel SGD.

    Parameters
    ----------
    lr : float
        Step size (the paper's γ).
    variant : {"cta", "atc"}
    wire : {"float32", "bf16", "int8"}
        How vectors travel.
    """

    lr: float
    variant: Literal["cta", "atc"] = "cta"
    wire: Wire = "float32"

    name: ClassVar[str] = "d-psgd"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "doubly_stochastic"

    def __post_init__(self) -> None:
        not_negative("lr", self.lr)
        one_of("variant", self.variant, ("cta", "atc"))
        replicas.check(self.wire)

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0."""
        return State(x=x0.clone(), replicas=replicas.start(w, x0, self.wire))

    async def step(self, w: Worker, s: State) -> None:
        """Mix with the neighbours of this step and descend."""
        weights = w.mixing(w.step).in_weights
        gradient = w.gradient(s.x, w.sample())
        if self.variant == "cta":
            models = replicas.send(w, s.x, s.replicas, self.wire)
            g = await gradient
            x = replicas.combine(w, weights, s.x, await models, s.replicas, self.wire)
            s.x = x.sub_(w.lr * g)
        else:
            g = await gradient
            x = s.x - w.lr * g
            models = replicas.send(w, x, s.replicas, self.wire)
            s.x = replicas.combine(w, weights, x, await models, s.replicas, self.wire)
        w.record(tau=0)
