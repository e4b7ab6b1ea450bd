"""MNIST and Fashion-MNIST: what is read, and what is said about files that are something else."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mpimomentum import data
from mpimomentum.data import idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
NAMES += ("t10k-labels-idx1-ubyte",)
TRAIN, TEST = 12, 9


def layout(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = (TRAIN, 28, 28), (TRAIN,), (TEST, 28, 28), (TEST,)
    return [rng.integers(256 if len(s) == 3 else 10, size=s, dtype=np.uint8) for s in shapes]


@pytest.fixture
def folder(tmp_path, arrays) -> Path:
    for name, array in zip(NAMES, arrays, strict=True):
        (tmp_path / name).write_bytes(layout(array))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_all_pixels_and_labels_are_read(folder, arrays, name, packed):
    if packed:
        for file in tuple(folder.iterdir()):
            file.with_suffix(".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    d = data.load(name, folder)
    assert (d.name, d.classes, d.shape, d.augment) == (name, 10, (1, 28, 28), None)
    for got, expected in zip((d.train_x, d.train_y, d.test_x, d.test_y), arrays, strict=True):
        np.testing.assert_array_equal(got.numpy().reshape(expected.shape), expected)
    inputs = d.inputs(d.train_x)
    assert abs(inputs.mean()) < 1e-5
    assert abs(inputs.std(correction=0) - 1) < 1e-5


def test_a_packed_file_under_a_plain_name_is_read_all_the_same(folder, arrays):
    path = folder / NAMES[0]
    path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(data.load("mnist", folder).train_x[:, 0], arrays[0])


@pytest.mark.skipif(not idx.FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_is_found_where_debian_puts_it():
    d = data.load("fashion-mnist")
    assert (len(d.train_x), len(d.test_x)) == (60000, 10000)
    assert torch.bincount(d.train_y).tolist() == [6000] * 10
    assert d.mean / 255 == pytest.approx(0.2860, abs=1e-4)  # as published
    assert d.std / 255 == pytest.approx(0.3530, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_the_remedy(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} not found \(nor {name}\.gz\).*expected"):
        data.load("mnist", folder)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        data.load("fashion-mnist", folder)


def test_no_folder_and_an_empty_or_missing_one(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no usual place.*--data-dir"):
        data.load("mnist")
    with pytest.raises(FileNotFoundError, match="in that folder: nothing"):
        data.load("mnist", tmp_path)
    monkeypatch.setattr(idx, "FASHION_MNIST", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        data.load("fashion-mnist")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 3, 4, 6, 9, 15, 0.5, -1])
def test_a_file_truncated_anywhere_is_refused_by_name(folder, name, packed, keep):
    path = folder / name
    whole = path.read_bytes()
    if packed:
        whole = gzip.compress(whole)
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{name}: expected .*, found .*--data-dir"):
        data.load("mnist", folder)


@pytest.mark.parametrize(
    ("target", "content", "message"),
    [
        (0, b"", "found an empty file"),
        (0, b"<html>404</html>", r"begins with 00 00 08 03\), found 3c 68 74 6d"),
        (0, bytes((0, 0, 8, 1)) + struct.pack(">I", 4) + b"abcd", "found 00 00 08 01"),
        (0, bytes((0, 0, 13, 3)) + bytes(12), "found 00 00 0d 03"),
        (0, layout(np.zeros((0, 28, 28), np.uint8)), "expected 0 x 28 x 28 bytes"),
        (0, layout(np.zeros((TRAIN, 32, 32), np.uint8)), "28 x 28 pixels, found 32 x 32"),
        (0, layout(np.zeros((TRAIN, 28, 28), np.uint8)) + b"x", "found 9409: not such a file"),
        (0, bytes((0, 0, 8, 3)) + b"\xff" * 12, "truncated"),
        (1, layout(np.zeros(TRAIN - 1, np.uint8)), f"expected {TRAIN} labels.*found {TRAIN - 1}"),
        (1, layout(np.full(TRAIN, 10, np.uint8)), "labels 0 to 9, found 10"),
        (1, layout(np.zeros((TRAIN, 28, 28), np.uint8)), "of 1 dimensions"),
        (3, layout(np.zeros(TRAIN, np.uint8)), f"expected {TEST} labels"),
    ],
)
def test_a_foreign_file_is_refused_with_what_was_expected(folder, target, content, message):
    (folder / NAMES[target]).write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAMES[target]}: .*{message}"):
        data.load("mnist", folder)


def test_flipped_bits_in_a_gzip_file_are_noticed(folder):
    path = folder / NAMES[0]
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=f"{NAMES[0]}: expected a whole gzip file"):
        data.load("mnist", folder)
