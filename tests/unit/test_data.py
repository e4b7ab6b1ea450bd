"""Data sets and their division among ranks."""

import dataclasses
import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mpimomentum import data
from mpimomentum.data import digits

pytest.importorskip("sklearn", reason="the digits ship inside scikit-learn")


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


def test_digits_have_the_shapes_and_dtypes_promised(dataset):
    assert dataset.name == "digits"
    assert dataset.classes == 10
    assert dataset.shape == (1, 8, 8)
    assert dataset.train_x.shape == (1437, 1, 8, 8)
    assert dataset.test_x.shape == (360, 1, 8, 8)
    assert dataset.train_x.dtype == dataset.test_x.dtype == torch.uint8
    assert dataset.train_y.dtype == dataset.test_y.dtype == torch.int64


def test_training_inputs_are_standardised_as_in_double_precision(dataset):
    inputs = dataset.inputs(dataset.train_x)
    x = dataset.train_x.double()
    expected = (x - x.mean()) / x.std(correction=0)
    assert inputs.dtype == torch.float32
    assert (inputs - expected).abs().max() < 1e-6
    assert dataset.train_x.max() == 16  # the pixels themselves are untouched


def test_training_and_test_part_are_scikit_learns_images_each_once(dataset):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.cat([dataset.train_x, dataset.test_x]).view(-1, 64).numpy()
    labels = torch.cat([dataset.train_y, dataset.test_y]).numpy()
    rows = np.column_stack([images, labels])
    expected = np.column_stack([bunch.data, bunch.target])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))


def test_the_split_is_stratified(dataset):
    test = torch.bincount(dataset.test_y)
    every = test + torch.bincount(dataset.train_y)
    assert (test - every / 5).abs().max() < 1


def test_the_split_is_the_same_each_time(dataset):
    again = data.load("digits")
    assert torch.equal(again.train_x, dataset.train_x)
    assert torch.equal(again.test_y, dataset.test_y)


def test_scikit_learn_is_not_imported():
    code = (
        "import sys; from mpimomentum import data; data.load('digits'); "
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_dir_is_read_instead(dataset, tmp_path):
    (tmp_path / digits.FILE).write_bytes(installed().read_bytes())
    assert torch.equal(data.load("digits", tmp_path).train_x, dataset.train_x)
    assert torch.equal(data.load("digits", str(tmp_path)).test_x, dataset.test_x)


def test_a_missing_file_is_named_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"{digits.FILE} not found.*1797 rows"):
        data.load("digits", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"digits\.csv\.gz.*pip install scikit-learn"):
        data.load("digits")


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: b"<html>not found</html>",
        lambda packed: gzip.compress(gzip.decompress(packed)[:1000]),
        lambda packed: gzip.compress(gzip.decompress(packed).replace(b"16", b"99")),
        lambda packed: packed[:20000] + b"\0\0\0\0" + packed[20004:],
    ],
    ids=["truncated", "not gzip", "rows missing", "pixel out of range", "bits flipped"],
)
def test_a_damaged_file_is_named_with_what_was_expected(tmp_path, damage):
    (tmp_path / digits.FILE).write_bytes(damage(installed().read_bytes()))
    with pytest.raises(ValueError, match=r"digits\.csv\.gz: expected 1797 rows of 64 pixels"):
        data.load("digits", tmp_path)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(ValueError, match="choose from digits, fashion-mnist"):
        data.load("x")


def test_every_data_set_has_a_line_about_it():
    names = data.names()
    assert "digits" in names
    assert all(about and "\n" not in about for about in names.values())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("test_y", lambda d: d.train_y),
        ("train_x", lambda d: d.train_x[:, 0]),
        ("train_x", lambda d: d.train_x.float()),
        ("mean", lambda d: torch.zeros(3)),
    ],
)
def test_a_dataset_of_wrong_shapes_is_refused(dataset, name, change):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(dataset, **{name: change(dataset)})


def installed() -> Path:
    return digits._locate(None)
