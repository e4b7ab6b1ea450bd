"""``DistributedOptimizer``: any algorithm inside a training loop of one's own."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mpimomentum.non_finite import Guard, Policy
from mpimomentum.runtime import decay
from mpimomentum.runtime.admission import (
    admissible,
    check_device,
    check_full_closure,
    check_groups,
    identity,
    same_everywhere,
    same_identity,
)
from mpimomentum.runtime.agreement import agreed
from mpimomentum.runtime.asking import Asking
from mpimomentum.runtime.broadcast import broadcast_parameters
from mpimomentum.runtime.consensus import Consensus, mean_model
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.gradient_gate import GradientGate
from mpimomentum.runtime.group_rates import GroupRates, of_groups
from mpimomentum.runtime.guarded import checked
from mpimomentum.runtime.host_copies import CPU
from mpimomentum.runtime.objectives.flat import FlatModel
from mpimomentum.runtime.own_loop import OwnLoop
from mpimomentum.worker import Algorithm, Vector

if TYPE_CHECKING:
    from mpimomentum.runtime.checkpoint import Checkpoints
    from mpimomentum.runtime.loop import Stop
    from mpimomentum.transport import MPIWorker

OURS = "mpimomentum"  # our key in a state_dict
RECORDS = 100_000  # kept on a rank
LOOK_EVERY = 64  # steps between two thorough looks at the module, which cost a pass over it
LOOKS = 2  # in a row: what is done after every step is seen at the second step already


class DistributedOptimizer(torch.optim.Optimizer):
    """Trains a model with any algorithm, in a loop of one's own. Collective to make.

    Stands where ``torch.optim.SGD(model.parameters(), …)`` stood; the loop stays as it is. After
    :meth:`step` the parameters hold the point at which the algorithm wants the next gradient. At
    the start all ranks take over the parameters and buffers of rank 0.

    Learning-rate schedulers, ``clip_grad_norm_`` (on this rank's own gradient; on the mean gradient
    where the algorithm averages gradients), gradient accumulation (:meth:`no_sync`),
    ``torch.amp.GradScaler``, several parameter groups, tied weights, ``channels_last``,
    ``torch.compile`` and float16 or bfloat16 parameters (through float32 masters) work as usual.

    Parameters
    ----------
    model : nn.Module
        On ``worker.device`` already. From now on its parameters are views of one flat tensor, which
        only :meth:`step`, :meth:`consensus`, :meth:`publish` and :meth:`load_state_dict` write.
    algorithm : Algorithm
        Such as ``mm.ADPSGD(lr=0.1, mu=0.9)``; the same on all ranks. Its ``lr`` is the groups'
        default.
    worker : MPIWorker
        From ``mm.init()``, whose topology is used. One optimizer at a time.
    param_groups : iterable, optional
        As for ``torch.optim``: parameters, or dicts with "params" and their own "lr" and
        "weight_decay". By default all parameters of the model, in one group.
    full_closure : callable, optional
        Computes the loss over all of this rank's data, with ``zero_grad()`` and ``backward()``, for
        algorithms that ask for that gradient, too (Katyusha X); called inside :meth:`step`.
    weight_decay : float, optional
        λ, added to the gradient as λx (L2), as in ``torch.optim.SGD``; 0 by default. Algorithms
        that decay the weights themselves (Signum) use it their own way, and their ``weight_decay``
        is the default.
    non_finite : {"abort", "skip", "ignore"}
        What :meth:`step` does with a gradient that is not finite: raise; wait for the next
        mini-batch's in its place, as it does when a GradScaler has found an overflow; nothing.

    Raises
    ------
    BadInput
        On all ranks, if the model or algorithm of one rank cannot be run, or they differ.

    Examples
    --------
    >>> import torch, mpimomentum as mm
    >>> model = torch.nn.Linear(2, 1)
    >>> with mm.DistributedOptimizer(model, mm.ADPSGD(lr=0.1, mu=0.9), mm.init()) as optimizer:
    ...     for _ in range(10):
    ...         optimizer.zero_grad()
    ...         loss = (model(torch.ones(4, 2)) - 1).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    >>> bool(loss < 1)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm[Any],
        worker: MPIWorker,
        *,
        param_groups: Iterable[Any] | None = None,
        weight_decay: float | None = None,
        full_closure: Callable[[], Any] | None = None,
        non_finite: Policy = "abort",
    ) -> None:
        self._loop: OwnLoop | None = None
        self._checkpoints: Checkpoints | None = None
        self._model = model
        self._algorithm = algorithm
        self._worker = worker
        self._full_closure = full_closure
        self._non_finite = non_finite
        self._lent = False
        self._rates = GroupRates(worker, decay.decoupled(algorithm))

        def prepare() -> FlatModel:
            default = decay.chosen(algorithm, weight_decay)
            admissible(model, algorithm, worker, default)
            checked(non_finite, algorithm)
            groups = model.parameters() if param_groups is None else param_groups
            super(DistributedOptimizer, self).__init__(
                groups, {"lr": algorithm.lr, "weight_decay": default}
            )
            check_groups(self.param_groups)
            check_full_closure(model, algorithm, full_closure)
            parameters = self._laid_out()
            check_device(parameters.device, worker)
            return parameters

        self._asking = Asking(agreed(worker, prepare))
        same_everywhere(worker, self._parameters, algorithm, non_finite)
        worker.bind(self._asking, algorithm.lr)
        worker.guard = None if non_finite == "ignore" else Guard(worker, non_finite)
        self._gate = GradientGate(worker, algorithm.synchronous, self._asking)
        self._records: collections.deque[dict[str, Any]] = collections.deque(maxlen=RECORDS)
        worker.take_record = self._records.append
        worker.closing.append(self.close)
        self._begin()

    # -- a step ------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to zero.

        They stay views of one flat tensor; `set_to_none` changes nothing.
        """
        self._parameters.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Give the gradient to the algorithm; on return the parameters hold its next point.

        Waits for other ranks only if the algorithm does.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss anew, with ``zero_grad()`` and ``backward()``; called as often as the
            algorithm asks for a gradient on this mini-batch, at the points it chooses.

        Returns
        -------
        object
            What the first call of `closure` returned, else None.

        Raises
        ------
        RuntimeError
            If the parameters were changed, frozen, unfrozen or moved by somebody else, or the
            algorithm needs a closure.
        Exception
            What the algorithm raised.
        """
        loop = self._usable()
        parameters = self._parameters
        if self._looks():
            parameters.check_module()
            self._check_untouched()
        else:
            parameters.check()
        if closure is None and self._full_closure is not None:
            raise RuntimeError(_NEEDS_CLOSURE.format(name=self._algorithm.name))
        self._answer_full(loop)
        request = loop.request
        result = self._evaluate(closure) if closure is not None else None
        self._rates.set(self.param_groups, self._parameters)
        loop.computed()
        if self._gate.overflowed(getattr(self, "found_inf", None)):
            loop.skip()
            return result
        g = self._gradient()
        if self._gate.left_out(g, request):
            loop.skip()
            return result
        loop.answer(g)
        while loop.request.batch == request.batch:
            if closure is None:
                raise RuntimeError(_NEEDS_CLOSURE.format(name=self._algorithm.name))
            self._evaluate(closure)
            loop.computed()
            loop.answer(self._gate.needed(self._gradient()))
        if self._looks():
            self._fingerprint = parameters.fingerprint()
        return result

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate: gradients of backward passes in here are only added up.

        Saves traffic for the algorithms that average gradients over the ranks, which they do in
        every pass otherwise. The others need nothing but a :meth:`step` after several passes.
        """
        with self._usable().accumulating():
            yield

    # -- the model ---------------------------------------------------------------------------------

    def consensus(self) -> Consensus:
        """Put the average of all ranks' models into this model, for evaluation. Collective.

        Floating-point buffers, such as BatchNorm's running statistics, are averaged too.

        Returns
        -------
        Consensus
            A context manager that puts this rank's own parameters and buffers back; its `distance`
            is the root mean square over the ranks of their distance to the average. Needed in the
            middle of training; at the end the plain call does.

        Examples
        --------
        ::

            with optimizer.consensus():
                accuracy = evaluate(model)
        """
        self._not_lent()
        p = self._parameters
        if self._loop is None and p.fingerprint() != self._fingerprint:
            p.take_over()  # the user's again, and written to since close()
        own = (p.flat.clone(), p.statistics())
        if self._loop is not None:
            mean, statistics, distance = self._usable().average(own[1])
        else:
            averaging = mean_model(self._worker, own[0].to(CPU), own[1])
            mean, statistics, distance = self._worker.run(averaging, "consensus()")

        def put_back() -> None:
            p.load(own[0])
            p.load_statistics(own[1])
            self._lent = False

        p.load(mean)
        p.load_statistics(statistics)
        self._lent = self._loop is not None
        return Consensus(distance, put_back)

    def publish(self) -> None:
        """Go on from the parameters and buffers that rank 0's model holds now. Collective.

        For after ``model.load_state_dict``, a plain :meth:`consensus`, and after parameters were
        frozen or unfrozen. The algorithm begins anew: without momentum, at the same step number.
        """
        loop = self._usable(changed=True, lent=True)
        self._worker.run(self._worker.meet("publish()"), "publish()")
        loop.close()
        self._loop, self._lent = None, False
        self._asking.parameters = agreed(self._worker, self._laid_out)
        self._rates.forget()
        same_everywhere(self._worker, self._parameters, self._algorithm, self._non_finite)
        self._begin()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to those that are trained, and :meth:`publish`. Collective."""
        if self._loop is not None:
            agreed(self._worker, lambda: check_groups([param_group]))
        super().add_param_group(param_group)
        if self._loop is not None:
            self.publish()

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything of this rank that a restart needs. Collective.

        Unlike torch's, to be called and saved on every rank, each its own: ranks have models,
        momentum and random streams of their own. Nothing is in flight when it is taken. The
        model's buffers are in ``model.state_dict()``.

        Returns
        -------
        dict
            Of tensors, numbers, strings, lists and dicts, so that
            ``torch.load(…, weights_only=True)`` reads it.
        """
        packed = super().state_dict()
        packed[OURS] = (
            identity(self._algorithm, self._worker, self._parameters) | self._usable().save()
        )
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned on this rank. Collective.

        Sets the parameters, too.

        Raises
        ------
        BadInput
            On all ranks, if it is of another algorithm, rank, number of ranks or model.
        """
        loop = self._usable(changed=True, lent=True)
        mine = identity(self._algorithm, self._worker, self._parameters)
        agreed(self._worker, lambda: same_identity(state_dict.get(OURS), mine, self._algorithm))
        loop.close()
        self._loop, self._lent = None, False
        super().load_state_dict({k: v for k, v in state_dict.items() if k != OURS})
        self._begin(state_dict[OURS])

    def be_saved(self, checkpoints: Checkpoints, stop: Stop) -> None:
        """Begin anew, from what `checkpoints` find, with :meth:`keep`. For ``mm.saved_steps``.

        Raises
        ------
        BadInput
            On all ranks, if steps were made already, or what was found cannot be gone on from.
        """
        loop = self._usable(changed=True, lent=True)

        def untouched() -> None:
            if self._worker.step:
                raise BadInput("steps were made before mm.saved_steps: begin the loop with it")

        agreed(self._worker, untouched)
        checkpoints.open(self._worker, self._algorithm, self._parameters.dim, stop)
        self._checkpoints = checkpoints
        loop.close()
        self._loop, self._lent = None, False
        self._begin()

    @property
    def made(self) -> int:
        """Steps that this rank has made, or that a checkpoint of other ranks comes to."""
        return self._worker.step

    def keep(self, last: bool) -> bool:
        """Save the run, `last` for its end; return whether it goes on. Collective."""
        assert self._checkpoints is not None, "not saved"
        goes_on = self._usable().keep(self._checkpoints, last)
        if not goes_on:
            self._checkpoints = None
        return goes_on

    def close(self) -> None:
        """End the training. Collective, idempotent.

        The parameters then hold this rank's final model; :meth:`consensus` gives the average.
        """
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        if self.close in self._worker.closing:  # else the worker is closing, and has taken it out
            self._worker.closing.remove(self.close)
        self._worker.run(self._worker.meet("the end of the training"), "the end of the training")
        self._parameters.load(loop.close())
        if self._worker.guard is not None:
            self._worker.guard.report(self._worker.record)  # what no step came after
            self._worker.guard = None
        self._fingerprint = self._parameters.fingerprint()
        self._worker.take_record = None

    def __enter__(self) -> DistributedOptimizer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or self._worker.size == 1:  # the others will not come to a collective close
            self.close()

    # -- what was measured -------------------------------------------------------------------------

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the algorithm recorded on this rank, the last 100 000 records, by time."""
        return list(self._records)

    @property
    def staleness(self) -> dict[str, Any]:
        """Mean, median, 99th percentile, maximum and histogram of the updates made on this rank."""
        return self._worker.tally.staleness.summary()

    @property
    def time_split_s(self) -> dict[str, float]:
        """Seconds of this rank so far: compute (the program's own included), wait, gossip, idle."""
        return dataclasses.asdict(self._worker.time_split())

    # -- inside ------------------------------------------------------------------------------------

    @property
    def _parameters(self) -> FlatModel:
        return self._asking.parameters

    def _laid_out(self) -> FlatModel:
        groups = [group["params"] for group in self.param_groups]
        known = {id(p) for p in self._model.parameters()}
        for index, group in enumerate(groups):
            if any(id(p) not in known for p in group):
                raise BadInput(f"group {index} holds a parameter that is not the model's")
        return FlatModel(self._model, groups)

    def _begin(self, saved: dict[str, Any] | None = None) -> None:
        if saved is None:
            broadcast_parameters(self._model, self._worker)
            self._parameters.take_over()
        self._rates.set(self.param_groups, self._parameters)
        self._loop = OwnLoop(self._worker, self._algorithm, self._asking, saved, self._checkpoints)
        self._fingerprint = self._parameters.fingerprint()
        self._gate.begin()

    def _looks(self) -> bool:
        """Whether to look thoroughly before and after this step."""
        return self._worker.step % LOOK_EVERY < LOOKS

    def _check_untouched(self) -> None:
        """Refuse what the parameters' versions do not show."""
        if self._parameters.fingerprint() != self._fingerprint:
            raise RuntimeError(
                "a parameter was written to through .data since the last step(), and the change "
                "would be lost: call publish() after it, on every rank"
            )

    def _usable(self, *, changed: bool = False, lent: bool = False) -> OwnLoop:
        """Return the loop, unless what the user did meanwhile would be lost."""
        if self._loop is None:
            raise RuntimeError("this optimizer is closed: make a new one")
        if not lent:
            self._not_lent()
        name = None if changed or self._lent else self._parameters.changed()
        if name is not None:
            raise RuntimeError(
                f"parameter {name!r} was changed by something other than step(), such as "
                f"load_state_dict, and the change would be lost: call publish() after it, on every "
                f"rank"
            )
        return self._loop

    def _not_lent(self) -> None:
        if self._lent:
            raise RuntimeError(
                "the model still holds the average that consensus() put there: write "
                "'with optimizer.consensus():', or call publish() to go on from the average"
            )

    def _answer_full(self, loop: OwnLoop) -> None:
        """Give what gradients over all data are asked for before the next mini-batch's."""
        while loop.request.kind == "full":
            if self._full_closure is None:
                raise RuntimeError(
                    f"{self._algorithm.name} asks for a gradient over all data: construct the "
                    f"optimizer with full_closure="
                )
            self._evaluate(self._full_closure)
            self._rates.set(self.param_groups, self._parameters)
            loop.answer(self._gate.needed(self._gradient()))

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def _gradient(self) -> Vector:
        """Return the gradient with weight decay, without a GradScaler's factor."""
        p = self._parameters
        p.collect()
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            p.grad.div_(scale)
        if not self._rates.decoupled:
            p.add_decay(of_groups(self.param_groups, "weight_decay"))
        return p.grad

    def __reduce__(self) -> Any:
        raise TypeError(
            "a DistributedOptimizer is part of a running job and cannot be copied or pickled: "
            "save its state_dict()"
        )

    # GradScaler then calls step() in any case and leaves found_inf to us: were a rank's step()
    # left out, the others would wait for it.
    _step_supports_amp_scaling = True


_NEEDS_CLOSURE = (
    "{name} asks for several gradients a step: write optimizer.step(closure), where closure() "
    "calls zero_grad(), computes the loss, calls backward() and returns the loss"
)
