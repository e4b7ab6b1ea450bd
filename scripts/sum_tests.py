"""Add up the JUnit files of several pytest runs into one closing line of pytest's form.

usage: sum_tests.py DIR SECONDS

A run that ended without its file (a rank aborted the job) counts as one failed test; its
``NAME.failed`` file holds the exit status.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

# skipped in one run because they belong to the other: they ran there
_ELSEWHERE = ("need --with-mpi option to run", "test does not use mpi")


def main(directory: Path, seconds: int) -> int:
    counts: Counter[str] = Counter()
    for path in sorted(directory.glob("*.xml")):
        for case in ET.parse(path).iter("testcase"):
            counts[_outcome(case)] += 1
    for path in sorted(directory.glob("*.failed")):
        if not path.with_suffix(".xml").exists():
            counts["failed"] += 1
            print(f"the {path.stem} run ended early with status {path.read_text()}: see above")
    del counts["elsewhere"]
    order = ("failed", "error", "passed", "skipped")
    parts = [f"{counts[name]} {name}" for name in order if counts[name]] or ["no tests ran"]
    line = f" {', '.join(parts)} in {seconds}.00s "
    print(line.center(80, "="))
    return 1 if counts["failed"] or counts["error"] or not counts["passed"] else 0


def _outcome(case: ET.Element) -> str:
    if case.find("failure") is not None:
        return "failed"
    if case.find("error") is not None:
        return "error"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    message = skipped.get("message", "") + (skipped.text or "")
    return "elsewhere" if any(text in message for text in _ELSEWHERE) else "skipped"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
