"""L15: from tickets and atomic sums alone comes heavy ball in the order of the tickets, exactly.

x_{k+1} = x_k - lr_k g_k + mu (x_k - x_{k-1}), x_{-1} = x_0, whatever the g_k are, and wherever and
however late they were computed and added.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mpimomentum as mm
from mpimomentum.algorithms import epochs, momentum_sums
from mpimomentum.algorithms.epochs import Epochs
from mpimomentum.runtime.agreement import told
from mpimomentum.worker import Handle

DIM = 7
LR = 0.02
MOMENTA = [0.0, 0.01, 0.1, 0.5, 0.77, 0.9, 0.99, 0.998]


class Kept(mm.Quadratic):
    """Keeps the gradients that it was asked for, in order."""

    def __init__(self, rank, dtype):
        b = torch.as_tensor(np.cos(rank + np.arange(DIM)), dtype=dtype)
        super().__init__(b=b, h=0.5 + 0.2 * rank, noise=0.5)
        self.given = []

    def initial(self):
        return torch.full_like(super().initial(), 3.0)

    def gradient(self, x, batch):
        g = super().gradient(x, batch)
        self.given.append(g.to(torch.float64))
        return g


def keeping(dtype=torch.float64):
    made = {}

    def objective(rank, size):
        made[rank] = Kept(rank, dtype)
        return made[rank]

    return made, objective


def in_order(records):
    """The (rank, step) of each ticket; every ticket was drawn once."""
    drawn = sorted((r["ticket"], r["rank"], r["step"]) for r in records if "ticket" in r)
    assert [ticket for ticket, _, _ in drawn] == list(range(len(drawn)))
    return [(rank, step) for _, rank, step in drawn]


def heavy_ball(x0, gradients, mu, lrs):
    x, before = x0.clone(), x0
    for g, lr in zip(gradients, lrs, strict=True):
        x, before = x - lr * g + mu * (x - before), x
    return x


def law(run, made, mu, factor=lambda step: 1.0, lr=LR):
    order = in_order(run.records)
    gradients = [made[rank].given[step] for rank, step in order]
    x0 = made[0].initial().to(torch.float64)
    return heavy_ball(x0, gradients, mu, [lr * factor(step) for _, step in order])


def clock(**options):
    return mm.Clock(
        **{"jitter": 0.5, "slow": {1: 4, 3: 0.3}, "latency_s": 0.1, "seed": 5} | options
    )


@pytest.mark.parametrize("mu", MOMENTA)
@pytest.mark.parametrize("bandwidth_Bps", [np.inf, 1e3])
def test_exact_on_the_virtual_clock(mu, bandwidth_Bps):
    made, objective = keeping()
    a = mm.AsyncServer(lr=LR, mu=mu, mode="sums")
    run = mm.simulate(a, objective, 5, duration_s=250, clock=clock(bandwidth_Bps=bandwidth_Bps))
    assert run.tau.max() > 4
    assert (run.x == run.x[0]).all()
    expected = law(run, made, mu)
    torch.testing.assert_close(run.mean, expected, rtol=1e-12, atol=1e-12)


def test_step_sizes_may_change():
    made, objective = keeping()
    schedule = mm.LRSchedule("step", milestones=(40, 90), decay=0.3)
    a = mm.AsyncServer(lr=LR, mu=0.9, mode="sums")
    run = mm.simulate(a, objective, 4, steps=150, clock=clock(), schedule=schedule)
    expected = law(run, made, 0.9, schedule.factor)
    torch.testing.assert_close(run.mean, expected, rtol=1e-12, atol=1e-12)
    assert (law(run, made, 0.9) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("mu", [0.3, 0.77, 0.9])
def test_slots_of_many_epochs(mu, monkeypatch):
    """With epochs as short as they may be, every slot serves several of them."""
    monkeypatch.setattr(epochs, "_DECADES", 22)
    monkeypatch.setattr(epochs, "_HELD_UP", (80, 10))
    of = Epochs.of(mu, 5)
    made, objective = keeping()
    a = mm.AsyncServer(lr=LR, mu=mu, mode="sums")
    run = mm.simulate(a, objective, 5, steps=(2 * of.slots + 2) * of.length // 5, clock=clock())
    assert len(run.tau) > 2 * of.slots * of.length
    torch.testing.assert_close(run.mean, law(run, made, mu), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mu", [0.5, 0.9, 0.99])
def test_float32_stays_as_near_as_plain_heavy_ball(mu):
    made, objective = keeping(torch.float32)
    a = mm.AsyncServer(lr=LR * (1 - mu), mu=mu, mode="sums")
    run = mm.simulate(a, objective, 4, steps=1500, clock=clock())
    expected = law(run, made, mu, lr=LR * (1 - mu))
    error = float((run.mean.to(torch.float64) - expected).norm() / expected.norm())
    assert error < 5e-6


@pytest.mark.parametrize("mu", MOMENTA)
def test_epochs_hold_what_they_must(mu):
    """Numbers within range, at least 4 slots, and two live epochs are all that shows."""
    for size in (1, 4, 64):
        of = Epochs.of(mu, size)
        if mu == 0:
            assert list(of.live(1000)) == []
            continue
        assert of.slots >= 4
        tickets = 5 * of.length + of.length // 2
        inside = [of.inside(j) for j in range(5 * of.length, 6 * of.length)]
        assert max(inside) < 1e17
        assert min(inside) > 1e-17
        for j in (tickets - 1, tickets - of.length // 2, tickets - of.length // 2 - 1):
            weight = of.inside(j) * of.outside(of.of_ticket(j), tickets)
            assert weight == pytest.approx(mu ** (tickets - j) / (1 - mu), rel=1e-9)
        for now in range(5 * of.length, 6 * of.length, max(1, of.length // 50)):
            oldest_shown = min(of.live(now)) * of.length
            assert mu ** (now - oldest_shown + 1) / (1 - mu) < 1e-19 or oldest_shown == 0


SHORT = Epochs(mu=0.5, length=3, slots=4, ahead=1, horizon=3)


class Scripted:
    """A counter that says what it is told to; sums that count how often they are read."""

    def __init__(self, *values):
        self.values = list(values)
        self.reads = 0

    def fetch_add(self, k=1):
        return Handle.completed(self.values.pop(0))

    def read(self, rows):
        self.reads += 1
        return Handle.completed(torch.zeros(len(rows), DIM))

    def add(self, v, factors):
        return Handle.completed(None)


def finished(coroutine):
    with pytest.raises(StopIteration):
        coroutine.send(None)


def state(tickets, cleared):
    return momentum_sums.State(torch.zeros(DIM), 0, Scripted(*tickets), Scripted(), cleared)


@pytest.mark.parametrize(
    ("ticket", "tickets", "cleared", "spoilt"),
    [
        (19, [20, 27], [0b100], False),  # epoch 6, the third to be put where another was
        (19, [20, 28], [0b100], True),  # ticket 27 clears its slot for epoch 10
        (19, [20, 27], [0b1011], True),  # its slot was not cleared yet, though a later one was
        (18, [19, 19], [0b0111, 0b1111], False),  # the first of its epoch clears for epoch 7
        (18, [19, 19], [0b0011, 0b1011], True),  # but whoever was to clear for epoch 6 has not
        (19, [22, 99], [0], False),  # too late for B to matter: A alone, at any time
    ],
)
def test_a_rank_held_up_while_it_adds_is_told(ticket, tickets, cleared, spoilt):
    adding = momentum_sums._add(SHORT, state(tickets, Scripted(*cleared)), ticket, torch.ones(DIM))
    if not spoilt:
        finished(adding)
        return
    with pytest.raises(RuntimeError, match=f"ticket {ticket}: .* or use mode='server'"):
        adding.send(None)


def test_a_read_that_was_overtaken_is_repeated(monkeypatch):
    monkeypatch.setattr(Epochs, "of", classmethod(lambda cls, mu, size: SHORT))
    # epochs 6 and 5 are read; ticket 24 clears the slot of 5
    s = state([20, 28, 29], Scripted(0b111, 0b111111))
    finished(momentum_sums.finish(mm.AsyncServer(LR, 0.5, mode="sums"), SimpleNamespace(size=4), s))
    assert (s.sums.reads, s.version) == (2, 29)


def test_a_slot_that_is_not_ready_is_not_read(monkeypatch):
    """What is in it is another epoch's, and would weigh mu to a negative power."""
    monkeypatch.setattr(Epochs, "of", classmethod(lambda cls, mu, size: SHORT))
    s = state([20, 20], Scripted(0b011))  # epoch 5 is ready, 6 is not
    rows = []
    s.sums.read = lambda asked: rows.append(asked) or Handle.completed(torch.zeros(len(asked), DIM))
    finished(momentum_sums.finish(mm.AsyncServer(LR, 0.5, mode="sums"), SimpleNamespace(size=4), s))
    assert rows == [[0, 1 + SHORT.slot(5)]]


@pytest.mark.parametrize("mu", [0.01, 0.5, 0.9])
def test_marks_tell_which_epochs_are_ready(mu):
    """In whatever order the clearings under way end."""
    of, rng = Epochs.of(mu, 4), np.random.default_rng(0)
    marks, done, under_way = 0, set(range(of.slots)), []
    for epoch in range(300):
        under_way += [coming] if (coming := of.begins_with(epoch * of.length)) else []
        while len(under_way) >= of.ahead:
            last = under_way.pop(0 if under_way[0] == epoch + 1 else rng.integers(len(under_way)))
            marks, done = marks + of.mark(last), done | {last}
        for e in range(epoch, epoch + of.ahead + 1):
            assert of.ready(e, marks) == (e in done), (epoch, e)
        assert 0 <= marks < 1 << 60


def test_who_clears_may_be_as_far_behind_as_who_adds():
    for mu in MOMENTA[2:]:
        for size in (1, 4, 16):
            of = Epochs.of(mu, size)
            behind = max(512, 32 * size)
            coming = of.begins_with(of.slots * of.length)
            assert coming * of.length - of.slots * of.length >= behind
            last = (of.slots + 1) * of.length - 1
            assert not of.cleared(of.of_ticket(last), last + behind)


def test_a_held_up_rank_ends_the_run(monkeypatch):
    monkeypatch.setattr(Epochs, "of", classmethod(lambda cls, mu, size: SHORT))
    _, objective = keeping()
    lagging = mm.Clock(latency_s=1.0, compute_s=1e-3, bandwidth_Bps=20.0)
    with pytest.raises(RuntimeError, match="held up while it added a gradient"):
        mm.simulate(mm.AsyncServer(LR, 0.5, mode="sums"), objective, 24, steps=60, clock=lagging)


def test_models_read_on_the_way_are_those_of_heavy_ball():
    """With one worker nothing is under way when it reads: every snapshot is exact."""
    made, objective = keeping()
    read = []
    a = mm.AsyncServer(lr=LR, mu=0.9, mode="sums")
    run = mm.simulate(a, objective, 1, steps=900, observe=lambda w, s: read.append(s.x.clone()))
    gradients = made[0].given
    x0 = made[0].initial()
    for steps in (1, 2, 3, 100, 654, 655, 656, 657, 899):
        expected = heavy_ball(x0, gradients[:steps], 0.9, [LR] * steps)
        torch.testing.assert_close(read[steps - 1], expected, rtol=1e-12, atol=1e-12)
    assert (run.tau == 0).all()


@pytest.mark.mpi
@pytest.mark.parametrize("mu", [0.0, 0.9, 0.99])
def test_exact_on_mpi_ranks(make_worker, nodes, mu):
    w = make_worker()
    made, objective = keeping()
    lr = LR * (1 - mu)  # stays within reach of the start: the tolerance is absolute
    run = mm.run(mm.AsyncServer(lr=lr, mu=mu, mode="sums"), objective, steps=120, worker=w)
    check_on_ranks(w, [run], made, mu, lr)


@pytest.mark.mpi
def test_saved_and_gone_on_from_it_is_one_recursion(make_worker, tmp_path):
    w = make_worker()
    out = Path(told(w, str(tmp_path))[0])
    a = mm.AsyncServer(lr=LR, mu=0.5, mode="sums")
    runs, given = [], []
    for steps in (70, 150, 400):
        made, objective = keeping()
        checkpoints = mm.Checkpoints(out, every=31, resume="auto")
        runs.append(mm.run(a, objective, steps=steps, worker=w, checkpoints=checkpoints))
        given += made[w.rank].given
    made[w.rank].given = given
    check_on_ranks(w, runs, made, 0.5, LR)


def check_on_ranks(w, runs, made, mu, lr):
    """Every rank's gradients at rank 0, then the law."""
    mine = torch.cat(made[w.rank].given)
    run = dataclasses.replace(runs[-1], records=[r for run in runs for r in run.records])

    async def gather():
        return await w.gather(mine)

    everyones = w.run(gather())
    if w.rank == 0:
        for rank, given in enumerate(everyones):
            made[rank] = Kept(rank, torch.float64)
            made[rank].given = list(given.reshape(-1, DIM))
        assert len(in_order(run.records)) == sum(len(m.given) for m in made.values())
        assert (run.x == run.x[0]).all()
        torch.testing.assert_close(run.mean, law(run, made, mu, lr=lr), rtol=1e-12, atol=1e-12)
