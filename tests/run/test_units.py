"""Units trained by hand: any of them, anywhere, in any order, and put together at the end."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import noprop
from mistakes import line_of_error
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError, RunError
from noprop.run import run as run_module
from noprop.run.locks import hold, hold_assembly
from noprop.run.units import choose_groups, condensed, group_folder, group_lock, groups_of
from noprop.tensor_files import load_tensors
from tools import LEARNED, TWO_BLOCKS

CONFIG = replace(RunConfig(), {**TWO_BLOCKS, "train.epochs": 2})
OPTIONS = [
    *("--num-blocks", "2", "--encoder", "mlp", "--train-size", "200", "--epochs", "2"),
    *("--workers", "1", "--device", "cpu", "--precision", "float32", "--runs", "2", "--quiet"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run trained by one undisturbed process."""
    return noprop.train(CONFIG, folder=tmp_path_factory.mktemp("whole") / "r").folder


def assert_same_model(a: Path, b: Path) -> None:
    """Weights, path weights and evaluation, to the last bit."""
    x, y = (load_tensors(folder / "model.safetensors")[0] for folder in (a, b))
    assert x.keys() == y.keys()
    assert not [name for name in x if not torch.equal(x[name], y[name])]
    for file in ("model.json", "evaluation.json"):
        first, second = (json.loads((folder / file).read_text()) for folder in (a, b))
        assert first | {"training": 0} == second | {"training": 0}


# -- which units ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["readout", "block-2"], ["block-2", "readout"]),
        (["block-3..block-5", "block-4"], ["block-3", "block-4", "block-5"]),
        (["block-11 .. readout"], ["block-11", "block-12", "readout"]),
        ("block-2", ["block-2"]),
    ],
)
def test_lists_and_ranges(wanted, found):
    """In the order of the run, each once."""
    assert choose_groups(replace(CONFIG, {"method.num_blocks": 12}), wanted) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["block-13"], "no unit 'block-13'; there are block-1..block-12, readout"),
        (["block-2..block-0"], "no unit 'block-0'"),
        (["block-5..block-3"], "range block-5..block-3 is empty"),
        ([""], "no unit ''"),
        ([], "none is named"),
    ],
)
def test_units_that_are_not_there(wanted, words):
    with pytest.raises(ConfigError, match=words):
        choose_groups(replace(CONFIG, {"method.num_blocks": 12}), wanted)


def test_a_part_of_what_shares_its_embeddings_is_refused():
    config = replace(CONFIG, {**LEARNED, "method.dim": 12})
    with pytest.raises(ConfigError, match=r"learned ties all units.*by W_Embed"):
        choose_groups(config, ["block-1", "block-2"])
    assert choose_groups(config, ["readout", "block-1..block-2"]) == groups_of(config)


def test_names_in_a_line():
    assert condensed(["block-1", "block-2", "block-4", "readout"]) == (
        "block-1, block-2, block-4, readout"
    )
    assert condensed([f"block-{t}" for t in range(9, 12)]) == "block-9..block-11"


# -- by hand -------------------------------------------------------------------------------------


def test_units_trained_by_hand_make_the_same_model(capsys, whole, tmp_path):
    """Three calls in an odd order, of recipe and folder; what is missing is said each time."""
    run = str(tmp_path / "r")
    assert main(["train", *OPTIONS, "--run", run, "--units", "readout"]) == 0
    out = capsys.readouterr().out
    assert "still missing: block-1, block-2 (not begun)\nwhen all are trained: noprop ass" in out
    assert not (tmp_path / "r" / "model.json").exists()
    more = ["--checkpoint-every", "0.5", "--samples", "2"]  # these change no weight
    assert main(["train", *OPTIONS, *more, "--run", run, "--units", "block-2"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", run, "--units", "block-1", "--json", "--quiet"]) == 0
    units = json.loads(capsys.readouterr().out)["units"]
    assert {name: u["position"] == u["total"] for name, u in units.items()} == {
        "block-1": True, "block-2": True, "readout": True,
    }  # fmt: skip
    assert not (tmp_path / "r" / "model.json").exists()
    assert main(["assemble", run, "--quiet"]) == 0
    assert "359 test examples" in capsys.readouterr().out
    assert_same_model(whole, tmp_path / "r")


def test_folders_of_two_machines_are_copied_together(whole, tmp_path):
    """Without a common file system: a unit is its folder."""
    a, b = tmp_path / "a", tmp_path / "b"
    noprop.train_units(a, ["block-1..block-2"], CONFIG)
    states = noprop.train_units(b, ["readout"], CONFIG)
    assert [s.finished for s in states] == [False, False, True]
    shutil.copytree(b / "units" / "readout", a / "units" / "readout")
    noprop.assemble(a)
    assert_same_model(whole, a)


def test_resume_trains_what_is_missing(whole, tmp_path):
    noprop.train_units(tmp_path / "r", ["block-2"], CONFIG)
    noprop.resume(tmp_path / "r")
    assert_same_model(whole, tmp_path / "r")


def test_learned_embeddings_are_trained_as_one(tmp_path):
    config = replace(CONFIG, {**LEARNED, "method.dim": 12, "train.epochs": 1})
    (state,) = noprop.train_units(tmp_path / "r", ["block-1..block-2", "readout"], config)
    assert (state.name, state.finished) == ("all", True)
    noprop.assemble(tmp_path / "r")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "3"], "train.epochs is 2 in its config.toml, 3 was asked for"),
        (["--train-size", "300"], "data.train_size is 200 in its config.toml, 300 was"),
        (["--dim", "12", "--embedding", "orthogonal"], "method.embedding is one-hot in its"),
    ],
)
def test_another_training_is_not_joined(capsys, whole, options, words):
    """The first field that differs, and both values; the folder stays as it was."""
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    argv = ["train", *OPTIONS, *options, "--run", str(whole), "--units", "block-1"]
    text = line_of_error(capsys, *argv)
    assert words in text
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


def test_another_method_is_not_joined(whole):
    config = replace(CONFIG, {"method.name": "ct"})
    with pytest.raises(RunError, match=r"method\.name is dt in its config\.toml, ct was asked for"):
        noprop.train_units(whole, ["network"], config)


def test_other_data_of_the_same_name_is_refused(whole):
    """The fields are equal; the examples are not."""
    data = noprop.task.load_data(CONFIG)
    data.train.y[:2] = (data.train.y[:2] + 1) % 10
    with pytest.raises(RunError, match="other settings or other data"):
        noprop.train_units(whole, ["block-1"], CONFIG, data=data)


def test_a_folder_of_something_else_is_left_alone(capsys, tmp_path):
    (tmp_path / "thesis.tex").touch()
    argv = ["train", *OPTIONS, "--run", str(tmp_path), "--units", "block-1"]
    assert "is no run folder" in line_of_error(capsys, *argv)
    assert "--units: name the run folder" in line_of_error(
        capsys, "train", *OPTIONS, "--units", "block-1"
    )
    assert {p.name for p in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}


# -- assembling ----------------------------------------------------------------------------------


def test_assemble_names_what_is_missing_and_does_nothing_else(capsys, whole, tmp_path):
    run = tmp_path / "r"
    shutil.copytree(whole, run)
    for name in ("model.json", "model.safetensors", "evaluation.json"):
        (run / name).unlink()
    shutil.rmtree(run / "units" / "readout")
    path = group_folder(run, "block-2") / "commit.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"position": 1}))
    text = line_of_error(capsys, "assemble", str(run))
    assert f"block-2 (1 of {about['total']} updates), readout (not begun)" in text
    assert not (run / "model.json").exists()
    assert not (run / "evaluation.json").exists()


def test_assemble_refuses_a_unit_of_another_training(capsys, whole, tmp_path):
    """Copied there from a run with another seed: it is whole and finished."""
    run = tmp_path / "r"
    shutil.copytree(whole, run)
    other = noprop.train_units(tmp_path / "o", ["readout"], replace(CONFIG, {"train.seed": 1}))
    assert other[-1].finished
    shutil.rmtree(group_folder(run, "readout"))
    shutil.copytree(group_folder(tmp_path / "o", "readout"), group_folder(run, "readout"))
    (run / "model.json").unlink()
    text = line_of_error(capsys, "assemble", str(run))
    assert "units/readout/commit.json: was trained with other settings" in text
    assert not (run / "model.json").exists()


def test_a_run_is_assembled_by_one_process_at_a_time(capsys, whole):
    with hold_assembly(whole):
        text = line_of_error(capsys, "assemble", str(whole))
    assert "another process is assembling this run" in text
    assert main(["assemble", str(whole), "--quiet", "--json"]) == 0


def test_the_second_on_a_unit_says_so(capsys, monkeypatch, whole, tmp_path):
    monkeypatch.setattr(run_module, "PATIENCE", 0.2)
    run = tmp_path / "r"
    with hold(_made(group_lock(run, "block-1"), whole, run), ""):
        text = line_of_error(capsys, "train", "--resume", str(run), "--units", "block-1", "--quiet")
    assert "another process is training block-1" in text
    assert "noprop assemble" in text


def _made(lock: Path, whole: Path, run: Path) -> Path:
    """A run of which nothing is trained, for a lock in it."""
    run.mkdir()
    for name in ("config.toml", "environment.json", "embedding.safetensors"):
        shutil.copy(whole / name, run / name)
    return lock
