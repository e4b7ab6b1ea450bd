"""What the contract takes of other libraries: numpy's arrays and DLPack's, in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.mpi


class Foreign:
    """An array of a library that nobody here knows."""

    def __init__(self, v: torch.Tensor) -> None:
        self.v = v

    def __dlpack__(self, **options: Any) -> Any:
        return self.v.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.fixture
def driver() -> str:
    return "thread"


@pytest.mark.parametrize("of", [Foreign, torch.Tensor.numpy], ids=["DLPack", "numpy"])
def test_collectives_windows_and_messages_take_them(make_worker: Any, of: Any) -> None:
    w = make_worker()

    async def body() -> None:
        one = torch.arange(6.0) + w.rank
        ranks = torch.arange(float(w.size))
        base, shift = torch.arange(6.0), ranks.sum()
        assert torch.equal(await w.allreduce(of(one)), w.size * base + shift)
        everyones = base + ranks[:, None]
        assert torch.equal(await w.allgather(of(one)), everyones)
        assert torch.equal(await w.alltoall(of(everyones)), (base + w.rank).expand(w.size, 6))
        models = await w.neighbor_allgather(of(one))
        assert all(torch.equal(v, base + j) for j, v in models.items())

        window, box, sums = w.window("x", of(one)), w.mailbox("box"), w.sums("s", of(base), 2)
        await w.start()
        following = (w.rank + 1) % w.size
        await window.add(following, of(torch.ones(6)))
        await box.send(following, of(one), version=3)
        source, version, got = await box.recv()
        assert (source, version) == ((w.rank - 1) % w.size, 3)
        assert torch.equal(got, base + source)
        await sums.add(of(torch.ones(6)), {0: 1.0, 1: 2.0})
        await w.quiesce()
        assert torch.equal(
            await sums.read([0, 1]), torch.stack([base + w.size, torch.full((6,), 2.0 * w.size)])
        )
        mine = torch.zeros(6)
        out = of(mine)
        assert window.read(out=out) is out
        assert torch.equal(mine, one + 1)  # in its own memory
        await w.release()

    w.run(body())


def test_what_is_no_array_is_refused_by_its_type(make_worker: Any) -> None:
    w = make_worker()

    async def body() -> None:
        with pytest.raises(TypeError, match="cupy array is wanted, got list"):
            w.allreduce([1.0])
        with pytest.raises(TypeError, match="got str"):
            w.window("x", "x0")
        await w.quiesce()
        await w.release()

    w.run(body())
