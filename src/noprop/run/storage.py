"""Commits at an fsspec URL, for machines that share no folder: s3://, gs://, file:// and so on.

A group is trained in a folder of its own machine. Each commit is copied to the storage: first the
files that are not there yet, then the manifest, each under a temporary name and then moved. The
manifest is named by its update there, as in ``commit.120.json``, and the one before it is kept. The
state after an update is a function of its number, so a worker that was given up as lost and still
sends does no harm to the worker in its place.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.errors import ConfigError, DamagedError, RunError
from noprop.files import check_folder, write_whole
from noprop.training.commits import LAST, PREVIOUS, Commit, delete_unnamed, latest, read_commit

__all__ = ["RunStorage", "UnitStorage"]


@dataclass(frozen=True)
class RunStorage:
    """The place of a run, by a URL that every machine can reach."""

    url: str

    def check(self) -> None:
        """Check that the URL is one of a storage that other processes can reach.

        Raises:
            ConfigError: If it is not, or what reaches it is not installed.
        """
        if self.url.startswith("memory:"):
            raise ConfigError(
                f"storage: {self.url} is in the memory of one process, and no other would see it; "
                "wanted such as s3://bucket/runs or file:///mnt/runs"
            )
        if "://" not in self.url:
            raise ConfigError(
                f"storage: wanted a URL such as s3://bucket/runs or file:///mnt/runs, got "
                f"{self.url!r}"
            )
        try:
            _opened(self.url)
        except Exception as error:
            raise ConfigError(f"storage: {self.url}: {error}") from None

    def begin(self, config: bytes) -> None:
        """Make the place and write the configuration there, which shows that it can be written.

        Raises:
            RunError: If it cannot.
        """
        with _reached(self.url):
            files, root = _checked(self.url)
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/config.toml", config)

    def unit(self, group: str) -> "UnitStorage":
        """Return the place of a group of units."""
        return UnitStorage(f"{self.url}/units/{group}")


@dataclass(frozen=True)
class UnitStorage:
    """The place of the commits of a group."""

    url: str

    def position(self) -> int | None:
        """Return the number of updates of the last commit here; None without one."""
        with _reached(self.url):
            return max(self._positions(self._names()), default=None)

    def fetch(self, folder: Path) -> bool:
        """Copy the last two commits, with their files, into the folder of a group.

        Nothing is copied where the last commit of the folder is as far.

        Returns:
            Whether anything was copied.

        Raises:
            RunError: If the storage cannot be read, or the folder not written.
        """
        with _reached(self.url):
            positions = sorted(self._positions(self._names()), reverse=True)[:2]
            own = _last(folder)
            if not positions or (own is not None and own.position >= positions[0]):
                return False
            for position, name in reversed([*zip(positions, (LAST, PREVIOUS), strict=False)]):
                new = folder / f"{name}.fetched"
                write_whole(new, self._read(f"commit.{position}.json"))
                with suppress(DamagedError):  # training then reports it
                    for part in read_commit(new).files.values():
                        if not (folder / part.file).exists():
                            with _absent_allowed():  # training then reports that it is missing
                                write_whole(folder / part.file, self._read(part.file))
                os.replace(new, folder / name)
            delete_unnamed(folder)
            return True

    def send(self, folder: Path) -> None:
        """Copy the last commit of a group here, and delete the files that no manifest names.

        Raises:
            RunError: If the storage cannot be written.
        """
        commit = _last(folder)
        if commit is None:
            return
        with _reached(self.url):
            present = self._names()
            for part in commit.files.values():
                if part.file not in present:
                    self._write(part.file, folder / part.file)
            self._write(f"commit.{commit.position}.json", folder / LAST)
            if commit.position >= max(self._positions(present), default=0):
                self._tidy(folder, {name for name in present if _update(name) < commit.position})

    def advance(self, folder: Path) -> None:
        """Send the last commit of a group if none here is as far."""
        commit = _last(folder)
        if commit is not None and commit.position > (self.position() or 0):
            self.send(folder)

    def _tidy(self, folder: Path, older: set[str]) -> None:
        """Delete the older files that neither this commit nor the one before it needs.

        A later file may belong to a commit whose manifest another worker is about to write.
        """
        files, root = _opened(self.url)
        kept = set()
        for path in (folder / LAST, folder / PREVIOUS):
            with suppress(DamagedError):  # or absent
                commit = read_commit(path)
                kept |= {f"commit.{commit.position}.json"}
                kept |= {part.file for part in commit.files.values()}
        for name in older - kept:
            with _absent_allowed():
                files.rm_file(f"{root}/{name}")

    def _write(self, name: str, source: Path) -> None:
        files, root = _opened(self.url)
        temporary = f"{root}/.{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        files.makedirs(root, exist_ok=True)
        files.put_file(str(source), temporary)
        files.mv(temporary, f"{root}/{name}")

    def _read(self, name: str) -> bytes:
        files, root = _opened(self.url)
        return files.cat_file(f"{root}/{name}")

    def _names(self) -> set[str]:
        """Return the path of every file here, from here."""
        files, root = _checked(self.url)
        files.invalidate_cache()
        found = files.find(root) if files.exists(root) else []
        return {str(path).removeprefix(root).lstrip("/") for path in found}

    @staticmethod
    def _positions(names: set[str]) -> list[int]:
        found = [re.fullmatch(r"commit\.([0-9]{1,18})\.json", name) for name in names]
        return [int(match[1]) for match in found if match]


def _update(name: str) -> int:
    """Return the update in the name of a file, complete or temporary; -1 without one."""
    found = re.search(r"\.([0-9]{1,19})\.(?:json|safetensors)", name)
    return int(found[1]) if found else -1


def _last(folder: Path) -> Commit | None:
    """Return the last commit of a folder; None where it is absent or damaged."""
    try:
        found = latest(folder)
    except DamagedError:
        return None
    return found and found.commit


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    return files, str(root).rstrip("/")


def _checked(url: str) -> tuple[Any, str]:
    """Open a URL as :func:`_opened`, and check that a folder is no link and holds none."""
    files, root = _opened(url)
    if "file" in files.protocol:
        if os.path.islink(root):  # the user names the folder above it
            raise RunError(f"{root}: is a symbolic link, which a storage must not hold")
        check_folder(Path(root))
    return files, root


@contextmanager
def _absent_allowed() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:  # another was faster
        pass


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Report what a storage raises as an error of the storage, in one line."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(f"storage: {url}: {words}") from None
