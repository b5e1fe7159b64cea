"""NoProp-CT: the terms of Eq. 9, what the network is shown, and what its three samplers draw.

The networks of most tests are written down rather than trained: one that ignores its input, one
that knows the label, one that is Bayes' rule. What the method makes of them is then known exactly.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from differences import assert_gradient_is_that_of_differences
from known_blocks import KnownNetwork
from noprop.diffusion import draw_times
from noprop.embeddings import Embedding, one_hot_embeddings, random_embeddings
from noprop.methods.ct import ContinuousNoProp, DenoiserUnit
from noprop.networks import ContinuousBlock, sinusoidal_embedding
from noprop.randomness import seeded
from noprop.readouts import RadialReadout, SoftmaxReadout
from noprop.schedules import (
    ContinuousSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
)
from tools import rng

SAMPLERS = ["ancestral", "euler", "heun"]
TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])  # p(y|x) of three x


class Bayes(KnownNetwork):
    """Bayes' rule: x is log p(y|x), z a draw of q(z_t|y) under the schedule."""

    def __init__(self, schedule: ContinuousSchedule, weight: Tensor, scale: float = 1.0):
        super().__init__(scale)
        self.gamma, self.weight = schedule, weight

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        time_context: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        gamma = self.gamma(time_context[:, 0])[0].detach()[:, None]
        mean = torch.sigmoid(-gamma).sqrt()[:, :, None] * self.weight
        square = (z[:, None] - mean).square().sum(dim=2)
        return self.scale * (context - square / (2 * torch.sigmoid(gamma)))


class Watching(SoftmaxReadout):
    """Keeps the latents it was shown."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.seen: list[Tensor] = []

    def forward(self, z: Tensor, weight: Tensor) -> Tensor:
        self.seen.append(z.clone())
        return super().forward(z, weight)


def make_unit(
    network: ContinuousBlock,
    weight: Tensor,
    schedule: ContinuousSchedule,
    *,
    learned: bool = False,
    **options: Any,
) -> DenoiserUnit:
    embedding = Embedding(weight, learned=learned)
    return DenoiserUnit(network, Watching(weight), schedule, embedding, **options)


def scores(noise: Tensor) -> float:
    """The largest score of the means and mean squares of what should be standard normal."""
    n = len(noise)
    mean = noise.mean(0) * n**0.5
    spread = (noise.square().mean(0) - 1) * (n / 2) ** 0.5
    return max(mean.abs().max().item(), spread.abs().max().item())


# -- the loss -----------------------------------------------------------------------------------


def test_the_network_is_shown_the_latent_of_its_time():
    """z_t ~ q(z_t|y) at γ(t) = 3 - 6t, for the t of the same row.

    Means and squares of 7 coordinates in 4 quarters of t, beyond 5: probability < 5e-5 a seed. A t
    of another row, or time run backwards, is far beyond.
    """
    n, network = 20_000, KnownNetwork()
    unit = make_unit(
        network, weight := random_embeddings(4, 7, rng()) * 2, LinearSchedule(3.0, -3.0)
    )
    y = torch.randint(4, (n,), generator=rng(1))
    unit.loss(torch.zeros(n, 4), y, rng(2))
    ((z, t),) = network.seen

    def score(t: Tensor) -> float:
        power = 1 / (1 + torch.exp(3 - 6 * t))[:, None]
        noise = (z - power.sqrt() * weight[y]) / (1 - power).sqrt()
        return max(scores(noise[(t * 4).long() == quarter]) for quarter in range(4))

    assert score(t) < 5
    assert score(1 - t) > 50
    assert score(t.roll(1)) > 20


WEIGHTS = {
    "snr": lambda ratio: 0.5 * 4 * ratio,  # SNR' = -γ' SNR
    "uniform": lambda ratio: 0.5,
    "min-snr": lambda ratio: 0.5 * min(ratio, 5.0),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("objective", ["l2", "cross-entropy"])
def test_the_denoising_term_is_each_example_s_weight_times_its_own_error(weighting, objective):
    """½ η SNR'(t) ‖û - u‖² summed over d, at the t of each example; γ(t) = 2 - 4t, as numbers.

    Ten examples of ten classes: a (B,) weight times a (B, 1) error would fit (slip 7), a mean over
    d, a missing ½ or another row's t would be seen. SNR passes 5 on the way.
    """
    network, weight = KnownNetwork(), random_embeddings(10, 10, rng()) * 2
    unit = make_unit(
        network,
        weight,
        LinearSchedule(2.0, -2.0),
        eta=0.3,
        weighting=weighting,
        objective=objective,
    )
    logits = torch.empty(10, 10).normal_(generator=rng(1))
    y = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    terms = unit.loss(logits, y, rng(4)).terms
    assert list(terms) == ["classification", "prior", "denoising"]
    ((_, t),) = network.seen
    ratios = [math.exp(-(2 - 4 * time)) for time in t.tolist()]
    assert min(ratios) < 5 < max(ratios)
    by_hand = 0.0
    for i, ratio in enumerate(ratios):
        p = (logits[i] - logits[i].logsumexp(0)).exp()
        if objective == "l2":
            guess = [sum(float(p[k] * weight[k, j]) for k in range(10)) for j in range(10)]
            error = sum((guess[j] - float(weight[y[i], j])) ** 2 for j in range(10))
        else:
            error = -math.log(p[y[i]])
        by_hand += 0.3 * WEIGHTS[weighting](ratio) * error / 10
    assert terms["denoising"].item() == pytest.approx(by_hand, rel=1e-4)


SCHEDULES = {
    "linear": LinearSchedule(2.0, -3.0),
    "cosine": CosineSchedule(2.0, -3.0),
    "learned": LearnedSchedule(2.0, -3.0, 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_error_that_is_the_same_at_all_times_weighs_the_whole_rise_of_snr(name):
    """∫ ½ SNR'(t) dt ‖û - u‖² = ½ (SNR(1) - SNR(0)) ‖û - u‖²: the schedule's ends alone count.

    The midpoints of 2000 equal intervals, so the rule's error is below 1e-5.
    """
    n, weight = 2000, random_embeddings(4, 7, rng())
    unit = make_unit(KnownNetwork(), weight, SCHEDULES[name])
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    t, y = (torch.arange(n) + 0.5) / n, torch.full((n,), 3)
    found = unit.denoising(logits.expand(n, 4), y, t, rng(), "snr", "l2")
    error = (logits.softmax(1) @ weight - weight[3]).square().sum()
    expected = 0.5 * (math.exp(3) - math.exp(-2)) * error
    torch.testing.assert_close(found.mean(), expected, rtol=1e-4, atol=0)


def test_the_readout_and_the_prior_are_those_of_the_two_ends():
    """Cross-entropy on z_1 ~ q(z_1|y), and KL(q(z_0|y) ‖ N(0, I)) as torch.distributions has it.

    γ(0) = 2 and γ(1) = -1: swapped ends would be seen. |score| > 5 in 14 has probability < 1e-5.
    """
    n, weight = 20_000, random_embeddings(4, 7, rng()) * 3
    unit = make_unit(KnownNetwork(), weight, LinearSchedule(2.0, -1.0))
    y = torch.randint(4, (n,), generator=rng(1))
    terms = unit.loss(torch.zeros(n, 4), y, rng(2)).terms
    assert isinstance(unit.readout, Watching)
    (z,) = unit.readout.seen
    power = 1 / (1 + math.exp(-1))
    assert scores((z - power**0.5 * weight[y]) / (1 - power) ** 0.5) < 5
    linear = unit.readout.linear
    logits = z @ linear.weight.T + linear.bias
    entropy = (logits.logsumexp(1) - logits[torch.arange(n), y]).mean()
    torch.testing.assert_close(terms["classification"], entropy, rtol=1e-5, atol=1e-7)
    power = 1 / (1 + math.exp(2))
    q = torch.distributions.Normal(power**0.5 * weight[y], (1 - power) ** 0.5)
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms["prior"], kl.sum(1).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_times_are_uniform_and_those_of_a_batch_may_be_spread(sampling):
    """Kolmogorov's distance of a row's times beyond 2.7/√n has probability < 1e-6.

    A spread batch has one time in each interval of length 1/B, in an order that tells nothing.
    """
    n, batch, generator = 2000, 16, rng()
    times = torch.stack([draw_times(batch, sampling, generator) for _ in range(n)])
    levels = (torch.arange(n) + 0.5) / n
    for row in (0, batch - 1):
        assert (times[:, row].sort().values - levels).abs().max() < 2.7 / n**0.5
    gaps = times.sort(dim=1).values.diff(dim=1)
    assert ((gaps - 1 / batch).abs().max() < 1e-5) == (sampling == "stratified")
    next_after = (times[:, 1] - times[:, 0]).remainder(1) - 1 / batch  # 1 in 15 by chance
    assert (next_after.abs() < 1e-4).double().mean() < 0.1
    assert (times[:, 0] < times[:, 1]).double().mean() == pytest.approx(0.5, abs=0.06)


# -- the bound ----------------------------------------------------------------------------------

LONG: dict[str, ContinuousSchedule] = {
    "linear": LinearSchedule(8.0, -5.0),
    "cosine": CosineSchedule(8.0, -5.0),
    "learned": LearnedSchedule(8.0, -5.0),
}


def labels(n: int) -> tuple[Tensor, Tensor]:
    """log p(y|x) of n rows of each x, and labels that occur exactly as often as p(y|x) says."""
    y = [torch.arange(3).repeat_interleave((row * n).round().long()) for row in TABLE]
    return TABLE.log().repeat_interleave(n, 0), torch.cat(y)


@pytest.mark.parametrize("name", LONG)
def test_with_bayes_for_a_denoiser_the_bound_is_the_entropy_of_the_label(name):
    """∫ ½ SNR' E‖û - u‖² dt is the information z_1 adds to z_0's: H(y|x) for any schedule.

    Guo, Shamai and Verdú (2005). z_0 at SNR 3e-4 tells less than 2e-4 nats and z_1 leaves less than
    1e-3, so prior and classification are below that. A lost ½, root or index changes the sum by
    tens of percent. Within 5 standard errors: a fresh seed fails with probability < 6e-7.
    """
    x, y = labels(20_000)
    weight = one_hot_embeddings(3)
    unit = make_unit(Bayes(LONG[name], weight), weight, LONG[name])
    method = ContinuousNoProp(unit)
    entropy = -(TABLE * TABLE.log()).sum(1).mean().item()
    bound = method.bound(x, y, rng(1))
    assert set(bound) == {"classification", "prior", "denoising"}
    t = draw_times(len(y), "uniform", rng(2))
    error = unit.denoising(x, y, t, rng(3), "snr", "l2").std().item() / len(y) ** 0.5
    assert error < 0.02
    assert abs(bound["denoising"] - entropy) < 5 * error
    assert 0 <= bound["prior"] < 2e-4
    assert 0 <= bound["classification"] < 1e-3


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_no_other_denoiser_has_a_better_bound(scale):
    """Bayes' logits times ½ or 2, too unsure or too sure: more than 5 standard errors above."""
    x, y = labels(20_000)
    weight, schedule = one_hot_embeddings(3), LONG["linear"]
    t = draw_times(len(y), "stratified", rng(2))
    best, other = (
        make_unit(Bayes(schedule, weight, k), weight, schedule).denoising(
            x, y, t, rng(3), "snr", "l2"
        )
        for k in (1.0, scale)
    )
    excess = other - best
    assert excess.mean() > 5 * excess.std() / len(y) ** 0.5


def test_the_bound_is_that_of_the_paper_however_it_is_trained():
    """η, the weighting, the objective and the sampling of times are training's; Eq. 9 has η = 1."""
    x, y = labels(100)
    weight, schedule = one_hot_embeddings(3), LONG["linear"]
    plain = make_unit(Bayes(schedule, weight), weight, schedule)
    other = make_unit(
        Bayes(schedule, weight), weight, schedule,
        eta=0.01, weighting="uniform", objective="cross-entropy", time_sampling="stratified",
    )  # fmt: skip
    bounds = [ContinuousNoProp(unit).bound(x, y, rng(1)) for unit in (plain, other)]
    assert bounds[0] == bounds[1]
    assert plain.loss(x, y, rng()).total != other.loss(x, y, rng()).total


# -- what trains the schedule -------------------------------------------------------------------


class Smooth(KnownNetwork):
    """A guess that depends on z and t, smoothly."""

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        time_context: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return context + torch.sin(2 * z) + time_context


@pytest.mark.parametrize("objective", ["l2", "cross-entropy"])
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_only_the_bound_trains_the_schedule_by_its_errors(weighting, objective):
    """Any other sum would teach it to make the task easy; prior and readout always move its ends.

    SNR' times the cross-entropy is no bound either: a steeper schedule weighs the same error less.
    """
    schedule, weight = LearnedSchedule(2.0, -2.0, 1.0), random_embeddings(4, 4, rng())
    choice = {"weighting": weighting, "objective": objective}
    unit = make_unit(Smooth(), weight, schedule, learned=True, **choice)
    y = torch.arange(12) % 4
    terms = unit.loss(torch.zeros(12, 4), y, rng()).terms
    of_schedule = list(schedule.parameters())
    if (weighting, objective) == ("snr", "l2"):
        reached = torch.autograd.grad(terms["denoising"], of_schedule, retain_graph=True)
        assert all(bool((g != 0).all()) for g in reached)
    else:
        reached = torch.autograd.grad(
            terms["denoising"], of_schedule, retain_graph=True, allow_unused=True
        )
        assert all(g is None or not g.any() for g in reached)
    (of_embedding,) = torch.autograd.grad(
        terms["denoising"], [unit.embedding.weight], retain_graph=True
    )
    assert (of_embedding != 0).all()
    for name, index in (("prior", 0), ("classification", 1)):
        (ends,) = torch.autograd.grad(terms[name], [schedule.ends], retain_graph=True)
        assert ends[index] != 0
        assert ends[1 - index] == 0


def test_the_schedule_s_gradient_is_that_of_the_whole_term():
    """Through the weight and through z_t alike: central differences with one noise, float64."""
    schedule, weight = (
        LearnedSchedule(2.0, -2.0, 1.0).double(),
        random_embeddings(4, 4, rng()).double(),
    )
    unit = make_unit(Smooth(), weight, schedule)
    x, y = torch.zeros(12, 4, dtype=torch.float64), torch.arange(12) % 4
    t = torch.linspace(0.02, 0.98, 12, dtype=torch.float64)

    def term() -> Tensor:
        return unit.denoising(x, y, t, rng(5), "snr", "l2").mean()

    for p in schedule.parameters():
        assert_gradient_is_that_of_differences(term, p, least=1e-6)


@pytest.mark.parametrize("readout", [SoftmaxReadout, RadialReadout])
@pytest.mark.parametrize("term", ["classification", "prior", "denoising"])
def test_the_gradient_of_the_embeddings_is_that_of_the_term(term, readout):
    """Through u_y in z_t, z_1, target and prior, through û, and as a radial readout reads them."""
    weight = random_embeddings(4, 4, rng()) * 2
    with seeded(0):
        made = readout(weight, "random").double()
    embedding = Embedding(weight.double(), learned=True)
    unit = DenoiserUnit(Smooth(), made, LinearSchedule(2.0, -2.0), embedding)
    x, y = torch.zeros(12, 4, dtype=torch.float64), torch.arange(12) % 4
    assert_gradient_is_that_of_differences(
        lambda: unit.loss(x, y, rng(5)).terms[term], embedding.weight
    )


# -- the chain and the flow ---------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", 7), ("euler", 1000), ("heun", 100)])
def test_with_the_true_embedding_every_latent_is_what_the_network_was_trained_on(sampler, steps):
    """û = u_y gives z_t ~ q(z_t|y) at every level kept, and each is shown with its own time.

    The chain has that law at any T, the solvers to their error, which at these T is below 0.01 of
    a deviation. |score| > 5 for 14 numbers at up to 21 levels: a fresh seed fails with
    probability < 2e-4. A latent shown with the time of the next is seen by its t.
    """
    n, network = 4000, KnownNetwork(1e4)
    weight, schedule = random_embeddings(4, 7, rng(1)) * 2, LinearSchedule(12.0, -4.0)
    unit = make_unit(network, weight, schedule)
    method = ContinuousNoProp(unit, steps=steps, sampler=sampler)
    y = torch.randint(4, (n,), generator=rng(2))
    p = method.predict(F.one_hot(y, 4).float(), rng(3))
    for t, z in zip(p.times.tolist(), p.latents, strict=True):
        power = 1 / (1 + math.exp(12 - 16 * t))
        assert scores((z - power**0.5 * weight[y]) / (1 - power) ** 0.5) < 5
    assert p.steps[-1].equal(y)
    shown = [round(t[0].item() * steps, 3) for _, t in network.seen]
    if sampler == "heun":
        assert shown == [i for step in range(steps) for i in (step, step + 1)]
    else:
        assert shown == list(range(steps))
    assert p.evaluations == len(network.seen)
    first_of_step = network.seen[:: 2 if sampler == "heun" else 1]
    kept = (p.times * steps).round().long().tolist()
    for level, z in zip(kept[:-1], p.latents, strict=False):
        assert torch.equal(first_of_step[level][0], z)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_chain_is_a_sample_of_the_posterior_and_every_guess_s_mean_is_it(sampler):
    """With Bayes' rule for a denoiser, labels come as often as p(y|x), at any time (tower).

    T = 200: the posterior's mean, as a network gives it, is exact only for T → ∞; here its bias is
    about 0.005. 5000 chains an input, so a mean's standard error is ≤ 0.0071, and of 2000 single
    ones 0.011: with five of them and the bias, 0.04 and 0.06, a fresh seed fails with
    probability < 3e-5. Chains that answered the mode would be off by 0.4.
    """
    schedule, weight = LinearSchedule(10.0, -6.0), one_hot_embeddings(3)
    unit = make_unit(Bayes(schedule, weight), weight, schedule)
    method = ContinuousNoProp(unit, steps=200, sampler=sampler)
    p = method.predict(TABLE.log(), rng(5), samples=5000)
    torch.testing.assert_close(p.probabilities, TABLE, atol=0.04, rtol=0)
    assert p.path is not None
    assert p.path.shape == (10, 3, 3)
    assert (p.path - TABLE).abs().max() < 0.04
    single = method.predict(TABLE.log().repeat_interleave(2000, 0), rng(6)).single.argmax(1)
    frequency = F.one_hot(single.view(3, 2000), 3).float().mean(1)
    torch.testing.assert_close(frequency, TABLE, atol=0.06, rtol=0)


def test_the_mean_chain_is_no_sample():
    """Without noise it answers the mode: what the frequencies above would look like without c."""
    schedule, weight = LinearSchedule(10.0, -6.0), one_hot_embeddings(3)
    unit = make_unit(Bayes(schedule, weight), weight, schedule)
    mode = ContinuousNoProp(unit, steps=300).predict(TABLE.log(), rng(), noise=False)
    assert mode.probabilities.argmax(1).equal(TABLE.argmax(1))
    assert (mode.probabilities - TABLE).abs().max() > 0.3


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 45])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_makes_a_prediction(steps, sampler):
    """Guesses of the path average fall into min(10, T) stretches, none of them empty."""
    weight, schedule = one_hot_embeddings(3), LinearSchedule(6.0, -6.0)
    network, asked = Bayes(schedule, weight), []
    network.register_forward_hook(lambda *_: asked.append(1))
    method = ContinuousNoProp(make_unit(network, weight, schedule), steps=steps, sampler=sampler)
    p = method.predict(TABLE.log(), rng(), samples=2, average="path")
    assert p.path is not None
    assert len(p.path) == min(10, steps)
    assert p.times[-1] == 1
    assert p.evaluations == len(asked) == steps * (2 if sampler == "heun" else 1)
    torch.testing.assert_close(p.probabilities.sum(1), torch.ones(3))


def test_the_control_is_the_last_step_on_noise():
    """z ~ N(0, I), by 5-sigma moments, at t = 1 - 1/T."""
    network, weight = KnownNetwork(), one_hot_embeddings(10)
    method = ContinuousNoProp(make_unit(network, weight, LinearSchedule(6.0, -6.0)), steps=8)
    assert method.control(rng(1), torch.eye(10).repeat(400, 1)).shape == (4000,)
    ((z, t),) = network.seen
    assert scores(z) < 5
    assert t.unique().tolist() == [1 - 1 / 8]


# -- the split network --------------------------------------------------------------------------


def whole_network(block: ContinuousBlock, z: Tensor, x: Tensor, t: float) -> Tensor:
    """Fig. 5 in one piece: everything anew from z, x and t, the features side by side."""
    assert block.time
    assert block.latent
    time = block.time(sinusoidal_embedding(torch.full((len(z),), t)))
    features = [block.image(x), block.latent(z.unflatten(1, block.latent_shape)), time]
    hidden = block.head.join(torch.cat(features, dim=1)).relu()
    return block.head.out(block.head.hidden(hidden).relu())


@pytest.mark.parametrize("latent", [(5,), (1, 8, 8)], ids=["vector", "image"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_features_computed_once_give_the_predictions_of_the_plain_chain(sampler, latent):
    """A hundred steps with the whole network at each, and Eq. 6 as printed, in float64.

    Latents of up to 3 agree to 1e-4 after a hundred steps of float32, probabilities likewise.
    """
    dim, steps = math.prod(latent), 100
    torch.manual_seed(0)
    block = ContinuousBlock((1, 8, 8), latent, 5).eval()
    for p in block.head.out.parameters():
        p *= 10  # guesses that differ, so that an error would show
    weight, schedule = random_embeddings(5, dim, rng(1)) * dim**0.5, LearnedSchedule(6.0, -6.0)
    unit = make_unit(block, weight, schedule)
    method = ContinuousNoProp(unit, steps=steps, sampler=sampler)
    x = torch.empty(6, 1, 8, 8).normal_(generator=rng(2))
    found = method.predict(x, rng(3))

    gamma = schedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64))[0]
    bars, draws = torch.sigmoid(-gamma).tolist(), rng(3)
    z = torch.empty(6, dim).normal_(generator=draws)
    latents, guesses = [z], []

    def guess(z: Tensor, i: int) -> Tensor:
        return whole_network(block, z, x, i / steps).softmax(1) @ weight

    def velocity(z: Tensor, i: int) -> Tensor:
        return 0.5 * (bars[i] ** 0.5 * guess(z, i) - bars[i] * z)

    for i in range(steps):
        before, after = bars[i], bars[i + 1]
        guesses.append(whole_network(block, z, x, i / steps).softmax(1))
        if sampler == "ancestral":
            alpha = before / after
            noise = torch.empty_like(z).normal_(generator=draws)
            a = after**0.5 * (1 - alpha) / (1 - before)
            b = alpha**0.5 * (1 - after) / (1 - before)
            c = (1 - after) * (1 - alpha) / (1 - before)
            z = a * guess(z, i) + b * z + c**0.5 * noise
        else:
            h = (gamma[i] - gamma[i + 1]).item()
            first = velocity(z, i)
            second = velocity(z + h * first, i + 1) if sampler == "heun" else first
            z = z + h * (first + second) / 2
        latents.append(z)
    kept = (found.times * steps).round().long()
    torch.testing.assert_close(found.latents, torch.stack(latents)[kept], rtol=0, atol=1e-4)
    ends = unit.readout(z, weight).softmax(1)
    torch.testing.assert_close(found.probabilities, ends, rtol=0, atol=1e-4)
    assert found.path is not None
    if sampler != "heun":  # Heun's second guesses count too, each in the stretch of its level
        path = torch.stack(guesses).unflatten(0, (10, 10)).mean(1)
        torch.testing.assert_close(found.path, path, rtol=0, atol=1e-5)
    spread = torch.stack(guesses).std(0).max()
    assert spread > 0.01  # the guesses move with z and t
