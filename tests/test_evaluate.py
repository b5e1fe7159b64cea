"""What is measured, how it is averaged, and that the test part chooses nothing."""

import math
from dataclasses import replace as with_part
from pathlib import Path
from typing import Any

import pytest
import torch

from known_blocks import Bayes, known
from noprop import api
from noprop import evaluate as evaluating
from noprop.averaging import calibration_error, wilson_interval
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.encoders import Features
from noprop.errors import ConfigError
from noprop.evaluate import Score, default_mode, evaluate, inputs, modes_of
from noprop.model import Model
from noprop.networks import DiscreteBlock
from noprop.randomness import generator
from noprop.schedules import cosine_gamma
from noprop.task import RunData, Task
from noprop.training import gradients
from tools import IN_PROCESS

SMALL: dict[str, Any] = {
    **IN_PROCESS,
    "method.encoder": "mlp",
    "train.epochs": 1,
    "train.batch_size": 16,
    "evaluation.samples": 2,
    "evaluation.runs": 2,
    "evaluation.batch_size": 20,  # 48 examples: chunks of two sizes
}


def noise(n: int, seed: int) -> Examples:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 1, 8, 8), generator=g, dtype=torch.uint8)
    return Examples(x, torch.arange(n) % 4)


TRAIN, VALIDATION, TEST = noise(64, 0), noise(48, 1), noise(48, 2)
TASK = Task((1, 8, 8), tuple("abcd"), Normalization.of(TRAIN.x))
DATA = RunData(TASK, TRAIN, VALIDATION, TEST)


def trained(folder: Path, data: RunData = DATA, /, **changes: Any) -> Model:
    two = {"method.num_blocks": 2}
    return api.train(replace(RunConfig(), SMALL | two | changes), folder=folder, data=data)


def rows(*parts: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for part in parts for row in part.flatten(1)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return trained(tmp_path_factory.mktemp("runs") / "dt")


# -- the test part chooses nothing -----------------------------------------------------------------


def test_the_labels_of_the_test_part_leave_the_model_as_it_is(tmp_path, model):
    """Permuted, they change what is measured and no byte of the model; those of the validation part
    do choose the path weights.
    """
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    other = trained(tmp_path / "test", with_part(DATA, test=Examples(TEST.x, TEST.y[order])))
    for name in ("model.json", "model.safetensors"):
        assert (other.folder / name).read_bytes() == (model.folder / name).read_bytes()
    results = [(m.folder / "evaluation.json").read_text() for m in (model, other)]
    assert results[0] != results[1]
    labels = Examples(VALIDATION.x, VALIDATION.y[order])
    chosen = trained(tmp_path / "validation", with_part(DATA, validation=labels))
    assert (chosen.folder / "model.json").read_bytes() != (model.folder / "model.json").read_bytes()


def test_a_model_that_is_saved_in_another_folder_is_the_same_model(model, tmp_path):
    """All that predicts is in three files, and none of them names the run."""
    model.save(tmp_path / "new" / "copy")
    copy = api.load(tmp_path / "new" / "copy")
    assert sorted(file.name for file in copy.folder.iterdir()) == [
        "config.toml",
        "model.json",
        "model.safetensors",
    ]
    assert torch.equal(copy.predict(TEST.x), model.predict(TEST.x))
    model.save(str(tmp_path / "text"))
    assert (tmp_path / "text" / "model.json").read_bytes() == (
        tmp_path / "new" / "copy" / "model.json"
    ).read_bytes()


def test_only_training_batches_are_augmented(tmp_path, monkeypatch):
    """Whatever reads validation and test images reads them as they are."""
    given: list[torch.Tensor] = []
    read: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    augment, context = gradients.augment, DiscreteBlock.context

    def watched_augment(x, generator, **settings):
        given.append(x)
        return augment(x, generator, **settings)

    def watched_context(self, x, generator=None):
        read[self.training].append(x)
        return context(self, x, generator)

    monkeypatch.setattr(gradients, "augment", watched_augment)
    monkeypatch.setattr(DiscreteBlock, "context", watched_context)
    trained(tmp_path / "r", **{"train.flip": True, "train.crop_padding": 2})
    assert rows(*given) == rows(TRAIN.x)
    whole = [TASK.normalization.apply(part.x) for part in (TRAIN, VALIDATION, TEST)]
    counted = rows(torch.zeros(1, 1, 8, 8))  # whose cost sizes the evaluation
    assert rows(*read[False]) - counted == rows(*whole[1:])
    assert rows(*read[True]) - rows(*whole)


# -- averages and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_by_brute_force(bins):
    """Each example in the bin that its confidence falls in; a bin by its examples, one by one."""
    g = torch.Generator().manual_seed(0)
    p = torch.randn(300, 3, generator=g).mul(3).softmax(dim=1)
    p[0] = torch.tensor([1.0, 0.0, 0.0])  # the last bin is closed
    y = torch.randint(3, (300,), generator=g)
    confidence, label = p.max(dim=1)
    y = torch.where(confidence < 0.6, label, y)  # or every bin would be off the same way
    total = 0.0
    for b in range(bins):
        inside = []
        for probabilities, label in zip(p.tolist(), y.tolist(), strict=True):
            top = max(probabilities)
            if b / bins <= top < (b + 1) / bins or (b == bins - 1 and top == 1):
                inside.append((probabilities.index(top) == label, top))
        if inside:
            accuracy, mean_top = (sum(v) / len(inside) for v in zip(*inside, strict=True))
            total += len(inside) / 300 * abs(accuracy - mean_top)
    assert calibration_error(p, y, bins) == pytest.approx(total, abs=1e-6)
    assert total > 0.05


def test_standard_errors_by_hand():
    """Of 90, 92 and 94: a deviation of 2 with two degrees of freedom, so 2/√3. Of one run: none."""
    summary = Score([90.0, 92.0, 94.0], [0.5, 0.5, 0.2]).summary(100)
    assert summary["accuracy"] == pytest.approx(92)
    assert summary["accuracy_se"] == pytest.approx(2 / math.sqrt(3))
    assert summary["log_loss"] == pytest.approx(0.4)
    assert summary["log_loss_se"] == pytest.approx(0.1)
    assert Score([90.0], [0.5]).summary(100)["accuracy_se"] is None


@pytest.mark.parametrize(("right", "examples"), [(0, 5), (5, 5), (359, 359), (70, 100)])
def test_the_interval_over_examples_is_that_of_the_score_test(right, examples):
    """Wilson: the shares p for which the observed one lies 1.96 deviations √(p(1-p)/n) from p."""
    share = right / examples
    low, high = wilson_interval(share, examples)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0.009
    for p in (low, high):
        if 0 < p < 1:
            z = abs(share - p) / math.sqrt(p * (1 - p) / examples)
            assert z == pytest.approx(1.96)
    summary = Score([100 * share], [0.5]).summary(examples)
    assert summary["accuracy_interval"] == pytest.approx([100 * low, 100 * high])


def test_the_class_of_a_label_that_is_ruled_out_costs_28_nats(model, monkeypatch):
    """Probabilities of exactly 0 are taken for 1e-12; half of the labels are certain here."""
    predict = model.method.predict

    def sure(x, generator, **options):
        p = predict(x, generator, **options)
        certain = torch.zeros_like(p.ends).index_fill(2, torch.tensor(0), 1.0)
        return with_part(p, ends=certain)

    monkeypatch.setattr(model.method, "predict", sure)
    labels = Examples(TEST.x, torch.arange(48) % 2)
    found = evaluate(model, labels)["modes"]["single"]
    assert found["log_loss"] == pytest.approx(-math.log(1e-12) / 2, rel=1e-5)


def test_what_is_told_of_runs_is_their_mean(model, monkeypatch):
    """Three runs: the calibration error, and the control's accuracy, of each from its own draws."""
    errors, guesses = iter([0.1, 0.2, 0.6]), iter([0, 1, 1] * 3)
    monkeypatch.setattr(evaluating, "calibration_error", lambda p, y: next(errors))
    method = model.method
    monkeypatch.setattr(
        method, "control", lambda g, prepared: torch.full((len(prepared[0]),), next(guesses))
    )
    three = with_part(model, config=replace(model.config, {"evaluation.runs": 3}))
    results = evaluate(three, Examples(TEST.x, torch.ones(48, dtype=torch.int64)))
    assert results["calibration_error"] == pytest.approx(0.3)
    assert results["last_block_alone"]["accuracy"] == pytest.approx(200 / 3)
    assert results["last_block_alone"]["accuracy_se"] == pytest.approx(100 / 3)


def test_every_example_counts_once_whatever_the_chunk(model):
    """The mean chain draws nothing: its scores are those of all 48 examples read at once."""
    results = evaluate(model, TEST)
    x = inputs(model, TEST.x)
    still = model.method.predict(x, torch.Generator(), noise=False).probabilities
    right = still.argmax(dim=1).eq(TEST.y).double().mean().item()
    loss = -still[torch.arange(48), TEST.y].log().mean().item()
    assert results["modes"]["mean"]["accuracy"] == pytest.approx(100 * right)
    assert results["modes"]["mean"]["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert results["modes"]["mean"]["accuracy_se"] is None


@pytest.mark.parametrize("method", ["dt", "ct", "backprop"])
def test_images_are_read_once_for_all_runs_and_the_bound(tmp_path, monkeypatch, method):
    """Three chunks of 48 images, each read once; what is at hand gives the same bound, bit for bit.

    A block of DT has an image path of its own, so that two blocks read each chunk twice.
    """
    length = {"method.steps": 4} if method == "ct" else {"method.num_blocks": 2}
    config = replace(RunConfig(), SMALL | {"method.name": method, **length})
    made = api.train(config, folder=tmp_path / "r", data=DATA)
    reads = []
    forward = Features.forward
    monkeypatch.setattr(
        Features, "forward", lambda self, x, g=None: reads.append(len(x)) or forward(self, x, g)
    )
    evaluate(made, TEST)
    paths = 1 if method == "ct" else 2
    assert sorted(reads) == sorted([20, 20, 8] * paths)
    x = inputs(made, TEST.x)
    a, b = (
        made.method.bound(x, TEST.y, torch.Generator().manual_seed(0), prepared=prepared)
        for prepared in (None, made.method.prepare(x))
    )
    assert a == b


def test_a_number_of_samples_is_never_replaced(model):
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        model.predict(TEST.x, samples=0)
    one = model.predict(TEST.x, samples=1, average="readout")
    assert not torch.equal(one, model.predict(TEST.x, average="readout"))


def test_a_method_without_a_path_has_three_modes(tmp_path, model):
    assert set(modes_of(model)) == set(evaluate(model, TEST)["modes"])
    assert default_mode(model) == "path-fitted"
    chain = trained(tmp_path / "r", **{"method.name": "backprop"})
    results = evaluate(chain, TEST)
    assert tuple(results["modes"]) == modes_of(chain) == ("single", "samples", "mean")
    assert results["default"] == default_mode(chain) == "samples"
    assert not {"path_weights", "elbo", "last_block_alone"} & results.keys()
    with pytest.raises(ConfigError, match="average must be 'readout'"):
        chain.predict(TEST.x, average="path")


# -- against what a chain of Bayes' rule answers -------------------------------------------------

TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])  # p(y|x) of three x
EACH, RUNS = 400, 20


def exact(**changes: Any) -> tuple[Model, Examples]:
    """The model whose 60 blocks are Bayes' rule, and 1200 labels that occur as often as p(y|x)."""
    blocks = 60
    gamma = cosine_gamma(blocks)
    method = known([Bayes(gamma[t], torch.eye(3)) for t in range(blocks)], torch.eye(3))
    config = replace(
        RunConfig(),
        {"train.device": "cpu", "evaluation.runs": RUNS, "evaluation.samples": 2,
         "evaluation.batch_size": 500, **changes},
    )  # fmt: skip
    task = Task((3,), tuple("abc"), Normalization((0.0,) * 3, (1.0,) * 3), "float32")
    labels = [torch.arange(3).repeat_interleave((row * EACH).round().long()) for row in TABLE]
    examples = Examples(TABLE.log().repeat_interleave(EACH, 0), torch.cat(labels))
    return Model(config, task, method, torch.device("cpu"), False), examples


def test_runs_of_inference_are_independent_samples_of_the_posterior():
    """A run answers y with p(y|x): right in mean p², 57.2 %, not the mode's 70 %.

    So a run's accuracy has the variance mean of p_y (1 - p_y) over n = 1200, and 19 times the
    variance found over that is χ² with 19 degrees of freedom: outside [3.2, 59] with probability
    2e-5. Runs that draw alike give 0. The mean of 20 runs is within 5 standard errors and a bias of
    1 point, for 60 blocks are not infinitely many: a fresh seed fails with probability < 1e-6.
    """
    results = evaluate(*exact())
    found = results["modes"]
    p = TABLE.double()
    right = 100 * p.square().sum(1).mean().item()
    error = 100 * math.sqrt((p * p * (1 - p)).sum(1).mean().item() / (3 * EACH))
    single = found["single"]
    assert abs(single["accuracy"] - right) < 5 * error / math.sqrt(RUNS) + 1
    assert 3.2 < (RUNS - 1) * (single["accuracy_se"] * math.sqrt(RUNS) / error) ** 2 < 59
    mode = 100 * p.max(1).values.mean().item()
    assert found["mean"]["accuracy"] == pytest.approx(mode)
    assert found["mean"]["accuracy_se"] is None
    # The readout starts as the nearest embedding, and both are means over the same runs.
    assert found["single"]["accuracy"] == pytest.approx(results["steps"][-1])


def test_no_two_chains_of_an_evaluation_share_their_noise(monkeypatch):
    """Twice 400 equal images in chunks of their own: other noise in each chunk of each run."""
    model, examples = exact(**{"evaluation.runs": 3, "evaluation.batch_size": 400})
    begun: list[torch.Tensor] = []
    predict = model.method.predict

    def watched(x, generator, **options):
        p = predict(x, generator, **options)
        begun.append(p.latents[0])
        return p

    monkeypatch.setattr(model.method, "predict", watched)
    evaluate(model, examples)
    noisy = [z for z in begun if z.any()]
    assert len(noisy) == 3 * 3
    assert len(rows(*noisy)) == 3 * 3 * 400
    begun.clear()
    model.predict(examples.x)
    assert len(rows(*begun)) == 3 * 400


def test_the_scores_are_those_of_the_predictions_that_they_name(model):
    """One run, one chunk: each mode and the calibration of the default, from the same noise.

    The path weights are far from uniform, or a mode could pass for another.
    """
    method, config = model.method, model.config
    weights = torch.tensor([0.9, 0.1])
    one = replace(config, {"evaluation.runs": 1, "evaluation.batch_size": 48})
    made = with_part(model, config=one)
    fitted, method.path_weights = method.path_weights, weights
    try:
        results = evaluate(made, TEST)
    finally:
        method.path_weights = fitted
    x, draws = inputs(made, TEST.x), generator(0, "inference", 0, "batch-0")
    p = method.predict(x, draws, samples=2)
    still = method.predict(x, draws, noise=False)
    wanted = {
        "single": p.single,
        "samples": p.probabilities,
        "path": (p.path[0] + p.path[1]) / 2,
        "path-fitted": 0.9 * p.path[0] + 0.1 * p.path[1],
        "mean": still.probabilities,
        "mean-path-fitted": 0.9 * still.path[0] + 0.1 * still.path[1],
    }
    losses = {}
    for mode, probabilities in wanted.items():
        right = [float(row.argmax() == y) for row, y in zip(probabilities, TEST.y, strict=True)]
        losses[mode] = -sum(
            math.log(row[y]) for row, y in zip(probabilities, TEST.y, strict=True)
        ) / len(TEST)
        found = results["modes"][mode]
        assert found["accuracy"] == pytest.approx(100 * sum(right) / 48), mode
        assert found["log_loss"] == pytest.approx(losses[mode], abs=1e-5), mode
    assert len({round(loss, 4) for loss in losses.values()}) == len(losses)
    of_default = calibration_error(wanted["path-fitted"], TEST.y)
    assert results["calibration_error"] == pytest.approx(of_default, abs=1e-6)
    assert of_default != pytest.approx(calibration_error(p.single, TEST.y), abs=1e-3)


def test_the_bound_of_chunks_is_the_mean_over_examples(monkeypatch):
    """Chunks of 500, 500 and 200: here the bound of each is the mean of its labels."""
    model, examples = exact(**{"evaluation.runs": 2})
    monkeypatch.setattr(
        model.method, "bound", lambda x, y, g, prepared: {"prior": y.double().mean().item()}
    )
    found = evaluate(model, examples)["elbo"]
    assert found["total"] == pytest.approx(examples.y.double().mean().item())
