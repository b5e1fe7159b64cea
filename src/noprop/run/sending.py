"""A user's own encoder on its way to other machines, which need not have its module."""

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["sent_by_value"]


@contextmanager
def sent_by_value(function: Callable[..., Any] | None, cloudpickle: Any) -> Iterator[None]:
    """Send a function with the code of its module in this block, unless that is installed.

    It is sent by its name otherwise, and a worker that cannot import the module fails.

    Args:
        function: The function.
        cloudpickle: The module that pickles it.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or _is_installed(module):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _is_installed(module: Any) -> bool:
    if module.__name__.partition(".")[0] in ("noprop", "__main__"):
        return True  # workers have the one; the other is always sent with its code
    file = getattr(module, "__file__", None)
    places = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    return file is None or any(Path(file).is_relative_to(place) for place in places)
