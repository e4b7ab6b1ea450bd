"""The hyper-parameters of all registered algorithms, as fields of the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser

from mpimomentum.algorithms.registry import ALGORITHMS

C = TypeVar("C")

ELSEWHERE = ("weight_decay", "batch")  # follow from fields that are there for all algorithms


def described(cls: type[Any]) -> dict[str, docstring_parser.DocstringParam]:
    """Return name -> what a class's docstring says of a parameter; several may share an entry."""
    entries = docstring_parser.parse(cls.__doc__ or "").params
    return {name: entry for entry in entries for name in entry.arg_name.split(", ")}


def with_field(name: str) -> str:
    """Return the names of the algorithms that have a hyper-parameter."""
    have = (n for n, cls in ALGORITHMS.items() if name in (f.name for f in dataclasses.fields(cls)))
    return ", ".join(have)


def with_hyper_parameters(config: type[C]) -> type[C]:
    """Add a field for each hyper-parameter of any algorithm that `config` has no field for.

    A class decorator, below ``@dataclass``: an algorithm needs no line in the configuration to have
    its flags, TOML keys and variables. A field is None unless given, and its help is what the
    algorithms' docstrings say. That of `config` must have a section on its parameters.
    """
    hints: dict[str, Any] = {}
    words: dict[str, dict[str, list[str]]] = {}  # field -> help -> names of algorithms
    for name, cls in ALGORITHMS.items():
        types, about = get_type_hints(cls), described(cls)
        for field in dataclasses.fields(cls):
            if field.name in config.__annotations__ or field.name in ELSEWHERE:
                continue
            hints.setdefault(field.name, _plain(types[field.name]))
            entry = about.get(field.name)
            text = " ".join((entry.description or "").split()) if entry else ""
            text = ": ".join(filter(None, [text.rstrip("."), _choices(types[field.name])]))
            text = " ".join(filter(None, [text, _default(field)]))
            words.setdefault(field.name, {}).setdefault(text, []).append(name)
    for name, hint in hints.items():
        config.__annotations__[name] = hint | None
        setattr(config, name, None)
        said = ((", ".join(names), text) for text, names in words[name].items())
        text = " ".join(f"{names}: {text}." if text else f"{names}." for names, text in said)
        config.__doc__ = f"{(config.__doc__ or '').rstrip()}\n    {name}\n        {text}\n    "
    return config


def _default(field: dataclasses.Field[Any]) -> str:
    plain = field.default in (None, False, "", dataclasses.MISSING)
    return "" if plain else f"(default: {field.default})"


def _choices(hint: Any) -> str:
    return ", ".join(get_args(hint)) if get_origin(hint) is Literal else ""


def _plain(hint: Any) -> Any:
    """Return the type that a flag is read as: the algorithm itself refuses what is no choice."""
    return str if get_origin(hint) is Literal else hint
