"""Recording a run, and replaying it, as the user asks for it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from mpimomentum.runtime.checkpoint_config import NEVER
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fault_config import CONTINUE

if TYPE_CHECKING:
    from mpimomentum.runtime.config import TrainConfig


@Parameter(name="*", group="Replay")
@dataclass(frozen=True)
class Replaying:
    """A recorded run once more.

    Parameters
    ----------
    replay : Path, optional
        Directory of a run made with record: repeat it in this process, one rank after the other,
        with its own config.toml, and say whether all its records come out again.
    show : str, optional
        Steps A..B: print what each rank did in them, with which versions.
    until : int, optional
        Step after which the replay stops and says how far each rank's model is from the mean; the
        run's last one unless given.
    """

    replay: Path | None = None
    show: str | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        for name in ("show", "until"):
            if self.replay is None and (given := getattr(self, name)) is not None:
                raise BadInput(f"{name}={given} without replay: there is nothing to be shown")
        if self.until is not None and self.until < 0:
            raise BadInput(f"until={self.until}: steps are counted from 0")
        _ = self.steps

    @property
    def steps(self) -> range:
        """The steps to show."""
        if self.show is None:
            return range(0)
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", self.show)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise BadInput(f"show={self.show!r}: give a step, or a first and a last one: 10..20")
        return range(int(found[1]), int(found[2] or found[1]) + 1)


REPLAYING = tuple(f.name for f in dataclasses.fields(Replaying))

_REFUSED: dict[str, tuple[object, str]] = {
    "mode": ("sums", "sums, to which all ranks add at once, have no order; use mode='server'"),
    "non_finite": ("skip", "what is left out would have to be noted; use non_finite='abort'"),
    "resume": ("", "a replay begins at the beginning; record a run that does, too"),
    "on_failure": (CONTINUE, "what a death interrupts is not noted; use on_failure='abort'"),
    "device": ("cuda", "only vectors in host memory are recorded; use device='cpu'"),
    "timing_only": (True, "no gradients are made that could be repeated; simulate without it"),
}
"""Name -> the value that cannot be recorded (of resume, any), and why."""


def check_recording(config: TrainConfig) -> None:
    """Refuse to record what could not be replayed.

    Raises
    ------
    BadInput
        With the reason and the remedy.
    """
    if not config.output.record:
        return
    found = {
        "mode": config.method.parameters().get("mode", ""),
        "non_finite": config.non_finite,
        "resume": config.saving.resume,
        "on_failure": config.faults.on_failure,
        "device": config.computing.device.partition(":")[0],
        "timing_only": getattr(config, "timing_only", False),  # of a simulation
    }
    for name, (value, why) in _REFUSED.items():
        if (found[name] != NEVER) if name == "resume" else (found[name] == value):
            raise BadInput(f"record=True with {name}={found[name]!r}: {why}, or leave record out")
