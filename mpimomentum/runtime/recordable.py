"""What a run must be to be recorded, refused before it begins."""

from __future__ import annotations

import torch

from mpimomentum.non_finite import Policy
from mpimomentum.runtime.errors import BadInput


def check_recordable(device: torch.device, non_finite: Policy) -> None:
    """Refuse what a chronicle could not say.

    Raises
    ------
    BadInput
        If vectors are not in host memory, or something is left out.
    """
    if device.type != "cpu":
        raise BadInput(
            f"a run with vectors on {device} cannot be recorded: only what is in host memory is; "
            "use device='cpu', or leave record out"
        )
    if non_finite == "skip":
        raise BadInput(
            "non_finite='skip' cannot be recorded: what is left out is not noted; use 'abort'"
        )
