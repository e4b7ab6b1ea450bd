"""Kill or stop a random rank at a random moment, many times, and count what becomes of the others.

    python scripts/crash_trials.py --trials 30 --algorithm ad-psgd --algorithm d-psgd

Start it with the MPI to be tried on PATH, from the repository. A trial is a job of its own; rank,
signal (SIGKILL or SIGSTOP) and moment follow from its number. Prints a table, and the output of
every trial that failed; exit code 1 if one did.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.crash.trials import CONTINUING, Outcome, Trial, attempt, family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30, help="of each algorithm")
    parser.add_argument("--algorithm", action="append", choices=CONTINUING)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    given = parser.parse_args()
    print(f"{family()}, {given.ranks} ranks")
    print(f"{'algorithm':24} trials  all survivors finished  hung  largest drift  inexact  went on")
    failed = 0
    for algorithm in given.algorithm or CONTINUING:
        outcomes = []
        for number in range(given.first, given.first + given.trials):
            trial = Trial(algorithm, given.ranks, number)
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(attempt(trial, Path(folder)))
            if not good(outcomes[-1], given.ranks):
                failed += 1
                print(f"{trial}, {trial.draw()}:\n{outcomes[-1].output}", file=sys.stderr)
        print(row(algorithm, outcomes, given.ranks), flush=True)
    if failed:
        raise SystemExit(1)


def good(outcome: Outcome, ranks: int) -> bool:
    """Whether all survivors came to the end, with the sum that they should have."""
    return outcome.survivors == ranks - 1 and outcome.drift <= outcome.limit


def row(algorithm: str, outcomes: list[Outcome], ranks: int) -> str:
    """Return a line of the table."""
    finished = [o for o in outcomes if o.survivors == ranks - 1]
    went_on = [o.went_on_s for o in finished]
    times = f"{statistics.median(went_on):.2f} s, at most {max(went_on):.2f} s" if went_on else ""
    return (
        f"{algorithm:24} {len(outcomes):6}  {len(finished):22}  "
        f"{sum(o.hung for o in outcomes):4}  {max((o.drift for o in finished), default=0):13.1e}  "
        f"{sum(not o.exact for o in finished):7}  {times}"
    )


if __name__ == "__main__":
    main()
