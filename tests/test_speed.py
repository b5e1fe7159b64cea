"""What makes training and prediction fast changes no result."""

import time

import pytest
import torch
import torch.nn.functional as F

import noprop
from noprop.evaluate import evaluate
from noprop.layers import ReLUDropout, keep_mask
from noprop.training.events import Epoch
from tools import IN_PROCESS

CPU = torch.device("cpu")


def digits(folder, recipe="digits-dt", /, **changes):
    """A very short run; the losses it reported, and the model."""
    events = []
    overrides = {
        **IN_PROCESS, "train.epochs": 2, "data.train_size": 400, "evaluation.runs": 2,
        "evaluation.batch_size": 100, **changes,
    }  # fmt: skip
    model = noprop.train(recipe, folder=folder, overrides=overrides, emit=events.append)
    return [e.loss for e in events if isinstance(e, Epoch)], model


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
    beside, p = evaluate(model, examples), model.predict(examples.x)
    torch.set_num_threads(1)
    assert evaluate(model, examples) == beside
    assert torch.equal(model.predict(examples.x), p)


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
