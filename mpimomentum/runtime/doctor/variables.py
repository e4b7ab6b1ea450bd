"""The ``MPIMOMENTUM_*`` variables that are set, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

from mpimomentum.runtime.doctor.finding import Finding, Status
from mpimomentum.runtime.doctor.place import Place
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fields import PREFIX
from mpimomentum.runtime.sources import check_variable
from mpimomentum.runtime.variables import runtime


def variables(place: Place) -> Finding:
    """Look for variables that nobody reads, and for values that cannot be."""
    mine = {k: v for k, v in sorted(place.environ.items()) if k.startswith(PREFIX)}
    found = " ".join(f"{k}={v}" for k, v in mine.items()) or "no MPIMOMENTUM_* variable is set"
    refusals = list(_refusals(place, mine))
    if refusals:
        return Finding(
            "variables",
            Status.FAIL,
            found,
            "mpimomentum train refuses to start; the doctor goes on with the defaults",
            "; ".join(refusals),
        )
    meaning = "they win over the TOML file; a flag wins over them" if mine else "defaults apply"
    return Finding("variables", Status.OK, found, meaning)


def _refusals(place: Place, mine: dict[str, str]) -> Iterator[str]:
    for name, value in mine.items():
        try:
            check_variable(name, value)
        except BadInput as error:
            yield str(error)
    try:
        runtime(place.environ)
    except BadInput as error:
        yield str(error)
