"""Every method as a run: trained, stopped, resumed, loaded, measured and drawn like NoProp-DT."""

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noprop
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.errors import ConfigError
from noprop.fingerprint import fingerprint
from noprop.methods.backprop import BackpropChain
from noprop.methods.ct import ContinuousNoProp
from noprop.model import open_run
from noprop.run.metrics import read_metrics
from noprop.run.units import groups_of
from noprop.task import load_data
from noprop.training import trainer
from noprop.training.events import Event, Progress
from tools import IN_PROCESS, Clock, Killed, assert_same, commit_of

METHODS: dict[str, dict[str, Any]] = {
    "dt": {"method.num_blocks": 2},
    "ct": {"method.steps": 12},
    "fm": {"method.steps": 12},
    "backprop": {"method.num_blocks": 2},
    "adjoint": {"method.steps": 4},
    "greedy": {"method.num_layers": 3},
    "dfa": {"method.num_layers": 3},
    "ff": {"method.width": 30},
    "dtp": {"method.num_layers": 3, "method.width": 30},
    "lg-fg-a": {"method.width": 32, "method.groups": 4},
}
STACKS = ("greedy", "dfa", "ff", "dtp", "lg-fg-a")
WIDE = STACKS[2:]  # those with fields of their own for the network
KINDS: dict[str, dict[str, Any]] = {
    "learned": {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 20},
    "one-hot": {},
}
STACK_CASES = [(method, "one-hot") for method in STACKS]
CASES = [(method, "learned") for method in METHODS if method not in STACKS]
CASES += STACK_CASES
CASES += [(method, "one-hot") for method in METHODS if method not in STACKS]
# How a run is read does not ask whether its embeddings were learned: those have all that fixed ones
# have, and W_Embed besides. One method with fixed ones says that a picture is missing there. Heads
# of the one list, so that a run is trained once for all tests.
READ = CASES[: len(METHODS)]
DRAWN = CASES[: len(METHODS) + 1]
SMALL = {
    **IN_PROCESS,
    "train.threads": 1,
    "train.shards": 1,
    "data.train_size": 300,  # nine mini-batches and a remainder
    "train.batch_size": 32,
    "train.epochs": 1,
    "evaluation.samples": 3,
    "evaluation.runs": 2,
}
BATCHES = 9
PATHLESS = {"single", "samples", "mean"}
NOISELESS = {method: {"single"} for method in STACKS} | {"greedy": {"single", "path-fitted"}}
MODES = PATHLESS | {"path", "path-fitted", "mean-path-fitted"}
COMMON = {
    "method", "parameters", "examples", "runs", "samples", "evaluations", "default", "modes",
    "times", "steps", "calibration_error", "part", "training",
}  # fmt: skip
OWN = {
    "dt": {"last_block_alone", "elbo", "path_weights"},
    "ct": {"last_block_alone", "elbo", "path_weights"},
    "fm": {"path_weights"},
    "backprop": set(),
    "adjoint": set(),
    "greedy": {"path_weights"},
    "dfa": set(),
    "ff": set(),
    "dtp": set(),
    "lg-fg-a": set(),
}
for method in STACKS:
    OWN[method] |= {"answers"}
# What each stack answers with; ff's goodness reads the label, so it takes a pass for each.
ANSWERS = {
    "greedy": ["head of layer 1", "head of layer 2", "head of layer 3, the last"],
    "dfa": ["output layer, one pass"],
    "ff": [
        "softmax readout of layers 2 to 3, one pass",
        "goodness of layers 2 to 3, one pass per label",
    ],
    "dtp": ["output layer, one pass"],
    "lg-fg-a": ["classifier of the last block, one pass"],
}
# What only a method with a chain from noise may say of itself.
OF_CHAINS = (
    "chain",
    "sampler",
    "NFE",
    "ensemble over steps",
    "latent",
    "embedding",
    "at t =",
    "z_t",
)


@dataclasses.dataclass
class Run:
    """A finished run, and what it answered when it was trained."""

    method: str
    kind: str
    config: RunConfig
    folder: Path
    events: list[Event]
    trained: noprop.Model

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "evaluation.json").read_text())


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def run(request, tmp_path_factory) -> Run:
    """Trained in this process by the public call, an epoch of 300 digits."""
    method, kind = request.param
    kinds = {} if method in STACKS else KINDS[kind]
    changes = {"method.name": method, **METHODS[method], **kinds, **SMALL}
    config = replace(RunConfig(), changes)
    folder, events = tmp_path_factory.mktemp(f"{method}-{kind}") / "run", []
    trained = noprop.train(config, folder=folder, emit=events.append)
    return Run(method, kind, trained.config, folder, events, trained)


def test_training_leaves_a_whole_run(run):
    """Its files, an event of each unit, and the updates of ``data.train_size`` examples."""
    assert open_run(run.folder) == run.config
    for name in ("readout_start", "gamma_noise"):
        assert getattr(run.config.method, name, "") != "auto"
    names = {f.name for f in run.folder.iterdir()}
    assert {"model.safetensors", "model.json", "evaluation.json", "metrics.jsonl"} <= names
    assert run.folder.joinpath("units").is_dir()
    epochs = [e for e in read_metrics(run.folder) if e["event"] == "epoch"]
    layers = ["layer-1", "layer-2", "layer-3"]
    units = {
        "dt": ["block-1", "block-2", "readout"], "greedy": layers, "dfa": [*layers, "output"],
        "ff": [*layers, "softmax"], "dtp": ["inverse-2", "inverse-3", *layers, "output"],
        "lg-fg-a": ["block-1", "classifier"],
    }.get(run.method, ["network"])  # fmt: skip
    assert [e["unit"] for e in epochs] == units
    for e in epochs:
        assert e["validation_loss"] > 0
        assert e["loss"] == pytest.approx(e["loss"])  # no NaN
        assert ("embedding" in e) == (run.kind == "learned")
        assert ("facts" in e) == (run.method in ("ct", "backprop"))
    # Of dt, two blocks, and the readout once for each.
    passes = {"dt": 2 + 2, "greedy": 3, "dfa": 4, "ff": 4, "dtp": 6, "lg-fg-a": 2}.get(
        run.method, 1
    )
    commits = [commit_of(run.folder, group) for group in groups_of(run.config)]
    assert sum(commit.total for commit in commits) == passes * BATCHES
    assert all(commit.is_last for commit in commits)


def test_a_stop_and_a_resumption_change_no_bit(run, monkeypatch, tmp_path):
    """Stopped inside the epoch and resumed: weights, optimizer state and answers are the same."""
    monkeypatch.setattr(trainer, "time", Clock())
    at, positions = {"greedy": 6}.get(run.method, 8 if run.method in STACKS else 4), []

    def stop(event):
        if isinstance(event, Progress):
            positions.append(event.position)
            if event.position == at:
                raise Killed  # of a stack, after the update that ends a mini-batch

    folder = tmp_path / "run"
    with pytest.raises(Killed):
        noprop.train(run.config, folder=folder, emit=stop)
    assert positions == list(range(1, at + 1))
    assert not (folder / "model.json").exists()
    resumed: list[Event] = []
    again = noprop.resume(folder, emit=resumed.append)
    first = next(e for e in resumed if isinstance(e, Progress))
    assert first.position == at + 1  # nothing is trained twice
    assert_same(run.folder, folder)
    same = "model.safetensors"
    assert (folder / same).read_bytes() == (run.folder / same).read_bytes()
    results = json.loads((folder / "evaluation.json").read_text())
    assert results | {"training": 0} == run.results | {"training": 0}
    assert again.config == run.config


def test_training_moved_every_part(run):
    """Nothing stands as it was built but fixed embeddings: the loop reaches what a method has."""
    untrained = noprop.build.build_method(
        run.config,
        run.trained.task,
        noprop.build.build_embedding(run.config, run.trained.task, None),
    )
    method = run.trained.method
    assert len(method.parameters()) == len(untrained.parameters())
    for before, after in zip(untrained.parameters(), method.parameters(), strict=True):
        assert not torch.equal(before, after)
    if untrained.facts():  # a schedule left out of the unit would stand still
        assert method.facts() != untrained.facts()
    fixed = torch.equal(untrained.embedding.weight, method.embedding.weight)
    assert fixed == (run.kind == "one-hot")


def test_how_a_method_is_read_is_free_after_training_and_what_it_is_is_not(run):
    """Steps and sampler of CT and FM change no weight: the same run answers with others."""
    free: dict[str, Any] = {"evaluation.runs": 1, "evaluation.samples": 2}
    wanted = 2
    if run.method == "ff":
        free |= {"method.inference": "softmax"}
        wanted = 1
    if run.method in ("ct", "fm"):
        free |= {"method.steps": 3, "method.sampler": "heun"}
        wanted = 6
    other = noprop.load(run.folder, overrides=free)
    results = other.evaluate()
    if run.method in ("ct", "fm", "ff"):
        assert results["evaluations"] == wanted
    if run.method == "ff":
        assert results["answers"] == ANSWERS["ff"][:1]
    if run.method in ("ct", "fm"):
        assert results["path_weights"] == pytest.approx([1 / 3] * 3)  # fitted ones are of others
    for new, old in zip(other.method.parameters(), run.trained.method.parameters(), strict=True):
        assert torch.equal(new, old)
    config = replace(run.config, free)
    data = load_data(config)
    assert fingerprint(config, data.train) == fingerprint(run.config, data.train)
    fixed = ["train.lr", "method.width" if run.method in WIDE else "method.dropout"]
    fixed += ["method.num_layers"] if run.method in STACKS[:4] else []
    fixed += [] if run.method in STACKS else ["method.embedding"]
    for name in fixed:
        with pytest.raises(ConfigError, match=rf"{name}: cannot change after training"):
            noprop.load(run.folder, overrides={name: 1})


@pytest.mark.parametrize("run", READ, indirect=True, ids="-".join)
def test_the_command_line_reads_a_run_otherwise(run, capsys):
    arguments = ["evaluate", str(run.folder), "--json", "--set", "evaluation.runs=1"]
    if run.method in ("ct", "fm"):
        arguments += ["--set", "method.steps=2", "--set", "method.sampler=euler"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["runs"] == 1
    if run.method in ("ct", "fm"):
        assert results["evaluations"] == 2
    assert main(["evaluate", str(run.folder), "--set", "train.lr=1"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("noprop: error: train.lr: cannot change after training")
    assert text.count("\n") == 1


@pytest.mark.parametrize("run", READ, indirect=True, ids="-".join)
def test_what_predict_answers_is_the_default_of_the_evaluation(run):
    """CT and FM answer with their mean chain, unless chains are asked for; DT with chains."""
    data = load_data(run.config)
    y = data.test.y
    p = run.trained.predict(data.test.x)
    found = 100 * p.argmax(1).eq(y).double().mean().item()
    mode = run.results["modes"][run.results["default"]]
    again = run.trained.predict(data.test.x, seed=7)
    if run.method in ("ct", "fm", *STACKS):
        assert found == pytest.approx(mode["accuracy"])
        assert torch.equal(p, again)
        assert torch.equal(p, run.trained.predict(data.test.x, noise=False))
    else:
        assert found == pytest.approx(mode["accuracy"], abs=5)
        assert not torch.equal(p, again)
    for wanted in ({"samples": 2}, {"average": "readout"}, {"noise": True}):
        one, other = (run.trained.predict(data.test.x, seed=s, **wanted) for s in (1, 2))
        assert torch.equal(one, other) == (run.method in STACKS)


def test_the_evaluation_has_what_the_method_has(run):
    """A baseline has no bound, no path and no control; flow matching has a path."""
    results = run.results
    assert results.keys() == COMMON | OWN[run.method]
    pathless = run.method in ("backprop", "adjoint")
    wanted = NOISELESS.get(run.method, PATHLESS if pathless else MODES)
    assert set(results["modes"]) == wanted
    default = {"dt": "path-fitted", "ct": "mean-path-fitted", "fm": "mean-path-fitted"}
    default |= dict.fromkeys(STACKS, "single") | {"greedy": "path-fitted"}
    assert results["default"] == default.get(run.method, "samples")
    assert results["method"] == run.method
    assert (results["examples"], results["part"]) == (359, "test")
    steps = run.config.method.chain_length
    passes = 11 if run.method == "ff" else 1  # one for each label, and the softmax's
    assert results["evaluations"] == (passes if run.method in STACKS else steps)
    assert len(results["times"]) == len(results["steps"]) == steps + 1
    discrete = run.method in ("dt", "backprop", *STACKS)
    assert results["times"][-1] == (steps if discrete else 1)
    for mode in results["modes"].values():
        assert 0 <= mode["accuracy"] <= 100
        assert mode["log_loss"] > 0
    still = [results["modes"][m] for m in results["modes"] if m.startswith("mean")]
    assert all(
        m["accuracy_se"] is None and m["log_loss_se"] is None for m in still
    )  # it draws nothing
    if "elbo" in results:
        terms = {k: v for k, v in results["elbo"].items() if k != "total"}
        assert set(terms) == {"classification", "prior", "denoising"}
        assert results["elbo"]["total"] == pytest.approx(sum(terms.values()))
        assert min(terms.values()) >= 0
    if run.method in STACKS:
        assert results["answers"] == ANSWERS[run.method]
    if "path_weights" in results:
        assert len(results["path_weights"]) == {"dt": 2, "greedy": 3}.get(run.method, 10)
        assert sum(results["path_weights"]) == pytest.approx(1, abs=1e-5)


def test_the_cost_of_training_is_told(run):
    """Seconds summed over the groups, one peak and its counter; progress is no part of a record."""
    cost = run.results["training"]
    times = {"seconds", "wall_seconds", "evaluation_seconds"}
    assert set(cost) == {*times, "workers", "peak_memory_mb", "memory_counter"}
    assert all(cost[name] > 0 for name in times)
    assert cost["workers"] >= 1
    trained = [e for e in read_metrics(run.folder) if e["event"] == "trained"]
    assert len(trained) == len(groups_of(run.config))
    assert cost["seconds"] == pytest.approx(sum(e["seconds"] for e in trained))
    assert cost["peak_memory_mb"] == max(e["peak_memory_mb"] for e in trained) > 50
    assert cost["memory_counter"] == "resident set of the process"
    units = [u for e in trained for u in e["units"]]
    assert units == [u.name for u in run.trained.method.units]


def test_a_loaded_run_answers_the_same_bits(run):
    """Weights, schedules, α_t and the fitted path weights are all in the files."""
    loaded = noprop.load(run.folder)
    x = load_data(run.config).test.x[:20]
    assert torch.equal(loaded.predict(x, seed=3), run.trained.predict(x, seed=3))
    again = loaded.evaluate()
    assert again == {k: v for k, v in run.results.items() if k != "training"}
    a, b = loaded.method, run.trained.method
    assert (a.path_weights is None) == (b.path_weights is None)
    assert a.facts() == b.facts()


@pytest.mark.parametrize("run", READ, indirect=True, ids="-".join)
def test_prediction_is_a_distribution_and_takes_its_options(run):
    """One chain, many, without noise; ``path`` only where there is one, refused in one line."""
    x = load_data(run.config).test.x[:6]
    default = run.trained.predict(x)
    for options in ({"samples": 1}, {"samples": 4}, {"noise": False}, {"average": "readout"}):
        p = run.trained.predict(x, **options)
        assert p.shape == (6, 10)
        torch.testing.assert_close(p.sum(1), torch.ones(6))
    one, other = (run.trained.predict(x, noise=True, seed=s) for s in (0, 1))
    assert torch.equal(one, other) == (run.method in STACKS)
    assert torch.equal(
        run.trained.predict(x, noise=False, seed=1), run.trained.predict(x, noise=False)
    )
    if run.trained.method.path_weights is None:
        assert torch.equal(run.trained.predict(x, average="readout"), default)
        with pytest.raises(
            noprop.errors.ConfigError, match="average must be 'readout', got 'path'"
        ):
            run.trained.predict(x, average="path")
    else:
        assert torch.equal(run.trained.predict(x, average="path"), default)
        assert not torch.equal(run.trained.predict(x, average="readout"), default)


@pytest.mark.parametrize("run", READ, indirect=True, ids="-".join)
def test_the_command_line_reads_it(run, capsys, tmp_path):
    """``evaluate`` repeats what ``train`` found, in words too; ``predict`` answers."""
    assert main(["evaluate", str(run.folder), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {k: v for k, v in run.results.items() if k != "training"}
    assert main(["evaluate", str(run.folder), "--part", "validation"]) == 0
    text = capsys.readouterr().out
    assert ("bound on -log p(y|x)" in text) == (run.method in ("dt", "ct"))
    assert ("last step alone on noise" in text) == (run.method in ("dt", "ct"))
    assert ("ensemble over steps" in text) == (run.method in ("dt", "ct", "fm"))
    assert ("ensemble of all answers" in text) == (run.method == "greedy")
    cost = "network function evaluations (NFE) of a chain"
    cost = "forward passes of a prediction" if run.method in STACKS else cost
    assert f"{cost}: {run.results['evaluations']:.4g}" in text
    _check_words(run, text)
    file = tmp_path / "two.npz"
    np.savez(file, x=np.zeros((2, 8, 8), np.uint8))
    assert main(["predict", str(run.folder), str(file), "--json", "--seed", "5"]) == 0
    for answer in json.loads(capsys.readouterr().out):
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    status = main(["predict", str(run.folder), str(file), "--average", "path"])
    out, error = capsys.readouterr()
    if run.trained.method.path_weights is None:
        assert (status, out) == (1, "")
        assert error == "noprop: error: average must be 'readout', got 'path'\n"
    else:
        assert (status, error) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("run", DRAWN, indirect=True, ids="-".join)
def test_plot_draws_what_the_run_has(run, capsys, tmp_path):
    """Every picture as PNG, all of them in one page, and nothing that could not be drawn."""
    plot = ["plot", str(run.folder), "--out", str(tmp_path), "--json"]
    animation = tmp_path / "chain.gif"
    if run.config.method.chain_length > 1:
        plot += ["--animate", "--example", "3"]
    else:
        assert main([*plot, "--animate"]) == 1
        assert f"got {run.method}, which answers once" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    assert main(plot) == 0
    out, error = capsys.readouterr()
    assert error == ""
    written = [Path(p) for p in json.loads(out)]
    if animation in written:
        written.remove(animation)
        assert animation.read_bytes().startswith(b"GIF89a")
    assert animation.exists() == (run.config.method.chain_length > 1)
    wanted = {"curves", "chain", "confusion", "reliability"}
    wanted |= set() if run.method in STACKS else {"embeddings"}
    wanted |= {"schedule"} if run.method in ("dt", "ct", "backprop") else set()
    wanted |= {"separation"} if run.kind == "learned" else set()
    assert {p.stem for p in written} - {"mistakes"} == wanted
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "cannot be drawn" not in html
    assert "There are no results" not in html
    # And the accuracy after each step of a chain; answers have a table.
    assert html.count("<svg") == len(written) + (run.method not in STACKS)
    words = re.sub(r"<(style|svg|pre)\b.*?</\1>|<[^>]*>", "", html, flags=re.DOTALL)
    _check_words(run, unescape(words))
    assert f"A run of {run.method} on digits" in html
    assert ("The bound on −log p(y|x)" in html) == (run.method in ("dt", "ct"))
    assert ("Last step alone on noise" in html) == (run.method in ("dt", "ct"))


def _check_words(run: Run, text: str) -> None:
    """Check that a method says of its predictions what is true of it: answers, or chains."""
    if run.method not in STACKS:
        assert "one chain (the paper's protocol)" in text
        return
    assert all(name in text for name in ANSWERS[run.method])
    assert [word for word in OF_CHAINS if word in text] == []


# -- what only some have -------------------------------------------------------------------------


def test_the_facts_of_the_last_epoch_are_those_of_the_model(run):
    """CT's schedule and the baseline's α_t are logged as they are after the epoch."""
    method = run.trained.method
    last = [e for e in read_metrics(run.folder) if e["event"] == "epoch"][-1]
    assert last.get("facts", {}) == method.facts()
    if isinstance(method, ContinuousNoProp):
        gamma = last["facts"]["gamma"]
        assert gamma == sorted(gamma, reverse=True)
    elif isinstance(method, BackpropChain):
        assert last["facts"]["mixing"] != [0.5, 0.5]


def test_a_part_of_the_training_set_leaves_the_others_whole(run):
    """``data.train_size``: so many, of every class alike; validation and test are as without it."""
    part, whole = load_data(run.config), load_data(replace(run.config, {"data.train_size": None}))
    assert len(part.train) == 300
    count = torch.bincount(part.train.y, minlength=10)
    assert count.max() - count.min() <= 2
    assert torch.equal(part.validation.x, whole.validation.x)
    assert torch.equal(part.test.x, whole.test.x)
