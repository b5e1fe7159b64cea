"""All output to the terminal: text without control characters, in any encoding.

Names of classes, files and folders may come from an untrusted source. The package prints only
through :func:`show`, :func:`show_json` and :func:`tell`, which escape characters that are not
printable.
"""

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["is_number", "printable", "readable_output", "show", "show_json", "tell"]

# ASCII for the characters that the package prints itself, for encodings without them.
SPELLINGS = {
    **{"±": "+/-", "×": "x", "·": "*", "→": "->", "−": "-", "–": "-", "…": "...", "′": "'"},
    **{"≥": ">=", "≤": "<=", "√": "sqrt ", "‖": "||", "½": "1/2", "Σ": "sum", "û": "u_hat"},
    **{"α": "alpha", "ᾱ": "alpha_bar", "γ": "gamma", "η": "eta", "σ": "sigma"},
    **{"²": "^2", "³": "^3", "⁶": "^6", "⁹": "^9", "“": '"', "”": '"', "’": "'"},
}


def printable(value: object) -> str:
    """Return the text of a value in one line, with characters escaped that are not printable.

    These are control characters, newlines, characters that change the direction of text, and bytes
    of a file name that cannot be decoded.
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= (code := ord(character)) <= 0xDCFF:  # a byte, as os.fsdecode writes it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def show(text: object) -> None:
    """Print lines of results on stdout."""
    print("\n".join(map(printable, str(text).split("\n"))))


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout, with JSON escapes for characters that are not printable."""
    print(json.dumps(value, indent=1).replace("\x7f", "\\u007f"))


def tell(text: object) -> None:
    """Print one line on stderr: progress, a warning or an error."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def readable_output() -> Iterator[None]:
    """Print ASCII in this block for characters that the encoding of a stream lacks.

    Closed standard streams are opened to ``/dev/null``. Otherwise the next opened file would get
    the descriptor of one of them, and a library's output would be written to that file.
    """
    _open_closed_streams()
    codecs.register_error("noprop.spelled", _spelled)
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="noprop.spelled")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            _drop_unwritable(stream)
            stream.reconfigure(errors=errors)


def _open_closed_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def _drop_unwritable(stream: io.TextIOWrapper) -> None:
    """Send output that cannot be written to ``/dev/null``, or Python would report it at exit."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error: spell known characters in ASCII, and escape the others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanting = error.object[error.start : error.end]
    spelled = (SPELLINGS.get(c, _escaped(c)) for c in wanting)
    escaped = (s if s.isascii() else s.encode("unicode_escape").decode("ascii") for s in spelled)
    return "".join(escaped), error.end


def is_number(text: str) -> bool:
    """Return whether a text is a number, as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True
