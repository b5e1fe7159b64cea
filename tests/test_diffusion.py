"""The forward process, its reverse step and the terms of the bound, by identity and brute force."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from noprop.diffusion import (
    StepCoefficients,
    denoising_weights,
    prior_kl,
    sample_latent,
    step_coefficients,
)
from noprop.schedules import (
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    cosine_gamma,
    snr_slope,
)


@st.composite
def gammas(draw):
    """Any strictly falling γ of 2 to 9 levels, as float64."""
    steps = draw(st.lists(st.floats(0.01, 3), min_size=1, max_size=8))
    start = torch.tensor([draw(st.floats(-1, 10))], dtype=torch.float64)
    return torch.cat([start, start - torch.tensor(steps, dtype=torch.float64).cumsum(0)])


def literal_coefficients(alpha_bar):
    """Eq. 6 as printed."""
    before, after = alpha_bar[:-1], alpha_bar[1:]
    alpha = before / after  # α_{t-1}
    return StepCoefficients(
        after.sqrt() * (1 - alpha) / (1 - before),
        alpha.sqrt() * (1 - after) / (1 - before),
        (1 - after) * (1 - alpha) / (1 - before),
    )


@given(gammas())
def test_coefficients_are_the_posterior_of_the_forward_process(gamma):
    r"""$q(z_t | z_{t-1}, y)$ by conditioning one joint Gaussian.

    The forward process alone is stated: ᾱ_t = Π_{s≥t} α_s, z_T = √α_T u + √(1-α_T) ε and
    z_{t-1} = √α_{t-1} z_t + √(1-α_{t-1}) ε. A swapped index or a deviation for a variance is red.
    """
    alpha_bar = torch.sigmoid(-gamma)
    T = len(gamma) - 1
    alpha = torch.cat([alpha_bar[:-1] / alpha_bar[1:], alpha_bar[-1:]])
    mean = torch.zeros_like(gamma)  # of z_t, in units of u
    noise = torch.zeros(T + 1, T + 1, dtype=torch.float64)  # z_t from the independent ε's
    for t in range(T, -1, -1):
        if t == T:
            mean[t] = alpha[t].sqrt()
        else:
            mean[t] = alpha[t].sqrt() * mean[t + 1]
            noise[t] = alpha[t].sqrt() * noise[t + 1]
        noise[t, t] = (1 - alpha[t]).sqrt()
    covariance = noise @ noise.T
    torch.testing.assert_close(mean, alpha_bar.sqrt())
    torch.testing.assert_close(covariance.diagonal(), 1 - alpha_bar)

    k = step_coefficients(gamma)
    # 1 - α of two close levels near the clean end is itself a difference: what this way can keep.
    rtol = 1e-8 + 8 * 2.2e-16 / (1 - alpha).min().item()
    for t in range(1, T + 1):
        gain = covariance[t, t - 1] / covariance[t - 1, t - 1]
        shift = mean[t] - gain * mean[t - 1]
        variance = covariance[t, t] - gain * covariance[t, t - 1]
        torch.testing.assert_close(k.a[t - 1], shift, rtol=rtol, atol=1e-10)
        torch.testing.assert_close(k.b[t - 1], gain, rtol=rtol, atol=1e-10)
        torch.testing.assert_close(k.c[t - 1], variance, rtol=rtol, atol=1e-10)


@given(gammas())
def test_coefficients_are_eq_6(gamma):
    """Eq. 6 as printed, in fifty digits: in float64 it loses nine where two levels are close."""
    k = step_coefficients(gamma)
    with localcontext(prec=50):
        alpha_bar = [1 / (1 + Decimal(g).exp()) for g in gamma.tolist()]
        for t in range(1, len(gamma)):
            before, after = alpha_bar[t - 1], alpha_bar[t]
            alpha = before / after
            assert k.a[t - 1] == approx(after.sqrt() * (1 - alpha) / (1 - before))
            assert k.b[t - 1] == approx(alpha.sqrt() * (1 - after) / (1 - before))
            assert k.c[t - 1] == approx((1 - after) * (1 - alpha) / (1 - before))


def approx(exact: Decimal):
    return pytest.approx(float(exact), rel=1e-12)


@given(gammas())
def test_a_generative_step_preserves_the_marginal(gamma):
    """With the true u_y, z_{t-1} ~ q(.|y) gives z_t ~ q(.|y): same mean, same variance (Eq. 6)."""
    k, alpha_bar = step_coefficients(gamma), torch.sigmoid(-gamma)
    before, after = alpha_bar[:-1], alpha_bar[1:]
    torch.testing.assert_close(k.a + k.b * before.sqrt(), after.sqrt())
    torch.testing.assert_close(k.b**2 * (1 - before) + k.c, 1 - after)


def test_the_last_step_takes_the_guess_as_it_is():
    """a_T is about 1 (slip 2 had 2.975): the last block's guess becomes the latent."""
    k = step_coefficients(cosine_gamma(10))
    assert len(k) == 10
    assert 0.99 < k.a[-1] < 1
    assert k.b[-1] < 0.01
    assert k.c[-1] < 1e-3


@pytest.mark.parametrize("gamma", [cosine_gamma(1000), torch.linspace(13, -13, 1001).double()])
def test_float32_keeps_its_digits_over_a_thousand_steps(gamma):
    """The formulas add an error below 1e-6 to what is lost by rounding γ itself.

    Rounding γ is the larger: of two levels 0.01 apart near γ = 3 it moves the step by 2e-5 of it.
    """
    single = gamma.float()
    found, same_levels = step_coefficients(single), step_coefficients(single.double())
    exact = step_coefficients(gamma)
    for name in "abc":
        value = getattr(found, name).double()
        torch.testing.assert_close(value, getattr(same_levels, name), rtol=1e-6, atol=0)
        torch.testing.assert_close(value, getattr(exact, name), rtol=1e-4, atol=0)
    weights = denoising_weights(single, 1.0).double()
    torch.testing.assert_close(weights, denoising_weights(single.double(), 1.0), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, denoising_weights(gamma, 1.0), rtol=1e-4, atol=0)


def test_a_schedule_rounded_last_keeps_every_digit():
    """Levels are kept in float64, and only the coefficients become float32: error below 1e-7."""
    exact = step_coefficients(cosine_gamma(1000))
    single = exact.to("cpu", torch.float32)
    for name in "abc":
        value = getattr(single, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(exact, name), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("gamma", "least"),
    [(cosine_gamma(1000), 3e-4), (torch.linspace(13, -13, 1001).double(), 0.5)],
    ids=["cosine", "linear"],
)
def test_eq_6_as_printed_loses_its_digits_in_float32(gamma, least):
    """Why the formula is rewritten. How much is lost depends on how clean the last level is.

    The cosine ends at 1-ᾱ = 1.5e-4 and loses a thousand times more than the rewritten form; a
    schedule that ends at 1-ᾱ = 2e-6 has an α that float32 cannot tell from 1.
    """
    exact = step_coefficients(gamma)
    literal = literal_coefficients(torch.sigmoid(-gamma.float()))
    assert ((literal.a.double() - exact.a) / exact.a).abs().max() > least
    assert ((literal.c.double() - exact.c) / exact.c).abs().max() > least


def test_latents_have_the_stated_mean_and_variance():
    """|score| > 5 in any of 2 x 20: a fresh seed would fail with probability < 5e-5.

    The score of the variance is only nearly normal (n = 20 000), which the 5e-5 allows for.
    """
    n, gamma, u = 20_000, torch.tensor(0.8), torch.linspace(-1, 1, 20)
    z = sample_latent(u.expand(n, 20), gamma, torch.Generator().manual_seed(0))
    alpha_bar = torch.sigmoid(-gamma)
    assert ((z.mean(0) - alpha_bar.sqrt() * u) / ((1 - alpha_bar) / n).sqrt()).abs().max() < 5
    ratio = z.var(0) / (1 - alpha_bar)
    assert ((ratio - 1) / (2 / (n - 1)) ** 0.5).abs().max() < 5


def test_latents_have_each_the_level_of_its_row():
    """A γ for each row, as many rows as columns: γ spread over columns would fit as well (slip 7).

    Means and variances of 300 coordinates in each of 300 rows, and of each column: the largest of
    1200 scores is beyond 6 with probability < 1e-5 (a variance's score is only nearly normal).
    """
    n = 300
    gamma, u = torch.linspace(4, -4, n), torch.linspace(-1, 2, n)[:, None].expand(n, n)
    z = sample_latent(u, gamma, torch.Generator().manual_seed(0))
    deviation = (1 / (1 + torch.exp(-gamma))).sqrt()[:, None]
    noise = (z - (1 - deviation**2).sqrt() * u) / deviation
    for axis in (0, 1):
        assert (noise.mean(axis) * n**0.5).abs().max() < 6
        assert ((noise.square().mean(axis) - 1) * (n / 2) ** 0.5).abs().max() < 6


def test_one_level_for_all_rows_is_that_level_in_each():
    u, gamma = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor(0.4)
    shared, apart = (
        sample_latent(u, level, torch.Generator().manual_seed(0))
        for level in (gamma, gamma.expand(4))
    )
    assert torch.equal(shared, apart)


def test_latents_are_a_function_of_their_generator():
    u, gamma = torch.ones(4, 3), torch.tensor(0.5)
    one, two, other = (sample_latent(u, gamma, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@given(st.floats(-3, 12), st.integers(1, 30))
def test_prior_kl_is_that_of_torch(value, dim):
    gamma = torch.tensor(value, dtype=torch.float64)
    u = torch.linspace(-2, 3, 4 * dim, dtype=torch.float64).reshape(4, dim)
    z0 = Normal(torch.sigmoid(-gamma).sqrt() * u, torch.sigmoid(gamma).sqrt().expand_as(u))
    standard = Normal(torch.zeros_like(u), torch.ones_like(u))
    expected = kl_divergence(Independent(z0, 1), Independent(standard, 1))
    torch.testing.assert_close(prior_kl(u, gamma), expected, rtol=1e-6, atol=1e-12)


def test_prior_kl_is_a_mean_log_ratio():
    """Monte Carlo, 100 000 draws; |score| > 5 has probability < 6e-7."""
    u, gamma = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64), torch.tensor(0.7).double()
    z = sample_latent(u.expand(100_000, 3), gamma, torch.Generator().manual_seed(0))
    q = Normal(torch.sigmoid(-gamma).sqrt() * u, torch.sigmoid(gamma).sqrt())
    ratio = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    assert abs(ratio.mean() - prior_kl(u, gamma)[0]) < 5 * ratio.std() / len(z) ** 0.5


def test_prior_kl_keeps_its_digits_in_float32():
    """At γ_0 = 13.8, where log(1 - ᾱ) of an ᾱ in float32 would be wrong by 6e-8 in 1e-6."""
    u, gamma = torch.full((1, 10), 0.3), torch.tensor(13.8)
    torch.testing.assert_close(
        prior_kl(u, gamma).double(), prior_kl(u.double(), gamma.double()), rtol=1e-4, atol=0
    )


@given(gammas(), st.floats(0.01, 2))
def test_the_weight_is_the_kl_of_a_step(gamma, eta):
    """T η KL(q(z_t|z_{t-1}, y) ‖ p(z_t|z_{t-1}, x)) = weight ‖û - u‖², both of variance c.

    Eqs. 51-56.
    """
    k, T = step_coefficients(gamma), len(gamma) - 1
    u, u_hat, z = torch.tensor([[1, 0, 2], [0.5, -1, 2], [3, 1, 0]], dtype=torch.float64)
    for i in range(T):
        q = Normal(k.a[i] * u + k.b[i] * z, k.c[i].sqrt())
        p = Normal(k.a[i] * u_hat + k.b[i] * z, k.c[i].sqrt())
        weighted = denoising_weights(gamma, eta)[i] * (u_hat - u).square().sum()
        torch.testing.assert_close(T * eta * kl_divergence(q, p).sum(), weighted, rtol=1e-6, atol=0)


@given(gammas())
def test_the_weights_add_up(gamma):
    """The SNR differences telescope: Σ weights = (T/2) η (SNR(T) - SNR(0))."""
    expected = (len(gamma) - 1) / 2 * 0.1 * ((-gamma[-1]).exp() - (-gamma[0]).exp())
    torch.testing.assert_close(denoising_weights(gamma, 0.1).sum(), expected)


def test_a_weight_per_sample_meets_an_error_per_sample():
    """Slip 7: weights (B,) by block and errors (B,) stay (B,); a (B, 1) error would make (B, B)."""
    blocks = torch.tensor([0, 3, 9, 3])
    weight = denoising_weights(cosine_gamma(10).float(), 0.1)[blocks]
    kl = prior_kl(torch.eye(4), cosine_gamma(10)[0].float())
    assert weight.shape == kl.shape == (weight * kl).shape == (4,)


CONTINUOUS = {
    "linear": LinearSchedule(5.0, -4.0),
    "cosine": CosineSchedule(5.0, -4.0),
    "learned": LearnedSchedule(5.0, -4.0),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_eq_9_is_what_eq_8_becomes_with_ever_more_steps(name):
    """Block t reads z_{t-1}; as T grows, the mean over t of weight times error nears an integral.

    An error of 1/(1 + SNR), the best one for a standard normal u, makes it ½ log((1 + SNR(1)) /
    (1 + SNR(0))) for every schedule (Eqs. 59, 60). The sum lies above, since the error falls from
    z_{t-1} to z_t, and nears it like 1/T; weights without their T, their ½ or at the wrong end
    near something else.
    """
    schedule = CONTINUOUS[name]
    first, last = torch.exp(-schedule(torch.tensor([0.0, 1.0]).double())[0]).tolist()
    limit = 0.3 / 2 * math.log((1 + last) / (1 + first))

    def excess(steps: int) -> float:
        gamma = schedule.levels(steps)
        error = torch.sigmoid(gamma)  # 1 / (1 + SNR)
        return (denoising_weights(gamma, 0.3) * error[:-1]).mean().item() - limit

    errors = [excess(100 * 2**k) for k in range(5)]
    assert min(errors) > 0
    assert errors[-1] < 5e-3 * limit
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([1] * 4, abs=0.05)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_weight_of_eq_9_integrates_to_what_those_of_eq_8_add_up_to(name):
    """∫ ½ η SNR'(t) dt by Simpson's rule, alone and with an error 1/(1 + SNR): the exact values.

    The weight alone telescopes, so it is the mean of Eq. 8's weights at any T. A slope of γ taken
    for one of the SNR, of the wrong sign or without its ½ does not integrate to it.
    """
    schedule = CONTINUOUS[name]
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    gamma, slope = (v.detach() for v in schedule(t))
    simpson = torch.tensor([1.0, *([4.0, 2.0] * 999), 4.0, 1.0]).double() / 6000
    weight = 0.5 * 0.3 * snr_slope(gamma, slope)
    for steps in (2, 1000):
        eq_8 = denoising_weights(schedule.levels(steps), 0.3).mean()
        torch.testing.assert_close(weight @ simpson, eq_8, rtol=1e-6, atol=0)
    with_error = (weight * torch.sigmoid(gamma)) @ simpson
    first, last = torch.exp(-gamma[0]), torch.exp(-gamma[-1])
    exact = 0.15 * torch.log((1 + last) / (1 + first))
    torch.testing.assert_close(with_error, exact, rtol=1e-6, atol=0)
