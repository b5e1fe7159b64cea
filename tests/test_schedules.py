"""Schedules: they rise from noise to clean, they are the paper's cosine, they keep their digits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noprop.diffusion import denoising_weights, step_coefficients
from noprop.schedules import (
    ContinuousSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    alpha_bar,
    cosine_gamma,
    cosine_gamma_at,
    snr,
    snr_slope,
)

GRID = torch.linspace(0, 1, 401, dtype=torch.float64)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 10, 100, 1000])
def test_every_snr_difference_and_every_weight_is_positive(num_blocks):
    """Slip 1: with the schedule the other way round most blocks would maximise their loss."""
    gamma = cosine_gamma(num_blocks)
    assert gamma.shape == (num_blocks + 1,)
    assert (snr(gamma).diff() > 0).all()
    assert (alpha_bar(gamma).diff() > 0).all()
    assert (denoising_weights(gamma, eta=0.1) > 0).all()
    assert (denoising_weights(gamma.flip(0), eta=0.1) < 0).all()


def test_time_runs_from_noise_to_clean():
    power = alpha_bar(cosine_gamma(10))
    assert power[0] < 1e-5
    assert power[-1] > 0.999


def test_a_schedule_run_backwards_is_refused():
    with pytest.raises(ValueError, match="must fall strictly"):
        step_coefficients(cosine_gamma(10).flip(0))


@pytest.mark.parametrize("gamma", [[1.0], [1.0, 1.0], [2.0, 1.0, 1.0], [1.0, math.nan]])
def test_a_schedule_without_steps_is_refused(gamma):
    with pytest.raises(ValueError, match="must fall strictly"):
        step_coefficients(torch.tensor(gamma))


@given(st.integers(1, 300), st.floats(0.004, 0.1))
def test_levels_are_the_cosine_of_the_paper(num_blocks, s):
    """The default clamp moves the first level, where the cosine is 0, and no other."""
    t = torch.arange(num_blocks + 1, dtype=torch.float64)
    cosine = torch.cos(math.pi / 2 * (1 - t / num_blocks + s) / (1 + s)) ** 2
    levels = alpha_bar(cosine_gamma(num_blocks, offset=s))
    torch.testing.assert_close(levels[1:], cosine[1:], rtol=1e-9, atol=0)
    torch.testing.assert_close(levels[0].item(), 1e-6, rtol=1e-9, atol=0)


def test_the_clamp_bounds_both_ends():
    levels = alpha_bar(cosine_gamma(10, offset=1e-5, epsilon=0.01))
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([0.01, 0.99], dtype=torch.float64))


@given(st.floats(-30, 30))
def test_snr_is_the_ratio_of_powers(value):
    gamma = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(snr(gamma), alpha_bar(gamma) / alpha_bar(-gamma))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"num_blocks": 10, "offset": 0.0}, "offset must be above 0"),
        ({"num_blocks": 10, "epsilon": 0.0}, r"epsilon must lie in \(0, 0.5\), got 0.0"),
        ({"num_blocks": 10, "epsilon": 0.5}, r"epsilon must lie in \(0, 0.5\)"),
        ({"num_blocks": 1000, "epsilon": 0.01}, "epsilon=0.01 makes neighbouring levels"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_gamma(**arguments)


# -- in continuous time ---------------------------------------------------------------------------


@st.composite
def learned(draw: st.DrawFn, most: float = 12.0) -> LearnedSchedule:
    """A learned schedule with arbitrary weights, in float64.

    Each table has a centre and a spread of its own, so that all its units may saturate together,
    or only some. Below -12 a softplus is under 6e-6.
    """
    clean = draw(st.floats(-12, 8))
    noise = clean + draw(st.floats(0.5, 20))
    room = (noise - clean) * draw(st.floats(0.01, 0.49))
    schedule = LearnedSchedule(noise, clean, room).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    with torch.no_grad():
        for p in schedule.parameters():
            centre, spread = draw(st.floats(-most, most)), draw(st.floats(0, most))
            noise_of_p = torch.empty_like(p).uniform_(-spread, spread, generator=generator)
            p.copy_((centre + noise_of_p).clamp(-most, most))
    return schedule


def bent(seed: int = 0) -> LearnedSchedule:
    """A schedule some way into training: every weight moved by about 0.7, in float64."""
    schedule = LearnedSchedule(6.0, -6.0).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in schedule.parameters():
            p += 0.7 * torch.empty_like(p).normal_(generator=generator)
    return schedule


FIXED: dict[str, ContinuousSchedule] = {
    "linear": LinearSchedule(6.0, -6.0),
    "linear-lopsided": LinearSchedule(2.0, -9.0),
    "cosine": CosineSchedule(6.0, -6.0),
    "cosine-lopsided": CosineSchedule(9.0, -2.0),
}
ALL = {**FIXED, "start": LearnedSchedule(6.0, -6.0), "bent": bent(0), "bent-again": bent(1)}


# -- it falls -----------------------------------------------------------------------------------


def check_falls(schedule: ContinuousSchedule) -> None:
    gamma, slope = schedule(GRID)
    assert gamma.isfinite().all()
    assert (gamma.diff() < 0).all()
    assert (slope < 0).all()
    assert (snr_slope(gamma, slope) > 0).all()
    assert (snr(gamma).diff() > 0).all()


@given(learned())
def test_a_learned_schedule_falls_whatever_its_weights(schedule):
    """Appendix B asks for it; a clamp of the weights, or none, would not keep it (slip 6)."""
    check_falls(schedule)


@pytest.mark.parametrize("name", ALL)
def test_every_schedule_falls(name):
    check_falls(ALL[name])


@given(learned(), st.integers(2, 1000))
def test_a_chain_of_any_length_can_be_made_of_any_weights(schedule, steps):
    """Levels are float64, for steps of a thousandth of the way are differences of neighbours."""
    levels = schedule.levels(steps)
    assert levels.dtype == torch.float64
    assert levels.shape == (steps + 1,)
    assert not levels.requires_grad
    k = step_coefficients(levels)
    assert len(k) == steps
    assert all(bool((v > 0).all()) for v in (k.a, k.b, k.c))
    assert (denoising_weights(levels, 1.0) > 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 1000, 100_000])
def test_levels_are_the_schedule_at_equal_times(name, steps):
    """Up to the 100 000 steps that a configuration may ask for."""
    schedule = ALL[name]
    levels = schedule.levels(steps)
    assert len(step_coefficients(levels)) == steps
    t = torch.tensor([0, steps // 3, steps], dtype=torch.float64) / steps
    torch.testing.assert_close(levels[[0, steps // 3, steps]], schedule(t)[0].detach())


@pytest.mark.parametrize("bias", [-40.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_that_are_all_flat_leave_the_straight_line(bias, dtype):
    """Every sigmoid at 0 or at 1, the skip term small beside them: γ̄ is then w_0 t / w_0.

    As a difference of two sums near 2000 that would be 0/0 in float32.
    """
    schedule = LearnedSchedule(6.0, -6.0).to(dtype)
    with torch.no_grad():
        schedule.outer.fill_(30.0)
        schedule.bias.fill_(bias)
        schedule.skip.fill_(-10.0)
    gamma, slope = schedule(GRID.to(dtype))
    torch.testing.assert_close(gamma, (6 - 12 * GRID).to(dtype), rtol=0, atol=1e-4)
    torch.testing.assert_close(slope, torch.full_like(slope, -12), rtol=1e-4, atol=0)


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_training_cannot_turn_it_round(direction):
    """200 steps of Adam on a loss that is least where γ rises, or falls in one leap."""
    schedule = LearnedSchedule(6.0, -6.0)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.1)
    t = torch.tensor([0.4, 0.6])
    before = schedule(t)[0].diff().item()
    for step in range(200):
        loss = direction * schedule(t)[0].diff().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            check_falls(schedule)
            step_coefficients(schedule.levels(1000))
    after = schedule(t)[0].diff().item()
    assert after < 2 * before if direction > 0 else after > 0.1 * before


# -- where it ends ------------------------------------------------------------------------------


@given(learned())
def test_the_ends_are_the_noise_and_the_clean_one_within_their_room(schedule):
    """γ(0) = γ_1 and γ(1) = γ_0, each its start and at most ``room``, and never the other way."""
    noise, clean, room = schedule.noise, schedule.clean, schedule.room
    first, last = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].tolist()
    moved = (schedule.ends.tanh() * room).tolist()
    assert first == pytest.approx(noise + moved[0], abs=1e-9)
    assert last == pytest.approx(clean + moved[1], abs=1e-9)
    assert abs(first - noise) <= room + 1e-9
    assert abs(last - clean) <= room + 1e-9
    assert first > last


@pytest.mark.parametrize("index", [0, 1])
def test_each_end_moves_one_end(index):
    """Far past its room, an end stops there; the other stays, bit for bit."""
    schedule = LearnedSchedule(6.0, -6.0, room=2.0)
    before = schedule(torch.tensor([0.0, 1.0]))[0].tolist()
    assert before == pytest.approx([6.0, -6.0], abs=1e-5)
    with torch.no_grad():
        schedule.ends[index] = -50.0
    after = schedule(torch.tensor([0.0, 1.0]))[0].tolist()
    assert after[index] == pytest.approx(before[index] - 2, abs=1e-5)
    assert after[1 - index] == pytest.approx(before[1 - index], abs=1e-5)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_schedules_end_where_they_are_told(name):
    schedule = FIXED[name]
    assert isinstance(schedule, LinearSchedule | CosineSchedule)
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].tolist()
    assert ends == pytest.approx([schedule.noise, schedule.clean], rel=1e-12)


# -- its slope ----------------------------------------------------------------------------------


def slope_by_autograd(schedule: ContinuousSchedule, t: Tensor) -> Tensor:
    t = t.clone().requires_grad_()
    return torch.autograd.grad(schedule(t)[0].sum(), t)[0]


@given(learned())
def test_the_slope_is_the_derivative_for_any_weights(schedule):
    """In float64, against autograd through γ itself."""
    slope = schedule(GRID)[1]
    torch.testing.assert_close(slope, slope_by_autograd(schedule, GRID), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_slopes_are_the_derivatives(name):
    """Against autograd, and against central differences: error h² γ''' / 6 and rounding / h."""
    schedule, h = ALL[name], 1e-5
    t = GRID[1:-1]
    gamma, slope = schedule(t)
    torch.testing.assert_close(slope, slope_by_autograd(schedule, t), rtol=1e-9, atol=0)
    difference = (schedule(t + h)[0] - schedule(t - h)[0]) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)
    ratio = (snr(schedule(t + h)[0]) - snr(schedule(t - h)[0])) / (2 * h)
    torch.testing.assert_close(snr_slope(gamma, slope), ratio, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_float32_is_good_enough_to_train_with(name):
    """γ within 2e-5 and SNR' within one part in 10 000 of float64.

    The worst is the cosine at γ = 9, whose angle is 0.01 short of π/2: float32 knows it to 1e-5.
    """
    schedule = ALL[name]
    gamma, slope = schedule(GRID)
    single, single_slope = schedule(GRID.float())
    assert single.dtype == single_slope.dtype == torch.float32
    torch.testing.assert_close(single.double(), gamma, rtol=0, atol=2e-5)
    found = snr_slope(single, single_slope).double()
    torch.testing.assert_close(found, snr_slope(gamma, slope), rtol=1e-4, atol=0)


# -- what each is -------------------------------------------------------------------------------


def test_the_cosine_turns_at_a_constant_rate():
    """ᾱ = cos²θ with θ on a straight line; and on the levels that nothing clamps, DT's cosine."""
    theta = torch.sigmoid(-CosineSchedule(7.0, -3.0)(GRID)[0]).sqrt().acos()
    torch.testing.assert_close(theta.diff(n=2), torch.zeros(399).double(), rtol=0, atol=1e-12)
    levels = cosine_gamma(10)[1:]
    t = torch.linspace(0, 1, 10, dtype=torch.float64)
    again = cosine_gamma_at(t, levels[0].item(), levels[-1].item())[0]
    torch.testing.assert_close(again, levels, rtol=1e-9, atol=1e-12)


def test_the_learned_one_starts_nearly_straight_and_symmetric():
    """Within 0.4 of the line, and γ(1 - t) = -γ(t), as its centres lie."""
    gamma = LearnedSchedule(6.0, -6.0)(GRID)[0]
    assert (gamma - (6 - 12 * GRID)).abs().max() < 0.4
    torch.testing.assert_close(gamma, -gamma.flip(0), rtol=0, atol=1e-5)


@given(st.floats(0.05, 20))
def test_only_the_shape_of_the_inner_function_counts(factor):
    r"""γ̄ is normalised (Eq. 66): a multiple of γ̃, skip and outer weights alike, gives the same γ.

    So the output is the same to rounding, and without the division it would not be.
    """
    schedule = bent()
    gamma, slope = schedule(GRID)
    with torch.no_grad():
        for p in (schedule.skip, schedule.outer):
            p.copy_((torch.nn.functional.softplus(p) * factor).expm1().log())
    again, slope_again = schedule(GRID)
    torch.testing.assert_close(again, gamma, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope_again, slope, rtol=1e-9, atol=0)


def test_the_learned_one_can_take_the_shape_of_another():
    """300 steps take it from 2.5 off a cosine, ends and all, to within 0.3 of it everywhere."""
    t = GRID.float()
    wanted = cosine_gamma_at(t, 6.0, -4.0)[0]
    schedule = LearnedSchedule(5.0, -6.0)
    assert (schedule(t)[0] - wanted).abs().max() > 2
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.1)
    for _ in range(300):
        loss = (schedule(t)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (schedule(t)[0] - wanted).abs().max() < 0.3


# -- its gradient -------------------------------------------------------------------------------


def test_the_gradient_reaches_every_parameter_and_is_right():
    """Through γ and through γ' alike, against finite differences of all 195 numbers (float64)."""
    schedule = bent()
    names = [name for name, _ in schedule.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in schedule.parameters()]
    assert sum(v.numel() for v in values) == 2 + 1 + 3 * 64
    t = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0], dtype=torch.float64)

    def outputs(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(schedule, named, (t,))

    assert torch.autograd.gradcheck(outputs, values, rtol=1e-4, atol=1e-7)
    for which in (0, 1):
        for p in schedule.parameters():
            p.grad = None
        (schedule(t)[which] ** 2).sum().backward()
        for name, p in schedule.named_parameters():
            assert p.grad is not None
            assert (p.grad != 0).all(), name


# -- what it tells of itself, and what it refuses -----------------------------------------------


def test_the_facts_are_those_of_a_line_worked_out_by_hand():
    """ᾱ(0) = 1/(1 + e²), ᾱ(1) = 1/(1 + e⁻³), and SNR' = 5 e^{-γ} is greatest at the end."""
    facts = LinearSchedule(2.0, -3.0).facts()
    assert facts["alpha_bar_0"] == pytest.approx(1 / (1 + math.exp(2)))
    assert facts["alpha_bar_1"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert facts["max_snr_slope"] == pytest.approx(5 * math.exp(3))
    assert facts["gamma"] == pytest.approx([2 - 5 * i / 20 for i in range(21)])
    assert set(LearnedSchedule(6.0, -6.0).facts()) == set(facts)


@pytest.mark.parametrize("room", [0.0, -1.0, 6.0, 7.0, math.nan])
def test_room_in_which_the_ends_could_meet_is_refused(room):
    with pytest.raises(ValueError, match=r"room must be above 0 and below half .* = 12, got"):
        LearnedSchedule(6.0, -6.0, room)


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="room must be above 0"):
        LearnedSchedule(-6.0, 6.0)
