"""What the documents say is so: tables, TOML files, commands and code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpimomentum import cli
from mpimomentum.runtime import refusal
from mpimomentum.runtime.sources import read

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs" / "configuration.md"
WRITING = ROOT / "docs" / "how-to-write-an-algorithm.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_ARGUMENTS = {"run.toml", "sim.toml", "runs/NAME/config.toml", "FILE", "A", "DIR/config.toml"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*refusal.RANK_VARIABLES, *(v for v in os.environ if v.startswith("MPIMOMENTUM_"))):
        monkeypatch.delenv(name, raising=False)


def blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every ``mpimomentum`` command line of the documents, without its launcher."""
    found = []
    for document in DOCUMENTS:
        for line in "".join(blocks(document, "sh")).splitlines():
            start = re.match(r"(?:(?:mpirun|srun)\b.*? )?mpimomentum (?=train|simulate|list)", line)
            if start:
                found.append(line[start.end() :])
    return sorted(set(found))


def test_the_tables_are_those_of_the_dataclasses():
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "config_table.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert made.strip() in text, "run python scripts/config_table.py --write"


@pytest.mark.parametrize("text", blocks(CONFIGURATION, "toml"), ids=lambda text: text[2:9])
def test_a_toml_file_of_the_documents_is_read(text, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    command = "simulate" if "workers" in text else "train"
    assert read(file, command)
    cli.app.parse_args([command, str(file)], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", ["run", "sim"])
def test_a_toml_file_of_the_documents_runs(name, tmp_path, monkeypatch, capsys):
    (text,) = (b for b in blocks(CONFIGURATION, "toml") if b.startswith(f"# {name}.toml"))
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    short = ["--epochs", "0.2"] if name == "run" else []
    argv = ["mpimomentum", "simulate", "run.toml", "--progress", "off", *short]
    monkeypatch.setattr(sys, "argv", argv)
    cli.main()
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documents_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)
    for word in OTHER_ARGUMENTS & set(words):
        (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / word).write_text("")
    words = [w if w != "A" else "ad-psgd" for w in words]
    cli.app.parse_args(words, exit_on_error=False, print_error=False)


def test_there_are_commands_in_the_documents():
    assert len(commands()) > 8


def test_the_algorithm_of_the_document_is_the_example():
    (code,) = blocks(WRITING, "python")
    assert code == (ROOT / "examples" / "custom_algorithm.py").read_text(encoding="utf-8")


def test_the_tests_of_the_document_are_those_that_run():
    tests = (ROOT / "tests" / "unit" / "test_custom_algorithm.py").read_text(encoding="utf-8")
    shown = tests.split("# --8<-- docs\n")[1].split("# --8<-- end")[0].strip()
    assert shown in {block.strip() for block in blocks(WRITING, "py")}


def test_the_algorithm_of_the_document_is_the_real_one():
    d2 = (ROOT / "mpimomentum" / "algorithms" / "d2.py").read_text(encoding="utf-8")
    assert d2[d2.index("@dataclass\nclass State") :] in blocks(WRITING, "py")


def test_the_registration_of_the_document_works(tmp_path):
    (code,) = (block for block in blocks(WRITING, "py") if "ALGORITHMS[" in block)
    (tmp_path / "named.py").write_text(code, encoding="utf-8")
    args = ["simulate", "--algorithm", "synchronous-easgd", "--steps", "2", "--out", "o"]
    args += ["--beta", "0.5"]
    subprocess.run(
        [sys.executable, "named.py", *args, "--model", "mlp", "--progress", "off"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"},
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    assert (tmp_path / "o" / "summary.json").exists()
