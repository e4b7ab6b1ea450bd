"""The toy of Wang, Ma and Jin: f(x) = x² with a fresh gradient and one of age k.

::

    x_{t+1} = x_t - alpha f'(x_t) - gamma f'(x_{t-k})

has the modes z^(k+1) - q z^k + 2 gamma = 0, q = 1 - 2 alpha. At gamma* = ½ q^(k+1) k^k/(k+1)^(k+1)
the slowest is q k/(k+1), below plain gradient descent's q; above q^(k+1) sin(π/(2(2k+1))) it is
slower than that. The document's own gamma is gamma* of k = 1, and its iterates from x_0 = 8 with
alpha = 1/4, gamma = 1/32 are (2t + 2) 4^(1-t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mpimomentum.runtime.objectives.quadratic import Quadratic
from mpimomentum.runtime.run import simulate
from mpimomentum.worker import Requires, Vector, Worker

START, ALPHA, GAMMA = 8.0, 1 / 4, 1 / 32  # the document's
PLAIN = 1 - 2 * ALPHA  # gradient descent's rate: it leaves the old gradient out

WEIGHTS: Mapping[str, Callable[[int], float]] = {
    "fixed": lambda k: 1.0,
    "polynomial": lambda k: 1 / k,
    "exponential": lambda k: math.exp(-(k - 1)),
}
"""What gamma is multiplied by at age k, 1 at k = 1."""
BEST = "best"
"""gamma* of each age."""


@dataclass
class State:
    """What the only rank keeps."""

    x: Vector
    gradients: list[Vector] = field(default_factory=list)


@dataclass(frozen=True)
class Aged:
    """A fresh gradient and an old one, which is 0 before the start."""

    lr: float  # alpha
    gamma: float
    age: int

    name: ClassVar[str] = "aged"
    synchronous: ClassVar[bool] = True
    requires: ClassVar[Requires] = "none"

    def init(self, w: Worker, x0: Vector) -> State:
        """Start at x0."""
        return State(x=x0.clone())

    async def step(self, w: Worker, s: State) -> None:
        """Take a step."""
        s.gradients.append((await w.gradient(s.x, w.sample())).clone())
        s.x.sub_(self.lr * s.gradients[-1])
        if w.step >= self.age:
            s.x.sub_(self.gamma * s.gradients[-1 - self.age])


def iterates(alpha: float, gamma: float, age: int, steps: int) -> list[float]:
    """Return x_0 to x_steps, as the simulator computes them."""
    seen = [START]

    def observe(w: Any, s: Any) -> None:
        seen.append(float(s.x[0]))

    aged: Any = Aged(alpha, gamma, age)
    simulate(
        aged,
        lambda rank, size: Quadratic(b=[0.0], h=2.0, x0=[START]),
        1,
        steps=steps,
        observe=observe,
    )
    return seen


def closed_form(steps: int) -> list[float]:
    """Return x_0 to x_steps with the document's alpha and gamma at age 1; powers of two: exact."""
    return [(2 * t + 2) * 4.0 ** (1 - t) for t in range(steps + 1)]


def largest_at(x: list[float], t: int, age: int) -> float:
    """Return the largest modulus of the iterates up to the t-th that one step depends on, twice."""
    return max(map(abs, x[t + 1 - 2 * (age + 1) : t + 1]))


def measured_rate(x: list[float], age: int) -> float:
    """Return what the iterates shrink by in a step, over the second half of them."""
    end, middle = len(x) - 1, (len(x) - 1) // 2
    return float((largest_at(x, end, age) / largest_at(x, middle, age)) ** (1 / (end - middle)))


def rate(alpha: float, gamma: float, age: int) -> float:
    """Return the modulus of the slowest mode."""
    c = np.zeros(age + 2)
    c[:2] = 1, -(1 - 2 * alpha)
    c[-1] += 2 * gamma
    return float(np.abs(np.roots(c)).max())


def best_gamma(alpha: float, age: int) -> float:
    """Return gamma*, at which the slowest mode is fastest."""
    return float((1 - 2 * alpha) ** (age + 1) * age**age / (age + 1) ** (age + 1) / 2)


def loses_from(alpha: float, age: int) -> float:
    """Return the gamma above which age k is slower than plain gradient descent.

    The edge of delayed gradient descent's stability, scaled by q.
    """
    return float((1 - 2 * alpha) ** (age + 1) * math.sin(math.pi / (2 * (2 * age + 1))))


def gamma(name: str, age: int) -> float:
    """Return gamma by the name of its weights, or :data:`BEST`, at the document's alpha."""
    return best_gamma(ALPHA, age) if name == BEST else GAMMA * WEIGHTS[name](age)


def expected(name: str, age: int) -> float:
    """Return the modulus of the slowest mode with :func:`gamma`."""
    if name == BEST:  # a double root, which a polynomial's roots are found badly at
        return PLAIN * age / (age + 1)
    return rate(ALPHA, gamma(name, age), age)
