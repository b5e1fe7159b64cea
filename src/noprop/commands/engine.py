"""Options of engines: where units are trained."""

import argparse
from typing import Any

from noprop.commands.options import Parser, whole_number
from noprop.errors import ConfigError

__all__ = ["add_engine", "engine_of", "engine_options"]

# Argument of RayEngine, and the option that sets it.
ENGINE_OPTIONS = {
    "address": "--address",
    "storage": "--storage",
    "cpus": "--cpus-per-unit",
    "gpus": "--gpus-per-unit",
    "retries": "--retries",
}


def add_engine(parser: Parser) -> None:
    """Add ``--engine`` and its options."""
    group = parser.add_argument_group("where units are trained")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or Ray [local]",
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


def engine_of(arguments: argparse.Namespace) -> Any:
    """Return the engine of ``--engine`` with its options; None for the local one."""
    given = {name: getattr(arguments, name) for name in ENGINE_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.engine != "ray":
        if given:
            raise ConfigError(f"{ENGINE_OPTIONS[next(iter(given))]}: is for --engine ray")
        return None
    from noprop.run.ray_engine import RayEngine

    if "address" in given and getattr(arguments, "train.workers") is not None:
        raise ConfigError(
            "--workers: with --address, the cluster's resources limit the workers; "
            "see --cpus-per-unit"
        )
    return RayEngine(given.pop("address", None), **given)


def engine_options(arguments: argparse.Namespace) -> str:
    """Return the options of the engine as they were given, for the command that resumes."""
    if arguments.engine != "ray":
        return ""
    values = [(option, getattr(arguments, name)) for name, option in ENGINE_OPTIONS.items()]
    values.append(("--workers", getattr(arguments, "train.workers", None)))
    return " --engine ray" + "".join(f" {o} {v}" for o, v in values if v is not None)
