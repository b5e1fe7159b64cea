"""Exact evidence: Bayes' rule by brute force, in every method that can add it to its logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from known_blocks import Bayes, Known, KnownNetwork
from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Normalization
from noprop.embeddings import Embedding, one_hot_embeddings, random_embeddings
from noprop.errors import ConfigError
from noprop.evidence import flow_evidence, level_evidence
from noprop.flow import expected_velocity, sample_path
from noprop.methods.chains import initial_latent
from noprop.methods.ct import ContinuousNoProp, DenoiserUnit
from noprop.methods.dt import DiscreteNoProp
from noprop.methods.fm import FlowNoProp, VelocityUnit
from noprop.readouts import SoftmaxReadout
from noprop.schedules import LearnedSchedule, LinearSchedule, cosine_gamma
from noprop.task import Task
from tools import rng


def posterior(z: Tensor, log_p: Tensor, weight: Tensor, signal: float, variance: float) -> Tensor:
    """p(y | z, x) by Bayes' rule, from the densities of torch: no formula of the package."""
    covariance = variance * torch.eye(weight.shape[1], dtype=weight.dtype)
    densities = [MultivariateNormal(signal * u, covariance).log_prob(z) for u in weight]
    return (log_p + torch.stack(densities, dim=-1)).softmax(dim=-1)


# -- the theorem ---------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    gamma=st.floats(-12, 8),
    classes=st.integers(2, 5),
    length=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_the_exact_block_is_bayes_rule_at_every_level(seed, gamma, classes, length):
    """softmax(log p(y|x) + e_y) = p(y | z, x), in float64, also for embeddings that are short.

    Their levels are shifted as ``gamma_shift`` = auto does, so that 1 - ᾱ falls to 6e-12.
    """
    weight = length * random_embeddings(classes, 3, rng(seed)).double()
    log_p = torch.randn(6, classes, generator=rng(seed + 1), dtype=torch.float64).log_softmax(1)
    level = torch.tensor(gamma, dtype=torch.float64) + 2 * math.log(length)
    signal, variance = torch.sigmoid(-level).sqrt().item(), torch.sigmoid(level).item()
    noise = torch.randn(6, 3, generator=rng(seed + 2), dtype=torch.float64)
    z = signal * weight[torch.arange(6) % classes] + variance**0.5 * noise
    expected = posterior(z, log_p, weight, signal, variance)
    found = (log_p + level_evidence(z, weight, level)).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    each = (log_p + level_evidence(z, weight, level.expand(6))).softmax(1)
    torch.testing.assert_close(each, found, rtol=1e-14, atol=1e-14)


@given(seed=st.integers(0, 2**32), t=st.floats(0, 0.99), sigma=st.floats(0, 1))
def test_the_exact_flow_is_bayes_rule_at_every_time(seed, t, sigma):
    """The same for z_t = t u_y + (1 - t) z_0 + σ ε, in float64."""
    weight = random_embeddings(3, 4, rng(seed)).double()
    log_p = torch.randn(6, 3, generator=rng(seed + 1), dtype=torch.float64).log_softmax(1)
    z = torch.randn(6, 4, generator=rng(seed + 2), dtype=torch.float64)
    time = torch.tensor(t, dtype=torch.float64)
    expected = posterior(z, log_p, weight, t, (1 - t) ** 2 + sigma**2)
    found = (log_p + flow_evidence(z, weight, time, sigma)).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_at_the_clean_end_evidence_is_bounded_and_names_the_nearest_embedding():
    weight = one_hot_embeddings(4)
    z = weight + 0.1 * torch.randn(4, 4, generator=rng())
    for found in (
        flow_evidence(z, weight, torch.tensor(1.0)),
        level_evidence(z, weight, torch.tensor(-13.0)),
    ):
        assert found.isfinite().all()
        assert found.abs().max() < 2e6
        assert found.argmax(1).equal(torch.arange(4))
    short = 1e-3 * weight  # the bound follows the length: their evidence is as great
    end = torch.tensor(1.0)
    found, expected = flow_evidence(1e-3 * z, short, end), flow_evidence(z, weight, end)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_autocast_does_not_round_the_evidence():
    """bf16 keeps three digits: at SNR 1000 that is several nats."""
    weight, gamma = random_embeddings(5, 20, rng()), torch.tensor(-7.0)
    z = torch.randn(50, 20, generator=rng(1))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = level_evidence(z, weight, gamma)
    assert torch.equal(rounded, level_evidence(z, weight, gamma))


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_the_expected_velocity_misses_by_what_no_function_of_the_latent_explains(sigma):
    """Its error has mean 0 and no correlation with z_t, given the label.

    100,000 draws, 2 × 3 scores: |score| > 5 in a fresh seed has probability < 4e-6. A (1 - t) that
    is lost, or σ², is far beyond it.
    """
    n, time = 100_000, torch.tensor(0.6)
    u = torch.tensor([1.0, -0.5, 0.2]).expand(n, 3)
    noise = torch.randn(n, 3, generator=rng(1))
    z = sample_path(noise, u, time.expand(n), sigma, rng(2))

    def score(v: Tensor) -> float:
        error = v - (u - noise)
        products = torch.cat([error, error * z], dim=1)
        deviation = products.std(0).clamp(min=1e-6)
        return (products.mean(0) / deviation * n**0.5).abs().max().item()

    v = expected_velocity(u, z, time, sigma)
    if sigma:
        assert score(v) < 5
        assert score(expected_velocity(u, z, time, 0.0)) > 20
    else:  # the latent tells the noise
        torch.testing.assert_close(v, u - noise, rtol=1e-4, atol=1e-4)
    assert score(u - (z - time * u) * 0.4) > 20


# -- the methods -----------------------------------------------------------------------------------


def discrete(blocks: int, weight: Tensor, **options) -> DiscreteNoProp:
    """A method whose networks know log p(y|x), which is their x, and nothing of z."""
    networks, embedding = [Known() for _ in range(blocks)], Embedding(weight, learned=False)
    gamma = cosine_gamma(blocks)
    return DiscreteNoProp(networks, embedding, SoftmaxReadout(weight), gamma, exact=True, **options)


@pytest.mark.parametrize("t", range(1, 6))
def test_block_t_adds_the_evidence_of_the_latent_before_it(t):
    """The level is t - 1: with that of the block's own end it would not be Bayes' rule."""
    weight = random_embeddings(4, 3, rng(1))
    method = discrete(5, weight)
    z, x = torch.randn(8, 3, generator=rng(2)), torch.randn(8, 4, generator=rng(3))
    found = method.blocks[t - 1].logits(z, x).softmax(1)
    torch.testing.assert_close(found, Bayes(method.gamma[t - 1], weight)(z, x).softmax(1))
    assert (found - Bayes(method.gamma[t], weight)(z, x).softmax(1)).abs().max() > 1e-3


def test_the_evidence_passes_a_gradient_to_learned_embeddings_through_z_alone():
    """Not as the rows that z is compared with: so validation was best (docs/evidence.md).

    With z held, the logits of networks that know p(y|x) require no gradient. With z made of W_Embed
    its gradient is that of the term as a function of z.
    """
    weight, readout = random_embeddings(4, 3, rng(1)), SoftmaxReadout(torch.ones(4, 3))
    embedding = Embedding(weight, learned=True)
    x, y = torch.randn(8, 4, generator=rng(3)), torch.arange(8) % 4
    t, gamma = torch.tensor(0.5), torch.tensor(-1.0)
    dt = DiscreteNoProp(
        [Known() for _ in range(3)], embedding, readout, cosine_gamma(3), exact=True
    )
    ct = DenoiserUnit(KnownNetwork(), readout, LinearSchedule(7.0, -7.0), embedding, exact=True)
    fm = VelocityUnit(KnownNetwork(), None, embedding, anchor=True)
    ways = {
        "dt": lambda z: dt.blocks[1].logits(z, x, gamma=gamma),
        "ct": lambda z: ct.logits(z, x, t.view(1, 1), gamma),
        "fm": lambda z: fm.velocity_and_logits(z, x, t.view(1, 1), t)[1],
    }
    noise = torch.randn(8, 3, generator=rng(2))
    for name, logits in ways.items():
        assert not logits(noise).requires_grad
        z = embedding(y) + noise
        (found,) = torch.autograd.grad(logits(z).log_softmax(1)[:, 0].sum(), embedding.weight)
        fixed, known = weight.clone(), z.detach().requires_grad_()
        level, term_of = (t, flow_evidence) if name == "fm" else (gamma, level_evidence)
        term = term_of(known, fixed, level)
        (by_z,) = torch.autograd.grad((x + term).log_softmax(1)[:, 0].sum(), known)
        torch.testing.assert_close(found, torch.zeros_like(weight).index_add(0, y, by_z))


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_velocity_of_fm_is_that_of_bayes_rule(sigma):
    """û is the posterior's mean by brute force, and v is E[z_1 - z_0 | z_t] of a joint Gaussian."""
    weight, time = random_embeddings(4, 3, rng(1)).double(), 0.7
    z = torch.randn(8, 3, generator=rng(2), dtype=torch.float64)
    log_p = torch.randn(8, 4, generator=rng(3), dtype=torch.float64).log_softmax(1)
    unit = VelocityUnit(
        KnownNetwork(), None, Embedding(weight, learned=False), sigma=sigma, anchor=True
    )
    t = torch.tensor(time, dtype=torch.float64)
    v, logits = unit.velocity_and_logits(z, log_p, t.view(1, 1), t)
    variance = (1 - time) ** 2 + sigma**2
    expected = posterior(z, log_p, weight, time, variance)
    torch.testing.assert_close(logits.softmax(1), expected)
    u_hat = expected @ weight
    torch.testing.assert_close(v, u_hat - (1 - time) / variance * (z - time * u_hat))


def test_the_path_of_a_method_with_exact_evidence_is_p_of_y_given_its_latents():
    """The path holds p(y | z_t, x) at every step: Bayes' rule for the latent that the step read."""
    weight = random_embeddings(4, 3, rng(1))
    embedding, readout = Embedding(weight, learned=False), SoftmaxReadout(weight)
    x = torch.randn(8, 4, generator=rng(3))
    dt = discrete(4, weight)
    schedule = LinearSchedule(7.0, -7.0)
    ct = ContinuousNoProp(
        DenoiserUnit(KnownNetwork(), readout, schedule, embedding, exact=True), steps=5
    )
    fm = FlowNoProp(VelocityUnit(KnownNetwork(), None, embedding), steps=5)
    gammas = {dt: dt.gamma, ct: schedule.levels(5)}
    for method in (dt, ct, fm):
        found = method.predict(x, rng(2), samples=1)
        assert found.path is not None
        for i, p in enumerate(found.path):
            z, t = found.latents[i], found.times[i].item()
            power = t**2 if method is fm else torch.sigmoid(-gammas[method][i]).item()
            variance = (1 - t) ** 2 if method is fm else 1 - power
            expected = posterior(
                z.double(), x.double().log_softmax(1), weight.double(), power**0.5, variance
            )
            torch.testing.assert_close(p.double(), expected, rtol=1e-3, atol=1e-4)


def test_the_control_of_ct_adds_the_evidence_of_its_own_time():
    """The time of the last step, 1 - 1/T, at which noise alone reads as strong evidence."""
    weight, schedule = random_embeddings(4, 3, rng(1)), LinearSchedule(7.0, -7.0)
    embedding = Embedding(weight, learned=False)
    unit = DenoiserUnit(KnownNetwork(), SoftmaxReadout(weight), schedule, embedding, exact=True)
    method = ContinuousNoProp(unit, steps=5)
    x = 0.1 * torch.randn(200, 4, generator=rng(3))
    z = initial_latent(200, 3, rng(4), x.device)
    gamma = schedule(torch.tensor([0.8]))[0]
    expected = (x + level_evidence(z, weight, gamma)).argmax(1)
    assert torch.equal(method.control(rng(4), x), expected)
    assert not torch.equal(expected, x.argmax(1))


TABLE = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])


def frequencies(method: DiscreteNoProp | ContinuousNoProp | FlowNoProp, seed: int) -> Tensor:
    """How often 5000 single chains end at each label, for the three inputs of the table."""
    p = method.predict(TABLE.log().repeat_interleave(5000, 0), rng(seed))
    return F.one_hot(p.single.argmax(1).view(3, 5000), 3).float().mean(1)


@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_a_chain_of_ct_with_exact_evidence_samples_the_posterior(sampler):
    """5000 chains an input: 0.04 is 4.9 standard errors and a bias of 0.005 by 300 steps.

    A fresh seed fails in 9 frequencies with probability < 1e-5.
    """
    weight, schedule = one_hot_embeddings(3), LinearSchedule(7.0, -7.0)
    embedding = Embedding(weight, learned=False)
    unit = DenoiserUnit(KnownNetwork(), SoftmaxReadout(weight), schedule, embedding, exact=True)
    method = ContinuousNoProp(unit, steps=300, sampler=sampler)
    torch.testing.assert_close(frequencies(method, 4), TABLE, atol=0.04, rtol=0)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dopri5"])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_a_chain_of_fm_with_exact_evidence_samples_the_posterior(sampler, sigma):
    """As for CT."""
    weight = one_hot_embeddings(3)
    embedding = Embedding(weight, learned=False)
    unit = VelocityUnit(KnownNetwork(), None, embedding, sigma=sigma)
    method = FlowNoProp(unit, steps=200, sampler=sampler)
    torch.testing.assert_close(frequencies(method, 5), TABLE, atol=0.04, rtol=0)


def test_drawn_labels_follow_the_generator_and_nothing_else():
    """The same chain for the same seed, and torch's global state is left alone."""
    method, x = discrete(4, one_hot_embeddings(3), step="label"), TABLE.log().repeat(20, 1)
    state = torch.get_rng_state()
    first, again = (method.predict(x, rng(6)).latents for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("blocks", [1, 2, 4, 30])
def test_chains_of_drawn_labels_end_as_the_posterior_does_whatever_their_length(blocks):
    """The end of a chain of *any* T is distributed as p(y|x) when each step draws its label.

    0.035 is 4.9 standard errors: 9 frequencies of a fresh seed exceed it with probability < 1e-5.
    Steps to the mean of a few blocks end at the likely labels too often.
    """
    method = discrete(blocks, one_hot_embeddings(3), step="label")
    torch.testing.assert_close(frequencies(method, 6), TABLE, atol=0.035, rtol=0)
    if blocks < 30:
        mean = discrete(blocks, one_hot_embeddings(3))
        assert (frequencies(mean, 6) - TABLE).abs().max() > 0.06


def test_each_chain_of_an_image_draws_its_own_labels():
    """Two chains end alike as often as two draws of p(y|x): Σ_y p(y|x)².

    5000 images an input; 0.035 is 4.9 standard errors, three frequencies.
    """
    method = discrete(4, one_hot_embeddings(3), step="label")
    x = TABLE.log().repeat_interleave(5000, 0)
    p = method.predict(x, rng(7), samples=2, average="readout").probabilities
    alike = (p.amax(1) > 0.9).view(3, 5000).float().mean(1)
    torch.testing.assert_close(alike, TABLE.square().sum(1), atol=0.035, rtol=0)


def test_the_mean_chain_draws_no_labels():
    mean, label = (discrete(4, one_hot_embeddings(3), step=step) for step in ("mean", "label"))
    without_noise = [
        m.predict(TABLE.log(), rng(), noise=False).probabilities for m in (mean, label)
    ]
    assert torch.equal(*without_noise)


# -- training on noise alone -----------------------------------------------------------------------


def test_blocks_trained_on_noise_learn_a_classifier_and_predict_with_the_evidence():
    """At ᾱ = 1e-6 the evidence is at most 5e-3 nats, so each block's loss is x's cross-entropy."""
    x, y = TABLE.log().repeat_interleave(40, 0), torch.arange(120) % 3
    options = {"objective": "cross-entropy", "weighting": "uniform", "eta": 2.0}
    noise = discrete(4, one_hot_embeddings(3), noise_only=True, **options)
    own = discrete(4, one_hot_embeddings(3), **options)
    for a, b in zip(noise.blocks, own.blocks, strict=True):
        found = a.loss(x, y, rng()).total
        torch.testing.assert_close(found, F.cross_entropy(x, y), atol=5e-3, rtol=0)
        if a.name != "block-1":
            assert b.loss(x, y, rng()).total < found - 0.05
    runs = [m.predict(x, rng(1)).single for m in (noise, own)]
    assert torch.equal(*runs)
    bounds = [m.bound(x, y, rng(2)) for m in (noise, own)]
    assert bounds[0] == bounds[1]
    snr = discrete(4, one_hot_embeddings(3), noise_only=True)  # not those of the blocks' own levels
    assert {block.weight for block in snr.blocks} == {0.5 * snr.eta}


def test_the_network_of_ct_trained_on_noise_learns_a_classifier_and_not_its_schedule():
    """As for blocks. The schedule would make the task easy."""
    x, y = TABLE.log().repeat_interleave(40, 0), torch.arange(120) % 3
    weight = one_hot_embeddings(3)
    embedding, readout = Embedding(weight, learned=False), SoftmaxReadout(weight)
    losses = {}
    for noise_only in (True, False):
        unit = DenoiserUnit(
            KnownNetwork(),
            readout,
            LinearSchedule(14.0, -7.0),
            embedding,
            eta=2.0,
            objective="cross-entropy",
            weighting="uniform",
            exact=True,
            noise_only=noise_only,
        )
        losses[noise_only] = unit.loss(x, y, rng()).terms["denoising"]
    torch.testing.assert_close(losses[True], F.cross_entropy(x, y), atol=5e-3, rtol=0)
    assert losses[False] < losses[True] - 0.05
    schedule = LearnedSchedule(14.0, -7.0, room=3.0)
    unit = DenoiserUnit(KnownNetwork(), readout, schedule, embedding, exact=True, noise_only=True)
    assert not unit.loss(x, y, rng()).terms["denoising"].requires_grad


def test_the_velocity_trained_on_noise_has_the_error_of_the_classifier():
    """At t = 0 the evidence is 0, and ‖v - (z_1 - z_0)‖² is ‖û - u_y‖², the Brier score."""
    x, y = TABLE.log().repeat_interleave(40, 0), torch.arange(120) % 3
    weight = one_hot_embeddings(3)
    unit = VelocityUnit(KnownNetwork(), None, Embedding(weight, learned=False), noise_only=True)
    brier = (x.exp() - F.one_hot(y, 3)).square().sum(1).mean()
    torch.testing.assert_close(unit.loss(x, y, rng()).terms["flow"], brier)


@pytest.mark.parametrize("anchor", [False, True])
def test_the_loss_of_fm_is_least_at_p_of_y_given_x(anchor):
    """With and without the anchor: both of its terms are proper scores of the class probabilities.

    20 examples of each x have each label as often as p says, so the gradient is 0 at log p(y|x) and
    nowhere near it. A readout's cross-entropy, on û, is least elsewhere.
    """
    y = torch.tensor([12, 6, 2, 4, 4, 12, 1, 18, 1]).view(3, 3)
    y = torch.cat([torch.arange(3).repeat_interleave(row) for row in y])
    embedding = Embedding(one_hot_embeddings(3), learned=False)
    unit = VelocityUnit(KnownNetwork(), None, embedding, anchor=anchor, noise_only=True)

    def slope(logits: Tensor) -> float:
        logits = logits.clone().requires_grad_()
        loss = unit.loss(logits.repeat_interleave(20, 0), y, rng()).total
        return torch.autograd.grad(loss, logits)[0].abs().max().item()

    assert slope(TABLE.log()) < 1e-6
    assert slope(TABLE.log() + torch.tensor([0.1, 0.0, 0.0])) > 1e-3
    logits = TABLE.log().requires_grad_().repeat_interleave(20, 0)
    assert unit.loss(logits, y, rng()).terms["classification"].requires_grad is anchor
    of_classes = unit.loss(TABLE.log().repeat_interleave(20, 0), y, rng()).terms["classification"]
    entropy = -(TABLE * TABLE.log()).sum(1).mean()
    torch.testing.assert_close(of_classes, entropy)


def test_learned_embeddings_of_fm_are_not_trained_on_noise():
    """Nothing there keeps them apart: ‖û - u_y‖² alone is least where all are one point."""
    fields = {"method.name": "fm", "method.embedding": "orthogonal", "method.learned": True}
    fields |= {"method.evidence": "exact", "method.network_reads": "x"}
    replace(RunConfig(), fields)
    with pytest.raises(ConfigError, match=r"method.train_levels: .* use all, or fixed embeddings"):
        replace(RunConfig(), {**fields, "method.train_levels": "noise"})


@pytest.mark.parametrize(("field", "value"), [("readout", "radial"), ("sigma", 0.3)])
def test_fm_with_exact_evidence_has_no_readout_to_set(field, value):
    fields = {"method.name": "fm", "method.evidence": "exact", f"method.{field}": value}
    with pytest.raises(ConfigError, match=rf"method.{field}: fm .* has no readout, got {value}"):
        replace(RunConfig(), fields)


def test_training_on_noise_needs_networks_that_read_x_alone():
    with pytest.raises(ConfigError, match=r"method.train_levels: .* needs method.network_reads=x"):
        replace(RunConfig(), {"method.evidence": "exact", "method.train_levels": "noise"})


@pytest.mark.parametrize("name", ["dt", "ct", "fm"])
def test_training_on_noise_does_not_change_predictions(name):
    """The level t = 0 is that of training alone."""
    fields = {"method.name": name, "method.evidence": "exact", "method.network_reads": "x"}
    fields |= {"method.num_blocks": 3} if name == "dt" else {"method.steps": 6}
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    x = torch.randn(6, 1, 8, 8, generator=rng())
    found = []
    for levels in ("all", "noise"):
        config = replace(RunConfig(), {**fields, "method.train_levels": levels})
        torch.manual_seed(0)
        method = build_method(config, task, build_embedding(config, task, None))
        with torch.no_grad():
            found.append(method.predict(x, rng(1), samples=2))
    assert torch.equal(found[0].probabilities, found[1].probabilities)
    assert torch.equal(found[0].latents, found[1].latents)


@pytest.mark.parametrize("name", ["dt", "ct"])
def test_label_smoothing_reaches_the_loss(name):
    fields = {
        "method.name": name,
        "method.evidence": "exact",
        "method.network_reads": "x",
        "method.train_levels": "noise",
        "method.objective": "cross-entropy",
        "method.dropout": 0.0,
    }
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    x, y = torch.randn(10, 1, 8, 8, generator=rng()), torch.arange(10)
    losses = []
    for smoothing in (0.0, 0.5):
        config = replace(RunConfig(), {**fields, "train.label_smoothing": smoothing})
        torch.manual_seed(0)
        method = build_method(config, task, build_embedding(config, task, None))
        losses.append(method.units[0].loss(x, y, rng()).terms["denoising"].item())
    assert abs(losses[0] - losses[1]) > 1e-4


def test_label_smoothing_with_exact_evidence_is_for_training_on_noise():
    """Elsewhere the target of a latent that decides the label would be smoothed too."""
    fields = {"method.evidence": "exact", "method.objective": "cross-entropy"}
    with pytest.raises(ConfigError, match=r"label_smoothing: .* needs method.train_levels=noise"):
        replace(RunConfig(), {**fields, "train.label_smoothing": 0.1})


# -- networks that read x alone -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dt", "ct", "fm"])
def test_a_network_that_reads_x_alone_is_evaluated_once_and_sees_no_latent(name):
    config = replace(
        RunConfig(),
        {"method.name": name, "method.evidence": "exact", "method.network_reads": "x"},
    )
    config = replace(config, {"method.num_blocks": 3} if name == "dt" else {"method.steps": 6})
    task = Task((1, 8, 8), tuple("0123456789"), Normalization((0.0,), (1.0,)))
    method = build_method(config, task, build_embedding(config, task, None))
    x = torch.randn(6, 1, 8, 8, generator=rng())
    prepared = method.prepare(x)
    for context in prepared if isinstance(prepared, list) else [prepared]:
        assert context.shape == (6, 10)
    whole = build_method(
        replace(config, {"method.network_reads": "x and z"}),
        task,
        build_embedding(config, task, None),
    )
    for smaller, larger in zip(method.units, whole.units, strict=True):
        if smaller.name != "readout":
            assert sum(map(torch.numel, smaller.parameters)) < sum(
                map(torch.numel, larger.parameters)
            )
            assert not {n for n, _ in smaller.module.named_parameters() if "latent" in n}
    p = method.predict(x, rng(1), samples=3)
    torch.testing.assert_close(p.probabilities.sum(1), torch.ones(6))


def test_reading_x_alone_needs_the_evidence():
    with pytest.raises(ConfigError, match=r"method.network_reads: .* need method.evidence=exact"):
        replace(RunConfig(), {"method.network_reads": "x"})
