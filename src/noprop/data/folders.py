"""Folders of images: class folders of one's own, and Tiny ImageNet's layout.

Class folders are ``FOLDER/CLASS/image.png``, or the same beneath ``FOLDER/train`` and
``FOLDER/test`` (or ``val``). The folder's name is the class; labels follow the names in
alphabetical order.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from noprop.data.arrays import Dataset, Examples, split_off_test
from noprop.data.formats import read_bytes
from noprop.data.images import IMAGE_SUFFIXES, read_header, read_images
from noprop.errors import DataError

__all__ = ["COLORS", "read_class_folders", "read_tiny_imagenet"]

COLORS = ("auto", "grey", "rgb")
TINY_IMAGENET_SIZE = (64, 64)
FILE_MANAGER_FILES = {
    "thumbs.db",
    "desktop.ini",
}  # left by file managers; dot files are passed over too


def read_class_folders(folder: Path, image_size: int | None = None, color: str = "auto") -> Dataset:
    """Read a folder of class folders of images, each of which belongs to one class.

    The test part is ``test/``, else ``val/``, where there is a ``train/`` next to it; otherwise one
    fifth of the whole, the same in every run. Every file in a class folder is read; one that is no
    image is an error, not passed over.

    Args:
        folder: The folder.
        image_size: Side in pixels to which images are resized; with None all must have one size.
        color: "grey", "rgb", or "auto": grey when every file is grey.

    Raises:
        DataError: If the folders do not have this layout, a file is no readable image, sizes differ
            and no ``image_size`` is given, or a test class is not one of the training classes.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}")
    if color not in COLORS:
        raise DataError(f"color must be one of {', '.join(COLORS)}, got {color!r}")
    train, test = _parts(folder)
    files, labels, classes = _labelled_files(train)
    if len(classes) < 2:
        raise DataError(f"{train}: holds one class folder, {classes[0]}; wanted at least two")
    test_files: list[Path] = []
    test_labels: list[int] = []
    if test is not None:
        test_files, test_labels, _ = _labelled_files(test, classes)

    every = files + test_files
    size, channels = _common_size(every, image_size, color)
    x = read_images(every, size, channels, resize=image_size is not None)
    names = tuple(path.relative_to(folder).as_posix() for path in every)
    whole = Examples(x[: len(files)], torch.tensor(labels), names[: len(files)])
    if test is None:
        return split_off_test(str(folder), whole, classes)
    held_out = Examples(x[len(files) :], torch.tensor(test_labels), names[len(files) :])
    return Dataset(str(folder), whole, held_out, tuple(classes))


def read_tiny_imagenet(folder: Path) -> Dataset:
    """Read Tiny ImageNet. The test part is ``val/``: the labels of its ``test/`` are not public.

    A training part with fewer than 500 images per class is read as it is.

    Raises:
        DataError: If a class has no image, the annotations and the images of ``val/`` do not match
            one to one, or a file is not a readable 64x64 image.
    """
    wnids = _lines(folder / "wnids.txt")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if len(label_of) != len(wnids):
        raise DataError(f"{folder / 'wnids.txt'}: names a class twice")
    files: list[Path] = []
    labels: list[int] = []
    for wnid in wnids:
        images = _files_in(folder / "train" / wnid / "images")
        files += images
        labels += [label_of[wnid]] * len(images)

    annotations = folder / "val" / "val_annotations.txt"
    rows = [line.split("\t") for line in _lines(annotations)]
    for row in rows:
        if len(row) < 2 or row[1] not in label_of:
            raise DataError(f"{annotations}: {' '.join(row)!r} does not name a class of wnids.txt")
    annotated = [row[0] for row in rows]
    present = {path.name for path in _files_in(folder / "val" / "images")}
    if len(set(annotated)) != len(annotated) or present != set(annotated):
        odd = sorted(present.symmetric_difference(annotated)) or ["(a file named twice)"]
        raise DataError(f"{annotations}: does not match the files of val/images, see {odd[0]}")

    x = read_images(files, TINY_IMAGENET_SIZE, 3, resize=False)
    test_files = [folder / "val" / "images" / name for name in annotated]
    test_x = read_images(test_files, TINY_IMAGENET_SIZE, 3, resize=False)
    return Dataset(
        "tiny-imagenet",
        Examples(x, torch.tensor(labels)),
        Examples(test_x, torch.tensor([label_of[row[1]] for row in rows])),
        _words(folder / "words.txt", wnids),
    )


def _parts(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of the training part and of the test part, which may be None."""
    train = folder / "train"
    if not (train.is_dir() and _subfolders(train)):  # or "train" is a class like any other
        return folder, None
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return train, folder / name
    raise DataError(f"{folder}: has train/ but neither test/ nor val/ next to it")


def _labelled_files(
    folder: Path, classes: Sequence[str] | None = None
) -> tuple[list[Path], list[int], list[str]]:
    """Return all images in the class folders of ``folder`` with labels, and the class names."""
    loose = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
    if loose:
        raise DataError(f"{min(loose)}: lies outside the class folders, so it has no label")
    found = _subfolders(folder)
    if not found:
        raise DataError(f"{folder}: wanted a folder per class in it, found none")
    names = [path.name for path in found] if classes is None else list(classes)
    files: list[Path] = []
    labels: list[int] = []
    for path in found:
        if path.name not in names:
            raise DataError(f"{path}: is not one of the training classes {', '.join(names)}")
        images = _files_in(path)
        files += images
        labels += [names.index(path.name)] * len(images)
    return files, labels, names


def _common_size(
    files: Sequence[Path], image_size: int | None, color: str
) -> tuple[tuple[int, int], int]:
    """Return (height, width) and channels of the data set, from the headers if possible."""
    size = None if image_size is None else (image_size, image_size)
    if size is None or color == "auto":
        headers = [read_header(path) for path in files]
        if color == "auto":
            color = "grey" if all(header.grey for header in headers) else "rgb"
        if size is None:
            size = (headers[0].height, headers[0].width)
            for path, header in zip(files, headers, strict=True):
                if (header.height, header.width) != size:
                    raise DataError(
                        f"{path}: is {header.height}x{header.width} pixels but {files[0]} is "
                        f"{size[0]}x{size[1]} (height x width); resize them with --image-size N "
                        "(data.image_size)"
                    )
    return size, 1 if color == "grey" else 3


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder of images, sorted by name: at least one, and no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; wanted the images of a class there")
    found = sorted(
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and p.name.lower() not in FILE_MANAGER_FILES
    )
    for path in found:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; wanted only images in {folder}")
    if not found:
        raise DataError(f"{folder}: the folder has no image")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged, not a text file: {error}") from error


def _words(path: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each class in words.txt, or its id if it has no name there."""
    words = dict(line.split("\t", 1) for line in _lines(path) if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)
