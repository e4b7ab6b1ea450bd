"""``mpimomentum watch``: a run that goes on, as its files show it; no MPI, nothing asked of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mpimomentum.reports.follow import Follower
from mpimomentum.reports.progress import Progress, RankNow, sparkline
from mpimomentum.reports.run_directory import RunDirectory, Saved
from mpimomentum.runtime.errors import BadInput, RunFailed
from mpimomentum.runtime.monitor import PARTS
from mpimomentum.runtime.report import rows
from mpimomentum.runtime.telemetry import CONFIG

LIVE_EVERY_S = 1.0
LINE_EVERY_S = 10.0
SHOWN = 24  # ranks with a line of their own
QUIET_S = 5.0  # without a record before it is worth a word
COLORS = {"compute": "blue", "gossip": "yellow", "wait": "magenta", "idle": "bright_black"}
MARKS = {"compute": "█", "gossip": "▓", "wait": "░", "idle": "·"}  # where there are no colours
BAR = 16  # characters


class Watch:
    """Looks at a run again and again.

    Parameters
    ----------
    path : Path
        Of the run's directory, which may not be there yet.
    console : Console
        Where to show it.
    clock, sleep : callable
        Seconds, and how to let them pass.
    """

    def __init__(
        self,
        path: Path,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._console = console
        self._clock = clock
        self._sleep = sleep
        self._run: RunDirectory | None = None
        self._follower: Follower | None = None
        self._progress: Progress | None = None

    def once(self) -> None:
        """Show how things stand.

        Raises
        ------
        BadInput
            If there is no run.
        """
        RunDirectory.open(self._path)
        self._look()
        self._console.print(self._picture())
        self._end()

    def until_the_end(self, every_s: float | None = None) -> None:
        """Show the run until its summary is there: live on a terminal, else a line now and then.

        Raises
        ------
        BadInput
            If the path is or becomes something else than a run.
        RunFailed
            If the run did.
        """
        if not self._console.is_terminal:
            self._lines(LINE_EVERY_S if every_s is None else every_s)
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._look():
                live.update(self._picture(), refresh=True)
                self._sleep(LIVE_EVERY_S if every_s is None else every_s)
        self._console.print(self._picture())
        self._end()

    def _lines(self, every_s: float) -> None:
        said, said_s = "", -math.inf
        while not self._look():
            line = self._line()
            if line != said and self._clock() >= said_s + every_s:
                self._console.print(line, soft_wrap=True)
                said, said_s = line, self._clock()
            self._sleep(min(every_s, LIVE_EVERY_S))
        self._console.print(self._picture())
        self._end()

    def _look(self) -> bool:
        """Read what is new; True if the run has ended."""
        if self._run is None:
            if not _is_there(self._path):
                return False
            self._run = RunDirectory.open(self._path)
            self._follower = Follower(self._run)
            self._progress = Progress(self._run.beginning, self._clock())
            self._take(self._clock() - self._run.age_s())
        else:
            self._take(self._clock())
        return self._run.summary is not None or self._run.failure is not None

    def _take(self, now_s: float) -> None:
        assert self._run is not None
        assert self._follower is not None
        assert self._progress is not None
        if not self._progress.beginning:  # written a moment after the configuration
            self._progress.beginning = self._run.beginning
        for record in self._follower.new():
            self._progress.take(record, now_s)

    def _end(self) -> None:
        run = self._run
        if run is not None and run.failure is not None:
            raise RunFailed(f"the run in {self._path} failed: {run.failure}")

    # -- in words ----------------------------------------------------------------------------------

    def _line(self) -> str:
        progress = self._progress
        if self._run is None or progress is None:
            return self._waiting()
        said = [_percent(progress.done), f"{progress.time_s:.0f} s", _rate(progress)]
        if progress.losses:
            said.append(f"loss {progress.losses[-1]:.4f}")
        tau = _mean(rank.tau for rank in progress.ranks.values())
        if not math.isnan(tau):
            said.append(f"staleness {tau:.1f}")
        quiet_s = self._clock() - progress.news_s
        if quiet_s >= QUIET_S:
            said.append(f"no news for {_duration(quiet_s)}")
        return "  ".join(said)

    def _waiting(self) -> str:
        return f"waiting for a run in {self._path}: {CONFIG} is not there yet"

    def _picture(self) -> RenderableType:
        run, progress = self._run, self._progress
        if run is None or progress is None:
            return Text(self._waiting())
        config = run.config
        ranks = run.beginning.get("ranks", len(progress.ranks))
        title = f"{config.get('algorithm')}, {ranks} ranks, {config.get('topology')}: "
        title += f"{config.get('model')} on {config.get('data')}"
        parts: list[RenderableType] = [Text(title, style="bold")]
        if run.summary is not None:
            parts.append(_table(rows(run.summary)))
        else:
            parts += self._under_way(run, progress)
        parts.append(Text(f"run directory: {self._path}"))
        return Group(*parts)

    def _under_way(self, run: RunDirectory, progress: Progress) -> list[RenderableType]:
        quiet_s = self._clock() - progress.news_s
        facts: dict[str, RenderableType] = {}
        if progress.done is not None:
            facts[""] = ProgressBar(total=1.0, completed=progress.done, width=48)
        facts |= {"progress": _done(progress), "speed": _rate(progress)}
        if progress.losses:
            facts["loss"] = f"{progress.losses[-1]:.4f}  {sparkline(progress.losses)}"
        tau = _mean(rank.tau for rank in progress.ranks.values())
        if not math.isnan(tau):
            facts["staleness"] = f"{tau:.2f}, running mean"
        if not math.isnan(progress.consensus):
            facts["consensus distance"] = f"{progress.consensus:.2e}"
        saved = run.checkpoints
        if saved:
            facts["last checkpoint"] = _saved(saved[0])
        if quiet_s >= QUIET_S:
            facts["no news"] = f"for {_duration(quiet_s)}"
        found: list[RenderableType] = [_table(facts)]
        if progress.ranks:
            found.append(self._ranks(progress))
        return found

    def _ranks(self, progress: Progress) -> Table:
        """Return a table of the ranks; of many, those that are furthest behind."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for name in ("rank", "steps", "behind", "staleness"):
            table.add_column(name, justify="right")
        table.add_column("compute", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.caption = "  ".join(f"[{COLORS[part]}]{MARKS[part]}[/] {part}" for part in PARTS)
        ranks = sorted(progress.ranks.items())
        if len(ranks) > SHOWN:
            ranks = sorted(ranks, key=lambda entry: -progress.lag(entry[1]))[:SHOWN]
            table.title = f"the {SHOWN} furthest behind"
        for number, rank in ranks:
            tau = "" if math.isnan(rank.tau) else f"{rank.tau:.2f}"
            silent_s = self._clock() - rank.heard_s
            silent = f"silent {_duration(silent_s)}" if silent_s >= QUIET_S else ""
            behind = str(progress.lag(rank))
            table.add_row(str(number), str(rank.step), behind, tau, _bar(rank), silent)
        return table


def _is_there(path: Path) -> bool:
    """Whether a run has begun in `path`; not yet if that is missing or empty.

    Raises
    ------
    BadInput
        If it is something else.
    """
    if (path / CONFIG).is_file():
        return True
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    RunDirectory.open(path)  # says what is wrong
    raise BadInput(f"{path} is not a run's directory")


def _table(facts: Mapping[str, RenderableType]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, Text(value) if isinstance(value, str) else value)
    return table


def _done(progress: Progress) -> str:
    left = "" if progress.left_s is None else f", {_duration(progress.left_s)} to go"
    return f"{_percent(progress.done)} after {_duration(progress.time_s)}{left}"


def _percent(done: float | None) -> str:
    return "?" if done is None else f"{done:.0%}"


def _rate(progress: Progress) -> str:
    samples = progress.samples_per_s
    if samples is None:
        return f"{progress.steps_per_s:.1f} steps/s"
    return f"{samples:.0f} samples/s, {progress.steps_per_s:.1f} steps/s"


def _saved(saved: Saved) -> str:
    return f"{saved.name}, {_duration(saved.age_s)} ago"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _bar(rank: RankNow) -> Text:
    compute = rank.shares.get("compute")
    bar = Text("" if compute is None else f"{compute:4.0%} ")
    left = BAR
    for part in PARTS:
        width = min(left, round(BAR * rank.shares.get(part, 0.0)))
        bar.append(MARKS[part] * width, style=COLORS[part])
        left -= width
    return bar


def _mean(values: Iterable[float]) -> float:
    finite = [v for v in values if not math.isnan(v)]
    return sum(finite) / len(finite) if finite else math.nan
