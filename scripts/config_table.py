"""The tables of docs/configuration.md, made from the configuration's dataclasses.

python scripts/config_table.py            print them
python scripts/config_table.py --write    put them into the document
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mpimomentum.runtime.config import SimulateConfig, TrainConfig
from mpimomentum.runtime.fields import Field, fields_of
from mpimomentum.runtime.variables import RUNTIME_VARIABLES

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- begin: scripts/config_table.py -->\n", "<!-- end -->\n"
WHOLE, SIMULATION = "The whole run", "Only `mpimomentum simulate`"
TYPES = {int: "whole number", float: "number", bool: "true, false", str: "text", Path: "path"}


def tables() -> str:
    """Return all tables as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for title, fields in _groups().items():
        yield f"\n**{title}**\n\n| key | type | default | meaning |\n|---|---|---|---|"
        for field in fields:
            yield f"| `{field.name}` | {_type(field.hint)} | {_default(field)} | {field.about} |"
    yield "\n**Variables that are no flags**\n\n| variable | default | meaning |\n|---|---|---|"
    for name, (default, about) in RUNTIME_VARIABLES.items():
        yield f"| `{name}` | {f'`{default}`' if default else ''} | {about} |"
    yield ""


def _groups() -> dict[str, list[Field]]:
    """Return title of the help → fields, in the order of the help."""
    of_train = fields_of(TrainConfig)
    groups: dict[str, list[Field]] = {}
    for name, field in fields_of(SimulateConfig).items():
        title = _title(SimulateConfig, name) if name in of_train else SIMULATION
        groups.setdefault(title, []).append(field)
    return groups


def _title(config: type[Any], name: str) -> str:
    """Return the group of the help that a field is in."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        part = hints[field.name]
        if dataclasses.is_dataclass(part) and name in fields_of(part):  # type: ignore[arg-type]
            (group,) = part.__cyclopts__.parameters[0].group  # type: ignore[union-attr]
            return str(group)
    return WHOLE


def _type(hint: Any) -> str:
    if get_origin(hint) is Union:
        return ", ".join(map(_type, get_args(hint)))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    return TYPES[hint]


def _default(field: Field) -> str:
    if field.default is None:
        return ""
    text = str(field.default)
    return f"`{text.lower() if isinstance(field.default, bool) else text}`"


def main() -> None:
    if "--write" not in sys.argv[1:]:
        print(tables())
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + tables() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
