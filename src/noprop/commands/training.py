"""``noprop train``, ``grid`` and ``assemble``."""

import argparse
import json
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from noprop import api
from noprop.commands.options import encoder_or_field, named_encoder, parse_seeds
from noprop.errors import ConfigError
from noprop.grid import GridRun, summary, train_grid
from noprop.model import open_run
from noprop.report.progress import Report
from noprop.report.tables import evaluation_text, grid_text
from noprop.run.engines import Engine
from noprop.run.member import started_by_torchrun
from noprop.run.processes import end_with_parent
from noprop.run.units import UnitState, unfinished_text
from noprop.terminal import printable, show, show_json, tell
from noprop.training.events import Created, Event
from noprop.training.signals import Terminated, answered_between_updates

# Of --engine ray: argument of RayEngine, and option.
ENGINE_OPTIONS = {
    "address": "--address",
    "storage": "--storage",
    "cpus": "--cpus-per-unit",
    "gpus": "--gpus-per-unit",
    "retries": "--retries",
}

__all__ = ["assemble", "engine_options", "grid", "train"]


def train(arguments: argparse.Namespace) -> int:
    """``noprop train``."""
    encoder = encoder_or_field(arguments)
    if arguments.resume:
        config, folder = open_run(arguments.resume), arguments.resume
        changed = [n for n in vars(arguments) if "." in n and getattr(arguments, n) is not None]
        if arguments.recipe or arguments.config or arguments.set or arguments.run:
            raise ConfigError("--resume goes on with a run as configured: give no recipe or fields")
        if others := [n for n in changed if n != "train.workers"]:
            raise ConfigError(f"--resume: only train.workers can change, got {others[0]}")
    else:
        config = arguments.configuration()
        if arguments.units and not arguments.run:
            raise ConfigError("--units: name the folder of the run with --run DIR or --resume RUN")
        folder = arguments.run  # unless given, made when training begins
    together = started_by_torchrun()
    if together:
        _check_torchrun(arguments)
    first = not together or os.environ["RANK"] == "0"
    engine = _engine(arguments)
    report = Report(config.train.batch_size, quiet=arguments.quiet or not first)
    states: list[UnitState] = []

    def listen(event: Event) -> None:
        nonlocal folder
        if isinstance(event, Created):
            folder = Path(event.folder)
        report(event)

    common: dict[str, Any] = {"data_dir": arguments.data_dir, "encoder": encoder, "emit": listen}
    if not together:
        common["engine"] = engine
    try:
        if arguments.resume:
            text = getattr(arguments, "train.workers")
            workers = None if text is None else int(arguments.configuration().train.workers)
        else:
            workers = None
        with answered_between_updates(), closing(report):
            if together:
                api.train_together(None if arguments.resume else config, folder=folder, **common)
            elif arguments.units is not None:
                states = api.train_units(
                    folder,
                    arguments.units.split(","),
                    None if arguments.resume else config,
                    overrides=None if workers is None else {"train.workers": workers},
                    **common,
                )
            elif arguments.resume:
                api.resume(folder, workers=workers, **common)
            else:
                api.train(config, folder=folder, **common)
    except KeyboardInterrupt as stop:
        made = folder is not None and (folder / "config.toml").is_file()
        part = f" --units {arguments.units}" if arguments.units else ""
        part += engine_options(arguments)
        how = f"; go on with: noprop train --resume {folder}{part}" if made else ""
        if first:
            tell(f"stopped{how}")
        return 143 if isinstance(stop, Terminated) else 130
    if not first:
        return 0
    return _show_units(arguments, folder, states) if states else _show_result(arguments, folder)


def _check_torchrun(arguments: argparse.Namespace) -> None:
    """See that a process of torchrun can train as asked, and have it end with its agent.

    Raises:
        ConfigError: If it was asked for what torchrun decides, or that it cannot find again.
    """
    if not (arguments.run or arguments.resume):
        raise ConfigError("torchrun: name the folder of the run with --run-dir DIR or --resume RUN")
    if arguments.units is not None:
        raise ConfigError("--units: under torchrun all units are trained; leave it out")
    if arguments.engine != "local":
        raise ConfigError("--engine: torchrun is one itself; leave it out, or start without")
    if getattr(arguments, "train.workers") is not None:
        raise ConfigError("--workers: torchrun says how many processes there are; leave it out")
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if os.environ["RANK"] == "0" and not arguments.quiet:
            tell("torchrun: a restart may hang; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it")


def grid(arguments: argparse.Namespace) -> int:
    """``noprop grid``: status 1 if a run failed."""
    encoder, engine = encoder_or_field(arguments), _engine(arguments)
    changes = arguments.overrides()
    report = Report(quiet=arguments.quiet)
    try:
        with answered_between_updates(), closing(report):
            runs = train_grid(
                arguments.recipes,
                parse_seeds(arguments.seeds),
                folder=arguments.out,
                overrides=changes,
                data_dir=arguments.data_dir,
                encoder=encoder,
                engine=engine,
                emit=report,
            )
    except KeyboardInterrupt as stop:
        tell("stopped; resume with the same command")
        return 143 if isinstance(stop, Terminated) else 130
    failed = [run for run in runs if run.error]
    table = summary(runs)
    if arguments.json:
        show_json({"recipes": table, "runs": [_grid_run(run) for run in runs]})
    else:
        show(grid_text(table))
        show(f"\nthe runs are in {printable(arguments.out)}")
    for run in failed:
        tell(f"noprop: error: {run.name}: {run.error}")
    return 1 if failed else 0


def _grid_run(run: GridRun) -> dict[str, Any]:
    about = {"run": str(run.folder), "recipe": run.recipe, "seed": run.seed}
    if run.error:
        return {**about, "error": str(run.error)}
    assert run.results
    modes = run.results["modes"]
    single = modes["single"]["accuracy"] if "single" in modes else None
    return {**about, "accuracy": modes[run.results["default"]]["accuracy"], "single": single}


def _engine(arguments: argparse.Namespace) -> Engine | None:
    """What ``--engine`` names, with its options; None for the local one."""
    given = {name: getattr(arguments, name) for name in ENGINE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.engine != "ray":
        if given:
            raise ConfigError(f"{ENGINE_OPTIONS[next(iter(given))]}: is for --engine ray")
        return None
    from noprop.run.ray_engine import RayEngine

    if "address" in given and getattr(arguments, "train.workers") is not None:
        raise ConfigError(
            "--workers: of a cluster at --address, its own resources decide; see --cpus-per-unit"
        )
    return RayEngine(given.pop("address", None), **given)


def engine_options(arguments: argparse.Namespace) -> str:
    """The options of the engine as they were given, to be given again."""
    if arguments.engine != "ray":
        return ""
    values = [(option, getattr(arguments, name)) for name, option in ENGINE_OPTIONS.items()]
    values.append(("--workers", getattr(arguments, "train.workers", None)))
    return " --engine ray" + "".join(f" {o} {v}" for o, v in values if v is not None)


def assemble(arguments: argparse.Namespace) -> int:
    """``noprop assemble``."""
    api.assemble(
        arguments.run,
        data_dir=arguments.data_dir,
        encoder=named_encoder(arguments.encoder),
        emit=Report(quiet=arguments.quiet),
    )
    return _show_result(arguments, arguments.run)


def _show_result(arguments: argparse.Namespace, folder: Path) -> int:
    results = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if arguments.json:
        show_json({"run": str(folder), **results})
        return 0
    place = printable(folder)
    show(evaluation_text(results))
    show(f"\nthe run is in {place}; see also: noprop plot {place}")
    return 0


def _show_units(arguments: argparse.Namespace, folder: Path, states: list[UnitState]) -> int:
    if arguments.json:
        units = {s.name: {"position": s.position, "total": s.total} for s in states}
        show_json({"run": str(folder), "units": units})
        return 0
    missing = unfinished_text(states)
    show(f"still missing: {missing}" if missing else "every unit is trained")
    how = "when all are trained" if missing else "finish with"
    show(f"{how}: noprop assemble {printable(folder)}")
    return 0
