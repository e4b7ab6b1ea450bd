"""What compressed vectors cost and save: passes beside a copy's, and virtual time on a slow link.

    python scripts/bench_wire.py [--write] [--elements 25000000] [--rounds 9]

All passes are timed in turn in one process, one thread, CPU time; a ratio is the median of ratios
within a round. torch's own: ``x.to(torch.bfloat16)``, and ``torch.quantize_per_tensor`` with a
scale that is known already. ``--write`` puts the tables into docs/compression.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import mpimomentum as mm
from mpimomentum.codecs import extension

PAGE = Path(__file__).parents[1] / "docs" / "compression.md"
BEGIN, END = "<!-- begin: scripts/bench_wire.py -->", "<!-- end -->"
LINK_BPS = 200_000
RUNS = {
    "d-psgd": ("float32", "bf16", "int8"),
    "ad-psgd --variant paired": ("float32", "bf16", "int8"),
    "async-server --mu 0": ("float32", "bf16", "int8", "sign"),
}


def passes(n: int) -> dict[str, Callable[[], object]]:
    """Return name -> what is timed, a copy first."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, generator=draw)
    other, error = torch.empty_like(x), torch.zeros_like(x)
    found: dict[str, Callable[[], object]] = {
        "copy": lambda: other.copy_(x),
        "torch to bfloat16": lambda: x.to(torch.bfloat16),
        "torch quantize int8": lambda: torch.quantize_per_tensor(x, 0.04, 0, torch.qint8),
    }
    for format in mm.wire.FORMATS:
        out = mm.wire.encode(x, format)
        found |= {
            f"{format} encode": lambda f=format, o=out: mm.wire.encode(x, f, o),
            f"{format} encode, error": lambda f=format, o=out: mm.wire.encode(x, f, o, error),
            f"{format} decode": lambda f=format, o=out: mm.wire.decode(o, f, other),
            f"{format} decode_add": lambda f=format, o=out: mm.wire.decode_add(o, f, other, 0.5),
        }
    return found


def measured(n: int, rounds: int) -> str:
    """Return the table of passes."""
    torch.set_num_threads(1)
    timed = passes(n)
    spent: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(rounds + 1):
        for name, run in timed.items():
            began = time.thread_time()
            run()
            if round_:
                spent[name].append(time.thread_time() - began)
    rows = ["| pass | ms | of a copy's time |", "|---|--:|--:|"]
    for name, seconds in spent.items():
        ratio = statistics.median(s / c for s, c in zip(seconds, spent["copy"], strict=True))
        rows.append(f"| {name} | {1e3 * statistics.median(seconds):.1f} | {ratio:.2f} |")
    return "\n".join(rows)


def simulated() -> str:
    """Return the table of virtual times."""
    rows = ["| | wire | virtual s | accuracy | MB sent |", "|---|---|--:|--:|--:|"]
    for algorithm, formats in RUNS.items():
        for wire in formats:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                command = [
                    *(sys.executable, "-m", "mpimomentum", "simulate", "--workers", "4"),
                    *("--algorithm", *algorithm.split(), "--wire", wire, "--topology", "ring"),
                    *("--epochs", "20", "--model", "mlp", "--compute-s", "0.02"),
                    *("--bandwidth-Bps", str(LINK_BPS), "--out", str(out), "--progress", "off"),
                ]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                found = json.loads((out / "summary.json").read_text())
            rows.append(
                f"| `{algorithm}` | {wire} | {found['virtual_s']:.0f} "
                f"| {100 * found['test_accuracy']:.1f} % | {found['bytes_sent'] / 1e6:.1f} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Print, or write, both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--elements", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # quantize_per_tensor is to go
    text = (
        f"{given.elements / 1e6:g} million float32, one thread, {extension.instruction_set()}; "
        "other work ran beside it, so read the ratios:\n\n"
        f"{measured(given.elements, given.rounds)}\n\n"
        f"Digits, MLP (2410 parameters), 4 workers, 20 epochs, 20 ms a gradient, links of "
        f"{LINK_BPS / 1e3:g} kB/s, on which a float32 model takes 48 ms:\n\n{simulated()}"
    )
    if given.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    else:
        print(text)


if __name__ == "__main__":
    main()
