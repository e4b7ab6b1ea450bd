#!/usr/bin/env python
"""LeNet-5 on Fashion-MNIST with every algorithm: accuracy of the averaged model, in a table.

Runs ``mpirun -n 4 mpimomentum train …`` once per algorithm, one after the other, and reads each
run's summary.json::

    python scripts/fashion.py                                # the table on the terminal
    python scripts/fashion.py --write docs/fashion-mnist.md  # and in the page
    python scripts/fashion.py --quick                        # a tenth of the length, no goal

Run directories go to a new folder under runs/, or to --out. The exit code is 1 if a run failed or
an accuracy is below the goal.

**Hyper-parameters.** All runs have the same model, start, data, parts of the data, mini-batch,
epochs and schedule. Step sizes are such that all algorithms would go equally far in an epoch on a
constant gradient: heavy ball goes lr/(1 − mu) a step, so D-PSGD, which has none, gets a tenfold lr;
on the server the n workers' gradients are applied one by one, so each gets lr/n. One value
was chosen for all; none was tuned by itself.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import markdown, with_table, write_table

GOAL = 0.89
BEGIN, END = "<!-- table by scripts/fashion.py -->", "<!-- end of the table -->"

LR, MU, EPOCHS, WARMUP_EPOCHS, BATCH_SIZE = 0.02, 0.9, 10.0, 1.0, 32


def flags(algorithm: str, ranks: int) -> dict[str, Any]:
    """Return the hyper-parameters of one algorithm."""
    return {
        "allreduce-sgd": {"lr": LR, "mu": MU},
        "d-psgd": {"lr": LR / (1 - MU)},
        "ad-psgd": {"lr": LR, "mu": MU},
        "async-server": {"lr": LR / ranks, "mu": MU},
    }[algorithm]


ALGORITHMS = ("allreduce-sgd", "d-psgd", "ad-psgd", "async-server")


def main() -> int:
    options = arguments()
    out = options.out or Path("runs") / time.strftime("fashion-%Y%m%d-%H%M%S")
    summaries = {}
    for number, algorithm in enumerate(options.algorithms, 1):
        print(f"==> {number} of {len(options.algorithms)}: {algorithm}", flush=True)
        command = command_of(algorithm, options, out / algorithm)
        print(f"    {shlex.join(command)}", flush=True)
        code = subprocess.run(command, check=False).returncode
        if code != 0:
            print(f"{algorithm} ended with exit code {code}; see above", file=sys.stderr)
            return 1
        summaries[algorithm] = json.loads((out / algorithm / "summary.json").read_text())
    text = table(summaries)
    print(text)
    if options.write:
        write_table(options.write, text, BEGIN, END)
    short = {a: s["test_accuracy"] for a, s in summaries.items() if s["test_accuracy"] < GOAL}
    if short and not options.quick:
        print(f"below the goal of {GOAL:.0%}: {short}", file=sys.stderr)
        return 1
    return 0


def command_of(algorithm: str, options: argparse.Namespace, out: Path) -> list[str]:
    """Return the command that trains with one algorithm."""
    values = {
        "algorithm": algorithm,
        **flags(algorithm, options.ranks),
        "model": "lenet5",
        "data": "fashion-mnist",
        "batch-size": BATCH_SIZE,
        "epochs": options.epochs,
        "lr-schedule": "cosine",
        "warmup-epochs": WARMUP_EPOCHS * options.epochs / EPOCHS,
        "seed": options.seed,
        "out": out,
        "progress": "bar" if sys.stderr.isatty() else "lines",
    }
    if options.data_dir:
        values["data-dir"] = options.data_dir
    command = [*shlex.split(options.mpirun), "-n", str(options.ranks), "mpimomentum", "train"]
    return command + [text for k, v in values.items() for text in (f"--{k}", _text(v))]


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the runs as a Markdown table, one a row."""
    head = (
        "algorithm", "lr", "mu", "accuracy", "training loss", "time (s)", "samples/s",
        "staleness, mean", "p99", "sent (MB)",
    )  # fmt: skip
    rows: list[Sequence[str]] = []
    for algorithm, s in summaries.items():
        parameters, tau = s["parameters"], s["staleness"]
        rows.append(
            (
                algorithm,
                f"{parameters['lr']:g}",
                f"{parameters.get('mu', 0):g}",
                f"{100 * s['test_accuracy']:.2f} %",
                f"{s['train_loss']:.3f}",
                f"{s['wall_s']:.0f}",
                f"{s['samples_per_s']:.0f}",
                f"{tau['mean']:.2f}",
                f"{tau['p99']:.0f}",
                f"{s['bytes_sent'] / 1e6:.0f}",
            )
        )
    return markdown(head, rows)


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("algorithms", nargs="*", default=ALGORITHMS, help=", ".join(ALGORITHMS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the epochs, no goal")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=float, help=f"default {EPOCHS:g}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mpirun", default="mpirun", help="launcher and its options")
    parser.add_argument("--data-dir", type=Path, help="where Fashion-MNIST's files are")
    parser.add_argument("--out", type=Path, help="folder for the run directories")
    parser.add_argument("--write", type=Path, help="page whose table to replace")
    options = parser.parse_args()
    for algorithm in options.algorithms:
        if algorithm not in ALGORITHMS:
            parser.error(f"{algorithm!r} is none of {', '.join(ALGORITHMS)}")
    if options.epochs is None:
        options.epochs = EPOCHS / 10 if options.quick else EPOCHS
    if options.write:
        with_table(options.write.read_text(encoding="utf-8"), "", BEGIN, END)  # or fail now
    return options


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
