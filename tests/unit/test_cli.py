"""The command line: what wins over what, what is refused, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from mpimomentum import cli
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime import listing, refusal
from mpimomentum.runtime.config import SimulateConfig, TrainConfig


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*refusal.RANK_VARIABLES, *(v for v in os.environ if v.startswith("MPIMOMENTUM_"))):
        monkeypatch.delenv(name, raising=False)


def parsed(*tokens: str) -> TrainConfig:
    _, bound, _ = cli.app.parse_args(["train", *tokens], exit_on_error=False, print_error=False)
    return bound.kwargs.get("config", TrainConfig())


def outcome(monkeypatch, capsys, *tokens: str) -> tuple[object, str, str]:
    """Return exit code (None: returned), standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["mpimomentum", *tokens])
    code = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_flag_beats_variable_beats_file(tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text('lr = 0.1\nseed = 1\nbatch_size = 8\nslow = "0:3"\nreweight = true\n')
    monkeypatch.setenv("MPIMOMENTUM_LR", "0.2")
    monkeypatch.setenv("MPIMOMENTUM_SEED", "2")
    config = parsed(str(file), "--lr", "0.3")
    assert config.method.lr == 0.3
    assert config.seed == 2
    assert config.task.batch_size == 8
    assert config.pace.factors == {0: 3.0}
    assert config.method.reweight is True


def test_a_length_replaces_another_length_of_a_lesser_source(tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text("epochs = 3\n")
    assert parsed(str(file)).length.epochs == 3
    config = parsed(str(file), "--steps", "5")
    assert (config.length.epochs, config.length.steps) == (None, 5)
    monkeypatch.setenv("MPIMOMENTUM_DURATION_S", "4")
    config = parsed(str(file))
    assert (config.length.epochs, config.length.duration_s) == (None, 4.0)


def test_variables_of_the_runtime_are_no_flags(monkeypatch):
    monkeypatch.setenv("MPIMOMENTUM_TIMEOUT_S", "60")
    monkeypatch.setenv("MPIMOMENTUM_DRIVER", "inline")
    assert parsed() == TrainConfig()


def test_a_resolved_configuration_is_read_back_as_it_was(tmp_path):
    config = parsed("--algorithm", "d-psgd", "--slow", "0:10,3:2", "--data-dir", str(tmp_path))
    file = tmp_path / "config.toml"
    file.write_text(config.toml())
    assert parsed(str(file)).toml() == config.toml()
    assert 'slow = "0:10,3:2"' in config.toml()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--lrr", "1"], "--lrr"),
        (["--lr", "fast"], "--lr fast: a number is needed"),
        (["--lr", "-1"], "lr=-1.0"),
        (["--algorithm", "adpsgd"], "ad-psgd"),
        (["--steps", "1", "--epochs", "1"], "give only one"),
        (["--slow", "x"], "RANK:FACTOR"),
        (["--progress", "loud"], "lines"),
        (["nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tokens, message):
    code, out, err = outcome(monkeypatch, capsys, "train", *tokens)
    assert code == 2
    assert err.startswith("mpimomentum: ")
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("text", ["lr = ", "learning_rate = 1"])
def test_a_bad_file_is_named(monkeypatch, capsys, tmp_path, text):
    (tmp_path / "bad.toml").write_text(text)
    code, _, err = outcome(monkeypatch, capsys, "train", str(tmp_path / "bad.toml"))
    assert code == 2
    assert "bad.toml" in err


@pytest.mark.parametrize("variable", refusal.RANK_VARIABLES)
def test_only_rank_0_says_what_is_wrong_but_all_exit_with_2(monkeypatch, capsys, variable):
    waited = []
    monkeypatch.setattr(refusal.time, "sleep", waited.append)
    monkeypatch.setenv(variable, "1")
    assert outcome(monkeypatch, capsys, "simulate", "--lrr", "1") == (2, "", "")
    assert sum(waited) > 1  # or mpirun would end rank 0 before it has spoken
    monkeypatch.setenv(variable, "0")
    code, _, err = outcome(monkeypatch, capsys, "simulate", "--lrr", "1")
    assert code == 2
    assert "--lrr" in err


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def broken(config):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.trainer, "simulate", broken)
    monkeypatch.setattr(sys, "argv", ["mpimomentum", "simulate"])
    with pytest.raises(KeyError, match="a bug"):
        cli.main()


def test_list_names_algorithms_parameters_papers_and_the_rest(monkeypatch, capsys):
    code, out, _ = outcome(monkeypatch, capsys, "list")
    assert code is None
    for word in ("ad-psgd", "reweight=False", "ICML 2018", "hypercube", "cnn-small", "digits"):
        assert word in out
    assert "References" not in out


def test_every_algorithm_of_the_list_names_a_paper():
    for cls in ALGORITHMS.values():
        assert listing.paper(cls).endswith(".")


@pytest.mark.parametrize("tokens", [["train", "--help"], ["--help"], ["simulate", "--help"]])
def test_help_shows_examples(monkeypatch, capsys, tokens):
    _, out, _ = outcome(monkeypatch, capsys, *tokens)
    assert "mpimomentum simulate --" in out or "mpirun -n 4 mpimomentum train" in out


def test_commands_that_need_no_ranks_leave_mpi_alone():
    code = (
        "import sys; from mpimomentum import cli; sys.argv = ['mpimomentum', 'list']; cli.main(); "
        "sys.exit('mpi4py.MPI' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_simulate_leaves_a_run_directory_that_repeats_itself(monkeypatch, capsys, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code, out, err = outcome(
        monkeypatch,
        capsys,
        *("simulate", "--workers", "3", "--steps", "12", "--slow", "0:2", "--jitter", "0.1"),
        *("--model", "mlp", "--out", str(first)),
    )
    assert code is None
    assert "test accuracy" in out
    assert f"run directory: {first}" in out
    assert "100%" in err
    config = str(first / "config.toml")
    code, _, err = outcome(
        monkeypatch, capsys, "simulate", config, "--out", str(second), "--progress", "off"
    )
    assert (code, err) == (None, "")
    for name in ("config.toml", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()

    found = json.loads((first / "summary.json").read_text())
    assert found["updates_per_rank"] == [12, 12, 12]
    assert found["mpi"] is None
    assert found["virtual_s"] > found["steps"] * 1.5  # rank 0 takes 2 s a step
    assert 0 < found["spectral_gap"] <= 1
    records = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert sum("tau" in r for r in records) == 36
    assert sum("loss" in r for r in records) == 6
    assert [r["time_s"] for r in records] == sorted(r["time_s"] for r in records)


def test_a_run_directory_is_never_overwritten(monkeypatch, capsys, tmp_path):
    tokens = ("simulate", "--workers", "2", "--steps", "1", "--model", "mlp", "--out")
    assert outcome(monkeypatch, capsys, *tokens, str(tmp_path))[0] is None
    before = (tmp_path / "metrics.jsonl").read_bytes()
    code, _, err = outcome(monkeypatch, capsys, *tokens, str(tmp_path))
    assert code == 2
    assert "holds a run already" in err
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_simulate_needs_workers_that_can_hold_a_batch(monkeypatch, capsys, tmp_path):
    code, _, err = outcome(
        monkeypatch, capsys, "simulate", "--workers", "200", "--out", str(tmp_path)
    )
    assert code == 2
    assert "batch_size=16" in err
    assert list(tmp_path.iterdir()) == []


def test_defaults_of_the_two_commands_agree():
    shared = TrainConfig().flat().items()
    assert shared <= SimulateConfig().flat().items()


TRAIN = (sys.executable, "-m", "mpimomentum", "train")


def test_train_on_one_rank_without_a_launcher(tmp_path):
    """The whole of ``train`` but the other ranks; those are in tests/mpi."""
    ended = subprocess.run(
        [*TRAIN, "--steps", "30", "--out", str(tmp_path), "--amp", "bf16"],
        env=os.environ | {"MPIMOMENTUM_PRETEND_GPUS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert "run directory" in ended.stdout
    assert "\x1b" not in ended.stdout
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["updates_per_rank"] == [30]
    assert "MPI" in found["mpi"]
    assert found["device"] == {
        "asked": "auto",
        "ranks": ["cuda:0"],
        "cards": ["pretended 0"],
        "pretended": True,
    }
    assert found["amp"] == "bf16"
    live = (tmp_path / "metrics" / "rank-0000.jsonl").read_text().splitlines()
    merged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sorted(live) == sorted(merged)


def test_a_reader_that_has_had_enough_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does
    command = [sys.executable, "-m", "mpimomentum", "list"]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_module_of_the_command_line_is_the_command():
    outputs = [
        subprocess.check_output([sys.executable, "-m", module, "list"], text=True, timeout=60)
        for module in ("mpimomentum", "mpimomentum.cli")
    ]
    assert outputs[0] == outputs[1] != ""
