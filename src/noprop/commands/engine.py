"""Options of engines: where units are trained."""

import argparse
from typing import Any

from noprop.commands.options import Parser, whole_number
from noprop.errors import ConfigError

__all__ = ["add_engine", "engine_of", "engine_options"]

# Of --engine ray: argument of RayEngine, and option.
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
        "--engine", choices=("local", "ray"), default="local", help="processes here, or Ray [local]"
    )
    group.add_argument(
        "--address",
        metavar="WHERE",
        help="ray: a cluster, such as auto, host:port or ray://host:port [RAY_ADDRESS, else a Ray "
        "of this machine]",
    )
    group.add_argument(
        "--storage",
        metavar="URL",
        help="ray: checkpoints go there, such as s3://bucket/runs or file:///mnt/runs [the run "
        "folder, which all machines must share]",
    )
    for name, text in {
        "cpus": "CPUs, or a part of one, of a unit [as many as threads, 1 beside a GPU]",
        "gpus": "GPUs, or a part of one, of a unit [0]",
    }.items():
        option = f"--{name}-per-unit"
        group.add_argument(option, dest=name, type=float, metavar="N", help=f"ray: {text}")
    group.add_argument(
        "--retries",
        type=whole_number,
        metavar="N",
        help="ray: new starts of a unit whose worker is lost [10]",
    )


def engine_of(arguments: argparse.Namespace) -> Any:
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
