"""Windows for vectors on a device, which is pretended: conservation, contraction, order.

What the lane is given is done when it is polled, so whoever goes on too early is found out.
"""

from __future__ import annotations

import pytest
import torch

from mpimomentum.codecs import mix
from mpimomentum.non_finite import Guard, NonFinite
from mpimomentum.transport import worker
from mpimomentum.transport.direct_window import DirectWindow
from mpimomentum.transport.ipc_window import IpcWindow
from mpimomentum.transport.lane import PASSED
from mpimomentum.transport.pinned_window import PinnedWindow
from mpimomentum.transport.progress import NextPoll
from mpimomentum.transport.segment import MIXES
from mpimomentum.transport.window import InboxWindow
from mpimomentum.worker import Handle
from tests.conftest import RANK
from tests.pretend_lane import PretendLane

pytestmark = pytest.mark.mpi

DIM = 150_001  # three chunks, the last one odd


@pytest.fixture(params=["thread"])
def driver(request):
    """One is enough: what differs between drivers is tested with windows of the host."""
    return request.param


@pytest.fixture(
    params=["pinned", "pinned, a node each", "ipc", "direct, two nodes", "direct, a node each"]
)
def make(request, make_worker, monkeypatch):
    """Return what makes a worker whose windows are in this placement."""
    monkeypatch.setattr("mpimomentum.transport.outward.PIECE_BYTES", 1 << 15)
    staging, _, nodes = request.param.partition(", ")
    if nodes:
        from mpi4py import MPI  # which starts: not where tests are only collected

        size = MPI.COMM_WORLD.size
        if size == 1 and staging == "direct":
            pytest.skip("nobody is on another node")
        monkeypatch.setenv("MPIMOMENTUM_FAKE_NODES", str(size if "each" in nodes else 2))

    def worker_of(lane=PretendLane, **options):
        return make_worker(
            "complete",
            make_lane=lambda _: lane(seed=RANK),
            staging=staging,
            probe=lambda kinds: dict.fromkeys(kinds, ""),
            **options,
        )

    return worker_of


async def sums(w, window, x0):
    """Return the sum of all x before and after, and the scale of its rounding."""
    before = await w.allreduce(x0.double())
    after = await w.allreduce(window.read().double())
    return before, after, await w.allreduce(x0.double().abs())


def test_racing_averages_and_adds_conserve_the_sum(make):
    w = make()
    x0 = torch.randn(DIM, generator=torch.Generator().manual_seed(w.rank)).to(w.device)

    async def body():
        window = w.window("x", x0)
        await w.start()
        averages = adds = 0
        while averages < 10:
            averages += await window.average(int(w.rng.choice(w.neighbors)))
            if averages % 5 == 0:
                to = int(w.rng.integers(w.size))
                await window.add(to, torch.full((DIM,), 1.0, device=w.device))
                adds += 1
            if averages % 4 == 0:
                for x, now in window.writing():
                    x += 1.0
                    assert x.shape == x0[now].shape
                adds += 1
        await w.quiesce()
        before, after, scale = await sums(w, window, x0)
        counts = [averages, window.mixes, adds, window.version]
        averaged, mixed, added, versions = (await w.allreduce(torch.tensor(counts))).tolist()
        assert mixed == 2 * averaged
        assert versions == added
        assert ((after - before - added).abs() / (scale + added)).max() < 1e-5
        await w.release()

    w.run(body())


def test_an_average_makes_both_ends_equal(make):
    w = make()

    async def body():
        window = w.window("x", torch.full((DIM,), float(w.rank), device=w.device))
        await w.start()
        if w.rank == 0:
            while not await window.average(1):
                await NextPoll()
        await w.quiesce()
        x = window.read()
        assert x.min() == x.max() == (0.5 if w.rank < 2 else w.rank)
        assert window.mixes == (1 if w.rank < 2 else 0)
        await w.release()

    w.run(body())


def test_two_ranks_that_average_each_other_contract_and_do_not_swap(make):
    w = make()

    async def body():
        window = w.window("x", torch.full((1000,), float(w.rank), device=w.device))
        await w.start()
        if w.rank < 2:
            for _ in range(20):
                await window.average(1 - w.rank)
        await w.quiesce()
        assert float((window.read() - (0.5 if w.rank < 2 else w.rank)).abs().max()) < 1e-2
        await w.release()

    w.run(body())


def test_own_reads_come_after_own_adds_and_whatever_is_written(make):
    w = make()

    async def body():
        window = w.window("x", torch.zeros(DIM, device=w.device))
        await w.start()
        for step in range(1, 6):
            await window.add(w.rank, torch.ones(DIM, device=w.device))
            for x, _ in window.writing():
                x.mul_(2)
            x = window.read()  # nobody has waited for the writing
            assert x.min() == x.max() == 2 * (2**step - 1)
            assert window.version == 2 * step
            mine, version = await window.get(w.rank)
            assert torch.equal(mine, x)
            assert version == window.version
        window.restore(torch.full((DIM,), 3.0, device=w.device), 7, 2)
        assert (window.read()[-1], window.version, window.mixes) == (3, 7, 2)
        await w.quiesce()
        await w.release()

    w.run(body())


def test_whole_reads_are_never_torn(make):
    w = make()
    steps = 12

    async def body():
        window = w.window("x", torch.zeros(DIM, device=w.device))
        done = w.counter("done")
        await w.start()
        if w.rank == 0:
            for step in range(steps):
                adding = window.add(0, torch.ones(DIM, device=w.device))
                if step % 2:
                    await adding
                for x, _ in window.writing():
                    x += 1
                await adding
                await NextPoll()
            await done.fetch_add(1)
        versions = []
        while w.rank and not await done.fetch_add(0):
            x, version = await window.get(0)
            assert x.min() == x.max() == version
            versions.append(version)
        assert versions == sorted(versions)
        await w.quiesce()
        final, version = await window.get(0)
        assert final.min() == final.max() == version == 2 * steps
        await w.release()

    w.run(body())


def test_windows_may_differ_in_length(make):
    w = make()

    async def body():
        window = w.window(
            "x", torch.ones(3, device=w.device) if w.rank == 0 else torch.ones(0, device=w.device)
        )
        await w.start()
        await window.add(0, torch.full((3,), float(w.rank), device=w.device))
        await w.quiesce()
        held, version = await window.get(0)
        assert held.tolist() == [1 + w.size * (w.size - 1) / 2] * 3
        assert version == w.size
        await w.release()

    w.run(body())


def test_what_does_not_fit_is_refused(make):
    w = make()

    async def body():
        window = w.window("x", torch.zeros(3, device=w.device))
        with pytest.raises(ValueError, match=r"window 'x' holds \(3,\) torch.float32 on"):
            window.add(w.rank, torch.zeros(4, device=w.device))
        with pytest.raises(ValueError, match="window 'x' holds"):
            window.read(out=torch.zeros(3, dtype=torch.float64, device=w.device))
        with pytest.raises(ValueError, match=r"of 3, not \(1,\)"):
            window.restore(torch.zeros(1, device=w.device), 0, 0)
        await w.quiesce()
        await w.release()

    w.run(body())


class Deferring(PretendLane):
    """What a coroutine reads of the window is there later, as on a device."""

    def settle(self):
        """Nothing is waited for."""


def test_own_reads_are_whole_while_an_add_is_under_way(make):
    w = make()
    lane = w.lane = Deferring(seed=RANK)

    async def body():
        window = w.window("x", torch.zeros(DIM))
        await w.start()
        for adds in range(1, 9):
            adding = window.add(w.rank, torch.ones(DIM))
            reads = []
            while not adding.test():
                reads.append(await window.get(w.rank))
                await NextPoll()
            await lane.done("the reads")
            for x, version in reads:
                assert x.min() == x.max() == version
            assert window.version == adds
        await w.quiesce()
        await w.release()

    w.run(body())


def test_a_read_is_of_the_time_it_was_begun_at(make):
    assert read_before_an_add(make()) == 0


@pytest.mark.parametrize("make", ["pinned"], indirect=True)
def test_an_add_that_overtakes_a_read_is_noticed(make, monkeypatch):
    monkeypatch.setattr(PinnedWindow, "_take", InboxWindow.drain)
    assert read_before_an_add(make()) == 1


def read_before_an_add(w):
    """Return what rank 0 reads, while others add one to its zeros."""
    lane = w.lane = Deferring()

    async def body():
        window = w.window("x", torch.zeros(DIM))
        await w.start()
        x = window.read() if w.rank == 0 else torch.zeros(DIM)
        await w.collectives.barrier()
        if w.rank == 1:
            await window.add(0, torch.ones(DIM))
        await w.collectives.barrier()
        await lane.done("the read")
        await w.quiesce()
        assert x.min() == x.max()
        found = await w.allreduce(x[:1].clone())
        await w.release()
        return float(found)

    return w.run(body())


class Hasty(PretendLane):
    """A lane whose events have been passed before anything is done."""

    def mark(self):
        """Return no event."""
        return PASSED

    def done(self, what, hold=None):
        """Return what is done."""
        super().mark().query()
        return Handle.completed(None)


class PublishedBeforeTheEvent(IpcWindow):
    """The owner may apply what no kernel has written yet."""

    async def _exchange(self, theirs, inbox):
        x = self._segment.x
        self._pass(MIXES, lambda: mix.exchange(x, theirs, inbox))
        return True


class FreedBeforeTheEvent(IpcWindow):
    """The next payload may come into the inbox while a kernel is still to read it."""

    def _pass(self, counter, work, then=lambda: None, change=1):
        then()
        super()._pass(counter, work, change=change)


class PutBeforeTheEvent(DirectWindow):
    """What goes to another node is what the buffer held before the kernel wrote it."""

    async def _exchange(self, theirs, inbox):
        x = self._segment.x
        self._pass(MIXES, lambda: mix.exchange(x, theirs, inbox))
        return True


async def drift(w, averages=25, lane=None):
    """Race; return by how much the sum of all x has changed. `lane` is for the window alone."""
    x0 = torch.randn(DIM, generator=torch.Generator().manual_seed(w.rank))
    window = w.window("x", x0)
    window._lane = lane or w.lane
    await w.start()
    own = 0
    while own < averages:
        own += await window.average(int(w.rng.choice(w.neighbors)))
        if own % 5 == 0:
            await window.add(w.rank, torch.full((DIM,), -1.0))
            await window.add((w.rank + 1) % w.size, torch.full((DIM,), 1.0))
    await w.quiesce()
    window._lane.settle()
    before, after, scale = await sums(w, window, x0)
    await w.release()
    return float(((after - before).abs() / (scale + 1)).max())  # 1: what is added on the way


def test_what_does_not_wait_for_events_loses_sums(make):
    w = make()
    assert w.run(drift(w)) < 1e-5
    assert not w.run(drift(w, lane=Hasty())) < 1e-3  # what it finds in memory may be no number


@pytest.mark.parametrize("make", ["ipc"], indirect=True)
@pytest.mark.parametrize("broken", [PublishedBeforeTheEvent, FreedBeforeTheEvent])
def test_a_word_changed_before_its_event_is_noticed(make, broken, monkeypatch):
    w = make()
    monkeypatch.setattr(worker, "OF_DEVICE", {"ipc": broken})
    # that a payload is late, or overtaken, is a matter of luck: in one of some runs
    assert any(not w.run(drift(w, lane=PretendLane(RANK + s, 3 + 9 * s))) < 1e-4 for s in range(8))


@pytest.mark.parametrize("make", ["direct, a node each"], indirect=True)
def test_a_difference_put_before_its_event_is_noticed(make, monkeypatch):
    w = make()
    monkeypatch.setattr(worker, "OF_DEVICE", {"direct": PutBeforeTheEvent})
    assert any(not w.run(drift(w, lane=PretendLane(RANK + s, 3 + 9 * s))) < 1e-4 for s in range(8))


def test_a_model_that_is_not_finite_is_not_spread(make):
    w = make()
    w.guard = Guard(w, "skip")
    records = []

    async def body():
        x0 = torch.full((DIM,), float(w.rank), device=w.device)
        if w.rank == 1:
            x0[DIM // 2] = torch.inf
        window = w.window("x", x0)
        await w.start()
        if w.rank == 0:  # finds it at its peer, and keeps its own
            assert not await window.average(1)
            assert window.read().abs().max() <= 1e-6
            assert (window.mixes, window.busy) == (0, 1)
        await w.quiesce()
        if w.rank == 1:  # finds its own, and takes over the peer's
            assert not await window.average(0)
            assert window.read().abs().max() <= 1e-6
            assert window.mixes == 0
        await w.quiesce()
        w.guard.report(lambda **found: records.append(found))
        assert records == ([{"bad_model": 1}] if w.rank < 2 else [])
        if w.rank == 0:
            assert await window.average(1)
        await w.quiesce()
        await w.release()

    w.run(body())


def test_an_add_that_is_not_finite_does_not_leave(make):
    w = make()
    w.guard = Guard(w, "abort")

    async def body():
        window = w.window("center", torch.zeros(DIM if w.rank == 0 else 0, device=w.device))
        await w.start()
        v = torch.zeros(DIM, device=w.device)
        v[-1] = torch.nan
        # what add() runs beside; it ends the run where nobody catches this
        adding = window._fill_inbox(0, v)
        if w.rank == 0:
            adding.close()
            ipc = isinstance(window, IpcWindow)
            adding = window._add_finite(v) if ipc else window._sum_own(v)
        with pytest.raises(NonFinite, match=r"added to window 'center' of rank 0 is not finite"):
            await adding
        await w.quiesce()
        await w.release()

    w.run(body())


class WithoutRoom(PretendLane):
    """A lane whose device has no room on rank 1's node."""

    def opened(self, env, nbytes):
        """Refuse on all ranks of the node, as device memory does."""
        if 1 in env.comm.allgather(RANK):
            raise MemoryError("rank 0: 1.0 MB of cuda:0 for a window: out of memory")
        return super().opened(env, nbytes)


@pytest.mark.parametrize("make", ["direct, two nodes", "direct, a node each"], indirect=True)
def test_a_node_without_room_on_its_devices_is_refused_on_all(make):
    w = make(WithoutRoom)

    async def body():
        with pytest.raises(MemoryError, match=r"^on node \d, its ranks .* of cuda:0 for a window"):
            w.window("x", torch.zeros(DIM))

    w.run(body())


@pytest.mark.parametrize("make", ["direct, two nodes", "direct, a node each"], indirect=True)
def test_buffers_without_room_are_refused_on_all(make, monkeypatch):
    w = make()

    def full(v):
        raise RuntimeError("CUDA out of memory")

    async def body():
        if w.rank == 1:
            monkeypatch.setattr(torch, "empty_like", full)
        with pytest.raises(MemoryError, match=r"^rank 1: no room for a .* buffers: CUDA out of"):
            w.window("x", torch.zeros(DIM))

    w.run(body())


@pytest.mark.parametrize("make", ["direct, a node each"], indirect=True)
def test_what_is_longer_than_a_count_goes_in_pieces(make, monkeypatch):
    monkeypatch.setattr("mpimomentum.transport.exposed._MAX_BYTES", 1 << 17)
    w = make()

    async def body():
        x0 = torch.arange(DIM, dtype=torch.float32) * (w.rank + 1)
        window = w.window("x", x0)
        await w.start()
        if w.rank == 0:
            while not await window.average(1):
                await NextPoll()
        await w.quiesce()
        assert torch.equal(window.read(), x0 if w.rank > 1 else x0 / (w.rank + 1) * 1.5)
        await w.release()

    w.run(body())


@pytest.mark.parametrize("make", ["direct, a node each"], indirect=True)
def test_an_add_to_another_node_waits_for_what_it_sends(make):
    w = make()

    async def body():
        window = w.window("x", torch.zeros(DIM))
        await w.start()
        for _ in range(5):
            v = torch.full((DIM,), 7.0)
            for _ in range(6):
                w.lane.begin(v.zero_)
            w.lane.begin(lambda v=v: v.fill_(1))
            await window.add((w.rank + 1) % w.size, v)
        await w.quiesce()
        x = window.read()
        assert x.min() == x.max() == 5
        await w.release()

    w.run(body())


class Unpinnable(PretendLane):
    """A lane to which rank 1 cannot lend its memory."""

    held = 0

    def pin(self, memory):
        """Refuse as CUDA does."""
        if RANK == 1:
            raise RuntimeError("cudaHostRegister: out of memory")
        self.held += 1

    def unpin(self, memory):
        """Count."""
        self.held -= 1


@pytest.mark.parametrize("make", ["pinned"], indirect=True)
def test_memory_that_cannot_be_pinned_is_refused_on_all_ranks(make):
    w = make(Unpinnable)

    async def body():
        with pytest.raises(MemoryError, match=r"^rank 1: CUDA could not pin .*ulimit -l.*=ipc"):
            w.window("x", torch.zeros(DIM))
        assert w.lane.held == 0

    w.run(body())


@pytest.mark.parametrize("make", ["pinned, a node each"], indirect=True)
def test_ranks_of_several_nodes_cannot_open_each_others_memory(make):
    w = make()

    async def body():
        with pytest.raises(ValueError, match=rf"and there are {w.size}; use staging=pinned"):
            IpcWindow(w.env, w._engine, w.lane, "x", torch.zeros(DIM))

    if w.size > 1:
        w.run(body())
