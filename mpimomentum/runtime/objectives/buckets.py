"""Parts of a gradient, handed over while backward still computes the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mpimomentum.runtime.objectives.flat import FlatModel, Part
from mpimomentum.worker import Vector

BUCKET_BYTES = 1 << 20
"""A bucket is closed when it has this size: small, since what backward cannot hide is the last."""


@dataclass
class _Bucket:
    place: slice
    parts: dict[int, Part] = field(default_factory=dict)  # by their index in the model
    missing: set[int] = field(default_factory=set)  # indices of parts without a gradient yet


class Buckets:
    """Contiguous slices of a model's flat gradient, last parameters first.

    Backward computes the gradients of the last layers first. While armed, a hook on each parameter
    notices that its gradient is there, and a bucket is emitted once it and all before it are
    complete: always in the same order, whatever order a backward takes, so that ranks can
    all-reduce them as they come. What a backward leaves out (parameters that a batch does not use)
    is emitted by :meth:`flush`.

    Parameters
    ----------
    parameters : FlatModel
        Its hooks stay until :meth:`close`; while not armed they do nothing.
    bucket_bytes : int
        Size at which a bucket is closed; a larger parameter is a bucket of its own.
    """

    def __init__(self, parameters: FlatModel, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._parameters = parameters
        self._emit: Callable[[Vector], None] | None = None
        self._begun: Callable[[], None] | None = None
        self._emitted = 0
        self._buckets: list[_Bucket] = []
        self._hooks: list[RemovableHandle] = []
        room = 0
        for index, part in reversed(list(enumerate(parameters.parts))):
            if room <= 0:
                self._buckets.append(_Bucket(slice(part.stop, part.stop)))
                room = bucket_bytes
            bucket = self._buckets[-1]
            bucket.place = slice(part.start, bucket.place.stop)
            bucket.parts[index] = part
            room -= (part.stop - part.start) * parameters.grad.element_size()
            hook = self._hook(bucket, index, part)
            self._hooks.append(part.parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]

    @property
    def places(self) -> list[slice]:
        """Where the buckets lie in the flat gradient, in the order in which they are emitted."""
        return [bucket.place for bucket in self._buckets]

    def arm(self, emit: Callable[[Vector], None], begun: Callable[[], None] | None = None) -> None:
        """Have the next backward call `emit` with each bucket, a view of the flat gradient.

        From then on the bucket is not to be written to until whoever took it is done.

        Parameters
        ----------
        emit : callable
            Called on the thread that runs backward, from inside it; must be quick.
        begun : callable, optional
            Called once, likewise, before the first bucket.
        """
        self._emit, self._begun = emit, begun
        self._emitted = 0
        for bucket in self._buckets:
            bucket.missing = set(bucket.parts)

    def flush(self) -> None:
        """Emit what was not emitted since :meth:`arm`, and disarm.

        A parameter without gradient counts as zero, one that this backward did not reach as what
        earlier ones accumulated.
        """
        while self._emit is not None and self._emitted < len(self._buckets):
            bucket = self._buckets[self._emitted]
            for part in bucket.parts.values():
                self._parameters.collect_part(part)
            self._emit_next()
        self.disarm()

    def disarm(self) -> None:
        """Emit nothing any more."""
        self._emit = None

    def close(self) -> None:
        """Take the hooks away."""
        self.disarm()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, bucket: _Bucket, index: int, part: Part) -> Callable[[Tensor], None]:
        def gradient_is_there(_: Tensor) -> None:
            if self._emit is None:
                return
            if self._begun is not None:
                begun, self._begun = self._begun, None
                begun()
            if index not in bucket.missing:
                raise RuntimeError(
                    f"parameter {part.name!r} got a gradient twice, and the first was already on "
                    f"its way to the other ranks: run backward once for each step (or accumulate "
                    f"under no_sync), and checkpoint with use_reentrant=False"
                )
            self._parameters.collect_part(part)
            bucket.missing.discard(index)
            while self._emitted < len(self._buckets) and not self._buckets[self._emitted].missing:
                self._emit_next()

        return gradient_is_there

    def _emit_next(self) -> None:
        assert self._emit is not None
        place = self._buckets[self._emitted].place
        self._emitted += 1
        self._emit(self._parameters.grad[place])
