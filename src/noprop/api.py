"""The few calls of a script, each a short form of what :class:`noprop.Run` does.

model = noprop.train("digits-dt")
labels = model.predict_labels(images)

An argument has the same meaning in all of them. :meth:`~noprop.run.run.Run.create` describes those
of a configuration and its data, :meth:`~noprop.run.run.Run.train` those of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from noprop.config import RunConfig
from noprop.encoders import EncoderFactory
from noprop.model import Model, load, open_run
from noprop.report.progress import Report
from noprop.report.trackers import check_trackers, tracked
from noprop.run.assembly import check_trained
from noprop.run.engine import Engine
from noprop.run.local import LocalEngine
from noprop.run.longer import extend
from noprop.run.resolve import resolve
from noprop.run.run import Run
from noprop.run.torchrun import TorchrunEngine
from noprop.run.units import UnitState, choose_groups
from noprop.task import RunData
from noprop.training.events import Created, Emit, Event, print_nothing

__all__ = ["assemble", "load", "resume", "train", "train_together", "train_units"]


def train(
    recipe: str | RunConfig = "digits-dt",
    *,
    epochs: int | None = None,
    lr: float | None = None,
    workers: int | str | None = None,
    evaluation: float | str | None = None,
    folder: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | Sequence[Any] | None = None,
    encoder: EncoderFactory | None = None,
    init: Path | str | None = None,
    engine: Engine | None = None,
    progress: bool = False,
    track: Sequence[str] = (),
    emit: Emit = print_nothing,
) -> Model:
    """Train a recipe from its beginning, and evaluate it on the test part.

    ``epochs``, ``lr``, ``workers`` and ``evaluation`` are short for ``train.epochs``, ``train.lr``,
    ``train.workers`` and ``evaluation.budget`` of ``overrides``. ``progress`` shows the progress of
    the command line, and ``track`` names trackers that receive the curves, such as
    ``["tensorboard"]``. See :meth:`noprop.Run.create` and :meth:`noprop.Run.train` for the other
    arguments.

    Raises:
        NoPropError: If an argument is wrong.

    Example:
        >>> import noprop
        >>> size = {"method.num_blocks": 2}
        >>> noprop.train("digits-dt", epochs=1, workers=1, evaluation="off", overrides=size)
        <noprop.Model digits-dt: dt on digits, 10 classes, in runs/digits-dt>
    """
    short = {
        "train.epochs": epochs,
        "train.lr": lr,
        "train.workers": workers,
        "evaluation.budget": evaluation,
    }
    changes = {**(overrides or {}), **{n: value for n, value in short.items() if value is not None}}
    check_trackers(track)
    config, engine = resolve(recipe, changes, encoder), engine or LocalEngine()
    with engine.opened(config), _shown(config, emit, progress=progress) as told:
        run = Run.create(
            config, folder=folder, data=data, data_dir=data_dir, encoder=encoder, init=init
        )
        told(Created(str(run.folder)))
        if run.initialized:
            told(run.initialized)
        return _finished(run, engine, track, told)


@contextmanager
def _shown(config: RunConfig, emit: Emit, *, progress: bool) -> Iterator[Emit]:
    """Yield ``emit``, or a function that shows the progress as well."""
    if not progress:
        yield emit
        return
    with closing(Report(config.train.batch_size)) as report:

        def both(event: Event) -> None:
            report(event)
            emit(event)

        yield both


def _finished(run: Run, engine: Engine, track: Sequence[str], emit: Emit) -> Model:
    """Train a run to its end, and return its model."""
    with tracked(track, run.folder, run.config, emit) as told:
        run.train(engine=engine, emit=told)
        model = run.assemble(told)
        told.draw(model, run.data.test)
        return model


def train_together(
    recipe: str | RunConfig | None = None,
    *,
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | Sequence[Any] | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Train a run on all processes that torchrun started, each of which calls this.

    All machines share the file system of the folder, and each process has or reads the same data.
    The recipe is that of the folder unless given; ``emit`` is called on rank 0. See
    :meth:`noprop.Run.join` and :meth:`noprop.Run.train` for the arguments.

    Returns:
        The model of the finished run, in each process.

    Raises:
        NoPropError: If an argument is wrong, or a process has ended that others need.
    """
    path, engine = Path(folder), TorchrunEngine()
    config = resolve(recipe or open_run(path), overrides, encoder)
    with engine.opened(config):
        run = engine.join(config, path, data, data_dir, encoder)
        run.train(engine=engine, emit=emit)
        model = run.assemble(emit) if engine.reports else None
    return model or load(path, encoder=encoder)


def train_units(
    folder: Path | str,
    units: Sequence[str],
    recipe: str | RunConfig | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | Sequence[Any] | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> list[UnitState]:
    """Train some units of a run, on any machine, at any time, in any order.

    :func:`assemble` makes the model when all are trained. Units that are trained already are not
    trained again. The recipe is that of the folder unless given. See :meth:`noprop.Run.join` and
    :meth:`noprop.Run.train` for the arguments.

    Returns:
        How far each unit of the run is, those included that other processes train.

    Raises:
        NoPropError: If an argument is wrong; if the folder is the run of another training; or if
            another process is training one of the units.

    Example:
        >>> import noprop
        >>> size = {"method.num_blocks": 2, "train.epochs": 1}
        >>> for unit in ("block-2", "readout", "block-1"):
        ...     states = noprop.train_units("runs/parts", [unit], "digits-dt", overrides=size)
        >>> [(state.name, state.finished) for state in states]
        [('block-1', True), ('block-2', True), ('readout', True)]
        >>> noprop.assemble("runs/parts", evaluation="off")
        <noprop.Model digits-dt: dt on digits, 10 classes, in runs/parts>
    """
    config = resolve(recipe or open_run(Path(folder)), overrides, encoder)
    engine = engine or LocalEngine()
    choose_groups(config, units)  # before the data are loaded
    with engine.opened(config):
        run = Run.join(config, folder, data=data, data_dir=data_dir, encoder=encoder)
        run.train(units, engine=engine, emit=emit)
    return run.states()


def assemble(
    folder: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: RunData | Sequence[Any] | None = None,
    encoder: EncoderFactory | None = None,
    evaluation: float | str | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Assemble a run's trained units, fit the path weights, evaluate, and write the model.

    See :meth:`noprop.Run.open` for the arguments; ``evaluation`` replaces ``evaluation.budget``,
    and ``emit`` is called with every event.

    Raises:
        RunError: If a unit is missing, unfinished, damaged, or trained with other settings or data
            than the others; nothing is written then.
    """
    path = Path(folder)
    check_trained(path, open_run(path))
    changes = {} if evaluation is None else {"evaluation.budget": evaluation}
    run = Run.open(path, overrides=changes, data=data, data_dir=data_dir, encoder=encoder)
    return run.assemble(emit)


def resume(
    folder: Path | str,
    *,
    epochs: int | None = None,
    workers: int | str | None = None,
    data_dir: Path | str | None = None,
    data: RunData | Sequence[Any] | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    progress: bool = False,
    track: Sequence[str] = (),
    emit: Emit = print_nothing,
) -> Model:
    """Resume a run, wherever it was stopped: the result is that of a run never stopped.

    With ``epochs`` above the run's own it is trained longer, with the same result as if they had
    been asked for at first; only a constant learning rate allows it. ``workers`` replaces
    ``train.workers``, ``progress`` shows the progress of the command line, and ``track`` names
    trackers, which continue what they began. See :meth:`noprop.Run.open` and
    :meth:`noprop.Run.train` for the other arguments.
    """
    overrides = {} if workers is None else {"train.workers": workers}
    check_trackers(track)
    config = open_run(Path(folder))
    if epochs is not None:
        config = extend(Path(folder), config, epochs)
    config, engine = resolve(config, overrides, encoder), engine or LocalEngine()
    with engine.opened(config), _shown(config, emit, progress=progress) as told:
        run = Run.join(config, folder, data=data, data_dir=data_dir, encoder=encoder)
        return _finished(run, engine, track, told)
