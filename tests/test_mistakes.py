"""Every mistake is one clear line: a table of commands and faults.

A row has an id, a command line, and words of the message; ``fault=`` makes what is wrong. The
command runs in an empty folder, where ``run`` is a copy of a small trained run if the command line
names it. Add a row to the part it belongs to.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from mistakes import (
    FAST,
    change,
    class_folders,
    edit,
    images_by_class,
    line_of_error,
    make_fifo,
    make_folder,
    make_link,
    remove,
    rewrite,
    row,
    save_npy,
    save_npz,
    write,
    zip_file,
)
from noprop.cli import main
from noprop.data import SOURCES
from noprop.training.commits import load_part, read_commit, write_commit, write_part

SMALL = " ".join(["train", *FAST])  # a training that ends at once
# The last commit of a unit, and what can be read of a model.
UNIT = "run/units/block-1/commit.json"
DESCRIPTION = {
    "format": 1,
    "shape": [1, 8, 8],
    "class_names": [str(label) for label in range(10)],
    "dtype": "uint8",
    "normalization": {"mean": [0.3], "std": [0.4]},
    "path_weights": [0.5, 0.5],
}
NESTED = "[" * 100_000 + "]" * 100_000
CLASSES = np.arange(60) % 3
MNIST = [next(iter(names)) for names in SOURCES["mnist"].files]

X = save_npy("x.npy", np.zeros((2, 8, 8), np.uint8))


HOLDS_A_LINK = (make_folder("made"), make_link("made/link", "absent"))
DIVERGING = "--lr 1e9 --train-size 200 --epochs 1 --quiet --run-dir made --workers 1 --runs 1"


def in_a_grid(folder: Path) -> None:
    """The run is one of a grid."""
    (folder / "run").rename(folder / "moved")
    (folder / "run").mkdir()
    (folder / "moved").rename(folder / "run" / "digits-dt-seed-0")


def flattened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moments of another shape than their weights."""
    return {n: t.flatten()[:1] if n.endswith("exp_avg") else t for n, t in tensors.items()}


def reworked(change: Callable[[dict[str, dict[str, Tensor]]], dict[str, dict[str, Tensor]]]):
    """Write the parts of block-1 again, changed, as those of a training that has just begun."""

    def fault(folder: Path) -> None:
        place = (folder / UNIT).parent
        commit = read_commit(folder / UNIT)
        parts = change({name: load_part(place, part) for name, part in commit.files.items()})
        files = {name: write_part(place, name, 0, tensors) for name, tensors in parts.items()}
        write_commit(place, dataclasses.replace(commit, position=0, files=files))
        (place / "previous.json").unlink()

    return fault


OPTIONS = [
    row("recipe", "train digit-dt", "unknown recipe", "did you mean digits-dt?"),
    row("recipe-is-a-file", "train mine.toml", "unknown recipe", "mean --config mine.toml?"),
    row("recipe-is-data", "train wine.csv", "unknown recipe", "mean --dataset wine.csv?"),
    row("describe-absent-run", "describe runs/none", "runs/none: is not a run folder", "not exist"),
    row("number-or-word", "train --evaluation no", "number", "or 'full' or 'off'", "got 'no'"),
    row("below-or-word", "train --evaluation -1", "to 0, or 'full' or 'off'", "got -1"),
    row("field", "train --set train.epoch=3", "unknown field", "train.epochs"),
    row("option", "train --epoch 3", "unknown option --epoch", "--epochs"),
    row("below", "train --epochs 0", "train.epochs", "greater than or equal to 1", "got 0"),
    row("no-number", "train --lr fast", "train.lr", "number", "'fast'"),
    row("choice", "train --embedding onehot", "method.embedding", "one-hot", "'onehot'"),
    row("set-without-value", "train --set epochs", "FIELD=VALUE"),
    row("set-without-name", "train --set =3", "--set wants FIELD=VALUE, got '=3'"),
    row("set-a-table", "train --set train=3", "train is a table", "such as train.epochs"),
    row("config-absent", "train --config absent.toml", "absent.toml", "cannot be read"),
    row(
        "recipe-climbs",
        "train --config c.toml",
        "c.toml: recipe: string should match",
        fault=write("c.toml", 'recipe = "../../evil"'),
    ),
    row("device", "train --device abacus", "train.device", "abacus"),
    row("one-dimension", "train --embedding orthogonal --dim 1", "two classes have the same"),
    row("seed", f"train --seed {10**23}", "train.seed", "less than or equal"),
    row("epsilon", "describe --epsilon 0.4", "epsilon"),
    row("samples-int64", f"predict run x.npy --samples {10**30}", "--samples", "1,000,000,000"),
    row("samples-memory", "predict run x.npy --samples 1001", "samples", "at most 1000", fault=X),
    row("digits-of-seeds", f"grid digits-dt --seeds {'9' * 5000}", "--seeds", "such as 0..4"),
    row("digits", f"train --epochs {'9' * 5000}", "train.epochs", "(5002 characters)"),
    row("nested", ["train", "--set", f"train.epochs={'[' * 50_000}"], "train.epochs", "integer"),
    row(
        "toml-digits",
        "train --config c.toml",
        *("c.toml", "4300 digits"),
        fault=write("c.toml", f"[train]\nepochs = {'9' * 5000}"),
    ),
    row("toml-fifo", "train --config c", "c: cannot be read: not a reg", fault=make_fifo("c")),
    row("deadline", f"reproduce table5 --plan --deadline {'9' * 5000}", "--deadline", "1h30m"),
    row("scale", f"reproduce table1 --plan --scale seeds={10**30}", "--scale: seeds", "at most"),
    *(
        row(f"nul-{argv[0]}-{argv[-2]}", argv, "NUL character", r"\x00")
        for argv in (
            ["train", "--run", "a\0b"],
            ["train", "--data-dir", "a\0b"],
            ["predict", "absent", "a\0b"],
            ["grid", "digits-dt", "--out", "a\0b"],
        )
    ),
    *(
        row(f"long-{argv[0]}-{argv[-2]}", argv, "File name too long")
        for argv in (
            ["train", *FAST, "--run", "x" * 5000],
            ["evaluate", "--json", "x" * 5000],
            ["train", "--config", "x" * 5000],
        )
    ),
    row("jobs-many", "reproduce table5 --jobs 1025", "--jobs must be at most 1024"),
    row("bench-many", f"bench prediction --steps {10**6}", "--steps must be at most 100,000"),
    row("norm", "describe --embedding random --embedding-norm 1e300", "method.embedding_norm"),
    row("jobs", f"reproduce table5 --jobs {10**30}", "--jobs", "1,000,000,000"),
    row("command", "trian", "unknown command trian; did you mean train?"),
    row("command-far", "xyz", "unknown command xyz; known are train, recipes, describe, grid"),
    row("fm-eta", "train digits-fm --eta 3", "method.eta", "not a field of method fm", "dt, ct"),
    row(
        "adjoint-blocks",
        "train digits-adjoint --set method.num_blocks=3",
        *("method.num_blocks", "not a field of method adjoint", "belongs to dt, backprop"),
    ),
    row("dt-path", "describe --path-sigma 0.1", "path_sigma", "method dt", "belongs to fm"),
    row("method", "train --method dp", "method.name", "one of dt, ct, fm, backprop", "got 'dp'"),
    row("ct-sampler", "train digits-ct --sampler dopri5", "method.sampler", "got 'dopri5'"),
    row(
        "gamma-of-far-embeddings",
        "train digits-ct-d20 --embedding-norm 1e6",
        *("gamma_noise", "1.414e+06 apart", "34.32", "-20..20", "embedding_norm"),
    ),
    row(
        "gamma-of-near-embeddings",
        "train digits-dt-d20 --embedding-norm 1e-6 --gamma-shift auto",
        *("gamma_shift", "-20..20", "embedding_norm"),
    ),
    row("gamma", "train digits-ct --gamma-noise 100", "gamma_noise", "less than", "100"),
    row("room", "train digits-ct --gamma-room 7", "gamma_noise", "gamma_clean", "6.69"),
    row("tolerance", "train digits-fm --tolerance 1e-12", "tolerance", "greater than", "1e-12"),
    row("encoder-module", "train --encoder nowhere:f", "--encoder", "nowhere"),
    row(
        "encoder-fails",
        "train --encoder failing:f",
        "importing failing failed: ZeroDivisionError",
        fault=write("failing.py", "1 / 0"),
    ),
]

DATA = [
    row("unknown-set", "train --dataset no-such-set", "no-such-set"),
    row("one-example", f"{SMALL} --train-size 1", "two examples to train on", "data.train_size"),
    row(
        "single-class",
        f"{SMALL} --dataset c.npz",
        *("c.npz", "has 1 class, wanted 2"),
        fault=save_npz("c.npz", x=np.zeros((60, 5)), y=CLASSES * 0),
    ),
    *(
        row(f"fifo-{command.split()[-1]}", command, "not a regular file", fault=fault)
        for command, fault in {
            "predict run a.png": make_fifo("a.png"),
            "predict run a.npy": make_fifo("a.npy"),
            "predict run a.npz": make_fifo("a.npz"),
            f"{SMALL} --dataset b.npz": make_fifo("b.npz"),
            f"{SMALL} --dataset folder": (class_folders("folder"), make_fifo("folder/1/0.png")),
            f"{SMALL} --dataset mnist --data-dir here": (
                make_folder("here/MNIST/raw"),
                *(make_fifo(f"here/MNIST/raw/{name}") for name in MNIST),
            ),
        }.items()
    ),
    row("device-file", "predict run a.npy", "regular file", fault=make_link("a.npy", "/dev/zero")),
    row("folder-npz", "predict run a.npz", "has no image", fault=make_folder("a.npz")),
    row("folder-png", "predict run a.png", "has no image", fault=make_folder("a.png")),
    row(
        "member-without-header",
        "predict run a.npz",
        *("a.npz", "x.npy", "not a readable NumPy file"),
        fault=zip_file("a.npz", {"x.npy": b"text"}),
    ),
    row("postscript", "predict run a.png", "not a readable image", fault=write("a.png", "%!PS")),
    row(
        "warned-image",
        "predict run a.png",
        *("a.png", "10000x10000 pixels"),
        fault=lambda folder: Image.new("1", (10_000, 10_000)).save(folder / "a.png"),
    ),
    row("bad-image", "predict run bad.png", "bad.png", fault=write("bad.png", "no image")),
    *(
        row(
            f"augmented-table-{field}",
            f"{SMALL} --dataset t.npz --set train.{field}={value}",
            f"train.{field}: only images are augmented",
            fault=save_npz("t.npz", x=np.random.default_rng(0).normal(size=(60, 5)), y=CLASSES),
        )
        for field, value in (("flip", "on"), ("crop_padding", "2"))
    ),
    row(
        "equal-prototypes",
        f"{SMALL} --dataset equal.npz --embedding prototype",
        "the prototypes of 0 and 1 are the same example",
        fault=save_npz("equal.npz", x=np.zeros((60, 5)), y=CLASSES),
    ),
]

RUNS = [
    row("resume-absent", "train --resume absent", "absent", "not a run folder"),
    row("evaluate-absent", "evaluate absent", "absent", "not a run folder"),
    row(
        "evaluate-empty", "evaluate empty", "empty", "not a run folder", fault=make_folder("empty")
    ),
    *(
        row(f"no-run-{i}", f"{command} made", words, fault=HOLDS_A_LINK)
        for i, (command, words) in enumerate(
            (
                ("evaluate", "made: is not a run folder: it has no config.toml"),
                (f"{SMALL} --run", "made: already exists"),
                (f"{SMALL} --units block-1 --run", "made: already exists and is no run folder"),
            )
        )
    ),
    row(
        "joined-encoder",
        f"{SMALL} --units block-1 --run run",
        "another training: method.encoder is small in its config.toml, auto was asked for",
        fault=edit("run/config.toml", 'encoder = "auto"', 'encoder = "small"'),
    ),
    row(
        "another-architecture",
        "evaluate run",
        *("run/model.safetensors", "another architecture"),
        fault=rewrite("run/model.safetensors", tensors=lambda kept: kept.popitem()),
    ),
    row(
        "altered-config",
        "evaluate run",
        *("run/config.toml: method.dropout is 0.5", "the model was trained with 0."),
        fault=edit("run/config.toml", "dropout = 0.2", "dropout = 0.5"),
    ),
    row(
        "altered-model",
        "predict run x.npy",
        *("run/model.json: class_names was changed after training", "noprop assemble"),
        fault=edit("run/model.json", '"0"', '"nought"'),
    ),
    row(
        "altered-model-of-a-stranger",
        "plot run",
        *("run/model.safetensors: config: train.epochs", "greater than or equal to 1", "got -1"),
        fault=rewrite("run/model.safetensors", {"config": {"train": {"epochs": -1}}}),
    ),
    *(
        row(
            f"diverged-{method}",
            f"train digits-{method} {length} {DIVERGING}",
            *("not finite", "lr 1e+09", "Try a smaller train.lr"),
        )
        for method, length in (
            *(("ct", "--steps 2"), ("fm", "--steps 2"), ("adjoint", "--steps 2")),
            *(("dt", "--num-blocks 2"), ("backprop", "--num-blocks 2")),
        )
    ),
    row(
        "diverged-again",
        "train --resume made --quiet",
        *("the predictions of the trained model are not finite", "lr 1e+09"),
        fault=lambda folder: main(["train", "digits-ct", "--steps=2", *DIVERGING.split()]),
    ),
    row(
        "config-nested",
        "evaluate run",
        *("run/config.toml", "nested too deeply"),
        fault=write("run/config.toml", "x = " + "[" * 10_000),
    ),
    row(
        "config-long",
        "evaluate run",
        "run/config.toml: a configuration has at most 16384 bytes",
        fault=write("run/config.toml", "train" + ".a" * 100_000 + " = 1"),
    ),
    row(
        "config-digits",
        "evaluate run",
        *("run/config.toml: is not a TOML file", "digits"),
        fault=write("run/config.toml", "train.seed = 1" + "0" * 5000),
    ),
    row(
        "model-nested",
        "evaluate run",
        "run/model.json: is damaged (nested too deeply)",
        fault=write("run/model.json", NESTED),
    ),
    row(
        "model-large",
        "evaluate run",
        "run/model.json: is damaged (it has more than 32 MiB)",
        fault=lambda folder: os.truncate(folder / "run/model.json", 1 << 40),
    ),
    row(
        "model-a-list",
        "evaluate run",
        "run/model.json: is damaged (wanted an object, got list)",
        fault=write("run/model.json", "[1]"),
    ),
    row(
        "model-bytes", "plot run", "model.json: is damaged", fault=write("run/model.json", b"\xff")
    ),
    *(
        row(f"model-{i}", "evaluate run", "run/model.json: is damaged", fault=fault)
        for i, fault in enumerate(
            write("run/model.json", json.dumps({**DESCRIPTION, **changes}))
            for changes in (
                {"shape": "abc"},
                {"shape": [1, 8, 10**30]},
                {"shape": {}},
                {"class_names": 7},
                {"class_names": [1, 2]},
                {"class_names": [str(label) for label in range(50_000)]},
                {"dtype": ["uint8"]},
                {"normalization": [1]},
                {"normalization": {"mean": [0.5], "std": "1"}},
                {"normalization": {"mean": None, "std": [1.0]}},
                {"path_weights": "x"},
                {"path_weights": [[1], [2, 3]]},
                {"path_weights": {"a": 1}},
            )
        )
    ),
    *(
        row(f"commit-{field}-{i}", f"{command} run --quiet", *words, fault=fault)
        for field, values in {
            "position": ("5", -1, 1.5, True, [], 2**70),
            "total": ({}, "x", 0),
            "seconds": ("1", -1.0, float("inf"), []),
            "fingerprint": (7, ["x"]),
            "version": ("\x1b[31m", 1, "9" * 100),
            "files": (
                *(["block-1"], 3, {"block-1": "x"}, {"block-1": ["../x", "0" * 64]}),
                *(
                    {"../x": ["../x.3.safetensors", "0" * 64]},
                    {"block-1": ["block-1.3.safetensors"]},
                ),
                {"block-1": ["block-1.3.safetensors", "../x"]},
            ),
        }.items()
        for i, fault in enumerate(change(UNIT, {field: value}) for value in values)
        for command, words in (
            ("assemble", ("block-1 (damaged)",)) if i else ("train --resume", (UNIT, "damaged")),
        )
    ),
    *(
        row(f"commit-without-{field}", "assemble run", "block-1 (damaged)", fault=fault)
        for field in ("position", "total", "seconds", "files", "fingerprint", "version")
        for fault in (change(UNIT, {field: None}),)
    ),
    row(
        "commit-fingerprint",
        "assemble run",
        *(UNIT, "other settings"),
        fault=change(UNIT, {"fingerprint": "another"}),
    ),
    row(
        "commit-version",
        "assemble run",
        *(UNIT, "was written by noprop 0.9, this is", "finish the run with that version"),
        fault=change(UNIT, {"version": "0.9"}),
    ),
    row(
        "checkpoint-of-0.1",
        "train --resume run --quiet",
        *("checkpoint.safetensors: was written by noprop 0.1.0, this is", "finish the run with"),
        fault=(remove(UNIT), write("run/units/block-1/checkpoint.safetensors", b"of 0.1.0")),
    ),
    *(
        row(f"commit-{i}", "train --resume run --quiet", UNIT, fault=write(UNIT, content))
        for i, content in enumerate((NESTED, "[1, 2, 3]", "7", "null", "{", "{}"))
    ),
    *(
        row(
            f"header-{i}",
            "evaluate run",
            "model.safetensors",
            fault=rewrite("run/model.safetensors", header=header),
        )
        for i, header in enumerate((NESTED, "[1, 2, 3]", "[[], 5]", "7", "null", '["x", "y"]', "{"))
    ),
    *(
        row(
            f"grid-evaluation-{i}",
            f"grid digits-dt --seeds 0 --out run {' '.join(FAST)}",
            "digits-dt-seed-0: run/digits-dt-seed-0/evaluation.json: is damaged",
            fault=(in_a_grid, write("run/digits-dt-seed-0/evaluation.json", content)),
        )
        for i, content in enumerate(
            (
                *("", "[]", NESTED, "{}", '{"modes": 3}', '{"modes": {}, "default": "single"}'),
                '{"modes": {"single": {"accuracy": "99"}}, "default": "single"}',
                '{"modes": {"single": {}}, "default": "single"}',
                '{"modes": {"single": {"accuracy": 9.0}}, "default": []}',
            )
        )
    ),
    row(
        "names-a-stranger",
        "train --resume run --quiet",
        *("units/block-1", "block-7, which is no unit of this run"),
        fault=reworked(lambda files: files | {"block-7": files["block-1"]}),
    ),
    row(
        "another-optimizer",
        "train --resume run --quiet",
        *("units/block-1", "belongs to another architecture"),
        fault=reworked(lambda files: files | {"block-1": flattened(files["block-1"])}),
    ),
]

HOSTILE = "\x1b[31m"  # red
OWN = """
import sys
from torch import nn
class Exits(nn.Linear):
    calls = 0
    def __init__(self): super().__init__(64, 4)
    def forward(self, x):
        self.calls += 1
        return super().forward(x.flatten(1)) if self.calls == 1 else sys.exit(0)
def raises(): raise BaseException("\\x1b[31m")
def narrow(x): return nn.Flatten()
"""

TERMINAL = [
    row("control-in-recipe", ["train", HOSTILE], "unknown recipe"),
    row("control-in-command", [HOSTILE], r"unknown command \x1b[31m"),
    row("control-in-option", ["train", f"--lr{HOSTILE}", "1"], "unknown option --lr"),
    row("control-in-path", ["evaluate", f"{HOSTILE}\n"], r"\x1b[31m\n: is not a run folder"),
    row("bytes-in-path", ["evaluate", "r\udcff"], r"r\xff", "a name in UTF-8"),
    row("bytes-in-run", [*SMALL.split(), "--run", "r\udcff"], r"r\xff", "a name in UTF-8"),
    row(
        "bytes-in-dataset",
        [*SMALL.split(), "--dataset", "i\udcff"],
        *("data.dataset: input should be a valid string", r"i\udcff"),
        fault=images_by_class("i\udcff", ["a", "b"]),
    ),
    row(
        "control-in-toml",
        "train --config c.toml",
        r"unknown field \x1b[31m\n",
        fault=write("c.toml", '"\\u001b[31m\\n" = 1'),
    ),
    *(
        row(f"no-user-{name}", f"{command} ~nosuchuser/x", "~nosuchuser/x", "no such user")
        for name, command in {
            "run": "train --run",
            "file": "predict run",
            "resume": "train --resume",
            "config": "train --config",
            "data-dir": "data --data-dir",
            "dataset": "train --dataset",
            "evaluate": "evaluate",
            "out": "grid digits-dt --out",
        }.items()
    ),
    row("encoder-exits", "train --encoder sys:exit", "making the encoder failed: SystemExit"),
    row(
        "encoder-exits-later",
        f"{SMALL} --encoder own_exits:Exits --run kept",
        "the encoder fails on a batch of shape (1, 1, 8, 8): SystemExit: 0",
        fault=write("own_exits.py", OWN),
    ),
    row(
        "encoder-raises",
        "train --encoder own_raises:raises",
        r"making the encoder failed: BaseException: \x1b[31m",
        fault=write("own_raises.py", OWN),
    ),
    row(
        "encoder-takes-arguments",
        "train --encoder own_narrow:narrow",
        "making the encoder failed: TypeError: narrow() missing 1 required",
        fault=write("own_narrow.py", OWN),
    ),
    row(
        "encoder-exits-at-import",
        "evaluate run --encoder own_exit:f",
        "--encoder own_exit:f: importing own_exit failed: SystemExit: 3",
        fault=write("own_exit.py", "raise SystemExit(3)"),
    ),
    row("encoder-relative", "train --encoder .own:f", "--encoder .own:f", "relative import"),
    row("encoder-without-function", "train --encoder os:", "--encoder wants MODULE:FUNCTION"),
]


@pytest.mark.parametrize(("argv", "words", "faults", "env"), [*OPTIONS, *DATA, *RUNS, *TERMINAL])
def test_a_mistake_is_one_line(capfd, monkeypatch, tmp_path, trained_run, argv, words, faults, env):
    monkeypatch.chdir(tmp_path)
    for name in {argument.partition("/")[0] for argument in argv}:
        if re.fullmatch(r"run(-\w+)?", name):
            shutil.copytree(trained_run(f"digits-{name[4:] or 'dt'}"), tmp_path / name)
    for fault in faults:
        fault(tmp_path)
    text = line_of_error(capfd, *argv, env=env)
    for word in words:
        assert word in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seconds", ["20", "0"])
def test_only_a_checkpoint_that_exists_is_promised(capfd, monkeypatch, tmp_path, seconds):
    """Training diverges at once: with seldom checkpoints there is none, else the first is kept."""
    monkeypatch.chdir(tmp_path)
    command = f"train --num-blocks 2 --set train.checkpoint_every={seconds} {DIVERGING}"
    text = line_of_error(capfd, *command.replace("1e9", "1e30").split())
    assert "not finite by update" in text
    unit = text.split(": ")[2]
    kept = (tmp_path / "made" / "units" / unit / "commit.json").exists()
    assert ("its last good checkpoint is kept" in text) == kept == (seconds == "0")
