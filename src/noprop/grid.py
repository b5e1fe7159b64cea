"""A grid of runs: recipes by values of fields by seeds, each in its run folder.

One engine trains the units of all.

An engine of many machines has the units of all runs in one queue. A run is assembled and evaluated
as soon as its units are trained. Finished runs are not trained again, stopped runs are resumed, and
a run that fails does not stop the others.
"""

import dataclasses
import hashlib
import itertools
import math
import re
import statistics
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from noprop.config import METHODS, RunConfig, methods_with, replace
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, NoPropError
from noprop.evaluate import read_evaluation
from noprop.files import read_object
from noprop.model import open_run
from noprop.paired import Answers, paired_difference
from noprop.predictions import read_predictions
from noprop.recipes import find_recipe, named_after_data
from noprop.report.tables import is_stack
from noprop.run.engine import Engine
from noprop.run.folder import join_run
from noprop.run.local import LocalEngine
from noprop.run.resolve import resolve_from, thread_count
from noprop.run.run import Run
from noprop.training.events import Emit, Event, Failed, Finished, Grid, print_nothing

__all__ = ["GridRun", "summary", "train_grid"]

LONGEST_NAME = 80


@dataclasses.dataclass
class GridRun:
    """One run of a grid.

    Attributes:
        recipe: Name of the recipe, and of the values of the fields that differ between its rows.
        seed: Seed of the run.
        folder: Run folder.
        config: Configuration of the run.
        results: Evaluation on the test part; None until the run has finished.
        error: Error that stopped the run.
        skipped: Fields that were not applied, because the method of the run does not have them.
    """

    recipe: str
    seed: int
    folder: Path
    config: RunConfig
    results: dict[str, Any] | None = None
    error: NoPropError | None = None
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name


def train_grid(
    recipes: Sequence[str | RunConfig],
    seeds: Iterable[int] = range(5),
    *,
    folder: Path | str = "runs",
    overrides: Mapping[str, Any] | None = None,
    lists: Mapping[str, Sequence[Any]] | None = None,
    data_dir: Path | str | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> list[GridRun]:
    """Train and evaluate every recipe with every combination of values and every seed.

    Args:
        recipes: Names of ``noprop.RECIPES``, or configurations with different names.
        seeds: Seeds of each recipe.
        folder: Folder for the run folders, each called RECIPE-seed-N, or
            RECIPE-FIELD-VALUE-seed-N with the values of ``lists``.
        overrides: Fields to change in all runs. A field of some methods is not applied to runs of
            the others.
        lists: Values to try by field, such as ``{"train.lr": [1e-3, 3e-4]}``; all combinations.
        data_dir: First folder to search for data.
        encoder: As in :func:`noprop.train`.
        engine: As in :func:`noprop.train`.
        emit: Function that is called with every event; ``run`` is the name of the run folder.

    Returns:
        The runs, recipe by recipe, each with its results or its error.

    Raises:
        ConfigError: If a recipe, seed or field is wrong, or the engine is not available; then
            nothing is trained.
    """
    runs = _planned(recipes, seeds, Path(folder), overrides or {}, lists or {})
    grid = _Grid(runs, data_dir, encoder, engine or LocalEngine(), emit)
    work = {r.name: float(len(r.config.method.unit_names) * r.config.train.epochs) for r in runs}
    emit(Grid(work, notes=_notes(runs)))
    with grid.engine.opened(max((run.config for run in runs), key=thread_count)):
        grid.train()
    return runs


def _planned(
    recipes: Sequence[str | RunConfig],
    seeds: Iterable[int],
    folder: Path,
    overrides: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any]],
) -> list[GridRun]:
    runs: dict[str, GridRun] = {}
    if "train.seed" in {**overrides, **lists}:
        raise ConfigError("train.seed: a grid has its seeds; give those")
    if empty := [name for name, values in lists.items() if not values]:
        raise ConfigError(f"{empty[0]}: wanted at least one value")
    numbers = list(seeds)
    for recipe in recipes:
        config = find_recipe(recipe) if isinstance(recipe, str) else recipe
        for row, skipped in _rows(config, overrides, lists):
            for seed in numbers:
                name = f"{row.recipe}-seed-{seed}"
                if name in runs:
                    raise ConfigError(f"grid: {name} is named twice; recipes and seeds must differ")
                seeded = replace(row, {"train.seed": seed})
                runs[name] = GridRun(row.recipe, seed, folder / name, seeded, skipped=skipped)
    if not runs:
        raise ConfigError("grid: wanted a recipe and a seed at least")
    _check_applied(list(runs.values()), {**overrides, **lists})
    return list(runs.values())


def _rows(
    config: RunConfig, overrides: Mapping[str, Any], lists: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[RunConfig, tuple[str, ...]]]:
    """Yield the configurations of a recipe, each with the fields that its method does not have.

    Combinations that differ only in such fields are one row.
    """
    seen = set[str]()
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        changes = {**overrides, **chosen}
        method = changes.get("method.name", config.method.name)
        owners = {name: methods_with(name.removeprefix("method.")) for name in changes}
        skipped = [
            name
            for name in changes
            if name.startswith("method.")
            and method in METHODS
            and owners[name]
            and method not in owners[name]
        ]
        applied = {name: value for name, value in changes.items() if name not in skipped}
        row = named_after_data(replace(config, applied))
        name = _named(row.recipe, {n: v for n, v in chosen.items() if n in applied})
        if name not in seen:
            seen.add(name)
            yield replace(row, {"recipe": name}), tuple(skipped)


def _named(recipe: str, chosen: Mapping[str, Any]) -> str:
    """Return the name of a row: a recipe, and the values that make it differ from others."""
    parts = [recipe]
    for name, value in chosen.items():
        field = "method" if name == "method.name" else name.rpartition(".")[2]
        text = ("on" if value else "off") if isinstance(value, bool) else str(value).lower()
        shown = re.sub(r"[^\w.-]+", "-", text)
        parts.append(f"{field}-{shown}")
    name = "-".join(parts)
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


def _check_applied(runs: Sequence[GridRun], changes: Mapping[str, Any]) -> None:
    """Check that every field is one of some run's method.

    Raises:
        ConfigError: If not.
    """
    for name in changes:
        if all(name in run.skipped for run in runs):
            methods = dict.fromkeys(run.config.method.name for run in runs)
            owners = methods_with(name.removeprefix("method."))
            raise ConfigError(
                f"{name}: is not a field of {', '.join(methods)}; it belongs to {', '.join(owners)}"
            )


def _notes(runs: Sequence[GridRun]) -> list[str]:
    """Return a line for each row to which a field was not applied."""
    skipped = {run.recipe: (run.config.method.name, run.skipped) for run in runs if run.skipped}
    return [
        f"{recipe}: {', '.join(names)} not applied; {method} has no such field"
        for recipe, (method, names) in skipped.items()
    ]


class _Grid:
    """The runs, with the engine, the data folder and the encoder that they share."""

    def __init__(
        self,
        runs: Sequence[GridRun],
        data_dir: Path | str | None,
        encoder: EncoderFactory | None,
        engine: Engine,
        emit: Emit,
    ):
        self.runs, self.data_dir, self.encoder = runs, data_dir, encoder
        self.engine, self.lock = engine, threading.Lock()
        self.report = emit
        self.ended = SimpleQueue[tuple[GridRun, Run, BaseException | None]]()

    def train(self) -> None:
        """Train and evaluate all runs: at the same time if the engine can, else one by one.

        A thread for each run waits for its units; this thread reads data and evaluates models.
        """
        threads: list[threading.Thread] = []
        try:
            for run in self.runs:
                if (opened := self._opened(run)) is None:
                    self._report_end(run)
                    continue
                thread = threading.Thread(target=self._train, args=(run, opened), daemon=True)
                if self.engine.at_once:
                    thread.start()
                    threads.append(thread)
                else:
                    thread.run()  # in this thread
                    self._finish(*self.ended.get())
            for _ in threads:
                self._finish(*self.ended.get())
        except BaseException:
            if threads:
                self.engine.stop()
            for thread in threads:
                thread.join()
            raise

    def _opened(self, run: GridRun) -> Run | None:
        """Create or join a run's folder; return None if that failed, or the run has finished."""
        try:
            if (run.folder / "model.json").is_file() and (run.folder / "evaluation.json").is_file():
                join_run(run.folder, resolve_from(run.config, open_run(run.folder)))
                run.results = read_evaluation(run.folder)
                return None
            return Run.join(run.config, run.folder, data_dir=self.data_dir, encoder=self.encoder)
        except NoPropError as error:
            run.error = error
            return None

    def _train(self, run: GridRun, opened: Run) -> None:
        try:
            opened.train(engine=self.engine, emit=self._emit_of(run))
        except BaseException as error:
            self.ended.put((run, opened, error))
        else:
            self.ended.put((run, opened, None))

    def _finish(self, run: GridRun, opened: Run, error: BaseException | None) -> None:
        """Evaluate a run whose units are trained."""
        try:
            if error is not None:
                raise error
            opened.assemble(self._emit_of(run))
            if run.config.evaluation.budget != "off":
                run.results = read_evaluation(run.folder)
        except NoPropError as stopped:
            run.error = stopped
        self._report_end(run)

    def _emit_of(self, run: GridRun) -> Emit:
        def emit(event: Event) -> None:
            with self.lock:
                self.report(dataclasses.replace(event, run=run.name))

        return emit

    def _report_end(self, run: GridRun) -> None:
        emit = self._emit_of(run)
        if run.error is not None:
            emit(Failed(str(run.error)))
        elif run.results is not None:
            emit(Finished(run.results))


def summary(runs: Sequence[GridRun]) -> dict[str, dict[str, Any]]:
    """Return the results of each row, as means over its finished seeds.

    Returns:
        By row: ``seeds``, the number of finished seeds; ``accuracy`` in % and ``log_loss`` in nats
        of the method's default prediction and ``single``, the accuracy of one chain, each with its
        standard error over the seeds (``accuracy_se``, …); ``seconds`` of training, summed over
        the workers; ``parameters``; ``peak_memory_mb`` of the largest process; ``difference``, the
        paired difference of the accuracy to the first row, see :mod:`noprop.paired`. A number that
        does not exist is None: a standard error needs two seeds.
    """
    table, answers = {}, dict[str, dict[int, Answers]]()
    for recipe in dict.fromkeys(run.recipe for run in runs):
        finished = [run for run in runs if run.recipe == recipe and run.results]
        answers[recipe] = {run.seed: found for run in finished if (found := _answers(run))}
        done = [run.results for run in finished if run.results]
        best = [r["modes"][r["default"]] for r in done]
        costs = [r["training"] for r in done if r.get("training")]
        row: dict[str, Any] = {"seeds": len(done)}
        row |= _mean("accuracy", [mode["accuracy"] for mode in best])
        chains = [r["modes"]["single"] for r in done if "single" in r["modes"] and not is_stack(r)]
        row |= _mean("single", [mode["accuracy"] for mode in chains])
        row |= _mean("log_loss", [mode["log_loss"] for mode in best if "log_loss" in mode])
        row["seconds"] = _mean("seconds", [c["seconds"] for c in costs])["seconds"]
        row["parameters"] = max((r["parameters"] for r in done if "parameters" in r), default=None)
        row["peak_memory_mb"] = max((c["peak_memory_mb"] for c in costs), default=None)
        found = paired_difference(next(iter(answers.values())), answers[recipe])
        is_other = len(answers) > 1 and found is not None
        row["difference"] = dataclasses.asdict(found) if is_other and found else None
        table[recipe] = row
    return table


def _answers(run: GridRun) -> Answers | None:
    """Return which test examples the first inference run of a finished run answered right."""
    try:
        names = read_object(run.folder / "model.json").get("class_names")
        found = read_predictions(run.folder, len(names) if isinstance(names, list) else 0)
    except NoPropError:  # the run has its results; only the pairs are lost
        return None
    if found is None or found[1] != "test":
        return None
    index, order = found[0].index.sort()
    y, right = found[0].y[order], found[0].correct[order].double()
    return Answers(index.numpy(), y.numpy(), right.numpy())


def _mean(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of a number and its standard error; None where there is none."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {
        name: statistics.fmean(values) if values else None,
        f"{name}_se": None if spread is None else spread / math.sqrt(len(values)),
    }
