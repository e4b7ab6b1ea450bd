"""From 1 worker to 128: what a network costs, and what not waiting for it saves.

**Claim** (Lian, Zhang, Zhang, Liu 2018): AD-PSGD trains at up to 4 to 8 times the speed of
AllReduce-SGD on a shared network, with 64 to 128 GPUs; where every node has a fast link of its
own, it is no faster.

**Measured**: the time of an epoch on the virtual clock (timing only; messages share links fairly,
:mod:`mpimomentum.simulator.fair_links`) of a model of ResNet-50's size, over the number of workers,
on several networks. All assumptions are printed with the result: compute time and its jitter,
workers on a node, links, the ring in order of the nodes that AllReduce, D-PSGD and AD-PSGD all
have. AllReduce does not overlap with the gradient here, nor does a real one overlap wholly.

With ``--mpi``, whether the clock is to be believed: `mpimomentum calibrate` on 2 real ranks, a
prediction for 4 and 8, and as many real ranks beside it, with gradients that sleep, so that the
ranks do not compete for cores by them; their messages do.

**Refuted** if on no network that is shared AD-PSGD takes a quarter of AllReduce's time or less for
an epoch with 64 or 128 workers, or if on one of them it takes longer with the most workers; or if
it takes less than 1/1.5 of it on fast links of one's own, at which there is hardly anything to
save. The clock is not to be believed if the predicted time of a step is off by more than 10 % in
the median of all algorithms and sizes, or by more than 25 % for one; or if the mean staleness of
one is off by more than 15 %.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mpimomentum.reports import drawing
from mpimomentum.runtime.config import Method
from mpimomentum.runtime.constant import Constant
from mpimomentum.runtime.run import simulate
from mpimomentum.simulator.clock import Clock
from mpimomentum.studies import believing
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
TITLE = 36  # characters in a line above a panel

Gb = 1e9 / 8
_LINK: Mapping[str, Any] = {"latency_s": 2e-5, "node_latency_s": 5e-6, "node_bandwidth_Bps": 1e10}


@dataclass(frozen=True)
class Net:
    """A network, in words and as the clock has it."""

    words: str
    link_Bps: float  # noqa: N815
    network: str = "full"
    slow_node: float = 1.0  # times its links take longer

    def clock(self, size: int, seed: int) -> Clock:
        """Return the clock of so many workers."""
        per_node = min(size, GPUS)
        last = range(size - per_node, size)  # the first has the server
        slow = {} if self.slow_node == 1 else dict.fromkeys(last, self.slow_node)
        return Clock(
            compute_s=COMPUTE_S,
            jitter=JITTER,
            bandwidth_Bps=self.link_Bps,
            network=self.network,
            slow_links=slow if size > GPUS else {},
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
    SLOW: Net("own 10 Gb/s, those of one node 10 times slower", 10 * Gb, slow_node=10.0),
}
SHARED_ONES = (TREE, SHARED, SLOW)

ALGORITHMS = ("allreduce-sgd", "d-psgd", "ad-psgd", "async-server")
ALLREDUCE, AD_PSGD = "allreduce-sgd", "ad-psgd"
ASYNCHRONOUS = ("ad-psgd", "async-server")
SIZES, QUICK_SIZES, LARGEST = (1, 4, 16, 64, 128), (4, 64), 1024
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
        run = simulate(
            Method(name).build(),
            lambda rank, size: Constant(max(1024, 8 * size)),
            size,
            **length,
            topology="ring" if size > 1 else "complete",
            clock=NETS[case["net"]].clock(size, case["seed"]),
            seed=case["seed"],
            take_record=lambda record: None,
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
                "shared networks: AllReduce's epoch over AD-PSGD's, the best of "
                f"{' and '.join(map(str, claimed))} workers",
                largest(gains[net, n] for net in SHARED_ONES for n in claimed),
                low=4.0,
            ),
            Criterion(
                f"{NETS[FAST].words}: the same with {last} workers",
                gains[FAST, last],
                high=1.5,
            ),
            Criterion(
                f"shared networks: the least of the same with {last} workers",
                smallest(gains[net, last] for net in SHARED_ONES),
                low=1.0,
            ),
        ]
        tables = [_epochs(virtual, sizes), _links(virtual, last)]
        remarks = [_assumptions()]
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
        return Conclusion(caption, tables, criteria, _draw(virtual, sizes), remarks)


def _case(net: str, name: str, size: int, seed: int) -> Case:
    return {"on": VIRTUAL, "net": net, "algorithm": name, "workers": size, "seed": seed}


def _of(results: Results, net: str, name: str, size: int) -> Mean:
    return results.where(net=net, algorithm=name, workers=size).mean("epoch_s")


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
            rows.append(
                (
                    net,
                    name,
                    one.mean("computing"),
                    figures["busiest"],
                    one.mean("utilisation"),
                    one.mean("messages"),
                    one.mean("staleness"),
                )
            )
    columns = ("network", "algorithm", "computes (share)", "busiest link", "used (share)",
               "messages", "staleness")  # fmt: skip
    return Table(f"{size} workers: where the time goes", columns, rows)


def _draw(results: Results, sizes: Sequence[int]) -> Figure:
    figure = Figure(figsize=(11.0, 6.4), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    base = SAMPLES / BATCH * COMPUTE_S
    for axes, (net, about) in zip(panels, NETS.items(), strict=False):
        for i, name in enumerate(ALGORITHMS):
            means = [_of(results, net, name, n) for n in sizes]
            axes.errorbar(
                sizes,
                [base / m.mean for m in means],
                yerr=[base * m.sd / m.mean**2 for m in means],
                **drawing.style_of(i),
                marker="o",
                markersize=3.5,
                capsize=2,
                label=name,
            )
        axes.set_title(textwrap.fill(about.words, TITLE, break_on_hyphens=False), fontsize=9)
        _scales(axes, sizes)
    for axes in panels[len(NETS) :]:
        axes.set_axis_off()
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize=10)
    figure.supxlabel("workers")
    figure.supylabel("speed-up of an epoch")
    return figure


def _scales(axes: Axes, sizes: Sequence[int]) -> None:
    axes.plot(sizes, sizes, ":", color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_ticks(sizes, [str(n) for n in sizes])
    axes.yaxis.set_ticks(sizes, [str(n) for n in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=True, labelleft=True)


STUDY = _Scaling()
