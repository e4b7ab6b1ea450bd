"""Where a configuration comes from: flags, ``MPIMOMENTUM_*`` variables, a TOML file, in this order.

Cyclopts calls :data:`SOURCES` one after the other; each fills in what is still open, after it has
refused, by name, what it does not know or cannot read.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict, Env

from mpimomentum.runtime.config import LENGTHS, SimulateConfig, TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fields import PREFIX, Field, expected, fields_of, fits, reads, suggestion
from mpimomentum.runtime.variables import RUNTIME_VARIABLES

FIELDS = {"train": fields_of(TrainConfig), "simulate": fields_of(SimulateConfig)}
"""Command → what it is configured by, by name."""


def flags(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse flags that cannot be read as their type; cyclopts would round 1.5 to 2."""
    known = {field.name: field for field in _fields(commands).values()}
    for argument in arguments:
        field = known.get(argument.keys[-1]) if argument.keys else None
        for token in argument.tokens if field is not None else ():
            if token.value and not reads(field.hint, token.value):  # type: ignore[union-attr]
                needed = expected(field.hint, token.value)  # type: ignore[union-attr]
                raise BadInput(f"{token.keyword} {token.value}: {needed}")


def from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what ``MPIMOMENTUM_*`` variables say and no flag did."""
    if not _fields(commands):
        return
    for variable in sorted(v for v in os.environ if v.startswith(PREFIX)):
        check_variable(variable, os.environ[variable])
    _one_length(Env(PREFIX, command=False), app, commands, arguments)


def from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what the positional TOML file says and no flag or variable did."""
    tokens = [token for a in arguments if a.index == 0 for token in a.tokens]
    if not tokens or not _fields(commands):
        return
    path = Path(tokens[0].value).expanduser()
    table = read(path, commands[0])
    # under the command's name, or keys that are commands, too, such as trace, would be left out
    source = Dict({commands[0]: table}, source=str(path), use_commands_as_keys=True)
    _one_length(source, app, commands, arguments)


SOURCES = (flags, from_environment, from_file)


def read(path: Path, command: str = "train") -> dict[str, Any]:
    """Read a TOML file of a command and check its keys and the types of its values.

    Raises
    ------
    BadInput
        With the file, the line where there is one, and the remedy.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not TOML: byte {error.start} is not UTF-8; save the file as UTF-8 text"
        ) from error
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror or error}; the argument without a flag is a TOML file: give "
            "one, or flags only"
        ) from error
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # says the line
        raise BadInput(
            f'{path} is not TOML: {error}; a line reads lr = 0.1 or model = "mlp"'
        ) from error
    known = FIELDS[command]
    for key, value in table.items():
        where = f"{path}, line {_line(text, key)}"
        if key not in known or isinstance(value, dict):
            raise BadInput(f"{where}: {_unknown_key(key, value, known, command)}")
        if not fits(known[key].hint, value):
            raise BadInput(f"{where}: {key} = {_toml(value)}: {expected(known[key].hint, value)}")
    return table


def unknown_flag(flag: str, command: str) -> str:
    """Return what to say about a flag that a command does not have."""
    name = flag.lstrip("-").replace("-", "_")
    for other, fields in FIELDS.items():
        if other != command and name in fields:
            return f"{flag} is a flag of mpimomentum {other}, not of {command}: leave it out"
    known = [field.flag for field in FIELDS[command].values()]
    return (
        f"unknown flag {flag}: {suggestion(flag, known)}"
        f"`mpimomentum {command} --help` shows all flags"
    )


def _fields(commands: tuple[str, ...]) -> dict[str, Field]:
    return FIELDS.get(commands[0], {}) if commands else {}


def check_variable(variable: str, text: str) -> None:
    """Refuse a variable that no command and no rank reads, or of which the value is no value.

    Raises
    ------
    BadInput
    """
    known: dict[str, Field] = {}
    for fields in FIELDS.values():  # one environment serves all commands
        known |= {field.variable: field for field in fields.values()}
    if variable in RUNTIME_VARIABLES:
        return
    if variable not in known:
        hint = suggestion(variable, (*known, *RUNTIME_VARIABLES))
        raise BadInput(
            f"unknown variable {variable}={text}: {hint}"
            "Unset it, or see `mpimomentum train --help`: each flag is a variable"
        )
    if not text:
        raise BadInput(f"{variable} is set to nothing: give it a value, or unset it")
    if not reads(known[variable].hint, text):
        raise BadInput(f"{variable}={text}: {expected(known[variable].hint, text)}")


def _unknown_key(key: str, value: Any, known: dict[str, Field], command: str) -> str:
    if isinstance(value, dict):
        return f"[{key}] is a table: write all keys without a table, such as lr = 0.1"
    for other, fields in FIELDS.items():
        if other != command and key in fields:
            return f"{key} is a key of mpimomentum {other}, not of {command}: take the line out"
    hint = suggestion(key.replace("-", "_"), known)
    return f"unknown key {key}: {hint}Keys are flags with _ for -: {', '.join(known)}"


def _line(text: str, key: str) -> int:
    """Return the line on which a key or its table is; TOML's own reader does not tell."""
    found = re.search(rf"^[ \t]*\[*[ \t]*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _one_length(
    source: Any, app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Apply `source`; but of epochs, steps and duration_s one replaces a lesser source's other."""
    lengths = [a for a in arguments if a.keys and a.keys[-1] in LENGTHS]
    given = [a for a in lengths if a.tokens]
    source(app, commands, arguments)
    for argument in lengths if given else ():
        if argument not in given:
            argument.tokens.clear()
