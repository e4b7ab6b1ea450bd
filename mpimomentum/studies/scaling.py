"""From 1 worker to 128: what a network costs, and what not waiting for it saves.

**Claim** (Lian, Zhang, Zhang, Liu 2018): AD-PSGD trains at up to 4 to 8 times the speed of
AllReduce-SGD on a shared network, with 64 to 128 GPUs; where every node has a fast link of its
own, it is no faster.

**Measured**: the time of an epoch on the virtual clock (timing only; messages share links fairly,
:mod:`mpimomentum.simulator.fair_links`) of a model of ResNet-50's size, over the number of workers,
on several networks. All assumptions are printed with the result: compute time and its jitter,
workers on a node, links, the ring in order of the nodes that AllReduce, D-PSGD and AD-PSGD all
have. AllReduce does not overlap with the gradient here, nor does a real one overlap wholly.
AD-PSGD passes over who is busy, so it is also measured how often it averages at all, and across
nodes: nothing is trained, so what fewer averages cost is not.

With ``--mpi``, whether the clock is to be believed: `mpimomentum calibrate` on 2 real ranks, a
prediction for 4 and 8, and as many real ranks beside it, with gradients that sleep, so that the
ranks do not compete for cores by them; their messages do.

**Refuted** if where all nodes share one link AD-PSGD takes more than a quarter of AllReduce's time
for an epoch with 64 and with 128 workers; if there, on an over-subscribed tree, or with one node's
links slow it takes longer with the most workers; or if it takes less than 1/1.5 of it on fast links
of one's own, at which there is hardly anything to save. The clock is not to be believed if the
predicted time of a step is off by more than 10 % in the median of all algorithms and sizes, or by
more than 25 % for one; or if the mean staleness of one is off by more than 15 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpimomentum.base_worker import Record
from mpimomentum.runtime.config import Method
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.run import simulate
from mpimomentum.simulator.clock import Clock
from mpimomentum.studies import believing, speed_ups
from mpimomentum.studies.study import (
    Case,
    Conclusion,
    Criterion,
    Figures,
    Mean,
    Plan,
    Results,
    Table,
    largest,
    ratio,
    smallest,
)

if TYPE_CHECKING:
    from mpimomentum.transport import MPIWorker

PARAMETERS, SAMPLES, BATCH = 25_557_032, 1_281_167, 64  # ResNet-50, ImageNet, a GPU's mini-batch
COMPUTE_S, JITTER = 0.25, 0.1
GPUS = 4
VIRTUAL = "virtual"

Gb = 1e9 / 8
_LINK: Mapping[str, Any] = {"latency_s": 2e-5, "node_latency_s": 5e-6, "node_bandwidth_Bps": 1e10}


@dataclass(frozen=True)
class Net:
    """A network, in words and as the clock has it."""

    words: str
    link_Bps: float  # noqa: N815
    network: str = "full"
    slow_node: float = 1.0  # times its link takes longer

    def clock(self, size: int, seed: int) -> Clock:
        """Return the clock of so many workers."""
        per_node = min(size, GPUS)
        slow = self.slow_node != 1 and size > GPUS
        return Clock(
            compute_s=COMPUTE_S,
            jitter=JITTER,
            bandwidth_Bps=self.link_Bps,
            network=self.network,
            slow_nodes={size // per_node - 1: self.slow_node} if slow else {},  # server: in node 0
            gpus_per_node=per_node,
            parameters=PARAMETERS,
            seed=seed,
            **_LINK,
        )


FAST, OWN, TREE, SHARED, SLOW = "fast", "own", "tree", "shared", "slow"
NETS = {
    FAST: Net("each node its own 100 Gb/s", 100 * Gb),
    OWN: Net("each node its own 10 Gb/s", 10 * Gb),
    TREE: Net("own 10 Gb/s, 8 on a switch over-subscribed 8 times", 10 * Gb, "fat-tree:8:8"),
    SHARED: Net("all nodes share 40 Gb/s", 40 * Gb, "shared"),
    SLOW: Net("own 10 Gb/s, that of one node 10 times slower", 10 * Gb, slow_node=10.0),
}
NARROW = (TREE, SHARED, SLOW)  # somewhere

ALGORITHMS = ("allreduce-sgd", "d-psgd", "ad-psgd", "async-server")
ALLREDUCE, AD_PSGD = "allreduce-sgd", "ad-psgd"
ASYNCHRONOUS = ("ad-psgd", "async-server")
AVERAGE: Mapping[str, tuple[str | float, str | float]] = {  # shares of steps: all, across nodes
    ALLREDUCE: (1.0, 1.0),
    "d-psgd": (1.0, 2 / GPUS),  # a node's first and last worker on the ring
    "async-server": ("–", "–"),
}
SIZES, QUICK_SIZES, LARGEST = (1, 4, 16, 64, 128), (4, 128), 1024
CLAIMED = (64, 128)
STEPS, DURATION_S = 12, 20.0


class _Scaling:
    question = "What do 128 workers lose to the network, and what does not waiting save?"

    def cases(self, plan: Plan) -> list[Case]:
        sizes = QUICK_SIZES if plan.quick else SIZES
        seeds = plan.each_seed()
        found: list[Case] = []
        if not plan.quick:
            found += [_case(OWN, name, LARGEST, seeds[0]) for name in (AD_PSGD, ALLREDUCE)]
        found += [
            _case(net, name, size, seed)
            for size in sorted(sizes, reverse=True)
            for seed in seeds
            for net in NETS
            for name in ALGORITHMS
        ]
        return found + (believing.cases(plan) if plan.mpi else [])

    def alone(self, case: Case) -> bool:
        """Whether a case is to be measured while no other is."""
        return bool(case["on"] != VIRTUAL)

    def measure(self, **case: Any) -> Figures:
        if case["on"] != VIRTUAL:
            return believing.measure("scaling", case)
        name, size = case["algorithm"], case["workers"]
        length: dict[str, Any] = {"steps": STEPS}
        if name in ASYNCHRONOUS and size > 1:
            length = {"duration_s": DURATION_S}
        peers: list[tuple[int, int]] = []  # of each average begun, or tried in vain (-1)

        def take(record: Record) -> None:
            if "peer" in record:
                peers.append((record["rank"], record["peer"]))

        run = simulate(
            Method(name).build(),
            lambda rank, size: Constant(max(1024, 8 * size)),
            size,
            **length,
            topology="ring" if size > 1 else "complete",
            clock=NETS[case["net"]].clock(size, case["seed"]),
            seed=case["seed"],
            take_record=take,
        )
        split = [seconds for seconds in run.time_split if seconds.compute]
        whole = sum(s.compute + s.gossip + s.wait + s.idle for s in split)
        first = run.links[0] if run.links else None
        return {
            "epoch_s": run.time_s * SAMPLES / (int(run.updates.sum()) * BATCH),
            "computing": sum(s.compute for s in split) / whole,
            "busiest": first.name if first else "none",
            "utilisation": first.utilisation if first else 0.0,
            "messages": first.messages if first else 0.0,
            "staleness": believing.mean_staleness(run),
            **_averages(peers),
        }

    def measure_on_ranks(self, worker: MPIWorker, **case: Any) -> Figures:
        """Measure on real ranks; of use on rank 0. Collective."""
        return believing.measure_on_ranks(worker, **case)

    def conclude(self, results: Results, plan: Plan) -> Conclusion:
        virtual = results.where(on=VIRTUAL)
        sizes = sorted({case["workers"] for case, _ in virtual.found} - {LARGEST})
        claimed = [n for n in sizes if n in CLAIMED]
        gains = {
            (net, n): ratio(_of(virtual, net, ALLREDUCE, n), _of(virtual, net, AD_PSGD, n))
            for net in NETS
            for n in sizes
        }
        last = sizes[-1]
        criteria = [
            Criterion(
                f"{NETS[SHARED].words}: AllReduce's epoch over AD-PSGD's, the best of "
                f"{' and '.join(map(str, claimed))} workers",
                largest(gains[SHARED, n] for n in claimed),
                low=4.0,
            ),
            Criterion(
                f"{NETS[FAST].words}: the same with {last} workers",
                gains[FAST, last],
                high=1.5,
            ),
            Criterion(
                f"{', '.join(NARROW)}: the least of the same with {last} workers",
                smallest(gains[net, last] for net in NARROW),
                low=1.0,
            ),
        ]
        tables = [_epochs(virtual, sizes), _links(virtual, last)]
        remarks = [_assumptions(), _OF_AVERAGES]
        beyond = virtual.where(workers=LARGEST)
        if len(beyond):
            one = {case["algorithm"]: figures["epoch_s"] for case, figures in beyond.found}
            remarks.append(
                f"{LARGEST} workers, {NETS[OWN].words}: an epoch takes {one[ALLREDUCE]:.3g} s with "
                f"AllReduce, {one[AD_PSGD]:.3g} s with AD-PSGD."
            )
        if plan.mpi:
            believed = believing.Believed.of(results)
            tables += believed.tables()
            criteria += believed.criteria()
            remarks += believed.remarks()
        caption = (
            "How many times faster than one worker an epoch is, over the number of workers (mean "
            f"and standard deviation of {plan.repetitions}, on the virtual clock; dotted: as many "
            f"times as there are workers). A model of {PARAMETERS / 1e6:.1f} million parameters, "
            f"{COMPUTE_S:g} s a gradient, {GPUS} workers on a node; the network is named above. "
            "Where the network is shared or a link is slow, who waits for everybody loses most."
        )
        figure = speed_ups.draw(_speed_ups(virtual, sizes), sizes)
        return Conclusion(caption, tables, criteria, figure, remarks)


def _averages(peers: Sequence[tuple[int, int]]) -> Figures:
    """Return the shares of AD-PSGD's steps that found a free peer, and one on another node."""
    if not peers:
        return {}
    across = sum(peer >= 0 and rank // GPUS != peer // GPUS for rank, peer in peers)
    return {
        "averages": sum(peer >= 0 for _, peer in peers) / len(peers),
        "across": across / len(peers),
    }


def _case(net: str, name: str, size: int, seed: int) -> Case:
    return {"on": VIRTUAL, "net": net, "algorithm": name, "workers": size, "seed": seed}


def _of(results: Results, net: str, name: str, size: int) -> Mean:
    return results.where(net=net, algorithm=name, workers=size).mean("epoch_s")


_OF_AVERAGES = (
    "Where links are full AD-PSGD finds peers busy and goes on without them: part of what it gains "
    "is that it averages less, the table says how much. Nothing is trained here, so what that "
    "costs is not in the time of an epoch."
)


def _assumptions() -> str:
    nets = "; ".join(f"{net}: {about.words}" for net, about in NETS.items())
    return (
        f"Networks: {nets}. Assumed: {PARAMETERS / 1e6:.1f} million parameters in float32 "
        f"({PARAMETERS * 4 / 1e6:.0f} MB a message), {SAMPLES} samples an epoch, {BATCH} a "
        f"gradient of {COMPUTE_S:g} s (Gamma distributed, standard deviation {JITTER:.0%}); {GPUS} "
        "workers on a node, 10 GB/s and 5 µs between any two of them; 20 µs between nodes; "
        "updates, a server's too, and copies are free; a ring of all workers in order of the "
        "nodes, for AllReduce, D-PSGD and AD-PSGD alike; AllReduce after the gradient, "
        "not beside it; one parameter server, on worker 0."
    )


def _epochs(results: Results, sizes: Sequence[int]) -> Table:
    rows: list[tuple[str | float | Mean, ...]] = [
        (net, n, *(_of(results, net, name, n) for name in ALGORITHMS),
         ratio(_of(results, net, ALLREDUCE, n), _of(results, net, AD_PSGD, n)))
        for net in NETS
        for n in sizes
    ]  # fmt: skip
    columns = ("network", "workers", *ALGORITHMS, "allreduce/ad-psgd")
    return Table("seconds of an epoch", columns, rows)


def _links(results: Results, size: int) -> Table:
    rows: list[tuple[str | float | Mean, ...]] = []
    for net in NETS:
        for name in ALGORITHMS:
            one = results.where(net=net, algorithm=name, workers=size)
            figures = one.found[0][1]
            averages = AVERAGE.get(name) or (one.mean("averages"), one.mean("across"))
            rows.append(
                (
                    net,
                    name,
                    one.mean("computing"),
                    figures["busiest"],
                    one.mean("utilisation"),
                    one.mean("messages"),
                    one.mean("staleness"),
                    *averages,
                )
            )
    columns = ("network", "algorithm", "computes (share)", "busiest link", "used (share)",
               "messages", "staleness", "averages (of steps)",
               "across nodes (of steps)")  # fmt: skip
    return Table(f"{size} workers: where the time goes", columns, rows)


def _speed_ups(results: Results, sizes: Sequence[int]) -> dict[str, dict[str, list[Mean]]]:
    """Return, of each network and algorithm, how many times faster an epoch is than alone."""
    alone_s = SAMPLES / BATCH * COMPUTE_S
    return {
        about.words: {
            name: [
                Mean(alone_s / m.mean, alone_s * m.sd / m.mean**2, m.count)
                for m in (_of(results, net, name, n) for n in sizes)
            ]
            for name in ALGORITHMS
        }
        for net, about in NETS.items()
    }


STUDY = _Scaling()
