"""CIFAR's files: what is read, what is refused, and that a pickle cannot run anything."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from mpimomentum import data
from mpimomentum.data import cifar, plain_pickle

N = 4  # images in each file

LAYOUTS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


def table(layout, seed=0, n=N):
    rng = np.random.default_rng(seed)
    return {
        "batch_label": "training batch 1 of 5",
        "data": rng.integers(256, size=(n, 3072), dtype=np.uint8),
        layout.labels: rng.integers(layout.classes, size=n).tolist(),
        "filenames": [f"leptodactylus_{k}.png" for k in range(n)],
    }


def as_python_2_wrote_it(value) -> bytes:
    """Protocol 2 with byte strings, and numpy under its old name: what the archive holds.

    Written by hand for arrays, since Python 3 writes bytes of protocol 2 as a call.
    """
    out = io.BytesIO()

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def write(v):
        if isinstance(v, np.ndarray):
            raw = v.tobytes()
            out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85")
            out.write(short(b"b") + b"\x87R(K\x01")
            for extent in v.shape:
                out.write(b"M" + extent.to_bytes(2, "little"))
            out.write(b"\x86cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03")
            out.write(short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            out.write(b"T" + len(raw).to_bytes(4, "little") + raw + b"tb")
        elif isinstance(v, dict):
            out.write(b"}(")
            for key, item in v.items():
                write(key)
                write(item)
            out.write(b"u")
        elif isinstance(v, list):
            out.write(b"](")
            for item in v:
                write(item)
            out.write(b"e")
        elif isinstance(v, str):
            out.write(short(v.encode("latin1")))
        else:
            out.write(b"K" + bytes([v]))

    out.write(b"\x80\x02")
    write(value)
    out.write(b".")
    return out.getvalue()


WRITERS = {
    "python 2": as_python_2_wrote_it,
    **{f"protocol {p}": lambda v, p=p: pickle.dumps(v, p) for p in (2, 3, 4, 5)},
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture
def folder(tmp_path, layout) -> Path:
    (tmp_path / layout.folder).mkdir()
    for seed, file in enumerate((*layout.train, *layout.test)):
        content = as_python_2_wrote_it(table(layout, seed))
        (tmp_path / layout.folder / file).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS)
def test_all_pixels_and_labels_are_read_in_order(folder, layout, writer):
    tables = [table(layout, seed) for seed in range(len(layout.train) + 1)]
    for t, file in zip(tables, (*layout.train, *layout.test), strict=True):
        (folder / layout.folder / file).write_bytes(WRITERS[writer](t))
    d = data.load(layout.name, folder)
    assert (d.name, d.classes, d.shape) == (layout.name, layout.classes, (3, 32, 32))
    assert d.augment == data.CropAndFlip(4, flip=True)
    *train, test = tables
    pixels = np.concatenate([t["data"] for t in train])
    np.testing.assert_array_equal(d.train_x.numpy().reshape(-1, 3072), pixels)
    assert d.train_y.tolist() == [label for t in train for label in t[layout.labels]]
    np.testing.assert_array_equal(d.test_x.numpy().reshape(-1, 3072), test["data"])
    assert d.test_y.tolist() == test[layout.labels]
    inputs = d.inputs(d.train_x)
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (inputs.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_the_folder_itself_may_be_named(folder, layout):
    assert data.load(layout.name, folder / layout.folder).classes == layout.classes


def test_what_is_written_here_is_what_the_archive_holds():
    ops = {op.name for op, *_ in pickletools.genops(as_python_2_wrote_it(table(cifar.CIFAR10)))}
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= ops


def test_a_missing_folder_or_file_is_named_with_the_remedy(folder, layout, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=rf"no usual place.*{layout.archive}.*--data-dir"):
        data.load(layout.name)
    nowhere = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=f"{layout.folder}.*no such folder.*tar xzf"):
        data.load(layout.name, nowhere)
    (folder / layout.folder / layout.train[-1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{layout.train[-1]} not found; expected a pickle"):
        data.load(layout.name, folder)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.99, -1])
def test_a_file_truncated_anywhere_is_refused_by_name(folder, layout, keep):
    path = folder / layout.folder / layout.test[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=f"{path.name}: expected .*found no whole pickle"):
        data.load(layout.name, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: b"<html>404</html>", "found no whole pickle"),
        (lambda t, y: pickle.dumps([1, 2]), "expected a dictionary, found list"),
        (lambda t, y: pickle.dumps({}), "keys data and .*found keys none"),
        (lambda t, y: {k: v for k, v in t.items() if k != y}, "found keys batch_label, data"),
        (lambda t, y: {**t, "data": t["data"][:, :-1]}, r"n x 3072 pixels, found \(4, 3071\)"),
        (lambda t, y: {**t, "data": t["data"][:0], y: []}, r"found \(0, 3072\)"),
        (lambda t, y: {**t, "data": "none"}, "pixels, found none"),
        (lambda t, y: {**t, "data": t["data"].astype(np.float32)}, "dtype 'f4' instead of"),
        (lambda t, y: {**t, y: t[y][:-1]}, "4 labels, as many as images, found 3"),
        (lambda t, y: {**t, y: 3}, "4 labels.*found int"),
        (lambda t, y: {**t, y: [*t[y][:-1], 100]}, "labels 0 to 9+, found 100"),
        (lambda t, y: {**t, y: [*t[y][:-1], -1]}, "found -1"),
        (lambda t, y: {**t, y: [*t[y][:-1], "cat"]}, "found 'cat'"),
    ],
)
def test_a_foreign_file_is_refused_with_what_was_expected(folder, layout, change, message):
    content = change(table(layout), layout.labels)
    path = folder / layout.folder / layout.test[0]
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        data.load(layout.name, folder)


def test_a_file_of_the_other_one_is_refused(tmp_path):
    folder = tmp_path / cifar.CIFAR10.folder
    folder.mkdir()
    for file in (*cifar.CIFAR10.train, *cifar.CIFAR10.test):
        (folder / file).write_bytes(pickle.dumps(table(cifar.CIFAR100)))
    with pytest.raises(ValueError, match=r"expected keys data and labels.*found.*fine_labels"):
        data.load("cifar10", tmp_path)


class Calls:
    """Unpickles as a call of `function`, if anybody lets it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_pickle_is_refused_by_name_and_not_executed(folder, layout, tmp_path, protocol):
    proof = tmp_path / "executed"
    content = pickle.dumps({"data": Calls(os.system, f"touch {proof}")}, protocol)
    pickle.loads(content)
    assert proof.exists()  # it is malicious
    proof.unlink()
    path = folder / layout.folder / layout.test[0]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}: .*a call of (posix|nt)\.system, which"):
        data.load(layout.name, folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Calls(eval, "1")),
        pickle.dumps(Calls(getattr, "x", "join")),
        pickle.dumps(Calls(np.load, "x")),
        pickle.dumps(np.array([object()], dtype=object)),
        pickle.dumps(np.zeros(2)),
        pickle.dumps({"a": np.float64(1)}),
        pickle.dumps(np.dtype([("a", "u1")])),
        b"\x80\x04\x8c\x05numpy\x8c\x0bcore.foo.ba\x93.",  # a dotted name
        b"cnumpy\ndtype\n}b.",  # a change of what stands for a function
        b"cnumpy\ndtype\nN}\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    ],
)
def test_nothing_but_plain_data_comes_out(content):
    with pytest.raises(plain_pickle.Refused):
        plain_pickle.loads(content)


def test_the_registry_of_extensions_is_no_way_around():
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(plain_pickle.Refused, match=r"os\.system"):
            plain_pickle.loads(b"\x80\x02\x82\xf0X\x04\x00\x00\x00true\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_nothing_is_imported():
    with pytest.raises(plain_pickle.Refused, match=r"antigravity\.fly"):
        plain_pickle.loads(b"cantigravity\nfly\n.")


def test_plain_data_come_through_as_they_are():
    value = {"a": [1, 2.5, None, True, "é", b"\xff", (1, {"b": {3}})], b"c": 2**70}
    assert plain_pickle.loads(pickle.dumps(value, 4)) == value
    for order in "CF":
        array = np.asarray(np.arange(6, dtype=np.uint8).reshape(2, 3), order=order)
        for protocol in (2, 4, 5):
            got = plain_pickle.loads(pickle.dumps({"x": array}, protocol))["x"]
            np.testing.assert_array_equal(got, array)
