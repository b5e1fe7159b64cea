"""What is measured, how it is averaged, and that the test part chooses nothing."""

import math
from dataclasses import replace as with_part
from pathlib import Path
from typing import Any

import pytest
import torch

from noprop import api
from noprop.averaging import calibration_error
from noprop.build import RunData, Task
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.encoders import Features
from noprop.errors import ConfigError
from noprop.networks import DiscreteBlock
from noprop.training import gradients
from noprop.training.evaluate import Score, default_mode, evaluate, inputs, modes_of

SMALL: dict[str, Any] = {
    "method.encoder": "mlp",
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.workers": 1,
    "train.device": "cpu",
    "train.precision": "float32",
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


def trained(folder: Path, data: RunData = DATA, /, **changes: Any) -> api.TrainedModel:
    two = {"method.num_blocks": 2}
    return api.train(replace(RunConfig(), SMALL | two | changes), folder=folder, data=data)


def rows(*parts: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for part in parts for row in part.flatten(1)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> api.TrainedModel:
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
    assert rows(*read[False]) == rows(*whole[1:])
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
    summary = Score([90.0, 92.0, 94.0], [0.5, 0.5, 0.2]).summary()
    assert summary["accuracy"] == pytest.approx(92)
    assert summary["accuracy_se"] == pytest.approx(2 / math.sqrt(3))
    assert summary["log_loss"] == pytest.approx(0.4)
    assert summary["log_loss_se"] == pytest.approx(0.1)
    assert Score([90.0], [0.5]).summary()["accuracy_se"] == 0


def test_every_example_counts_once_whatever_the_chunk(model):
    """The mean chain draws nothing: its scores are those of all 48 examples read at once."""
    results = evaluate(model.model, TEST)
    x = inputs(model.model, TEST.x)
    still = model.model.method.predict(x, torch.Generator(), noise=False).probabilities
    right = still.argmax(dim=1).eq(TEST.y).double().mean().item()
    loss = -still[torch.arange(48), TEST.y].log().mean().item()
    assert results["modes"]["mean"]["accuracy"] == pytest.approx(100 * right)
    assert results["modes"]["mean"]["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert results["modes"]["mean"]["accuracy_se"] == 0


@pytest.mark.parametrize("method", ["dt", "ct", "backprop"])
def test_images_are_read_once_for_all_runs_and_the_bound(tmp_path, monkeypatch, method):
    """Three chunks of 48 images, each read once; what is at hand gives the same bound, bit for bit.

    A block of DT has an image path of its own, so that two blocks read each chunk twice.
    """
    length = {"method.steps": 4} if method == "ct" else {"method.num_blocks": 2}
    config = replace(RunConfig(), SMALL | {"method.name": method, **length})
    made = api.train(config, folder=tmp_path / "r", data=DATA).model
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
    assert set(modes_of(model.model)) == set(evaluate(model.model, TEST)["modes"])
    assert default_mode(model.model) == "path-fitted"
    chain = trained(tmp_path / "r", **{"method.name": "backprop"})
    results = evaluate(chain.model, TEST)
    assert tuple(results["modes"]) == modes_of(chain.model) == ("single", "samples", "mean")
    assert results["default"] == default_mode(chain.model) == "samples"
    assert not {"path_weights", "elbo", "last_block_alone"} & results.keys()
    with pytest.raises(ConfigError, match="average must be 'readout'"):
        chain.predict(TEST.x, average="path")
