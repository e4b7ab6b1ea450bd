"""What was measured of a machine, as a file: what a simulation of it needs."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mpimomentum.runtime.errors import BadInput
from mpimomentum.simulator.clock import Cost, Operation

FORMAT = 1
REMEDY = "make it anew with mpimomentum calibrate"
OPERATIONS: tuple[Operation, ...] = tuple(op for op in get_args(Operation) if op != "message")


@dataclass(frozen=True)
class Link:
    """A message of m bytes takes ``latency_s + m / bandwidth_Bps``."""

    latency_s: float
    bandwidth_Bps: float  # noqa: N815
    total_Bps: float = math.inf  # noqa: N815


@dataclass(frozen=True)
class Step:
    """What a step takes by itself.

    Attributes
    ----------
    gradient_s : float
        A gradient of `model` on `data`, `batch_size` samples.
    update_s, update_s_per_parameter : float
        Everything else of a step: the update, hand-overs between threads. A server applies each
        gradient in the time for each parameter of its shard.
    """

    gradient_s: float
    update_s: float
    update_s_per_parameter: float
    parameters: int
    batch_size: int
    model: str
    data: str
    device: str = "cpu"
    amp: str = "off"


@dataclass(frozen=True)
class Calibration:
    """A machine, measured.

    Attributes
    ----------
    node : Link or None
        Between ranks of a node; None if each had one of its own.
    network : Link or None
        Between nodes; None if it was measured on one.
    costs : mapping
        What operations cost beside a message.
    """

    made_by: str
    mpi: str
    date: str
    ranks: int
    nodes: int
    cores: int
    step: Step
    node: Link | None
    network: Link | None
    costs: Mapping[Operation, Cost]

    def update_s(self, parameters: float) -> float:
        """Return what a step takes beside its gradient, for a model of so many parameters."""
        return self.step.update_s + self.step.update_s_per_parameter * parameters

    @property
    def room(self) -> int:
        """Ranks that a node has room for: one a core, or as many as measured, on devices say."""
        return max(self.cores, self.ranks // self.nodes)

    def workers_per_node(self, size: int) -> int:
        """Return on how many workers a node is to have among `size`, if nobody says."""
        return min(self.ranks // self.nodes, size) if self.network is not None else size

    def gradient_of(self, model: str, data: str, batch_size: int) -> float:
        """Return the seconds of a gradient.

        Raises
        ------
        BadInput
            If it was another model's that was measured.
        """
        step = self.step
        asked, known = (model, data, batch_size), (step.model, step.data, step.batch_size)
        if asked != known:
            raise BadInput(
                f"calibration: a gradient of {known[0]} on {known[1]}, {known[2]} samples, was "
                f"measured, not of {asked[0]} on {asked[1]}, {asked[2]} samples: give --compute-s, "
                "or calibrate with these"
            )
        return step.gradient_s

    def clock(
        self, size: int, per_node: int, parameters: float, given: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return what the clock of `size` workers has from here; `given` is known already.

        Raises
        ------
        BadInput
            If they have links that were not measured, nor given.
        """
        values: dict[str, Any] = {
            "gpus_per_node": per_node,
            "update_s": self.update_s(parameters),
            "serve_s": self.step.update_s_per_parameter * parameters,
            "costs": self.costs,
        }
        for needed, link, prefix, where, remedy in (
            (per_node > 1, self.node, "node_", "within a node", "1"),
            (size > per_node, self.network, "", "between nodes", str(size)),
        ):
            names = (f"{prefix}latency_s", f"{prefix}bandwidth_Bps")
            if link is not None:
                values |= {names[0]: link.latency_s, names[1]: link.bandwidth_Bps}
                if prefix:
                    values["node_total_Bps"] = link.total_Bps
            elif needed and not all(name in given for name in names):
                flags = " and ".join("--" + name.replace("_", "-") for name in names)
                raise BadInput(
                    f"calibration: no messages {where} were measured: give {flags}, calibrate "
                    f"on more, or simulate with --gpus-per-node {remedy}"
                )
        return values

    def toml(self) -> str:
        """Return the file's text."""
        step, lines = self.step, []

        def put(name: str, value: Any, comment: str = "") -> None:
            text = json.dumps(value) if isinstance(value, str) else f"{value:.6g}"
            text = str(value) if isinstance(value, int) else text
            lines.append(f"{name} = {text}" + (f"  # {comment}" if comment else ""))

        lines.append("# Made by mpimomentum calibrate; read by mpimomentum simulate --from FILE.")
        put("format", FORMAT)
        for name in ("made_by", "mpi", "date"):
            put(name, getattr(self, name))
        put("ranks", self.ranks, "that measured")
        put("nodes", self.nodes)
        put("cores", self.cores, "of rank 0's node, as many as it may use")
        lines.append("\n[step]")
        put("gradient_s", step.gradient_s, "seconds of a gradient of this model, on every rank")
        put("update_s", step.update_s, "seconds of a step besides, and")
        each = "for each parameter; of a server for each gradient"
        put("update_s_per_parameter", step.update_s_per_parameter, each)
        for name in ("parameters", "batch_size", "model", "data", "device", "amp"):
            put(name, getattr(step, name))
        for name, link in (("node", self.node), ("network", self.network)):
            if link is not None:
                where = "ranks of a node" if name == "node" else "nodes"
                lines.append(f"\n[{name}]  # between {where}: latency_s + bytes / bandwidth_Bps")
                for key, value in dataclasses.asdict(link).items():
                    note = "of all ranks' messages together" if key == "total_Bps" else ""
                    put(key, value, note)
        for operation, cost in self.costs.items():
            lines.append(
                f"\n[costs.{operation}]  # times what messages of as many bytes would take"
            )
            put("latency", cost.latency)
            put("nbytes", cost.nbytes)
        return "\n".join(lines) + "\n"

    def save(self, path: Path) -> None:
        """Write the file, in whole or not at all."""
        from mpimomentum.runtime.telemetry import write  # which the configuration comes before

        write(path, self.toml())


def load(path: Path) -> Calibration:
    """Read what :meth:`Calibration.save` wrote.

    Raises
    ------
    BadInput
        If it is not there, or not that.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise BadInput(f"calibration={path}: {error.strerror or error}; {REMEDY}") from error
    except ValueError as error:
        raise BadInput(f"calibration={path} is not UTF-8 text ({error}); {REMEDY}") from error
    return loads(text, path)


def loads(text: str, path: Path) -> Calibration:
    """Return what the text of a file says; `path` is for messages.

    Raises
    ------
    BadInput
    """
    try:
        table = tomllib.loads(text)
    except ValueError as error:
        raise BadInput(f"calibration={path} is not TOML ({error}); {REMEDY}") from error
    if table.get("format") != FORMAT:
        raise BadInput(
            f"calibration={path} has format = {table.get('format')!r}, this version reads "
            f"{FORMAT}; {REMEDY}"
        )
    try:
        return _read(table)
    except (ValueError, TypeError) as error:
        raise BadInput(f"calibration={path}: {error}; {REMEDY}") from error


def _read(table: Mapping[str, Any]) -> Calibration:
    unknown = sorted(set(table) - {f.name for f in dataclasses.fields(Calibration)} - {"format"})
    if unknown:
        raise ValueError(f"{unknown[0]} is not known")
    node, network = (
        None if name not in table else _link(name, table[name]) for name in ("node", "network")
    )
    if node is None and network is None:
        raise ValueError("node is missing")
    hints = get_type_hints(Calibration)
    values: dict[str, Any] = {
        f.name: _value(f.name, table, hints[f.name])
        for f in dataclasses.fields(Calibration)
        if f.name not in ("step", "node", "network", "costs")
    }
    costs = {
        _operation(name): Cost(**_numbers(f"costs.{name}", one, Cost))
        for name, one in _value("costs", {"costs": {}, **table}, dict).items()
    }
    for name in ("ranks", "nodes", "cores"):
        if values[name] < 1:
            raise ValueError(f"{name} = {values[name]}: at least 1 is needed")
    step = Step(**_numbers("step", _value("step", table, dict), Step))
    return Calibration(**values, step=step, node=node, network=network, costs=costs)


def _link(name: str, table: Any) -> Link:
    link = Link(**_numbers(name, table, Link))
    if not (0 <= link.latency_s < math.inf and link.bandwidth_Bps > 0 and link.total_Bps > 0):
        raise ValueError(f"{name}: latency_s must not be negative, bandwidths must be above 0")
    return link


def _operation(name: str) -> Operation:
    if name not in OPERATIONS:
        raise ValueError(f"costs.{name}: there is no such operation")
    return name


def _numbers(where: str, table: Any, kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass, from a table that has them all, and no others."""
    hints = get_type_hints(kind)
    if not isinstance(table, dict):
        raise TypeError(f"{where} is no table")
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise ValueError(f"{where}.{unknown[0]} is not known")
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    found = {
        name: _value(name, table, hint, f"{where}.")
        for name, hint in hints.items()
        if name in table or name not in optional or kind is Cost
    }
    for name, value in found.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{where}.{name} = {value!r} must not be negative")
    return found


def _value(name: str, table: Mapping[str, Any], hint: type[Any], where: str = "") -> Any:
    if name not in table:
        raise ValueError(f"{where}{name} is missing")
    value = table[name]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"{where}{name} = {value!r} is not {hint.__name__}")
    return value
