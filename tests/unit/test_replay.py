"""A recorded run comes out again: every algorithm, on the virtual clock."""

from __future__ import annotations

import json
import math
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import mpimomentum as mm
from mpimomentum.chronicle import COLUMNS, Chronicle, Kind
from mpimomentum.runtime import chronicles, trainer
from mpimomentum.runtime.config import Length, Method, Output, SimulateConfig, Task
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.loop import model_of
from mpimomentum.runtime.objective import TorchObjective
from mpimomentum.runtime.pace_config import Pace
from mpimomentum.runtime.replay_command import replayed
from mpimomentum.runtime.replay_config import Replaying
from mpimomentum.runtime.replay_records import Comparing, compared
from mpimomentum.runtime.replaying import replay
from mpimomentum.simulator.recorded import Recorded
from mpimomentum.simulator.replay import Diverged
from tests.contract.test_algorithms import TABLE, scattered
from tests.launch import ROOT

SIZE = 4
GRAPH = mm.topology.build("ring", SIZE, lazy=True)  # d2 needs that
SEED = 3
# jittered, with a straggler, messages that take time and take turns: nobody is in step
CLOCK = mm.Clock(jitter=0.7, slow={1: 3.0}, latency_s=0.2, bandwidth_Bps=400.0, serve_s=0.3, seed=5)


def recorded(
    algorithm: Any, objective: Any = scattered, steps: int = 30, clock: mm.Clock = CLOCK
) -> tuple[mm.Run, list[np.ndarray[Any, Any]]]:
    kept = [Chronicle() for _ in range(SIZE)]
    run = mm.simulate(
        algorithm, objective, SIZE, steps=steps, clock=clock, topology=GRAPH, seed=SEED, record=kept
    )
    return run, [chronicle.table() for chronicle in kept]


def again(algorithm: Any, tables: Any, objective: Any = scattered, seed: int = SEED) -> mm.Run:
    return replay(algorithm, objective, [Recorded.of(t) for t in tables], GRAPH, seed)


def rows(run: mm.Run) -> list[list[dict[str, Any]]]:
    """Records of each rank in order, without times."""
    return [
        [{k: v for k, v in r.items() if k != "time_s"} for r in run.records if r["rank"] == rank]
        for rank in range(SIZE)
    ]


REPLAYED = {name: a for name, a in TABLE.items() if getattr(a, "mode", "") != "sums"}


@pytest.mark.parametrize("algorithm", REPLAYED.values(), ids=REPLAYED)
def test_a_replay_has_the_same_bits_and_recording_changes_none(algorithm):
    plain = mm.simulate(
        algorithm, scattered, SIZE, steps=30, topology=GRAPH, clock=CLOCK, seed=SEED
    )
    run, tables = recorded(algorithm)
    assert torch.equal(run.x, plain.x)
    assert run.records == plain.records
    repeated = again(algorithm, tables)
    assert torch.equal(repeated.x, run.x)
    assert rows(repeated) == rows(run)
    assert repeated.updates.tolist() == run.updates.tolist()


@pytest.mark.parametrize("name", ["ad-psgd lockfree", "async-server", "elastic-averaging"])
def test_it_is_the_schedule_that_makes_the_bits(name):
    """Else a replay would show nothing: another schedule makes other iterates and staleness."""
    run, _ = recorded(TABLE[name])
    other, tables = recorded(TABLE[name], clock=mm.Clock(jitter=0.7, seed=6))
    assert not torch.equal(run.x, other.x)
    assert rows(run) != rows(other)
    assert torch.equal(again(TABLE[name], tables).x, other.x)


def test_a_run_of_fixed_duration_is_replayed_with_the_steps_it_came_to():
    kept = [Chronicle() for _ in range(SIZE)]
    algorithm = mm.ADPSGD(lr=0.05, mu=0.5)
    run = mm.simulate(
        algorithm,
        scattered,
        SIZE,
        duration_s=25.0,
        clock=CLOCK,
        topology=GRAPH,
        seed=SEED,
        record=kept,
    )
    assert len(set(run.updates.tolist())) > 1
    repeated = again(algorithm, [c.table() for c in kept])
    assert torch.equal(repeated.x, run.x)
    assert repeated.updates.tolist() == run.updates.tolist()


def dropping(rank: int, size: int) -> TorchObjective:
    """A model whose gradients draw from torch's own stream."""
    draw = torch.Generator().manual_seed(rank)
    x = torch.randn(32, 5, generator=draw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
    return TorchObjective(model, mse_loss, x, x.sum(1, keepdim=True), 4)


def test_dropout_is_drawn_again():
    algorithm = mm.ADPSGD(lr=0.05)
    run, tables = recorded(algorithm, dropping)
    torch.rand(7)  # whatever the process has drawn meanwhile
    state = torch.get_rng_state()
    assert torch.equal(again(algorithm, tables, dropping).x, run.x)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_is_another_course():
    """Peers are drawn from it: what is averaged is not what was."""
    algorithm = mm.ADPSGD(lr=0.05)
    run, tables = recorded(algorithm)
    try:
        repeated = again(algorithm, tables, seed=SEED + 1)
    except Diverged:
        return
    assert rows(repeated) != rows(run)


@pytest.mark.parametrize("name", ["ad-psgd paired", "async-server", "sgp", "elastic-averaging"])
def test_another_algorithm_is_refused_in_words(name):
    _, tables = recorded(TABLE["ad-psgd lockfree"])
    with pytest.raises(Diverged, match=r"another course.*rank [0-3]"):
        again(TABLE[name], tables)


def test_a_rank_without_its_delta_is_named():
    """Rank 0's chronicle says that something came of which nobody knows."""
    algorithm = mm.ADPSGD(lr=0.05)
    _, tables = recorded(algorithm)
    came = tables[0][:, 0] == Kind.AVERAGED
    first = int(np.flatnonzero(came)[0])
    tables[0] = np.insert(tables[0], first, tables[0][first], axis=0)
    with pytest.raises(Diverged, match="rank 0 waits for what rank"):
        again(algorithm, tables)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("ad-psgd lockfree", Kind.ADDED, "1 changes of windows by others"),
        ("ad-psgd lockfree", Kind.AVERAGE, "1 averages"),
        ("async-server", Kind.RECEIVED, "1 messages"),
        ("async-server", Kind.COUNTED, "1 answers of counters"),
        ("ad-psgd lockfree", Kind.TURN, ""),
    ],
)
def test_a_replay_that_ends_before_the_chronicle_says_so(name, kind, words):
    """With a row too many, of which the replay has everything but nobody asks for it."""
    _, tables = recorded(TABLE[name])
    last = int(np.flatnonzero(tables[2][:, 0] == Kind.ENDED)[0])
    row = [kind, 0, 10**6, 1, 1]
    tables[2] = np.insert(tables[2], last, row, axis=0)
    with pytest.raises(Diverged, match=f"rank 2.*is over, but went on.*{words}"):
        again(TABLE[name], tables)


def test_what_is_left_out_cannot_be_recorded():
    kept = [Chronicle() for _ in range(SIZE)]
    with pytest.raises(ValueError, match="non_finite='skip' cannot be recorded"):
        mm.simulate(mm.DPSGD(lr=0.1), scattered, SIZE, steps=3, record=kept, non_finite="skip")


@pytest.mark.parametrize(
    ("device", "policy", "words"),
    [("cuda:1", "abort", "vectors on cuda:1 cannot"), ("cpu", "skip", "'skip' cannot be recorded")],
)
def test_ranks_refuse_what_cannot_be_recorded_before_they_begin(device, policy, words):
    worker = SimpleNamespace(device=torch.device(device), topology=GRAPH, size=SIZE)

    def objective(rank: int, size: int) -> Any:
        pytest.fail("it has begun")

    with pytest.raises(ValueError, match=words):
        mm.run(
            mm.DPSGD(lr=0.1),
            objective,
            steps=1,
            worker=worker,
            non_finite=policy,
            record=Chronicle(),
        )


def test_no_thread_is_left_where_there_are_no_more(monkeypatch):
    """A thread left waiting would keep the program from its end."""
    algorithm = mm.ADPSGD(lr=0.05)
    _, tables = recorded(algorithm)
    start = threading.Thread.start

    def of_replay():
        return [t for t in threading.enumerate() if t.name.startswith("replay of rank")]

    def first_two(thread):
        if len(of_replay()) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first_two)
    with pytest.raises(RuntimeError, match="new thread"):
        again(algorithm, tables)
    assert not of_replay()


def test_sums_cannot_be_recorded():
    with pytest.raises(ValueError, match="use mode='server'"):
        recorded(mm.AsyncServer(lr=0.02, mode="sums"))


# -- of runs that failed ---------------------------------------------------------------------------


class Odd(RuntimeError):
    """What a gradient raises."""


class Failing(mm.Quadratic):
    """Raises instead of its eighth gradient."""

    left = 7

    def gradient(self, x: torch.Tensor, batch: Any) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise Odd("no eighth")
        return super().gradient(x, batch)


def failing(rank: int, size: int) -> Any:
    f = scattered(rank, size)
    return Failing(b=f.b, noise=f.noise, dtype=f.b.dtype) if rank == 2 else f


@pytest.mark.parametrize("name", ["ad-psgd lockfree", "ad-psgd paired", "async-server", "sgp"])
def test_a_run_fails_again_where_it_failed(name):
    kept = [Chronicle() for _ in range(SIZE)]
    seen: dict[int, list[Any]] = {rank: [] for rank in range(SIZE)}

    def look(w: Any, state: Any) -> None:
        seen[w.rank].append(model_of(state))

    with pytest.raises(Odd):
        mm.simulate(
            TABLE[name], failing, SIZE, 30, clock=CLOCK, topology=GRAPH, seed=SEED, record=kept
        )
    ends: list[str] = []
    parts = [Recorded.of(c.table()) for c in kept]
    run = replay(TABLE[name], failing, parts, GRAPH, SEED, observe=look, ends=ends)
    assert ends[2] == "rank 2 ends in step 7: Odd: no eighth"
    assert run.updates[2] == 7
    assert all(len(models) == n for models, n in zip(seen.values(), run.updates, strict=True))
    assert torch.isfinite(run.x).all()


def passed_on(algorithm: Any) -> tuple[mm.Run, list[np.ndarray[Any, Any]]]:
    """Return a run, and the rows that its chronicles have passed on."""
    came: list[list[bytes]] = [[] for _ in range(SIZE)]
    kept = [Chronicle(each.append) for each in came]
    arguments: dict[str, Any] = {"clock": CLOCK, "topology": GRAPH, "seed": SEED}
    run = mm.simulate(algorithm, scattered, SIZE, 30, record=kept, **arguments)
    assert all(len(each) > 30 for each in came)
    assert not any(len(chronicle.table()) for chronicle in kept)
    return run, [np.frombuffer(b"".join(e), np.int64).reshape(-1, COLUMNS) for e in came]


@pytest.mark.parametrize("algorithm", REPLAYED.values(), ids=REPLAYED)
def test_what_there_is_of_chronicles_is_replayed_wherever_they_end(algorithm):
    run, tables = passed_on(algorithm)
    assert torch.equal(again(algorithm, tables).x, run.x)
    draw = np.random.default_rng(0)
    cut = [table[: draw.integers(len(table) // 2, len(table) - 2)] for table in tables]
    ends: list[str] = []
    part = replay(algorithm, scattered, [Recorded.of(t) for t in cut], GRAPH, SEED, ends=ends)
    for rank, end in enumerate(ends):
        assert f"rank {rank} ends in step {part.updates[rank]}, " in end
    assert len(ends) == SIZE
    for some, every in zip(rows(part), rows(run), strict=True):
        assert some == every[: len(some)]
    assert 20 < part.updates.sum() < run.updates.sum()


@pytest.mark.parametrize(
    "table",
    [np.zeros((3, 4), np.int64), np.zeros(5, np.int64), np.zeros((1, COLUMNS)),
     np.array([[99, 0, 0, 0, 0]])],
    ids=["columns", "shape", "floats", "kind"],
)  # fmt: skip
def test_what_is_no_chronicle_is_refused(table):
    with pytest.raises(ValueError, match=r"chronicle|Kind"):
        Recorded.of(table)


# -- run directories -------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path) -> Path:
    out = tmp_path / "run"
    trainer.simulate(
        SimulateConfig(
            method=Method("ad-psgd", lr=0.05),
            task=Task(model="mlp"),
            length=Length(steps=25),
            pace=Pace(jitter=0.5),
            output=Output(out=out, progress="off", record=True, log_every=5),
        )
    )
    return out


def replaying(directory: Path, show: str | None = None, until: int | None = None) -> list[str]:
    lines: list[str] = []
    replayed(SimulateConfig(replaying=Replaying(directory, show, until)), lines.append)
    return lines


def test_a_directory_is_replayed_and_shown(directory):
    *shown, about, records, model = replaying(directory, "7..8")
    assert records == "120 records come out again, to the last bit"  # 25 steps and 5 losses each
    assert "ad-psgd on 4 ranks, 100 steps" in about
    assert model.startswith("the mean of all models is model.safetensors")
    steps = [line.split("step ")[1].split()[0] for line in shown]
    assert set(steps) == {"7", "8"}
    assert sum("tau=" in line for line in shown) == 8
    assert any("average with rank" in line and "as after its write" in line for line in shown)
    times = [float(line.split()[0]) for line in shown]
    assert times == sorted(times)


def test_the_first_difference_is_named(directory):
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines()
    at, row = next(
        (i, row)
        for i, row in enumerate(map(json.loads, lines))
        if row["rank"] == 2 and row["step"] == 17 and "tau" in row
    )
    lines[at] = json.dumps(row | {"tau": row["tau"] + 1})
    path.write_text("\n".join(lines) + "\n")
    found = f"rank 2, step 17: tau {row['tau']} against {row['tau'] + 1}"
    with pytest.raises(RunFailed, match=found):
        replaying(directory)


def test_a_record_too_few_or_within_rounding():
    one = {"rank": 0, "step": 3, "time_s": 1.0, "loss": 0.5, "compute_s": 2.0}
    near = one | {"loss": 0.5 * (1 + 1e-7), "time_s": 0.0, "compute_s": 7.0}
    assert compared([[one]], [[one]]).largest == 0
    assert 0 < compared([[one]], [[near]]).largest < 1e-6
    assert "within rounding" in str(compared([[one]], [[near]]))
    assert "loss 0.6 against 0.5" in compared([[one]], [[one | {"loss": 0.6}]]).first
    assert "1 records against 2" in compared([[one, one]], [[one]]).first
    assert "peer None against 1" in compared([[one | {"peer": 1}]], [[one]]).first


@pytest.mark.parametrize("found", [math.nan, math.inf, None])
def test_a_number_that_is_none_is_no_other(found):
    one = {"rank": 0, "step": 3, "time_s": 1.0, "loss": 0.5}
    assert f"loss {found} against 0.5" in compared([[one]], [[one | {"loss": found}]]).first
    gone = one | {"loss": None}  # as JSON has it
    assert compared([[gone]], [[one | {"loss": found}]]).largest == 0


def test_another_program_is_told_apart_from_the_run(directory):
    config = directory / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.05", "lr = 0.04"))
    with pytest.raises(RunFailed, match=r"rank \d, step \d+: (loss|lr)"):
        replaying(directory)


def test_until_stops_where_each_rank_has_made_that_step(directory):
    *lines, about, _, _, _, _, records = replaying(directory, "7..20", until=9)
    assert {line.split("step ")[1].split()[0] for line in lines} == {"7", "8", "9"}
    assert records == "48 records come out again, to the last bit"  # 10 steps and losses at 1, 6
    assert about.endswith("40 steps up to step 9")
    with pytest.raises(BadInput, match="until=25: the run's last step is 24"):
        replaying(directory, until=25)


@pytest.mark.parametrize("algorithm", REPLAYED.values(), ids=REPLAYED)
def test_models_at_a_step_are_those_that_the_next_one_begins_with(algorithm):
    _, tables = recorded(algorithm)
    found: dict[int, Any] = {}

    def look(w: Any, state: Any) -> None:
        if w.step == 5:
            w.catch_up()
            found[w.rank] = model_of(state)

    parts = [Recorded.of(t) for t in tables]
    replay(algorithm, scattered, parts, GRAPH, SEED, observe=look)
    part = replay(algorithm, scattered, [Recorded.of(t) for t in tables], GRAPH, SEED, until=5)
    for rank, x in found.items():
        assert torch.equal(part.x[rank], x)
        assert part.updates[rank] == 5
    assert found
    assert max(r["step"] for r in part.records) < 25  # three times as fast, and a few more


def test_lines_are_said_as_soon_as_no_earlier_one_can_come():
    before = [[{"rank": r, "step": s, "time_s": s + r / 2} for s in range(4)] for r in range(2)]
    lines: list[str] = []
    comparing = Comparing(before, range(1, 3), lines.append)
    for row in before[0]:
        comparing.take(row)
    assert not lines  # rank 1 may have an earlier one
    for count, row in zip((0, 2, 4, 4), before[1], strict=True):
        comparing.take(row)
        assert len(lines) == count
    assert [line.split()[0] for line in lines] == ["1.000000", "1.500000", "2.000000", "2.500000"]


def test_the_document_replays_its_own_run_in_python(directory, monkeypatch, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    directory.rename(tmp_path / "runs" / "odd")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "replay.md").read_text("utf-8")
    said = text.split("```python\n")[1].split("```")[0]
    there: dict[str, Any] = {}
    exec(said, there)
    steps = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == list(range(10, 10 + len(steps)))
    assert steps[-1] >= 21  # and those that other ranks hang on
    assert there["run"].updates.tolist() == [21] * 4


def _edit(name: str, old: str, new: str, directory: Path) -> None:
    text = (directory / name).read_text()
    assert old in text
    (directory / name).write_text(text.replace(old, new))


def _remove(name: str, directory: Path) -> None:
    (directory / name).unlink()


def _damage(name: str, directory: Path) -> None:
    (directory / name).write_bytes(b"\x93NUMPY nonsense")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (partial(_remove, "chronicle/about.json"), "no recorded run"),
        (partial(_remove, "chronicle/rank-0003.rows"), "rank-0003.rows cannot be read"),
        (partial(_damage, "chronicle/rank-0001.rows"), "rank-0001.rows cannot be read"),
        (partial(_damage, "chronicle/about.json"), "about.json cannot be read"),
        (partial(_remove, "config.toml"), "config.toml"),
        (partial(_remove, "metrics.jsonl"), "metrics.jsonl cannot be read"),
        (partial(_remove, "model.safetensors"), "model.safetensors"),
        (partial(_edit, "config.toml", "record = true", "record = false"), "without being"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_directory_that_is_not_whole_is_refused(directory, spoil, words):
    spoil(directory)
    with pytest.raises(BadInput, match=words):
        replaying(directory)


def test_a_run_that_diverged_is_replayed_up_to_there(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match="not finite"):
        trainer.simulate(
            SimulateConfig(
                method=Method("ad-psgd", lr=1e15),
                task=Task(model="mlp"),
                length=Length(steps=200),
                pace=Pace(jitter=0.5),
                output=Output(out=out, progress="off", record=True, log_every=1),
            )
        )
    about, failed, *ends, records = replaying(out)
    steps = int(about.split()[-2])
    assert 4 <= steps < 400
    assert failed.startswith("the run did not come to its end: rank ")
    rank, step = failed.split("rank ")[1][0], failed.split("at step ")[1].split(",")[0]
    assert f"rank {rank} ends in step {step}, as far as it was recorded" in ends
    assert int(records.split()[0]) >= steps
    assert records.endswith("to the last bit")
    # of a rank that was killed while it wrote
    path = out / "chronicle" / "rank-0001.rows"
    path.write_bytes(path.read_bytes()[:-50])
    assert replaying(out)[-1].endswith("to the last bit")


def test_a_chronicle_that_the_disk_refuses_ends_there_and_the_run_goes_on(tmp_path, caplog):
    chronicle_file = chronicles.ChronicleFile(tmp_path, 0)
    with chronicle_file as chronicle:
        chronicle.note(Kind.COUNTED, 0, value=5)
        chronicle_file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123
        chronicle.note(Kind.COUNTED, 0, value=6)
        chronicle.note(Kind.COUNTED, 0, value=7)
    assert chronicles.table(tmp_path, 0)[:, -1].tolist() == [5]
    assert [text.count("recorded no further") for text in caplog.messages] == [1]


def test_what_is_not_recorded_leaves_no_chronicle(tmp_path):
    out = tmp_path / "run"
    trainer.simulate(
        SimulateConfig(
            task=Task(model="mlp"),
            length=Length(steps=2),
            output=Output(out=out, progress="off"),
        )
    )
    assert not (out / chronicles.DIRECTORY).exists()
