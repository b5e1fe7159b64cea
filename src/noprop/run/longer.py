"""Training a finished or stopped run for more epochs than were asked for at first.

With a constant learning rate the updates of 10 epochs are the first updates of 20, to the bit. So
the run resumes where it ended, and its fingerprint stays that of the first request
(``train.extended_from``). The learning rates of other schedules depend on the number of epochs, so
those runs cannot be trained longer.
"""

from collections.abc import Mapping
from dataclasses import replace as with_total
from pathlib import Path

from noprop.config import RunConfig, replace, to_toml
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DamagedError, RunError
from noprop.files import write_whole
from noprop.model import empty_model, open_run
from noprop.predictions import FILE as PREDICTIONS
from noprop.run.locks import BusyError, hold, hold_folder, is_free
from noprop.run.units import COUPLED, group_folder, group_lock, groups_of
from noprop.task import RunData
from noprop.training.commits import latest, write_commit
from noprop.training.plan import Plan

__all__ = ["before", "extend", "lengthen", "lengthen_commits"]

OF_THE_MODEL = ("model.json", "model.safetensors", "evaluation.json", PREDICTIONS, "report.html")


def extend(folder: Path, config: RunConfig, epochs: int) -> RunConfig:
    """Return the configuration of a run with more epochs; nothing is written.

    A later mistake, such as data that are gone, must not cost the model of the shorter training.
    :func:`lengthen` writes it, where nothing can be wrong any more.

    Args:
        folder: The run folder.
        config: Its configuration.
        epochs: The number of epochs in all.

    Raises:
        ConfigError: If that is fewer than now, or the learning rate is not constant.
        RunError: If another process is training the run.
    """
    c = config.train
    if epochs == c.epochs:
        return config
    if epochs < c.epochs:
        raise ConfigError(
            f"train.epochs: the run has {c.epochs} epochs; it can be trained longer, not shorter, "
            f"got {epochs}"
        )
    if c.schedule != "constant":
        raise ConfigError(
            f"train.epochs: the learning rate of train.schedule={c.schedule} depends on the number "
            f"of epochs, so the run cannot be trained longer than {c.epochs}; train a new run"
        )
    if c.patience:
        raise ConfigError(
            f"train.epochs: with train.patience={c.patience} the run ended with the weights of its "
            "best epoch, so it cannot be trained longer; start a new run from them with --init"
        )
    if busy := [g for g in groups_of(config) if not is_free(group_lock(folder, g))]:
        raise RunError(f"{folder}: another process is training {busy[0]}; wait for its end")
    return replace(
        config,
        {"train.epochs": epochs, "train.extended_from": c.extended_from or c.epochs},
    )


def before(config: RunConfig, existing: RunConfig) -> RunConfig:
    """Return a longer configuration with the epochs that the folder has until :func:`lengthen`."""
    first = existing.train.extended_from or existing.train.epochs
    if config.train.extended_from != first or config.train.epochs <= existing.train.epochs:
        return config
    return replace(config, _epochs_of(existing))


def lengthen(folder: Path, config: RunConfig) -> None:
    """Write the epochs of a configuration into its run folder, if they are more than there.

    The model and the results of the shorter training are deleted.
    """
    with hold_folder(folder):
        existing = open_run(folder)
        if before(config, existing) == config:
            return
        for name in OF_THE_MODEL:
            (folder / name).unlink(missing_ok=True)
        longer = replace(existing, _epochs_of(config))
        write_whole(folder / "config.toml", to_toml(longer).encode())


def _epochs_of(config: RunConfig) -> dict[str, int | None]:
    return {f"train.{name}": getattr(config.train, name) for name in ("epochs", "extended_from")}


def lengthen_commits(
    folder: Path,
    config: RunConfig,
    data: RunData,
    fingerprint: str,
    encoder: EncoderFactory | None = None,
) -> None:
    """Write the number of updates of a longer training into the commits of a shorter one.

    What a killed process left undone, the next one that opens the run does.
    """
    totals = _totals(config, data, encoder)
    for group in groups_of(config):
        place, lock = group_folder(folder, group), group_lock(folder, group)
        try:
            found = latest(place)
        except DamagedError:  # the process that trains the group reports it
            continue
        if found is None or found.commit.total == totals[group]:
            continue
        found.commit.check(place, fingerprint)
        try:
            with hold(lock, f"{group}: another process is training it"):
                write_commit(place, with_total(found.commit, total=totals[group]))
        except BusyError:
            continue


def _totals(config: RunConfig, data: RunData, encoder: EncoderFactory | None) -> Mapping[str, int]:
    """Return the number of updates of each group."""
    method = empty_model(config, data.task, encoder).method
    totals = {}
    for group in groups_of(config):
        plan = Plan(
            [u for u in method.units if group in (COUPLED, u.name)],
            order="stack" if config.method.stack else config.train.order,
            epochs=config.train.epochs,
            batches=max(1, len(data.train) // config.train.batch_size),
            shared=bool(method.shared_parameters),
        )
        totals[group] = plan.total
    return totals
