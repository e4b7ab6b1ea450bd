"""The frame of the studies: what is kept, what is refuted, what is left behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from mpimomentum import data
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.studies import (
    classifying,
    commands,
    measuring,
    overview,
    registry,
    staleness_weights,
    weighted_server,
)
from mpimomentum.studies.study import (
    Conclusion,
    Criterion,
    Mean,
    Plan,
    Results,
    Table,
    largest,
    ratio,
    smallest,
)
from mpimomentum.studies.study import key as key_of


class Doubles:
    """Whether doubling doubles."""

    question = "Does doubling double?"

    def __init__(self, wanted=2.0):
        self.wanted = wanted

    def cases(self, plan):
        return [{"x": x, "seed": seed} for seed in plan.each_seed() for x in (1.0, 3.0)]

    def measure(self, *, x, seed):
        return {"y": 2 * x + 0.1 * seed}

    def conclude(self, results, plan):
        ratio = results.where(x=3.0).mean("y").mean / results.where(x=1.0).mean("y").mean
        rows = [(x, results.where(x=x).mean("y")) for x in (1.0, 3.0)]
        figure = Figure()
        figure.subplots().plot([1, 3], [y.mean for _, y in rows])
        criterion = Criterion("y of 3 over y of 1", ratio, high=self.wanted)
        return Conclusion("A line.", [Table("y", ("x", "y"), rows)], [criterion], figure)


@pytest.fixture
def asked(monkeypatch):
    """Cases that were measured, one by one in this process; measuring the third fails if told."""
    found = []

    def one(name, cases):
        for case in cases:
            found.append(case)
            yield case, registry.load(name).measure(**case)

    monkeypatch.setattr(measuring, "_measure", one)
    monkeypatch.setattr(registry, "load", lambda name: Doubles(3.5))
    monkeypatch.setattr(registry, "STUDIES", ("doubles",))
    return found


def lines(path):
    return (path / measuring.KEPT).read_text().splitlines()


def test_what_was_measured_is_not_measured_again(tmp_path, asked):
    cases = Doubles().cases(Plan(seeds=2))
    measuring.measured("doubles", cases[:3], tmp_path)
    assert asked == cases[:3]
    with (tmp_path / measuring.KEPT).open("a") as file:
        file.write('{"case": {"x": 3.0, "se')  # killed while it wrote
    results = measuring.measured("doubles", cases, tmp_path)
    assert asked == cases
    assert results.values("y") == [2.0, 6.0, 2.1, 6.1]
    measuring.measured("doubles", cases, tmp_path)  # what came after the torn line is kept, too
    assert asked == cases
    assert [json.loads(line)["case"] for line in lines(tmp_path)] == cases


def test_cases_of_another_version_are_said_to_be(tmp_path, asked, monkeypatch):
    cases = Doubles().cases(Plan(seeds=2))
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "made_by", lambda: "mpimomentum 0.0.1")
        assert measuring.measured("doubles", cases[:2], tmp_path).remarks == []
    with (tmp_path / measuring.KEPT).open("a") as file:  # before lines had a version
        file.write(json.dumps({"study": "doubles", "case": cases[2], "figures": {"y": 2.1}}) + "\n")
    commands.study("doubles", out=tmp_path, seeds=2)
    remarks = json.loads((tmp_path / "result.json").read_text())["remarks"]
    assert [remark.split(", and")[0] for remark in remarks] == [
        "1 of 4 cases were measured before, by an earlier mpimomentum",
        "2 of 4 cases were measured before, by mpimomentum 0.0.1",
    ]
    assert "made_by" in json.loads(lines(tmp_path)[-1])


def test_the_page_shows_a_single_repetition_as_the_terminal_does(tmp_path, asked):
    commands.study("all", out=tmp_path, seeds=1)
    page = (tmp_path / overview.PAGE).read_text()
    assert ">2</td>" in page
    assert "±" not in page


def test_a_file_that_no_study_wrote_is_refused(tmp_path, asked):
    (tmp_path / measuring.KEPT).write_text("mine\n")
    with pytest.raises(BadInput, match="is not what a study has written"):
        measuring.measured("doubles", [{"x": 1.0, "seed": 0}], tmp_path)
    assert lines(tmp_path) == ["mine"]


def test_the_cases_of_another_study_are_not_taken(tmp_path, asked):
    cases = [{"x": 1.0, "seed": 0}]
    measuring.measured("doubles", cases, tmp_path)
    with pytest.raises(BadInput, match="of the study doubles, not triples: give another --out"):
        measuring.measured("triples", cases, tmp_path)
    assert asked == cases


def test_cases_are_measured_by_processes_and_a_failure_is_named(tmp_path):
    study = registry.load("streaming-pca")
    small = {"lr": 5e-4, "tau": 1, "chains": 2, "updates": 6}
    cases = [{"mu": mu, **small, "seed": 0} for mu in (0.5, 0.7, 2.0)]
    with pytest.raises(RunFailed, match=r'study streaming-pca, case .*"mu": 2.0.*mu=2'):
        measuring.measured("streaming-pca", cases, tmp_path)
    results = measuring.measured("streaming-pca", cases[:2], tmp_path)
    assert results.values("error") == [study.measure(**case)["error"] for case in cases[:2]]


KILLED = """
import multiprocessing, os, signal
from mpimomentum.studies import measuring

def measure():
    measuring._start()
    signal.pause()

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=measure).start()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_of_a_study_that_was_killed_end_too(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    killed = subprocess.Popen(
        [sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        killed.communicate(timeout=120)  # its process has the pipe: no end while that lives
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("stragglers", {"ranks"}),
        ("momentum-vs-asynchrony", {"ranks"}),
        ("replay", {"ranks"}),
        ("scaling", {"calibration", "ranks"}),
    ],
)
def test_what_is_measured_alone_comes_last_in_one_process(monkeypatch, name, real):
    began = []

    def in_processes(name, cases, most):
        began.append((cases, most))
        return iter(())

    monkeypatch.setattr(measuring, "_in_processes", in_processes)
    cases = registry.load(name).cases(Plan(quick=True, seeds=1, mpi=True))
    list(measuring._measure(name, cases[::-1]))
    (others, _), (alone, most) = began
    assert most == 1
    assert {case["on"] for case in alone} == real
    assert {case["on"] for case in others}.isdisjoint(real)
    assert len(others) + len(alone) == len(cases)
    began.clear()
    list(measuring._measure("katyusha-x", cases))  # says nothing about it
    assert [len(c) for c, _ in began] == [len(cases), 0]


def test_files_and_exit_code(tmp_path, asked, capsys):
    commands.study("doubles", out=tmp_path / "new", seeds=2, first_seed=4)
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert result["passed"] is True
    assert result["seeds"] == [4, 5]
    assert result["acceptance"][0]["value"] == pytest.approx(6.45 / 2.45)
    assert result["tables"][0]["rows"][0][1] == {
        "mean": pytest.approx(2.45), "sd": pytest.approx(0.05 * math.sqrt(2)), "count": 2,
    }  # fmt: skip
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "holds" in capsys.readouterr().out


def test_what_is_refuted_is_said(tmp_path, asked, monkeypatch, capsys):
    monkeypatch.setattr(registry, "load", lambda name: Doubles(2.0))  # three times is not twice
    with pytest.raises(SystemExit) as end:
        commands.study("all", out=tmp_path)
    assert end.value.code == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out
    page = (tmp_path / overview.PAGE).read_text()
    assert "does not hold" in page
    assert "data:image/svg+xml;base64," in page
    assert 'src="http' not in page


def test_an_unknown_study_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(BadInput, match="study 'pca': choose of streaming-pca"):
        commands.study("pca", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", registry.STUDIES)
def test_every_study_says_what_it_is_about(name):
    study = registry.load(name)
    text = registry.about(name)
    assert study.question.endswith("?")
    for word in ("**Claim**", "**Measured**", "**Refuted**"):
        assert word in text
    for plan in (Plan(), Plan(quick=True), Plan(first_seed=7, seeds=1)):
        cases = study.cases(plan)
        assert len({key_of(case) for case in cases}) == len(cases)
        assert {case["seed"] for case in cases} == set(plan.each_seed())
        assert json.loads(json.dumps(cases)) == [dict(case) for case in cases]


def test_a_mean_is_with_its_deviation():
    assert Mean.of([1, 2, 3]) == Mean(2.0, 1.0, 3)
    assert Mean.of([4.0]) == Mean(4.0, 0.0, 1)
    assert str(Mean.of([1, 2, 3])) == "2 ± 1"
    assert str(Mean.of([1.0, math.inf])) == "inf"  # one never came to it
    assert Mean.of([1.0, math.inf]).mean == math.inf
    assert math.isnan(Mean.of([1.0, math.nan]).mean)


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [(1, 1, 2, True), (2, 1, 2, True), (2.1, 1, 2, False), (0.9, 1, 2, False)],
)
def test_a_criterion_holds_within_its_bounds(value, low, high, passed):
    assert Criterion("", value, low, high).passed is passed


def test_what_is_no_number_passes_no_criterion():
    assert not Criterion("", math.nan).passed
    assert not Criterion("", math.inf, low=1.0).passed
    assert Criterion("", math.inf, low=1.0, endless=True).passed
    assert not Criterion("", math.nan, low=1.0, endless=True).passed


def test_extremes_pass_over_nothing():
    for values in ([1.0, math.nan], [math.nan, 1.0]):
        assert math.isnan(smallest(values))
        assert math.isnan(largest(values))
    assert smallest([2.0, 1.0, math.inf]) == 1.0
    assert largest(v for v in (2.0, 3.0, -math.inf)) == 3.0


def test_a_ratio_to_what_never_came_is_none():
    one, never = Mean.of([2.0]), Mean.of([math.inf])
    assert ratio(one, Mean.of([4.0])) == 0.5
    assert all(math.isnan(ratio(*pair)) for pair in ((one, never), (never, one), (never, never)))


def came_to_nothing(name, case):
    """Return figures of a run whose baseline never reached what it was to reach."""
    if name == "linear-speedup":
        alone = case["workers"] == 1
        return {"steps": math.inf if alone else 100.0, "floor": 5e-4 if alone else math.nan}
    if name == "katyusha-x":
        alone = case["workers"] == 1
        epochs = math.inf if case["method"] == "SVRG" else 10.0
        return {"epochs": epochs, "gradients": math.inf if alone else 10.0}
    if name == "staleness-weights":
        toy = {"rates": [0.4] * 12, "from_closed_form": 1.0}
        server = {"accuracy": 10.0 if case.get("weights") == "no weights" else 95.0}
        return toy | server | {"mean_weight": 1.0, "staleness": 7.0, "staleness_p99": 30.0}
    losses = [0.1 if case["method"] == "Signum" else 1.0] * 40
    return {
        "losses": losses,
        "bytes_per_step": 1e3,
        "accuracy": 90.0,
        "loss": losses[-1],
        "slope": 1.0,
    }


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("linear-speedup", [False] * 5),
        ("katyusha-x", [False, True, False, False]),  # the second is of Katyusha X alone
        # no μ trains without weights; the toy's rates are nothing's, but below gradient descent's
        ("staleness-weights", [False, False, False, True, False, True]),
        ("majority-vote", [False, True, True, False]),  # only the first is against another
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_claim_holds_against_a_baseline_that_came_to_nothing(name, passed):
    plan = Plan(quick=True, seeds=1)
    study = registry.load(name)
    found = [(case, came_to_nothing(name, case)) for case in study.cases(plan)]
    criteria = study.conclude(Results(found), plan).criteria
    assert [c.passed for c in criteria] == passed


@pytest.mark.parametrize("weights", ["e^(−τ/10)", "1/(1 + τ)"])
def test_the_same_mean_step_is_the_mean_of_the_weighted_steps(weights):
    case = {"mu": 0.5, "slow": 16, "updates": 60, "seed": 3}
    figures = weighted_server.trained(same="mean step", weights=weights, **case)
    assert 1.2 < figures["lr"] / weighted_server.LR < 5
    assert figures["lr"] * figures["mean_weight"] == pytest.approx(weighted_server.LR, rel=1e-12)
    assert weighted_server.trained(same="step", weights=weights, **case)["lr"] == weighted_server.LR


def test_without_fashion_mnist_its_part_is_left_out_and_said_to_be(monkeypatch, tmp_path):
    def load(name):
        return data.load(name, tmp_path)  # an empty folder

    monkeypatch.setattr(classifying, "_read", load)
    study, plan = registry.load("momentum-vs-asynchrony"), Plan(seeds=1)
    cases = study.cases(plan)
    assert {case["task"] for case in cases} == {"digits"}
    found = [(case, {"accuracy": 90.0, "staleness": 1.0}) for case in cases]
    conclusion = study.conclude(Results(found), plan)
    assert "apt-get install dataset-fashion-mnist" in conclusion.remarks[-1]
    assert conclusion.tables[-1].columns == ("left out",)
    assert not any("LeNet" in c.what for c in conclusion.criteria)


@pytest.mark.parametrize(("of_all", "passed"), [(0.4, False), (0.9, True), (1.1, False)])
def test_ranks_whose_staleness_is_not_that_of_as_many_workers_do_not_pass(of_all, passed):
    study, plan = registry.load("momentum-vs-asynchrony"), Plan(quick=True, seeds=1, mpi=True)
    found = [
        (case, {"accuracy": 90.0, "staleness": case["tau"] * (of_all if case["tau"] == 3 else 1)})
        for case in study.cases(plan)
    ]
    criteria = study.conclude(Results(found), plan).criteria
    of_ranks = [c for c in criteria if c.what.startswith("real ranks")]
    assert len(of_ranks) == 2
    assert all(c.passed for c in of_ranks) is passed


def test_a_toy_that_loses_and_wins_again_loses_from_no_age_on():
    loses = staleness_weights._loses
    assert loses({"rates": [0.4] * 2 + [0.6] * 10}) == 3
    assert math.isnan(loses({"rates": [0.4] * 2 + [0.6] * 9 + [0.4]}))
    assert math.isnan(loses({"rates": [0.4] * 12}))


def test_results_are_chosen_by_their_case():
    results = Results([({"a": 1, "b": 2}, {"y": 1}), ({"a": 1, "b": 3}, {"y": 2})])
    assert results.where(a=1, b=3).values("y") == [2]
    assert len(results.where(a=2)) == 0


def test_a_criterion_about_nothing_does_not_hold() -> None:
    assert not Criterion("of nothing", largest([]), high=15.0).passed
    assert not Criterion("of nothing", smallest([]), low=0.0).passed
