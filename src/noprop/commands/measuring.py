"""``noprop bench``."""

import argparse
import importlib.util
import itertools
import json
from contextlib import closing
from pathlib import Path

from noprop.errors import ConfigError
from noprop.report.progress import Report
from noprop.run.folder import make_free_folder
from noprop.terminal import printable, show, show_json, tell
from noprop.training.events import Step

__all__ = ["bench"]


def bench(arguments: argparse.Namespace) -> int:
    """``noprop bench``: print tables, and write ``bench.json`` and figures to ``--out``."""
    from noprop.bench import DEFAULT_SUITES
    from noprop.bench.settings import Settings
    from noprop.bench.suites import Results, bench_text, draw_bench, run_suites, step_count
    from noprop.files import write_whole
    from noprop.machine import core_count

    suites = tuple(dict.fromkeys(arguments.suites)) or DEFAULT_SUITES
    workers = core_count() if arguments.workers is None else arguments.workers
    methods = Settings.methods
    if arguments.methods is not None:
        methods = tuple(name.strip() for name in arguments.methods.split(","))
    elif importlib.util.find_spec("torchdiffeq") is None:
        methods = tuple(m for m in methods if m != "adjoint")
        tell("without adjoint, which needs torchdiffeq: pip install 'noprop[ode]'")
    settings = Settings(
        dataset=arguments.dataset,
        methods=methods,
        blocks=arguments.blocks,
        steps=arguments.steps,
        images=min(500 * workers, arguments.images) if arguments.quick else arguments.images,
        workers=workers,
        rounds=1 if arguments.quick else arguments.rounds,
        seconds=0.2 if arguments.quick else arguments.seconds,
        target=arguments.target,
        data_dir=arguments.data_dir,
    )
    steps = step_count(settings, suites)
    out = arguments.out or make_free_folder("bench", Path())
    place = out / "bench.json"
    if place.exists():
        raise ConfigError(f"--out: {out} already has a bench.json; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(place, b"{}\n")
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror or error}") from None
    report, numbers = Report(quiet=arguments.quiet), itertools.count(1)

    def progress(text: str) -> None:
        report(Step(text, next(numbers), steps))

    def keep(results: Results) -> None:
        write_whole(place, (json.dumps(results, indent=1) + "\n").encode())

    with closing(report):
        results = run_suites(settings, suites, progress, keep)
    try:
        paths = draw_bench(results, out)
    except ConfigError as error:  # figures are optional: the measurements are printed anyway
        tell(f"no figures: {error}")
        paths = []
    if arguments.json:
        show_json(results)
        return 0
    show(bench_text(results))
    show("\n" + "\n".join(map(printable, [place, *paths])))
    return 0
