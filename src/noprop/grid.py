"""A grid of runs, recipes by seeds: each has a run folder, and one engine trains the units of all.

An engine of many machines has the units of all runs in one queue. A run is assembled and evaluated
as soon as its units are trained. Finished runs are not trained again, stopped runs are resumed, and
a run that fails does not stop the others.
"""

import dataclasses
import math
import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from noprop.config import RunConfig, replace
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, NoPropError
from noprop.evaluate import read_evaluation
from noprop.model import open_run
from noprop.recipes import find_recipe, named_after_data
from noprop.run.engine import Engine
from noprop.run.folder import join_run
from noprop.run.local import LocalEngine
from noprop.run.resolve import resolve_from, thread_count
from noprop.run.run import Run
from noprop.training.events import Emit, Event, Failed, Finished, Grid, print_nothing

__all__ = ["GridRun", "summary", "train_grid"]


@dataclasses.dataclass
class GridRun:
    """One run of a grid.

    Attributes:
        recipe: Name of the recipe.
        seed: Seed of the run.
        folder: Run folder.
        config: Configuration of the run.
        results: Evaluation on the test part; None until the run has finished.
        error: Error that stopped the run.
    """

    recipe: str
    seed: int
    folder: Path
    config: RunConfig
    results: dict[str, Any] | None = None
    error: NoPropError | None = None

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
    data_dir: Path | str | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> list[GridRun]:
    """Train and evaluate every recipe with every seed.

    Args:
        recipes: Names of ``noprop.RECIPES``, or configurations with different names.
        seeds: Seeds of each recipe.
        folder: Folder for the run folders, each called RECIPE-seed-N.
        overrides: Fields to change in all runs.
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
    runs = _planned(recipes, seeds, Path(folder), overrides)
    grid = _Grid(runs, data_dir, encoder, engine or LocalEngine(), emit)
    work = {r.name: float(len(r.config.method.unit_names) * r.config.train.epochs) for r in runs}
    emit(Grid(work))
    with grid.engine.opened(max((run.config for run in runs), key=thread_count)):
        grid.train()
    return runs


def _planned(
    recipes: Sequence[str | RunConfig],
    seeds: Iterable[int],
    folder: Path,
    overrides: Mapping[str, Any] | None,
) -> list[GridRun]:
    runs: dict[str, GridRun] = {}
    if "train.seed" in (overrides or {}):
        raise ConfigError("train.seed: a grid has its seeds; give those")
    numbers = list(seeds)
    for recipe in recipes:
        config = find_recipe(recipe) if isinstance(recipe, str) else recipe
        config = named_after_data(replace(config, overrides or {}))
        for seed in numbers:
            name = f"{config.recipe}-seed-{seed}"
            if name in runs:
                raise ConfigError(f"grid: {name} is named twice; recipes and seeds must differ")
            seeded = replace(config, {"train.seed": seed})
            runs[name] = GridRun(config.recipe, seed, folder / name, seeded)
    if not runs:
        raise ConfigError("grid: wanted a recipe and a seed at least")
    return list(runs.values())


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
    """Return the mean accuracy of each recipe in %, with its standard error over finished seeds.

    Returns:
        By recipe: ``seeds``, the number of finished seeds; ``accuracy`` of the method's default
        prediction and ``single`` of one chain, with ``accuracy_se`` and ``single_se``. A number
        that does not exist is None: a standard error needs two seeds.
    """
    table = {}
    for recipe in dict.fromkeys(run.recipe for run in runs):
        done = [run.results for run in runs if run.recipe == recipe and run.results]
        row: dict[str, Any] = {"seeds": len(done)}
        for name, modes in {
            "accuracy": [r["modes"].get(r["default"]) for r in done],
            "single": [r["modes"].get("single") for r in done],
        }.items():
            values = [mode["accuracy"] for mode in modes if mode]
            row[name] = statistics.fmean(values) if values else None
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[f"{name}_se"] = None if spread is None else spread / math.sqrt(len(values))
        table[recipe] = row
    return table
