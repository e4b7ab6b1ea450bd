"""Checkpoints on disk: a file a rank, and a manifest that commits the set.

``checkpoints/step-000120/rank-0003.safetensors`` holds the tensors of rank 3 and, as JSON in its
header, all other values. ``manifest.json`` is written last, names every file with its size and
checksum, and has a checksum of its own: a directory without it, or with one that does not fit, is
no checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mpimomentum.runtime.telemetry import write

FORMAT = 2
FORMATS = (1, FORMAT)  # that can be read
DIRECTORY = "checkpoints"
MANIFEST = "manifest.json"

Tree = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, texts and None; the keys are texts."""

_TENSOR = "$tensor"  # stands in the JSON for a tensor, with its name in the file
_STEP = re.compile(r"step-(\d{6,})")


class Damaged(Exception):  # it is what the file is
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class File:
    """One rank's file as the manifest names it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What commits a checkpoint.

    Attributes
    ----------
    number : int
        Of the checkpoint: the mean number of steps of the workers, rounded down, or one more than
        the number of the checkpoint before.
    identity : dict
        What a run that goes on from here must have in common with the one that wrote it.
    steps : list of int
        Completed by each rank.
    files : list of File
        In order of the ranks.
    resizing : dict or str
        What becomes of what a rank keeps where another number of ranks goes on, or why none can
        (:mod:`mpimomentum.runtime.resizing`).
    """

    number: int
    identity: dict[str, Any]
    steps: list[int]
    files: list[File]
    resizing: dict[str, str] | str = ""
    mpimomentum: str = dataclasses.field(default_factory=lambda: version("mpimomentum"))
    format: int = FORMAT


def path_of(directory: Path, number: int) -> Path:
    """Return where checkpoint `number` lies."""
    return directory / f"step-{number:06d}"


def number_of(path: Path) -> int:
    """Return the number in a checkpoint's name, -1 if it is none's."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def committed(directory: Path) -> list[Path]:
    """Return the checkpoints with a manifest, valid or not, newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if (path / MANIFEST).exists()]
    return sorted((p for p in found if number_of(p) >= 0), key=number_of, reverse=True)


def prepare(path: Path) -> None:
    """Make the empty directory of a checkpoint."""
    if path.exists():  # what a run that died left, or a damaged one
        (path / MANIFEST).unlink(missing_ok=True)  # first: it must not commit what is half gone
        shutil.rmtree(path)
    path.mkdir(parents=True)
    sync_directory(path.parent)


@dataclass(frozen=True)
class Packed:
    """A tree as a file holds it: its tensors, not copied if they are on the CPU, and the rest."""

    tensors: dict[str, torch.Tensor]
    values: str

    @classmethod
    def of(cls, tree: Tree) -> Packed:
        """Pack `tree`.

        Raises
        ------
        TypeError
            If it holds something that cannot be saved.
        """
        tensors: dict[str, torch.Tensor] = {}
        values = json.dumps(_packed(tree, "", tensors))
        return cls(tensors, values)


def write_part(path: Path, rank: int, content: Tree | Packed) -> File:
    """Write one rank's file and see that it is on the disk.

    Raises
    ------
    OSError
        If it cannot be written; nothing of it is left then.
    TypeError
        If `content` holds something that cannot be saved.
    """
    packed = content if isinstance(content, Packed) else Packed.of(content)
    target = path / f"rank-{rank:04d}.safetensors"
    save_tensors(target, packed.tensors, {"values": packed.values})
    with target.open("rb") as file:
        return File(target.name, target.stat().st_size, _sha256(file))


def save_tensors(target: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file that is there in whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written; nothing of it is left then.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask wants it; safetensors makes files private
        save_file(tensors, temporary, about)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    except SafetensorError as error:  # its only kind of error, for a full disk too
        raise OSError(f"{target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_part(path: Path, file: File) -> Tree:
    """Read one rank's file, all of it and as it was written.

    Raises
    ------
    Damaged
        If it is missing, cut off or changed.
    """
    source = path / file.name
    try:
        size = source.stat().st_size
        if size != file.size:
            raise Damaged(f"{source} has {size} bytes, its manifest says {file.size}")
        with source.open("rb") as opened:
            if _sha256(opened) != file.sha256:
                raise Damaged(f"{source} has changed since it was written: its checksum is another")
        with safe_open(source, framework="pt") as tensors:
            values = json.loads(tensors.metadata()["values"])
            tree: Tree = _unpacked(values, tensors.get_tensor)
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{source} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{source} is not what mpimomentum writes: {error!r}") from error
    return tree


def commit(path: Path, manifest: Manifest) -> None:
    """Write the manifest: from now on the checkpoint is there."""
    values = dataclasses.asdict(manifest)
    write(path / MANIFEST, json.dumps(values | {"sha256": _seal(values)}, indent=1) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises
    ------
    Damaged
        If it is missing, cut off, changed or of a later version of mpimomentum.
    """
    source = path / MANIFEST
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
        seal = values.pop("sha256")
        whole = seal == _seal(values)
    except OSError as error:
        raise Damaged(f"{source} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{source} is cut off or changed: {error!r}") from error
    if not whole:
        raise Damaged(f"{source} has changed since it was written: its checksum is another")
    if values["format"] not in FORMATS:
        raise Damaged(
            f"{source} has format {values['format']}, this mpimomentum reads {FORMAT}; it was "
            f"written by version {values['mpimomentum']}"
        )
    return Manifest(**values | {"files": [File(**f) for f in values["files"]]})


def prune(directory: Path, newest: int, keep: int, previous: int | None = None) -> None:
    """Remove checkpoints up to number `newest` but for the last `keep`, and what is none.

    Any between `newest` and the `previous` one is damaged: the run went on from before it. What
    cannot be removed stays.
    """
    numbers = ((path, number_of(path)) for path in committed(directory))
    whole = newest if previous is None else previous
    kept = [path for path, number in numbers if number == newest or number <= whole][:keep]
    for path in directory.iterdir():
        stale = number_of(path) <= newest or not (path / MANIFEST).exists()
        if number_of(path) >= 0 and stale and path not in kept:
            discard(path)


def discard(path: Path) -> None:
    """Remove a checkpoint, the manifest first; what cannot be removed stays."""
    try:
        (path / MANIFEST).unlink(missing_ok=True)
    except OSError:
        return
    shutil.rmtree(path, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """See that the names in a directory are on the disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _packed(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` for JSON, its tensors put into `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        if any(tensors[name].data_ptr() == t.data_ptr() for n, t in tensors.items() if n != name):
            tensors[name] = tensors[name].clone()  # a file has no aliases
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(k): _packed(v, f"{name}/{k}".lstrip("/"), tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}, which cannot be saved in a checkpoint: use tensors, "
        "numbers, texts, lists and dicts of them"
    )


def _unpacked(value: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensor(value[_TENSOR])
        return {k: _unpacked(v, tensor) for k, v in value.items()}
    if isinstance(value, list):
        return [_unpacked(v, tensor) for v in value]
    return value
