"""The choice of ways from a device, for every outcome of the probe."""

from __future__ import annotations

import itertools

import pytest

from mpimomentum.transport.staging import (
    DIRECT,
    HOST,
    IPC,
    RMA,
    Staging,
    choose,
    to_try,
    together,
)

NO = "died of SIGSEGV"


def ways(staging: Staging) -> str:
    return f"{staging.windows} {staging.messages} {staging.collectives} {staging.sums}"


def outcomes(nodes: int, asked: str, size: int = 4):
    """Yield every outcome of what would be tried."""
    kinds = to_try(asked, nodes, size)
    for works in itertools.product((True, False), repeat=len(kinds)):
        yield {kind: "" if ok else NO for kind, ok in zip(kinds, works, strict=True)}


def test_on_the_cpu_there_is_no_way_to_choose() -> None:
    assert choose("auto", False, 2, 4, {}) is HOST
    for asked in ("pinned", "ipc", "direct"):
        with pytest.raises(ValueError, match=f"staging={asked}: vectors live on the CPU.*--device"):
            choose(asked, False, 1, 4, {})


@pytest.mark.parametrize("nodes", [1, 2])
def test_pinned_is_always_possible_and_needs_no_probe(nodes) -> None:
    assert to_try("pinned", nodes, 4) == ()
    assert ways(choose("pinned", True, nodes, 4, {})) == "pinned pinned pinned pinned"


@pytest.mark.parametrize(
    ("works", "expected"), [(True, "ipc pinned pinned pinned"), (False, "pinned " * 3 + "pinned")]
)
def test_auto_on_one_node_depends_on_ipc_alone(works, expected) -> None:
    assert to_try("auto", 1, 4) == (IPC,)
    chosen = choose("auto", True, 1, 4, {IPC: "" if works else NO})
    assert ways(chosen) == expected
    assert (NO in chosen.reason) == (not works)


def test_auto_between_nodes_gives_mpi_only_what_it_takes() -> None:
    assert to_try("auto", 2, 4) == to_try("auto", 4, 4) == DIRECT
    for found in outcomes(2, "auto"):
        chosen = choose("auto", True, 2, 4, found | {RMA: "", IPC: ""})
        check_direct(chosen, found)  # windows pinned, whatever was found
        assert "direct windows are to be asked for (staging=direct)" in chosen.reason


def check_direct(chosen: Staging, found: dict[str, str]) -> None:
    """Check that all goes directly that can, and that it is said what cannot."""
    windows = "pinned" if any(found.get(kind, NO) for kind in (RMA, IPC)) else "direct"
    assert chosen.windows == windows
    for kind in DIRECT:
        assert getattr(chosen, kind) == ("pinned" if found[kind] else "direct")
    for kind, why in found.items():
        assert (f"{kind}: {NO}" in chosen.reason) == bool(why)


def test_one_rank_a_node_opens_nobodys_memory() -> None:
    assert to_try("direct", 4, 4) == (*DIRECT, RMA)
    for found in outcomes(4, "direct"):
        if not all(found.values()):
            check_direct(choose("direct", True, 4, 4, found | {IPC: ""}), found | {IPC: ""})


def test_one_rank_alone_needs_nothing() -> None:
    assert to_try("auto", 1, 1) == ()
    chosen = choose("auto", True, 1, 1, {})
    assert ways(chosen) == "pinned pinned pinned pinned"
    assert "one rank" in chosen.reason


def test_ipc_is_had_or_refused() -> None:
    assert ways(choose("ipc", True, 1, 4, {IPC: ""})) == "ipc pinned pinned pinned"
    with pytest.raises(ValueError, match=f"staging=ipc: .*{NO}; leave staging out"):
        choose("ipc", True, 1, 4, {IPC: NO})
    with pytest.raises(ValueError, match=r"staging=ipc: .*within a node only, and there are 2"):
        choose("ipc", True, 2, 4, {IPC: ""})


@pytest.mark.parametrize("nodes", [1, 2])
def test_direct_is_had_for_what_passed_or_refused(nodes) -> None:
    for found in outcomes(nodes, "direct"):
        if refused(found):
            with pytest.raises(ValueError, match=f"staging=direct: .*sums: {NO}.*use a CUDA-aware"):
                choose("direct", True, nodes, 4, found)
        else:
            chosen = choose("direct", True, nodes, 4, found)
            check_direct(chosen, found)
            assert ("one node, where windows" in chosen.reason) == (nodes == 1)


def refused(found: dict[str, str]) -> bool:
    """Whether nothing can be direct: of windows, both that they need."""
    windows = [found.get(kind, NO) for kind in (RMA, IPC)]
    return all(found[kind] for kind in DIRECT) and any(windows)


def test_nothing_else_can_be_asked_for() -> None:
    for apart in (True, False):
        with pytest.raises(ValueError, match="staging=fast: choose one of auto, pinned, ipc, dir"):
            choose("fast", apart, 1, 4, {})


def test_every_choice_says_why_in_the_summary() -> None:
    for asked, nodes in itertools.product(("auto", "pinned", "direct"), (1, 2)):
        for found in outcomes(nodes, asked):
            if asked == "direct" and refused(found):
                continue
            told = choose(asked, True, nodes, 4, found).summary()
            assert told["asked"] == asked
            assert told["reason"]
            assert set(told) == {"asked", "windows", "messages", "collectives", "sums", "reason"}


def test_what_fails_on_one_node_works_nowhere() -> None:
    everyones = [(0, {"sums": "", "messages": ""}), (0, {}), (1, {"sums": NO, "messages": ""})]
    found = together(("sums", "messages"), everyones, nodes=2)
    assert found == {"sums": f"{NO} (node 1)", "messages": ""}
    assert together((IPC,), [(0, {IPC: NO})], nodes=1) == {IPC: NO}
