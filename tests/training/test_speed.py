"""What makes training and prediction fast changes no result."""

import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F

import noprop
from noprop.evaluate import evaluate
from noprop.layers import ReLUDropout, keep_mask
from noprop.parallel import side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def digits(folder, recipe="digits-dt", /, **changes):
    """A very short run; the losses it reported, and the model."""
    events = []
    overrides = {
        "train.epochs": 2, "train.workers": 1, "data.train_size": 400, "train.device": "cpu",
        "train.precision": "float32", "evaluation.runs": 2, "evaluation.batch_size": 100, **changes,
    }  # fmt: skip
    model = noprop.train(recipe, folder=folder, overrides=overrides, emit=events.append)
    return [e["loss"] for e in events if e["event"] == "epoch"], model


@pytest.mark.parametrize("recipe", ["digits-dt", "digits-ct"])
def test_float32_losses_are_those_of_the_plain_layers(tmp_path, monkeypatch, recipe):
    """Same seed, same losses, to the last bit, with ReLU, pool and dropout as one writes them."""
    few = {"method.num_blocks": 2} if recipe == "digits-dt" else {"method.steps": 3}
    fast, _ = digits(tmp_path / "fast", recipe, **few)

    def plain(self, x, generator=None):
        x = F.relu(F.max_pool2d(x, 2) if self.pool else x)
        if not self.training:
            return x
        return x * keep_mask(x, self.keep_of_256, generator) * (256 / self.keep_of_256)

    monkeypatch.setattr(ReLUDropout, "forward", plain)
    slow, _ = digits(tmp_path / "slow", recipe, **few)
    assert len(fast) == (6 if recipe == "digits-dt" else 2)
    assert fast == slow


def test_results_do_not_depend_on_the_number_of_threads(tmp_path, three_threads):
    """Chunks of an evaluation are computed with one thread each, however many at a time."""
    _, model = digits(tmp_path / "run", **{"method.num_blocks": 2, "train.epochs": 1})
    examples = model.examples("test")
    beside, p = evaluate(model.model, examples), model.predict(examples.x)
    torch.set_num_threads(1)
    assert evaluate(model.model, examples) == beside
    assert torch.equal(model.predict(examples.x), p)


def test_pieces_run_beside_each_other_with_one_thread_each(three_threads):
    """Three that wait for one another end: one after the other they never would."""
    barrier = threading.Barrier(3, timeout=20)

    def wait(item):
        barrier.wait()
        return item, torch.get_num_threads()

    assert side_by_side(wait, [5, 6, 7], CPU) == [(5, 1), (6, 1), (7, 1)]
    assert torch.get_num_threads() == 3


def test_a_lone_piece_has_all_threads(three_threads):
    assert side_by_side(lambda item: torch.get_num_threads(), [0], CPU) == [3]
    assert side_by_side(lambda item: item, [], CPU) == []


def test_what_stops_a_piece_stops_all(three_threads):
    """The error comes through, the pieces not begun are left, the threads are as before."""
    begun = []

    def work(item):
        begun.append(item)
        if item == 0:
            raise ValueError("no such piece")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="no such piece"):
        side_by_side(work, list(range(1000)), CPU)
    assert len(begun) < 500
    assert torch.get_num_threads() == 3


def test_a_user_s_own_code_is_never_called_at_the_same_time(three_threads):
    busy = threading.Lock()

    def work(item):
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        busy.release()
        return torch.get_num_threads()

    assert side_by_side(work, [1, 2, 3, 4], CPU, apart=True) == [3] * 4


class Remembers(torch.nn.Module):
    """An encoder that keeps on itself what it was last given, as many do."""

    def forward(self, x):
        self.x = x.flatten(1)
        time.sleep(0.005)
        return self.x


def test_an_encoder_with_a_state_predicts_the_same_with_many_threads(tmp_path, three_threads):
    overrides = {
        "train.epochs": 1, "train.workers": 1, "data.train_size": 200, "method.num_blocks": 1,
        "evaluation.runs": 1, "evaluation.batch_size": 20, "train.device": "cpu",
    }  # fmt: skip
    model = noprop.train(
        "digits-dt", folder=tmp_path / "run", overrides=overrides, encoder=Remembers
    )
    x = model.examples("test").x
    torch.set_num_threads(3)
    many = model.predict(x)
    torch.set_num_threads(1)
    torch.testing.assert_close(model.predict(x), many)


def test_two_callers_at_the_same_time_both_end_and_leave_the_threads_as_they_were(three_threads):
    def caller(out):
        out.extend(side_by_side(lambda item: time.sleep(0.01) or item, list(range(6)), CPU))

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
from noprop.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(1_000_000) for _ in range(3)]  # 4 MB: 1,000 pages each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with freed_memory_kept():
    with freed_memory_kept():
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
        "import torch; from noprop.memory import peak_memory; "
        "print(peak_memory(torch.device('cpu'))[0])"
    )
    held = torch.ones(250_000_000)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert held[-1] == 1
    assert 50 < float(out.stdout) < 700


def test_a_method_of_one_unit_trains_with_all_threads_and_blocks_with_one(tmp_path, three_threads):
    """The number is kept with the run, so that another machine goes on with the same sums."""
    _, one = digits(tmp_path / "ct", "digits-ct", **{"train.epochs": 1, "method.steps": 3})
    _, many = digits(tmp_path / "dt", **{"train.epochs": 1, "method.num_blocks": 2})
    two = {"train.epochs": 1, "method.steps": 3, "train.threads": 2}
    _, asked = digits(tmp_path / "asked", "digits-ct", **two)
    threads = [run.config.train.threads for run in (one, many, asked)]
    assert threads == [3, 1, 2]
    assert "threads = 3" in (tmp_path / "ct" / "config.toml").read_text()
    assert torch.get_num_threads() == 3
