"""``mpimomentum report``: runs on one page, from their files alone."""

from __future__ import annotations

import base64
import importlib.resources
import importlib.util
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpimomentum.measures import Seconds
from mpimomentum.reports.history import History
from mpimomentum.reports.output import written
from mpimomentum.reports.run_directory import RunDirectory
from mpimomentum.runtime import words
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.report import rows
from mpimomentum.runtime.telemetry import SUMMARY, time_split

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "report.html"
NEEDED = ("matplotlib", "jinja2")
_NOTHING = "–"

Row = dict[str, Any]


def require() -> None:
    """Refuse where a package is missing that draws or fills in the page.

    Raises
    ------
    BadInput
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            f"report needs {' and '.join(missing)}, not installed here: "
            "pip install 'mpimomentum[report]'"
        )


def write(runs: Sequence[RunDirectory], out: Path) -> None:
    """Write the page of one run, or of several beside each other.

    One pass over each run's records, in bounded memory.

    Parameters
    ----------
    runs : sequence of RunDirectory
    out : Path
        Of the page, which needs no other file.

    Raises
    ------
    BadInput
    """
    require()
    labels = names(runs)
    with written(out) as file:  # refused before millions of records are read
        file.write(html(dict(zip(labels, map(History.of, runs), strict=True))).encode())


def names(runs: Sequence[RunDirectory]) -> list[str]:
    """Return a name for each run: as much of its path as tells it from the others."""
    paths = [run.path.absolute() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        found = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(found)) == len(found):
            return found
    raise BadInput(f"{paths[0]} is given twice: give each run once")


def html(runs: Mapping[str, History]) -> str:
    """Return the page."""
    from mpimomentum.reports.figures import figures  # matplotlib: a second

    template = template_of("mpimomentum.reports")
    histories = list(runs.values())
    pictures = [
        {"title": p.title, "caption": p.caption, "data": base64.b64encode(p.svg).decode()}
        for p in figures(list(runs.items()))
    ]
    return template.render(
        title=" and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs",
        runs=[
            {"name": name, "about": _about(history), "states": _states(history)}
            for name, history in runs.items()
        ],
        summary=_beside([_summary(history) for history in histories]),
        pictures=pictures,
        checkpoints=_beside([_checkpoints(history.run) for history in histories]),
        configuration=_beside([_texts(history.run.config) for history in histories], tint=True),
        records=f"{sum(history.records for history in histories):,}",
        version=version("mpimomentum"),
    )


def template_of(package: str) -> Template:
    """Return a package's ``page.html``, which finds there how pages look."""
    from jinja2 import Environment

    text = importlib.resources.files(package).joinpath("page.html").read_text("utf-8")
    style = importlib.resources.files("mpimomentum.reports").joinpath("page.css").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(text, globals={"style": style})


def _beside(tables: Sequence[Mapping[str, str]], tint: bool = False) -> list[Row]:
    """Return a row a key that any of the tables has, in their order."""
    keys = {key: None for table in tables for key in table}
    found = []
    for key in keys:
        values = [table.get(key, _NOTHING) for table in tables]
        found.append({"name": key, "cells": values, "differs": tint and len(set(values)) > 1})
    return found


def _about(history: History) -> str:
    config, beginning = history.run.config, history.run.beginning
    ranks = beginning.get("ranks", len(history.ranks))
    where = "virtual workers" if "workers" in config else "ranks"
    began = f", begun {beginning['began']}" if "began" in beginning else ""
    model = f"{config.get('model')} on {config.get('data')}"
    return (
        f"{config.get('algorithm')} on {ranks} {where}, {config.get('topology')}: {model}{began}. "
        f"{history.run.path.absolute()}"
    )


def _states(history: History) -> list[dict[str, Any]]:
    """Return what is to be said before all else: a run that failed, or has not ended."""
    found: list[dict[str, Any]] = [
        {"text": f"Rank {rank} died, noticed at {at_s:.1f} s; others went on.", "failed": True}
        for rank, at_s in sorted(history.died.items())
    ]
    if history.run.failure is not None:
        found.append({"text": f"The run failed: {history.run.failure}", "failed": True})
    elif history.summary is None:
        until_s = max((rank.time_s for rank in history.ranks.values()), default=0.0)
        text = (
            f"There is no {SUMMARY}: the run goes on, or was stopped or killed. What follows is "
            f"what its records say up to {until_s:.1f} s."
        )
        found.append({"text": text, "failed": False})
    elif history.summary["records_lost"]:
        lost = f"{history.summary['records_lost']:,} records were not written: curves lack them."
        found.append({"text": lost, "failed": False})
    return found


def _summary(history: History) -> dict[str, str]:
    left_out = [
        f"{count} {what} of rank {number}"
        for number, rank in sorted(history.ranks.items())
        for what, count in rank.left_out.items()
    ]
    more = {"left out, not finite": ", ".join(left_out)} if left_out else {}
    if history.summary is not None:
        return rows(history.summary) | more
    tau = history.staleness.summary()
    split = time_split([Seconds(**parts) for parts in history.parts().values()])["total"]
    found = {
        "staleness": words.staleness(tau),
        "updates per rank": words.few([rank.steps for rank in history.ranks.values()]),
        "bytes sent": words.size(sum(history.nbytes().values())),
        "time": words.shares(split),
    }
    if history.last_loss is not None:
        found["last mini-batch's loss"] = f"{history.last_loss:.4f}"
    return found | more


def _checkpoints(run: RunDirectory) -> dict[str, str]:
    return {saved.name: f"after {saved.number} steps" for saved in run.checkpoints}


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: _toml(value) for name, value in sorted(config.items())}


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
