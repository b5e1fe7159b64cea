"""The chain and the probability flow: their laws with a perfect denoiser, and the solvers' rates.

A guess of the label can be perfect in two ways. Drawn from Bayes' posterior p(y|z), it makes the
chain exact at any T. The posterior's mean is what a trained network gives; with it the chain and
Euler's steps are off by a bias of order 1/T, Heun's by 1/T². Each test says which it uses.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from noprop.diffusion import step_coefficients
from noprop.samplers import ancestral, euler, heun, probability_flow
from noprop.schedules import cosine_gamma, cosine_gamma_at, linear_gamma_at


def chain(denoise, z, gamma, generator=None, observe=None):
    k = step_coefficients(gamma).to("cpu", z.dtype)
    return ancestral(denoise, z, k.a, k.b, k.c, generator, observe)


def test_with_the_true_embedding_the_chain_ends_at_the_last_marginal():
    """N(√ᾱ_T u, 1 - ᾱ_T) for z_0 ~ q(z_0|y); 24 scores beyond 5: probability < 5e-5 a seed.

    Every level is checked, so noise of deviation c instead of variance c is red at the first.
    """
    n, u = 20_000, torch.tensor([1.0, -2.0, 0.5])
    gamma = torch.tensor([2.0, 1.0, -0.5, -1.0], dtype=torch.float64)
    alpha_bar = torch.sigmoid(-gamma).float()
    generator = torch.Generator().manual_seed(0)
    z0 = alpha_bar[0].sqrt() * u + (1 - alpha_bar[0]).sqrt() * torch.randn(
        n, 3, generator=generator
    )

    def check(t, z):
        level = alpha_bar[t]
        assert ((z.mean(0) - level.sqrt() * u) / ((1 - level) / n).sqrt()).abs().max() < 5
        assert ((z.var(0) / (1 - level) - 1) / (2 / (n - 1)) ** 0.5).abs().max() < 5

    chain(lambda i, z: u.expand_as(z), z0, gamma, generator, check)


def test_the_mean_chain_with_one_guess_has_a_closed_form():
    """z_T = √ᾱ_T u + Π b_t (z_0 - √ᾱ_0 u): the deviation from the marginal's mean shrinks by b."""
    gamma, u = cosine_gamma(10), torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)
    z0 = torch.tensor([[0.5, 2.0], [-1.0, 0.1]], dtype=torch.float64)
    alpha_bar, b = torch.sigmoid(-gamma), step_coefficients(gamma).b
    expected = alpha_bar[-1].sqrt() * u + b.prod() * (z0 - alpha_bar[0].sqrt() * u)
    found = chain(lambda i, z: u, z0, gamma)
    torch.testing.assert_close(found, expected)


def test_an_observer_sees_every_latent_and_a_denoiser_the_one_before():
    seen, read = [], []

    def denoise(i, z):
        read.append((i, z))
        return torch.tanh(z)

    z0 = torch.ones(2, 3)
    last = chain(
        denoise,
        z0,
        cosine_gamma(4),
        torch.Generator().manual_seed(0),
        lambda t, z: seen.append((t, z)),
    )
    assert [t for t, _ in seen] == [0, 1, 2, 3, 4]
    assert [i for i, _ in read] == [0, 1, 2, 3]
    assert seen[0][1] is z0
    assert seen[-1][1] is last
    assert all(before is z for (_, before), (_, z) in zip(seen[:-1], read, strict=True))


def test_the_noise_is_that_of_the_generator():
    z0 = torch.zeros(5, 2)
    one, two, other = (
        chain(lambda i, z: z, z0, cosine_gamma(4), torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


U = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -0.5]])
PRIOR = torch.tensor([0.5, 0.3, 0.2])


def posterior(z, alpha_bar):
    """Bayes' rule over the three classes: p(y|z) for z ~ N(√ᾱ u_y, 1-ᾱ)."""
    distance = (z[:, None] - alpha_bar.sqrt() * U).square().sum(2)
    return (PRIOR.log() - distance / (2 * (1 - alpha_bar))).softmax(1)


def class_scores(level_read, *, n=40_000):
    """Scores of the final nearest-class counts against p(y).

    Each guess is a class **drawn** from the exact posterior, for then the chain's marginals are
    exact at any T: z_t given z_{t-1} is Σ_y p(y|z_{t-1}) q(z_t|z_{t-1}, y). The posterior's mean,
    as a trained block gives it, is exact only for T → ∞.
    """
    gamma = cosine_gamma(10)
    alpha_bar = torch.sigmoid(-gamma).float()
    generator = torch.Generator().manual_seed(0)

    def denoise(i, z):
        p = posterior(z, alpha_bar[level_read(i)])
        return U[torch.multinomial(p, 1, generator=generator)[:, 0]]

    z = chain(denoise, torch.empty(n, 2).normal_(generator=generator), gamma, generator)
    counts = torch.cdist(z, U).argmin(1).bincount(minlength=3)
    return (counts - n * PRIOR) / (n * PRIOR * (1 - PRIOR)).sqrt()


def test_the_chain_of_bayes_denoisers_draws_each_class_as_often_as_it_occurs():
    """Any of 3 scores beyond 5 has probability < 2e-6 a seed."""
    assert class_scores(lambda i: i).abs().max() < 5


def test_a_chain_whose_blocks_were_trained_on_the_next_level_does_not():
    """Slip 2: block t trained on z_t and given z_{t-1}. The test above would see it."""
    assert class_scores(lambda i: i + 1).abs().max() > 10


def test_the_posterior_mean_chain_nears_the_prior_as_the_steps_grow():
    """The deterministic û of a trained block: its bias falls like 1/T, from 0.02 at T = 10."""
    n, errors = 40_000, []
    for T in (5, 80):
        gamma = cosine_gamma(T)
        levels = torch.sigmoid(-gamma).float()
        generator = torch.Generator().manual_seed(0)
        z0 = torch.empty(n, 2).normal_(generator=generator)
        z = chain(lambda i, z, at=levels: posterior(z, at[i]) @ U, z0, gamma, generator)
        frequency = torch.cdist(z, U).argmin(1).bincount(minlength=3) / n
        errors.append((frequency - PRIOR).abs().max())
    assert errors[0] > 0.03
    assert errors[1] < 0.015  # 0.003 of bias and five standard errors of 0.0025


# -- solvers of an ODE: rates on problems with a solution in closed form ------------------------

SOLVERS = [(euler, 1), (heun, 2)]
RATES = pytest.mark.parametrize(("follow", "order"), SOLVERS, ids=["euler", "heun"])
SCHEDULES = {"linear": linear_gamma_at, "cosine": cosine_gamma_at}


def unit_times(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def rates(error: Callable[[int], float], first: int = 64, halvings: int = 3) -> list[float]:
    """log₂ of what halving the step does to the error."""
    errors = [error(first * 2**k) for k in range(halvings + 1)]
    return [math.log2(a / b) for a, b in pairwise(errors)]


@RATES
def test_a_solver_has_its_order(follow, order):
    """dz/ds = z cos s has z = z_0 exp(sin s); the times are unequal, as those of a schedule are.

    A step with its neighbour's length, or a second evaluation at the first's time, is of order 1
    at best, or does not converge at all.
    """
    z0 = torch.tensor([[1.0, -2.0], [0.3, 4.0]], dtype=torch.float64)

    def error(steps: int) -> float:
        times = 3 * unit_times(steps) ** 2
        end = follow(lambda i, z: z * times[i].cos(), z0, times)
        return (end - z0 * math.exp(math.sin(3.0))).abs().max().item()

    assert rates(error) == pytest.approx([order] * 3, abs=0.1)


def test_solvers_are_exact_where_their_order_says():
    """Euler for a constant velocity, Heun for one linear in time: at any step, to rounding."""
    times = torch.tensor([0.0, 0.5, 0.6, 2.0], dtype=torch.float64)
    z0 = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    ends = euler(lambda i, z: torch.ones_like(z) * 3, z0, times)
    torch.testing.assert_close(ends, z0 + 6)
    ends = heun(lambda i, z: torch.ones_like(z) * (1 + 2 * times[i]), z0, times)
    torch.testing.assert_close(ends, z0 + 6)


@RATES
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_one_guess_the_flow_keeps_the_noise_and_moves_the_mean(schedule, follow, order):
    """Exactly z = √ᾱ u + √(1-ᾱ) ε with the ε of the start, at every level and for any u.

    So the flow has the marginals of the process. √ᾱ forgotten, ᾱ for √ᾱ or a missing ½ leads
    elsewhere, and the rate is then 0.
    """
    u = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]], dtype=torch.float64)
    noise = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-1.0, 0.0]], dtype=torch.float64)

    def error(steps: int) -> float:
        gamma, _ = SCHEDULES[schedule](unit_times(steps), 5.0, -3.0)
        power = torch.sigmoid(-gamma)[:, None, None]
        exact = power.sqrt() * u + (1 - power).sqrt() * noise
        seen: list[Tensor] = []
        flow = probability_flow(lambda i, z: u, gamma)
        follow(flow, exact[0], -gamma, lambda i, z: seen.append(z))
        return (torch.stack(seen) - exact).abs().max().item()

    assert rates(error) == pytest.approx([order] * 3, abs=0.1)


# -- the whole law, on a line: p(y) and q(z|y) known, every quantile with them -------------------

LINE = torch.tensor([[-1.0], [0.3], [1.0]], dtype=torch.float64)


def on_line(z: Tensor, gamma: Tensor) -> Tensor:
    """p(y|z), Bayes' rule."""
    distance = (z - torch.sigmoid(-gamma).sqrt() * LINE.T).square()
    return (PRIOR.double().log() - distance / (2 * torch.sigmoid(gamma))).softmax(1)


def quantile(z: Tensor, gamma: Tensor) -> Tensor:
    """What part of q(z) = Σ_y p(y) q(z|y) lies below each z."""
    score = (z - torch.sigmoid(-gamma).sqrt() * LINE.T) / torch.sigmoid(gamma).sqrt()
    return torch.special.ndtr(score) @ PRIOR.double()


def distance_to(gamma: Tensor, z: Tensor) -> float:
    """Kolmogorov's distance between a sample and q(z) at a level."""
    levels, n = quantile(z, gamma).sort().values, len(z)
    return ((levels - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n).item()


@RATES
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_bayes_for_a_denoiser_the_flow_keeps_each_particle_s_quantile(schedule, follow, order):
    """On a line paths cannot cross, so what lies below a particle stays: an exact solution.

    The denoiser is the posterior's mean, as of a trained network; nothing is drawn.
    """
    z0 = torch.linspace(-2.5, 2.5, 51, dtype=torch.float64)[:, None]

    def error(steps: int) -> float:
        gamma, _ = SCHEDULES[schedule](unit_times(steps), 6.0, -3.0)
        flow = probability_flow(lambda i, z: on_line(z, gamma[i]) @ LINE, gamma)
        end = follow(flow, z0, -gamma)
        return (quantile(end, gamma[-1]) - quantile(z0, gamma[0])).abs().max().item()

    assert rates(error, first=100, halvings=2) == pytest.approx([order] * 2, abs=0.15)


@pytest.mark.parametrize(("steps", "n"), [(2, 20_000), (10, 20_000), (100, 10_000), (1000, 3000)])
def test_the_chain_has_the_law_of_the_process_at_any_length(steps, n):
    """Guesses are drawn from the posterior: then z_t ~ q(z_t) exactly, for two steps or 1000.

    Kolmogorov's distance beyond 2.7/√n has probability < 1e-6 at each of the 3 levels looked at.
    The start, N(0, 1) for q(z_0) at ᾱ_0 = 8e-7, is off by less than 4e-4.
    """
    gamma, _ = linear_gamma_at(unit_times(steps), 14.0, -5.0)
    generator = torch.Generator().manual_seed(steps)
    looked_at: list[int] = []

    def draw(i: int, z: Tensor) -> Tensor:
        return LINE[torch.multinomial(on_line(z, gamma[i]), 1, generator=generator)[:, 0]]

    def check(i: int, z: Tensor) -> None:
        if i in (steps // 2, steps * 3 // 4, steps):
            looked_at.append(i)
            assert distance_to(gamma[i], z) < 2.7 / n**0.5

    z0 = torch.empty(n, 1, dtype=torch.float64).normal_(generator=generator)
    chain(draw, z0, gamma, generator, check)
    assert looked_at[-1] == steps


def particles(n: int) -> Tensor:
    """The standard normal's quantiles, so that no sampling error hides a bias."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def test_chain_and_flow_with_a_network_s_denoiser_agree_as_the_steps_grow():
    """The posterior's mean at T = 10, 100 and 1000, by Kolmogorov's distance to the last marginal.

    At T = 10 they are 0.06 (Heun) to 0.13 off, which is the method's and no sampler's error; at 100
    Euler is 0.005 off, Heun 0.0005, the chain 0.01. The chain draws: 2.7/√n, exceeded with
    probability < 1e-6, comes on top of its bias. It alone is run at 1000, where the bias is gone.
    """

    def distances(steps: int, n: int) -> dict[str, float]:
        gamma, _ = linear_gamma_at(unit_times(steps), 14.0, -5.0)

        def denoise(i: int, z: Tensor) -> Tensor:
            return on_line(z, gamma[i]) @ LINE

        generator = torch.Generator().manual_seed(0)
        z0 = torch.empty(n, 1, dtype=torch.float64).normal_(generator=generator)
        ends = {"ancestral": chain(denoise, z0, gamma, generator)}
        if steps <= 100:
            flow = probability_flow(denoise, gamma)
            ends |= {f.__name__: f(flow, particles(2001), -gamma) for f, _ in SOLVERS}
        return {name: distance_to(gamma[-1], z) for name, z in ends.items()}

    coarse, fine, finest = distances(10, 10_000), distances(100, 10_000), distances(1000, 3000)
    assert min(coarse.values()) > 0.04
    assert coarse["heun"] < 0.08
    assert fine["euler"] < 0.006
    assert fine["heun"] < 0.001
    assert fine["ancestral"] < 0.01 + 2.7 / 100
    assert finest["ancestral"] < 2.7 / 3000**0.5


@pytest.mark.parametrize("sampler", ["ancestral", "euler", "heun"])
def test_every_sampler_draws_each_class_as_often_as_it_occurs(sampler):
    """On the plane, with the posterior's mean, at T = 200, where its bias is about 0.005.

    n = 20 000; a frequency's standard error is at most 0.0036, so 0.023 is the bias and five of
    them: a fresh seed fails with probability < 2e-6. A denoiser that answered the likeliest class
    would be 0.5 off. One that reads a level too far is not seen here, but at T = 10 above.
    """
    n, steps = 20_000, 200
    gamma, _ = linear_gamma_at(unit_times(steps).float(), 12.0, -6.0)
    power = torch.sigmoid(-gamma)
    generator = torch.Generator().manual_seed(0)
    z0 = torch.empty(n, 2).normal_(generator=generator)

    def denoise(i: int, z: Tensor) -> Tensor:
        return posterior(z, power[i]) @ U

    if sampler == "ancestral":
        z = chain(denoise, z0, gamma.double(), generator)
    else:
        follow = euler if sampler == "euler" else heun
        z = follow(probability_flow(denoise, gamma), z0, -gamma)
    frequency = torch.cdist(z, U).argmin(1).bincount(minlength=3) / n
    assert (frequency - PRIOR).abs().max() < 0.023


@RATES
def test_an_observer_sees_every_level_of_a_flow(follow, order):
    """Euler asks at each level but the last, Heun at both ends of each step."""
    seen: list[tuple[int, Tensor]] = []
    asked: list[int] = []

    def velocity(i: int, z: Tensor) -> Tensor:
        asked.append(i)
        return -z

    z0 = torch.ones(2, 3)
    last = follow(velocity, z0, torch.linspace(0, 1, 5), lambda i, z: seen.append((i, z)))
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[0][1] is z0
    assert seen[-1][1] is last
    assert asked == [[0, 1, 2, 3], [0, 1, 1, 2, 2, 3, 3, 4]][order - 1]
    values = torch.stack([z[0, 0] for _, z in seen])
    assert (values.diff() < 0).all()
