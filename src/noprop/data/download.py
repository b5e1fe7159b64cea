"""Downloads of catalogue data sets: checked by digest, unpacked safely, put in place whole.

A file or folder of a data set appears under its final name only when it is complete, so a download
that is cut off leaves nothing that could be taken for the data.
"""

import hashlib
import logging
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO

from noprop.data.sources import Download, Source
from noprop.errors import DataError, import_extra
from noprop.files import open_regular

__all__ = ["digest_of", "fetch"]

TIMEOUT_SECONDS = 30  # seconds without an answer


def fetch(source: Source, root: Path) -> None:
    """Download the files of ``source`` that ``root`` lacks; a terminal shows a progress bar.

    Raises:
        DataError: If pooch is not installed, the download fails or has another digest than
            published, or an incomplete folder is in the way.
    """
    folder, missing = root / source.folder, source.missing(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Next to the final place, so that a rename is enough to put the data there.
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as name:
            scratch = Path(name)
            for item in source.downloads:
                if item.unpack:
                    _fetch_archive(source, item, root, scratch)
                elif item.file_name in missing:
                    path = _retrieve(item, scratch)
                    folder.mkdir(parents=True, exist_ok=True)
                    path.replace(folder / item.file_name)
    except OSError as error:
        raise DataError(f"{root}: cannot store {source.name} there: {error}") from error
    if missing := source.missing(root):
        raise DataError(f"{folder}: the download does not hold {', '.join(missing)}")


def digest_of(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file, for "sha256" or "md5"."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _retrieve(item: Download, folder: Path) -> Path:
    """Download one file into ``folder``; it appears there only if its digest is right."""
    pooch = import_extra("pooch", "download", "downloading needs", DataError)
    pooch.get_logger().setLevel(logging.WARNING)
    # Pooch takes any object with a progress bar's methods; its annotations do not say so.
    downloader = pooch.HTTPDownloader(
        progressbar=_Progress(item.file_name) if sys.stderr.isatty() else False,
        timeout=TIMEOUT_SECONDS,
    )
    try:
        path = pooch.retrieve(
            item.url,
            item.digest,
            item.file_name,
            folder,
            downloader=downloader,
        )
    except Exception as error:  # requests, urllib3, pooch and the system each raise their own
        reason = getattr(error.args[0], "reason", error) if error.args else type(error).__name__
        raise DataError(f"{item.url}: download failed: {reason}") from error
    return Path(path)


def _fetch_archive(source: Source, item: Download, root: Path, scratch: Path) -> None:
    """Download, check and unpack an archive whose one folder becomes ``root / source.folder``."""
    folder = root / source.folder
    if folder.exists():
        raise DataError(
            f"{folder}: is incomplete, it lacks {', '.join(source.missing(root))}; complete it, or "
            f"move it away to have the whole downloaded"
        )
    archive = _retrieve(item, scratch)
    try:
        unpack(archive, source, scratch)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{item.url}: damaged archive: {error}") from error
    try:
        (scratch / source.folder).rename(folder)
    except OSError:
        # Another process may have put the same data there meanwhile, which is as good.
        if source.missing(root):
            raise


def unpack(archive: Path, source: Source, target: Path) -> None:
    """Unpack the members of ``archive`` that ``source`` needs into ``target``.

    Only regular files whose path is ``source.folder`` and one of its needed entries are written, so
    no member can name a place elsewhere.
    """
    wanted = {PurePosixPath(name).parts[0] for names in source.files for name in names}
    for name, stream in _members(archive):
        path = PurePosixPath(name)
        inside = path.parts[:1] == (source.folder,) and ".." not in path.parts
        if inside and len(path.parts) > 1 and path.parts[1] in wanted:
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                copyfileobj(stream, file)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the open content of each regular file in a zip or tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    with opened.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            stream = opened.extractfile(member) if member.isreg() else None
            if stream is not None:
                with closing(stream):
                    yield member.name, stream


class _Progress:
    """The progress bar that pooch drives: one line on stderr, counting bytes."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.done, self.shown = name, 0, 0, -1

    def update(self, size: int) -> None:
        """Count ``size`` more bytes."""
        self.done += size
        tenth = 1000 * self.done // self.total if self.total else self.done >> 20
        if tenth == self.shown:
            return
        self.shown = tenth
        megabytes = f"{self.done / 1e6:.1f} MB"
        if self.total:
            filled = 30 * self.done // self.total
            bar = f"[{'#' * filled}{' ' * (30 - filled)}] {100 * self.done // self.total:3d} %"
            megabytes = f"{bar} of {self.total / 1e6:.1f} MB"
        print(f"\r{self.name} {megabytes}", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        """Restart the count: pooch calls this at the end, before it counts everything again."""
        self.done = 0

    def close(self) -> None:
        """Finish the line."""
        print(file=sys.stderr)
