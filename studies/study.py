"""What all studies share: options, a file of results, short runs, and Markdown tables.

A study is a file with its variants, a function that measures one of them, and a table. It appends a
line of JSON for each finished measurement, and measures nothing that already has a line.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import noprop
from noprop.bench.accuracy import training_seconds
from noprop.config import RunConfig
from noprop.data import Examples
from noprop.machine import describe_machine
from noprop.model import Model
from noprop.task import load_data

__all__ = [
    "MODES",
    "RESULTS",
    "Line",
    "Study",
    "markdown",
    "mean_and_error",
    "provenance",
    "score",
    "train",
]

RESULTS = Path(__file__).resolve().parents[1] / "results"
Line = dict[str, Any]
# The ways of predicting that tables show, and their names there.
MODES = {
    "single": "one chain",
    "samples": "5 chains",
    "path-fitted": "path average",
    "mean": "mean chain",
    "mean-path-fitted": "mean chain, path",
}


class Study:
    """The options of a study, and its file of results.

    Args:
        doc: Docstring of the study's file, shown by ``--help``.
        results: Default file name of the results.
        seeds: Default number of seeds, for a study that has several.
        variants: Names of all variants, for a study of which some can be chosen.
    """

    def __init__(
        self, doc: str | None, results: str, *, seeds: int = 0, variants: Iterable[str] = ()
    ):
        self.parser = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = self.parser.add_argument
        if seeds:
            add("--seeds", type=int, default=seeds, help="number of seeds, from 0 [%(default)s]")
        self.variants = list(dict.fromkeys(variants))
        if self.variants:
            add("--only", nargs="+", metavar="NAME", help="names of variants [all]")
        add("--data-dir", type=Path, help="look for data here first")
        add("--out", type=Path, default=RESULTS / results, help="file of results [%(default)s]")
        add("--table", action="store_true", help="show the results so far and measure nothing")

    def parse(self) -> argparse.Namespace:
        """Read the command line; afterwards ``only`` is a list of names."""
        self.options = options = self.parser.parse_args()
        if self.variants:
            options.only = options.only or self.variants
            if unknown := set(options.only) - set(self.variants):
                self.parser.error(f"--only: no such variant: {', '.join(sorted(unknown))}")
        self.provenance = provenance()  # now, since a new line makes the checkout dirty
        return options

    def lines(self, **key: Any) -> list[Line]:
        """Return the results that have these values."""
        out: Path = self.options.out
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line.items() >= key.items()]

    def append(self, line: Line) -> None:
        """Append a result, with the machine, the versions, the commit and the command."""
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(self.options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | self.provenance) + "\n")

    def measure(self, keys: Iterable[Line], function: Callable[[Line], Iterable[Line]]) -> None:
        """Measure what has no line yet, unless only the table was asked for.

        Args:
            keys: What to measure, as the fields by which its line is found again.
            function: Function of one of the keys. It returns one or more results, which are
                appended together, with the key's fields; a result's own fields win.
        """
        keys = [] if self.options.table else list(keys)
        for number, key in enumerate(keys, 1):
            if self.lines(**key):
                continue
            names = [str(v) for v in key.values() if not isinstance(v, dict)]
            print(f"{number} of {len(keys)}: {', '.join(names)}", file=sys.stderr, flush=True)
            for found in list(function(key)):  # so that a study that is stopped has all or none
                self.append(key | found)


def provenance() -> Line:
    """Return the machine, with versions and commit, and the command of this process."""
    command = ["python", f"studies/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {"machine": describe_machine(), "made_by": shlex.join(command)}


# -- short runs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A trained model, scored on the validation part.

    Attributes:
        model: The model.
        validation: The validation part.
        results: Its evaluation.
        seconds: Time of training, from the start of the workers to the end of the last one.
    """

    model: Model
    validation: Examples
    results: dict[str, Any]
    seconds: float


def train(config: RunConfig, data_dir: Path | None = None) -> Scored:
    """Train a run in a temporary folder, and score it on the validation part.

    The run gets the validation part in place of the test part, which is never scored.
    """
    data = load_data(config, data_dir)
    data = replace(data, test=data.validation)
    config = noprop.config.replace(config, {"evaluation.budget": "full"})
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        model = noprop.train(config, folder=folder, data=data)
        results = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return Scored(model, data.validation, results, training_seconds(folder))


# -- tables ----------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    """Return mean ± standard error as text; of one value, the value."""
    centre = round(mean(values), digits) + 0.0  # never -0.00
    error = f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{centre:{sign}.{digits}f}{error}"


def score(mode: dict[str, Any], name: str = "accuracy", digits: int = 2) -> str:
    """Return a score of an evaluation, with its standard error if the runs differ."""
    error = mode[f"{name}_se"] or 0.0
    shown = f"{error:.{digits}f}" if error >= 0.5 * 10**-digits else f"<{10**-digits:g}"
    return f"{mode[name]:.{digits}f}" + (f" ± {shown}" if error > 0 else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
