"""Checks of hyper-parameters that several papers share."""

from __future__ import annotations

from collections.abc import Sequence


def not_negative(name: str, value: float) -> None:
    """Refuse a step size, or the like, that is negative or not finite; 0 tests gossip alone."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value!r} must be finite and not negative")


def momentum(name: str, value: float | str) -> None:
    """Refuse a momentum outside [0, 1)."""
    if value == "auto":
        raise ValueError(
            f"{name}='auto': that goes by the staleness of gradients, and here they have none; "
            "give a number, or choose async-server or ad-psgd"
        )
    if isinstance(value, str) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1): at 1 nothing is ever forgotten")


def at_least_one(name: str, value: int) -> None:
    """Refuse a number of something that is not a whole number from 1 up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number from 1 up")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def variance_reduced(lr: float, inner_steps: int, batch: int, sigma: float) -> None:
    """Refuse a σ at which the momentum between epochs of SVRG turns round, and what is no number.

    It is 0 at σ = 1/(inner_steps lr) already.
    """
    not_negative("lr", lr)
    not_negative("sigma", sigma)
    at_least_one("inner_steps", inner_steps)
    at_least_one("batch", batch)
    if sigma * lr * inner_steps > 1 + 1e-9:
        raise ValueError(
            f"sigma={sigma!r} must be at most 1/(inner_steps lr) = {1 / (inner_steps * lr):g}, at "
            f"which nothing but SVRG is left: use that, a smaller lr or fewer inner_steps"
        )
