"""Every mistake is one clear line: a table of commands and faults.

A row has an id, a command line, and words of the message; ``fault=`` makes what is wrong. The
command runs in an empty folder, where ``run`` is a copy of a small trained run if the command line
names it. Add a row to the part it belongs to.
"""

import re
import shutil

import numpy as np
import pytest

from mistakes import (
    FAST,
    edit,
    line_of_error,
    make_folder,
    row,
    save_npz,
    write,
)

SMALL = " ".join(["train", *FAST])  # a training that ends at once
CLASSES = np.arange(60) % 3

OPTIONS = [
    row("recipe", "train digit-dt", "unknown recipe", "did you mean digits-dt?"),
    row("recipe-is-a-file", "train mine.toml", "unknown recipe", "mean --config mine.toml?"),
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
    row("command", "trian", "unknown command trian; did you mean train?"),
    row("command-far", "xyz", "unknown command xyz; known are train, describe, grid, assemble"),
    row("fm-eta", "train digits-fm --eta 3", "method.eta", "no field of method fm", "dt, ct"),
    row(
        "adjoint-blocks",
        "train digits-adjoint --set method.num_blocks=3",
        *("method.num_blocks", "no field of method adjoint", "belongs to dt, backprop"),
    ),
    row("dt-path", "describe --path-sigma 0.1", "path_sigma", "method dt", "belongs to fm"),
    row("method", "train --method dp", "method.name", "one of dt, ct, fm, backprop", "got 'dp'"),
    row("ct-sampler", "train digits-ct --sampler dopri5", "method.sampler", "got 'dopri5'"),
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
    row("resume-absent", "train --resume absent", "absent", "no run folder"),
    row("evaluate-absent", "evaluate absent", "absent", "no run folder"),
    row("evaluate-empty", "evaluate empty", "empty", "no run", fault=make_folder("empty")),
    row(
        "another-architecture",
        "evaluate run",
        *("model.safetensors", "another architecture"),
        fault=edit("run/config.toml", 'encoder = "auto"', 'encoder = "mlp"'),
    ),
]

TERMINAL = []


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
