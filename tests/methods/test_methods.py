"""What every method of the package must keep to: the contract, tried on all of them alike."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tools
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.methods.base import LossTerms, Method, Unit
from noprop.methods.chains import MOST_CLASSES_ACROSS, class_probabilities
from noprop.methods.lg_fg_a import Product
from noprop.task import Task
from tools import rng

LEARNED = {**tools.LEARNED, "method.dim": 6}
PROTOTYPE = {"method.embedding": "prototype", "method.learned": True}
SMALL: dict[str, dict[str, Any]] = {
    "dt": {"method.num_blocks": 3},
    "ct": {"method.steps": 5},
    "fm": {"method.steps": 5},
    "backprop": {"method.num_blocks": 3},
    "adjoint": {"method.steps": 5},
    "greedy": {"method.num_layers": 3},
    "dfa": {"method.num_layers": 3},
    "ff": {"method.width": 30},
    "dtp": {"method.num_layers": 3, "method.width": 12},
    "lg-fg-a": {"method.num_blocks": 2, "method.side": 2, "method.width": 32, "method.groups": 4},
}
STACKS = ("greedy", "dfa", "ff", "dtp", "lg-fg-a")
CHAINS = [name for name in SMALL if name not in STACKS]
KINDS: dict[str, dict[str, Any]] = {"one-hot": {}, "learned": LEARNED, "prototype": PROTOTYPE}
CASES = [(method, kind) for method in CHAINS for kind in KINDS]
CASES += [(method, "one-hot") for method in STACKS]
EXACT = {"method.evidence": "exact"}
KINDS |= {"exact": EXACT, "exact-learned": EXACT | LEARNED}
KINDS |= {"x-alone": EXACT | {"method.network_reads": "x"}}
KINDS |= {"hybrids": {"method.negatives": "hybrids", "method.inference": "softmax"}}
CASES += [(method, kind) for method in ("dt", "ct", "fm") for kind in list(KINDS)[3:6]]
CASES += [("ff", "hybrids")]


def make(name: str, kind: str = "one-hot", **changes: Any) -> tuple[Method, Tensor, Tensor]:
    """The library's own method on 8×8 images, with a batch."""
    config = replace(RunConfig(), {"method.name": name, **SMALL[name], **KINDS[kind], **changes})
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert [unit.name for unit in method.units] == config.method.unit_names
    return method, torch.empty(24, 1, 8, 8).normal_(generator=rng()), torch.arange(24) % 10


def loss_of(method: Method, unit: Unit, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """The loss of a unit, of a stack on a forward pass of its own."""
    return terms_of(method, unit, x, y, seed).total


def terms_of(method: Method, unit: Unit, x: Tensor, y: Tensor, seed: int = 0) -> LossTerms:
    return unit.loss(method.signals(x, y, rng(seed), unit.phase), y, rng(seed))


def quiet(method: Method) -> None:
    for unit in method.units:
        unit.module.eval()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_loss_reaches_its_own_unit_and_what_is_shared(name, kind):
    """Locality, and that nothing is left out: every parameter is trained by some unit's loss."""
    method, x, y = make(name, kind)
    for unit in method.units:
        for p in method.parameters():
            p.grad = None
        loss_of(method, unit, x, y).backward()
        reached = {id(p) for p in method.parameters() if p.grad is not None}
        assert reached == {id(p) for p in (*unit.parameters, *method.shared_parameters)}
    weight = method.embedding.weight
    assert list(method.shared_parameters) == ([weight] if method.embedding.learned else [])


def test_the_backward_pass_of_the_baseline_reaches_every_block_and_noprop_s_never_does():
    """Of w_t and the blocks' weights, gradients that are not 0: the contrast of Fig. 2."""
    baseline, x, y = make("backprop")
    (unit,) = baseline.units
    unit.loss(x, y, rng()).total.backward()
    w = unit.module.get_parameter("w").grad
    assert w is not None
    assert (w != 0).all()
    blocks = unit.module.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        assert all(p.grad is not None for p in block.parameters())
    noprop, x, y = make("dt")
    noprop.units[1].loss(x, y, rng()).total.backward()
    touched = [any(p.grad is not None for p in u.parameters) for u in noprop.units]
    assert touched == [False, True, False, False]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("noise", [True, False])
def test_prediction_never_sees_a_label(name, noise):
    """Random labels on noise images score chance: |score| > 5 has probability < 6e-7 (slip 3)."""
    method, _, _ = make(name)
    assert not {"y", "labels", "target"} & set(inspect.signature(method.predict).parameters)
    quiet(method)
    n = 2000
    x = torch.empty(n, 1, 8, 8).normal_(generator=rng(1))
    y = torch.randint(10, (n,), generator=rng(2))
    p = method.predict(x, rng(3), average=None, noise=noise).probabilities
    score = (p.argmax(1).eq(y).double().mean().item() - 0.1) / (0.09 / n) ** 0.5
    assert abs(score) < 5


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_prediction_is_a_function_of_x_and_the_generator_alone(name, kind):
    """Same seed, same bits; no global random state is read or moved; other seeds differ."""
    method, x, _ = make(name, kind)
    quiet(method)
    state = torch.get_rng_state()
    first = method.predict(x, rng(1), samples=2)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again = method.predict(x, rng(1), samples=2)
    torch.set_rng_state(state)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.probabilities, again.probabilities)
    other = method.predict(x, rng(2))
    assert torch.equal(first.latents, other.latents) == (not method.has_noise)
    still = method.predict(x, rng(1), noise=False)
    assert torch.equal(still.latents, method.predict(x, rng(2), noise=False).latents)


@pytest.mark.parametrize("name", SMALL)
def test_a_loss_is_a_function_of_its_batch_and_the_generator_alone(name):
    """Noise, times and dropout come from the generator, also in training mode."""
    method, x, y = make(name, "one-hot" if name in STACKS else "prototype")
    for unit in method.units:
        unit.module.train()
        state = torch.get_rng_state()
        first, again, other = (terms_of(method, unit, x, y, seed).terms for seed in (1, 1, 2))
        assert torch.equal(state, torch.get_rng_state())
        assert first == again
        # Of lg-fg-a the gradient is random, not the loss; of dtp the layers draw nothing.
        quiet = name == "lg-fg-a" or (name == "dtp" and unit.phase == 1)
        if not quiet and unit.name not in ("readout", "softmax"):
            assert first != other


@pytest.mark.parametrize("name", CHAINS)
def test_features_are_computed_once_whatever_the_chains_and_steps(name):
    """Sixteen chains cost one pass of convolutions a block; prepared features change no bit."""
    method, x, _ = make(name)
    quiet(method)
    counts: list[int] = []
    encoders = [
        module.get_submodule("encoder")
        for unit in method.units
        for path, module in unit.module.named_modules()
        if path.rpartition(".")[2] == "image"
    ]
    assert len(encoders) == (3 if name in ("dt", "backprop") else 1)
    for index, encoder in enumerate(encoders):

        def count(*_: object, index: int = index) -> None:
            counts.append(index)

        encoder.register_forward_hook(count)
    fresh = method.predict(x, rng(), samples=16)
    assert sorted(counts) == list(range(len(encoders)))
    prepared = method.prepare(x)
    counts.clear()
    again = method.predict(x, rng(), samples=16, prepared=prepared)
    assert not counts
    assert torch.equal(fresh.probabilities, again.probabilities)
    assert torch.equal(fresh.latents, again.latents)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_parts_of_a_prediction_are_what_they_say(name, kind):
    method, x, _ = make(name, kind)
    quiet(method)
    one = method.predict(x, rng(1))
    assert torch.equal(one.single, one.probabilities)
    assert len(one.times) == len(one.steps) == len(one.latents)
    assert one.times[0] == 0
    passes = 11 if (name, kind) == ("ff", "one-hot") else 1  # one for each label
    assert one.evaluations == (passes if name in STACKS else SMALL[name].get("method.steps", 3))
    averaged = [one.probabilities]
    if method.path_weights is None:
        assert one.path is None
        with pytest.raises(ValueError, match="average must be 'readout', got 'path'"):
            method.predict(x, rng(1), average="path")
    else:
        stretches = len(method.path_weights)
        method.path_weights = torch.arange(1.0, stretches + 1) / sum(range(1, stretches + 1))
        path = method.predict(x, rng(1), average="path")
        assert path.path is not None
        by_hand = sum(w * p for w, p in zip(method.path_weights, path.path, strict=True))
        torch.testing.assert_close(path.probabilities, by_hand)
        averaged += [path.probabilities, *path.path]
    for p in averaged:
        torch.testing.assert_close(p.sum(1), torch.ones(24))
        assert p.min() >= 0
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        method.predict(x, rng(1), samples=0)


@pytest.mark.parametrize("name", CHAINS)
def test_the_mean_over_chains_is_that_of_the_single_ones(name):
    """K chains as one batch: chain 1 is the single one, and the mean is over chains, not rows."""
    method, x, _ = make(name)
    quiet(method)
    many = method.predict(x, rng(1), samples=3)
    assert many.single.shape == many.probabilities.shape == (24, 10)
    assert not torch.equal(many.single, many.probabilities)
    alike = x[:1].repeat(24, 1, 1, 1)  # 24 answers for one image differ by their noise alone
    few, more = (method.predict(alike, rng(1), samples=k).probabilities for k in (1, 40))
    assert (more - more.mean(0)).abs().mean() < 0.5 * (few - few.mean(0)).abs().mean()


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_predicts_in_one_pass(name):
    """It draws no noise: one pass through each layer and one chain, whatever is asked for."""
    method, x, _ = make(name, **({"method.inference": "softmax"} if name == "ff" else {}))
    quiet(method)
    counts: list[str] = []
    for unit in method.units:
        kinds = nn.Conv2d | nn.Linear | Product
        layer = next(m for m in unit.module.modules() if isinstance(m, kinds))
        layer.register_forward_hook(lambda *_, name=unit.name: counts.append(name))
    many = method.predict(x, rng(1), samples=3)
    assert counts == [unit.name for unit in method.units if "inverse" not in unit.name]
    assert torch.equal(many.single, many.probabilities)
    assert torch.equal(many.single, method.predict(x, rng(2)).single)
    assert torch.equal(many.single, method.predict(x, rng(2), noise=False).single)
    assert many.latents[0].count_nonzero() == 0
    assert torch.equal(many.steps[-1], many.single.argmax(dim=1))


@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (5, MOST_CLASSES_ACROSS), (5, 200)])
def test_class_probabilities_are_the_softmax_over_classes(shape):
    logits = 10 * torch.randn(shape, generator=rng(0), dtype=torch.float64)
    found = class_probabilities(logits)
    torch.testing.assert_close(found, logits.exp() / logits.exp().sum(1, keepdim=True))
    torch.testing.assert_close(class_probabilities(logits.float()), found.float())
