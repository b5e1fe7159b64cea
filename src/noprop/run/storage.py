"""Checkpoints at an fsspec URL, for machines that share no folder: s3://, gs://, file:// and so on.

A unit is trained in a folder of its own machine, and each checkpoint is sent to the storage whole:
first the files that it lists as waiting, then itself, each under a temporary name and then moved.
It is called by its update there, as in ``checkpoint.120.safetensors``, and the one before it is
kept. The state after an update is a function of its number; so a worker that was taken for lost
and still sends does no harm beside the one in its place.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noprop.errors import ConfigError, RunError
from noprop.files import check_folder, write_whole
from noprop.training.checkpoint import DamagedError, read_about
from noprop.training.generations import previous_of

__all__ = ["RunStorage", "UnitStorage"]

LAST = "checkpoint.safetensors"
WAITING = "waiting"


@dataclass(frozen=True)
class RunStorage:
    """The place of a run, by a URL that every machine can reach."""

    url: str

    def check(self) -> None:
        """See that the URL is one of a storage that other processes can reach.

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
        """The place of a group of units."""
        return UnitStorage(f"{self.url}/units/{group}")


@dataclass(frozen=True)
class UnitStorage:
    """The place of a group's checkpoints."""

    url: str

    def position(self) -> int | None:
        """Updates that the last checkpoint here has behind it; None without one."""
        with _reached(self.url):
            return max(self._positions(self._names()), default=None)

    def fetch(self, folder: Path) -> bool:
        """Bring the last two checkpoints, and the files that they list, into a group's folder.

        Nothing is done where the folder's own is as far.

        Returns:
            Whether anything was brought.

        Raises:
            RunError: If the storage cannot be read, or the folder not written.
        """
        with _reached(self.url):
            positions = sorted(self._positions(self._names()), reverse=True)[:2]
            if not positions or (_position(folder / LAST) or -1) >= positions[0]:
                return False
            places = (folder / LAST, previous_of(folder / LAST))
            for position, place in reversed([*zip(positions, places, strict=False)]):
                content = self._read(_name(position))
                kept = place.with_name(f"{place.name}.fetched")
                write_whole(kept, content)
                for name in _waiting(kept):
                    self._bring_waiting(folder, name)
                os.replace(kept, place)
            return True

    def _bring_waiting(self, folder: Path, name: str) -> None:
        place = folder / WAITING / name
        if not place.exists():
            with _absent_allowed():  # whoever goes on from the checkpoint says that it is missing
                write_whole(place, self._read(f"{WAITING}/{name}"))

    def send(self, folder: Path) -> None:
        """Send a group's last checkpoint, and delete what it makes needless.

        Raises:
            RunError: If the storage cannot be written.
        """
        last = folder / LAST
        position = _position(last)
        if position is None:
            return
        with _reached(self.url):
            there = self._names()
            for name in _waiting(last):
                if f"{WAITING}/{name}" not in there:
                    self._write(f"{WAITING}/{name}", folder / WAITING / name)
            self._write(_name(position), last)
            if position >= max(self._positions(there), default=0):
                self._tidy(folder, there)

    def advance(self, folder: Path) -> None:
        """Send a group's last checkpoint if none here is as far."""
        if (position := _position(folder / LAST)) is not None and position > (self.position() or 0):
            self.send(folder)

    def _tidy(self, folder: Path, there: set[str]) -> None:
        """Delete all but this checkpoint and the one before it, with the files that they list."""
        files, root = _opened(self.url)
        kept = set()
        for path in (folder / LAST, previous_of(folder / LAST)):
            if (position := _position(path)) is not None:
                kept |= {_name(position), *(f"{WAITING}/{name}" for name in _waiting(path))}
        for name in there - kept:
            with _absent_allowed():
                files.rm_file(f"{root}/{name}")

    def _write(self, name: str, source: Path) -> None:
        files, root = _opened(self.url)
        folder, _, last = f"{root}/{name}".rpartition("/")
        temporary = f"{folder}/.{last}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        files.makedirs(folder, exist_ok=True)
        files.put_file(str(source), temporary)
        files.mv(temporary, f"{folder}/{last}")

    def _read(self, name: str) -> bytes:
        files, root = _opened(self.url)
        return files.cat_file(f"{root}/{name}")

    def _names(self) -> set[str]:
        """Every file here, by its path from here."""
        files, root = _checked(self.url)
        files.invalidate_cache()
        found = files.find(root) if files.exists(root) else []
        return {str(path).removeprefix(root).lstrip("/") for path in found}

    @staticmethod
    def _positions(names: set[str]) -> list[int]:
        found = [re.fullmatch(r"checkpoint\.([0-9]{1,18})\.safetensors", name) for name in names]
        return [int(match[1]) for match in found if match]


def _name(position: int) -> str:
    return f"checkpoint.{position}.safetensors"


def _about(path: Path) -> dict[str, Any]:
    try:
        return read_about(path)
    except DamagedError:  # or absent: whoever goes on from it says so
        return {}


def _position(path: Path) -> int | None:
    return _about(path).get("position")


def _waiting(path: Path) -> list[str]:
    """Names of the files that a checkpoint lists beside it."""
    waiting = _about(path).get("waiting", {})
    return [f"{unit}.{position}.safetensors" for unit, position in waiting.items()]


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    return files, str(root).rstrip("/")


def _checked(url: str) -> tuple[Any, str]:
    """As :func:`_opened`; a place that is a folder is no link, and holds none."""
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
    """In here whatever a storage raises is an error of the storage, in one line."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise RunError(f"storage: {url}: {words}") from None
