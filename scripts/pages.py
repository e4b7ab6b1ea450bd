"""Tables of figures in the project's pages: made by scripts, put between two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned to the left, figures to the right."""
    rows = list(rows)
    rule = [
        "---" if not i or not _is_figure(column) else "---:"
        for i, column in enumerate(zip(*rows, strict=True))
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def with_table(page: str, text: str, begin: str, end: str) -> str:
    """Return `page` with `text` between its two markers.

    Raises
    ------
    ValueError
        If the markers are not there, in order.
    """
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the page needs a line {begin!r} and, below it, {end!r}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def write_table(path: Path, text: str, begin: str, end: str) -> None:
    """Put `text` into the page at `path`."""
    page = path.read_text(encoding="utf-8")
    path.write_text(with_table(page, text, begin, end), encoding="utf-8")


def _is_figure(column: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell in ("", "-", "diverges") for cell in column)
