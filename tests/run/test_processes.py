"""Processes: how fast they start, what they inherit, and how they and their server end."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from noprop.errors import ConfigError, RunError
from noprop.run.processes import (
    METHOD,
    Child,
    ProcessLostError,
    signals_blocked,
    start_server,
    stop,
)

forked = pytest.mark.skipif(METHOD != "forkserver", reason="processes are spawned here")


def say(pipe, *words):
    pipe.send(words)


def tell_environment(pipe):
    threads = len(os.listdir(f"/proc/{os.getpid()}/task")) if sys.platform == "linux" else 2
    pipe.send((os.environ.get("NOPROP_TEST"), os.environ.get("OPENBLAS_NUM_THREADS"), threads))


def tell_of_garbage(pipe):
    pipe.send((gc.isenabled(), gc.get_freeze_count()))


def fail(pipe, error):
    raise error


def sleep(pipe):
    pipe.send("asleep")
    time.sleep(60)


def sleep_silently(pipe):
    time.sleep(60)


def end_when_asked(pipe, path):
    pipe.send("ready")
    assert pipe.recv() is None
    for _ in range(1000):  # far more than a pipe holds: somebody must read it
        pipe.send("x" * 1000)
    path.write_text("saved")


SCRIPT = """
import json, sys, time
from noprop.run.processes import Child

def make_an_optimizer(pipe):  # as a worker does, whose imports take most of its start
    import torch
    from noprop.run_settings import TrainConfig
    from noprop.training.optimizers import Optimizer
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.sum().backward()
    Optimizer(TrainConfig(), [{"params": [weight]}]).step()
    pipe.send("ready" if "torch._dynamo" not in sys.modules else "with a compiler")

def sleep(pipe):
    pipe.send("asleep")
    time.sleep(60)

if __name__ == "__main__":
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        child = Child(make_an_optimizer)
        assert child.receive() == "ready"
        seconds.append(time.perf_counter() - began)
        child.join()
    sleepers = [Child(sleep) for _ in range(2)]
    assert [child.receive() for child in sleepers] == ["asleep", "asleep"]
    print(json.dumps(seconds), flush=True)
    time.sleep(60)
"""


@forked
def test_all_but_the_first_start_at_once_and_none_outlives_a_killed_parent(tmp_path):
    """The best of three starts takes a quarter of the first at most; it is a hundredth and less.

    None imports torch's compiler, which the first optimizer of ``torch.optim`` does: 1.2 s, 74 MB.
    Then kill -9 of the parent: its two workers end, and the server with them.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first, *others = json.loads(process.stdout.readline())
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert min(others) < first / 4
    assert len(started) >= 4  # the tracker of resources, the server, and two workers
    assert not psutil.wait_procs(started, timeout=10)[1]


@forked
def test_a_server_has_one_thread_and_hears_no_signal():
    """A fork copies one thread; a scheduler's SIGTERM reaches the server too, who must outlive it.

    CUDA cannot be used in a fork of a process that has used it.
    """
    child = Child(tell_environment)
    child.receive()
    server = psutil.Process(psutil.Process(child.process.pid).ppid())
    child.join()
    assert server.num_threads() == 1
    assert not [m for m in server.memory_maps() if "/dev/nvidia" in m.path]
    for number in (signal.SIGINT, signal.SIGTERM):
        server.send_signal(number)
    again = Child(say, 1)
    assert again.receive() == (1,)
    assert server.is_running()
    again.join()


@forked
def test_the_objects_of_the_server_are_not_searched_for_garbage():
    """Those of torch's modules alone are 100,000; garbage of the process's own is still found."""
    child = Child(tell_of_garbage)
    enabled, frozen = child.receive()
    child.join()
    assert enabled
    assert frozen > 100_000


def test_a_process_has_the_environment_of_this_moment(monkeypatch):
    """Not that of the server, which is as old as the first process."""
    start_server()
    monkeypatch.setenv("NOPROP_TEST", "now")
    child = Child(tell_environment)
    value, blas, threads = child.receive()
    child.join()
    assert (value, blas) == ("now", os.environ.get("OPENBLAS_NUM_THREADS"))
    assert threads == 2  # its own, and that which watches its parent


def test_what_a_function_raises_is_raised_here():
    for error, kind, words in (
        (ConfigError("no such thing"), ConfigError, "^no such thing$"),
        (ValueError("3"), RunError, "^a worker failed: ValueError: 3$"),
        (KeyboardInterrupt(), ProcessLostError, "ended unexpectedly"),
        (BrokenPipeError(), ProcessLostError, "ended unexpectedly"),
    ):
        child = Child(fail, error)
        with pytest.raises(kind, match=words):
            child.receive()
        child.join()


@pytest.mark.parametrize("unread", [False, True])
def test_a_killed_process_is_reported(unread):
    """Killed before it has read, the system says that the connection was reset, not its end."""
    child = Child(sleep, name="block-1")
    assert child.receive() == "asleep"
    if unread:
        child.send("never read")
    child.process.kill()
    child.process.join()
    with pytest.raises(
        ProcessLostError, match=r"^block-1: its process ended unexpectedly \(out of"
    ):
        child.receive()
    child.join()


def test_what_cannot_be_sent_is_a_type_error():
    with pytest.raises(TypeError, match="lambda"):
        Child(say, lambda: 3)


def test_one_with_nothing_to_save_is_not_waited_for_and_one_that_saves_is(tmp_path):
    """One that still imports could not answer for seconds; one that works is asked, and read."""
    importing, working = Child(sleep_silently), Child(end_when_asked, tmp_path / "saved")
    assert working.receive() == "ready"
    began = time.monotonic()
    stop([importing, working], grace=30.0)
    assert time.monotonic() - began < 15
    assert (tmp_path / "saved").read_text() == "saved"
    assert importing.process.exitcode == -signal.SIGKILL


def test_one_that_does_not_end_is_killed_after_a_while():
    child = Child(sleep)
    child.receive()
    stop([child], grace=0.2)
    assert child.process.exitcode == -signal.SIGKILL


def test_a_second_ctrl_c_kills_all(monkeypatch):
    children = [Child(sleep) for _ in range(2)]
    for child in children:
        child.receive()
    monkeypatch.setattr("noprop.run.processes.wait", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stop(children, grace=30.0)
    assert [child.process.exitcode for child in children] == [-signal.SIGKILL] * 2


def test_ctrl_c_while_a_worker_starts_is_for_the_parent_alone(capfd):
    """The child of a spawn imports for seconds: blocked there, and delivered here after the start.

    A child that prints what it has of SIGINT stands for the worker.
    """
    code = "import signal, os; print(signal.SIGINT in signal.pthread_sigmask(0, []))"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with signals_blocked():
            child = subprocess.Popen([sys.executable, "-c", code], restore_signals=False)
            os.kill(os.getpid(), signal.SIGINT)
            child.send_signal(signal.SIGINT)
            assert child.wait() == 0
        pytest.fail("the parent heard nothing")
    assert capfd.readouterr().out == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
