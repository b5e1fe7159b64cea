"""Class folders and Tiny ImageNet's layout: every file counted, under its own label."""

import re
from pathlib import Path

import pytest
from PIL import Image

from noprop.data import load_dataset
from noprop.data.folders import read_tiny_imagenet
from noprop.data.images import read_image
from noprop.errors import DataError


def refused(path: Path, message: str):
    return pytest.raises(DataError, match=rf"\A{re.escape(str(path))}: .*{message}")


@pytest.fixture
def shapes(tmp_path, write_image) -> Path:
    """Ten images in each of two class folders; the red channel of a file's pixels is its number."""
    for label, name in enumerate(("square", "circle")):
        for i in range(10):
            path = tmp_path / "shapes" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (10 * label + i, 0, 0)).save(path)
    return tmp_path / "shapes"


def test_each_image_has_the_label_of_its_folder(shapes):
    dataset = load_dataset(str(shapes))
    assert dataset.class_names == ("circle", "square")
    assert dataset.shape == (3, 4, 6)
    assert (len(dataset.train), len(dataset.test)) == (16, 4)
    seen = []
    for part in (dataset.train, dataset.test):
        number = part.x[:, 0, 0, 0].long()
        assert part.y.equal((number < 10).long())  # circles were numbered from 10
        names = [f"{('square', 'circle')[n // 10]}/{n % 10}.png" for n in number.tolist()]
        assert list(part.files) == names
        seen += number.tolist()
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_parts_in_folders_of_their_own_are_kept(tmp_path, shapes, held_out):
    for part in ("train", held_out):
        (tmp_path / "parts" / part).parent.mkdir(exist_ok=True)
    shapes.rename(tmp_path / "parts" / "train")
    Image.new("RGB", (6, 4), (99, 0, 0)).save(
        make(tmp_path / "parts" / held_out / "square" / "a.png")
    )
    dataset = load_dataset(str(tmp_path / "parts"))
    assert len(dataset.train) == 20
    assert dataset.test.x[:, 0, 0, 0].tolist() == [99]
    assert dataset.test.y.tolist() == [1]


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_classes_may_be_called_train_and_test(tmp_path, write_image):
    for name in ("train", "test"):
        for i in range(5):
            write_image(tmp_path / "x" / name / f"{i}.png", 2, 2)
    assert load_dataset(str(tmp_path / "x")).class_names == ("test", "train")


def test_grey_files_make_a_grey_data_set_and_one_colour_file_a_coloured_one(tmp_path, write_image):
    for name in ("a", "b"):
        for i in range(5):
            write_image(tmp_path / name / f"{i}.png", 3, 3, channels=1)
    assert load_dataset(str(tmp_path)).shape == (1, 3, 3)
    assert load_dataset(str(tmp_path), color="rgb").shape == (3, 3, 3)
    write_image(tmp_path / "b" / "0.png", 3, 3, channels=3)
    assert load_dataset(str(tmp_path)).shape == (3, 3, 3)
    assert load_dataset(str(tmp_path), color="grey").shape == (1, 3, 3)


def test_unlike_sizes_need_image_size(shapes, write_image):
    odd = shapes / "square" / "a.png"
    write_image(odd, 9, 5)
    with refused(odd, "is 9x5 pixels but .* is 4x6 .*--image-size N"):
        load_dataset(str(shapes))
    assert load_dataset(str(shapes), image_size=8).shape == (3, 8, 8)


def test_files_of_the_system_are_passed_over(shapes):
    for name in (".DS_Store", "Thumbs.db"):
        (shapes / "square" / name).write_bytes(b"litter")
    (shapes / "README.txt").write_text("About these images.")
    (shapes / ".cache").mkdir()
    assert len(load_dataset(str(shapes)).train) == 16


def test_what_does_not_belong_is_named(shapes, write_image):
    square = shapes / "square"
    note = square / "notes.txt"
    note.write_text("hello")
    with refused(note, "not a readable image"):
        load_dataset(str(shapes))
    note.unlink()
    write_image(square / "7.png", 4, 6)
    (square / "7.png").write_bytes((square / "7.png").read_bytes()[:70])
    with refused(square / "7.png", "truncated"):
        load_dataset(str(shapes))
    write_image(square / "7.png", 4, 6)
    write_image(shapes / "loose.png", 4, 6)
    with refused(shapes / "loose.png", "no label"):
        load_dataset(str(shapes))
    (shapes / "loose.png").unlink()
    (square / "more").mkdir()
    with refused(square / "more", "is a folder"):
        load_dataset(str(shapes))
    (square / "more").rmdir()
    (shapes / "triangle").mkdir()
    with refused(shapes / "triangle", "no image"):
        load_dataset(str(shapes))


def test_folders_that_are_no_data_set_are_refused(tmp_path, write_image):
    with refused(tmp_path, "wanted a folder per class"):
        load_dataset(str(tmp_path))
    write_image(tmp_path / "only" / "a.png", 2, 2)
    with refused(tmp_path, "one class folder, only"):
        load_dataset(str(tmp_path))
    for name in ("a", "b"):
        write_image(tmp_path / "x" / "train" / name / "0.png", 2, 2)
    with refused(tmp_path / "x", "neither test/ nor val/"):
        load_dataset(str(tmp_path / "x"))
    write_image(tmp_path / "x" / "test" / "c" / "0.png", 2, 2)
    with refused(tmp_path / "x" / "test" / "c", "not one of the training classes a, b"):
        load_dataset(str(tmp_path / "x"))


def test_options_outside_their_range_are_refused(shapes):
    with pytest.raises(DataError, match="image_size must be at least 1"):
        load_dataset(str(shapes), image_size=0)
    with pytest.raises(DataError, match="auto, grey, rgb, got 'gray'"):
        load_dataset(str(shapes), color="gray")


@pytest.fixture
def tiny(tmp_path, write_image) -> Path:
    """Two classes with three and two training images, and three validation images."""
    folder = tmp_path / "tiny-imagenet-200"
    folder.mkdir()
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish\nn02\tbull frog, frog\nn03\tother\n")
    for wnid, count in (("n02", 3), ("n01", 2)):
        for i in range(count):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.png", 64, 64)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    rows = [("val_1.png", "n02"), ("val_0.png", "n01"), ("val_2.png", "n01")]
    for i, (name, _) in enumerate(rows):
        write_image(folder / "val" / "images" / name, 64, 64, channels=1, seed=i)
    lines = [f"{name}\t{wnid}\t0\t0\t9\t9\n" for name, wnid in rows]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_takes_labels_from_folders_and_annotations(tiny):
    dataset = read_tiny_imagenet(tiny)
    assert dataset.class_names == ("bull frog, frog", "goldfish")  # the order of wnids.txt
    assert dataset.train.y.tolist() == [0, 0, 0, 1, 1]
    assert dataset.test.y.tolist() == [0, 1, 1]
    assert dataset.shape == (3, 64, 64)
    for x, number in zip(dataset.test.x, (1, 0, 2), strict=True):
        file = tiny / "val" / "images" / f"val_{number}.png"
        assert x.equal(read_image(file, None, 3))  # in the order of the annotations


def test_damaged_tiny_imagenet_is_refused(tiny, write_image):
    annotations = tiny / "val" / "val_annotations.txt"
    text = annotations.read_text()
    for wrong in (text.replace("n02", "n09"), text + "val_9.png\n", text + "\n"):
        annotations.write_text(wrong)
        with refused(annotations, "does not name a class"):
            read_tiny_imagenet(tiny)
    annotations.write_text(text + "val_9.png\tn01\n")
    with refused(annotations, "does not match the files of val/images, see val_9.png"):
        read_tiny_imagenet(tiny)
    annotations.write_text(text.splitlines(keepends=True)[0])
    with refused(annotations, "see val_0.png"):
        read_tiny_imagenet(tiny)
    annotations.write_text(text + text.splitlines()[0])
    with refused(annotations, "named twice"):
        read_tiny_imagenet(tiny)
    annotations.write_text(text)
    image = tiny / "train" / "n01" / "images" / "n01_0.png"
    write_image(image, 64, 63)
    with refused(image, "64x63 pixels, wanted 64x64"):
        read_tiny_imagenet(tiny)
    write_image(image, 64, 64)
    (tiny / "wnids.txt").write_text("n02\nn01\nn03\n")
    with refused(tiny / "train" / "n03" / "images", "no such folder"):
        read_tiny_imagenet(tiny)
    (tiny / "wnids.txt").write_text("n02\nn01\nn02\n")
    with refused(tiny / "wnids.txt", "twice"):
        read_tiny_imagenet(tiny)
    (tiny / "wnids.txt").write_bytes(b"\xff\xfe\x80")
    with refused(tiny / "wnids.txt", "not a text file"):
        read_tiny_imagenet(tiny)
