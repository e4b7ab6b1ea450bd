"""A State as plain values, and back: what a checkpoint will hold.

Both directions are for a moment at which nothing is in flight: before the first step, or after
``quiesce``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from mpimomentum.worker import Counter, Mailbox, Sums, Window

if TYPE_CHECKING:
    from mpimomentum.transport.lane import Lane

Values = dict[str, Any]
"""Field name -> Tensor, int, float or list of numbers.

``x.version``, ``x.mixes`` beside a window x; ``x.field`` for each field of a dataclass x.
"""


class Copies:
    """Host memory for copies of tensors, used again for the next ones of the same names.

    Fresh memory costs three times what the copying does: its pages must be found first.

    Parameters
    ----------
    lane : Lane, optional
        In which a device's vectors are copied: into pinned memory, and begun only. By default there
        are none.
    """

    def __init__(self, lane: Lane | None = None) -> None:
        self.lane = lane
        self._kept: dict[str, torch.Tensor] = {}

    async def done(self) -> None:
        """Wait until all copies are there."""
        if self.lane is not None:
            await self.lane.done("copies in host memory", hold=tuple(self._kept.values()))

    def of(self, name: str, value: torch.Tensor | Window) -> torch.Tensor:
        """Return a copy of `value`; the one returned under this `name` before is lost."""
        known = self._kept.get(name)
        if self.lane is not None and self.lane.apart:
            source = value.read() if isinstance(value, Window) else value.detach()
            if known is None or known.shape != source.shape or known.dtype != source.dtype:
                known = self.lane.staging(source.numel(), source.dtype).view(source.shape)
            copied = known
            self.lane.begin(lambda: copied.copy_(source, non_blocking=True))
        elif isinstance(value, Window):
            known = value.read(out=known)  # of one size for as long as it lives
        elif known is None or known.shape != value.shape or known.dtype != value.dtype:
            known = value.detach().clone()
        else:
            known.copy_(value)
        self._kept[name] = known
        return known


async def snapshot(state: Any, copies: Copies | None = None) -> Values:
    """Return copies of everything that a rank's State holds.

    Parameters
    ----------
    state : dataclass
        Fields may be Vectors, Windows, Sums, Counters, Mailboxes (which must be empty), numbers,
        lists of numbers, None, and dataclasses of these.
    copies : Copies, optional
        Whose memory the tensors take, in place of fresh memory.

    Raises
    ------
    TypeError
        Naming a field of any other kind: it would be missing after a restart.
    """
    copies = copies or Copies()
    values = await _values(state, copies, "")
    await copies.done()
    return values


async def _values(state: Any, copies: Copies, inside: str) -> Values:
    values: Values = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, torch.Tensor):
            values[field.name] = copies.of(inside + field.name, value)
        elif isinstance(value, Window):
            values[field.name] = copies.of(inside + field.name, value)
            values[f"{field.name}.version"] = value.version
            values[f"{field.name}.mixes"] = value.mixes
        elif isinstance(value, Sums):
            values[field.name] = value.own()
        elif isinstance(value, Counter):
            values[field.name] = await value.fetch_add(0)
        elif isinstance(value, (int, float)):
            values[field.name] = value
        elif isinstance(value, list):
            values[field.name] = list(value)
        elif dataclasses.is_dataclass(value):
            part = await _values(value, copies, f"{inside}{field.name}.")
            values |= {f"{field.name}.{name}": v for name, v in part.items()}
        elif value is not None and not isinstance(value, Mailbox):
            raise TypeError(
                f"{type(state).__name__}.{field.name} is a {type(value).__name__}, which cannot be "
                "saved: use a Vector, Window, Sums, Counter, Mailbox, number or list of numbers"
            )
    return values


async def restore(state: Any, values: Values, *, whole: bool = True) -> None:
    """Put `values` of :func:`snapshot` into a freshly made `state`. Collective.

    Unless `whole`, a field that there is no value for stays as it is.

    Raises
    ------
    KeyError
        If a value is missing: the algorithm's State has changed since.
    """
    for field in dataclasses.fields(state):
        current = getattr(state, field.name)
        if current is None or isinstance(current, Mailbox):
            continue
        if dataclasses.is_dataclass(current):
            inside = f"{field.name}."
            part = {n.removeprefix(inside): v for n, v in values.items() if n.startswith(inside)}
            await restore(current, part, whole=whole)
            continue
        if not whole and field.name not in values:
            continue
        value = values[field.name]
        if isinstance(current, torch.Tensor):
            current.copy_(value)
        elif isinstance(current, Window):
            current.restore(value, values[f"{field.name}.version"], values[f"{field.name}.mixes"])
        elif isinstance(current, Sums):
            current.restore(value)
        elif isinstance(current, Counter):
            if current.at_home:
                await current.fetch_add(value - await current.fetch_add(0))
        else:
            setattr(state, field.name, list(value) if isinstance(value, list) else value)
