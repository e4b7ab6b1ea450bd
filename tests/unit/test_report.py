"""A report says what a run's files say, needs nothing else, and runs nothing."""

from __future__ import annotations

import base64
import json
import math
import random
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mpimomentum.measures import Histogram
from mpimomentum.reports import page
from mpimomentum.reports.bins import Bins
from mpimomentum.reports.history import History
from mpimomentum.reports.run_directory import RunDirectory
from mpimomentum.runtime import trainer
from mpimomentum.runtime.config import Length, Method, Output, SimulateConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.task_config import Task

EVIL = '<script>alert("$x_1$")</script>'
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Reads a page: its text, tables, pictures; refuses what is not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        (found,) = (row[1:] for row in self.rows if row and row[0] == name)
        return found

    def pictures(self) -> dict[str, bytes]:
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, data = attributes["src"].split(",")
                assert kind == "data:image/svg+xml;base64"
                found[attributes["alt"].split(".")[0]] = base64.b64decode(data)
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Simulate a run with a name that would like to be a program."""
    out = tmp_path_factory.mktemp("runs") / EVIL.replace("/", "_")
    config = SimulateConfig(
        method=Method("ad-psgd"),
        task=Task(model="mlp"),
        length=Length(steps=25),
        output=Output(out=out, progress="off", log_every=2),
        workers=3,
    )
    trainer.simulate(config)
    return out


def reported(*directories: Path, out: Path) -> Page:
    page.write([RunDirectory.open(path) for path in directories], out)
    text = out.read_text()
    for outside in ("http://", "https://", "<script", "javascript:", "@import", "url("):
        assert outside not in text
    return Page(text)


def test_the_page_says_what_the_files_say(finished, tmp_path):
    summary = json.loads((finished / "summary.json").read_text())
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    found = reported(finished, out=tmp_path / "r.html")
    assert found.row("test accuracy") == [f"{summary['test_accuracy']:.2%}"]
    assert found.row("updates per rank") == ["25 25 25"]
    assert found.row("algorithm") == ["ad-psgd"]
    assert found.row("workers") == ["3"]
    losses = sum("loss" in r for r in records)
    assert losses == 3 * 13
    assert f"{losses} recorded losses of all ranks" in found.words
    updates = sum("tau" in r for r in records)
    assert f"{updates} updates, one value a bar" in found.words
    assert f"from {len(records)} records" in found.words
    assert f"{summary['messages_sent']:,} messages" in found.words
    pictures = found.pictures()
    curves = {"Loss over time", "Loss over steps", "Staleness"}
    assert set(pictures) == curves | {"Where the time goes", "Bytes sent"}
    for svg in pictures.values():
        tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(svg).iter()}
        assert "path" in tags
        assert not tags & {"script", "foreignObject", "image"}
    captions = [tag for tag, _ in found.tags if tag == "figcaption"]
    assert len(captions) == len(pictures)


def test_a_name_is_text_and_no_program(finished, tmp_path):
    found = reported(finished, out=tmp_path / "r.html")
    assert finished.name in found.words
    for tag, attributes in found.tags:
        assert tag != "script"
        assert not any(name.startswith("on") for name in attributes)
    two = tmp_path / "two"
    two.mkdir()
    for name in ("config.toml", "metrics.jsonl", "summary.json"):
        (two / name).write_bytes((finished / name).read_bytes())
    (two / "failure.txt").write_text(f"rank 1: {EVIL}")
    both = reported(finished, two, out=tmp_path / "both.html")
    assert finished.name in both.words  # in the legends of the pictures, too
    assert EVIL in both.words
    assert both.row("algorithm") == ["ad-psgd", "ad-psgd"]


def test_the_same_run_gives_the_same_page(finished, tmp_path):
    for name in ("a.html", "b.html"):
        reported(finished, out=tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_run_that_died_is_drawn_as_far_as_it_came(finished, tmp_path):
    died = tmp_path / "died"
    (died / "metrics").mkdir(parents=True)
    (died / "config.toml").write_bytes((finished / "config.toml").read_bytes())
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for rank in range(3):
        own = [line for line in lines if json.loads(line)["rank"] == rank][:20]
        own[5:5] = [b'{"rank": \xff\n', b"[1]\n", b"\n"]  # a damaged disk
        own[:0] = [b'{"rank": %d, "step": 0, "time_s": 0.0, "bad_model": 1}\n' % rank] * rank
        if rank == 2:
            own[:0] = [b'{"rank": 2, "step": 1, "time_s": 0.5, "died": 1, "declared_by": 2}\n']
        (died / "metrics" / f"rank-000{rank}.jsonl").write_bytes(b"".join(own)[:-7])
    found = reported(died, out=tmp_path / "r.html")
    assert "There is no summary.json" in found.words
    assert found.words.count("Rank 1 died, noticed at 0.5 s") == 1
    assert f"from {3 * 19 + 1 + 2 + 1} records" in found.words
    assert found.row("left out, not finite") == ["1 models of rank 1, 2 models of rank 2"]
    assert {"Loss over time", "Staleness", "Where the time goes"} <= set(found.pictures())
    assert "As last recorded" in found.words


def test_a_run_that_ends_while_it_is_read_is_read_again(finished, tmp_path):
    class Ending(RunDirectory):
        def files(self) -> list[Path]:
            found = super().files()
            if len(found) > 1:  # a moment after they were listed
                found[1].rename(self.path / "metrics.jsonl")
                found[0].unlink()
            return found

    lines = (finished / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics").mkdir()
    for rank in range(2):
        (tmp_path / "metrics" / f"rank-000{rank}.jsonl").write_bytes(lines)
    run = Ending(tmp_path, {"algorithm": "ad-psgd"})
    assert History.of(run).records == len(lines.splitlines())


def test_a_run_that_has_hardly_begun_has_a_page(finished, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_bytes((finished / "config.toml").read_bytes())
    found = reported(tmp_path / "new", out=tmp_path / "r.html")
    assert found.pictures() == {}
    assert "from 0 records" in found.words


def test_time_and_staleness_of_a_history_are_the_summarys(finished):
    history = History.of(RunDirectory.open(finished))
    summary = history.summary
    assert history.staleness.summary() == summary["staleness"]
    last = {r: rank.parts for r, rank in history.ranks.items()}
    for rank, parts in history.parts().items():  # the last record's are a part of the run's
        assert parts == {p: summary["time_split_s"]["per_rank"][rank][p] for p in parts}
        assert all(last[rank][p] <= parts[p] + 1e-9 for p in parts)
    assert history.nbytes() == dict(enumerate(summary["bytes_sent_per_rank"]))


@pytest.mark.parametrize("count", [2, 10, 300])
def test_bins_hold_every_point_however_far_they_reach(count):
    source = random.Random(count)
    reaches = [10 ** source.randint(-3, 6) for _ in range(2000)]
    points = [(source.uniform(0, reach), source.gauss(0, 1)) for reach in reaches]
    bins = Bins(1e-3, count)
    for x, y in points:
        bins.add(x, y)
    bins.add(math.nan, 1.0)
    bins.add(1.0, math.inf)
    assert len(bins.bins) <= count
    assert bins.points == len(points)
    edges: dict[int, list[float]] = {}
    for x, y in points:
        edges.setdefault(int(x / bins.width), []).append(y)
    for found, index in zip(bins.bins, sorted(edges), strict=True):
        ys = edges[index]
        assert (found.count, found.low, found.high) == (len(ys), min(ys), max(ys))
        assert found.sum_y == pytest.approx(sum(ys))
    assert bins.x == sorted(bins.x)


def test_without_the_packages_the_remedy_is_said(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "NEEDED", ("matplotlib", "no_such_package"))
    with pytest.raises(BadInput, match=r"no_such_package.*pip install 'mpimomentum\[report\]'"):
        reported(finished, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_names_tell_runs_apart():
    runs = [RunDirectory(Path(p), {}) for p in ("/a/x/r", "/a/y/r", "/b/q")]
    assert page.names(runs) == ["x/r", "y/r", "b/q"]
    assert page.names(runs[1:]) == ["r", "q"]
    with pytest.raises(BadInput, match="given twice"):
        page.names([runs[0], runs[0]])


def test_histograms_of_ranks_add_up(finished):
    history = History.of(RunDirectory.open(finished))
    merged = Histogram.merged(rank.staleness for rank in history.ranks.values())
    assert merged.count == 75
