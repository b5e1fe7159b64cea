"""Any number of workers, any kill: the same weights, bit for bit."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from noprop import api
from noprop.build import load_data
from noprop.config import RunConfig, replace
from noprop.errors import RunError, TrainingError
from noprop.training.checkpoint import load_tensors, write_whole
from noprop.training.runs import create_run, read_metrics, train_run
from noprop.training.workers import checkpoint_path, groups_of

SMALL = {"method.num_blocks": 2, "train.epochs": 2, "train.workers": 1, "train.seed": 5}
LEARNED = {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 12}


class Killed(BaseException):
    """As abrupt as a signal."""


def configured(**changes) -> RunConfig:
    return replace(RunConfig(), {**SMALL, **changes})


def weights(folder: Path, config: RunConfig) -> dict[str, torch.Tensor]:
    return {
        f"{group}:{name}": tensor
        for group in groups_of(config)
        for name, tensor in load_tensors(checkpoint_path(folder, group))[0].items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def train(folder: Path, config: RunConfig, emit=lambda event: None) -> dict[str, torch.Tensor]:
    if not folder.exists():
        create_run(folder, config)
    train_run(folder, config, load_data(config), emit)
    return weights(folder, config)


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(tmp_path):
    config = configured()
    one = train(tmp_path / "1", config)
    for workers in (2, 3):
        config = replace(config, {"train.workers": workers})
        assert same(one, train(tmp_path / str(workers), config))
    assert not same(one, train(tmp_path / "seed", replace(configured(), {"train.seed": 6})))


@pytest.mark.parametrize("order", ["sequential", "parallel"])
@pytest.mark.parametrize("changes", [{}, LEARNED], ids=["fixed", "learned"])
def test_an_interrupted_run_ends_as_if_it_was_not(tmp_path, order, changes):
    """Stopped at three places, with and without sharing: weights, moments, batch statistics."""
    config = configured(**changes, **{"train.order": order, "train.checkpoint_every": 0.0})
    whole = train(tmp_path / "whole", config)
    left = [3, 9, 17]

    def interrupt(event):
        if event["event"] == "progress" and left and event["position"] >= left[0]:
            left.pop(0)
            raise Killed

    while True:
        try:
            parts = train(tmp_path / "parts", config, interrupt)
        except Killed:
            continue
        break
    assert len(left) < 3
    assert same(whole, parts)


@pytest.mark.slow
def test_a_killed_run_resumes_with_other_workers(tmp_path):
    """SIGKILL to the parent: its workers die too, no finished work is lost, no bit differs."""
    config = configured(**{"train.epochs": 6, "method.num_blocks": 4})
    whole = train(tmp_path / "whole", config)
    folder = tmp_path / "killed"
    fields = {"train.workers": 2, "train.checkpoint_every": 0.1}
    code = (
        "import noprop\n"
        "if __name__ == '__main__':\n"
        f"    c = {{'method.num_blocks': 4, 'train.epochs': 6, 'train.seed': 5, **{fields!r}}}\n"
        f"    noprop.train(noprop.RunConfig(), folder={str(folder)!r}, overrides=c)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(folder.glob("units/*/checkpoint.safetensors")):
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    model = api.resume(folder, workers=1)
    found = weights(folder, model.config)
    assert same(whole, found)


def test_a_loss_that_is_not_finite_stops_its_unit(tmp_path):
    config = configured(**{"train.lr": 1e30, "train.precision": "float32"})
    with pytest.raises(TrainingError, match=r"block-1.*update \d+.*lr 1e\+30"):
        train(tmp_path / "r", config)
    path = checkpoint_path(tmp_path / "r", "block-1")
    if path.exists():
        assert all(t.isfinite().all() for t in load_tensors(path)[0].values())


def test_damaged_checkpoints_are_named_and_never_executed(tmp_path):
    folder, config = tmp_path / "r", configured(**{"method.num_blocks": 1})
    train(folder, config)
    path = checkpoint_path(folder, "block-1")
    good = path.read_bytes()

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    for bad in (good[: len(good) // 2], b"", pickle.dumps(Evil())):
        path.write_bytes(bad)
        with pytest.raises(RunError, match=r"block-1"):
            train(folder, config)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder, config = tmp_path / "r", configured(**{"method.num_blocks": 1})

    def stop(event):
        if event["event"] == "epoch":
            raise Killed

    with pytest.raises(Killed):
        train(folder, config, stop)
    other = replace(config, {"method.encoder": "mlp"})
    with pytest.raises(RunError, match="another architecture"):
        train(folder, other)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_metrics_survive_a_line_cut_short(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "epoch"}\n{"event": "ep')
    assert read_metrics(tmp_path) == [{"event": "epoch"}]


def test_parallel_units_see_the_same_batches():
    config = configured(**{"train.order": "parallel"})
    data = load_data(config)
    from noprop.build import build_embedding, build_method
    from noprop.training.loop import GroupTrainer

    def trainer(order):
        c = replace(config, {"train.order": order})
        method = build_method(c, data.task, build_embedding(c, data.task, None))
        return GroupTrainer(
            c, method, method.units, data.train, data.validation, data.task.normalization,
            bf16=False, checkpoint=Path("unused"), emit=lambda event: None,
        )  # fmt: skip

    parallel = trainer("parallel")
    first = [parallel.indices(parallel.update(i)) for i in range(3)]
    assert all(torch.equal(first[0], other) for other in first)
    sequential = trainer("sequential")
    step = sequential.batches
    a, b = (sequential.indices(sequential.update(i)) for i in (0, step))
    assert not torch.equal(a, b)
