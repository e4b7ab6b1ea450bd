"""Images in a folder a class: order, sizes, and what is said about files that are none."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

from mpimomentum import data

Image = pytest.importorskip("PIL.Image")

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(path: Path, color=RED, size=(8, 6), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path / "train" / "zebra" / "1.png", GREEN)
    save(tmp_path / "train" / "ant" / "b.PNG", (0, 0, 9))
    save(tmp_path / "train" / "ant" / "a.bmp", RED)
    save(tmp_path / "train" / "ant" / "more" / "c.png", (0, 0, 7))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    save(tmp_path / "test" / "zebra" / "x.png", GREEN)
    return tmp_path


def test_classes_and_files_are_in_alphabetical_order(folder):
    d = data.load("image-folder", folder)
    assert (d.classes, d.shape, d.augment) == (2, (3, 6, 8), None)
    assert d.train_y.tolist() == [0, 0, 0, 1]
    assert d.train_x[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 9], [0, 0, 7], [0, 255, 0]]
    assert d.test_y.tolist() == [1]  # zebra's number, though it is alone there


def test_val_goes_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(data.load("image-folder", folder).test_y) == 1


def test_pixels_are_those_of_the_file_row_by_row(folder):
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "train" / "ant" / "a.png")
    d = data.load("image-folder", folder)
    np.testing.assert_array_equal(d.train_x[0 + 1].numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_every_kind_of_image_becomes_one_in_colour(folder, mode):
    save(folder / "test" / "zebra" / "x.tif", (255, 255, 255), mode=mode)
    d = data.load("image-folder", folder)
    assert (d.test_x[1] == 255).all()


def test_images_of_different_sizes_are_refused_unless_they_are_resized(folder):
    save(folder / "test" / "zebra" / "wide.png", size=(40, 20))
    with pytest.raises(ValueError, match=r"wide\.png: expected 8 x 6 .*found 40 x 20.*image-size"):
        data.load("image-folder", folder)
    assert data.load("image-folder", folder, image_size=5).shape == (3, 5, 5)


def test_resizing_keeps_the_middle_square(folder):
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 200  # the middle square
    Image.fromarray(pixels).save(folder / "test" / "zebra" / "x.png")
    d = data.load("image-folder", folder, image_size=4)
    assert (d.test_x == 200).all()
    assert d.train_x[0, :, 2, 2].tolist() == list(RED)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("no image"), "expected an image, found: cannot identify"),
        (lambda path: path.write_bytes(b""), "expected an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "expected an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "expected an image"),
    ],
)
def test_a_damaged_image_is_refused_by_name(folder, damage, message):
    damage(folder / "train" / "zebra" / "1.png")
    with pytest.raises(ValueError, match=rf"zebra.1\.png: {message}.*Replace or remove"):
        data.load("image-folder", folder)


def test_a_wrong_layout_is_refused_by_name(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="needs --data-dir"):
        data.load("image-folder")
    with pytest.raises(FileNotFoundError, match=r"train not found; expected train/CLASS"):
        data.load("image-folder", tmp_path_factory.mktemp("empty"))
    save(folder / "test" / "yak" / "1.png")
    with pytest.raises(ValueError, match=r"yak: expected classes of .*\(ant, zebra\), found 'yak'"):
        data.load("image-folder", folder)
    (folder / "test" / "yak").rename(folder / "train" / "yak")
    (folder / "train" / "yak" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"yak: expected images .*found none"):
        data.load("image-folder", folder)
    (folder / "test" / "zebra" / "x.png").unlink()
    (folder / "train" / "yak").rmdir()
    with pytest.raises(ValueError, match=r"test: expected images .*found none"):
        data.load("image-folder", folder)


@pytest.mark.parametrize("kind", [ImportError, RuntimeError])
def test_without_pillow_the_remedy_is_named(folder, monkeypatch, kind):
    plain = builtins.__import__

    def without(name, *rest, **more):
        if name == "PIL":
            raise kind("broken")
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs Pillow.*\(broken\): pip install pillow"):
        data.load("image-folder", folder)


def test_only_a_folder_of_images_is_resized():
    with pytest.raises(ValueError, match="image_size=5: the images of 'digits' have one size"):
        data.load("digits", image_size=5)
