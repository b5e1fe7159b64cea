"""NoProp-FM: the terms of Eq. 13, what the anchor trains, and where the flow takes the noise.

The networks of most tests are written down rather than trained: one that ignores its input, and one
that is the best velocity, by Bayes' rule. What the method makes of them is then known exactly.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from differences import assert_gradient_is_that_of_differences
from known_blocks import KnownNetwork
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.embeddings import Embedding, random_embeddings, separation
from noprop.evidence import flow_evidence
from noprop.methods.fm import FlowNoProp, VelocityUnit
from noprop.networks import ContinuousBlock, sinusoidal_embedding
from noprop.randomness import seeded
from noprop.readouts import RadialReadout, Readout, SoftmaxReadout
from noprop.task import Task
from noprop.training.events import Epoch, Event
from noprop.training.trainer import Trainer
from tools import rng

TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])  # p(y|x) of three x
# Rows of different lengths, none orthogonal: the nearest is not the one of the largest product.
WEIGHT = torch.tensor([[2.0, 0.5, 0.0], [0.3, 1.0, -0.4], [-0.5, 0.2, 0.8]])


class Bayes(KnownNetwork):
    r"""The best velocity, E[u - z_0 | z_t, x]; x is log p(y|x), W_Embed square and invertible.

    Given y, z_t is normal with mean t u_y and variance s² = (1-t)² + σ². So with û = Σ p(y|z_t, x)
    u_y, E[z_0 | z_t, x] = (1-t)/s² (z_t - t û). At σ = 0 and t = 1 that is 0/0, the noise being
    gone; there 1 - t is 0.001 instead.
    """

    def __init__(self, weight: Tensor, sigma: float):
        super().__init__()
        self.weight, self.sigma = weight, sigma

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        time_context: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        t = time_context[:, :1]
        left = (1 - t).clamp_min(1e-3)
        square = left**2 + self.sigma**2
        distance = (z[:, None] - t[:, :, None] * self.weight).square().sum(dim=2)
        u_hat = (context - distance / (2 * square)).softmax(dim=1) @ self.weight
        v = u_hat - left / square * (z - t * u_hat)
        return torch.linalg.solve(self.weight, v, left=False)


class Mixing(KnownNetwork):
    """Weights that depend on x, z and t and on a parameter."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(3) + 0.1)

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        time_context: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return context + torch.sin(z @ self.matrix) + time_context


def make_unit(
    network: ContinuousBlock,
    weight: Tensor = WEIGHT,
    *,
    learned: bool = False,
    readout: type[Readout] = SoftmaxReadout,
    **options: Any,
) -> VelocityUnit:
    embedding = Embedding(weight.clone(), learned=learned)
    return VelocityUnit(network, readout(weight), embedding, **options)


def readout_layer(unit: VelocityUnit) -> nn.Linear:
    assert isinstance(unit.readout, SoftmaxReadout | RadialReadout)
    return unit.readout.linear


# -- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_network_is_shown_the_path_at_its_time(sigma):
    """z_t ~ N(t u_y, (1-t)² + σ²) for the t of the same row, in four quarters of t.

    5-sigma scores of means and squares in 24 places: a fresh seed fails with probability < 5e-5. A
    variance for a deviation, a t of another row or time run backwards is far beyond.
    """
    n, network = 20_000, KnownNetwork()
    unit = make_unit(network, sigma=sigma)
    y = torch.randint(3, (n,), generator=rng(1))
    unit.loss(torch.zeros(n, 3), y, rng(2))
    ((z, t),) = network.seen

    def score(t: Tensor) -> float:
        noise = (z - t[:, None] * WEIGHT[y]) / ((1 - t) ** 2 + sigma**2).sqrt()[:, None]
        worst = 0.0
        for quarter in range(4):
            part = noise[(t * 4).long() == quarter]
            mean = part.mean(0) * len(part) ** 0.5
            spread = (part.square().mean(0) - 1) * (len(part) / 2) ** 0.5
            worst = max(worst, mean.abs().max().item(), spread.abs().max().item())
        return worst

    assert score(t) < 5
    assert score(1 - t) > 50
    assert score(t.roll(1)) > 20
    levels = (torch.arange(n) + 0.5) / n  # t ~ U(0, 1): Kolmogorov's distance, < 1e-6
    assert (t.sort().values - levels).abs().max() < 2.7 / n**0.5


@pytest.mark.parametrize("anchor", [False, True])
@torch.no_grad()
def test_the_terms_are_those_of_eq_13(anchor):
    """‖v - (z_1 - z_0)‖² summed over d, with the z_0 that z_t and t tell; CE at z_t + (1 - t) v.

    Ten rows of ten embeddings of ten numbers, so that swapped axes would fit (slip 7). The values
    are the same with and without the anchor: what it changes is the gradient.
    """
    network, weight = KnownNetwork(), random_embeddings(10, 10, rng()) * 3
    unit = make_unit(network, weight, anchor=anchor)
    logits = torch.empty(10, 10).normal_(generator=rng(1))
    y = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    terms = unit.loss(logits, y, rng(4)).terms
    assert list(terms) == ["flow", "classification"]
    ((z, t),) = network.seen
    flow = entropy = 0.0
    for i in range(10):
        time, u = float(t[i]), weight[y[i]]
        z0 = (z[i] - time * u) / (1 - time)
        v = sum(logits[i, k] * weight[k] for k in range(10))  # no softmax: any weights
        flow += float((v - (u - z0)).square().sum()) / 10
        linear = readout_layer(unit)
        scores = linear.weight @ (z[i] + (1 - time) * v) + linear.bias
        entropy += float(scores.logsumexp(0) - scores[y[i]]) / 10
    assert terms["flow"].item() == pytest.approx(flow, rel=1e-4)
    assert terms["classification"].item() == pytest.approx(entropy, rel=1e-4)


def test_a_constant_velocity_misses_by_the_noise_and_the_distance():
    """E‖v - (u - z_0)‖² = ‖v - u‖² + d, for any t: within 5 standard errors of 20 000."""
    n, unit = 20_000, make_unit(KnownNetwork(), sigma=0.7)
    v, y = torch.tensor([[0.5, -1.0, 2.0]]), torch.zeros(n, dtype=torch.int64)
    found = unit.loss(v.expand(n, 3), y, rng()).terms["flow"].item()
    square = (v @ WEIGHT - WEIGHT[0]).square().sum().item()
    error = ((4 * square + 2 * 3) / n) ** 0.5  # of ‖c + z_0‖²
    assert abs(found - square - 3) < 5 * error


# -- the anchor ---------------------------------------------------------------------------------


def gradients(unit: VelocityUnit, term: str) -> dict[str, Tensor | None]:
    y, x = torch.arange(12) % 3, torch.empty(12, 3).normal_(generator=rng(1))
    value = unit.loss(x, y, rng()).terms[term]
    network = unit.network
    assert isinstance(network, Mixing)
    named = {"network": network.matrix, "readout": readout_layer(unit).weight}
    if unit.embedding.learned:
        named["embedding"] = unit.embedding.weight
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("readout", [SoftmaxReadout, RadialReadout])
@pytest.mark.parametrize("learned", [False, True])
def test_the_anchor_decides_what_the_cross_entropy_trains(learned, readout):
    """Off: the readout alone. On: the network and W_Embed too. The flow term never the readout.

    A radial readout reads W_Embed as well: off, it must not be the way to it.
    """
    for anchor in (False, True):
        unit = make_unit(Mixing(), learned=learned, readout=readout, anchor=anchor)
        of_classes = gradients(unit, "classification")
        reached = {name for name, g in of_classes.items() if g is not None and g.abs().max() > 0}
        shared = {"embedding"} if learned else set()
        assert reached == ({"readout", "network"} | shared if anchor else {"readout"})
        of_flow = gradients(unit, "flow")
        reached = {name for name, g in of_flow.items() if g is not None and g.abs().max() > 0}
        assert reached == {"network"} | shared


def test_the_anchor_changes_no_other_gradient():
    """The readout's, and all of the flow term's, are the same to the bit."""
    off, on = (make_unit(Mixing(), learned=True, anchor=anchor) for anchor in (False, True))
    for term, name in (
        ("classification", "readout"),
        ("flow", "network"),
        ("flow", "embedding"),
    ):
        a, b = gradients(off, term)[name], gradients(on, term)[name]
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("readout", [SoftmaxReadout, RadialReadout])
@pytest.mark.parametrize("term", ["flow", "classification"])
def test_the_gradient_of_the_embeddings_is_that_of_the_term(term, readout):
    """Through u_y in path and target, through v and z̃_1, and as a radial readout reads them."""
    embedding = Embedding(WEIGHT.double(), learned=True)
    with seeded(0):
        made = readout(WEIGHT, "random").double()
    unit = VelocityUnit(Mixing().double(), made, embedding, sigma=0.3, anchor=True)
    x = torch.empty(12, 3, dtype=torch.float64).normal_(generator=rng(1))
    assert_gradient_is_that_of_differences(
        lambda: unit.loss(x, torch.arange(12) % 3, rng(5)).terms[term], embedding.weight
    )


@pytest.mark.parametrize("term", ["flow", "classification"])
def test_the_gradient_of_the_embeddings_with_exact_evidence_is_that_of_the_term(term, monkeypatch):
    """Through u_y in path and target, through û and through z in the evidence, not its rows."""
    embedding = Embedding(WEIGHT.double(), learned=True)
    rows = embedding.weight.detach().clone()
    monkeypatch.setattr(
        "noprop.methods.fm.flow_evidence", lambda z, _, t, s: flow_evidence(z, rows, t, s)
    )
    unit = VelocityUnit(Mixing().double(), None, embedding, sigma=0.3, anchor=True)
    x = torch.empty(12, 3, dtype=torch.float64).normal_(generator=rng(1))
    assert_gradient_is_that_of_differences(
        lambda: unit.loss(x, torch.arange(12) % 3, rng(5)).terms[term], embedding.weight
    )


@pytest.mark.parametrize(
    ("anchor", "learned", "expected"),
    [
        ("learned", True, True), ("learned", False, False), ("always", False, True),
        ("always", True, True), ("never", True, False), ("never", False, False),
    ],
)  # fmt: skip
def test_the_anchor_is_set_as_told(anchor, learned, expected):
    config = replace(
        RunConfig(),
        {"method.name": "fm", "method.embedding": "orthogonal", "method.dim": 4,
         "method.learned": learned, "method.anchor": anchor},
    )  # fmt: skip
    task = Task((5,), ("a", "b", "c"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    assert isinstance(method, FlowNoProp)
    assert method.unit.anchor is expected


# -- the flow -----------------------------------------------------------------------------------

SAMPLERS = [("euler", 200), ("heun", 60), ("dopri5", 60)]


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_the_best_velocity_takes_noise_to_each_label_as_often_as_p_says(sampler, steps, sigma):
    """Bayes' rule as the network: labels of single chains come as often as p(y|x).

    5000 chains an input: the tolerance 0.04 is 4.9 standard errors and the solvers' bias of at most
    0.005; a fresh seed fails in 9 frequencies with probability < 1e-5. At σ = 0 chains also
    end on the embeddings, but for Heun's last evaluation at t = 1, where z tells z_0 no more: it
    lands |z_0|/2T away. At σ = 0.1 they end around them.
    """
    unit = make_unit(Bayes(WEIGHT, sigma), sigma=sigma)
    method = FlowNoProp(unit, steps=steps, sampler=sampler)
    p = method.predict(TABLE.log().repeat_interleave(5000, 0), rng(6))
    frequency = F.one_hot(p.single.argmax(1).view(3, 5000), 3).float().mean(1)
    torch.testing.assert_close(frequency, TABLE, atol=0.04, rtol=0)
    distance = torch.cdist(p.latents[-1], WEIGHT)
    assert torch.equal(distance.argmin(1), p.single.argmax(1))
    assert torch.equal(distance.argmin(1), p.steps[-1])
    if sigma == 0:
        near = 0.05 if sampler == "heun" else 0.01
        assert (distance.min(1).values < near).float().mean() > 0.99
    else:
        typical = distance.min(1).values.square().mean().sqrt().item()
        assert typical == pytest.approx(sigma * 3**0.5, rel=0.05)


def test_a_chain_starts_where_the_path_of_training_does():
    """z_t at t = 0 is N(z_0, σ² I) and so N(0, (1 + σ²) I), 1.25 at σ = 0.5.

    |score| > 5 of 6000 squares: a fresh seed fails with probability < 1e-6; N(0, I) scores 11.
    """
    method = FlowNoProp(make_unit(Bayes(WEIGHT, 0.5), sigma=0.5), steps=2)
    z = method.predict(TABLE[:1].repeat(2000, 1).log(), rng(7)).latents[0]
    assert abs(z.square().mean().item() / 1.25 - 1) < 5 * (2 / z.numel()) ** 0.5


def test_the_answer_of_many_chains_is_the_share_of_each_label():
    """K chains as one batch: row k·B + i is chain k of image i; ends lie on the embeddings."""
    method = FlowNoProp(make_unit(Bayes(WEIGHT, 0.0)), steps=200)
    p = method.predict(TABLE.log(), rng(5), samples=5000)
    torch.testing.assert_close(p.probabilities, TABLE, atol=0.04, rtol=0)


def test_the_class_of_a_chain_is_the_nearest_embedding():
    """Not the one of the largest product, and not the readout's: for the zero velocity, z_0's."""
    n, unit = 2000, make_unit(KnownNetwork())
    with torch.no_grad():
        readout_layer(unit).bias[0] += 100
    p = FlowNoProp(unit, steps=3).predict(torch.zeros(n, 3), rng())
    nearest = torch.cdist(p.latents[0], WEIGHT).argmin(1)
    assert torch.equal(p.latents[-1], p.latents[0])
    assert torch.equal(p.single.argmax(1), nearest)
    assert (p.latents[0] @ WEIGHT.T).argmax(1).ne(nearest).float().mean() > 0.1


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
def test_what_a_prediction_costs_is_counted(sampler, steps):
    """Every evaluation of the network, whichever method chooses the steps."""
    network, asked = Bayes(WEIGHT, 0.3), []
    network.register_forward_hook(lambda *_: asked.append(1))
    method = FlowNoProp(make_unit(network), steps=steps, sampler=sampler)
    p = method.predict(TABLE.log(), rng(1))
    assert p.evaluations == len(asked)
    expected = {"euler": steps, "heun": 2 * steps}
    assert p.evaluations == expected.get(sampler, p.evaluations)


def test_the_adaptive_solver_agrees_with_fixed_steps_and_its_tolerance_counts():
    """torchdiffeq's Dormand and Prince as a second opinion, from the same noise.

    Heun's 100 steps lie within 0.001 of it; Euler's error is ten times that and halves from 50 to
    100 steps. At σ = 0.6 the velocity is smooth enough for that in float32.
    """
    x = TABLE.log().repeat_interleave(50, 0)

    def ends(sampler: Any, steps: int = 1, tolerance: float = 1e-6) -> tuple[Tensor, int]:
        unit = make_unit(Bayes(WEIGHT, 0.6))
        method = FlowNoProp(unit, steps=steps, sampler=sampler, tolerance=tolerance)
        p = method.predict(x, rng(1))
        return p.latents[-1], p.evaluations

    best, dear = ends("dopri5")
    errors = {
        at: (ends(*at)[0] - best).abs().max().item()
        for at in (("euler", 50), ("euler", 100), ("heun", 100))
    }
    assert errors["heun", 100] < 0.001
    assert 0.01 < errors["euler", 100] < 0.03
    assert errors["euler", 50] / errors["euler", 100] == pytest.approx(2, rel=0.1)
    rough, cheap = ends("dopri5", tolerance=1e-4)
    assert (rough - best).abs().mean() < 0.005
    assert cheap < 0.6 * dear


@pytest.mark.parametrize("sampler", ["euler", "dopri5"])
def test_guesses_on_the_way_are_the_readout_s_where_the_line_leads(sampler):
    """p_out(y | z_t + (1 - t) v) at the levels kept, ten of ten, by hand for a constant v."""
    unit = make_unit(KnownNetwork())
    x = torch.tensor([[0.2, 0.5, -0.3], [1.0, 0.0, 0.4]])
    method = FlowNoProp(unit, steps=10, sampler=sampler)
    p = method.predict(x, rng(), average="path")
    assert p.path is not None
    linear, v = readout_layer(unit), x @ WEIGHT
    for i in range(10):
        there = p.latents[i] + (1 - i / 10) * v
        by_hand = (there @ linear.weight.T + linear.bias).softmax(1)
        torch.testing.assert_close(p.path[i], by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(p.probabilities, p.path.mean(0))
    torch.testing.assert_close(p.latents[-1], p.latents[0] + v, rtol=0, atol=1e-5)
    assert torch.allclose(p.times, torch.linspace(0, 1, 11))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@torch.no_grad()
def test_features_computed_once_give_the_predictions_of_the_plain_flow(sampler):
    """A hundred steps with the whole network at each, features side by side as in Fig. 5."""
    torch.manual_seed(0)
    block, steps = ContinuousBlock((1, 8, 8), (4,), 5).eval(), 100
    for p in block.head.out.parameters():
        p *= 10
    weight = random_embeddings(5, 4, rng(1)) * 2
    unit = make_unit(block, weight)
    x = torch.empty(6, 1, 8, 8).normal_(generator=rng(2))
    found = FlowNoProp(unit, steps=steps, sampler=sampler).predict(x, rng(3))

    def velocity(z: Tensor, i: int) -> Tensor:
        assert block.time
        assert block.latent
        time = block.time(sinusoidal_embedding(torch.full((6,), i / steps)))
        features = torch.cat([block.image(x), block.latent(z), time], dim=1)
        hidden = block.head.hidden(block.head.join(features).relu()).relu()
        return block.head.out(hidden) @ weight

    z = torch.empty(6, 4).normal_(generator=rng(3))
    latents = [z]
    for i in range(steps):
        first = velocity(z, i)
        second = velocity(z + first / steps, i + 1) if sampler == "heun" else first
        z = z + (first + second) / 2 / steps
        latents.append(z)
    kept = (found.times * steps).round().long()
    torch.testing.assert_close(found.latents, torch.stack(latents)[kept], rtol=1e-4, atol=1e-4)
    assert (latents[-1] - latents[0]).abs().max() > 0.1


# -- collapse -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_anchor_learned_embeddings_collapse_and_with_it_they_do_not(tmp_path: Path):
    """A tenth of the labels drawn anew, so that x does not settle them all.

    What x leaves open of u_y is noise to the velocity, and it is least where all embeddings are
    one: their distance falls from √2 to 0.2 and on (a common part of all costs nothing, so their
    lengths need not). The cross-entropy of Eq. 13 halts it near 0.45: the paper's anchor sets a
    floor, it does not keep the distance. Trained by the library's own trainer.
    """
    n, kinds = 1024, torch.arange(1024) % 4
    anew = torch.randint(4, (n,), generator=rng(1))
    y = torch.where(torch.rand(n, generator=rng(2)) < 0.1, anew, kinds)
    part = Examples(torch.eye(4)[kinds], y)

    def distances(anchor: str) -> list[float]:
        config = replace(
            RunConfig(),
            {"method.name": "fm", "method.anchor": anchor, "method.embedding": "orthogonal",
             "method.learned": True, "method.dim": 4, "method.dropout": 0.0, "train.epochs": 56,
             "train.device": "cpu", "train.lr": 6e-3, "train.optimizer": "adam"},
        )  # fmt: skip
        task = Task((4,), tuple("abcd"), Normalization.of(part.x))
        method = build_method(config, task, build_embedding(config, task, None))
        found = [separation(method.embedding.weight)[1]]

        def watch(event: Event) -> None:
            if isinstance(event, Epoch) and event.embedding:
                found.append(event.embedding["least_distance"])

        Trainer(
            config, method, method.units, part, part.take(torch.arange(0)), task.normalization,
            bf16=False, folder=tmp_path / f"{anchor}", emit=watch,
        ).run()  # fmt: skip
        return found

    without, kept = distances("never"), distances("learned")
    assert without[0] == kept[0] == pytest.approx(2**0.5)
    assert without[-1] < 0.25
    assert kept[-1] > 0.38
    assert kept[-1] > 0.9 * kept[42]  # it has settled
