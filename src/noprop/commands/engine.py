"""Options of engines: where units are trained."""

import argparse
from typing import Any

from noprop.commands.options import Parser, whole_number
from noprop.errors import ConfigError

__all__ = ["add_engine", "engine_of", "engine_options"]

# Of each engine: argument of its class, and option.
OPTIONS = {
    "ray": {
        "address": "--address",
        "storage": "--storage",
        "cpus": "--cpus-per-unit",
        "gpus": "--gpus-per-unit",
        "retries": "--retries",
    },
    "slurm": {
        "partition": "--partition",
        "time": "--time",
        "cpus_per_task": "--cpus-per-task",
        "gpus_per_task": "--gpus-per-task",
        "mem": "--mem",
        "sbatch": "--sbatch",
        "no_wait": "--no-wait",
    },
}


def add_engine(parser: Parser, *, waits: bool = False) -> None:
    """Add ``--engine`` and its options, of which ``--no-wait`` is for a command that can leave."""
    group = parser.add_argument_group("where units are trained")
    group.add_argument(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="processes of this machine, Ray, or tasks of a Slurm job array [local]",
    )
    group.add_argument(
        "--address",
        metavar="WHERE",
        help="ray: address of a cluster: auto, host:port or ray://host:port [RAY_ADDRESS, else a "
        "Ray on this machine]",
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="ray: where to write checkpoints, such as s3://bucket/runs or file:///mnt/runs [the "
        "run folder, which all machines must share]",
    )
    for name, text in {
        "cpus": "CPUs of a unit, which may be a fraction [number of threads, or 1 with a GPU]",
        "gpus": "GPUs of a unit, which may be a fraction [0]",
    }.items():
        option = f"--{name}-per-unit"
        group.add_argument(option, dest=name, type=float, metavar="N", help=f"ray: {text}")
    group.add_argument(
        "--retries",
        type=whole_number,
        metavar="N",
        help="ray: restarts of a unit whose worker is lost [10]",
    )
    for name, metavar, text in (
        ("partition", "NAME", "partition of the tasks [the cluster's default]"),
        (
            "time",
            "TIME",
            "time of a task, which is restarted if it needs longer: 1:30:00, or minutes [60]",
        ),
        ("mem", "SIZE", "memory of a task, such as 8G"),
    ):
        group.add_argument(f"--{name}", metavar=metavar, help=f"slurm: {text}")
    for name, text in {
        "cpus": "CPUs of a task [number of threads]",
        "gpus": "GPUs of a task",
    }.items():
        option = f"--{name}-per-task"
        group.add_argument(option, type=whole_number, metavar="N", help=f"slurm: {text}")
    group.add_argument(
        "--sbatch",
        action="append",
        metavar="NAME=VALUE",
        help="slurm: another option of sbatch, such as account=me; may be repeated",
    )
    if waits:
        return
    group.add_argument(
        "--no-wait",
        action="store_true",
        help="slurm: submit the tasks of the run of --run or --resume and leave; noprop assemble "
        "makes the model",
    )


def engine_of(arguments: argparse.Namespace) -> Any:
    """Return the engine of ``--engine`` with its options; None for the local one."""
    given = {}
    for engine, options in OPTIONS.items():
        for name, option in options.items():
            value = getattr(arguments, name, None)
            if value is None or value is False:
                continue
            if engine != arguments.engine:
                raise ConfigError(f"{option}: is for --engine {engine}")
            given[name] = value
    workers = getattr(arguments, "train.workers")
    if arguments.engine == "slurm":
        from noprop.run.slurm_engine import SlurmEngine

        if workers is not None:
            raise ConfigError("--workers: each unit is a task of Slurm; see --cpus-per-task")
        sbatch = dict(_pair(text) for text in given.pop("sbatch", ()))
        return SlurmEngine(**given, sbatch=sbatch)
    if arguments.engine == "ray":
        from noprop.run.ray_engine import RayEngine

        if "address" in given and workers is not None:
            raise ConfigError(
                "--workers: with --address, the cluster's resources limit the workers; "
                "see --cpus-per-unit"
            )
        return RayEngine(given.pop("address", None), **given)
    return None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--sbatch: wanted NAME=VALUE, such as account=me, got {text!r}")
    return name.lstrip("-"), value


def engine_options(arguments: argparse.Namespace) -> str:
    """Return the options of the engine as they were given, to be given again."""
    if arguments.engine == "local":
        return ""
    texts = [f"--engine {arguments.engine}"]
    names = {**OPTIONS[arguments.engine], "train.workers": "--workers"}
    for name, option in names.items():
        value = getattr(arguments, name, None)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one is not False:
                texts.append(option if one is True else f"{option} {one}")
    return " " + " ".join(texts)
