"""How long the way is from the command to the loss: files passed, calls deep, functions.

A profiler watches ``noprop train digits-dt --workers 1`` and a prediction of the trained model. It
counts the files and functions of the package that are called, generated methods of dataclasses left
out, and how many calls of the package are on the stack at most.

    python studies/path.py [--json]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

__all__ = ["Phase", "watch_training"]

SMALL = ["--epochs=1", "--num-blocks=2", "--train-size=300", "--test-size=50", "--runs=1"]


@dataclass
class Phase:
    """What was called in one part of the program.

    Attributes:
        files: Files of the package, by their path in it.
        functions: Functions of the package, with the file of each.
        depth: Calls of the package on the stack at most, at the loss where there is one.
    """

    files: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    depth: int = 0


class Watch:
    """A profiler that assigns each call of the package to the current phase."""

    def __init__(self, package: Path):
        self.package = f"{package}/"
        self.phases = {name: Phase() for name in ("start to first update", "one update", "predict")}
        self.phase: Phase | None = self.phases["start to first update"]
        self.updates = 0
        self.inside: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Take one event of :func:`sys.setprofile`."""
        if event == "return" and frame is self.inside:
            self.phase = self.inside = None
        code = frame.f_code
        if event != "call" or not self._is_function(code):
            return
        if code.co_name == "step" and code.co_filename.endswith(("trainer.py", "loop.py")):
            self.updates += 1
            self.phase = self.phases["one update"] if self.updates == 2 else None
            self.inside = frame if self.phase else None
        if self.phase is None:
            return
        name = code.co_filename.removeprefix(self.package)
        self.phase.files.add(name)
        self.phase.functions.add(f"{name}:{_qualified(code)}")
        if self.phase is not self.phases["one update"] or code.co_name == "loss":
            self.phase.depth = max(self.phase.depth, self._depth(frame))

    def _is_function(self, code: CodeType) -> bool:
        """Return whether code is a function of the package, not a module, class or expression."""
        inside = code.co_filename.startswith(self.package)
        return inside and bool(code.co_flags & CO_OPTIMIZED) and code.co_name[0] != "<"

    def _depth(self, frame: FrameType | None) -> int:
        depth = 0
        while frame is not None:
            depth += self._is_function(frame.f_code)
            frame = frame.f_back
        return depth

    def during(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a function, with all that it calls in one phase."""
        self.phase = self.phases[name]
        sys.setprofile(self)
        try:
            return function()
        finally:
            sys.setprofile(None)
            self.phase = None


def _qualified(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)


def watch_training() -> dict[str, Phase]:
    """Train and predict under the profiler; return what each phase has called."""
    import numpy as np

    import noprop
    from noprop.cli import main

    watch = Watch(Path(noprop.__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        command = ["train", "digits-dt", "--workers=1", "--quiet", f"--run={run}", *SMALL]
        watch.during("start to first update", lambda: main(command))
        np.save(f"{folder}/images.npy", np.zeros((2, 8, 8), np.uint8))
        predict = ["predict", run, f"{folder}/images.npy"]
        watch.during("predict", lambda: main(predict))
    return watch.phases


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print names as well, as JSON")
    arguments = parser.parse_args()
    phases = watch_training()
    if arguments.json:
        found = {
            name: {"files": sorted(p.files), "functions": sorted(p.functions), "depth": p.depth}
            for name, p in phases.items()
        }
        print(json.dumps(found, indent=1))
        return
    print(f"{'':24}{'files':>7}{'depth':>7}{'functions':>11}")
    for name, phase in phases.items():
        print(f"{name:24}{len(phase.files):7}{phase.depth:7}{len(phase.functions):11}")


if __name__ == "__main__":
    main()
