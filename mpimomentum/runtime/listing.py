"""What there is to choose from: ``mpimomentum list``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from mpimomentum import data, models, topology
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime import footprint
from mpimomentum.runtime.config import usual
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fields import suggestion
from mpimomentum.runtime.hyper_parameters import described

WIDTH = 96
FLAGS = {
    "algorithms": "--algorithm",
    "topologies": "--topology",
    "models": "--model",
    "data": "--data",
}

Listing = dict[str, dict[str, Any]]


def everything() -> dict[str, Listing]:
    """Return kind → name → what is known about it, ready for JSON."""
    return {
        "algorithms": {name: _algorithm(cls) for name, cls in ALGORITHMS.items()},
        "topologies": {name: {"about": about} for name, about in topology.names().items()},
        "models": {name: {"about": about} for name, about in models.names().items()},
        "data": {name: {"about": about} for name, about in data.names().items()},
    }


def choose(what: str | None) -> dict[str, Listing]:
    """Return the part of :func:`everything` that a kind or a name stands for.

    Raises
    ------
    BadInput
        If there is no such kind or name, with the nearest.
    """
    found = everything()
    if what is None:
        return found
    if what in found:
        return {what: found[what]}
    for kind, names in found.items():
        if what in names:
            return {kind: {what: names[what]}}
    known = [*found, *(name for names in found.values() for name in names)]
    raise BadInput(
        f"nothing is called {what!r}: {suggestion(what, known)}List {', '.join(found)} or one name "
        "of them"
    )


def memory(what: str | None, parameters: float) -> dict[str, Any]:
    """Return what the algorithm `what`, or each of them, holds of so many parameters.

    Raises
    ------
    BadInput
        If `what` is no algorithm, with the nearest.
    """
    names = list(ALGORITHMS)
    if what not in (None, "algorithms", *names):
        raise BadInput(
            f"--memory is of algorithms, {what!r} is none: {suggestion(str(what), names)}"
            f"There are {', '.join(names)}"
        )
    return footprint.described([what] if what in names else names, parameters)


def lines(found: dict[str, Listing]) -> Iterator[str]:
    """Return a listing as text; of one algorithm, everything about it."""
    for index, (kind, names) in enumerate(found.items()):
        if len(names) == 1 and kind == "algorithms" and len(found) == 1:
            ((name, known),) = names.items()
            yield from _detail(name, known)
            return
        or_file = ", or a file .npy or .csv with W" if kind == "topologies" else ""
        yield ("\n" if index else "") + f"{kind.capitalize()} ({FLAGS[kind]}{or_file})"
        for name, known in names.items():
            yield from _brief(name, known)


def paper(cls: type[Any]) -> str:
    """Return the first reference in the docstring of the algorithm's module."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    _, _, references = text.partition("References\n----------\n")
    return " ".join(re.split(r"\n\s*\n", references, maxsplit=1)[0].split())


def _algorithm(cls: type[Any]) -> dict[str, Any]:
    words = described(cls)
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    parameters = {}
    for field in dataclasses.fields(cls):
        known = words.get(field.name)
        parameters[field.name] = {
            "default": None if field.default is dataclasses.MISSING else field.default,
            "required": field.default is dataclasses.MISSING,
            "type": (known.type_name if known else None)
            or getattr(field.type, "__name__", str(field.type)),
            "about": " ".join((known.description or "").split()) if known else "",
        }
    return {
        "about": module.partition("\n")[0],
        "parameters": parameters,
        "synchronous": cls.synchronous,
        "paper": paper(cls),
    }


def _brief(name: str, known: dict[str, Any]) -> Iterator[str]:
    if "parameters" not in known:
        yield f"  {name:22}{known['about']}"
        return
    parameters = (
        p if v["required"] else f"{p}={v['default']!r}" for p, v in known["parameters"].items()
    )
    yield f"  {name}  {', '.join(parameters)}"
    yield textwrap.fill(known["paper"], WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _detail(name: str, known: dict[str, Any]) -> Iterator[str]:
    waits = "waits for other ranks" if known["synchronous"] else "waits for no other rank"
    yield known["about"]
    yield f"A step {waits}.\n"
    here = usual(ALGORITHMS[name])
    yield "Parameters, each a flag and a TOML key:"
    for parameter, about in known["parameters"].items():
        default = "" if about["required"] else f", default {about['default']!r}"
        if parameter == "batch":  # one flag says how much a rank computes at a time
            default = " in Python; here batch_size from each rank"
        elif parameter in here:
            default += f"{',' if about['required'] else ' in Python,'} {here[parameter]} here"
        yield f"  {parameter} : {about['type']}{default}"
        if about["about"]:
            yield textwrap.indent(textwrap.fill(about["about"], WIDTH - 6), " " * 6)
    if known["paper"]:
        yield "\nPaper:"
        yield textwrap.fill(known["paper"], WIDTH, initial_indent="  ", subsequent_indent="  ")
    # the ring, which is the default, has an eigenvalue of -1/3
    lazy = " --lazy" if ALGORITHMS[name].requires == "above_minus_third" else ""
    yield f"\nmpirun -n 4 mpimomentum train --algorithm {name}{lazy}"
