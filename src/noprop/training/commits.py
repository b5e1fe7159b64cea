"""Checkpoints of a group: manifests of files that are never changed.

``units/block-3/block-3.24.safetensors`` is block 3, its weights and optimizer state, before update
24 of its group. ``commit.json`` is the checkpoint: the position, and the file and SHA-256 of each
part of the group. The manifest before it stays as ``previous.json``. A copy that is kept for good
is a manifest too, such as ``epoch-5.json``.

Files are written before the manifest that names them, and deleted when no manifest names them. So a
process that is killed at any moment leaves a checkpoint with all its files, and a damaged file is
recognised when it is read. One protocol serves a single unit, units that share parameters and are
trained by one process or by several, and units that are parked in files while others are trained.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from noprop.errors import DamagedError, RunError
from noprop.files import open_regular, read_object, write_whole
from noprop.tensor_files import encode, load_tensors, read_header
from noprop.version import __version__

__all__ = [
    "LAST",
    "PREVIOUS",
    "Commit",
    "Found",
    "Part",
    "delete_unnamed",
    "kept_epochs",
    "latest",
    "load_part",
    "read_commit",
    "read_kept",
    "restore_previous",
    "write_commit",
    "write_part",
]

LAST, PREVIOUS = "commit.json", "previous.json"


class Part(NamedTuple):
    """A file of a commit: its name in the folder of the group, and its SHA-256 in hex."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Commit:
    """The state of a group after some of its updates.

    Attributes:
        position: Updates made.
        total: Updates of the whole training.
        seconds: Time of training until now, over all processes that had the group in turn.
        files: The file of each part: a unit by its name, and ``shared``.
        fingerprint: Digest of the settings and the data.
        version: Version of the package that wrote it.
    """

    position: int
    total: int
    seconds: float
    files: Mapping[str, Part]
    fingerprint: str = ""
    version: str = __version__

    @property
    def is_last(self) -> bool:
        """Whether every update is made."""
        return self.position == self.total

    def check(self, folder: Path, fingerprint: str) -> None:
        """Refuse a commit of other settings or data, or of another version.

        Raises:
            RunError: If it is of another training; the message names ``folder``.
        """
        if self.version != __version__:
            raise _other_version(folder / LAST, self.version)
        if self.fingerprint != fingerprint:
            raise RunError(
                f"{folder / LAST}: was trained with other settings or other data than this run now "
                "has; restore them, or start a new run"
            )


@dataclass(frozen=True)
class Found:
    """A commit that was read.

    Attributes:
        commit: The last commit whose files are whole.
        damage: What is wrong with the one after it; empty if this is the last one.
    """

    commit: Commit
    damage: str = ""


# -- writing -------------------------------------------------------------------------------------


def write_part(folder: Path, name: str, position: int, tensors: Mapping[str, Tensor]) -> Part:
    """Write the file of a part as it is before update ``position``.

    Raises:
        RunError: If it cannot be written; earlier commits are untouched.
    """
    file, content = f"{name}.{position}.safetensors", encode(tensors, {}, digest=False)
    with _promise_kept(folder):
        write_whole(folder / file, content)
    return Part(file, hashlib.sha256(content).hexdigest())


def write_commit(folder: Path, commit: Commit, *, keep_as_epoch: int | None = None) -> None:
    """Make a commit the last one, and delete the files that no manifest names any more.

    Args:
        folder: Folder of the group.
        commit: The commit; its files exist.
        keep_as_epoch: Epoch under which to keep it for good, as ``epoch-<n>.json``.

    Raises:
        RunError: If it cannot be written; the commit before is kept.
    """
    content = (json.dumps(asdict(commit), indent=1) + "\n").encode()
    with _promise_kept(folder):
        if keep_as_epoch is not None:
            write_whole(folder / f"epoch-{keep_as_epoch}.json", content)
        write_whole(folder / LAST, content, before=folder / PREVIOUS)
    delete_unnamed(folder, commit.files.values())


@contextmanager
def _promise_kept(folder: Path) -> Iterator[None]:
    """Add to an error of writing that the commit before is kept, where there is one."""
    try:
        yield
    except RunError as error:
        kept = any((folder / name).exists() for name in (LAST, PREVIOUS))
        raise RunError(f"{error}" + "; the last good checkpoint is kept" * kept) from None


def delete_unnamed(folder: Path, parts: Iterable[Part] = ()) -> None:
    """Delete every file of a part that no manifest names, nor is one of ``parts``."""
    named = {part.file for part in parts}
    for path in folder.glob("*.json"):
        try:
            named |= {part.file for part in read_commit(path).files.values()}
        except DamagedError:  # what it names is of no use
            continue
    for path in folder.glob("*.safetensors"):
        if path.name not in named:
            path.unlink(missing_ok=True)


def restore_previous(folder: Path, found: Found) -> None:
    """Put the commit that was found in the place of a damaged last one.

    Otherwise the next commit would push the good one out, and keep the damaged one.
    """
    if found.damage:
        write_whole(folder / LAST, (json.dumps(asdict(found.commit), indent=1) + "\n").encode())


# -- reading -------------------------------------------------------------------------------------


def latest(folder: Path, *, files: bool = False) -> Found | None:
    """Return the last commit of a group that is whole, or None where there is none at all.

    Args:
        folder: Folder of the group.
        files: Whether to check the digest of every file as well; else the manifest alone is read.

    Raises:
        DamagedError: If none is whole; the message says what to delete.
        RunError: If the folder holds a checkpoint of an earlier version of the package.
    """
    damages: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            commit = read_commit(path)
            if files:
                for part in commit.files.values():
                    _check(folder, part)
        except DamagedError as error:
            damages.append(str(error))
            continue
        return Found(commit, damages[0] if damages else "")
    if damages:
        other = (
            f"and so is {PREVIOUS}" if len(damages) > 1 else "and there is no earlier checkpoint"
        )
        raise DamagedError(f"{damages[0]}, {other}; delete {folder} to train it again")
    _refuse_older(folder)
    return None


def load_part(folder: Path, part: Part) -> dict[str, Tensor]:
    """Return the tensors of a part, on the CPU.

    Raises:
        DamagedError: If the file is missing or altered.
    """
    _check(folder, part)
    return load_tensors(folder / part.file)[0]


def kept_epochs(folder: Path) -> set[int]:
    """Return the epochs after which a commit of the group was kept for good."""
    found = (re.fullmatch(r"epoch-([0-9]{1,9})\.json", path.name) for path in folder.glob("*.json"))
    return {int(match[1]) for match in found if match}


def read_kept(folder: Path, epoch: int) -> Commit:
    """Return the commit that was kept after an epoch.

    Raises:
        DamagedError: If it is missing or damaged.
    """
    return read_commit(folder / f"epoch-{epoch}.json")


def _check(folder: Path, part: Part) -> None:
    path = folder / part.file
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing, and {folder / LAST} needs it") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    if found != part.sha256:
        raise DamagedError(f"{path}: is damaged (its content is not what was written)")


def read_commit(path: Path) -> Commit:
    """Return the commit of a manifest.

    Raises:
        DamagedError: If it is missing or damaged.
    """
    value = read_object(path)
    try:
        return _commit_of(value)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: is damaged ({' '.join(str(error).split())[:200]})") from None


def _commit_of(value: dict[str, Any]) -> Commit:
    """Return the commit that a manifest describes, which may come from a stranger.

    Raises:
        ValueError: If a field is not as it was written. A file can lie in the folder of the group
            alone.
    """
    for name in ("position", "total"):
        if type(value[name]) is not int or not 0 <= value[name] < 2**63:
            raise ValueError(f"{name} must be a count")
    if value["position"] > value["total"]:
        raise ValueError("position is above total")
    if type(value["seconds"]) not in (int, float) or not 0 <= value["seconds"] < math.inf:
        raise ValueError("seconds must be a number of at least 0")
    if not isinstance(value["fingerprint"], str):
        raise ValueError("fingerprint must be a text")
    if not re.fullmatch(r"[\w.+-]{1,40}", value["version"]):
        raise ValueError("version must be a version")
    files = {}
    for name, (file, sha256) in dict(value["files"]).items():
        if not re.fullmatch(r"[a-z]+(-[0-9]+)?", name):
            raise ValueError("files must be those of units")
        if not re.fullmatch(re.escape(name) + r"\.[0-9]{1,19}\.safetensors", file):
            raise ValueError(f"the file of {name} must be {name}.<position>.safetensors")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{name} must have a SHA-256")
        files[name] = Part(file, sha256)
    numbers = {name: value[name] for name in ("position", "total", "seconds")}
    return Commit(
        **numbers, files=files, fingerprint=value["fingerprint"], version=value["version"]
    )


def _refuse_older(folder: Path) -> None:
    """Refuse a checkpoint in the format before 0.2.0.

    Raises:
        RunError: If there is one.
    """
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        path = folder / name
        if path.exists():
            try:
                version = read_header(path).get("version")
            except RunError:
                version = None
            raise _other_version(path, version if isinstance(version, str) else "0.1.0")


def _other_version(path: Path, version: str) -> RunError:
    return RunError(
        f"{path}: was written by noprop {version[:40]}, this is {__version__}; finish the run with "
        "that version, or start a new run"
    )
