"""Which rank computes on which GPU: from what it asks for, what it sees and where it stands."""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.placement import (
    Placement,
    Placing,
    agreed,
    local_rank_of,
    parsed,
    placed,
    sharing,
)
from mpimomentum.runtime.visible import Seen

GPU_SELECT = Path(__file__).parents[2] / "slurm" / "gpu_select.sh"
CPU_BUILD = Seen(0, None, "torch is built for CPUs only", built=False)


def pretend(there: int, visible: str | None = None) -> dict[str, str]:
    """The environment of a rank on a node that is said to have `there` GPUs."""
    environ = {"MPIMOMENTUM_PRETEND_GPUS": str(there)}
    return environ if visible is None else environ | {"CUDA_VISIBLE_DEVICES": visible}


@pytest.mark.parametrize(
    ("asked", "seen", "local_rank", "name"),
    [
        ("auto", CPU_BUILD, 0, "cpu"),
        ("auto", Seen(0, "0,1", "built for CPUs only", built=False), 1, "cpu"),
        ("auto", Seen(0, None, "no driver"), 0, "cpu"),
        ("auto", Seen(0, "", "hidden"), 0, "cpu"),
        ("auto", Seen(0, "-1", "hidden"), 0, "cpu"),
        ("auto", Seen(0, "NoDevFiles", "hidden"), 0, "cpu"),
        ("cpu", Seen(4, "0,1,2,3"), 2, "cpu"),
        ("cpu", Seen(1, "gibberish"), 2, "cpu"),
        ("auto", Seen(1, "3"), 0, "cuda:0"),
        ("auto", Seen(1, "3"), 7, "cuda:0"),
        ("cuda", Seen(1), 2, "cuda:0"),
        ("auto", Seen(4), 0, "cuda:0"),
        ("auto", Seen(4), 3, "cuda:3"),
        ("cuda", Seen(4, "4,5,6,7"), 2, "cuda:2"),
        ("auto", Seen(4), 4, "cuda:0"),
        ("auto", Seen(4), 7, "cuda:3"),
        ("auto", Seen(3), 7, "cuda:1"),
        ("cuda:1", Seen(4), 0, "cuda:1"),
        ("cuda:0", Seen(1), 3, "cuda:0"),
        ("auto", Seen(2, "GPU-5ebe9f43-1f,MIG-7"), 1, "cuda:1"),
        ("auto", Seen(1, "MIG-GPU-5ebe9f43-1f/1/0"), 0, "cuda:0"),  # before CUDA 11.4
        ("auto", Seen(2, "1, 0"), 1, "cuda:1"),
        ("auto", Seen(1, "1,-1,0"), 1, "cuda:0"),
    ],
)
def test_a_rank_has_its_gpu(asked: str, seen: Seen, local_rank: int, name: str) -> None:
    assert placed(asked, seen, local_rank).name == name


@pytest.mark.parametrize(
    ("asked", "seen", "words"),
    [
        (
            "auto",
            Seen(1, "0,2"),
            ("CUDA_VISIBLE_DEVICES=0,2", "GPU 2 is not there", "--device cpu"),
        ),
        ("auto", Seen(0, "4"), ("CUDA_VISIBLE_DEVICES=4", "GPU 4 is not there", "unset")),
        ("auto", Seen(0, "0,0"), ("CUDA_VISIBLE_DEVICES=0,0", "twice")),
        ("cuda", Seen(2, "0,1,a100"), ("'a100' is neither a number nor", "CUDA_VISIBLE_DEVICES")),
        ("cuda", Seen(1, "0;1"), ("CUDA_VISIBLE_DEVICES=0;1", "'0;1' is neither")),
        ("cuda", Seen(1, "0,"), ("'' is neither",)),
        ("cuda:0", Seen(0, "GPU-"), ("'GPU-' is neither",)),
        ("cuda", CPU_BUILD, ("device=cuda", "built for CPUs only", "--device cpu")),
        ("cuda:1", Seen(0, "", "hidden"), ("device=cuda:1", "CUDA_VISIBLE_DEVICES= hides all")),
        ("cuda:4", Seen(4), ("device=cuda:4", "4 GPUs, cuda:0 to cuda:3", "--device cuda")),
        ("cuda:1", Seen(1), ("device=cuda:1", "1 GPU, cuda:0")),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(asked: str, seen: Seen, words: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as refused:
        placed(asked, seen, 0)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:1,2", "", "CUDA"])
def test_what_is_no_device_is_refused(asked: str) -> None:
    with pytest.raises(BadInput, match="choose auto, cpu, cuda, or cuda:K"):
        parsed(asked)
    with pytest.raises(BadInput):
        Placing(asked)


@pytest.mark.parametrize(
    ("there", "visible", "count"),
    [
        (2, None, 2),
        (0, None, 0),
        (4, "0,2", 2),
        (4, "3", 1),
        (2, "0,2", 1),
        (2, "2,0", 0),
        (2, "1,1", 0),
        (2, "", 0),
        (2, "-1", 0),
        (4, "0,-1,1", 1),
        (4, "NoDevFiles", 0),
    ],
)
def test_pretended_gpus_are_visible_as_cuda_would_have_it(
    there: int, visible: str | None, count: int
) -> None:
    seen = Seen.here(pretend(there, visible))
    assert (seen.count, seen.pretended) == (count, True)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 5),
        ({"SLURM_LOCALID": "2", "SLURM_STEP_NUM_TASKS": "8"}, 2),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 5),  # a batch script's own
        # mpirun's daemon is Slurm's task, and its number that of all its ranks
        ({"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2", "MPI_LOCALRANKID": "1"}, 5),
        ({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 5),
        ({"SLURM_LOCALID": "", "SLURM_STEP_NUM_TASKS": "2"}, 5),
    ],
)
def test_slurms_number_counts_where_srun_started_the_rank(
    environ: dict[str, str], expected: int
) -> None:
    assert local_rank_of(environ, 5) == expected


class World:
    """The environments of ranks, two nodes of them, that tell each other what they say."""

    def __init__(self, *environs: dict[str, str], nodes: int = 1) -> None:
        self.environs = environs
        self.node_of = [r * nodes // len(environs) for r in range(len(environs))]

    def place(self, *asked: str | None) -> list[Placing]:
        """Return all ranks' placing, or raise what all of them raise."""
        placings = [Placing(a, e) for a, e in zip(asked, self.environs, strict=True)]
        said: list[Any] = []
        for attempt in ("say", "hear"):
            errors = [self._one(p, r, said, attempt) for r, p in enumerate(placings)]
        assert len(set(errors)) == 1, "ranks that differ would wait for each other"
        if errors[0]:
            raise BadInput(errors[0])
        return placings

    def _one(self, placing: Placing, rank: int, said: list[Any], attempt: str) -> str:
        world = self

        class Env:
            node = world.node_of[rank]
            local_rank = world.node_of[:rank].count(node)

            @staticmethod
            def told(what: Any) -> list[Any]:
                if attempt == "say":
                    said.append(what)
                    raise InterruptedError
                return said

        Env.rank = rank  # type: ignore[attr-defined]
        try:
            placing(Env())  # type: ignore[arg-type]
        except InterruptedError:
            return ""
        except BadInput as error:
            return str(error)
        return ""


def test_ranks_of_two_nodes_have_a_gpu_each() -> None:
    placings = World(*4 * [pretend(2)], nodes=2).place(*4 * ["auto"])
    for placing in placings:
        assert [p.name for p in placing.everyones] == ["cuda:0", "cuda:1"] * 2
        assert {p.device for p in placing.everyones} == {torch.device("cpu")}  # pretended
    summary = placings[0].summary()
    assert summary["ranks"] == ["cuda:0", "cuda:1"] * 2
    assert summary["pretended"] is True


def test_more_ranks_than_gpus_share_them_evenly_with_one_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        (first, *_) = World(*5 * [pretend(2)]).place(*5 * ["auto"])
    assert [p.name for p in first.everyones] == [f"cuda:{r % 2}" for r in range(5)]
    (notice,) = [r.getMessage() for r in caplog.records]
    assert "up to 3 ranks share a GPU" in notice


@pytest.mark.parametrize("seen", [("0", "1"), ("1", "0")])
def test_ranks_that_see_another_gpu_each_share_none(
    seen: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (first, _) = World(*(pretend(2, v) for v in seen)).place("auto", "auto")
    assert [p.name for p in first.everyones] == ["cuda:0", "cuda:0"]
    assert not caplog.records


def test_cards_are_shared_under_whatever_number_they_are_seen() -> None:
    a, b = Placement("cuda:0", "", card="x"), Placement("cuda:1", "", card="x")
    assert sharing([0, 0], [a, b]) == 2
    assert sharing([0, 1], [a, b]) == 1
    assert sharing([0, 0], [Placement("cpu", "")] * 2) == 0


def test_what_is_pretended_is_a_number_also_on_a_rank_that_will_only_refuse() -> None:
    with pytest.raises(BadInput, match="MPIMOMENTUM_PRETEND_GPUS=many: a number of GPUs"):
        Seen.here({"MPIMOMENTUM_PRETEND_GPUS": "many"})


def test_one_ranks_trouble_is_all_ranks_refusal() -> None:
    world = World(pretend(2), pretend(2, "0,7"))
    with pytest.raises(BadInput, match=r"^rank 1: CUDA_VISIBLE_DEVICES=0,7: GPU 7 is not there"):
        world.place("auto", "auto")
    with pytest.raises(BadInput, match=r"^rank 0: device=cuda:2: this rank sees 2 GPUs"):
        world.place("cuda:2", "auto")


@pytest.mark.parametrize(
    ("environs", "asked"),
    [
        ((pretend(2), pretend(2)), ("auto", "cpu")),
        ((pretend(2), pretend(0)), ("auto", "auto")),
        ((pretend(2), {}), ("auto", "cpu")),
    ],
)
def test_some_on_gpus_and_some_not_are_refused(
    environs: tuple[dict[str, str], ...], asked: tuple[str, ...]
) -> None:
    with pytest.raises(BadInput, match=r"rank 0 computes on cuda:0 .*rank 1 on cpu .*--device cpu"):
        World(*environs).place(*asked)


def test_ranks_may_be_asked_for_a_gpu_each() -> None:
    (first, _) = World(pretend(2), pretend(2)).place("cuda:1", "cuda:0")
    assert [p.name for p in first.everyones] == ["cuda:1", "cuda:0"]


def test_a_cpu_build_that_was_given_gpus_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with caplog.at_level(logging.WARNING):
        (placing,) = World({"CUDA_VISIBLE_DEVICES": "0,1"}).place("auto")
    assert placing.everyones[0].name == "cpu"
    (notice,) = [r.getMessage() for r in caplog.records]
    assert "CUDA_VISIBLE_DEVICES=0,1, but models stay on the CPU" in notice
    assert "built for CPUs only" in notice


def test_a_rank_that_will_only_refuse_follows_the_others() -> None:
    for there in (0, 2):
        environs = (pretend(there), {}, pretend(there))
        (_, odd, _) = World(*environs).place("auto", None, "auto")
        assert odd.everyones[1].device == torch.device("cpu")


def test_placements_travel_as_plain_values() -> None:
    mine = Placement("cuda:3", "because", pretended=True, card="c")
    assert agreed([(0, "", asdict(mine))]) == [mine]


@pytest.mark.parametrize(("visible", "card"), [("3", "H200 3"), (None, "H200 0")])
def test_cards_of_a_torch_that_does_not_know_their_uuid(
    visible: str | None, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Properties:
        name = "H200"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    placing = Placing("cuda", {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    _alone(placing, 0)
    assert placing.everyones[0].card == card


@pytest.mark.parametrize("visible", ["0,1", "2,0,3"])
def test_gpu_select_and_the_mapping_deal_out_the_same_cards(visible: str) -> None:
    for local_rank in range(5):
        ours = Placing("auto", pretend(4, visible))
        _alone(ours, local_rank)
        environ = {"OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank), "CUDA_VISIBLE_DEVICES": visible}
        narrowed = subprocess.run(
            ["bash", str(GPU_SELECT), "bash", "-c", "echo $CUDA_VISIBLE_DEVICES"],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        theirs = Placing("auto", pretend(4, narrowed))
        _alone(theirs, local_rank)
        assert ours.everyones[0].card == theirs.everyones[0].card != ""


def _alone(placing: Placing, local_rank_: int) -> None:
    class Env:
        rank, node, local_rank = 0, 0, local_rank_

        @staticmethod
        def told(what: Any) -> list[Any]:
            return [what]

    placing(Env())  # type: ignore[arg-type]
