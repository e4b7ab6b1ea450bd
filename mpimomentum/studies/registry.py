"""The studies by name; a module each, imported when it is asked for."""

from __future__ import annotations

import importlib
import inspect

from mpimomentum.runtime.errors import BadInput
from mpimomentum.studies.study import Study

STUDIES = (
    "streaming-pca",
    "momentum-vs-asynchrony",
    "stragglers",
    "heterogeneous-data",
    "linear-speedup",
    "majority-vote",
    "katyusha-x",
    "scaling",
    "staleness-weights",
    "replay",
)


def load(name: str) -> Study:
    """Return a study.

    Raises
    ------
    BadInput
        If there is none of that name.
    """
    if name not in STUDIES:
        raise BadInput(f"study {name!r}: choose of {', '.join(STUDIES)} and all")
    module = importlib.import_module(f"mpimomentum.studies.{name.replace('-', '_')}")
    study: Study = module.STUDY
    return study


def about(name: str) -> str:
    """Return what a study claims, measures, and would be refuted by: its module's docstring."""
    return inspect.cleandoc(inspect.getmodule(type(load(name))).__doc__ or "")
