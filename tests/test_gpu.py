"""On a GPU: every method predicts what it does on the CPU, learns, and has the memory of one block.

Generators of a GPU draw other numbers, and its kernels add in other orders. So predictions without
noise agree to the digits of float32, and trainings are compared by what they reach.
"""

from typing import Any

import pytest
import torch

import noprop
from noprop.recipes import BEST
from noprop.run.metrics import training_cost
from tools import IN_PROCESS

METHODS = ("dt", "ct", "fm", "backprop", "adjoint", "greedy", "dfa", "ff", "dtp", "lg-fg-a")
SHORT = {"train.epochs": 1, "evaluation.budget": "off", "data.train_size": 300}
pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA")
    return "cuda"


def trained(folder, recipe: str, device: str, **changes: Any) -> noprop.Model:
    fields = IN_PROCESS | SHORT | {"train.device": device} | changes
    return noprop.train(recipe, folder=folder / "run", overrides=fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_the_cpu_predicts_the_same_on_the_gpu(method, gpu, tmp_path):
    model = trained(tmp_path, f"digits-{method}", "cpu")
    x = model.examples("test").x[:50]
    there = noprop.load(tmp_path / "run", device=gpu)
    options: dict[str, Any] = {}
    if method in ("dt", "ct", "fm", "backprop", "adjoint"):
        options["noise"] = False
    found = there.predict(x, **options).cpu()
    torch.testing.assert_close(found, model.predict(x, **options), atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_trained_on_the_gpu(method, gpu, tmp_path):
    """In bf16 where the GPU has it, as ``auto`` chooses; to more than 90 % of the digits."""
    changes = dict(BEST["ct"]) if method == "ct" else {}
    epochs = {"dt": 5, "ct": 20, "backprop": 5, "adjoint": 10}.get(method, 15)
    changes |= {"train.epochs": epochs, "data.train_size": None, "train.precision": "auto"}
    model = trained(tmp_path, f"digits-{method}", gpu, **changes, **{"evaluation.budget": "full"})
    assert model.device.type == "cuda"
    results = model.results
    assert results is not None
    assert results["modes"][results["default"]]["accuracy"] > 90


def test_a_block_needs_the_memory_of_one(gpu, tmp_path):
    """By the counter of the GPU, T = 16 blocks need hardly more than 4; back-propagation does."""
    peaks: dict[str, list[float]] = {"dt": [], "backprop": []}
    for method, found in peaks.items():
        for blocks in (4, 16):
            place = tmp_path / f"{method}-{blocks}"
            place.mkdir()
            trained(place, f"digits-{method}", gpu, **{"method.num_blocks": blocks})
            found.append(training_cost(place / "run")["peak_memory_mb"])
    assert peaks["dt"][1] < 1.3 * peaks["dt"][0]
    assert peaks["backprop"][1] > 2 * peaks["backprop"][0]
