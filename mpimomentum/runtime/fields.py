"""The fields of a configuration, each a flag, a TOML key and a variable, with its type in words."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser

C = TypeVar("C")

PREFIX = "MPIMOMENTUM_"
TRUTHS = ("true", "false", "yes", "no", "1", "0")  # what cyclopts takes, lower case


@dataclass(frozen=True)
class Field:
    """One leaf of the configuration tree.

    Attributes
    ----------
    name : str
        The TOML key.
    hint : type
        Without Annotated and without the None of what may be left out.
    default : object
    about : str
        The docstring's words.
    group : str
        First line of the docstring of the class that it is in.
    """

    name: str
    hint: Any
    default: Any
    about: str
    group: str

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """What the environment calls it."""
        return PREFIX + self.name.upper()


def fields_of(config: type[Any]) -> dict[str, Field]:
    """Return the leaves of a tree of dataclasses by name, in the order of the help."""
    found: dict[str, Field] = {}
    hints = get_type_hints(config, include_extras=True)
    about = _about(config)
    group = (config.__doc__ or "").partition("\n")[0]
    for field in dataclasses.fields(config):
        hint = _bare(hints[field.name])
        if dataclasses.is_dataclass(hint):
            found |= fields_of(hint)  # type: ignore[arg-type]
        else:
            name = field.name
            found[name] = Field(name, hint, field.default, about.get(name, ""), group)
    return found


def tree(config: type[C], values: Mapping[str, Any]) -> C:
    """Return a configuration of what a TOML file says, and defaults for the rest."""
    hints = get_type_hints(config)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        hint = _bare(hints[field.name])
        if dataclasses.is_dataclass(hint):
            given[field.name] = tree(hint, values)  # type: ignore[arg-type]
        elif field.name in values:
            given[field.name] = _as(hint, values[field.name])
    return config(**given)


def _as(hint: Any, value: Any) -> Any:
    """Return a value of a TOML file as the type that it fits."""
    if hint is Path:
        return Path(value)
    if hint is float:
        return float(value)
    return tuple(_as(get_args(hint)[0], v) for v in value) if get_origin(hint) is tuple else value


def fits(hint: Any, value: Any) -> bool:
    """Whether a value of a TOML file is of the type; a whole number is a number as well."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(part, value) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint) and not isinstance(value, bool)
    if get_origin(hint) in (tuple, list):
        return isinstance(value, list) and all(fits(get_args(hint)[0], v) for v in value)
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float)
    if hint in (str, Path):
        return isinstance(value, str)
    return isinstance(value, hint) if isinstance(hint, type) else True


def reads(hint: Any, text: str) -> bool:
    """Whether the text of a flag or a variable can be read as the type."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(reads(part, text) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return text in get_args(hint)
    if hint is bool:
        return text.lower() in TRUTHS
    if hint in (int, float):
        try:
            hint(text)
        except ValueError:
            return False
    return True


def expected(hint: Any, value: object = None) -> str:
    """Return in words what a type asks for, with the nearest choice to `value`."""
    if get_origin(hint) in (Union, types.UnionType):
        return ", or ".join(expected(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return f"{suggestion(str(value), choices)}choose one of {', '.join(choices)}"
    if get_origin(hint) in (tuple, list):
        return f"a list is needed, of which each is right alone: {expected(get_args(hint)[0])}"
    words = {
        int: "a whole number is needed",
        float: "a number is needed",
        bool: "true or false is needed",
        str: "text is needed, in quotes",
        Path: "a path is needed, in quotes",
    }
    return words.get(hint, "a value of another type is needed")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean …? " with the nearest of what is known, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _bare(hint: Any) -> Any:
    """Strip Annotated and the None of Optional."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        rest = [part for part in get_args(hint) if part is not types.NoneType]
        return _bare(rest[0]) if len(rest) == 1 else Union[tuple(map(_bare, rest))]  # noqa: UP007  # a tuple
    return hint


def _about(config: type[Any]) -> dict[str, str]:
    """Return name -> words of the docstring, of the classes it inherits from as well."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        for parameter in docstring_parser.parse(vars(cls).get("__doc__") or "").params:
            found[parameter.arg_name] = " ".join((parameter.description or "").split())
    return found
