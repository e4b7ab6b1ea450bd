"""What a process sees of its node's GPUs, and what ``CUDA_VISIBLE_DEVICES`` makes of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mpimomentum.runtime.errors import BadInput

VISIBLE = "CUDA_VISIBLE_DEVICES"
PRETEND = "MPIMOMENTUM_PRETEND_GPUS"

_NOTHING = ("", "-1", "NoDevFiles")  # the last is Slurm's, in jobs without GPUs
_NUMBER, _UUID = re.compile(r"\d+"), re.compile(r"(GPU|MIG|MIG-GPU)-[0-9a-fA-F-/]+")
_REMEDY = f"correct or unset {VISIBLE}, or compute on the CPU with --device cpu"


@dataclass(frozen=True)
class Seen:
    """What a process sees of its node's GPUs.

    Attributes
    ----------
    count : int
        That it can use.
    visible : str or None
        What ``CUDA_VISIBLE_DEVICES`` says.
    missing : str
        Why there is none.
    pretended : bool
        Whether they are not there: for tests, which compute on the CPU.
    built : bool
        Whether torch is built for GPUs; else what is visible says nothing.
    """

    count: int
    visible: str | None = None
    missing: str = ""
    pretended: bool = False
    built: bool = True

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Seen:
        """Look; CUDA is not initialised by that. BadInput if what is pretended is no number."""
        visible = environ.get(VISIBLE)
        if PRETEND in environ:
            pretended = environ[PRETEND]
            if not pretended.isdigit():
                raise BadInput(f"{PRETEND}={pretended}: a number of GPUs is needed")
            count = _usable(visible, int(pretended))
            return cls(count, visible, "" if count else "none is pretended", pretended=True)
        if torch.version.cuda is None and torch.version.hip is None:
            missing = f"torch {torch.__version__} is built for CPUs only"
            return cls(0, visible, missing, built=False)
        count = torch.cuda.device_count()
        return cls(count, visible, "" if count else "torch sees none, or no driver for it")

    def why_none(self) -> str:
        """Return why there is none to compute on."""
        hidden = self.visible is not None and not names_of(self.visible)
        return f"{VISIBLE}={self.visible} hides all" if hidden else self.missing


def check_visible(visible: str | None, count: int) -> None:
    """Refuse a ``CUDA_VISIBLE_DEVICES`` of which CUDA silently takes a part, or nothing.

    Parameters
    ----------
    visible : str or None
    count : int
        GPUs that CUDA makes of it.

    Raises
    ------
    BadInput
        With the value, what is wrong and the remedy.
    """
    names = names_of(visible)
    if names is None:
        return

    def refusal(problem: str) -> BadInput:
        return BadInput(f"{VISIBLE}={visible}: {problem}; {_REMEDY}")

    for name in names:
        if not _NUMBER.fullmatch(name) and not _UUID.fullmatch(name):
            raise refusal(f"{name!r} is neither a number nor a GPU-… or MIG-… identifier")
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise refusal(f"{twice} is there twice, which hides all GPUs")
    if len(names) > count:
        raise refusal(f"GPU {names[count]} is not there, or not usable")


def names_of(visible: str | None) -> list[str] | None:
    """Return what a ``CUDA_VISIBLE_DEVICES`` names; None where it is not set."""
    if visible is None:
        return None
    names: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if name in _NOTHING and (name == "-1" or visible.strip() == name):
            break  # as CUDA does: -1 hides what follows
        names.append(name)
    return names


def _usable(visible: str | None, there: int) -> int:
    """Return how many of `there` GPUs CUDA would show: up to the first that it does not know."""
    names = names_of(visible)
    if names is None:
        return there
    if len(set(names)) < len(names):
        return 0
    good = [_NUMBER.fullmatch(n) is not None and int(n) < there for n in names]
    return good.index(False) if False in good else len(good)
