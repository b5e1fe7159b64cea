"""Starting from the weights of another run: exact, whatever becomes of that run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError, NoPropError, RunError
from noprop.model import open_run
from noprop.run.initial import INITIAL, digest_of
from noprop.run.worker import group_trainer
from noprop.task import RunData
from noprop.training import trainer
from noprop.training.events import Event, Initialized, Progress, print_nothing
from noprop.training.optimizers import optimizer_state
from tools import (
    IN_PROCESS,
    LEARNED,
    NOISE_DATA,
    NOISE_TASK,
    TWO_BLOCKS,
    Clock,
    Killed,
    assert_same,
)

SMALL = {**TWO_BLOCKS, "train.batch_size": 16, "train.seed": 7, "evaluation.budget": "off"}


def settings(**changes: Any) -> RunConfig:
    return replace(RunConfig(), {**SMALL, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    changes = {"train.seed": 1, **LEARNED, "method.dim": 12}
    noprop.train(settings(**changes), folder=folder, data=NOISE_DATA)
    return folder


def create(
    folder: Path, init: Path, changes: dict[str, Any] | None = None, data: RunData = NOISE_DATA
) -> noprop.Run:
    wanted = {**LEARNED, "method.dim": 12, **(changes or {})}
    return noprop.Run.create(settings(**wanted), folder=folder, data=data, init=init)


def start_of(run: noprop.Run) -> tuple[dict[str, Tensor], Any]:
    """Weights and the trainer of a run of coupled units before its first update."""
    group = group_trainer(run.job, "all", print_nothing)
    found = {"shared/weight": group.method.embedding.weight.detach()}
    for unit in group.units:
        found |= {f"{unit.name}/{n}": v for n, v in unit.module.state_dict().items()}
    return found, group


def test_units_that_fit_start_from_the_weights_and_others_from_the_seed(source, tmp_path):
    run = create(tmp_path / "run", source, {"method.num_blocks": 3})
    assert run.initialized == Initialized(
        str(source), ["block-1", "block-2", "readout"], ["block-3"]
    )
    plain = noprop.Run.create(
        settings(**LEARNED, **{"method.dim": 12, "method.num_blocks": 3}),
        folder=tmp_path / "plain",
        data=NOISE_DATA,
    )
    (found, group), (seeded, _) = start_of(run), start_of(plain)
    trained = noprop.load(source).method
    expected = {"shared/weight": trained.embedding.weight}
    for unit in trained.units:
        expected |= {f"{unit.name}/{n}": v for n, v in unit.module.state_dict().items()}
    for name, value in found.items():
        assert torch.equal(value, (expected if name in expected else seeded)[name]), name
    own = [name for name in found if name.startswith("block-1/")]
    assert any(not torch.equal(found[name], seeded[name]) for name in own)
    assert not any(optimizer_state(o) for o in group.state.optimizers)  # from nothing


def test_the_feedback_of_dfa_belongs_to_the_weights_that_learned_from_it(tmp_path):
    """Another seed would draw another one, to which the weights are not aligned."""
    changes = {"method.name": "dfa", "method.encoder": "mlp", "evaluation.budget": "off"}
    config = replace(RunConfig(), {**IN_PROCESS, **changes, "train.epochs": 1})
    source = noprop.train(config, folder=tmp_path / "source", data=NOISE_DATA)
    other = replace(config, {"train.seed": 7})
    run = noprop.Run.create(
        other, folder=tmp_path / "run", data=NOISE_DATA, init=tmp_path / "source"
    )
    assert run.initialized is not None
    assert run.initialized.fresh == []
    run.train()
    model = run.assemble()
    assert len(source.method.units) == 4
    for there, here in zip(source.method.units[:3], model.method.units, strict=False):
        feedback = (unit.module.get_buffer("feedback") for unit in (there, here))
        assert torch.equal(*feedback)


def test_a_run_that_was_killed_is_the_one_that_was_not_whatever_becomes_of_the_source(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "time", Clock())
    shutil.copytree(source, tmp_path / "source")
    whole = create(tmp_path / "whole", tmp_path / "source")
    whole.train()
    cut, seen = create(tmp_path / "cut", tmp_path / "source"), []

    def stop(event: Event) -> None:
        seen.extend([event] if isinstance(event, Progress) else [])
        if len(seen) == 3:
            raise Killed

    with pytest.raises(Killed):
        cut.train(emit=stop)
    shutil.rmtree(tmp_path / "source")
    noprop.Run.open(tmp_path / "cut", data=NOISE_DATA).train()
    assert_same(tmp_path / "whole", tmp_path / "cut")
    digest = digest_of((source / "model.safetensors").read_bytes())
    assert open_run(tmp_path / "cut").train.init == digest
    other = noprop.Run.create(
        settings(**LEARNED, **{"method.dim": 12}), folder=tmp_path / "other", data=NOISE_DATA
    )
    assert other.fingerprint != whole.fingerprint


def test_workers_are_sent_the_weights_too(source, tmp_path):
    """A worker reads the tensors of its job from a file; the message itself has none."""
    job = create(tmp_path / "run", source).job
    job.write_tensors(tmp_path / "tensors")
    small = job.without_tensors()
    assert not any(len(tensor) for tensor in small.tensors)
    received = small.read_tensors(tmp_path / "tensors")
    assert digest_of(received.initial.numpy().tobytes()) == received.config.train.init
    for sent, tensor in zip(job.tensors, received.tensors, strict=True):
        assert torch.equal(sent, tensor)


@pytest.mark.slow
def test_workers_change_no_bit(tmp_path):
    noprop.train(settings(**{"train.seed": 1}), folder=tmp_path / "source", data=NOISE_DATA)
    for workers in (1, 2):
        noprop.train(
            settings(**{"train.workers": workers}),
            folder=tmp_path / str(workers),
            data=NOISE_DATA,
            init=tmp_path / "source",
        )
    assert_same(tmp_path / "1", tmp_path / "2")


def test_mistakes_are_one_line_and_leave_no_folder(source, tmp_path):
    classes = dataclasses.replace(NOISE_TASK, class_names=tuple("abcdefghij"))
    others = dataclasses.replace(NOISE_DATA, task=classes)
    (tmp_path / "unfinished").mkdir()
    shutil.copy(source / "config.toml", tmp_path / "unfinished")
    cases: list[tuple[Path, dict[str, Any], type[NoPropError], str]] = [
        (tmp_path / "absent", {}, RunError, "absent: is not a run folder"),
        (tmp_path / "unfinished", {}, RunError, "has no model yet; finish it with"),
        (source, {"method.dim": 20}, ConfigError, "no unit of .* has the name and the shapes"),
    ]
    for init, changes, kind, words in cases:
        with pytest.raises(kind, match=words):
            create(tmp_path / "new", init, changes)
        assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"on the classes 0, 1, .*; these data have a, b"):
        create(tmp_path / "new", source, data=others)
    assert not (tmp_path / "new").exists()


def test_an_existing_run_keeps_the_weights_it_started_from(source, tmp_path):
    create(tmp_path / "run", source)
    wanted = settings(**LEARNED, **{"method.dim": 12})
    with pytest.raises(RunError, match=r"another training: train\.init is"):
        noprop.Run.join(wanted, tmp_path / "run", data=NOISE_DATA)
    again = noprop.Run.join(wanted, tmp_path / "run", data=NOISE_DATA, init=source)
    assert again.initialized is None
    copied = open_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="only with --init RUN"):
        noprop.Run.create(copied, folder=tmp_path / "copy", data=NOISE_DATA)
    content = bytearray((tmp_path / "run" / INITIAL).read_bytes())
    content[-1] ^= 1
    (tmp_path / "run" / INITIAL).write_bytes(content)
    with pytest.raises(RunError, match="is not the file that the run started from"):
        noprop.Run.open(tmp_path / "run", data=NOISE_DATA).train()


def test_the_command_says_what_it_takes(tmp_path, capsys):
    small = ["--encoder", "mlp", "--train-size", "100", "--epochs", "1", "--workers", "1"]
    first = ["train", "--num-blocks", "1", *small, "--evaluation", "off"]
    assert main([*first, "--run", str(tmp_path / "a")]) == 0
    again = ["train", "--num-blocks", "2", *small, "--evaluation", "off"]
    assert main([*again, "--run", str(tmp_path / "b"), "--init", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert (
        f"starting from the weights of {tmp_path / 'a'}: block-1, readout; from the seed: block-2"
        in said
    )
    assert main(["train", "--resume", str(tmp_path / "b"), "--init", str(tmp_path / "a")]) == 1
    assert "--init: is for a new run" in capsys.readouterr().err
