"""A run: a folder, its configuration and its data, and what can be done with them.

run = Run.create("digits-dt", overrides={"train.epochs": 2})    # or Run.open(folder)
run.train()                                                     # resuming is the same call
model = run.assemble()

Any number of processes can train one run at the same time, each the groups that no other holds.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from noprop.config import RunConfig
from noprop.data import stratified, stratified_indices
from noprop.encoder_file import check_encoder, note_encoder
from noprop.encoders import EncoderFactory
from noprop.errors import RunError
from noprop.evaluate import choose_weights, evaluate
from noprop.files import write_whole
from noprop.fingerprint import fingerprint
from noprop.model import Model, open_run
from noprop.predictions import FILE as PREDICTIONS
from noprop.predictions import Predictions, save_predictions
from noprop.run.assembly import assemble_model
from noprop.run.engine import Engine
from noprop.run.extent import Extent, choose_extent
from noprop.run.folder import (
    SLURM_PLACE,
    clear_places,
    create_run,
    join_run,
    make_free_folder,
    starting_embedding,
)
from noprop.run.initial import Start, initial_bytes
from noprop.run.local import LocalEngine
from noprop.run.locks import hold_assembly, is_free, remove_half_written
from noprop.run.longer import before, lengthen, lengthen_commits
from noprop.run.metrics import recorder, training_cost
from noprop.run.resolve import resolve, resolve_from, resolve_new, with_data
from noprop.run.units import (
    COUPLED,
    UnitState,
    choose_groups,
    condensed,
    group_lock,
    groups_of,
    state_of,
    survey,
)
from noprop.run.worker import Job
from noprop.task import RunData
from noprop.training.events import (
    Emit,
    Evaluated,
    Evaluating,
    Event,
    Found,
    Initialized,
    Started,
    Trained,
    print_nothing,
)

__all__ = ["Run"]

# Seconds to wait for a group that another process holds, when nothing else is left to train: a
# worker may outlive its parent for a moment.
PATIENCE = 2.0


class Run:
    """A run folder with its configuration and data.

    Args:
        folder: The run folder, which exists.
        config: Its configuration, without ``auto``. Fields that change no weight may differ from
            those in the folder.
        data: Its data.
        encoder: The user's own encoder.

    Attributes:
        groups: Names of the groups that can be trained separately.
        initialized: Which units start from the weights of another run, where this object made the
            run so.
        fingerprint: Digest of the settings and the data that the weights depend on.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        data: RunData,
        encoder: EncoderFactory | None = None,
    ):
        self.folder, self.config, self.data, self.encoder = folder, config, data, encoder
        self.groups = groups_of(config)
        self.initialized: Initialized | None = None
        self.fingerprint = fingerprint(config, data.train)

    @classmethod
    def create(
        cls,
        recipe: str | RunConfig = "digits-dt",
        *,
        folder: Path | str | None = None,
        overrides: Mapping[str, Any] | None = None,
        data: RunData | Sequence[Any] | None = None,
        data_dir: Path | str | None = None,
        encoder: EncoderFactory | None = None,
        init: Path | str | None = None,
    ) -> "Run":
        """Make the folder of a new run.

        Args:
            recipe: A name of ``noprop.RECIPES``, or a configuration.
            folder: The run folder; ``runs/<recipe>`` unless given, with a number if that exists.
            overrides: Fields to change, such as ``{"train.epochs": 2}``.
            data: The data, in place of reading ``data.dataset``: arrays ``(x, y)`` or
                ``(x, y, x_test, y_test)``, see :func:`noprop.data.given.dataset_of`.
            data_dir: The first place to look for data.
            encoder: The user's own encoder: a function that makes an ``nn.Module``
                x → features (B, F), which replaces the convolutions. It is called once a block, or
                with ``train.offload`` each time a block is loaded into memory. It must be a
                function of a module, so that it can be sent to worker processes.
            init: A finished run on data with the same classes. Units whose names and shapes are
                those of its units start from their weights, learned embeddings too; the others
                start from the seed, and all optimizers from nothing.

        Raises:
            NoPropError: If an argument is wrong, or the folder exists.
        """
        config, data = with_data(resolve(recipe, overrides, encoder), data, data_dir)
        start = Start.of(config, data, init)
        config, embedding = resolve_new(start.config, data, encoder, start.tensors)
        initialized = start.check(config, data, encoder)
        path = Path(folder) if folder else make_free_folder(config.recipe)
        create_run(path, config, embedding, start.content)
        note_encoder(path, encoder)
        run = cls(path, config, data, encoder)
        run.initialized = initialized
        return run

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        overrides: Mapping[str, Any] | None = None,
        data: RunData | Sequence[Any] | None = None,
        data_dir: Path | str | None = None,
        encoder: EncoderFactory | None = None,
    ) -> "Run":
        """Open the folder of a run; see :meth:`create` for the arguments.

        Fields that change weights cannot be changed by ``overrides``.

        Raises:
            NoPropError: If it is no run folder, or an argument is wrong.
        """
        path = Path(folder)
        return cls.join(
            open_run(path), path, overrides=overrides, data=data, data_dir=data_dir, encoder=encoder
        )

    @classmethod
    def join(
        cls,
        recipe: str | RunConfig,
        folder: Path | str,
        *,
        overrides: Mapping[str, Any] | None = None,
        data: RunData | Sequence[Any] | None = None,
        data_dir: Path | str | None = None,
        encoder: EncoderFactory | None = None,
        init: Path | str | None = None,
    ) -> "Run":
        """Open the folder of a run, or make it if it does not exist.

        See :meth:`create` for the arguments. Where the folder exists, fields that change weights
        must be those of the folder; those left at ``auto`` are taken from it.

        Raises:
            NoPropError: If the folder is that of another training, or an argument is wrong.
        """
        path = Path(folder)
        config, data = with_data(resolve(recipe, overrides, encoder), data, data_dir)
        exists, initialized = (path / "config.toml").exists(), None
        start = Start.of(config, data, init, exists=exists)
        if exists and config.method.has_own_code:
            check_encoder(path, encoder)
        if exists:
            existing = open_run(path)
            config = resolve_from(start.config, existing)
            join_run(path, before(config, existing), initial=start.content)
        else:
            config, embedding = resolve_new(start.config, data, encoder, start.tensors)
            initialized = start.check(config, data, encoder)
            join_run(path, config, embedding, start.content)
        note_encoder(path, encoder)
        run = cls(path, config, data, encoder)
        run.initialized = initialized
        if config.train.extended_from:
            run.states()  # of the same data, or the shorter training keeps its model
            lengthen(path, config)
            lengthen_commits(path, config, data, run.fingerprint, encoder)
        return run

    @cached_property
    def job(self) -> Job:
        """The run as it is sent to the processes that train its groups."""
        embedding = starting_embedding(self.folder, self.config, self.data)
        return Job(
            config=self.config,
            task=self.data.task,
            folder=self.folder,
            fingerprint=self.fingerprint,
            train=self.data.train,
            validation=self.data.validation,
            embedding=embedding.weight.detach(),
            initial=initial_bytes(self.folder, self.config),
            encoder=self.encoder,
        )

    @cached_property
    def extent(self) -> Extent:
        """What the evaluation after training computes, see :mod:`noprop.run.extent`."""
        return choose_extent(self.config, self.data, self.encoder)

    def states(self) -> list[UnitState]:
        """Return how far each group is, those included that other processes train.

        Raises:
            RunError: If one was trained with other settings or other data.
        """
        return survey(self.folder, self.config, self.fingerprint)

    def train(
        self,
        units: Iterable[str] | None = None,
        *,
        engine: Engine | None = None,
        emit: Emit = print_nothing,
    ) -> None:
        """Train the units that are not trained yet, each from its last checkpoint.

        Args:
            units: Names, and ranges such as ``block-3..block-7``; all units unless given.
            engine: Where they are trained, such as ``noprop.RayEngine()``; on processes of this
                machine unless given.
            emit: Called with every event, after it is written to ``metrics.jsonl``.

        Raises:
            RunError: If other processes still hold some of them when the others are trained.
            NoPropError: What stopped the training of a unit; its last checkpoint is kept.
        """
        groups = self.groups if units is None else choose_groups(self.config, units)
        engine, own = engine or LocalEngine(), set[str]()

        def listen(event: Event) -> None:
            if isinstance(event, Trained):
                own.update([COUPLED] if self.config.method.coupled else event.units)
            emit(event)

        with engine.opened(self.config):
            self.states()  # no unit is trained next to those of another training
            clear_places(self.folder)
            record = recorder(self.folder, emit) if engine.reports else print_nothing
            left = self._unfinished(groups, record)
            if engine.reports:
                record(self._start(engine, left))
            while left:
                engine.run(self.job, left, listen)
                if not engine.waits:
                    return
                left = self._unfinished([g for g in left if g not in own], record)
                if not self._wait_for_one(left):
                    raise RunError(
                        f"{self.folder}: another process is training {condensed(left)}, nothing "
                        "else is left to do here; when all units are trained: noprop assemble "
                        f"{self.folder}"
                    )

    def _start(self, engine: Engine, groups: Sequence[str]) -> Started:
        workers, off = engine.workers(self.config, groups), self.config.evaluation.budget == "off"
        return Started(
            groups,
            workers,
            engine="" if engine.name == "local" else engine.name,
            shards=self.config.train.shards,
            quick=self.config.method.quick_units or (),
            epochs=self.config.train.epochs,
            # One process evaluates, after as many as this have trained.
            evaluation=0.0 if off else self.extent.cost * max(1, workers),
        )

    def _unfinished(self, groups: Sequence[str], record: Emit) -> list[str]:
        """Return the groups that are not trained to their end, and report the others."""
        left = []
        for group in groups:
            if state_of(self.folder, group, self.fingerprint, files=True).finished:
                record(Found(group))
            else:
                left.append(group)
        return left

    def _wait_for_one(self, groups: Sequence[str]) -> bool:
        """Return whether there is no group, or one of them is free before the time is up."""
        deadline = time.monotonic() + PATIENCE
        while groups and not any(is_free(group_lock(self.folder, group)) for group in groups):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def model(self) -> Model:
        """Return the model of the trained units, with uniform path weights; nothing is written.

        Raises:
            RunError: If a unit is missing, unfinished or damaged.
        """
        return assemble_model(self.folder, self.config, self.data, self.encoder)

    def assemble(self, emit: Emit = print_nothing) -> Model:
        """Make the model of the trained units, fit its path weights, evaluate it, and write it.

        How much is evaluated depends on ``evaluation.budget``; with ``off`` the path weights stay
        uniform, and the run has no ``evaluation.json``.

        Raises:
            RunError: If a unit is missing, unfinished or damaged; nothing is written then.
        """
        with hold_assembly(self.folder):
            files = ("evaluation.json", PREDICTIONS, "model.safetensors", "model.json")
            remove_half_written(self.folder, *files)
            clear_places(self.folder)
            model, results = self.model(), {}
            # First, so that no answers are left next to the results of another evaluation.
            (self.folder / PREDICTIONS).unlink(missing_ok=True)
            if self.config.evaluation.budget == "off":
                (self.folder / "evaluation.json").unlink(missing_ok=True)
            else:
                results = self._evaluate(model, emit)
                text = json.dumps(results, indent=1) + "\n"
                write_whole(self.folder / "evaluation.json", text.encode())
            model.save(self.folder)
            shutil.rmtree(self.folder / SLURM_PLACE, ignore_errors=True)
        emit(Evaluated(results))
        return model

    def _evaluate(self, model: Model, emit: Emit) -> dict[str, Any]:
        """Fit the path weights of a model, and return its results on the test part.

        The answers of the default prediction are written in the run folder.
        """
        began, extent = time.monotonic(), self.extent
        test, whole = stratified(self.data.test, extent.examples), len(self.data.test)
        of = f" of {whole:,}" if len(test) < whole else ""
        emit(Evaluating(text=f"{len(test):,}{of} test examples"))
        weights = extent.weights_cost / extent.cost
        choose_weights(
            model,
            self.data.validation,
            at_most=extent.weights,
            emit=_between(emit, 0.0, weights),
        )
        chosen = stratified_indices(self.data.test.y.cpu(), extent.examples)

        def keep(found: Predictions) -> None:
            found = dataclasses.replace(found, index=chosen, files=test.files)
            save_predictions(self.folder, found, "test")

        results = evaluate(
            model,
            test,
            runs=extent.runs,
            modes=extent.modes,
            emit=_between(emit, weights, 1.0),
            keep=keep,
        )
        results["part"] = "test"
        if extent.protocol:
            results["protocol"] = extent.protocol
        if training := training_cost(self.folder):
            seconds = time.monotonic() - began
            results["training"] = {**training, "evaluation_seconds": round(seconds, 3)}
        return results


def _between(emit: Emit, first: float, last: float) -> Emit:
    """Return a function that emits a part of the evaluation as the share from first to last."""

    def part(event: Event) -> None:
        assert isinstance(event, Evaluating)
        emit(dataclasses.replace(event, share=first + (last - first) * event.share))

    return part
