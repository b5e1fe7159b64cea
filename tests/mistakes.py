"""What the table of mistakes is made of: a row, the makers of faults, and the check of a message.

A fault is a function of the folder that the command runs in. The makers here return such functions.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save

from noprop.cli import main
from noprop.tensor_files import load_tensors

Fault = Callable[[Path], object]
SECONDS = 60  # a hang is a failure, a loaded machine is none
# Of a small run: 200 images and one epoch.
FAST = [
    *("--num-blocks", "2", "--epochs", "1", "--train-size", "200", "--workers", "1"),
    *("--runs", "2", "--quiet"),
]


def row(
    name: str,
    command: str | list[str],
    *words: str,
    fault: Fault | tuple[Fault, ...] = (),
    env: Mapping[str, str] | None = None,
):
    """One row of the table of mistakes.

    Args:
        name: Short id of the row.
        command: The command line, split as a shell does it, or a list of arguments. Where one of
            them is ``run`` or ``run-METHOD``, or begins with it and a slash, the folder has a copy
            of a small trained run of that name (of ``digits-dt``, or of the method's recipe).
        words: What the message must contain.
        fault: Called with the folder before the command; several in order.
        env: Environment variables. The command then runs as a process of its own.
    """
    argv = shlex.split(command) if isinstance(command, str) else command
    faults = fault if isinstance(fault, tuple) else (fault,)
    return pytest.param(argv, words, faults, env, id=name)


def write(name: str, content: str | bytes = b"") -> Fault:
    """A file of this content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, old: str, new: str) -> Fault:
    """Replace a text, which must occur, in a file."""

    def fault(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (folder / name).write_text(text.replace(old, new))

    return fault


def rewrite(
    name: str,
    about: Mapping[str, Any] | None = None,
    *,
    header: str = "",
    tensors: Callable[[dict[str, Any]], object] = lambda tensors: None,
) -> Fault:
    """Write a file of tensors again, as anybody can who knows its form.

    Args:
        name: The file.
        about: Fields of its header that change; those that become None are left out.
        header: The header as a whole.
        tensors: Called with the tensors by name, to change them.
    """

    def fault(folder: Path) -> None:
        kept, said = load_tensors(folder / name)
        fields = {k: v for k, v in {**said, **(about or {})}.items() if v is not None}
        tensors(kept)
        content = save(kept, metadata={"noprop": header or json.dumps([fields, ""])})
        (folder / name).write_bytes(content)

    return fault


def change(name: str, fields: Mapping[str, Any]) -> Fault:
    """Change fields of a JSON file; those that become None are left out."""

    def fault(folder: Path) -> None:
        said = {**json.loads((folder / name).read_text()), **fields}
        text = json.dumps({k: v for k, v in said.items() if v is not None})
        (folder / name).write_text(text)

    return fault


def remove(name: str) -> Fault:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def make_folder(name: str) -> Fault:
    """An empty folder."""
    return lambda folder: (folder / name).mkdir(parents=True)


def make_fifo(name: str) -> Fault:
    """A named pipe that nobody writes to, in place of the file where there is one."""

    def fault(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return fault


def make_link(name: str, target: str) -> Fault:
    """A symbolic link, in place of the file where there is one."""

    def fault(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return fault


def images_by_class(folder: str, names: Sequence[bytes | str], count: int = 12) -> Fault:
    """Random grey images of 8×8 in a folder of each class; file names are ``0.png`` and so on."""

    def fault(place: Path) -> None:
        draws = np.random.default_rng(0)
        for shade, name in enumerate(names):
            inside = place / folder / os.fsdecode(name)
            inside.mkdir(parents=True)
            for number, pixels in enumerate(draws.integers(0, 60, (count, 8, 8))):
                image = Image.fromarray((pixels + 30 * shade).astype(np.uint8))
                image.save(inside / f"{number}.png")

    return fault


def save_npz(name: str, **arrays: Any) -> Fault:
    """A NumPy file of these arrays."""
    return lambda folder: np.savez(folder / name, **arrays)


def save_npy(name: str, array: np.ndarray) -> Fault:
    """A NumPy file of one array."""
    return lambda folder: np.save(folder / name, array)


def zip_file(name: str, members: Mapping[str, bytes]) -> Fault:
    """A zip file with these members, such as an npz of what is no array."""

    def fault(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    return fault


def class_folders(name: str) -> Fault:
    """A folder of two class folders, 0 and 1, of five grey images of 8x8 pixels each."""

    def fault(folder: Path) -> None:
        for i in range(10):
            path = folder / name / str(i % 2) / f"{i // 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 25 * i).save(path)

    return fault


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer, even where it hangs in a system call."""

    def expired(*_: object) -> None:
        pytest.fail(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def line_of_error(capture: Any, *argv: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must fail, and return its message.

    Fails unless the status is not zero, stderr is one printable line that begins with
    ``noprop: error: ``, and the command ends in time.

    Args:
        capture: capsys or capfd.
        argv: The command line.
        env: Environment variables. The command then runs as a process of its own.
    """
    with time_limit(SECONDS):
        if env is None:
            capture.readouterr()
            try:
                status = main(list(argv))
            except SystemExit as stop:
                status = stop.code
            text = capture.readouterr().err
        else:
            command = [sys.executable, "-m", "noprop", *argv]
            done = subprocess.run(command, env={**os.environ, **env}, capture_output=True)
            status, text = done.returncode, done.stderr.decode(errors="backslashreplace")
    assert status not in (0, None), text
    assert text.startswith("noprop: error: "), text
    assert text.endswith("\n"), text
    assert text[:-1].isprintable(), text
    return text
