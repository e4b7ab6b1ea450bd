"""On what a run computes, as the user asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast, get_args

from cyclopts import Parameter

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.placement import AUTO, parsed

Amp = Literal["off", "bf16"]
Staging = Literal["auto", "pinned", "ipc", "direct"]


@Parameter(name="*", group="Device")
@dataclass(frozen=True)
class Computing:
    """Where, and in what precision.

    Parameters
    ----------
    device : str
        auto: GPUs where there are some, each rank its own as far as they go; cpu; cuda: GPUs, or
        refuse; cuda:K: the K-th that the rank sees. (docs/gpu.md says which rank uses which.)
    amp : str
        bf16: forward and backward under torch.autocast in bfloat16; parameters, gradients and
        all that the ranks exchange stay float32. off: all in float32.
    staging : str
        How vectors get from a GPU to other ranks: pinned, through host memory; ipc, windows stay
        on the GPU and ranks of a node open each other's; direct, MPI gets device pointers; auto:
        the best of these that is found to work. (docs/gpu.md says when.)
    """

    device: str = AUTO
    amp: Amp = "off"
    staging: Staging = "auto"

    def __post_init__(self) -> None:
        parsed(self.device)
        if self.amp not in get_args(Amp):
            raise BadInput(f"amp={self.amp}: choose one of {', '.join(get_args(Amp))}")
        if self.staging not in get_args(Staging):
            raise BadInput(f"staging={self.staging}: choose one of {', '.join(get_args(Staging))}")

    def as_variables_say(self) -> Computing:
        """Return it with what variables say of device and staging in the place of auto.

        For commands that take no other variables.

        Raises
        ------
        BadInput
        """
        device, staging = (
            os.environ.get(f"MPIMOMENTUM_{name.upper()}", AUTO) if value == AUTO else value
            for name, value in (("device", self.device), ("staging", self.staging))
        )
        return Computing(device, self.amp, cast(Staging, staging))  # checked

    def refuse(self, where: str) -> None:
        """Refuse GPUs where nothing computes on them.

        Raises
        ------
        BadInput
        """
        if self.device not in (AUTO, "cpu"):
            raise BadInput(f"device={self.device}: {where} computes on the CPU; leave device out")
        if self.staging != "auto":
            raise BadInput(f"staging={self.staging}: {where} has no GPU; leave staging out")
