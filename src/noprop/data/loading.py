"""From a name to a data set: the search path, and the state of every named data set."""

import difflib
import gzip
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from noprop.data.arrays import Dataset, Examples, split_off_test
from noprop.data.download import digest_of, fetch
from noprop.data.folders import read_class_folders
from noprop.data.hub_datasets import PREFIX, absolute_place, read_hub_dataset
from noprop.data.numpy_files import read_npz
from noprop.data.sources import DIGITS, SOURCES, Source
from noprop.data.table_files import TABLE_SUFFIXES, read_table
from noprop.errors import DataError

__all__ = [
    "FileStatus",
    "SourceStatus",
    "inspect_sources",
    "absolute_name",
    "load_dataset",
    "search_path",
]

OWN = f"a folder of class folders of images, an .npz file or a table ({', '.join(TABLE_SUFFIXES)})"


def search_path(data_dir: Path | None = None) -> list[Path]:
    """Return the data folders in the order of the search; downloads go to the first.

    ``data_dir``, then the environment variable ``NOPROP_DATA``, then ``noprop/data`` in the user's
    cache (``XDG_CACHE_HOME`` where it is an absolute path, else ``~/.cache``). A user without a
    home folder has no cache, so that the list may be empty.
    """
    given = [data_dir, os.environ.get("NOPROP_DATA") or None]
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # as the XDG specification demands
        cache = Path("~/.cache")
    folders = [_expanded(folder) for folder in given if folder is not None]
    with suppress(DataError):
        folders.append(_expanded(cache) / "noprop" / "data")
    return list(dict.fromkeys(folders))


def _expanded(path: Path | str) -> Path:
    """Return a path with the home folder in place of a leading ``~`` or ``~user``."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path}: there is no such user, or no home folder") from None


def absolute_name(name: str) -> str:
    """Return a name that is valid in any working folder: paths become absolute."""
    if name.startswith(PREFIX):
        return absolute_place(name)
    is_name = name == "digits" or name in SOURCES
    return name if is_name else str(_expanded(name).absolute())


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    download: bool = True,
    image_size: int | None = None,
    color: str = "auto",
    label: str | None = None,
) -> Dataset:
    """Read a data set; download it first if it is published and not found.

    Args:
        name: ``digits``, a name of the catalogue, a folder of class folders of images, an ``.npz``
            file, a table (``.csv``, ``.tsv``, ``.parquet``), or ``hf:`` with a name or folder, see
            :mod:`noprop.data.hub_datasets`. A folder that is called like a data set is given as
            ``./mnist``.
        data_dir: The first folder to search, see :func:`search_path`. A file or folder that is not
            in its own place is searched there by its last name: it may have been moved.
        download: Whether a missing data set may be downloaded.
        image_size: Side in pixels to which a folder's images are resized; with None all must have
            one size.
        color: For folders "grey", "rgb", or "auto", which is grey if every file is.
        label: For tables, the column of the labels; see
            :func:`~noprop.data.table_files.read_table`.

    Raises:
        DataError: If there is no such data set, it can neither be found nor downloaded, or a file
            of it is damaged; the message names the file.
    """
    if name.startswith(PREFIX):
        return read_hub_dataset(name, image_size, color, label)
    is_named = name == "digits" or name in SOURCES
    path = _expanded(name) if is_named else _place_of(name, data_dir)
    is_file = path.exists() and not path.is_dir()
    suffix = path.suffix.lower() if is_file and not is_named else ""
    if label is not None and suffix not in TABLE_SUFFIXES and (is_named or path.exists()):
        raise DataError(f"{name}: label is for tables only, {', '.join(TABLE_SUFFIXES)}")
    if not is_named and path.is_dir():
        return read_class_folders(path, image_size, color)
    if not is_named and suffix not in (".npz", *TABLE_SUFFIXES):
        raise _unknown(name, path)
    if image_size is not None or color != "auto":
        raise DataError(f"{name}: image_size and color are for folders of images only")
    if name == "digits":
        return _read_digits()
    if suffix in TABLE_SUFFIXES:
        return read_table(path, label)
    if suffix:
        return read_npz(path)
    source = SOURCES[name]
    folder = _find(source, data_dir, download)
    _check(source, folder)
    return source.read(folder)


def _place_of(name: str, data_dir: Path | None) -> Path:
    """Return where a file or folder of a user's own data is, which may have been moved."""
    path = _expanded(name)
    if path.exists() or path.name in ("", ".."):
        return path
    places = (root / path.name for root in search_path(data_dir))
    return next((place for place in places if place.exists()), path)


@dataclass(frozen=True)
class FileStatus:
    """A file of a catalogue data set: its path, and whether it is the published file.

    ``intact`` is None where that was not checked or no digest is known.
    """

    name: str
    path: Path | None
    intact: bool | None


@dataclass(frozen=True)
class SourceStatus:
    """The state of a catalogue data set and of its copy on this machine.

    Attributes:
        name: Name, as in :func:`load_dataset`.
        shape: Shape of one example.
        num_classes: Number of classes.
        sizes: Training and test examples, as published.
        available: Whether it can be read without a download.
        folder: Folder of the copy, complete or not; None without a copy, or if it is bundled.
        files: The files that the folder needs.
        how: Instructions for getting it by hand.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    sizes: tuple[int, int]
    available: bool
    folder: Path | None
    files: tuple[FileStatus, ...]
    how: str


def inspect_sources(data_dir: Path | None = None, *, verify: bool = False) -> list[SourceStatus]:
    """Return the state of every named data set. Downloads nothing.

    Args:
        data_dir: The first folder to search.
        verify: Whether to compare each file with its published digest, which reads all files.
    """
    digits = SourceStatus("digits", (1, 8, 8), 10, (1438, 359), True, None, (), "bundled")
    return [digits, *(_inspect(source, data_dir, verify) for source in SOURCES.values())]


def _inspect(source: Source, data_dir: Path | None, verify: bool) -> SourceStatus:
    roots = search_path(data_dir)
    complete = [root for root in roots if not source.missing(root)]
    partial = [root for root in roots if (root / source.folder).is_dir()]
    root = next(iter(complete + partial), None)
    place = roots[0] / source.folder if roots else f"{source.folder} of a folder in NOPROP_DATA"
    folder = None if root is None else root / source.folder
    files = [
        FileStatus(name, path, _matches(path, digest) if verify and path and digest else None)
        for name, path, digest in source.digests(folder or Path(place))
    ]
    return SourceStatus(
        source.name,
        source.shape,
        source.num_classes,
        source.sizes,
        bool(complete),
        folder,
        tuple(files),
        f"{source.instructions}, so that the files lie in {place}",
    )


def _find(source: Source, data_dir: Path | None, download: bool) -> Path:
    """Return the folder of the first complete copy, or of a new download."""
    roots = search_path(data_dir)
    for root in roots:
        if not source.missing(root):
            return root / source.folder
    if not roots:
        raise DataError(
            f"{source.name} needs a data folder, and there is no home folder to have one in; "
            "name it as --data-dir or NOPROP_DATA"
        )
    why = "downloading is switched off"
    if download:
        try:
            fetch(source, roots[0])
        except DataError as error:
            why = str(error)
        else:
            return roots[0] / source.folder
    looked = ", ".join(_lacks(source, root) for root in roots)
    raise DataError(
        f"{source.name} was not found and not downloaded ({why}). Looked in {looked}. To put it "
        f"there yourself, {source.instructions}, so that the files lie in "
        f"{roots[0] / source.folder}; or give as --data-dir or NOPROP_DATA a folder that has "
        f"{source.folder} in it"
    )


def _lacks(source: Source, root: Path) -> str:
    folder = root / source.folder
    wrong = f"lacks {', '.join(source.missing(root))}" if folder.is_dir() else "no such folder"
    return f"{folder} ({wrong})"


def _check(source: Source, folder: Path) -> None:
    """Compare the files with their published digests."""
    for _, path, digest in source.digests(folder):
        if path and digest and not _matches(path, digest):
            raise DataError(
                f"{path}: is not the published file ({digest}): truncated, damaged or another; "
                f"remove {folder} to have it downloaded again"
            )


def _matches(path: Path, digest: str) -> bool:
    algorithm, _, expected = digest.partition(":")
    try:
        return digest_of(path, algorithm) == expected
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_digits() -> Dataset:
    """Return scikit-learn's 1797 digits, 8x8 pixels; 0..16 becomes 0..240, exact in uint8.

    Its file, of which this package has a copy, has 64 pixels and the label a line.
    """
    path = Path(__file__).with_name("digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            rows = [[int(float(value)) for value in line.split(",")] for line in file]
        table = torch.tensor(rows)
        x = (table[:, :64] * 15).to(torch.uint8).view(-1, 1, 8, 8)
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return split_off_test("digits", Examples(x, table[:, 64].clone()), DIGITS)


def _unknown(name: str, path: Path) -> DataError:
    known = ["digits", *SOURCES]
    if path.exists():
        return DataError(f"{name}: wanted {OWN}")
    if len(path.parts) > 1 or path.suffix:
        moved = f"if it was moved, give the folder with {path.name} in it as --data-dir (data_dir)"
        return DataError(f"{path.absolute()}: no such file or folder; {moved}")
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f", did you mean {close[0]}?" if close else "."
    return DataError(
        f"no data set {name!r}{hint} Known are {', '.join(known)}; {OWN} will do too, but "
        f"{Path.cwd()} has none of that name"
    )
