"""Whether worker processes can import the script that starts them.

Each worker imports the main script again (:mod:`multiprocessing`). A script that trains outside of
``if __name__ == "__main__":`` would train in each of them, and code from standard input cannot be
imported at all. Both are seen here before anything is written.
"""

import ast
import sys
from pathlib import Path
from types import FrameType

from noprop.errors import ConfigError

__all__ = ["check_main_script"]

LINES = 'def main(): …; if __name__ == "__main__": main()'


def check_main_script() -> None:
    """Check that workers can import the main script.

    Raises:
        ConfigError: If they cannot; the message shows the lines to add.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:  # a notebook, an interactive session or python -c: nothing is imported
        return
    if not Path(file).exists():
        raise ConfigError(
            f"{file}: worker processes cannot import this code; save it as a file, with its calls "
            f"in a function ({LINES}), or train with workers=1"
        )
    frame = _main_frame()
    if frame is not None and not _is_guarded(Path(frame.f_code.co_filename), frame.f_lineno):
        raise ConfigError(
            f"{file}, line {frame.f_lineno}: worker processes import this script, so put its calls "
            f"in a function ({LINES}), or train with workers=1"
        )


def _main_frame() -> FrameType | None:
    """Return the frame of the main script's own statements, if they lead here."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            return frame
        frame = frame.f_back
    return None


def _is_guarded(path: Path, line: int) -> bool:
    """Return whether the statement at a line is under an ``if`` that reads ``__name__``.

    True for a file that cannot be read as Python, such as a compiled one.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    for statement in tree.body:
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno):
            names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
            return isinstance(statement, ast.If) and "__name__" in names
    return True
