"""The few calls of a script: train a recipe, load a run, predict.

model = noprop.train("digits-dt")
labels = model.predict(images).argmax(dim=1)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noprop.build import RunData
from noprop.config import RunConfig
from noprop.encoders import EncoderFactory
from noprop.model import Model, load, open_run
from noprop.run.assembly import check_trained
from noprop.run.engine import Engine
from noprop.run.local import LocalEngine
from noprop.run.resolve import resolve
from noprop.run.run import Run
from noprop.run.torchrun import TorchrunEngine
from noprop.run.units import UnitState, choose_groups
from noprop.training.events import Created, Emit, print_nothing

__all__ = ["assemble", "load", "resume", "train", "train_together", "train_units"]


def train(
    recipe: str | RunConfig = "digits-dt",
    *,
    folder: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Train a recipe from its beginning, and evaluate it on the test part.

    Args:
        recipe: a name of ``noprop.RECIPES``, or a configuration.
        folder: where the run goes; ``runs/<recipe>`` unless given, with a number if that is taken.
        overrides: fields to change, such as ``{"train.epochs": 2}``.
        data_dir: the first place to look for data.
        data: the data itself, in place of reading ``data.dataset``.
        encoder: makes an ``nn.Module`` x → features (B, F) that replaces the convolutions; called
            once a block, or with ``train.offload`` each time a block comes back into memory. A
            function of a module, so that worker processes can be sent it.
        engine: where units are trained, such as ``noprop.RayEngine()``; on processes of this
            machine unless given.
        emit: called with every event of training.

    Raises:
        NoPropError: If anything the caller gave is wrong.
    """
    config, engine = resolve(recipe, overrides, encoder), engine or LocalEngine()
    with engine.opened(config):
        run = Run.create(config, folder=folder, data=data, data_dir=data_dir, encoder=encoder)
        emit(Created(str(run.folder)))
        run.train(engine=engine, emit=emit)
        return run.assemble(emit)


def train_together(
    recipe: str | RunConfig | None = None,
    *,
    folder: Path | str,
    overrides: Mapping[str, Any] | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Train a run on all processes that torchrun started, each of which calls this.

    Args:
        recipe: a name of ``noprop.RECIPES``, or a configuration; that of the folder unless given.
        folder: the run, on a file system that all machines share. It is made if it is absent, or
            gone on with if it was made for the same training.
        overrides: fields to change.
        data_dir: the first place to look for data; each process reads them.
        data: the data itself, in place of reading ``data.dataset``; the same in each process.
        encoder: as :func:`train` takes it.
        emit: called with every event of training, on rank 0.

    Returns:
        The finished run, in each process.

    Raises:
        NoPropError: If anything the caller gave is wrong, or a process has ended that others need.
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
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> list[UnitState]:
    """Train some units of a run, on any machine, at any time, in any order; :func:`assemble` ends.

    The folder is made if it is absent, or joined if it was made for the same training. Units that
    are trained already are left as they are, one that was stopped goes on from its checkpoint.

    Args:
        folder: the run.
        units: names, and ranges such as ``block-3..block-7``.
        recipe: a name of ``noprop.RECIPES``, or a configuration; that of the folder unless given.
        overrides: fields to change. Where the folder is there already, only those that change no
            weight can differ from its own, such as ``train.workers``.
        data_dir: the first place to look for data.
        data: the data itself, in place of reading ``data.dataset``.
        encoder: as :func:`train` takes it.
        engine: as :func:`train` takes it.
        emit: called with every event of training.

    Returns:
        How far each unit of the run is, those included that other processes train.

    Raises:
        NoPropError: If anything the caller gave is wrong; if the folder is the run of another
            training; or if another process is training one of the units.
    """
    config, engine = (
        resolve(recipe or open_run(Path(folder)), overrides, encoder),
        engine or LocalEngine(),
    )
    choose_groups(config, units)  # before the data are loaded
    with engine.opened(config):
        run = Run.join(config, folder, data=data, data_dir=data_dir, encoder=encoder)
        run.train(units, engine=engine, emit=emit)
    return run.states()


def assemble(
    folder: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Put a run's trained units together, fit the path weights, evaluate, and write the model.

    Raises:
        RunError: If a unit is missing, unfinished, damaged, or trained with other settings or data
            than the others; nothing is written then.
    """
    path = Path(folder)
    check_trained(path, open_run(path))
    return Run.open(path, data=data, data_dir=data_dir, encoder=encoder).assemble(emit)


def resume(
    folder: Path | str,
    *,
    workers: int | str | None = None,
    data_dir: Path | str | None = None,
    data: RunData | None = None,
    encoder: EncoderFactory | None = None,
    engine: Engine | None = None,
    emit: Emit = print_nothing,
) -> Model:
    """Go on with a run, wherever it was stopped: the result is that of a run never stopped.

    ``workers`` replaces ``train.workers``; all else that :func:`train` was given is given again.
    """
    overrides = {} if workers is None else {"train.workers": workers}
    config, engine = resolve(open_run(Path(folder)), overrides, encoder), engine or LocalEngine()
    with engine.opened(config):
        run = Run.join(config, folder, data=data, data_dir=data_dir, encoder=encoder)
        run.train(engine=engine, emit=emit)
        return run.assemble(emit)
