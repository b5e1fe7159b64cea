"""The model of many machines: limits known by hand, sums over machines, simulated failures."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_model.cluster import Machine, Workload, all_reduce, slowest
from scaling_model.failures import (
    Recovery,
    daly_interval,
    expected_seconds,
    finish_bound,
    young_interval,
)
from scaling_model.methods import (
    best_pipeline,
    data_parallel,
    noprop_fixed,
    noprop_learned,
    pipeline,
)

MACHINE = Machine(forward=1e-3, backward=2e-3, call=4e-3, update=5e-3)
LINKED = dataclasses.replace(MACHINE, bandwidth=1e8, latency=1e-4)
WORK = Workload(
    blocks=12, parameters=1000, examples=640, epochs=3, batch=64, classes=10, dim=20,
    activations=100.0, example=784.0,
)  # fmt: skip


def pipeline_of_four(workload, machine, machines):
    return pipeline(workload, machine, machines, 4)


METHODS = [noprop_fixed, noprop_learned, data_parallel, best_pipeline]
ALL = [*METHODS, pipeline_of_four]


# -- oracles -------------------------------------------------------------------------------------


def bubble(stages: int, micro_batches: int) -> float:
    """Share of a pipeline's step in which a stage has nothing to do (Huang et al. 2019)."""
    return (stages - 1) / (micro_batches + stages - 1)


def simulate(
    work: float, recovery: Recovery, *, groups: int, together: int, runs: int, seed: int
) -> tuple[float, float]:
    """Simulated seconds until the last group ends: the mean over runs, and its standard error.

    Every machine has a clock of its own that says when it fails next; nothing of the formulas above
    is used.

    Args:
        work: seconds without failures.
        recovery: of a group; a machine fails ``together`` times as rarely.
        groups: that know nothing of each other.
        together: machines of a group.
        runs: at least 2.
        seed: of the draws.
    """
    draws = np.random.default_rng(seed)
    ends = [
        max(_simulate_group(work, recovery, together, draws) for _ in range(groups))
        for _ in range(runs)
    ]
    return float(np.mean(ends)), float(np.std(ends, ddof=1)) / math.sqrt(runs)


def _simulate_group(
    work: float, recovery: Recovery, together: int, draws: np.random.Generator
) -> float:
    life = recovery.mtbf * together
    fails = draws.exponential(life, together)  # when each machine fails next
    now, done, starting = 0.0, 0, False
    while done < recovery.segments:
        until = now + (recovery.restart if starting else recovery.attempt(work))
        broken = int(fails.argmin())
        if fails[broken] < until:
            now = float(fails[broken])
            fails[broken] = now + draws.exponential(life)
            starting = True
        else:
            now, done, starting = until, done + (not starting), False
    return now


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_machine_is_the_plain_sum(method):
    """3 epochs of 10 mini-batches, 12 blocks, 64 examples; nothing is sent."""
    found = method(WORK, LINKED, 1)
    assert found.seconds == pytest.approx(3 * 10 * 12 * (0.004 + 64 * 0.003 + 0.005))
    assert found.total_sent == found.sent == found.once == 0
    assert found.computing == pytest.approx(1)
    assert found.efficiency == pytest.approx(1)


@pytest.mark.parametrize("machines", [2, 3, 4, 6, 12])
def test_without_a_network_and_failures_the_blocks_divide(machines):
    """T a multiple of P: NoProp is P times as fast, whether W_Embed is learned or not."""
    for method in (noprop_fixed, noprop_learned):
        found = method(WORK, MACHINE, machines)
        assert found.seconds == pytest.approx(WORK.alone(MACHINE) / machines)
        assert found.efficiency == pytest.approx(1)


@pytest.mark.parametrize(("machines", "share"), [(5, 12 / 15), (7, 12 / 14), (11, 12 / 22)])
def test_blocks_that_do_not_divide_leave_machines_idle(machines, share):
    found = noprop_fixed(WORK, MACHINE, machines)
    assert found.efficiency == pytest.approx(share)
    assert found.computing == pytest.approx(share)


@pytest.mark.parametrize("machines", [2, 4, 32])
def test_data_parallel_divides_the_batch_and_not_the_update(machines):
    """Each machine makes the updates of all T blocks, whatever its part of the batch."""
    found = data_parallel(WORK, MACHINE, machines)
    assert found.step == pytest.approx(12 * (0.004 + 64 / machines * 0.003 + 0.005))
    assert found.computing == pytest.approx(1)


def test_more_machines_than_examples_help_backprop_no_more():
    at, beyond = (data_parallel(WORK, LINKED, p) for p in (64, 1000))
    assert beyond.step == at.step
    assert beyond.computing < at.computing


def test_more_machines_than_blocks_share_a_block():
    """24 machines, 12 blocks: two each, half the batch each, one block's gradient between them."""
    found = noprop_fixed(WORK, LINKED, 24)
    reduced = 2 * 1e-4 + 4000 / 1e8
    assert found.step == pytest.approx(0.004 + 32 * 0.003 + 0.005 + reduced)
    assert found.sent == 4000
    assert noprop_fixed(WORK, LINKED, 23).step == noprop_fixed(WORK, LINKED, 12).step  # 11 idle


@pytest.mark.parametrize(("stages", "micro"), [(2, 1), (3, 4), (4, 16), (12, 64)])
def test_a_pipeline_on_a_free_network_loses_its_bubble(stages, micro):
    """With costs in proportion to the batch alone, the share computed is 1 - (S-1)/(M+S-1)."""
    machine = Machine(forward=1e-3, backward=2e-3)
    found = pipeline(WORK, machine, stages, micro)
    assert found.computing == pytest.approx(1 - bubble(stages, micro))
    assert found.efficiency == pytest.approx(micro / (micro + stages - 1))


def test_overlap_hides_no_more_than_the_backward_pass():
    slow = dataclasses.replace(LINKED, bandwidth=1e4)
    plain, hidden = (data_parallel(WORK, slow, 2, overlap=o) for o in (0.0, 1.0))
    assert plain.step - hidden.step == pytest.approx(12 * 32 * 0.002)
    fast = data_parallel(WORK, dataclasses.replace(LINKED, latency=0.0), 2, overlap=1.0)
    assert fast.step == pytest.approx(data_parallel(WORK, MACHINE, 2).step)


@pytest.mark.parametrize("method", ALL)
@settings(max_examples=25)
@given(st.integers(1, 40), st.floats(1e3, 1e10), st.floats(0.0, 1e-2))
def test_a_better_network_is_never_slower(method, machines, bandwidth, latency):
    """Of more bandwidth and less latency; and no network beats a free one."""
    machine = dataclasses.replace(MACHINE, bandwidth=bandwidth, latency=latency)
    better = dataclasses.replace(machine, bandwidth=2 * bandwidth, latency=latency / 2)
    times = [method(WORK, m, machines).seconds for m in (machine, better, MACHINE)]
    assert times[0] >= times[1] * (1 - 1e-12)
    assert times[1] >= times[2] * (1 - 1e-12)


@pytest.mark.parametrize("method", ALL)
def test_no_method_is_more_than_p_times_as_fast(method):
    for machines in (1, 2, 3, 5, 11, 12, 13, 24, 30, 64, 100):
        found = method(WORK, MACHINE, machines)
        assert found.efficiency <= 1 + 1e-12
        assert found.computing <= 1 + 1e-12


@pytest.mark.parametrize("machines", range(1, 12))
def test_another_machine_is_never_worse_for_fixed_embeddings(machines):
    """While P ≤ T: the busiest has no more blocks than before, and nothing is sent."""
    for machine in (MACHINE, dataclasses.replace(MACHINE, mtbf=1e4, restart=10.0, storage=1e4)):
        first, second = (noprop_fixed(WORK, machine, p).work for p in (machines, machines + 1))
        assert second <= first


# -- traffic and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("machines", [2, 3, 8, 100])
@pytest.mark.parametrize("size", [800, 1_000_000])
def test_a_ring_by_hand(machines, size):
    """Send P-1 chunks to add up, P-1 to hand round; every chunk is size / P."""
    seconds, sent = all_reduce(machines, size, LINKED)
    assert sent == pytest.approx(sum(size / machines for _ in range(2 * (machines - 1))))
    assert seconds == pytest.approx(2 * (machines - 1) * (1e-4 + size / machines / 1e8))


def test_halving_sends_what_a_ring_sends_in_fewer_messages():
    for machines in (2, 8, 1024):
        ring, halving = (all_reduce(machines, 1e6, LINKED, a) for a in ("ring", "halving"))
        assert ring[1] == halving[1]
        saved = 2 * (machines - 1) - 2 * math.log2(machines)
        assert ring[0] - halving[0] == pytest.approx(saved * 1e-4)


def test_fixed_embeddings_send_nothing_while_there_are_blocks_enough():
    for machines in (2, 5, 12):
        found = noprop_fixed(WORK, LINKED, machines)
        assert found.sent == found.total_sent == 0
        # The training part to each, and each block's weights from where it was trained.
        assert found.once == machines * 640 * 784 + 12 * 4000


@pytest.mark.parametrize("machines", [2, 3, 12])
def test_learned_embeddings_send_a_vector_each_way_over_every_link(machines):
    found = noprop_learned(WORK, LINKED, machines)
    vector, links = 4 * 10 * 20, machines - 1
    assert found.total_sent == 30 * 2 * links * vector
    assert found.sent == min(2, links) * vector
    waited = found.step - noprop_fixed(WORK, LINKED, machines).step
    assert waited == pytest.approx(2 * links * (1e-4 + vector / 1e8))


@pytest.mark.parametrize("machines", [2, 7, 64])
def test_data_parallel_sends_every_gradient_at_every_step(machines):
    """The sum over machines is 2 (P-1) gradients of all blocks, whatever P."""
    found = data_parallel(WORK, LINKED, machines)
    assert found.total_sent == pytest.approx(30 * 2 * (machines - 1) * 12 * 4000)
    assert found.total_sent == pytest.approx(30 * machines * found.sent)


def test_a_pipeline_sends_a_latent_each_way_and_copies_their_gradients():
    alone = pipeline(WORK, LINKED, 4, 8)
    latents = 2 * 3 * 64 * 4 * 20
    assert alone.total_sent == 30 * latents
    copied = pipeline(WORK, LINKED, 24, 8)
    assert copied.total_sent == 30 * (latents / 3 * 11 + 2 * (2 - 1) * 12 * 4000)
    wide = dataclasses.replace(WORK, boundary=1000.0)
    assert pipeline(wide, LINKED, 4, 8).total_sent == 30 * 2 * 3 * 64 * 1000


@pytest.mark.parametrize("machines", [2, 5, 12, 30, 1000])
def test_what_all_send_is_the_sum_over_machines(machines):
    """The busiest sends no less than the mean, and no more than all."""
    for method in ALL:
        found = method(WORK, LINKED, machines)
        mean = found.total_sent / 30 / machines
        assert mean * (1 - 1e-12) <= found.sent <= found.total_sent / 30 * (1 + 1e-12)


def test_memory_is_of_one_block_or_of_all():
    """Weights, gradient, two moments of 4 bytes: 16 a parameter; 100 bytes an example kept."""
    one, twice = WORK, dataclasses.replace(WORK, blocks=24)
    assert noprop_fixed(one, LINKED, 3).memory == 16_000 + 64 * 100
    assert noprop_fixed(twice, LINKED, 3).memory == noprop_fixed(one, LINKED, 3).memory
    assert noprop_learned(one, LINKED, 3).memory == 4 * 16_000 + 64 * 100
    assert pipeline(one, LINKED, 3, 8).memory == 4 * (16_000 + 64 * 100)
    assert data_parallel(one, LINKED, 4).memory == 12 * (16_000 + 16 * 100)


# -- failures --------------------------------------------------------------------------------------

OFTEN = Recovery(mtbf=50.0, restart=5.0, write=1.0, segments=10)


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("restart", [0.0, 5.0, 60.0])
def test_simulated_failures_have_the_expected_cost(together, restart):
    """|score| > 4.5 in one of six: a fresh seed would fail with probability below 5e-5."""
    recovery = dataclasses.replace(OFTEN, restart=restart)
    mean, error = simulate(200.0, recovery, groups=1, together=together, runs=2000, seed=0)
    assert abs(mean - expected_seconds(200.0, recovery)) < 4.5 * error


@pytest.mark.parametrize("groups", [2, 10, 50])
def test_the_last_of_several_lies_between_its_bounds(groups):
    """The mean of one below, Chernoff's bound above: 4 standard errors, 4e-5 each."""
    mean, error = simulate(200.0, OFTEN, groups=groups, together=1, runs=200, seed=1)
    assert expected_seconds(200.0, OFTEN) < mean + 4 * error
    bound = finish_bound(200.0, OFTEN, groups)
    assert mean - 4 * error < bound
    assert bound - 200 < 2 * (mean - 200)  # and it is of use: of the loss no more than twice


def test_the_bound_holds_where_restarts_fail_too():
    """Restarts as long as the time between failures; 4 standard errors, 4e-5."""
    recovery = Recovery(mtbf=50.0, restart=50.0, write=1.0, segments=10)
    mean, error = simulate(200.0, recovery, groups=50, together=1, runs=100, seed=5)
    assert mean - 4 * error < finish_bound(200.0, recovery, 50)


def test_the_bound_of_one_group_is_its_expectation():
    """Of ever fewer failures than one among all groups, it comes near the time without any."""
    assert finish_bound(200.0, OFTEN, 1) == expected_seconds(200.0, OFTEN)
    rare = dataclasses.replace(OFTEN, mtbf=1e9)
    assert expected_seconds(200.0, rare) == pytest.approx(210.0, rel=1e-6)
    assert finish_bound(200.0, rare, 50) == pytest.approx(210.0, rel=1e-6)


@pytest.mark.parametrize("machines", [10, 30])
def test_machines_that_wait_for_each_other_fail_together(machines):
    """P in one group end later than P groups of one; no chance of a false alarm above 1e-7."""
    apart, a = simulate(
        200.0, dataclasses.replace(OFTEN, mtbf=500.0), groups=machines, together=1, runs=300, seed=2
    )
    all_of_them = dataclasses.replace(OFTEN, mtbf=500.0 / machines)
    joined, b = simulate(200.0, all_of_them, groups=1, together=machines, runs=300, seed=3)
    assert apart + 4 * a < joined - 4 * b


@settings(max_examples=25)
@given(
    st.integers(2, 1000), st.floats(1.0, 1e6), st.floats(0.0, 100.0), st.floats(0.0, 10.0),
    st.integers(1, 100),
)  # fmt: skip
def test_the_bound_of_several_is_never_above_those_that_wait(groups, mtbf, restart, write, n):
    """A group's loss is convex in its rate and 0 at 0: N groups lose less than N times the rate."""
    apart = Recovery(mtbf, restart, write, n)
    joined = Recovery(mtbf / groups, restart, write, n)
    bound = finish_bound(100.0, apart, groups)
    assert expected_seconds(100.0, apart) <= bound * (1 + 1e-9)
    assert bound <= expected_seconds(100.0, joined) * (1 + 1e-9)


def test_the_interval_is_the_best_one():
    """Daly's estimate is within a thousandth of the least expectation over all intervals."""
    write, mtbf = 2.0, 400.0

    def cost(interval: float) -> float:
        return mtbf * math.expm1((interval + write) / mtbf) / interval

    least = min(cost(i / 10) for i in range(1, 4000))
    assert cost(daly_interval(write, mtbf)) < 1.001 * least
    assert cost(young_interval(write, mtbf)) < 1.01 * least
    assert daly_interval(write, mtbf) == pytest.approx(young_interval(write, mtbf), rel=0.1)
    assert daly_interval(1000.0, mtbf) == mtbf


@pytest.mark.parametrize(("mtbf", "minutes"), [(1440.0, 117), (360.0, 57), (15.0, 9.1)])
def test_the_interval_is_the_published_one(mtbf, minutes):
    """Daly 2006, captions of Figs. 3 to 5: a checkpoint takes 5 minutes."""
    assert daly_interval(5.0, mtbf) == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)


def test_failures_of_the_methods():
    """P failing machines: a step that all wait for is lost by all, a unit's work by one."""
    failing = dataclasses.replace(LINKED, mtbf=400.0, restart=2.0, storage=1e6)
    for method in ALL:
        found = method(WORK, failing, 6)
        without = method(WORK, LINKED, 6)
        assert found.work == without.work
        assert found.lost == pytest.approx(found.seconds - found.work)
        assert found.lost > 0
    for method in (noprop_learned, data_parallel, pipeline_of_four):
        found = method(WORK, failing, 6)
        blocks = {noprop_learned: 2, data_parallel: 12 / 6, pipeline_of_four: 2}[method]
        write, segments = blocks * 3 * 4000 / 1e6, round(found.work / found.interval)
        together = Recovery(400.0 / 6, 2.0, write, segments)
        assert found.seconds == pytest.approx(expected_seconds(found.work, together))
    fixed, learned = (m(WORK, failing, 12) for m in (noprop_fixed, noprop_learned))
    assert fixed.lost < learned.lost
    rarely = dataclasses.replace(failing, mtbf=4000.0)
    for method in ALL:
        assert method(WORK, rarely, 6).lost < method(WORK, failing, 6).lost


# -- steps of uneven length ------------------------------------------------------------------------


@pytest.mark.parametrize("machines", [1, 2, 16, 200])
def test_the_slowest_of_log_normal_steps(machines):
    """Against 4,000 draws: 4.5 standard errors, a false alarm in 1e-5 of fresh seeds each."""
    draws = np.random.default_rng(4).normal(size=(4000, machines))
    worst = np.exp(0.3 * draws - 0.045).max(axis=1)
    error = worst.std() / math.sqrt(len(worst))
    assert abs(slowest(machines, 0.3) - worst.mean()) < 4.5 * error + 1e-3
    assert slowest(machines, 0.0) == 1


def test_only_those_who_wait_suffer_from_uneven_steps():
    uneven = dataclasses.replace(LINKED, jitter=0.3)
    assert noprop_fixed(WORK, uneven, 12).step == pytest.approx(noprop_fixed(WORK, LINKED, 12).step)
    for method in (noprop_learned, data_parallel, pipeline_of_four):
        assert method(WORK, uneven, 12).step > 1.3 * method(WORK, LINKED, 12).step


def test_a_schedule_simulated_event_by_event():
    """GPipe's two sweeps, slot by slot: a stage starts when its input has come and it is free.

    With messages that cost nothing and messages that cost less than a slot: the closed form.
    """
    rng = random.Random(0)
    for _ in range(50):
        stages, micro = rng.randint(1, 6), 2 ** rng.randint(0, 4)
        message = rng.choice([0.0, 0.5]) * 1e-3
        machine = Machine(forward=2e-3, backward=2e-3, latency=message)
        workload = dataclasses.replace(WORK, blocks=stages, batch=16, parameters=0)
        slot = 16 // micro * 2e-3
        forwards = sweep(stages, micro, slot, message)
        expected = 2 * forwards  # the way back is the way there, in a mirror
        assert pipeline(workload, machine, stages, micro).step == pytest.approx(expected)


def sweep(stages: int, micro: int, slot: float, message: float) -> float:
    """When the last stage ends the last micro-batch of a sweep."""
    free = [0.0] * stages
    for _ in range(micro):
        come = 0.0
        for stage in range(stages):
            free[stage] = max(come, free[stage]) + slot
            come = free[stage] + message
    return free[-1]
