"""A checkpoint on disk is read as it was written, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import random
import stat
from pathlib import Path

import pytest
import torch

from mpimomentum.runtime import checkpoint_files as files
from mpimomentum.runtime.checkpoint_files import Damaged, File, Manifest

RANKS = 2


def tree(rank: int) -> files.Tree:
    shared = torch.arange(6.0)
    return {
        "state": {"x": torch.randn(50, dtype=torch.float64), "m": shared[::2], "same": shared},
        "worker": {"step": 3 + rank, "rng": {"state": 2**127 + rank, "gauss": float("nan")}},
        "empty": torch.empty(0),
        "flags": torch.tensor([True, False]),
        "list": [1, 2.5, None, "text", {"deep": torch.tensor(7)}],
        "again": shared,
    }


def write(directory: Path, number: int) -> tuple[Path, list[files.Tree]]:
    path = files.path_of(directory, number)
    trees = [tree(rank) for rank in range(RANKS)]
    files.prepare(path)
    parts = [files.write_part(path, rank, t) for rank, t in enumerate(trees)]
    files.commit(path, Manifest(number, {"algorithm": "d-psgd", "mu": 0.9}, [3, 4], parts))
    return path, trees


def read(path: Path) -> list[files.Tree]:
    return [files.read_part(path, f) for f in files.read_manifest(path).files]


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path, trees = write(tmp_path, 120)
    assert path.name == "step-000120"
    assert same(read(path), trees)
    assert sorted(f.name for f in path.iterdir()) == [
        "manifest.json", "rank-0000.safetensors", "rank-0001.safetensors",
    ]  # fmt: skip
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE(f.stat().st_mode) for f in (*path.iterdir(), tmp_path / "usual")}
    assert len(modes) == 1  # what the umask says, also for what safetensors writes


@pytest.mark.parametrize("name", ["manifest.json", "rank-0000.safetensors"])
@pytest.mark.parametrize("where", [0.0, 0.01, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "longer"])
def test_harm_anywhere_is_found_and_the_file_named(
    tmp_path: Path, name: str, where: float, harm: str
) -> None:
    path, _ = write(tmp_path, 1)
    file = path / name
    data = bytearray(file.read_bytes())
    at = int(where * (len(data) - 1))
    if harm == "cut":
        file.write_bytes(data[:at])
    elif harm == "flip":
        data[at] ^= 1
        file.write_bytes(data)
    elif harm == "longer":
        file.write_bytes(data[:at] + b"1" + data[at:])
    else:
        file.unlink()
    with pytest.raises(Damaged, match=name):
        read(path)


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 1)
    file = path / "manifest.json"
    whole = file.read_bytes()
    meaning = json.loads(whole)
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            try:
                if json.loads(data) == meaning:
                    continue  # white space for white space
            except ValueError:
                pass
            file.write_bytes(data)
            with pytest.raises(Damaged, match=r"manifest\.json"):
                files.read_manifest(path)


def seams(data: bytes) -> list[int]:
    """Where one thing in a file of safetensors ends and the next begins."""
    header = 8 + int.from_bytes(data[:8], "little")
    values = json.loads(data[8:header])
    ends = [
        header + end for e in values.values() if "data_offsets" in e for end in e["data_offsets"]
    ]
    return sorted(
        {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1, *ends} - {len(data)}
    )


def test_a_file_cut_at_any_seam_is_named(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 1)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        each = file.suffix == ".json"
        for at in range(len(whole) - 2) if each else seams(whole):  # a manifest ends in "}\n"
            file.write_bytes(whole[:at])
            with pytest.raises(Damaged, match=file.name):
                read(path)
        file.write_bytes(whole)
    assert len(read(path)) == RANKS


def test_any_flipped_bit_of_a_rank_s_file_is_named(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 1)
    draw = random.Random(0)
    for file in sorted(path.glob("rank-*")):
        whole = file.read_bytes()
        for at in [*range(16), *(draw.randrange(len(whole)) for _ in range(300))]:
            data = bytearray(whole)
            data[at] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            with pytest.raises(Damaged, match=f"{file.name} has changed"):
                read(path)
        file.write_bytes(whole)


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("content", ["a pickle", "torch's", "a number", "no values", "a list"])
def test_what_is_no_file_of_ours_is_refused_though_its_checksum_fits(
    tmp_path: Path, content: str
) -> None:
    path, _ = write(tmp_path, 1)
    file = path / "rank-0001.safetensors"
    if content == "a pickle":
        file.write_bytes(pickle.dumps(Trap()))
    elif content == "torch's":
        torch.save(Trap(), file)
    elif content == "a number":
        file.write_bytes(b"7")
    else:
        about = {"other": ""} if content == "no values" else {"values": "[{"}
        files.save_file({"x": torch.ones(2)}, file, about)
    manifest = files.read_manifest(path)
    data = file.read_bytes()
    forged = File(file.name, len(data), hashlib.sha256(data).hexdigest())
    files.commit(path, dataclasses.replace(manifest, files=[manifest.files[0], forged]))
    with pytest.raises(Damaged, match=file.name):
        read(path)


def test_a_manifest_of_a_later_format_says_so(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 1)
    later = Manifest(1, {}, [], [], mpimomentum="9.1", format=files.FORMAT + 1)
    files.commit(path, later)
    with pytest.raises(Damaged, match=r"format 3, this mpimomentum reads 2.*version 9\.1"):
        files.read_manifest(path)


def test_the_last_ones_stay_and_what_no_manifest_commits_goes(tmp_path: Path) -> None:
    for number in (10, 20, 30, 40):
        write(tmp_path, number)
    half = files.path_of(tmp_path, 50)  # a job died while it wrote this
    files.prepare(half)
    (half / ".rank-0000.safetensors.77").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    assert [files.number_of(p) for p in files.committed(tmp_path)] == [40, 30, 20, 10]
    files.prune(tmp_path, newest=30, keep=2)
    # 40 was not used, so it is damaged: newer than the newest, it is not counted and stays
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "notes", "step-000020", "step-000030", "step-000040",
    ]  # fmt: skip


def test_a_checkpoint_is_written_anew_over_a_damaged_one(tmp_path: Path) -> None:
    path, _ = write(tmp_path, 5)
    (path / "rank-0001.safetensors").write_bytes(b"")
    path, trees = write(tmp_path, 5)
    assert same(read(path), trees)


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.path_of(tmp_path, 1)
    with pytest.raises(OSError, match="rank-0000"):  # there is no such directory
        files.write_part(path, 0, {})
    files.prepare(path)

    def full(tensors: object, target: Path, about: object) -> None:
        target.write_bytes(b"half")
        raise files.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"rank-0000.*No space left"):
        files.write_part(path, 0, {"x": torch.ones(3)})
    assert list(path.iterdir()) == []


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    files.prepare(path := files.path_of(tmp_path, 1))
    with pytest.raises(TypeError, match="parts/mine/thing is a set"):
        files.write_part(path, 0, {"parts": {"mine": {"thing": {1, 2}}}})
