"""What a study leaves behind: result.json, figure.png, figure.svg; and its tables on the screen."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Shown

from mpimomentum.runtime.telemetry import replacing
from mpimomentum.studies.study import Conclusion, Criterion, Mean, Plan, Results, Study, made_by

RESULT, PNG, SVG = "result.json", "figure.png", "figure.svg"


def write(
    directory: Path, name: str, study: Study, plan: Plan, results: Results, conclusion: Conclusion
) -> dict[str, Any]:
    """Write the three files, each in whole or not at all; returns what is in ``result.json``."""
    from matplotlib import rc_context

    from mpimomentum.reports import drawing

    result = {
        "study": name,
        "question": study.question,
        "parameters": asdict(plan),
        "seeds": list(plan.each_seed()),
        "passed": all(criterion.passed for criterion in conclusion.criteria),
        "acceptance": [
            {
                "what": c.what,
                "value": _number(c.value),
                "wanted": c.wanted,
                "passed": c.passed,
            }
            for c in conclusion.criteria
        ],
        "tables": [
            {
                "title": table.title,
                "columns": list(table.columns),
                "rows": [[_cell(cell) for cell in row] for row in table.rows],
            }
            for table in conclusion.tables
        ],
        "caption": conclusion.caption,
        "remarks": list(conclusion.remarks),
        "cases": [{**case, **figures} for case, figures in results.found],
        "made_by": made_by(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with rc_context(drawing.STYLE):
        _write(directory / SVG, drawing.svg(conclusion.figure))
        file = io.BytesIO()
        conclusion.figure.savefig(file, format="png", dpi=150)
        _write(directory / PNG, file.getvalue())
    _write(directory / RESULT, (json.dumps(_plain(result), indent=1) + "\n").encode())
    return result


def show(name: str, conclusion: Conclusion, console: Console) -> None:
    """Print the tables, then what had to hold and whether it did."""
    for table in conclusion.tables:
        shown = Shown(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*map(_text, row))
        console.print(shown)
    shown = Shown("what has to hold", "wanted", "measured", "", title=name)
    for criterion in conclusion.criteria:
        shown.add_row(
            criterion.what, criterion.wanted, f"{criterion.value:.4g}", _verdict(criterion)
        )
    console.print(shown)
    for remark in conclusion.remarks:
        console.print(remark)


def _verdict(criterion: Criterion) -> str:
    return "holds" if criterion.passed else "DOES NOT HOLD"


def _text(cell: str | float | Mean) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _cell(cell: str | float | Mean) -> Any:
    return asdict(cell) if isinstance(cell, Mean) else cell


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # numpy's numbers are not JSON's


def _plain(value: Any) -> Any:
    """Return it with None for what JSON has no numbers for."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
