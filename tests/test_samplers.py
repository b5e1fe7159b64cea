"""The generative chain: its law with a perfect denoiser, its mean, and what an observer sees."""

import torch

from noprop.diffusion import step_coefficients
from noprop.samplers import ancestral
from noprop.schedules import cosine_gamma


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
