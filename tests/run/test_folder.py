"""A run folder: any number of processes, any kill, any damage, and what comes out of it."""

import dataclasses
import io
import json
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import tomli_w
import torch

from noprop.config import RunConfig, from_toml, replace, to_mapping, to_toml
from noprop.data import Examples
from noprop.errors import ConfigError, NoPropError, RunError, TrainingError
from noprop.evaluate import inputs
from noprop.files import write_whole
from noprop.fingerprint import fingerprint
from noprop.model import load, open_run
from noprop.run import run as run_module
from noprop.run.folder import create_run, join_run, workplace
from noprop.run.local import local_layout
from noprop.run.locks import hold
from noprop.run.metrics import read_metrics, recorder
from noprop.run.run import Run
from noprop.run.units import group_lock, groups_of
from noprop.task import load_data
from noprop.tensor_files import load_tensors, save_tensors
from noprop.training.commits import latest
from noprop.training.events import Epoch, Event, Found, Progress, Started, Trained
from tools import LEARNED, TWO_BLOCKS, Killed, assert_same, files_of, train_run, weights

TWELVE = {**LEARNED, "method.dim": 12}


def configured(**changes) -> RunConfig:
    return replace(RunConfig(), {**TWO_BLOCKS, **changes})


def train(folder: Path, config: RunConfig, emit=lambda event: None):
    if not folder.exists():
        create_run(folder, config)
    return train_run(folder, config, load_data(config), emit)


def leftovers(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name != ".lock"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run trained to its end in this process, its model, and every event it emitted."""
    folder, events = tmp_path_factory.mktemp("runs") / "finished", []
    model = train(folder, configured(), events.append)
    return folder, model, events


# -- what a checkpoint belongs to ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"train.lr": 2e-3}, {"method.offset": 0.01}, {"train.seed": 1}, {"data.validation": 0.2}],
)
def test_a_run_with_other_settings_or_data_is_not_taken_for_this_one(finished, tmp_path, changes):
    """Though every checkpoint is there and complete: its weights came of something else."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "config.toml").write_text(to_toml(replace(open_run(folder), changes)))
    with pytest.raises(RunError, match="was trained with other settings"):
        train(folder, open_run(folder))


def test_a_checkpoint_of_half_a_training_on_other_data_is_refused(tmp_path):
    config = configured(**{"train.checkpoint_every": 0.0})
    data = load_data(config)

    def stop(event: Event) -> None:
        if isinstance(event, Progress):
            raise Killed

    create_run(tmp_path / "run", config)
    with pytest.raises(Killed):
        train_run(tmp_path / "run", config, data, stop)
    y = data.train.y.clone()
    y[0] = (y[0] + 1) % 10
    other = dataclasses.replace(data, train=Examples(data.train.x, y))
    with pytest.raises(RunError, match="other settings or other data"):
        train_run(tmp_path / "run", config, other, lambda event: None)
    train_run(tmp_path / "run", config, data, lambda event: None)


def test_how_and_where_a_run_goes_on_is_free(finished, tmp_path):
    folder, model, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    changes = {"train.workers": 3, "train.checkpoint_every": 1.0, "evaluation.samples": 2}
    events: list[Event] = []
    config = replace(model.config, {**changes, "recipe": "another"})
    train_run(tmp_path / "run", config, load_data(config), events.append)
    assert list(map(type, events)) == [Found] * 3 + [Started]


# Of the configurations of 6b751ba, with two images of 0..31: runs of that commit resume as long as
# these stay. It had none of the fields that YOUNGER lists, and these values.
OLD_DEFAULTS = {"method.readout_start": "nearest"}
OLD_CT = {"method.gamma_noise": 6.0}
DIGESTS = {
    "dt": "2d678b0b5d1acd2af79ff3a562f0d96a",
    "ct": "eb9091bb186f938a4aa3966e19b9035d",
    "fm": "205f3b4e62548bd01555e980eee8106f",
    "backprop": "2d3bcad701b70f67f6a4ec9925e4e079",
    "adjoint": "8a66058c616de30c862baf0697fdcd17",
}


@pytest.mark.parametrize("method", DIGESTS)
def test_fields_that_came_later_leave_no_mark_at_their_defaults(tmp_path, method):
    x = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4)
    examples = Examples(x, torch.tensor([0, 1]))
    old = OLD_DEFAULTS | (OLD_CT if method == "ct" else {})
    config = replace(RunConfig(), {"method.name": method, **old})
    assert fingerprint(config, examples) == DIGESTS[method]
    later = {"data.normalization": "unit", "method.dropout_kind": "channel"}
    later |= {"method.time_scale": 1.0} if hasattr(config.method, "time_scale") else {}
    later |= {"method.gamma_shift": 1.0} if method == "dt" else {}
    marks = {fingerprint(replace(config, {n: v}), examples) for n, v in later.items()}
    assert len(marks | {DIGESTS[method]}) == len(later) + 1
    mapping = to_mapping(config)
    for name in later:
        section, _, field = name.partition(".")
        del mapping[section][field]
    (tmp_path / "old.toml").write_text(tomli_w.dumps(mapping))
    assert from_toml(tmp_path / "old.toml") == config


@pytest.mark.parametrize("method", ["dt", "ct"])
def test_a_run_made_before_keeps_its_start_and_its_noise_end(tmp_path, method):
    """Joined by a configuration that leaves both to the program, as a new command does."""
    wanted = {"method.embedding": "orthogonal", "method.learned": True, "method.name": method}
    config = replace(RunConfig(), wanted)
    before = replace(config, OLD_DEFAULTS | (OLD_CT if method == "ct" else {}))
    data = load_data(config)
    made = Run.join(before, tmp_path / "old", data=data).config
    assert made.method == before.method
    assert getattr(config.method, "readout_start", "") == "auto"
    assert (
        Run.join(config, tmp_path / "old", data=data).config == made == open_run(tmp_path / "old")
    )
    fresh = Run.join(config, tmp_path / "new", data=data).config
    assert getattr(fresh.method, "readout_start", "") == "random"
    if method == "ct":
        noise = to_mapping(fresh)["method"]["gamma_noise"]
        assert noise == pytest.approx(6 + math.log(2), abs=1e-5)
    assert open_run(tmp_path / "new") == fresh


def test_another_normalisation_is_another_run_and_is_read_with_its_own(tmp_path):
    folder, config = tmp_path / "run", configured(**{"data.normalization": "symmetric"})
    train(folder, config).save(folder)
    model = load(folder)
    x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert inputs(model, x).unique().tolist() == pytest.approx([-1, 1])
    with pytest.raises(RunError, match=r"data\.normalization is symmetric in its config\.toml"):
        join_run(folder, configured())


# -- partition and kills -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("order", "workers"), [("sequential", 3), ("parallel", 2)])
def test_the_number_of_workers_changes_no_bit(tmp_path, order, workers):
    """1, 2 or 3 processes, in either order of the updates: every tensor is the same."""
    few: dict[str, object] = {"method.num_blocks": 3, "train.epochs": 2, "data.train_size": 400}
    config = configured(**few, **{"train.order": order})
    train(tmp_path / "1", config)
    threads = torch.get_num_threads()
    folder = tmp_path / "more"
    train(folder, replace(config, {"train.workers": workers}))
    assert torch.get_num_threads() == threads
    assert_same(weights(tmp_path / "1"), weights(folder))
    assert not leftovers(folder)
    train(tmp_path / "seed", replace(config, {"train.seed": 6}))
    with pytest.raises(AssertionError):
        assert_same(weights(tmp_path / "1"), weights(tmp_path / "seed"))


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from noprop.task import load_data
from noprop.model import open_run
from noprop.run.run import Run
from tools import pause_in_commit
pause_in_commit(5, Path(sys.argv[3]))  # in every worker, which imports this script
if __name__ == "__main__":
    config = open_run(Path(sys.argv[1]))
    Run(Path(sys.argv[1]), config, load_data(config)).train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("embedding", [{}, TWELVE], ids=["fixed", "learned"])
def test_kill_minus_9_loses_nothing_that_was_saved(tmp_path, embedding):
    """SIGKILL while its workers write a checkpoint; resumed with another number of workers, no bit
    differs.

    What the killed processes were writing, and their copy of the data, are gone in the end.
    """
    changes = {"train.checkpoint_every": 0.0, "train.batch_size": 16}  # 12 updates of each block
    config = configured(**embedding, **changes)
    train(tmp_path / "whole", replace(config, {"train.checkpoint_every": 1e9}))
    config = replace(config, {"train.workers": 2})
    folder, script, mark = tmp_path / "killed", tmp_path / "script.py", tmp_path / "mark"
    create_run(folder, config)
    script.write_text(SCRIPT)
    tests = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, *map(str, (script, folder, tests, mark))])
    try:
        deadline = time.monotonic() + 600  # of a process that hangs; a busy machine takes minutes
        while not mark.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        assert mark.exists()
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=300)
    assert not alive  # its workers end with it
    assert list(folder.glob("units/*/.commit.json.*.tmp"))
    commits = [found.commit for place in folder.glob("units/*") if (found := latest(place))]
    assert any(commit.position > 0 and not commit.is_last for commit in commits)
    again = replace(config, {"train.checkpoint_every": 1e9, "train.workers": 1})
    train(folder, again)
    assert_same(weights(tmp_path / "whole"), weights(folder))
    assert not leftovers(folder)


def test_a_unit_is_trained_by_one_process_at_a_time(tmp_path, monkeypatch):
    """The second trains the rest, and says which the first trains; the first finds the rest."""
    monkeypatch.setattr(run_module, "PATIENCE", 0.2)
    config = configured()
    refused, events = [], []

    def second(event):
        if isinstance(event, Epoch) and not refused:
            refused.append(event)
            with pytest.raises(RunError, match="another process is training block-1, nothing"):
                train_run(tmp_path / "r", config, load_data(config), events.append)

    seen = []
    train(tmp_path / "r", config, lambda event: (seen.append(event), second(event)))
    assert [e.units for e in events if isinstance(e, Trained)] == [["block-2"], ["readout"]]
    assert [e.units for e in seen if isinstance(e, Trained)] == [["block-1"]]
    assert [e.group for e in seen if isinstance(e, Found)] == ["block-2", "readout"]
    train(tmp_path / "alone", config)
    assert_same(weights(tmp_path / "r"), weights(tmp_path / "alone"))
    assert not leftovers(tmp_path / "r")


def test_a_worker_passes_by_what_is_locked_and_comes_back_when_it_is_free(tmp_path):
    """As after a kill of the parent, whose worker lives on for half a second."""
    config = configured(**{"train.workers": 2})
    create_run(tmp_path / "r", config)
    held = hold(group_lock(tmp_path / "r", "block-1"), "")
    held.__enter__()
    seen = []

    def let_go(event):
        seen.append(event)
        if isinstance(event, Trained) and len(seen) and event.units != ["block-1"]:
            trained = [e.units[0] for e in seen if isinstance(e, Trained)]
            if len(trained) == 2:
                held.__exit__(None, None, None)

    train(tmp_path / "r", config, let_go)
    order = [e.units[0] for e in seen if isinstance(e, Trained)]
    assert sorted(order[:2]) == ["block-2", "readout"]
    assert order[2] == "block-1"


def test_lines_of_several_processes_stay_whole(tmp_path):
    """Four writers at once, on a file whose last line a kill had cut short."""
    (tmp_path / "metrics.jsonl").write_text('{"event": "epo')
    writers = [recorder(tmp_path, lambda event: None) for _ in range(4)]

    def write(number: int) -> None:
        for n in range(200):
            writers[number](Epoch("x" * 2000, n, float(number), {}, None))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    events = read_metrics(tmp_path)
    assert sorted((e["loss"], e["epoch"]) for e in events) == [
        (writer, n) for writer in range(4) for n in range(200)
    ]


def test_what_a_killed_process_left_is_cleared_and_nothing_of_a_living_one(tmp_path):
    """Its copy of the data and half-written files; a lock tells one from the other."""
    config = configured(**{"method.num_blocks": 1})
    create_run(tmp_path, config)
    dead = tmp_path / ".processes" / "dead" / "data.safetensors"
    dead.parent.mkdir(parents=True)
    half = [tmp_path / ".embedding.safetensors.7.tmp", tmp_path / "units/block-1/.c.8.tmp"]
    half[1].parent.mkdir(parents=True)
    for path in (dead, *half):
        path.write_bytes(b"half")
    with workplace(tmp_path) as alive:
        living = [alive / "data.safetensors", tmp_path / "units/readout/.c.9.tmp"]
        living.append(tmp_path / ".model.json.9.tmp")
        with hold(group_lock(tmp_path, "readout"), "x"):
            for path in living:
                path.write_bytes(b"live")
            Run(tmp_path, config, load_data(config)).train(["block-1"])
        assert not any(path.exists() for path in (dead, *half))
        assert all(path.exists() for path in living)
    assert not (tmp_path / ".processes").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_the_others_are_saved(tmp_path):
    """One line that says how to go on, no process left, and the same weights after going on."""
    config = configured(**{"train.epochs": 4, "train.workers": 2})
    train(tmp_path / "whole", replace(config, {"train.workers": 1}))

    def kill(event):
        if isinstance(event, Progress):
            multiprocessing.active_children()[0].kill()

    folder = tmp_path / "killed"
    with pytest.raises(TrainingError, match=r"worker process ended.*--resume") as caught:
        train(folder, config, kill)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    train(folder, replace(config, {"train.workers": 1}))
    assert_same(weights(tmp_path / "whole"), weights(folder))


def test_workers_are_at_most_one_a_group():
    units = ["block-1", "block-2", "readout"]
    assert local_layout(configured(**{"train.workers": 8}), units).size == 3
    assert local_layout(configured(**{"train.workers": 2}), units).size == 2
    assert 1 <= local_layout(configured(**{"train.workers": 0}), units).size <= 3
    assert groups_of(configured()) == ["block-1", "block-2", "readout"]
    assert len(groups_of(configured(**TWELVE))) == 1


# -- what a run leaves -----------------------------------------------------------------------------


def test_a_finished_run_has_its_files_and_events(finished):
    folder, _, events = finished
    assert not leftovers(folder)
    assert open_run(folder) == configured() == from_toml(folder / "config.toml")
    about = json.loads((folder / "environment.json").read_text())
    assert about["seed"] == 0
    assert about["device"] == "cpu"
    written = read_metrics(folder)
    assert [e["event"] for e in written] == [
        e.to_json()["event"] for e in events if not isinstance(e, Progress)
    ]
    epochs = [e for e in written if e["event"] == "epoch"]
    assert [e["unit"] for e in epochs] == ["block-1", "block-2", "readout"]
    assert all(e["loss"] > 0 and e["validation_loss"] > 0 for e in epochs)


def test_training_a_finished_run_again_does_nothing(finished):
    folder, model, _ = finished
    before = {p: p.read_bytes() for p in folder.glob("units/*/*")}
    events = []
    again = train(folder, configured(), events.append)
    assert list(map(type, events)) == [Found] * 3 + [Started]
    assert before == {p: p.read_bytes() for p in folder.glob("units/*/*")}
    for a, b in zip(again.method.units, model.method.units, strict=True):
        assert_same(a.module.state_dict(), b.module.state_dict())


def test_a_loaded_model_predicts_the_same_bits(finished):
    folder, model, _ = finished
    model.method.path_weights = torch.tensor([0.25, 0.75])
    model.save(folder)
    loaded = load(folder)
    assert loaded.method.path_weights is not None
    assert torch.equal(loaded.method.path_weights, model.method.path_weights)
    assert loaded.task == model.task
    x = model.task.normalization.apply(load_data(model.config).test.x[:50])
    a, b = (
        m.method.predict(x, torch.Generator().manual_seed(0), average="path")
        for m in (model, loaded)
    )
    assert torch.equal(a.probabilities, b.probabilities)


def test_the_error_of_a_listener_is_raised_unchanged(tmp_path):
    """A closed pipe on the screen is no fault of metrics.jsonl."""

    def closed(event):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        train(tmp_path / "r", configured(), closed)


# -- damage ------------------------------------------------------------------------------------


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "torch", "ours, but none"])
def test_damage_is_named_and_never_executed(tmp_path, damage):
    """Checkpoints and models: one line with the file's name, whatever lies there."""
    folder, config = tmp_path / "r", configured(**{"method.num_blocks": 1})
    train(folder, config).save(folder)
    evil = tmp_path / "executed"
    files = files_of(folder, "block-1")
    for path in (files["block-1"], files["commit"], folder / "model.safetensors"):
        good = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(good[:-100])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "pickle":
            path.write_bytes(pickle.dumps(Evil(evil)))
        elif damage == "torch":
            torch.save({"x": Evil(evil)}, path)
        else:
            save_tensors(path, {"x": torch.zeros(1)}, {"format": 1})
        with pytest.raises(RunError) as caught:
            load(folder) if path.name.startswith("model") else train(folder, config)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(good)
    assert not evil.exists()
    load(folder)


def forget(path: Path) -> None:
    """What the model was trained with, as weights did not tell once."""
    save_tensors(path, load_tensors(path)[0], {"format": 1})


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"format": 1, "shape": 3}'])
def test_a_damaged_model_description_is_named(finished, tmp_path, content):
    _, model, _ = finished
    create_run(tmp_path / "r", model.config)
    model.save(tmp_path / "r")
    (tmp_path / "r" / "model.json").write_text(content)
    with pytest.raises(RunError, match=r"model\.json: is damaged"):
        load(tmp_path / "r")


NORMAL = {"mean": [0.3], "std": [0.4]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path_weights": [[0.5], [0.5]]}, r"path_weights have shape \(2, 1\), wanted \(2,\)"),
        ({"path_weights": [0.5, 0.3, 0.2]}, r"path_weights have shape \(3,\), wanted \(2,\)"),
        ({"path_weights": [0.5, 0.6]}, "path_weights must be at least 0 and sum to 1"),
        ({"path_weights": [-0.5, 1.5]}, "path_weights must be at least 0 and sum to 1"),
        ({"path_weights": None}, "path_weights must be given for methods with a path"),
        ({"normalization": NORMAL | {"std": [0.0]}}, "std must be above 0"),
        ({"normalization": NORMAL | {"std": ["0.4"]}}, "std must be finite numbers"),
        ({"normalization": NORMAL | {"mean": [0.3, 0.3]}}, "mean has 2 numbers, wanted 1"),
        ({"shape": ["a", 8, 8]}, r"shape is \['a', 8, 8\]"),
        ({"shape": []}, "shape"),
        ({"shape": [10**30]}, "wanted at most 67108864 numbers an example"),
        ({"class_names": [0] * 10}, "class_names must be texts"),
        ({"dtype": "float16"}, "dtype is float16, wanted uint8 or float32"),
    ],
)
def test_each_field_of_a_model_description_is_checked(finished, tmp_path, changes, words):
    _, model, _ = finished
    create_run(tmp_path / "r", model.config)
    model.save(tmp_path / "r")
    forget(tmp_path / "r" / "model.safetensors")
    path = tmp_path / "r" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RunError, match=rf"model\.json: is damaged \(.*{words}") as caught:
        load(tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_weights_without_a_place_are_refused(finished, tmp_path):
    """One block fewer in config.toml: not a chain that leaves out its last block."""
    _, model, _ = finished
    create_run(tmp_path / "r", configured(**{"method.num_blocks": 1}))
    model.save(tmp_path / "r")
    forget(tmp_path / "r" / "model.safetensors")
    with pytest.raises(
        RunError, match=r"model\.safetensors: holds .* architecture: config\.toml has no block-2"
    ):
        load(tmp_path / "r")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.eta": 0.25}, "method.eta is 0.25, but the model was trained with 0.1"),
        ({"train.lr": 0.5}, "train.lr is 0.5, but the model was trained with 0.001"),
        ({"data.train_size": 7}, "data.train_size is 7, but the model was trained with 200"),
        ({"data.image_size": 8}, "data.image_size is 8, but the model was trained with unset"),
    ],
)
def test_a_model_is_not_read_by_another_configuration(finished, tmp_path, changes, words):
    _, model, _ = finished
    create_run(tmp_path / "r", replace(model.config, changes))
    model.save(tmp_path / "r")
    with pytest.raises(RunError, match=rf"r/config\.toml: {words}; restore it") as caught:
        load(tmp_path / "r")
    assert "\n" not in str(caught.value)
    forget(tmp_path / "r" / "model.safetensors")  # and runs finished before are still read
    load(tmp_path / "r")


def test_what_changes_no_weight_may_change_after_training(finished, tmp_path):
    _, model, _ = finished
    changes = {
        **{"evaluation.batch_size": 7, "evaluation.runs": 1, "evaluation.samples": 2},
        **{"train.workers": 3, "train.checkpoint_every": 1.0, "train.keep_every": 2},
        **{"data.dataset": "elsewhere.npz", "data.test_size": 9, "recipe": "mine"},
    }
    create_run(tmp_path / "r", replace(model.config, changes))
    model.save(tmp_path / "r")
    assert load(tmp_path / "r").config.evaluation.batch_size == 7


def test_starting_embeddings_of_another_shape_are_refused(tmp_path):
    config = configured(**{"method.embedding": "orthogonal"})
    create_run(tmp_path / "r", config)
    save_tensors(tmp_path / "r" / "embedding.safetensors", {"weight": torch.eye(10, 12)}, {})
    with pytest.raises(RunError, match=r"embedding\.safetensors: holds embeddings of another kind"):
        train(tmp_path / "r", config)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "config.toml"])
def test_a_file_that_may_not_be_read_says_so(finished, tmp_path, monkeypatch, name):
    """Not that it is missing, nor that it is damaged."""
    _, model, _ = finished
    create_run(tmp_path / "r", model.config)
    model.save(tmp_path / "r")
    real = io.open

    def guarded(file, *arguments, **settings):
        if str(file).endswith(name):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **settings)

    for place in ("builtins.open", "io.open"):
        monkeypatch.setattr(place, guarded)
    with pytest.raises(NoPropError, match=rf"{name}: cannot be read: Permission denied"):
        load(tmp_path / "r")


def test_a_folder_in_place_of_a_checkpoint_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        load_tensors(tmp_path)
    with pytest.raises(RunError, match="checkpoint does not exist"):
        load_tensors(tmp_path / "absent")


def test_a_process_killed_while_it_made_the_folder_left_nothing_in_the_way(tmp_path, monkeypatch):
    """From config.toml on the folder is a run; before that it can be taken again."""
    folder = tmp_path / "r"

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("noprop.files.os.replace", killed)
        with pytest.raises(Killed):
            create_run(folder, configured())
    (folder / ".config.toml.77.tmp").write_bytes(b"[tra")  # as kill -9 would leave it
    create_run(folder, configured())
    assert open_run(folder) == configured()
    assert (folder / "environment.json").is_file()

    def killed_later(path, content):
        write_whole(path, content)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("noprop.run.folder.write_whole", killed_later)
        with pytest.raises(Killed):
            create_run(tmp_path / "later", configured())
    assert open_run(tmp_path / "later") == configured()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(RunError, match="full: already exists"):
        create_run(tmp_path / "full", configured())
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_run_of_a_similar_name_is_named(tmp_path, monkeypatch):
    """Next to the folder, such as the one made for other data, or else in ``runs``."""
    create_run(tmp_path / "runs" / "photos-dt", configured())
    (tmp_path / "runs" / "photos").mkdir()  # no run
    monkeypatch.chdir(tmp_path)
    for given in ("runs/photos", "photos-dt", "runs/photo-dt"):
        with pytest.raises(RunError, match=r"; did you mean runs/photos-dt\?$"):
            open_run(Path(given))
    for given in ("runs/xyz", "other/mnist"):
        with pytest.raises(RunError, match=r"is not a run folder: it does not exist$"):
            open_run(Path(given))


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(RunError, match="absent: is not a run folder: it does not exist"):
        open_run(tmp_path / "absent")
    with pytest.raises(RunError, match=r"has no config\.toml"):
        open_run(tmp_path)
    create_run(tmp_path / "r", configured())
    with pytest.raises(RunError, match=r"already exists.*--resume"):
        create_run(tmp_path / "r", configured())
    with pytest.raises(RunError, match=r"training has not finished.*--resume"):
        load(tmp_path / "r")
    (tmp_path / "r" / "config.toml").write_text("[train")
    with pytest.raises(ConfigError, match=r"config\.toml: is not a TOML file"):
        open_run(tmp_path / "r")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be made|already exists"):
        create_run(tmp_path / "file" / "r", configured())


@pytest.mark.parametrize("call", ["os.replace", "os.fsync"])
@pytest.mark.parametrize("number", [28, 13, 30])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, call, number):
    """A full disk, no permission, a read-only disk: one line, nothing half-written."""
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fails(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"noprop.files.{call}", fails)
        with pytest.raises(RunError, match=f"{path}: cannot be written: {os.strerror(number)}"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert not leftovers(tmp_path)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_stop_inside_a_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("noprop.files.os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot be written"):
        write_whole(tmp_path / "file" / "inner", b"new")
