"""For any valid configuration c: reading the TOML of c gives c, with every default filled in."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
import tomllib
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from mpimomentum import cli, data, models, topology
from mpimomentum.algorithms.registry import ALGORITHMS
from mpimomentum.runtime.config import LENGTHS, Method, SimulateConfig, TrainConfig
from mpimomentum.runtime.errors import BadInput
from mpimomentum.runtime.fields import fields_of, fits

CONFIGS = {"train": TrainConfig, "simulate": SimulateConfig}
DRAWS, MOST = 10, 100  # of each algorithm
OF_ONE_RUN = (
    "out",
    "progress",
    "resume",
    "resize",
    "log_level",
    "replay",
    "show",
    "until",
)  # not in a config.toml

TEXTS = {
    "algorithm": tuple(ALGORITHMS),
    "variant": ("lockfree", "paired", "cta", "atc"),
    "topology": (*topology.names(), "/a/w.csv", '/a "quoted" \\ é.npy'),
    "model": tuple(models.names()),
    "data": tuple(data.names()),
    "scale": ("global", "layer"),
    "buffers": ("average", "reset", "keep"),
    "weighting": ("exponential", "polynomial"),
    "mode": ("server", "sums"),
    "wire": ("float32", "bf16", "int8"),
    "adversaries": ("2:invert", "0:random,3:invert"),
    "prox": ("l1:0.001", "l2:1e-4"),
    "slow": ("0:10", "0:0.5,3:2"),
    "slow_links": ("0:10", "0:0.5,3:2"),
    "slow_nodes": ("0:10", "0:1.5,3:2"),
    "network": ("shared", "fat-tree:4", "fat-tree:8:2.5"),
    "milestones": ("5", "1.5,20"),
    "device": ("auto", "cpu", "cuda", "cuda:3"),
    "resume": ("auto", "never", "/runs/a/checkpoints/step-000100"),
    "show": ("7", "10..20"),
}
"""Possible values of the fields that are text; a new one needs a row."""

NEEDS: dict[str, dict[str, Any]] = {
    "wire": {"algorithm": "d-psgd", "topology": "ring"},
    "milestones": {"lr_schedule": "step"},
    "scale": {"error_feedback": True},
    "decay": {"weighting": "exponential", "mu": 0.5},
    "mu_max": {"mu": "auto"},
    "auto_lr": {"mu": "auto"},
    "weight_momentum": {"weighting": "polynomial"},
    "failure_timeout_s": {"on_failure": "continue"},
    "show": {"replay": Path("/runs/a")},
    "until": {"replay": Path("/runs/a")},
}
"""What else must be given with a field, or hardly a draw would be valid."""

REFUSED = {"train": set[str](), "simulate": {"failure_timeout_s", "checkpoint_every", "keep"}}
"""Fields that a command has only to refuse."""


def value(source: random.Random, name: str, hint: Any) -> Any:
    if get_origin(hint) is Union:
        return value(source, name, source.choice(get_args(hint)))
    if get_origin(hint) is Literal:
        return source.choice(get_args(hint))
    if get_origin(hint) is tuple:
        return tuple(value(source, name, get_args(hint)[0]) for _ in range(source.randint(1, 3)))
    if hint is bool:
        return source.random() < 0.5
    if hint is int:
        return source.randint(1, 10**6)
    if hint is float:
        return source.choice((1e-7, 0.1, 0.5, 1 / 3, 1.0, 30.0, 12345.678, math.inf))
    if hint is Path:
        return Path(source.choice(("/data", '/with space/"and" quotes\\')))
    return source.choice(TEXTS[name])


_hints = functools.cache(get_type_hints)  # asked for hundreds of thousands of times


def tree(config: type[Any], values: dict[str, Any]) -> Any:
    """Put flat values into the tree of dataclasses."""
    hints = _hints(config)
    given = {}
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            given[field.name] = tree(hints[field.name], values)
        elif field.name in values:
            given[field.name] = values[field.name]
    return config(**given)


def drawn(source: random.Random, config: type[Any], algorithm: str) -> tuple[Any, set[str]]:
    """Return a random configuration that is not refused, and the fields given."""
    fields = fields_of(config)
    of_method = {f.name for f in dataclasses.fields(Method)}
    while True:
        its = {f.name for f in dataclasses.fields(ALGORITHMS[algorithm])} | {"algorithm"}
        often = {n: 0.6 if n in of_method else 0.3 for n in fields if n not in of_method - its}
        names = {n for n, share in often.items() if source.random() < share}
        names -= set(source.sample(LENGTHS, 2))
        values = {name: value(source, name, fields[name].hint) for name in sorted(names)}
        for name in names & NEEDS.keys():
            values |= NEEDS[name]
        try:
            return tree(config, values | {"algorithm": algorithm}), names
        except (BadInput, ValueError):  # such as mu = 12345
            continue


@pytest.mark.parametrize("command", CONFIGS)
def test_what_is_written_is_what_is_read(command, tmp_path, monkeypatch):
    for variable in [v for v in os.environ if v.startswith("MPIMOMENTUM_")]:
        monkeypatch.delenv(variable)
    source = random.Random(command)
    file = tmp_path / "config.toml"
    ever_given: set[str] = set()
    possible = set(fields_of(CONFIGS[command])) - REFUSED[command]
    for number, algorithm in enumerate(MOST * tuple(ALGORITHMS)):
        if number >= DRAWS * len(ALGORITHMS) and ever_given == possible:
            break
        config, names = drawn(source, CONFIGS[command], algorithm)
        ever_given |= names
        file.write_text(config.toml(), encoding="utf-8")
        _, bound, _ = cli.app.parse_args(
            [command, str(file)], exit_on_error=False, print_error=False
        )
        read = bound.kwargs["config"]
        here = {name: getattr(config.saving, name) for name in ("resume", "resize")}
        saving = dataclasses.replace(read.saving, **here)
        alike = dataclasses.replace(read, output=config.output, saving=saving)
        if command == "simulate":
            alike = dataclasses.replace(alike, replaying=config.replaying)
        assert alike == config.resolved()
        assert read.toml() == config.toml()
    assert ever_given == possible, "a field that no draw has tried"


@pytest.mark.parametrize("config", CONFIGS.values())
def test_every_field_has_words_and_a_default_of_its_type(config):
    for name, field in fields_of(config).items():
        assert field.about, f"{name} is not in the docstring of its class"
        assert field.default is None or fits(field.hint, _as_toml(field.default)), name


@pytest.mark.parametrize("config", CONFIGS.values())
def test_only_what_belongs_to_one_run_is_left_out_of_the_file(config):
    written = tomllib.loads(config().toml())
    left_out = {n for n, f in fields_of(config).items() if f.default is not None} - set(written)
    assert left_out <= set(OF_ONE_RUN)


def _as_toml(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
