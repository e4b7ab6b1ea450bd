"""Where a rank computes: the CPU, or one of the GPUs that it sees.

What is asked for, what the process sees and where it stands on its node decide it. Ranks then tell
each other, before any has begun to work: what is wrong on one of them is refused on all.
"""

from __future__ import annotations

import collections
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.visible import VISIBLE, Seen, check_visible, names_of

if TYPE_CHECKING:
    from mpimomentum.transport.environment import Environment

AUTO, CPU = "auto", "cpu"
DEVICE = "MPIMOMENTUM_DEVICE"

_ASKED = re.compile(r"(auto|cpu|cuda)|cuda:(\d+)")
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")  # mpirun's, also inside Slurm

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where one rank computes.

    Attributes
    ----------
    name : str
        cpu, or cuda:K with K counted among what the process sees; nothing: where the others do.
    why : str
        In words.
    pretended : bool
    card : str
        Which GPU it is, on whatever number this process sees it.
    """

    name: str
    why: str
    pretended: bool = False
    card: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU, if only a pretended one."""
        return self.name not in ("", CPU)

    @property
    def device(self) -> torch.device:
        """Return where its tensors are."""
        return torch.device(self.name if self.on_gpu and not self.pretended else CPU)


def parsed(asked: str) -> tuple[str, int | None]:
    """Return what is asked for: auto, cpu or cuda, and the number of the GPU if one is given.

    Raises
    ------
    BadInput
    """
    found = _ASKED.fullmatch(asked)
    if not found:
        raise BadInput(
            f"device={asked}: choose auto, cpu, cuda, or cuda:K with the number of a GPU, from 0"
        )
    return ("cuda", int(found[2])) if found[2] else (found[1], None)


def placed(asked: str, seen: Seen, local_rank: int) -> Placement:
    """Return where a rank computes.

    With exactly one GPU to be seen that is it: who started the ranks has chosen. Of several each
    rank takes that of its number on the node, modulo their number: what ``slurm/gpu_select.sh``
    does, so that it makes no difference who chooses, and no two GPUs differ in ranks by more than
    one.

    Parameters
    ----------
    asked : str
        auto, cpu, cuda or cuda:K.
    seen : Seen
    local_rank : int
        Number of the rank on its node.

    Raises
    ------
    BadInput
        If the GPU asked for is not there, or ``CUDA_VISIBLE_DEVICES`` names what is not.
    """
    kind, index = parsed(asked)
    if kind == CPU:
        return Placement(CPU, "asked for")
    if seen.built:
        check_visible(seen.visible, seen.count)
    if not seen.count:
        if kind == "cuda":
            raise BadInput(f"device={asked}: there is no GPU: {seen.why_none()}; use --device cpu")
        return Placement(CPU, seen.why_none())
    if index is not None and index >= seen.count:
        last = f", cuda:0 to cuda:{seen.count - 1}" if seen.count > 1 else ", cuda:0"
        raise BadInput(
            f"device={asked}: this rank sees {_count(seen.count, 'GPU')}{last}; give one of them, "
            "or leave the choice to --device cuda"
        )
    if index is not None:
        return Placement(f"cuda:{index}", "asked for", seen.pretended)
    if seen.count == 1:
        return Placement("cuda:0", "the only one that is visible", seen.pretended)
    why = f"number {local_rank} on its node, which shows {seen.count} GPUs"
    return Placement(f"cuda:{local_rank % seen.count}", why, seen.pretended)


def local_rank_of(environ: Mapping[str, str], otherwise: int) -> int:
    """Return the number of a rank on its node: Slurm's, where srun started it."""
    text = environ.get("SLURM_LOCALID", "")
    by_srun = text.isdigit() and not any(name in environ for name in _LOCAL_RANKS)
    # by srun without --mpi, or in a batch script, every process is number 0 of its own step
    return int(text) if by_srun and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" else otherwise


def agreed(said: Sequence[tuple[int, str, Mapping[str, Any]]]) -> list[Placement]:
    """Return the placements of all ranks.

    Parameters
    ----------
    said : sequence of (int, str, mapping)
        By rank: its node, why it has no placement or nothing, and the placement's fields.

    Raises
    ------
    BadInput
        With the rank: of one that has none, or if some are on the CPU and others are not.
    """
    for rank, (_, failure, _) in enumerate(said):
        if failure:
            raise BadInput(f"rank {rank}: {failure}")
    placements = [Placement(**fields) for _, _, fields in said]
    asking = [(rank, p) for rank, p in enumerate(placements) if p.name]
    for rank, other in asking:
        begin, first = asking[0]
        if other.on_gpu != first.on_gpu or other.pretended != first.pretended:
            raise BadInput(
                f"rank {begin} computes on {first.name} ({first.why}), rank {rank} on {other.name} "
                f"({other.why}): all must compute on GPUs, or all on the CPU; give --device cpu, "
                "or start ranks only where GPUs are"
            )
    return placements


def sharing(nodes: Sequence[int], placements: Sequence[Placement]) -> int:
    """Return the most ranks that share a GPU; 0 if none has one."""
    used = collections.Counter(
        (node, p.card or p.name) for node, p in zip(nodes, placements, strict=True) if p.on_gpu
    )
    return max(used.values(), default=0)


class Placing:
    """Places the ranks; called on each with its environment, by the thread that owns MPI.

    Parameters
    ----------
    asked : str, optional
        On this rank; others may be asked for another GPU. None: what the others are asked for,
        where this one will only say that it cannot take part.
    environ : mapping, optional

    Attributes
    ----------
    everyones : list of Placement
        By rank; empty before the call.

    Raises
    ------
    BadInput
        If `asked` is nothing that can be asked for.
    """

    def __init__(self, asked: str | None, environ: Mapping[str, str] = os.environ) -> None:
        if asked is not None:
            parsed(asked)
        self.asked = asked
        self.everyones: list[Placement] = []
        self._environ = environ

    def __call__(self, env: Environment) -> torch.device:
        """Return this rank's device. Collective.

        Raises
        ------
        BadInput
            On all ranks alike.
        """
        failure, mine, seen = "", Placement(CPU, "not placed"), Seen(0)
        try:
            seen = Seen.here(self._environ)
            if self.asked is None:
                mine = Placement("", "only to refuse")
            else:
                mine = placed(self.asked, seen, local_rank_of(self._environ, env.local_rank))
                mine = replace(mine, card=_card(mine, seen))
        except (BadInput, RuntimeError) as error:  # torch's, where a driver is broken
            failure = str(error)
        said = env.told((env.node, failure, asdict(mine)))
        self.everyones = agreed(said)
        if env.rank == 0:
            self._speak(seen, [node for node, _, _ in said])
        others_on_gpu = any(p.on_gpu and not p.pretended for p in self.everyones)
        if self.asked is None and others_on_gpu and seen.count:
            return torch.device("cuda:0")
        return mine.device

    def _speak(self, seen: Seen, nodes: Sequence[int]) -> None:
        first, most = self.everyones[0], sharing(nodes, self.everyones)
        pretended = ", pretended" if first.pretended else ""
        _log.info("device of rank 0: %s (%s%s)", first.name or CPU, first.why, pretended)
        if self.asked == AUTO and not first.on_gpu and names_of(seen.visible):
            _log.warning("%s=%s, but models stay on the CPU: %s", VISIBLE, seen.visible, first.why)
        if most > 1:
            _log.warning(
                "up to %d ranks share a GPU: their work takes turns there, and each has a context "
                "and a model in its memory; NVIDIA's MPS lets small kernels overlap",
                most,
            )

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` says."""
        about: dict[str, Any] = {"asked": self.asked, "ranks": [p.name for p in self.everyones]}
        if cards := sorted({p.card for p in self.everyones if p.card}):
            about["cards"] = cards
        return about | ({"pretended": True} if any(p.pretended for p in self.everyones) else {})


def _card(placement: Placement, seen: Seen) -> str:
    """Return which GPU it is; two ranks may see the same one under different numbers."""
    if not placement.on_gpu:
        return ""
    index = int(placement.name.partition(":")[2])
    names = names_of(seen.visible)
    name = index if names is None else names[index]
    if placement.pretended:
        return f"pretended {name}"
    card = torch.cuda.get_device_properties(index)
    return f"{card.name} {getattr(card, 'uuid', name)}"  # torch has it from 2.5 on


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
