"""Measuring the cases of a study: on all cores, kept on disk, going on where it was stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.studies import registry
from mpimomentum.studies.study import Case, Figures, Results, key, made_by

KEPT = "cases.jsonl"
UNKNOWN = "an earlier mpimomentum"  # which did not say


def measured(name: str, cases: Sequence[Case], directory: Path) -> Results:
    """Measure what has not been measured yet; shows progress on a terminal.

    Parameters
    ----------
    name : str
        Of the study.
    cases : sequence of Case
    directory : Path
        Keeps each case as soon as it is measured.

    Returns
    -------
    Results
        With a remark on those that another version has measured.

    Raises
    ------
    RunFailed
        If a case cannot be measured; the others' figures are kept.
    """
    kept, by = _read(directory / KEPT, name)
    here = made_by()
    missing = [case for case in cases if key(case) not in kept]
    console = Console(stderr=True)
    with (
        (directory / KEPT).open("a", encoding="utf-8") as file,
        Progress(
            TextColumn(name),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        ) as progress,
    ):
        bar = progress.add_task("", total=len(cases), completed=len(cases) - len(missing))
        for case, figures in _measure(name, missing):
            line = {"study": name, "case": case, "figures": figures, "made_by": here}
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            kept[key(case)] = figures
            progress.advance(bar)
    others = [by[key(case)] for case in cases if by.get(key(case), here) != here]
    remarks = [
        f"{others.count(other)} of {len(cases)} cases were measured before, by {other}, and not "
        f"again by {here}; another --out measures them anew."
        for other in sorted(set(others))
    ]
    return Results([(case, kept[key(case)]) for case in cases], remarks)


def _measure(name: str, cases: Sequence[Case]) -> Iterator[tuple[Case, Figures]]:
    """Yield cases as they come to their end; at last those that are measured alone."""
    by_themselves = getattr(registry.load(name), "alone", lambda case: False)
    alone = [case for case in cases if by_themselves(case)]
    others = [case for case in cases if not by_themselves(case)]
    yield from _in_processes(name, others, len(os.sched_getaffinity(0)))
    yield from _in_processes(name, alone, 1)


def _in_processes(name: str, cases: Sequence[Case], most: int) -> Iterator[tuple[Case, Figures]]:
    if not cases:
        return
    workers = min(len(cases), most)
    # a new process, not a fork: torch's threads do not survive one
    with ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start
    ) as pool:
        under_way: dict[Future[Figures], Case] = {}
        waiting = iter(cases)
        try:
            while True:
                while len(under_way) < 2 * workers and (case := next(waiting, None)) is not None:
                    under_way[pool.submit(_one, name, dict(case))] = case
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    case = under_way.pop(future)
                    try:
                        figures = future.result()
                    except Exception as error:
                        raise RunFailed(f"study {name}, case {key(case)}: {error}") from error
                    yield case, figures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    """Make a process ready to measure."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)  # the cores are taken by as many cases


def _end_with_parent() -> None:
    """End where a study was killed: its processes would wait for cases for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _one(name: str, case: dict[str, Any]) -> Figures:
    return registry.load(name).measure(**case)


def _read(path: Path, name: str) -> tuple[dict[str, Figures], dict[str, str]]:
    """Return what is kept, and by whom; takes a line away that was not whole when all ended."""
    if not path.exists():
        return {}, {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        kept = [json.loads(line) for line in whole.splitlines()]
        others = {one["study"] for one in kept} - {name}
        found = {key(one["case"]): one["figures"] for one in kept}
        by = {key(one["case"]): one.get("made_by", UNKNOWN) for one in kept}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is not what a study has written ({error}): give another --out, or delete it"
        ) from error
    if others:
        raise BadInput(f"{path} is of the study {others.pop()}, not {name}: give another --out")
    os.truncate(path, len(whole))
    return found, by
