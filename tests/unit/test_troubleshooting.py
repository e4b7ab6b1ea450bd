"""The page of symptoms quotes what the program really says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mpimomentum.runtime.doctor.finding import Status
from mpimomentum.runtime.doctor.table import as_json

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")

QUOTED = re.findall(r"^### `([^`]+)`$", PAGE, re.MULTILINE)
"""Headings that are nothing but a message of ours; those of MPI say so after it."""

GAP = "…"


def messages() -> list[str]:
    """Return all texts in the sources; what an f-string fills in is a gap."""
    found = []
    for path in (ROOT / "mpimomentum").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else GAP for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return messages()


def said(quoted: str, text: str) -> bool:
    """Whether `text` begins as quoted."""
    pattern = ".*".join(re.escape(part) for part in quoted.split(GAP))
    return re.match(pattern, text, re.DOTALL) is not None


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_first_words_of_every_message_are_those_of_the_sources(quoted, sources):
    assert any(said(quoted, text) for text in sources)


def test_a_message_that_nobody_says_would_be_noticed(sources):
    assert len(QUOTED) >= 12
    for wrong in ("nothing moved for … s", "srun started … tasks, and each", "no such message"):
        assert not any(said(wrong, text) for text in sources)


@pytest.mark.parametrize(
    "line",
    [line for line in re.findall(r"^rank \d+ \|\s+rank \d+ (.*)$", PAGE, re.MULTILINE)],
)
def test_the_example_of_the_watchdog_is_in_its_words(line, sources):
    waits = re.fullmatch(r"has waited \d+ s for (.*)", line)
    assert waits is not None
    assert "has waited … s for …" in sources
    what = re.sub(r"rank \d+|'\w+'", GAP, waits[1])
    words = [part for part in re.split(f"{GAP}| its part of the allreduce", what) if part.strip()]
    assert all(any(word.strip() in text for text in sources) for word in words)


def test_keys_and_statuses_of_the_json_are_documented():
    for key in ast.literal_eval(as_json([], 1)):
        assert f"`{key}`" in PAGE
    for key in ("name", "found", "meaning", "remedy", "ranks"):
        assert f"`{key}`" in PAGE
    assert f"({', '.join(Status)})" in PAGE
