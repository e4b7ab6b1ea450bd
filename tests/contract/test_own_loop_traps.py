"""A loop of one's own: whatever users do between two steps, one rank is torch.optim.SGD.

Every trap is one loop, run twice: with ``torch.optim.SGD`` and with ``DistributedOptimizer``. In
one process the algorithms are plain momentum SGD, so that the weights must agree.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mpimomentum as mm
from mpimomentum.runtime.errors import BadInput

LR, MU, DECAY = 0.1, 0.9, 0.01
STEPS = 7

ALGORITHMS = {
    "allreduce-sgd": mm.AllReduceSGD(lr=LR, mu=MU),
    "ad-psgd": mm.ADPSGD(lr=LR, mu=MU),
    "async-server": mm.AsyncServer(lr=LR, mu=MU),
}
Make = Callable[..., torch.optim.Optimizer]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def batch(step: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(100 + step)
    return torch.randn(n, 1, 4, 4, generator=g), torch.randint(3, (n,), generator=g)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return cross_entropy(model(x), y)


def plain(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()


def zero_grad_of_the_model(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        model.zero_grad()  # sets None, so that backward makes fresh tensors
        loss_of(model, step).backward()
        opt.step()


def schedule(model: nn.Module, make: Make) -> None:
    opt = make(model)
    warm = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=3)
    then = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.1)
    both = torch.optim.lr_scheduler.SequentialLR(opt, [warm, then], [3])
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
        both.step()


def clipping(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(model, step).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05  # it clips
        opt.step()


def accumulation(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        opt.zero_grad()
        if hasattr(opt, "no_sync"):
            with opt.no_sync():
                (loss_of(model, 2 * step) / 2).backward()
        else:
            (loss_of(model, 2 * step) / 2).backward()
        (loss_of(model, 2 * step + 1) / 2).backward()
        opt.step()


def autocast(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(batch(step)[0]).dtype == torch.bfloat16
            loss = loss_of(model, step)
        loss.backward()
        opt.step()


def grad_scaler(model: nn.Module, make: Make) -> None:
    opt = make(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(STEPS):
        opt.zero_grad()
        loss = loss_of(model, step)
        scaler.scale(loss * float("inf") if step in (0, 3, 5) else loss).backward()
        scaler.step(opt)
        scaler.update()
    assert scaler.get_scale() != 2.0**10


def grad_scaler_with_clipping(model: nn.Module, make: Make) -> None:
    opt = make(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(STEPS):
        opt.zero_grad()
        scaler.scale(loss_of(model, step) * (float("inf") if step == 2 else 1)).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        scaler.step(opt)
        scaler.update()


def groups(model: nn.Module, make: Make) -> None:
    opt = make(
        model,
        [
            {"params": model[4].parameters(), "lr": 0.02, "weight_decay": 0.1},
            {"params": model[0].parameters()},
        ],
    )
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
        opt.param_groups[0]["lr"] *= 0.7


def tied(model: nn.Module, make: Make) -> None:
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(16) * 0.5)
    second.weight = first.weight
    model[0], model[1] = nn.Flatten(), nn.Sequential(first, nn.ReLU(), second)
    model[4] = nn.Linear(16, 3)
    with torch.no_grad():
        model[4].weight.fill_(0.1)
        model[4].bias.zero_()
    plain(model, make)


def frozen(model: nn.Module, make: Make) -> None:
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    plain(model, make)
    assert torch.equal(model[0].weight, before)


def channels_last(model: nn.Module, make: Make) -> None:
    model.to(memory_format=torch.channels_last)
    plain(model, make)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def closure(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):

        def evaluate(step: int = step) -> torch.Tensor:
            opt.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        assert opt.step(evaluate) > 0


def double(model: nn.Module, make: Make) -> None:
    model.double()
    opt = make(model)
    for step in range(STEPS):
        x, y = batch(step)
        opt.zero_grad()
        cross_entropy(model(x.double()), y).backward()
        opt.step()


def evaluation_between(model: nn.Module, make: Make) -> None:
    opt = make(model)
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
        if hasattr(opt, "consensus"):
            with opt.consensus() as average, torch.no_grad():
                model.eval()
                model(batch(50)[0])
                model.train()
            assert average.distance == 0


def compiled(model: nn.Module, make: Make) -> None:
    opt = make(model)
    fast = torch.compile(model, backend="aot_eager")
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(fast, step).backward()
        opt.step()


def compiled_before(model: nn.Module, make: Make) -> None:
    fast = torch.compile(model, backend="aot_eager")
    opt = make(fast)
    for step in range(STEPS):
        opt.zero_grad()
        loss_of(fast, step).backward()
        opt.step()


def state_dict(model: nn.Module, make: Make) -> None:
    """Three steps, saved; two more, forgotten; a reload, and the rest."""
    opt = make(model)

    def go(first: int, last: int) -> None:
        for step in range(first, last):
            opt.zero_grad()
            loss_of(model, step).backward()
            opt.step()

    go(0, 3)
    saved = {"model": model.state_dict(), "opt": opt.state_dict()}
    saved = {k: _copied(v) for k, v in saved.items()}
    go(30, 32)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    go(3, STEPS)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


TRAPS = [
    plain,
    zero_grad_of_the_model,
    schedule,
    clipping,
    accumulation,
    autocast,
    grad_scaler,
    grad_scaler_with_clipping,
    groups,
    tied,
    frozen,
    channels_last,
    closure,
    double,
    evaluation_between,
    compiled,
    compiled_before,
    state_dict,
]


# The server's momentum is Polyak's: each gradient keeps the lr with which it came. torch applies
# the present lr to the whole buffer, which is the same only while lr stands still.
CHANGE_LR = (schedule, groups)


@pytest.fixture
def driver() -> str:
    return "thread"


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_one_rank_is_plain_sgd(trap: Callable[..., None], algorithm: Any, make_worker: Any) -> None:
    if isinstance(algorithm, mm.AsyncServer) and trap in CHANGE_LR:
        algorithm = mm.AsyncServer(lr=LR)

    def sgd(model: nn.Module, params: Any = None) -> torch.optim.Optimizer:
        params = model.parameters() if params is None else params
        return torch.optim.SGD(params, lr=LR, momentum=algorithm.mu, weight_decay=DECAY)

    worker = make_worker()
    made = []

    def ours(model: nn.Module, params: Any = None) -> torch.optim.Optimizer:
        made.append(
            mm.DistributedOptimizer(
                model, algorithm, worker, param_groups=params, weight_decay=DECAY
            )
        )
        return made[-1]

    expected, model = net(), net()
    trap(expected, sgd)
    trap(model, ours)
    made[0].close()
    for (name, a), b in zip(
        expected.state_dict().items(), model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_bfloat16_parameters_follow_their_float32_masters(algorithm: Any, make_worker: Any) -> None:
    """Many steps too small for bfloat16 must add up: SGD on bfloat16 itself stands still."""
    model = nn.Linear(4, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    with mm.DistributedOptimizer(model, type(algorithm)(lr=1e-3), make_worker()) as opt:
        for _ in range(100):
            opt.zero_grad()
            model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
            opt.step()
    torch.testing.assert_close(model.weight.float(), torch.full((1, 4), 0.9), rtol=0, atol=4e-3)


def test_a_scheduler_that_wants_a_momentum_key_is_told(make_worker: Any) -> None:
    opt = mm.DistributedOptimizer(net(), mm.AllReduceSGD(lr=LR), make_worker())
    with pytest.raises(ValueError, match="momentum"):
        torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10)
    torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10, cycle_momentum=False)


# -- what would be lost silently, and is refused ---------------------------------------------------


def one_step(model: nn.Module, opt: Any, step: int = 0) -> None:
    opt.zero_grad()
    loss_of(model, step).backward()
    opt.step()


@pytest.fixture
def optimizer(make_worker: Any) -> Any:
    return mm.DistributedOptimizer(net(), mm.ADPSGD(lr=LR, mu=MU), make_worker())


def test_a_reload_needs_publish_and_then_counts(optimizer: Any) -> None:
    model, other = optimizer._model, net(seed=1)
    one_step(model, optimizer)
    model.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r"'0\.weight' was changed .* call publish\(\)"):
        one_step(model, optimizer)
    optimizer.publish()
    sgd = torch.optim.SGD(other.parameters(), lr=LR, momentum=MU)
    model.load_state_dict(other.state_dict())  # the failed step moved BatchNorm's statistics
    optimizer.publish()
    for step in range(3):
        one_step(other, sgd, step)
        one_step(model, optimizer, step)
    torch.testing.assert_close(model[4].weight, other[4].weight)


def test_an_unfrozen_parameter_needs_publish_and_is_then_trained(make_worker: Any) -> None:
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    opt = mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=LR), make_worker())
    one_step(model, opt)
    model[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"'0\.weight' was unfrozen.*publish"):
        one_step(model, opt)
    opt.publish()
    one_step(model, opt)
    assert not torch.equal(model[0].weight, before)
    assert opt._worker.step == 2


def test_a_group_added_later_is_trained(make_worker: Any) -> None:
    model = net()
    before = model[0].weight.clone()
    opt = mm.DistributedOptimizer(
        model, mm.AllReduceSGD(lr=LR), make_worker(), param_groups=model[4].parameters()
    )
    one_step(model, opt)
    assert torch.equal(model[0].weight, before)
    opt.add_param_group({"params": model[0].parameters(), "lr": 0.5 * LR})
    one_step(model, opt)
    assert not torch.equal(model[0].weight, before)


def test_training_on_the_average_by_mistake_is_refused(optimizer: Any) -> None:
    model = optimizer._model
    one_step(model, optimizer)
    optimizer.consensus()
    with pytest.raises(RuntimeError, match=r"with optimizer\.consensus\(\)"):
        one_step(model, optimizer)
    optimizer.publish()
    one_step(model, optimizer)


def test_a_failing_algorithm_reaches_the_loop(make_worker: Any) -> None:
    class Failing(mm.ADPSGD):
        async def step(self, w: Any, s: Any) -> None:
            await super().step(w, s)
            if w.step == 2:
                raise ArithmeticError("the third step failed")

    model = net()
    opt = mm.DistributedOptimizer(model, Failing(lr=LR), make_worker())
    one_step(model, opt)
    one_step(model, opt)
    with pytest.raises(ArithmeticError, match="the third step failed"):
        one_step(model, opt)
    with pytest.raises(ArithmeticError, match="the third step failed"):
        one_step(model, opt)
    opt._worker.closing.clear()


class TwoGradients(mm.AllReduceSGD):
    """Asks for a second gradient on the same mini-batch: extragradient."""

    async def step(self, w: Any, s: Any) -> None:
        sample = w.sample()
        middle = s.x - w.lr * (await w.gradient(s.x, sample))
        s.x.sub_(w.lr * (await w.gradient(middle, sample)))


def test_two_gradients_on_one_batch_need_a_closure(make_worker: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)

    def loss() -> torch.Tensor:
        opt.zero_grad()
        value = model.weight.square().sum() / 2
        value.backward()
        return value

    with mm.DistributedOptimizer(model, TwoGradients(lr=0.5), make_worker()) as opt:
        assert float(opt.step(loss).detach()) == 0.5  # of the first call
    assert float(model.weight.detach()) == 0.75  # 1 - .5 * (1 - .5 * 1)
    with mm.DistributedOptimizer(model, TwoGradients(lr=0.5), opt._worker) as opt:
        loss()
        with pytest.raises(RuntimeError, match=r"optimizer\.step\(closure\)"):
            opt.step()


KATYUSHA = mm.KatyushaX(lr=0.1, inner_steps=3)


def test_modules_that_are_off_are_not_in_the_way(make_worker: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Dropout(0.0))
    model.eval()
    with mm.DistributedOptimizer(model, KATYUSHA, make_worker(), full_closure=lambda: None):
        pass


def test_a_full_gradient_is_the_full_closures(make_worker: Any) -> None:
    class FullThenOne(mm.AllReduceSGD):
        async def step(self, w: Any, s: Any) -> None:
            full = (await w.full_gradient(s.x)).clone()
            s.x.sub_(w.lr * (full - (await w.gradient(s.x, w.sample()))))

    def one() -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        return model

    def loss(scale: float) -> Any:
        opt.zero_grad()
        value = scale * model.weight.sum()
        value.backward()
        return value

    model, worker = one(), make_worker()
    with (
        mm.DistributedOptimizer(model, FullThenOne(lr=0.5), worker) as opt,
        pytest.raises(RuntimeError, match="full_closure="),
    ):
        opt.step(lambda: loss(1.0))
    model = one()
    options = {"full_closure": lambda: loss(3.0)}
    with mm.DistributedOptimizer(model, FullThenOne(lr=0.5), worker, **options) as opt:
        assert float(opt.step(lambda: loss(1.0)).detach()) == 1.0  # of the mini-batch
        with pytest.raises(RuntimeError, match=r"optimizer\.step\(closure\)"):
            opt.step()
    assert float(model.weight.detach()) == 0.0  # 1 - .5 * (3 - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: mm.DistributedOptimizer(net(), KATYUSHA, w), "give full_closure="),
        (lambda w: mm.DistributedOptimizer(net(), KATYUSHA, w, full_closure=3), "function is need"),
        (
            lambda w: mm.DistributedOptimizer(net(), KATYUSHA, w, full_closure=lambda: None),
            r"BatchNorm2d \(1\), what a sample adds",
        ),
        (
            lambda w: mm.DistributedOptimizer(
                nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)),
                KATYUSHA,
                w,
                full_closure=lambda: None,
            ),
            r"Dropout \(1\), two gradients at one point differ",
        ),
        (lambda w: mm.DistributedOptimizer("net", mm.ADPSGD(lr=0.1), w), "torch.nn.Module is need"),
        (lambda w: mm.DistributedOptimizer(net(), mm.ADPSGD, w), "an algorithm object is needed"),
        (
            lambda w: mm.DistributedOptimizer(nn.DataParallel(net()), mm.ADPSGD(lr=0.1), w),
            "pass model.module",
        ),
        (
            lambda w: mm.DistributedOptimizer(
                net(), mm.ADPSGD(lr=0.1), w, param_groups=net().parameters()
            ),
            "not the model's",
        ),
        (
            lambda w: mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1), w, weight_decay=-1),
            "weight_decay=-1",
        ),
        (
            lambda w: mm.DistributedOptimizer(nn.ReLU(), mm.ADPSGD(lr=0.1), w),
            "no trainable parameter",
        ),
    ],
)
def test_wrong_construction_is_refused(make: Any, message: str, make_worker: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make(make_worker())


def test_a_second_optimizer_is_refused_while_the_first_is_open(make_worker: Any) -> None:
    worker = make_worker()
    first = mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1), worker)
    with pytest.raises(ValueError, match=r"close\(\) that one first"):
        mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1), worker)
    first.close()
    first.close()
    mm.DistributedOptimizer(net(), mm.ADPSGD(lr=0.1), worker).close()
    with pytest.raises(RuntimeError, match="this optimizer is closed"):
        one_step(first._model, first)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algorithm", "d-psgd", "algorithm 'd-psgd'"),
        ("size", 4, "size 4"),
        ("dim", 3, "dim 3"),
        ("parameters", {"mu": 0.1}, "parameters"),
    ],
)
def test_a_state_dict_of_something_else_is_refused(
    key: str, value: Any, message: str, optimizer: Any
) -> None:
    saved = optimizer.state_dict()
    saved["mpimomentum"][key] = value
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match="not of a DistributedOptimizer"):
        optimizer.load_state_dict(torch.optim.SGD(net().parameters(), lr=0.1).state_dict())


def test_a_state_dict_is_read_without_pickled_code(optimizer: Any, tmp_path: Any) -> None:
    one_step(optimizer._model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer.load_state_dict(read)
    assert optimizer._worker.step == 1


def test_staleness_and_records_are_at_hand(optimizer: Any) -> None:
    for step in range(3):
        one_step(optimizer._model, optimizer, step)
    assert optimizer.staleness["histogram"] == {"0": 3}
    assert [r["step"] for r in optimizer.records] == [0, 1, 2]


def test_a_run_is_refused_while_an_optimizer_is_open(optimizer: Any) -> None:
    """It would take the gradients over, and the next step() would never return."""

    def objective(rank: int, size: int) -> mm.Quadratic:
        return mm.Quadratic(b=torch.zeros(2))

    with pytest.raises(ValueError, match=r"close\(\) that one first"):
        mm.run(mm.ADPSGD(lr=LR), objective, steps=1, worker=optimizer._worker)
    one_step(optimizer._model, optimizer)
    assert optimizer._worker.step == 1
    optimizer.close()
    assert mm.run(mm.ADPSGD(lr=LR), objective, steps=3, worker=optimizer._worker).updates == [3]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": -0.1}, "group 0 has lr=-0.1"),
        ({"lr": float("nan")}, "group 0 has lr=nan"),
        ({"weight_decay": -1.0}, r"group 0 has weight_decay=-1\.0"),
        ({"momentum": 0.5}, "'momentum', which would do nothing"),
        ({"maximize": True}, "'maximize', which would do nothing"),
    ],
)
def test_an_option_of_a_group_that_would_do_nothing_is_refused(
    group: dict[str, Any], message: str, make_worker: Any
) -> None:
    model, worker = net(), make_worker()
    first = [{"params": model[4].parameters(), **group}]
    with pytest.raises(ValueError, match=message):
        mm.DistributedOptimizer(model, mm.ADPSGD(lr=LR), worker, param_groups=first)
    rest = mm.DistributedOptimizer(
        model, mm.ADPSGD(lr=LR), worker, param_groups=model[0].parameters()
    )
    with pytest.raises(ValueError, match=message):
        rest.add_param_group(first[0])
    assert len(rest.param_groups) == 1
    one_step(model, rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_write_through_data_is_seen_at_the_second_step(dtype: Any, make_worker: Any) -> None:
    """The weight clipping of Wasserstein GANs, which autograd does not see."""
    model = nn.Linear(4, 1).to(dtype)
    opt = mm.DistributedOptimizer(model, mm.AllReduceSGD(lr=LR), make_worker())

    def step() -> None:
        opt.zero_grad()
        model(torch.ones(1, 4, dtype=dtype)).sum().backward()
        opt.step()

    step()
    model.weight.data.clamp_(-0.01, 0.01)
    with pytest.raises(RuntimeError, match=r"written to through \.data"):
        step()
    opt.publish()
    assert model.weight.abs().max() < 0.011
    for _ in range(70):  # beyond the next look; nothing is taken for a write that is none
        with opt.consensus():
            pass
        step()
    opt.close()
    model.weight.data.zero_()  # the user's again
    opt.consensus()
    assert not model.weight.any()


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64])
def test_a_change_of_type_is_refused(other: Any, optimizer: Any) -> None:
    one_step(optimizer._model, optimizer)
    optimizer._model.to(other)
    with pytest.raises(RuntimeError, match=r"'0\.weight' was given other memory"):
        optimizer.zero_grad()


def test_a_copy_is_refused(optimizer: Any) -> None:
    """It would have groups and no run behind them."""
    with pytest.raises(TypeError, match=r"save its state_dict\(\)"):
        copy.deepcopy(optimizer)
    with pytest.raises(TypeError, match=r"save its state_dict\(\)"):
        pickle.dumps(optimizer)


def test_a_model_that_is_not_where_the_vectors_are_is_refused() -> None:
    with mm.init() as worker, pytest.raises(BadInput) as refused:
        mm.DistributedOptimizer(nn.Linear(2, 1, device="meta"), mm.ADPSGD(lr=0.1), worker)
    for word in ("the model is on meta", "on cpu", "mm.init(device='cuda')", "model.to("):
        assert word in str(refused.value)
