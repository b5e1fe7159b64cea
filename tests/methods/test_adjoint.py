"""The adjoint baseline: its gradient against that of plain autograd, its solver, its memory.

Both ways to the gradient solve the same ODE by the same steps forwards, so their losses are equal
and their gradients differ by what Euler's method makes of the second ODE: O(1/T).
"""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.cli import main
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.errors import ConfigError
from noprop.methods.adjoint import NeuralODE
from noprop.task import Task
from tools import rng

pytest.importorskip("torchdiffeq")

KINDS: dict[str, dict[str, Any]] = {
    "one-hot": {},
    "learned": {"method.embedding": "orthogonal", "method.learned": True, "method.dim": 6},
    "prototype": {"method.embedding": "prototype", "method.learned": True},
}


def make(kind: str = "one-hot", steps: int = 8, **changes: Any) -> NeuralODE:
    """The library's own method on 8×8 images, not in training."""
    changes = {"method.name": "adjoint", "method.steps": steps, **KINDS[kind], **changes}
    config = replace(RunConfig(), changes)
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, NeuralODE)
    method.unit.module.eval()
    return method


def batch(size: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.empty(size, 1, 8, 8).normal_(generator=rng())
    return x, torch.arange(size) % 10


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything in float64: what is left of a difference is then no rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(method: NeuralODE, gradient: Any, steps: int) -> dict[str, Tensor]:
    """Loss and gradients at one batch and one z(0), by name."""
    unit = method.unit
    unit.num_steps, unit.gradient = steps, gradient
    x, y = batch(6)
    context = unit.network.context(x)
    z = torch.empty(len(y), unit.embedding.weight.shape[1]).normal_(generator=rng(1))
    loss = F.cross_entropy(unit.readout(unit.solve(z, context), unit.embedding.weight), y)
    for p in method.parameters():
        p.grad = None
    loss.backward()
    named = dict(unit.module.named_parameters()) | dict(method.shared.named_parameters())
    found = {name: p.grad for name, p in named.items()}
    assert all(g is not None for g in found.values())
    return {"loss": loss.detach()} | {name: g.clone() for name, g in found.items() if g is not None}


def strong(method: NeuralODE) -> NeuralODE:
    """A field that bends: a fresh one hardly does, and the two gradients would be near by luck."""
    with torch.no_grad():
        method.unit.network.head.out.weight *= 4
        method.unit.network.head.join.weight *= 2
    return method


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Relative distance of each gradient."""
    assert a.keys() == b.keys()
    return {n: ((a[n] - b[n]).norm() / b[n].norm()).item() for n in a if n != "loss"}


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoint_s_gradient_becomes_that_of_autograd(kind):
    """Of every parameter and of W_Embed: four times the steps, a quarter of the difference.

    A gradient left out of the second ODE (W_Embed's, that of the features and so of the image path)
    would not become smaller; one counted twice neither. The losses are equal, for the solution
    forwards is one and the same. (From the random start the adjoint state grows so fast with
    prototypes that 12 steps are too few for the error's first order to show.)
    """
    start: dict[str, Any] = {"method.readout_start": "nearest"}
    method, found = strong(make(kind, **start)), []
    for steps in (12, 48):
        mine, exact = (gradients(method, g, steps) for g in ("adjoint", "autograd"))
        assert torch.equal(mine["loss"], exact["loss"])
        assert all(g.norm() > 0 for g in exact.values())
        found.append(distance(mine, exact))
    names = set(found[0])
    assert ("weight" in names) == (kind != "one-hot")
    inside = {n for n in names if not n.startswith("readout")}
    for name in inside:
        coarse, fine = (d[name] for d in found)
        assert 3 < coarse / fine < 6, name
        assert 1e-5 < fine < 0.1, name
    for name in names - inside:  # the readout stands outside of the ODE
        assert found[0][name] < 1e-12, name


def test_the_features_get_the_gradient_of_the_solution():
    """As a leaf of their own, apart from the network that makes them: the ODE's part alone."""
    method = strong(make("learned"))
    x, y = batch()
    z = torch.empty(12, 6).normal_(generator=rng(1))
    found = {}
    for gradient in ("adjoint", "autograd"):
        method.unit.gradient, method.unit.num_steps = gradient, 200
        context = method.prepare(x).requires_grad_()
        end = method.unit.solve(z, context)
        logits = method.unit.readout(end, method.embedding.weight)
        (found[gradient],) = torch.autograd.grad(F.cross_entropy(logits, y), context)
    assert found["autograd"].abs().max() > 1e-4
    scale = found["autograd"].norm()
    assert (found["adjoint"] - found["autograd"]).norm() < 0.02 * scale


def test_dropout_is_drawn_once_and_the_field_stands_still():
    """In training mode: loss and gradient are functions of the generator, to the last bit.

    A field that drew dropout of its own would draw it anew in the backward solution, from the
    global generator at that, and give gradients of no function at all.
    """
    method = strong(make("prototype"))
    method.unit.module.train()
    x, y = batch()

    def gradient(seed: int, kind: Any = "adjoint") -> tuple[Tensor, Tensor]:
        method.unit.gradient = kind
        loss = method.unit.loss(x, y, rng(seed)).total
        grads = torch.autograd.grad(loss, method.parameters())
        return loss.detach(), torch.cat([g.flatten() for g in grads])

    state = torch.get_rng_state()
    first = gradient(1)
    torch.manual_seed(99)
    again = gradient(1)
    torch.set_rng_state(state)
    gradient(1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], gradient(2)[0])
    method.unit.num_steps = 24
    mine, exact = gradient(1), gradient(1, "autograd")
    assert torch.equal(mine[0], exact[0])
    assert (mine[1] - exact[1]).norm() < 0.1 * exact[1].norm()
    method.unit.module.eval()
    assert not torch.equal(mine[0], gradient(1)[0])


# -- the solution --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 20])
def test_training_and_prediction_solve_one_ode(kind, steps):
    """torchdiffeq's Euler in training, ours in prediction, and T steps written out: the same z(1).

    The field is the network's logits @ W_Embed at t = 0, 1/T, …, from noise on; the classes are the
    readout's of z(1).
    """
    method = strong(make(kind, steps))
    x, y = batch()
    p = method.predict(x, rng(2))
    network, weight = method.unit.network, method.embedding.weight
    start = torch.empty(len(y), weight.shape[1]).normal_(generator=rng(2))
    assert torch.equal(p.latents[0], start)
    with torch.no_grad():
        solved, z = method.unit.solve(start, method.prepare(x)), start
        for i in range(steps):
            time = network.time_context(torch.tensor([i / steps]))
            z = z + network(z, network.context(x), time) @ weight / steps
        probabilities = method.unit.readout(z, weight).softmax(1)
    assert (z - start).norm() > 0.1 * start.norm()
    torch.testing.assert_close(solved, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.latents[-1], z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.probabilities, probabilities, rtol=1e-3, atol=1e-4)
    assert p.evaluations == steps


@pytest.mark.parametrize("gradient", ["adjoint", "autograd"])
@pytest.mark.parametrize("steps", [1, 20, 61])
def test_t_steps_are_t_evaluations(gradient, steps):
    """Forwards and, with the adjoint, as many backwards; 1/T is not exact, and T x 1/T neither."""
    method = make(steps=steps)
    method.unit.gradient = gradient
    asked = []
    method.unit.network.head.register_forward_pre_hook(lambda *_: asked.append(1))
    loss = method.unit.loss(*batch(), rng()).total
    assert len(asked) == steps
    loss.backward()
    assert len(asked) == (2 * steps if gradient == "adjoint" else steps)


# -- memory --------------------------------------------------------------------------------------


class Saved:
    """Bytes that autograd keeps for backward passes, now and at most; each storage counts once."""

    def __init__(self, method: NeuralODE):
        self.known = {p.untyped_storage().data_ptr() for p in method.parameters()}
        self.held: Counter[int] = Counter()
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(tensor, self)

    def move(self, pointer: int, size: int, by: int) -> None:
        before = self.held[pointer]
        self.held[pointer] += by
        if pointer not in self.known and (before == 0) != (before + by == 0):
            self.now += by * size
            self.peak = max(self.peak, self.now)


class Held:
    """A tensor saved for a backward pass, for as long as it is."""

    def __init__(self, tensor: Tensor, saved: Saved):
        self.tensor = tensor.detach()  # an output would hold its own graph, and the graph it
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        saved.move(storage.data_ptr(), size, 1)
        weakref.finalize(self, saved.move, storage.data_ptr(), size, -1)


def bytes_at_most(gradient: Any, steps: int) -> int:
    """The peak over one loss and its backward pass."""
    method = make("learned", steps)
    method.unit.gradient = gradient
    saved = Saved(method)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        method.unit.loss(*batch(), rng()).total.backward()
    return saved.peak


def test_the_adjoint_s_memory_does_not_grow_with_t():
    """Counted, not timed: flat to the byte, where plain autograd's grows by as much a step."""
    flat = [bytes_at_most("adjoint", steps) for steps in (5, 10, 40)]
    assert flat[0] == flat[1] == flat[2]
    five, ten, forty = (bytes_at_most("autograd", steps) for steps in (5, 10, 40))
    a_step = (ten - five) / 5
    assert a_step > 12 * 128 * 4  # at least a hidden layer of the batch
    assert forty - ten == pytest.approx(30 * a_step)


# -- without torchdiffeq -------------------------------------------------------------------------


def test_the_adaptive_sampler_of_flow_matching_is_looked_for_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    config = replace(RunConfig(), {"method.name": "fm", "method.sampler": "dopri5"})
    task = Task((4,), ("a", "b"), Normalization((0.0,) * 4, (1.0,) * 4))
    with pytest.raises(ConfigError, match=r"dopri5 needs torchdiffeq: pip install 'noprop\[ode\]'"):
        build_method(config, task, build_embedding(config, task, None))


def test_without_torchdiffeq_there_is_one_clear_line(monkeypatch, tmp_path, capsys):
    """Before anything is trained or a folder made, in Python and on the command line."""
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)  # import then fails
    with pytest.raises(ConfigError, match=r"needs torchdiffeq: pip install 'noprop\[ode\]'"):
        make()
    assert main(["train", "digits-adjoint", "--run", str(tmp_path / "r"), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("noprop: error: method adjoint needs torchdiffeq")
    assert text.count("\n") == 1
    assert not (tmp_path / "r").exists()
