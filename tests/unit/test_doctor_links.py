"""Links between ranks: the rounds, the fit, who is called slow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mpimomentum.runtime.doctor import links, software
from mpimomentum.runtime.doctor.finding import Finding, Status, merge
from mpimomentum.runtime.doctor.links import Links
from mpimomentum.runtime.doctor.place import Place
from mpimomentum.runtime.doctor.table import as_json
from mpimomentum.runtime.errors import BadInput
from mpimomentum.topology.round_robin import round_robin

SIZES = (8, 1 << 16, 1 << 20)


@pytest.mark.parametrize("n", range(1, 18))
def test_everyone_meets_everyone_once_and_nobody_twice_at_once(n: int) -> None:
    rounds = round_robin(n)
    met = []
    for partners in rounds:
        for rank, partner in enumerate(partners):
            if partner is not None:
                assert partners[partner] == rank != partner
                met.append((rank, partner))
    assert sorted(met) == [(i, j) for i in range(n) for j in range(n) if i != j]
    assert len(rounds) == max(n + n % 2 - 1, 0)


def made(n: int = 6, nodes: int = 1, slower: dict[tuple[int, int], float] | None = None) -> Links:
    """20 us and 1 GB/s on a node, 100 us and 100 MB/s between two."""
    where = [r * nodes // n for r in range(n)]
    seconds = np.full((n, n, len(SIZES)), np.nan)
    for i in range(n):
        for j in range(n):
            near = where[i] == where[j]
            alpha, rate = (20e-6, 1e9) if near else (100e-6, 1e8)
            if i != j:
                times = (slower or {}).get((min(i, j), max(i, j)), 1.0)
                seconds[i, j] = times * (alpha + np.array(SIZES) / rate)
    return Links.of(seconds, SIZES, where)


def test_the_fit_finds_what_the_times_were_made_of() -> None:
    fitted = made(nodes=2)
    np.testing.assert_allclose(fitted.latency_s[0, 1], 20e-6, rtol=1e-9)
    np.testing.assert_allclose(fitted.bandwidth_Bps[0, 1], 1e9, rtol=1e-9)
    np.testing.assert_allclose(fitted.latency_s[0, 5], 100e-6, rtol=1e-9)
    np.testing.assert_allclose(fitted.bandwidth_Bps[5, 0], 1e8, rtol=1e-9)
    assert np.isnan(np.diag(fitted.latency_s)).all()


def test_a_pair_is_slow_among_its_like_only() -> None:
    assert made(nodes=2).slow() == []  # between nodes all are ten times slower
    far, near = made(nodes=2, slower={(0, 5): 4.0}), made(nodes=2, slower={(0, 1): 4.0})
    assert [(i, j, round(t)) for i, j, t in far.slow()] == [(0, 5, 4)]
    assert [(i, j, round(t)) for i, j, t in near.slow()] == [(0, 1, 4)]
    said = links.finding(far, crowded=False)
    assert said.status is Status.WARN
    assert "slow: ranks 0-5 (4 times)" in said.found
    assert "leave the node out" in said.remedy
    assert links.finding(far, crowded=True).status is Status.NOTE
    assert links.finding(made(), crowded=False).status is Status.OK


def test_each_median_is_taken_once_however_many_the_pairs(monkeypatch):
    """128 ranks are 8128 pairs: a median for each of them took 8 s, while all ranks waited."""
    fitted, medians = made(nodes=2), []
    median = np.median
    monkeypatch.setattr(np, "median", lambda values: medians.append(1) or median(values))
    fitted.slow()
    assert len(medians) == 4  # on a node and between two, of small and of large messages


def test_a_rank_that_is_slow_with_most_is_named_once() -> None:
    slower = {(min(3, r), max(3, r)): 9.0 for r in range(8) if r != 3}
    said = links.finding(made(8, slower=slower), crowded=False)
    assert "slow: rank 3 with most others" in said.found
    assert "-" not in said.found.partition("slow")[2]


def test_one_rank_and_two() -> None:
    assert links.finding(made(1), crowded=False).status is Status.OK
    assert links.table(made(1)) == ""
    assert links.finding(made(2), crowded=False).status is Status.OK


def test_the_table_and_json_say_what_was_fitted() -> None:
    rows = links.table(made(4)).splitlines()
    assert rows[2].split() == ["0", "-", "20", "20", "20"]
    assert rows[3].split() == ["1", "1000", "-", "20", "20"]
    assert links.table(made(17)) == ""
    fast = links.table(dataclasses.replace(made(2), bandwidth_Bps=np.full((2, 2), 1.297e10)))
    assert fast.splitlines()[3].split() == ["1", "12970", "-"]  # columns that do not touch
    finding = Finding("a", Status.OK, "x", "y")
    told = json.loads(as_json(merge([[finding]]), 4, made(4)))["links"]
    assert told["latency_us"][0][0] is None
    assert told["latency_us"][0][1] == pytest.approx(20)
    assert told["message_bytes"] == list(SIZES)


@pytest.mark.parametrize("suffix", links.PICTURES)
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"links{suffix}"
    assert links.picture(made(5, nodes=2, slower={(0, 4): 5.0}), path).status is Status.OK
    assert path.stat().st_size > 5000
    assert links.picture(made(2), tmp_path / "gone" / "a.png").status is Status.WARN


@pytest.mark.parametrize(
    ("name", "says"), [("a.txt", "ends in .png"), ("gone/a.png", "no folder"), ("a", ".pdf")]
)
def test_where_no_picture_can_be_is_said_before(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        links.check(tmp_path / name)
    assert links.check(tmp_path / "a.png") == tmp_path / "a.png"


def test_another_build_of_the_extension_is_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = []
    for content in (b"one", b"another"):
        (tmp_path / "csrc.so").write_bytes(content)
        monkeypatch.setattr(software.extension, "built", lambda: str(tmp_path / "csrc.so"))
        said.append(software.versions(Place.of({})))
    rows = merge([[said[0]], [said[1]], [said[0]]])
    assert [(row.finding.status, row.ranks) for row in rows] == [
        (Status.WARN, (0, 2)),
        (Status.WARN, (1,)),
    ]
