"""``noprop train``: train a recipe in a run folder, and evaluate it."""

import argparse
import json
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from noprop.commands.engine import add_engine, engine_of, engine_options
from noprop.commands.options import (
    DEFAULT_RECIPE,
    Parser,
    add_data_dir,
    add_encoder,
    add_fields,
    add_quiet,
    add_set,
    complete_with,
    configuration,
    encoder_or_field,
    overrides,
    path,
    whole_number,
)
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError
from noprop.recipes import RECIPES
from noprop.run_settings import TrainConfig
from noprop.terminal import printable, show, show_json, tell

__all__ = ["HELP", "add_options", "run"]

# With fewer updates than both, a run has hardly begun to learn.
FEW_UPDATES, FEW_UPDATES_IN_ALL = 8, 100
# Methods that hardly learn with the optimizer, batch size and normalization of another.
OWN_TRAINING = ("ff", "dtp", "lg-fg-a")
# What may change when a run is resumed; more epochs train it longer.
CHANGEABLE = ("train.workers", "train.epochs", "evaluation.budget")
HELP = "Train a recipe in a run folder, and evaluate it."
EXAMPLES = """examples:
  noprop train                               ten blocks on scikit-learn's digits
  noprop train mnist-dt --epochs 2           a recipe, with any field changed
  noprop train --dataset wine.csv            a table, .npz file or folder of class folders
  noprop train --resume runs/mnist-dt        after an interruption"""


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.epilog = EXAMPLES
    # Two names, because torchrun reads --run as its own option, even after the program's name.
    parser.add_argument(
        "--run",
        "--run-dir",
        type=path,
        metavar="DIR",
        help="folder of the run, which is made [runs/RECIPE]",
    )
    how = "resume a run; with --epochs N, train it longer"
    parser.add_argument("--resume", type=path, metavar="RUN", help=how)
    start = "start a new run from the weights of a finished one, where names and shapes fit"
    parser.add_argument("--init", type=path, metavar="RUN", help=start)
    parser.add_argument(
        "--units",
        metavar="LIST",
        help="train only these, in the folder of --run or --resume, such as block-1,block-2 or "
        "block-3..block-7,readout; noprop assemble then makes the model of all units",
    )
    add_quiet(parser)
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="NAME",
        help="send the curves to tensorboard, wandb, trackio or mlflow; may be repeated",
    )
    add_engine(parser)
    add_recipe(parser)
    add_data_dir(parser)
    add_encoder(parser, fields=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    encoder = encoder_or_field(arguments)
    config = _configuration(arguments)
    _start_server(arguments, config)
    from noprop.report.progress import Report
    from noprop.report.trackers import check_trackers, tracked
    from noprop.run.local import LocalEngine
    from noprop.run.rendezvous import started_by_torchrun
    from noprop.run.resolve import resolve
    from noprop.run.run import Run
    from noprop.run.torchrun import TorchrunEngine
    from noprop.run.units import choose_groups
    from noprop.training.signals import Terminated, answered_between_updates

    check_trackers(arguments.track)
    folder = arguments.resume or arguments.run
    config = resolve(config, encoder=encoder)
    together = started_by_torchrun()
    if together:
        _check_torchrun(arguments)
    first = not together or os.environ["RANK"] == "0"
    engine = engine_of(arguments) or (TorchrunEngine() if together else LocalEngine())
    report = Report(config.train.batch_size, quiet=arguments.quiet or not first)
    units = arguments.units.split(",") if arguments.units is not None else None
    known = "num_layers" not in config.method.auto_fields  # else the data tell the units
    if units is not None and known:
        choose_groups(config, units)  # before the data are loaded
    given = {"data_dir": arguments.data_dir, "encoder": encoder, "init": arguments.init}
    try:
        with answered_between_updates(), closing(report), engine.opened(config):
            if isinstance(engine, TorchrunEngine):
                opened = engine.join(config, folder, **given)
            elif arguments.resume or units is not None or arguments.no_wait:
                opened = Run.join(config, folder, **given)
            else:
                opened = Run.create(config, folder=folder, **given)
            folder = opened.folder
            if arguments.no_wait:
                units = units or opened.config.method.unit_names
            if opened.initialized:
                report(opened.initialized)
            if first and not arguments.quiet:
                _hint_at_batches(opened.config.train, len(opened.data.train))
                _hint_at_recipe(arguments, opened.config)
            trackers = arguments.track if engine.reports else ()
            with tracked(trackers, folder, opened.config, report) as emit:
                opened.train(units, engine=engine, emit=emit)
                if units is None and engine.reports:
                    emit.draw(opened.assemble(emit), opened.data.test)
    except KeyboardInterrupt as stop:
        made = folder is not None and (folder / "config.toml").is_file()
        part = f" --units {arguments.units}" if arguments.units else ""
        part += engine_options(arguments)
        part += "".join(f" --track {name}" for name in arguments.track)
        how = f"; resume with: noprop train --resume {folder}{part}" if made else ""
        if first:
            tell(f"stopped{how}")
        if jobs := getattr(engine, "submitted", None):
            tell(f"the tasks of Slurm continue; end them with: scancel {' '.join(jobs)}")
        return 143 if isinstance(stop, Terminated) else 130
    if not first:
        return 0
    if arguments.no_wait:
        tell(f"submitted to Slurm as job {' '.join(getattr(engine, 'submitted', ()))}")
    if units is not None:
        return _show_units(arguments, folder, opened.states())
    return show_result(arguments, folder)


def _hint_at_batches(train: TrainConfig, examples: int) -> None:
    """Say so where an epoch is hardly any training, as with a few images of one's own."""
    updates = max(1, examples // train.batch_size)
    if updates < FEW_UPDATES and updates * train.epochs < FEW_UPDATES_IN_ALL:
        tell(
            f"an epoch of {examples} training examples has {updates} update{'s' * (updates > 1)}, "
            f"{updates * train.epochs} in all, which is little; a smaller --batch-size makes more"
        )


def _hint_at_recipe(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Name the recipe of a method whose training differs from that of the recipe that is changed.

    ``--method ff`` alone keeps the optimizer, batch size and normalization of that recipe.
    """
    given = overrides(arguments)
    method = given.get("method.name")
    if arguments.resume or method not in OWN_TRAINING or "train.optimizer" in given:
        return
    recipe = f"{config.data.dataset}-{method}"
    if recipe not in RECIPES:
        recipe = f"digits-{method} --dataset {printable(config.data.dataset)}"
    tell(
        f"--method {method} keeps the optimizer, batch size and normalization of another method; "
        f"noprop train {recipe} has its own"
    )


def _start_server(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Start the process that workers are forked from, if there will probably be several.

    It imports torch, as this process does afterwards: on two cores both take the time of one.
    """
    from noprop.run.processes import start_server

    several = config.train.workers != 1 and len(config.method.unit_names) > 1
    here = arguments.engine == "local" and "RANK" not in os.environ
    if here and several and config.train.device in ("auto", "cpu") and (os.cpu_count() or 1) > 1:
        start_server()


def _configuration(arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of the run to resume, or that of a recipe and options.

    Raises:
        ConfigError: If options conflict.
    """
    if arguments.resume:
        from noprop.model import open_run

        config = open_run(arguments.resume)
        if arguments.init:
            raise ConfigError("--init: is for a new run; --resume continues the run's own weights")
        if arguments.recipe or arguments.config or arguments.set or arguments.run:
            raise ConfigError("--resume keeps the run's configuration: give no recipe or fields")
        changed = [n for n in vars(arguments) if "." in n and getattr(arguments, n) is not None]
        if others := [n for n in changed if n not in CHANGEABLE]:
            raise ConfigError(
                f"--resume: only {', '.join(CHANGEABLE)} can change, got {others[0]}; to train on "
                f"with other settings, start a new run with --init {arguments.resume}"
            )
        changes = overrides(arguments)
        if epochs := changes.pop("train.epochs", None):
            from noprop.run.longer import extend

            config = extend(arguments.resume, config, whole_number(str(epochs)))
        return replace(config, changes)
    config = configuration(arguments)
    for option in ("units", "no_wait"):
        if getattr(arguments, option) and not arguments.run:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name}: name the run folder with --run DIR or --resume RUN")
    return config


def add_recipe(parser: Parser, more: str = "") -> None:
    """Add a recipe or a file, and options for fields; ``more`` is what a recipe may be as well."""
    names = "a recipe, such as mnist-dt or cifar10-fast; noprop recipes lists them"
    names = f"{names}; {more}" if more else names
    recipe = parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help=f"{names} [{DEFAULT_RECIPE}, whose values are the defaults below]",
    )
    complete_with(recipe, list(RECIPES))
    parser.add_argument(
        "--config", type=path, metavar="FILE", help="TOML file of fields, in place of a recipe"
    )
    add_set(parser, "set any field by its full name, such as train.lr=1e-3; may be repeated")
    add_fields(parser)


def _check_torchrun(arguments: argparse.Namespace) -> None:
    """Check the options of a process of torchrun, and make it end when its agent ends.

    Raises:
        ConfigError: If an option conflicts with torchrun, or the run folder is not given.
    """
    from noprop.run.processes import end_with_parent

    if not (arguments.run or arguments.resume):
        raise ConfigError("torchrun: name the folder of the run with --run-dir DIR or --resume RUN")
    if arguments.units is not None:
        raise ConfigError("--units: torchrun trains all units; omit it")
    if arguments.engine != "local":
        raise ConfigError("--engine: torchrun is an engine itself; omit it, or start without it")
    if getattr(arguments, "train.workers") is not None:
        raise ConfigError("--workers: torchrun sets the number of processes; omit it")
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if os.environ["RANK"] == "0" and not arguments.quiet:
            tell("torchrun: a restart may hang; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")


def show_result(arguments: argparse.Namespace, folder: Path) -> int:
    """Print the stored evaluation of a run."""
    from noprop.report.tables import evaluation_text

    file, place = folder / "evaluation.json", printable(folder)
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if arguments.json:
        show_json({"run": str(folder), **(results or {})})
        return 0
    if results is None:
        show(f"the run is in {place}, not evaluated; to evaluate it, and fit path weights if any:")
        show(f"noprop assemble {place} --evaluation full")
        return 0
    show(evaluation_text(results))
    if "protocol" in results:
        show(f"\nsized to the training (--evaluation); the full protocol: noprop evaluate {place}")
    show(f"\nthe run is in {place}; see also: noprop plot {place}")
    return 0


def _show_units(arguments: argparse.Namespace, folder: Path, states: list[Any]) -> int:
    from noprop.run.units import unfinished_text

    if arguments.json:
        units = {s.name: {"position": s.position, "total": s.total} for s in states}
        show_json({"run": str(folder), "units": units})
        return 0
    missing = unfinished_text(states)
    show(f"still missing: {missing}" if missing else "every unit is trained")
    how = "when all are trained" if missing else "finish with"
    show(f"{how}: noprop assemble {printable(folder)}")
    return 0
