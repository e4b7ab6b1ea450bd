"""NaN and infinity are kept from the others, on the virtual clock; tests/mpi has them on ranks."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

import mpimomentum as mm
from mpimomentum.non_finite import IN_A_ROW, Guard, NonFinite, finite
from mpimomentum.runtime import trainer
from mpimomentum.runtime.config import Length, Method, Output, SimulateConfig
from mpimomentum.runtime.errors import RunFailed
from mpimomentum.runtime.finite_sum import needs_finite_sum
from mpimomentum.runtime.guarded import Guarded
from mpimomentum.runtime.job import Job
from tests.contract.test_algorithms import TABLE, graph_of
from tests.spoilt import Numbered, bad_batches

SIZE, SICK, SEED = 4, 1, 5
WITHOUT = {name: a for name, a in TABLE.items() if not needs_finite_sum(a)}
NAN = float("nan")


def run(algorithm: Any, objective: Any, **options: Any) -> mm.Run:
    options = {"steps": 25, "seed": 3, "non_finite": "skip"} | options
    graph = graph_of(algorithm, SIZE)
    return mm.simulate(algorithm, objective, SIZE, topology=graph, **options)


@pytest.mark.parametrize("algorithm", WITHOUT.values(), ids=WITHOUT)
def test_a_batch_left_out_is_as_one_that_was_never_there(algorithm: Any) -> None:
    def models_of(without: bool) -> tuple[mm.Run, list[Any], list[Numbered]]:
        seen: list[Any] = []
        made = []

        def objective(index: int, size: int) -> Numbered:
            made.append(Numbered(index, bad_batches(SEED, index), without))
            return made[-1]

        def observe(w: Any, s: Any) -> None:
            seen.append((w.rank, s.x.clone() if isinstance(s.x, torch.Tensor) else s.x.read()))

        return run(algorithm, objective, observe=observe), seen, made

    (skipped, seen, (_, sick, *_)), (clean, wanted, _) = models_of(False), models_of(True)
    assert all(x.isfinite().all() for _, x in seen)
    assert [r for r, _ in seen] == [r for r, _ in wanted]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(seen, wanted, strict=True))
    assert torch.equal(skipped.x, clean.x)
    met = len(set(sick.answered) & bad_batches(SEED, SICK).keys())
    assert met > 0
    assert sum(t.bad_gradients for t in skipped.tallies) == met
    assert sum("bad_gradient" in r for r in skipped.records) == met
    assert not any(t.bad_gradients or t.bad_models for t in clean.tallies)


@pytest.mark.parametrize("algorithm", TABLE.values(), ids=TABLE)
def test_nothing_is_looked_at_or_changed_where_all_is_finite(algorithm: Any) -> None:
    from tests.contract.test_algorithms import scattered

    plain = run(algorithm, scattered, non_finite="ignore")
    looked = run(algorithm, scattered, non_finite="abort")
    assert torch.equal(plain.x, looked.x)
    assert plain.records == looked.records


@pytest.mark.parametrize("name", ["ad-psgd lockfree", "allreduce-sgd", "async-server", "sgp"])
def test_abort_names_rank_step_and_remedy(name: str) -> None:
    with pytest.raises(NonFinite) as failed:
        run(WITHOUT[name], lambda r, n: Numbered(r, {7: NAN} if r == 2 else {}), non_finite="abort")
    assert re.search(r"rank 2: the gradient is not finite, at step 7, with lr=", str(failed.value))
    assert "non-finite=skip" in str(failed.value)


def test_a_model_without_a_finite_gradient_is_given_up() -> None:
    bad = dict.fromkeys(range(7, 100), NAN)
    with pytest.raises(NonFinite, match=rf"rank 1: .*as were the {IN_A_ROW - 1} before.*step 7"):
        run(mm.DPSGD(lr=0.05), lambda r, n: Numbered(r, bad if r == SICK else {}))


def test_bad_batches_between_good_ones_are_left_out_however_many() -> None:
    bad = dict.fromkeys(range(0, 60, 2), NAN)
    made = run(mm.DPSGD(lr=0.05), lambda r, n: Numbered(r, bad if r == SICK else {}))
    assert [t.bad_gradients for t in made.tallies] == [0, 25, 0, 0]
    assert made.tallies[SICK].bad_gradients > IN_A_ROW


@pytest.mark.parametrize("what", [NAN, float("inf")])
@pytest.mark.parametrize("at", [3, 11])
def test_a_spoilt_model_is_replaced_before_any_other_rank_has_part_of_it(
    what: float, at: int
) -> None:
    others: list[torch.Tensor] = []

    def observe(w: Any, s: Any) -> None:
        if w.rank == SICK and w.step == at:
            for x, _ in s.x.writing():
                x[2] = what
        elif w.rank != SICK:
            others.append(s.x.read())

    made = run(mm.ADPSGD(lr=0.05, mu=0.5), lambda r, n: Numbered(r, {}), observe=observe, steps=60)
    assert all(x.isfinite().all() for x in others)
    assert made.x.isfinite().all()
    models = [t.bad_models for t in made.tallies]
    assert sum(models) >= 1
    assert {r["bad_model"] for r in made.records if "bad_model" in r} == {SICK}
    assert sum(models) == sum("bad_model" in r for r in made.records)
    wanted = torch.linspace(-1, 1, 6).double() + 0.3 * torch.arange(4.0).cos().mean()
    assert (made.mean - wanted).norm() < 0.3 < (torch.full_like(wanted, 5.0) - wanted).norm()


def test_only_what_is_finite_is_sent() -> None:
    def spoil(w: Any, s: Any) -> None:
        if w.rank == SICK and w.step == 4:
            s.x[0] = NAN

    for algorithm in (mm.DPSGD(lr=0.1), mm.LocalMomentum(0.1, 0.5, 1), mm.SGP(lr=0.1)):
        with pytest.raises(NonFinite, match=r"rank 1: what this rank (sends|brings)"):
            run(algorithm, lambda r, n: Numbered(r, {}), observe=spoil)


def test_what_a_rank_adds_to_its_own_center_is_looked_at_too() -> None:
    others: list[torch.Tensor] = []

    def spoil(w: Any, s: Any) -> None:
        if w.rank == 0 and w.step == 4:
            s.x[0] = NAN
        elif w.rank != 0:
            others.append(s.x.clone())

    algorithm = TABLE["elastic-averaging local steps"]
    with pytest.raises(NonFinite, match="rank 0: what is added to window 'center' of rank 0"):
        run(algorithm, lambda r, n: Numbered(r, {}), observe=spoil)
    assert all(x.isfinite().all() for x in others)


def test_a_gradient_in_parts_is_not_reported_with_the_loss_before_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    x[4:] = NAN
    f = mm.TorchObjective(
        torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, x, torch.randn(8, 2), batch_size=4
    )

    class Rank:
        rank, step, lr = 0, 1, 0.1

    guarded = Guarded(f, Guard(Rank(), "abort"))
    guarded.gradient_in_parts(f.initial(), torch.arange(4), lambda part: None)
    with pytest.raises(NonFinite, match="the gradient is not finite, at step 1"):
        guarded.gradient_in_parts(f.initial(), torch.arange(4, 8), lambda part: None)
    with pytest.raises(NonFinite, match="training loss nan"):
        guarded.gradient(f.initial(), torch.arange(4, 8))


def test_chosen_samples_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="non_finite=skip: katyusha-x chooses the samples"):
        run(TABLE["katyusha-x"], lambda r, n: Numbered(r, {}))
    with pytest.raises(ValueError, match="non_finite='maybe' must be one of abort, skip, ignore"):
        run(mm.DPSGD(lr=0.1), lambda r, n: Numbered(r, {}), non_finite="maybe")


def test_running_statistics_forget_a_batch_that_was_left_out() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    x = torch.randn(12, 3)
    x[:4] = NAN
    objective = mm.TorchObjective(
        model, torch.nn.functional.mse_loss, x, torch.randn(12, 4), batch_size=4
    )

    class Rank:
        rank, step, lr = 0, 0, 0.1

    guard = Guard(Rank(), "skip")
    guarded = Guarded(objective, guard)

    class InOrder:
        def permutation(self, n: int) -> Any:
            return torch.arange(n).numpy()

    g = guarded.gradient(objective.initial(), guarded.sample(InOrder()))  # type: ignore[arg-type]
    assert finite(g)
    assert finite(objective.statistics())
    found: list[dict[str, float]] = []
    guard.report(lambda **row: found.append(row))
    assert found == [{"bad_gradient": 1}]


def test_finite_numbers_that_add_up_to_infinity_are_finite() -> None:
    assert finite(torch.full((4,), 3e38))
    assert not finite(torch.tensor([1.0, NAN]))
    assert not finite(torch.tensor([float("inf"), -float("inf")]))
    assert finite(torch.tensor([1, 2]))
    assert finite(torch.empty(0))


class _SickData:
    """Job.objective, with a sample in it that is not a number."""

    def __init__(self) -> None:
        self._make = Job.objective

    def __call__(self, job: Job, index: int, workers: int) -> Any:
        objective = self._make(job, index, workers)
        if index == SICK:
            gradient = objective.gradient
            first = int(objective._data._part[0])

            def spoilt(x: Any, batch: Any) -> Any:
                g = gradient(x, batch)
                if first in objective._data._part[batch]:
                    g[3] = NAN
                return g

            objective.gradient = spoilt
        return objective


@pytest.mark.parametrize("policy", ["skip", "abort"])
def test_the_command_counts_what_it_left_out(monkeypatch: Any, tmp_path: Any, policy: Any) -> None:
    sick = _SickData()
    monkeypatch.setattr(Job, "objective", lambda self, i, n: sick(self, i, n))
    config = SimulateConfig(
        method=Method("d-psgd"),
        length=Length(epochs=3),
        output=Output(out=tmp_path / "o", progress="off"),
        non_finite=policy,
    )
    if policy == "abort":
        with pytest.raises(RunFailed, match=r"rank 1: the gradient is not finite \(training loss"):
            trainer.simulate(config)
        return
    summary, path = trainer.simulate(config)
    assert summary["quarantined"] == {"gradients": [0, 3, 0, 0], "models": [0, 0, 0, 0]}
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [r["rank"] for r in rows if "bad_gradient" in r] == [SICK] * 3
