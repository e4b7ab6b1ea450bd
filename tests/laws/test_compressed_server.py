"""A parameter server in fewer bytes: what is pushed arrives or is kept, and answers catch up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.worker import Worker
from tests.compressed import Drawn, descended, drawn, with_wire

DIM, LR = 2500, 0.5
FORMATS = ("bf16", "int8", "sign")
UNEVEN = mm.Clock(slow={0: 3}, jitter=0.5, latency_s=0.1, bandwidth_Bps=1e6)


@dataclasses.dataclass(frozen=True)
class Watched(mm.AsyncServer):
    """Keeps what the ranks hold at the end, before the model is handed over whole."""

    found = {}  # noqa: RUF012  # rank -> (model, its replica, error)

    async def finish(self, w: Worker, s: Any) -> None:
        replicas = s.memory.replicas.clone()
        self.found[w.rank] = s.x.clone(), replicas, s.memory.error.clone()
        await super().finish(w, s)


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("wire", FORMATS)
def test_updates_and_errors_add_up_to_what_was_pushed(wire: Any, servers: int) -> None:
    """x_K = x_0 - (all that was pushed - sum of the e_i), which telescopes over the steps."""
    n = 4
    a = Watched(lr=LR, wire=wire, servers=servers)
    run = mm.simulate(a, drawn(DIM, 20), size=n, steps=50, clock=UNEVEN)
    errors = sum(error for _, _, error in Watched.found.values())
    pushed = descended(run, LR, DIM, 20) * n
    torch.testing.assert_close(torch.as_tensor(run.mean), pushed + errors, rtol=0, atol=1e-8)
    assert float(pushed.abs().max()) > 100
    if wire != "sign":  # which may leave out nearly all of a vector as wild as these
        assert float(errors.norm()) < 1e-3 * float(pushed.norm())


@pytest.mark.parametrize("wire", FORMATS)
def test_a_server_knows_what_each_worker_has(wire: Any) -> None:
    n, servers = 4, 2
    a = Watched(lr=LR, wire=wire, servers=servers)
    mm.simulate(a, drawn(DIM, 20), size=n, steps=30, clock=UNEVEN)
    for rank, (x, _, _) in Watched.found.items():
        parts = [Watched.found[j][1][rank] for j in range(servers)]
        assert torch.equal(torch.cat(parts), x)
        assert float(x.abs().max()) > 100


def test_bytes_are_those_of_the_formats() -> None:
    d, n, steps = 4096, 4, 40

    def sent(wire: str) -> int:
        a = with_wire(mm.AsyncServer(lr=LR), wire)
        run = mm.simulate(a, drawn(d, 20, torch.float32), size=n, steps=steps)
        return run.bytes_sent - (n - 1) * 4 * d  # the model at the end, whole

    messages = (n - 1) * steps
    assert sent("float32") == messages * 2 * 4 * d
    assert sent("bf16") == messages * 2 * 2 * d
    assert sent("int8") == messages * 2 * (d + 8)
    assert sent("sign") == messages * (d // 8 + 8 + d + 8)  # answers are int8
    assert mm.wire.nbytes("sign", 1 << 20) * 31 < 4 << 20


@pytest.mark.parametrize(
    "a",
    [
        mm.AsyncServer(lr=0.05),
        mm.AsyncServer(lr=0.05, servers=2, mu=0.5),
        mm.AsyncServer(lr=0.05, quorum=2),
        mm.AsyncServer(lr=0.05, mu="auto"),
    ],
    ids=["plain", "2 shards", "quorum", "auto"],
)
@pytest.mark.parametrize("wire", FORMATS)
def test_the_minimum_is_found(a: Any, wire: str) -> None:
    """By bf16 and int8 as by float32; by signs to within some percent of the way."""
    draw = torch.Generator().manual_seed(3)
    b = torch.randn(DIM, generator=draw, dtype=torch.float64)
    h = 0.2 + torch.rand(DIM, generator=draw, dtype=torch.float64)

    if wire == "sign" and a.mu == "auto":
        with pytest.raises(ValueError, match="signs do something else; use wire='int8'"):
            with_wire(a, wire)
        return

    def left(w: str) -> float:
        run = mm.simulate(
            with_wire(a, w), lambda rank, size: mm.Quadratic(b=b, h=h), size=4, steps=200,
            clock=mm.Clock(jitter=0.3),
        )  # fmt: skip
        return float((torch.as_tensor(run.mean) - b).norm() / b.norm())

    assert left(wire) <= (0.05 if wire == "sign" else 1.1 * left("float32") + 1e-6)


def test_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="use mode='server' with it"):
        mm.AsyncServer(lr=0.1, mode="sums", wire="int8")


def test_drawn_gradients_differ_and_are_wild() -> None:
    one, other = Drawn(0, DIM, 1).g, Drawn(1, DIM, 1).g
    assert not torch.equal(one, other)
    assert float(one.abs().max()) > 1e3 * float(one.abs().median())
