"""A loop of one's own on four ranks."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

import mpimomentum as mm

pytestmark = pytest.mark.mpi
LR, MU = 0.05, 0.9


def net(seed: int = 0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(8) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(3, 8), middle, nn.Linear(8, 1))


def data(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1000 * rank + step))
    return x, x.sum(dim=1, keepdim=True)


def backward(model: nn.Module, opt: Any, rank: int, step: int) -> None:
    opt.zero_grad()
    x, y = data(rank, step)
    (model(x) - y).square().mean().backward()


def go(model: nn.Module, opt: Any, rank: int, first: int, last: int) -> None:
    for step in range(first, last):
        backward(model, opt, rank, step)
        opt.step()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def of_all(w: Any, v: torch.Tensor) -> torch.Tensor:
    async def gather() -> torch.Tensor:
        return await w.allgather(v.contiguous())

    return w.run(gather())


def test_allreduce_is_sgd_on_all_ranks_batches(make_worker: Any) -> None:
    w = make_worker()
    model, single = net(seed=w.rank), net(seed=0)  # all begin where rank 0 does
    with mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=LR, mu=MU), w) as opt:
        go(model, opt, w.rank, 0, 20)
    sgd = torch.optim.SGD(single.parameters(), lr=LR, momentum=MU)
    for step in range(20):
        batches = [data(r, step) for r in range(w.size)]
        x, y = (torch.cat(part) for part in zip(*batches, strict=True))
        sgd.zero_grad()
        (single(x) - y).square().mean().backward()
        sgd.step()
    torch.testing.assert_close(flat(model), flat(single), rtol=1e-4, atol=1e-5)
    everyones = of_all(w, flat(model))
    assert (everyones == everyones[0]).all()


def test_clipping_acts_on_the_mean_gradient_where_gradients_are_averaged(make_worker: Any) -> None:
    w = make_worker()
    model = net()
    before = flat(model)
    with mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=1.0), w) as opt:
        backward(model, opt, w.rank, 0)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        opt.step()
    # clipped on each rank first, the mean of different gradients would be shorter than that
    torch.testing.assert_close((flat(model) - before).norm(), torch.tensor(0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("algorithm", [mm.DPSGD(lr=LR), mm.DPSGD(lr=LR, variant="atc")], ids=str)
def test_the_own_loop_and_our_loop_give_the_same_bits(algorithm: Any, make_worker: Any) -> None:
    w = make_worker()
    model = net()
    opt = mm.DistributedOptimizer(model, algorithm, w)
    go(model, opt, w.rank, 0, 12)
    opt.close()

    def objective(rank: int, size: int) -> mm.TorchObjective:
        x, y = (torch.cat(part) for part in zip(*(data(rank, t) for t in range(12)), strict=True))
        f = mm.TorchObjective(net(), nn.functional.mse_loss, x, y, batch_size=5)
        steps = iter(range(12))
        f.sample = lambda rng, indices=None: torch.arange(5) + 5 * next(steps)
        return f

    run = mm.run(algorithm, objective, steps=12, worker=w)
    if w.rank == 0:
        assert torch.equal(run.x[0], flat(model))
    everyones = of_all(w, flat(model))
    if w.rank == 0:
        assert torch.equal(run.x, everyones)


@pytest.mark.parametrize(
    "algorithm",
    [
        mm.AllReduceSGD(lr=LR, mu=0.5),
        mm.ADPSGD(lr=LR, mu=0.5),
        mm.ADPSGD(lr=LR, variant="paired"),
        mm.DPSGD(lr=LR),
        mm.AsyncServer(lr=LR / 4, servers=2),
        mm.Signum(lr=LR / 4),
    ],
    ids=str,
)
def test_every_algorithm_learns_and_its_average_is_put_in_and_taken_out(
    algorithm: Any, make_worker: Any
) -> None:
    w = make_worker()
    model = net(norm=True)
    opt = mm.DistributedOptimizer(model, algorithm, w)
    go(model, opt, w.rank, 0, 100)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with opt.consensus() as average:
        models = of_all(w, flat(model))
        assert torch.equal(models, models[:1].expand_as(models))
        means = of_all(w, model[1].running_mean)
        assert torch.equal(means, means[:1].expand_as(means))
        model.eval()
        x, y = data(99, 0)
        assert (model(x) - y).square().mean() < 0.5  # of 3, the variance of y
        model.train()
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(
        of_all(w, own["1.running_mean"]).mean(dim=0), means[0], rtol=1e-6, atol=1e-7
    )
    if algorithm.name == "d-psgd":
        spread = of_all(w, flat(model)) - models
        rms = spread.double().square().sum(dim=1).mean().sqrt()
        torch.testing.assert_close(torch.tensor(average.distance), rms.float())
    opt.close()


@pytest.mark.parametrize(
    "algorithm",
    [
        mm.DPSGD(lr=LR),
        mm.DPSGD(lr=LR, wire="int8"),
        mm.DPSGD(lr=LR, variant="atc", wire="bf16"),
        mm.DecentralizedMomentum(lr=LR, mu=MU, wire="int8"),
    ],
    ids=["whole", "int8", "bf16", "momentum"],
)
def test_a_saved_synchronous_loop_goes_on_bit_by_bit(make_worker: Any, algorithm: Any) -> None:
    """Saved while the next step waits for its gradient: what precedes that is done once more."""
    w = make_worker()
    model = net()
    opt = mm.DistributedOptimizer(model, algorithm, w)
    go(model, opt, w.rank, 0, 6)
    saved = opt.state_dict()
    go(model, opt, w.rank, 6, 12)
    opt.close()
    other = net(seed=7)
    again = mm.DistributedOptimizer(other, algorithm, w)
    again.load_state_dict(saved)
    assert w.step == 6
    go(other, again, w.rank, 6, 12)
    again.close()
    assert torch.equal(flat(other), flat(model))


def test_a_saved_asynchronous_loop_conserves_the_sum(make_worker: Any) -> None:
    """Saved in the middle of racing averages: nothing is in flight, nothing is lost."""
    w = make_worker("complete")
    model = net()
    algorithm = mm.ADPSGD(lr=LR, mu=MU)
    opt = mm.DistributedOptimizer(model, algorithm, w)
    go(model, opt, w.rank, 0, 20 + 5 * w.rank)
    saved = opt.state_dict()
    with opt.consensus():
        total = flat(model)
    kept = of_all(w, saved["mpimomentum"]["state"]["x"])
    torch.testing.assert_close(kept.double().mean(dim=0).float(), total, rtol=1e-6, atol=1e-7)
    opt.close()
    again = mm.DistributedOptimizer(model, algorithm, w)
    again.load_state_dict(saved)
    with again.consensus():
        torch.testing.assert_close(flat(model), total, rtol=1e-6, atol=1e-7)
    state = again.state_dict()["mpimomentum"]["state"]
    assert torch.equal(state["m"], saved["mpimomentum"]["state"]["m"])
    assert w.step == 20 + 5 * w.rank
    again.close()


@pytest.mark.parametrize("algorithm", [mm.DPSGD(lr=LR), mm.AllReduceSGD(lr=LR)], ids=str)
def test_ranks_agree_to_skip_a_step_that_overflowed_on_one(
    algorithm: Any, make_worker: Any
) -> None:
    w = make_worker()
    model = net()
    with mm.DistributedOptimizer(model, algorithm, w) as opt:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(6):
            opt.zero_grad()
            x, y = data(w.rank, step)
            loss = (model(x) - y).square().mean()
            overflow = step == 3 and w.rank == 1
            scaler.scale(loss * float("inf") if overflow else loss).backward()
            before = flat(model)
            scaler.step(opt)
            scaler.update()
            assert torch.equal(flat(model), before) == (step == 3)
        assert w.step == 5
        assert flat(model).isfinite().all()


def test_an_asynchronous_rank_skips_alone(make_worker: Any) -> None:
    w = make_worker()
    model = net()
    with mm.DistributedOptimizer(model, mm.ADPSGD(lr=LR), w) as opt:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(6):
            opt.zero_grad()
            x, y = data(w.rank, step)
            loss = (model(x) - y).square().mean()
            scaler.scale(loss * float("inf") if step == 3 and w.rank == 1 else loss).backward()
            scaler.step(opt)
            scaler.update()
        assert w.step == (5 if w.rank == 1 else 6)


def test_programs_that_have_come_apart_are_told(make_worker: Any) -> None:
    w = make_worker()
    model = net()
    opt = mm.DistributedOptimizer(model, mm.ADPSGD(lr=LR), w)
    go(model, opt, w.rank, 0, 3)
    with pytest.raises(RuntimeError, match=r"rank 0 is at state_dict\(\), rank 1 is at the end of"):
        opt.state_dict() if w.rank == 0 else opt.close()


def test_ranks_that_construct_different_things_are_told(make_worker: Any) -> None:
    w = make_worker()
    with pytest.raises(ValueError, match=r"rank 0 has ADPSGD\(lr=0.05.*rank 2 ADPSGD\(lr=0.1"):
        mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1 if w.rank == 2 else 0.05), w)
    with pytest.raises(ValueError, match=r"rank 3: the model has no trainable parameter"):
        mm.DistributedOptimizer(nn.ReLU() if w.rank == 3 else net(), mm.ADPSGD(lr=0.1), w)
    with pytest.raises(ValueError, match=r"rank 0 has .*, rank 1 .*names, shapes and types"):
        mm.broadcast_parameters(nn.Linear(2, 2 if w.rank == 1 else 3), w)
    mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1), w).close()  # and the worker goes on


def test_a_broadcast_gives_all_ranks_the_roots_values(make_worker: Any) -> None:
    w = make_worker()
    model = nn.Sequential(net(seed=w.rank, norm=True), nn.Linear(2, 2).bfloat16())
    model[0](torch.randn(4, 3))
    mm.broadcast_parameters(model, w, root=w.size - 1)
    expected = nn.Sequential(net(seed=w.size - 1, norm=True), nn.Linear(2, 2).bfloat16())
    assert torch.equal(flat(model[0]), flat(expected[0]))
    assert torch.equal(flat(model[1]), flat(expected[1]))
    everyones = of_all(w, model[0][1].running_mean)
    assert torch.equal(everyones, everyones[:1].expand_as(everyones))
    table = {"a": torch.full((3,), w.rank), "b": torch.tensor(w.rank == 0)}
    mm.broadcast_parameters(table, w)
    assert table["a"].tolist() == [0, 0, 0]
    assert bool(table["b"])


def test_a_dedicated_server_has_no_loop_to_run(make_worker: Any) -> None:
    w = make_worker()
    with pytest.raises(ValueError, match=r"ranks \[0\] would only serve"):
        mm.DistributedOptimizer(net(), mm.AsyncServer(lr=LR, dedicated=True), w)


def accumulated(w: Any, model: nn.Module, sync_always: bool) -> int:
    """Three steps of two backward passes each; returns the bytes sent."""
    with mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=LR, mu=MU), w) as opt:
        before = w.traffic.nbytes
        for step in range(3):
            opt.zero_grad()
            with contextlib.nullcontext() if sync_always else opt.no_sync():
                x, y = data(w.rank, 2 * step)
                ((model(x) - y).square().mean() / 2).backward()
            x, y = data(w.rank, 2 * step + 1)
            ((model(x) - y).square().mean() / 2).backward()
            opt.step()
        return w.traffic.nbytes - before


def test_accumulation_gives_the_mean_of_all_passes_and_no_sync_saves_half(make_worker: Any) -> None:
    w = make_worker()
    model, other, single = net(), net(), net()
    sent = accumulated(w, model, sync_always=False)
    sent_always = accumulated(w, other, sync_always=True)
    assert sent_always == 2 * sent > 0
    sgd = torch.optim.SGD(single.parameters(), lr=LR, momentum=MU)
    for step in range(3):
        sgd.zero_grad()
        for r in range(w.size):
            for part in (2 * step, 2 * step + 1):
                x, y = data(r, part)
                ((single(x) - y).square().mean() / 2 / w.size).backward()
        sgd.step()
    torch.testing.assert_close(flat(model), flat(single), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flat(other), flat(single), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_parameter_that_one_rank_does_not_use_gets_the_others_gradient(
    set_to_none: bool, make_worker: Any
) -> None:
    w = make_worker()
    model = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))])
    with mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=1.0), w) as opt:
        (model if set_to_none else opt).zero_grad()
        used = [0, 1] if w.rank != 1 else [0]
        sum(model[i].sum() for i in used).backward()
        share = (w.size - 1) / w.size
        assert model[1].grad.tolist() == [share] * 3  # at once, as clipping needs it
        opt.step()
    assert model[0].tolist() == [0.0, 0.0]
    assert model[1].tolist() == [1 - share] * 3


def test_low_precision_gradients_are_averaged_in_float32(make_worker: Any) -> None:
    w = make_worker()
    model = nn.Linear(2, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.zero_()
    with mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=1.0), w) as opt:
        opt.zero_grad()
        model(torch.full((1, 2), float(w.rank), dtype=torch.bfloat16)).sum().backward()
        mean = (w.size - 1) / 2
        assert model.weight.grad.tolist() == [[mean, mean]]
        assert model.weight.grad.dtype == torch.bfloat16
        opt.step()
    assert model.weight.tolist() == [[-mean, -mean]]


def test_backward_passes_that_not_all_ranks_make_are_refused(make_worker: Any) -> None:
    """They would be averaged with another step's on the others, and the models drift apart."""
    w = make_worker()
    model = net()
    opt = mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=LR), w)
    go(model, opt, w.rank, 0, 2)
    for _ in range(w.rank):  # each rank another number: no count is that of all
        with opt.no_sync():
            backward(model, opt, w.rank, 9)  # not for the step, and said so
    go(model, opt, w.rank, 2, 4)
    if w.rank == 0:
        backward(model, opt, w.rank, 9)
    with pytest.raises(RuntimeError, match="backward passes have come apart"):
        go(model, opt, w.rank, 4, 6)
    opt.close()
