"""All studies on one HTML page, from their files alone."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpimomentum.reports.output import written
from mpimomentum.reports.page import template_of
from mpimomentum.studies import registry
from mpimomentum.studies.output import RESULT, SVG
from mpimomentum.studies.study import Mean, made_by

PAGE = "index.html"


def write(out: Path, directories: Sequence[Path]) -> None:
    """Write the page, which needs no other file.

    Parameters
    ----------
    out : Path
    directories : sequence of Path
        Of studies that have come to their end.
    """
    page = template_of("mpimomentum.studies").render(
        studies=[_study(directory) for directory in directories],
        version=made_by(),
    )
    with written(out) as file:
        file.write(page.encode())


def _study(directory: Path) -> dict[str, Any]:
    result = json.loads((directory / RESULT).read_text("utf-8"))
    plan = result["parameters"]
    size = "quick" if plan["quick"] else "full"
    return {
        "name": result["study"],
        "question": result["question"],
        "passed": result["passed"],
        "about": _paragraphs(registry.about(result["study"])),
        "caption": result["caption"],
        "picture": base64.b64encode((directory / SVG).read_bytes()).decode(),
        "acceptance": [{**one, "value": _text(one["value"])} for one in result["acceptance"]],
        "tables": [
            {**table, "rows": [[_text(cell) for cell in row] for row in table["rows"]]}
            for table in result["tables"]
        ],
        "remarks": result["remarks"],
        "made": f"{size}, seeds {result['seeds'][0]} to {result['seeds'][-1]}, {result['date']}",
    }


def _paragraphs(text: str) -> list[list[dict[str, Any]]]:
    """Return a docstring, but for its first line, as paragraphs of plain and of strong parts."""
    found = []
    for paragraph in text.split("\n\n")[1:]:
        plain = re.sub(r"(?<!\*)\*(\w+)\*(?!\*)", r"\1", paragraph.replace("``", ""))
        parts = re.split(r"\*\*(.+?)\*\*", " ".join(plain.split()))
        found.append([{"text": part, "strong": bool(i % 2)} for i, part in enumerate(parts)])
    return found


def _text(cell: Any) -> str:
    if isinstance(cell, dict):
        return str(Mean(**cell)) if cell["mean"] is not None else "–"
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
