#!/usr/bin/env python
"""Every algorithm on the digits with 4 ranks: one table of what it reaches, costs and assumes.

Runs ``mpirun -n 4 mpimomentum train …`` twice for each row, with the data dealt out at random and
sorted by label (each rank sees few classes), one run after the other::

    python scripts/algorithm_table.py                             # the table on the terminal
    python scripts/algorithm_table.py --write docs/algorithms.md  # and in the page
    python scripts/algorithm_table.py d2 signum --quick           # some rows, 1 epoch, no goal

A run that --out holds already is read, not repeated. The exit code is 1 if a run failed, or if a
row is below the goal of 95 % on the data that it is made for. Step sizes are the command line's
defaults: nothing was tuned for this table.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pages import markdown, with_table, write_table

from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.listing import paper

GOAL = 0.95
BEGIN, END = "<!-- table by scripts/algorithm_table.py -->", "<!-- end of the table -->"
Partition = Literal["iid", "label"]
PARTITIONS: tuple[Partition, ...] = ("iid", "label")
HEAD = (
    "algorithm", "iid", "by label", "time (s)", "staleness", "MB", "messages a step",
    "assumes", "choose it when", "reference",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One algorithm, or one of its forms.

    Parameters
    ----------
    flags : str
        Beside ``--algorithm``, as on a command line.
    assumes, choose : str
        What it needs to work, and when it is the one to take.
    made_for : {"iid", "label"}
        The data on which it must reach the goal.
    """

    algorithm: str
    flags: str
    assumes: str
    choose: str
    made_for: Partition = "iid"

    @property
    def name(self) -> str:
        """What its runs are called."""
        return " ".join([self.algorithm, *self.flags.replace("--", "").split()])


ROWS = (
    Row("allreduce-sgd", "", "equally fast ranks", "the network is fast; as the baseline"),
    Row("d-psgd", "", "W doubly stochastic", "the network is slow, the data alike"),
    Row("ad-psgd", "", "any connected graph", "ranks are unevenly fast"),
    Row("ad-psgd", "--variant paired", "a bipartite graph", "the paper's exchange is asked for"),
    Row("async-server", "", "a server that keeps up", "uneven ranks must keep one model"),
    Row(
        "async-server",
        "--weighting inverse",
        "as above",
        "stale gradients do harm",
    ),
    Row("async-server", "--quorum 2", "as above", "single gradients are too noisy"),
    Row("async-server", "--mode sums", "constant μ", "no process may serve"),
    Row("async-server", "--mu auto", "as above", "the staleness is not known before"),
    Row(
        "decentralized-momentum",
        "",
        "W doubly stochastic",
        "as d-psgd, with momentum",
    ),
    Row("local-momentum", "", "data alike", "the network is slow, a step short"),
    Row("slowmo", "", "data alike", "as local-momentum, with many steps between averages"),
    Row("elastic-averaging", "", "a server that keeps up", "ranks may stray, and send seldom"),
    Row("sgp", "", "a column-stochastic W", "the graph is directed"),
    Row(
        "quasi-global-momentum",
        "",
        "W doubly stochastic",
        "as decentralized-momentum, where the ranks' data differ",
    ),
    Row(
        "d2",
        "--lazy",
        "W symmetric, the same always, eigenvalues above −1/3",
        "the ranks' data differ",
        "label",
    ),
    Row(
        "gradient-tracking",
        "",
        "W doubly stochastic",
        "as d2, on directed or changing graphs",
        "label",
    ),
    Row(
        "katyusha-x",
        "",
        "a sum over samples, no BatchNorm",
        "many digits are wanted; an L1 term",
    ),
    Row("signum", "", "fewer than half the ranks lie", "the network is slow, or ranks may lie"),
    Row(
        "signum",
        "--error-feedback",
        "honest ranks",
        "the vote ends at a worse loss than SGD",
    ),
)


def main() -> int:
    options = arguments()
    rows = [row for row in ROWS if row.algorithm in options.algorithms]
    results: dict[Row, dict[Partition, dict[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        print(f"==> {number} of {len(rows)}: {row.name}", file=sys.stderr, flush=True)
        results[row] = {p: summary(row, p, options) for p in PARTITIONS}
    text = table(results)
    print(text)
    if options.write:
        write_table(options.write, text, BEGIN, END)
    short = [r.name for r, s in results.items() if s[r.made_for]["test_accuracy"] < GOAL]
    if short and not options.quick:
        print(f"below the goal of {GOAL:.0%}: {', '.join(short)}", file=sys.stderr)
        return 1
    return 0


def summary(row: Row, partition: Partition, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run came to, which is made unless it is there."""
    out = options.out / f"{row.name.replace(' ', '-')}-{partition}"
    file = out / "summary.json"
    if not file.exists():
        command = command_of(row, partition, options, out)
        print(f"    {shlex.join(command)}", file=sys.stderr, flush=True)
        code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
        if code != 0:
            sys.exit(f"{row.name} ended with exit code {code}; see above")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def command_of(row: Row, partition: Partition, options: argparse.Namespace, out: Path) -> list[str]:
    """Return the command that makes a run."""
    values = {"partition": partition, "seed": options.seed, "out": out, "progress": "off"}
    if options.quick:
        values["epochs"] = 1
    command = [*shlex.split(options.mpirun), "-n", "4", sys.executable, "-m", "mpimomentum"]
    command += ["train", "--algorithm", row.algorithm, *shlex.split(row.flags)]
    return command + [text for k, v in values.items() for text in (f"--{k}", str(v))]


def table(results: Mapping[Row, Mapping[Partition, Mapping[str, Any]]]) -> str:
    """Return the runs as a Markdown table; all but accuracy by label is of the iid run."""
    return markdown(HEAD, [cells(row, runs) for row, runs in results.items()])


def cells(row: Row, runs: Mapping[Partition, Mapping[str, Any]]) -> list[str]:
    """Return one row of the table."""
    run = runs["iid"]
    updates = sum(run["updates_per_rank"])
    link = f"[`{row.algorithm}`](#{row.algorithm})"
    return [
        link + (f" `{row.flags}`" if row.flags else ""),
        *(f"{100 * runs[p]['test_accuracy']:.1f} %" for p in PARTITIONS),
        f"{run['wall_s']:.1f}",
        f"{run['staleness']['mean']:.2f}",
        f"{run['bytes_sent'] / 1e6:.1f}",
        f"{run['messages_sent'] / updates:.2f}",
        row.assumes,
        row.choose,
        reference(row.algorithm),
    ]


def reference(algorithm: str) -> str:
    """Return the first author and the place of an algorithm's paper."""
    authors, _, rest = paper(ALGORITHMS[algorithm]).partition('"')
    names = [name.strip() for name in authors.strip(" ,").split(",")]
    place = re.sub(r" \(.*\)|, Algorithm.*", "", rest.partition('"')[2].strip(" ,."))
    surname = names[0].split(". ")[-1]
    return f"{surname}{' et al.' if len(names) > 1 else ''}, {place}"


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    known = list(dict.fromkeys(row.algorithm for row in ROWS))
    parser.add_argument("algorithms", nargs="*", default=known, help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="1 epoch, no goal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mpirun", default="mpirun", help="launcher and its options")
    parser.add_argument("--out", type=Path, help="folder for the run directories")
    parser.add_argument("--write", type=Path, help="page whose table to replace")
    options = parser.parse_args()
    for algorithm in options.algorithms:
        if algorithm not in known:
            parser.error(f"{algorithm!r} is none of {', '.join(known)}")
    if options.write and (options.quick or set(options.algorithms) != set(known)):
        parser.error("--write replaces the page's whole table: give it without --quick and names")
    if options.out is None:
        options.out = Path("runs") / time.strftime("algorithms-%Y%m%d-%H%M%S")
    if options.write:
        with_table(options.write.read_text(encoding="utf-8"), "", BEGIN, END)  # or fail now
    return options


if __name__ == "__main__":
    sys.exit(main())
