"""What a run records of an encoder of the user's own: its name and the SHA-256 of its file.

Nothing is imported from it. A run says which code it was trained with, and the user names the code
to import on each command line.
"""

import functools
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noprop.errors import RunError
from noprop.files import read_object, write_whole
from noprop.terminal import printable

__all__ = ["ENCODER", "check_encoder", "note_encoder"]

ENCODER = "encoder.json"


def note_encoder(folder: Path, encoder: Callable[..., Any] | None) -> None:
    """Write the name and the digest of an encoder into a run folder, unless they are there."""
    if encoder is None or (folder / ENCODER).exists():
        return
    function, digest = _source_of(encoder)
    text = json.dumps({"function": function, "sha256": digest}, indent=1) + "\n"
    write_whole(folder / ENCODER, text.encode())


def check_encoder(folder: Path, encoder: Callable[..., Any] | None) -> None:
    """Warn if the file of an encoder is not that with which a run was made.

    Raises:
        RunError: If no encoder was given; the message names the one that is needed.
    """
    function, digest = _noted(folder)
    if encoder is None:
        which = f" ({function}" + (f", SHA-256 of its file {digest[:12]}…)" if digest else ")")
        raise RunError(
            f"{folder}: was trained with an encoder of its own{which if function else ''}; give it "
            "as encoder, or with --encoder MODULE:FUNCTION"
        )
    now, here = _source_of(encoder)
    if digest and here and digest != here:
        warnings.warn(
            f"{folder}: was made with {function}, SHA-256 of its file {digest[:12]}…; the file of "
            f"{now} differs, {here[:12]}…",
            UserWarning,
            stacklevel=2,
        )


def _noted(folder: Path) -> tuple[str, str]:
    """Return what a run has noted, which may come from a stranger: texts to show, no more."""
    if not (folder / ENCODER).is_file():
        return "", ""
    noted = read_object(folder / ENCODER)
    function, digest = (noted.get(name) for name in ("function", "sha256"))
    shown = printable(function)[:100] if isinstance(function, str) else "?"
    return shown, digest if isinstance(digest, str) else ""


def _source_of(encoder: Callable[..., Any]) -> tuple[str, str]:
    """Return the name of a function, and the digest of the file that defines it, or nothing."""
    function: Any = inspect.unwrap(encoder)
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        file = inspect.getsourcefile(function)
        content = Path(file).read_bytes() if file else b""
    except (TypeError, OSError):  # of a notebook or an extension
        content = b""
    digest = hashlib.sha256(content).hexdigest() if content else ""
    return f"{getattr(function, '__module__', '?')}:{name}", digest
