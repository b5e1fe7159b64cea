"""The machine: its device, a pool of threads, memory that is kept and counted, its description."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from noprop.errors import ConfigError
from noprop.machine import (
    choose_device,
    commit_of_package,
    describe_machine,
    map_in_threads,
    use_bf16,
)

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_a_configuration_error():
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("abacus", "cuda:99", "meta", "cpu:0"):  # on "meta" every tensor is empty
        with pytest.raises(ConfigError, match=rf"train\.device: {name}") as caught:
            choose_device(name)
        assert "\n" not in str(caught.value)


def test_precision_is_obeyed_where_it_is_given():
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("float32", cpu)
    assert isinstance(use_bf16("auto", cpu), bool)


def test_pieces_run_beside_each_other_with_one_thread_each(three_threads):
    """Three that wait for one another end: one after the other they never would."""
    barrier = threading.Barrier(3, timeout=20)

    def wait(item):
        barrier.wait()
        return item, torch.get_num_threads()

    assert map_in_threads(wait, [5, 6, 7], CPU) == [(5, 1), (6, 1), (7, 1)]
    assert torch.get_num_threads() == 3


def test_a_lone_piece_has_all_threads(three_threads):
    assert map_in_threads(lambda item: torch.get_num_threads(), [0], CPU) == [3]
    assert map_in_threads(lambda item: item, [], CPU) == []


def test_what_stops_a_piece_stops_all(three_threads):
    """The error comes through, the pieces not begun are left, the threads are as before."""
    begun = []

    def work(item):
        begun.append(item)
        if item == 0:
            raise ValueError("no such piece")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="no such piece"):
        map_in_threads(work, list(range(1000)), CPU)
    assert len(begun) < 500
    assert torch.get_num_threads() == 3


def test_a_user_s_own_code_is_never_called_at_the_same_time(three_threads):
    busy = threading.Lock()

    def work(item):
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        busy.release()
        return torch.get_num_threads()

    assert map_in_threads(work, [1, 2, 3, 4], CPU, one_at_a_time=True) == [3] * 4


def test_two_callers_at_the_same_time_both_end_and_leave_the_threads_as_they_were(three_threads):
    def caller(out):
        out.extend(map_in_threads(lambda item: time.sleep(0.01) or item, list(range(6)), CPU))

    found = [[], []]
    threads = [threading.Thread(target=caller, args=(out,)) for out in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(6))] * 2
    assert torch.get_num_threads() == 3


FAULTS = """
import resource, torch
from noprop.machine import malloc_keeps_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(1_000_000) for _ in range(3)]  # 4 MB: 1,000 pages each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with malloc_keeps_memory():
    with malloc_keeps_memory():
        faults()
    inside = faults()
faults()
print(outside, inside, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another malloc than glibc's")
def test_freed_memory_is_kept_in_here():
    """Page faults of tensors made and left: thousands outside, hardly any inside once warm.

    Afterwards there are no more than before: a caller's own code is not slowed down.
    """
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    outside, inside, after = map(int, out.stdout.split())
    if outside < 10_000:
        pytest.skip(f"this malloc keeps freed memory by itself: {outside} faults for 60,000 pages")
    assert inside < outside / 10
    assert after <= 1.1 * outside


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another counter than Linux's")
def test_the_peak_is_this_process_s_own():
    """A child of a process that holds a gigabyte begins with nothing of it."""
    code = (
        "import torch; from noprop.machine import peak_memory; "
        "print(peak_memory(torch.device('cpu'))[0])"
    )
    held = torch.ones(250_000_000)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert held[-1] == 1
    assert 50 < float(out.stdout) < 700


def test_the_commit_is_that_of_the_package_s_own_checkout(tmp_path):
    """Not that of a repository around a site-packages folder; a changed tree says so."""

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "venv" / "noprop" / "runs.py"
    package.parent.mkdir(parents=True)
    package.write_text("installed")
    assert commit_of_package(package) is None
    git("init")
    (tmp_path / "thesis.tex").touch()
    git("add", "thesis.tex")
    git("commit", "-m", "one")
    assert commit_of_package(package) is None
    git("add", "venv")
    git("commit", "-m", "two")
    git("tag", "-a", "v1", "-m", "v1")
    assert commit_of_package(package) == git("rev-parse", "HEAD")
    package.write_text("edited")
    assert commit_of_package(package) == git("rev-parse", "HEAD") + "-dirty"


def test_the_machine_is_described():
    about = describe_machine()
    assert about["cores"] >= 1
    assert about["torch"] == torch.__version__
    assert about["processor"]


@pytest.mark.skipif(sys.platform != "linux", reason="the counter cannot be reset here")
def test_the_peak_counts_from_its_reset():
    """A worker that trains one run after another reports the memory of each."""
    code = (
        "import torch; from noprop.machine import peak_memory, reset_peak\n"
        "cpu = torch.device('cpu'); torch.ones(100_000_000); print(peak_memory(cpu)[0])\n"
        "reset_peak(cpu); print(peak_memory(cpu)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert after < before - 300
