"""The commands themselves, behind the parser: everything that needs torch."""

import argparse
import csv
import importlib
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, cast

from noprop import api
from noprop.config import RunConfig
from noprop.data import (
    SOURCES,
    inspect_sources,
    load_dataset,
    read_inputs,
    search_path,
)
from noprop.distributed.member import started_by_torchrun
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError
from noprop.grid import GridRun, summary, train_grid
from noprop.report.description import describe as description
from noprop.report.grid import GridReport, grid_text
from noprop.report.progress import ProgressReport, StepsReport
from noprop.report.tables import description_text, evaluation_text, table
from noprop.training.engines import Engine
from noprop.training.model import open_run
from noprop.training.signals import Terminated, answered_between_updates
from noprop.training.units import UnitState, unfinished_text
from noprop.training.workers import end_with_parent

# Of --engine ray: argument of RayEngine, and option.
ENGINE_OPTIONS = {
    "address": "--address",
    "storage": "--storage",
    "cpus": "--cpus-per-unit",
    "gpus": "--gpus-per-unit",
    "retries": "--retries",
}

__all__ = ["assemble", "bench", "data", "describe", "evaluate", "grid", "plot", "predict", "train"]


def train(arguments: argparse.Namespace) -> int:
    """``noprop train``."""
    encoder = _encoder_or_field(arguments)
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
        folder = arguments.run or api.free_folder(config.recipe)
    together = started_by_torchrun()
    if together:
        _check_torchrun(arguments)
    first = not together or os.environ["RANK"] == "0"
    engine = _engine(arguments)
    report = ProgressReport(config.train.batch_size, quiet=arguments.quiet or not first)
    states: list[UnitState] = []
    common: dict[str, Any] = {"data_dir": arguments.data_dir, "encoder": encoder, "emit": report}
    if not together:
        common["engine"] = engine
    try:
        if arguments.resume:
            text = getattr(arguments, "train.workers")
            workers = None if text is None else int(arguments.configuration().train.workers)
        else:
            workers = None
        with answered_between_updates():
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
        report.close()
        made = (folder / "config.toml").is_file()
        part = f" --units {arguments.units}" if arguments.units else ""
        part += engine_options(arguments)
        how = f"; go on with: noprop train --resume {folder}{part}" if made else ""
        if first:
            print(f"stopped{how}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        report.close()
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
            print(
                "torchrun: a restart may hang; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it",
                file=sys.stderr,
            )


def _encoder_or_field(arguments: argparse.Namespace) -> EncoderFactory | None:
    """The function that ``--encoder`` names; a built-in encoder is a field of the method."""
    if ":" in (arguments.encoder or ""):
        return _encoder(arguments.encoder)
    setattr(arguments, "method.encoder", arguments.encoder)
    return None


def grid(arguments: argparse.Namespace) -> int:
    """``noprop grid``: status 1 if a run failed."""
    encoder, engine = _encoder_or_field(arguments), _engine(arguments)
    changes = arguments.overrides()
    report = GridReport(quiet=arguments.quiet)
    try:
        with answered_between_updates():
            runs = train_grid(
                arguments.recipes,
                _seeds(arguments.seeds),
                folder=arguments.out,
                overrides=changes,
                data_dir=arguments.data_dir,
                encoder=encoder,
                engine=engine,
                emit=report,
            )
    except KeyboardInterrupt as stop:
        print("stopped; go on with the same command", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    failed = [run for run in runs if run.error]
    table = summary(runs)
    if arguments.json:
        print(json.dumps({"recipes": table, "runs": [_grid_run(run) for run in runs]}, indent=1))
    else:
        print(grid_text(table))
        print(f"\nthe runs are in {arguments.out}")
    for run in failed:
        print(f"noprop: error: {run.name}: {run.error}", file=sys.stderr)
    return 1 if failed else 0


def _grid_run(run: GridRun) -> dict[str, Any]:
    about = {"run": str(run.folder), "recipe": run.recipe, "seed": run.seed}
    if run.error:
        return {**about, "error": str(run.error)}
    assert run.results
    modes = run.results["modes"]
    single = modes["single"]["accuracy"] if "single" in modes else None
    return {**about, "accuracy": modes[run.results["default"]]["accuracy"], "single": single}


def _seeds(text: str) -> list[int]:
    """Such as ``0..4`` or ``0,3,7``; both ends belong to a range."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = [first, last] if dots else [first, first]
        if not all(end.strip().isdecimal() for end in ends):
            raise ConfigError(f"--seeds: wanted such as 0..4 or 0,3,7, got {text!r}")
        low, high = map(int, ends)
        if low > high:
            raise ConfigError(f"--seeds: the range {part.strip()} is empty; its ends are swapped")
        if high - low >= 100_000:
            raise ConfigError(f"--seeds: the range {part.strip()} has more than 100,000 seeds")
        seeds += range(low, high + 1)
    return seeds


def _engine(arguments: argparse.Namespace) -> Engine | None:
    """What ``--engine`` names, with its options; None for the local one."""
    given = {name: getattr(arguments, name) for name in ENGINE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.engine != "ray":
        if given:
            raise ConfigError(f"{ENGINE_OPTIONS[next(iter(given))]}: is for --engine ray")
        return None
    from noprop.distributed import RayEngine

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
    report = ProgressReport(1, quiet=arguments.quiet)
    try:
        api.assemble(
            arguments.run,
            data_dir=arguments.data_dir,
            encoder=_encoder(arguments.encoder),
            emit=report,
        )
    finally:
        report.close()
    return _show_result(arguments, arguments.run)


def _show_result(arguments: argparse.Namespace, folder: Path) -> int:
    results = json.loads((folder / "evaluation.json").read_text())
    if arguments.json:
        print(json.dumps({"run": str(folder), **results}, indent=1))
        return 0
    print(evaluation_text(results))
    print(f"\nthe run is in {folder}; see also: noprop plot {folder}")
    return 0


def _show_units(arguments: argparse.Namespace, folder: Path, states: list[UnitState]) -> int:
    if arguments.json:
        units = {s.name: {"position": s.position, "total": s.total} for s in states}
        print(json.dumps({"run": str(folder), "units": units}, indent=1))
        return 0
    missing = unfinished_text(states)
    print(f"still missing: {missing}" if missing else "every unit is trained")
    print(f"{'when all are trained' if missing else 'finish with'}: noprop assemble {folder}")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``noprop evaluate``."""
    encoder = _encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    results = model.evaluate(arguments.data_dir, arguments.part)
    print(json.dumps(results, indent=1) if arguments.json else evaluation_text(results))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """``noprop predict``."""
    if arguments.samples is not None and arguments.samples < 1:
        raise ConfigError(f"--samples must be at least 1, got {arguments.samples}")
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, got {arguments.top}")
    encoder = _encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    names, x = read_inputs(arguments.files, model.model.task.shape)
    probabilities = model.predict(
        x,
        samples=arguments.samples,
        noise=False if arguments.no_noise else None,
        average=arguments.average,
        seed=arguments.seed,
    )
    top = probabilities.topk(min(arguments.top, len(model.class_names)), dim=1)
    rows = [
        [name, *(f"{model.class_names[i]} {p:.3f}" for i, p in zip(labels, values, strict=True))]
        for name, labels, values in zip(
            names, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]
    form = "json" if arguments.json else arguments.format
    if form == "table":
        print(table(["file", *(f"#{i + 1}" for i in range(top.indices.shape[1]))], rows))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["file", "label", *model.class_names])
        for name, p in zip(names, probabilities.tolist(), strict=True):
            label = model.class_names[p.index(max(p))]
            writer.writerow([name, label, *(f"{v:.6f}" for v in p)])
    else:
        answer = [
            {
                "file": name,
                "label": model.class_names[p.index(max(p))],
                "probabilities": dict(zip(model.class_names, p, strict=True)),
            }
            for name, p in zip(names, probabilities.tolist(), strict=True)
        ]
        print(json.dumps(answer, indent=1))
    return 0


def describe(arguments: argparse.Namespace) -> int:
    """``noprop describe``."""
    config = arguments.configuration()
    about = description(config, *_shape(config))
    print(json.dumps(about, indent=1) if arguments.json else description_text(about))
    return 0


def _shape(config: RunConfig) -> tuple[tuple[int, ...], int]:
    name = config.data.dataset
    if name in SOURCES:
        for status in inspect_sources():
            if status.name == name:
                return tuple(status.shape), status.num_classes
    if name == "digits":
        return (1, 8, 8), 10
    c = config.data
    dataset = load_dataset(name, image_size=c.image_size, color=c.color)
    return dataset.shape, dataset.num_classes


def data(arguments: argparse.Namespace) -> int:
    """``noprop data``."""
    found = inspect_sources(arguments.data_dir, verify=arguments.verify)
    if arguments.json:
        print(json.dumps([_status(s) for s in found], indent=1))
        return 0
    rows = []
    for s in found:
        bad = [f.name for f in s.files if f.intact is False]
        state = "damaged: " + ", ".join(bad) if bad else ("here" if s.available else "absent")
        size = "×".join(map(str, s.shape))
        where = s.how if s.available else "downloaded when asked for"
        sizes = [f"{n:,}" for n in s.sizes]
        rows.append([s.name, size, str(s.num_classes), *sizes, state, str(s.folder or where)])
    print(table(["data set", "shape", "classes", "train", "test", "state", "where, or how"], rows))
    places = ", ".join(map(str, search_path(arguments.data_dir)))
    print(f"\nlooked in {places} (--data-dir, then NOPROP_DATA, then the cache)")
    return 0


def _status(s: Any) -> dict[str, Any]:
    return {
        "name": s.name,
        "shape": list(s.shape),
        "classes": s.num_classes,
        "train": s.sizes[0],
        "test": s.sizes[1],
        "available": s.available,
        "folder": str(s.folder) if s.folder else None,
        "files": [
            {"name": f.name, "path": str(f.path) if f.path else None, "intact": f.intact}
            for f in s.files
        ],
        "how": s.how,
    }


def plot(arguments: argparse.Namespace) -> int:
    """``noprop plot``: pictures, and the page, in the run or both in ``--out``."""
    from noprop.report.page import write_page
    from noprop.report.pictures import save_pictures
    from noprop.report.plots import draw_run

    encoder = _encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    examples = model.examples("test", arguments.data_dir)
    pictures = draw_run(arguments.run, model.model, examples)
    paths = save_pictures(pictures, arguments.out or arguments.run / "plots")
    for picture in pictures:
        if picture.trouble:
            print(f"{picture.name}: cannot be drawn: {picture.trouble}", file=sys.stderr)
    place = (arguments.out or arguments.run) / "report.html"
    page = write_page(arguments.run, model.model, pictures, place)
    if arguments.json:  # the pictures; the page is always report.html
        print(json.dumps([str(p) for p in paths]))
    else:
        print("\n".join(map(str, [*paths, page])))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """``noprop bench``: tables, ``bench.json`` and figures in ``--out``."""
    from noprop.bench.figures import draw_bench
    from noprop.bench.settings import Settings
    from noprop.bench.suites import DEFAULT_SUITES, Target, bench_text, run_suites, step_count
    from noprop.training.checkpoint import write_whole
    from noprop.training.groups import core_count

    suites = tuple(dict.fromkeys(arguments.suites)) or DEFAULT_SUITES
    workers = core_count() if arguments.workers is None else arguments.workers
    methods = Settings.methods
    if arguments.methods is not None:
        methods = tuple(name.strip() for name in arguments.methods.split(","))
    elif importlib.util.find_spec("torchdiffeq") is None:
        methods = tuple(m for m in methods if m != "adjoint")
        print(
            "without adjoint, which needs torchdiffeq: pip install 'noprop[ode]'", file=sys.stderr
        )
    settings = Settings(
        dataset=arguments.dataset,
        methods=methods,
        blocks=arguments.blocks,
        steps=arguments.steps,
        images=min(500 * workers, arguments.images) if arguments.quick else arguments.images,
        workers=workers,
        rounds=1 if arguments.quick else arguments.rounds,
        seconds=0.2 if arguments.quick else arguments.seconds,
    )
    target = Target(arguments.target, arguments.data_dir)
    steps = step_count(settings, suites)
    out = arguments.out or api.free_folder("bench", Path())
    place = out / "bench.json"
    if place.exists():
        raise ConfigError(f"--out: {out} has a bench.json already; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(place, b"{}\n")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror or error}") from None
    report = StepsReport(steps, quiet=arguments.quiet)

    def keep(results: dict[str, Any]) -> None:
        write_whole(place, (json.dumps(results, indent=1) + "\n").encode())

    try:
        results = run_suites(settings, suites, report, keep, target)
    finally:
        report.close()
    try:
        paths = draw_bench(results, out)
    except ConfigError as error:  # figures are an extra; the measurements are not lost for it
        print(f"no figures: {error}", file=sys.stderr)
        paths = []
    if arguments.json:
        print(json.dumps(results, indent=1))
        return 0
    print(bench_text(results))
    print("\n" + "\n".join(map(str, [place, *paths])))
    return 0


def _encoder(name: str | None) -> EncoderFactory | None:
    """The function that ``--encoder module:function`` names, on the user's own word alone."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--encoder wants MODULE:FUNCTION, got {name!r}: {error}") from None
    except Exception as error:  # whatever the user's module may raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--encoder {name}: importing {module} failed: {words}") from error
    if not callable(factory):
        raise ConfigError(
            f"--encoder wants MODULE:FUNCTION, got {name!r}: {function} is "
            f"{type(factory).__name__}, not callable"
        )
    return cast("EncoderFactory", factory)
