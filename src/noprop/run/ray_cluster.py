"""A connection to Ray: an existing cluster, or one that is started on this machine.

Ray is an extra, imported when it is used. It prints nothing itself; the process that trains
reports lost workers.
"""

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from noprop.errors import ConfigError, import_extra

__all__ = ["connected", "reason_of", "room", "the_ray"]


def the_ray() -> Any:
    """The package ``ray``.

    Raises:
        ConfigError: If it is not installed.
    """
    return import_extra("ray", "ray", "engine ray needs")


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[bool]:
    """Connect this process to Ray; a Ray that is started for it ends with the context.

    Args:
        address: Address of a cluster: ``auto``, ``host:port`` or ``ray://host:port``. The default
            is the variable RAY_ADDRESS, which ``ray job submit`` sets, else a Ray of this machine.
        cpus: Number of CPUs of a Ray that is started.

    Yields:
        Whether one was started.

    Raises:
        ConfigError: If no cluster answers there.
    """
    ray = the_ray()
    if ray.is_initialized():  # by a user's own program, to whom it stays
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    started = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    _check_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _silent():
        try:
            with _handlers_kept(), _on_loopback() if started else nullcontext():
                ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **started)
        except Exception as error:
            raise ConfigError(
                f"address: wanted a Ray cluster that answers, got {address}: {reason_of(error)}"
            ) from None
        try:
            yield address == "local"
        finally:
            ray.shutdown()


def _check_answer(address: str) -> None:
    """See that something listens there: Ray itself would try for many minutes, in many lines."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"address: wanted a Ray cluster that answers, got {address}: {error}"
        ) from None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Let Ray handle SIGTERM by an exit while connected, and restore the handler afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a Ray that is started in this block listen on the loopback interface alone.

    Who reaches a Ray can run code in it. On macOS and Windows it keeps to this interface; on Linux
    it takes another, even where it is asked for this one, unless it is made to do as there.

    Raises:
        ConfigError: If this version of Ray cannot be made to.
    """
    from ray._private import ray_constants as constants

    name, variable = "ENABLE_RAY_CLUSTER", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    if not hasattr(constants, name):
        raise ConfigError(
            "engine: this version of ray cannot be kept to the loopback interface; "
            "start a cluster yourself and give its address"
        )
    before, inherited = getattr(constants, name), os.environ.get(variable)
    setattr(constants, name, False)
    os.environ[variable] = "0"  # for the processes of Ray, which inherit it
    try:
        yield
    finally:
        setattr(constants, name, before)
        os.environ.pop(variable)
        if inherited is not None:
            os.environ[variable] = inherited


@contextmanager
def _silent() -> Iterator[None]:
    """Ray prints its troubles with workers on stdout, where results go, and has no option for it.

    So what prints them is replaced for a while; where it is not found, they are printed.
    """
    from ray._private import worker

    name = "print_to_stdstream"
    if not callable(before := getattr(worker, name, None)):
        yield
        return
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


def room(cpus: float, gpus: float) -> int:
    """Return how many tasks with these needs the living machines of the cluster can run at once."""
    return sum(
        _fitting(node["Resources"], cpus, gpus) for node in the_ray().nodes() if node["Alive"]
    )


def _fitting(resources: dict[str, float], cpus: float, gpus: float) -> int:
    wanted = {"CPU": cpus, "GPU": gpus}
    return min(
        math.floor(resources.get(name, 0.0) / much + 1e-9) for name, much in wanted.items() if much
    )


def reason_of(error: BaseException) -> str:
    """Return an error of Ray in a few words: its first line, or that of an error in a task."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    words = " ".join((lines or [""])[0].split())[:200]
    return f"{type(cause).__name__}: {words}" if words else type(cause).__name__
