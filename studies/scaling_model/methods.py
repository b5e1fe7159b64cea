r"""Time, traffic and memory of T blocks on P machines, on paper: NoProp and backprop.

Four ways of training the same T blocks on the same mini-batches:

- :func:`noprop_fixed`: the blocks dealt over machines that never talk.
- :func:`noprop_learned`: all blocks on each mini-batch; the gradient of W_Embed is added up along
  the chain of machines and the sum comes back the same way.
- :func:`data_parallel`: every machine has all blocks and a part of the batch; gradients are added
  up by an all-reduce at every step.
- :func:`pipeline`: every machine has a few blocks of the chain; GPipe's schedule.

Modelled: a block's seconds are linear in the batch, a message's in its bytes; machines are alike;
links carry both directions at once and do not share; failures as in :mod:`scaling_model.failures`;
machines whose every step is faster or slower by chance. A block costs the same in all four, as
Fig. 5's blocks do but for the gradient of z, which backprop alone needs.

Not modelled: accuracy after an epoch, which differs between the methods; machines that are slow
for good; schedules without a bubble; recomputed activations; sharded optimizers; other traffic on
the links; batch norm, whose statistics are of a machine's part of the batch.
"""

from scaling_model.cluster import FLOAT, Algorithm, Machine, Workload, all_reduce, slowest
from scaling_model.forecast import Forecast, Plan, forecast

__all__ = ["best_pipeline", "data_parallel", "noprop_fixed", "noprop_learned", "pipeline"]


def noprop_fixed(
    workload: Workload, machine: Machine, machines: int, algorithm: Algorithm = "ring"
) -> Forecast:
    """NoProp-DT with fixed embeddings: nothing is sent while P ≤ T.

    Beyond, every block has P // T machines, each with a part of the batch, that average its
    gradient; machines left over idle. The unit at hand alone is in memory. The whole training part
    goes to every machine once, to replicas their share. Groups with fewer blocks than the busiest
    are taken to be as long.
    """
    groups, copies = _copies(workload, machines)
    blocks, part = -(-workload.blocks // groups), -(-workload.batch // copies)
    compute = (machine.passes(part) + machine.update) * slowest(copies, machine.jitter)
    reduced, sent = all_reduce(copies, workload.gradient, machine, algorithm)
    mean = machine.passes(part) + machine.update
    plan = Plan(
        compute=blocks * compute,
        total_compute=workload.blocks * copies * mean,
        wait=blocks * reduced,
        sent=blocks * sent,
        total_sent=workload.blocks * copies * sent,
        groups=groups,
        together=copies,
        resident=1,
        kept=part,
        data=1 / copies,
        collected=True,
        written=1 / copies,
    )
    return forecast(plan, workload, machine, machines)


def noprop_learned(
    workload: Workload, machine: Machine, machines: int, algorithm: Algorithm = "ring"
) -> Forecast:
    """NoProp-DT with learned embeddings in parallel order: m d floats a step, link and direction.

    After its blocks' passes a process adds its gradient of W_Embed to the sum that comes from the
    one before and sends it on; the total returns over the same links: 2 (groups - 1) messages one
    after the other. Its blocks stay in memory; one block's activations at a time.
    """
    groups, copies = _copies(workload, machines)
    blocks, part = -(-workload.blocks // groups), -(-workload.batch // copies)
    mean = machine.passes(part) + machine.update
    reduced, sent = all_reduce(copies, workload.gradient, machine, algorithm)
    shared = FLOAT * workload.classes * workload.dim
    along = 2 * (groups - 1) * machine.transfer(shared)
    ends = min(groups - 1, 2)  # a process within the chain sends up and down, one at an end once
    plan = Plan(
        compute=blocks * mean * slowest(groups * copies, machine.jitter),
        total_compute=workload.blocks * copies * mean,
        wait=blocks * reduced + along,
        sent=blocks * sent + ends * shared,
        total_sent=workload.blocks * copies * sent + 2 * (groups - 1) * shared,
        groups=1,
        together=groups * copies,
        resident=blocks,
        kept=part,
        data=1 / copies,
        collected=True,
        written=blocks / copies,
    )
    return forecast(plan, workload, machine, machines)


def data_parallel(
    workload: Workload,
    machine: Machine,
    machines: int,
    algorithm: Algorithm = "ring",
    overlap: float = 0.0,
) -> Forecast:
    """Backprop through all T blocks on parts of the batch; machines beyond the batch idle.

    Args:
        workload: what is trained.
        machine: on which.
        machines: P.
        algorithm: of the all-reduce.
        overlap: share of the all-reduce that can lie beside the backward pass, in 0..1.
    """
    used = min(machines, workload.batch)
    part = -(-workload.batch // used)
    mean = workload.blocks * (machine.passes(part) + machine.update)
    reduced, sent = all_reduce(used, workload.blocks * workload.gradient, machine, algorithm)
    hidden = min(overlap * reduced, workload.blocks * part * machine.backward)
    plan = Plan(
        compute=mean * slowest(used, machine.jitter),
        total_compute=used * mean,
        wait=reduced - hidden,
        sent=sent,
        total_sent=used * sent,
        groups=1,
        together=used,
        resident=workload.blocks,
        kept=workload.blocks * part,
        data=1 / used,
        collected=False,
        written=workload.blocks / used,
    )
    return forecast(plan, workload, machine, machines)


def pipeline(
    workload: Workload,
    machine: Machine,
    machines: int,
    micro_batches: int,
    algorithm: Algorithm = "ring",
    stages: int | None = None,
) -> Forecast:
    """Backprop through a pipeline (GPipe), and copies of it where machines are left.

    A step is (M + S - 1) slots, each of both passes of a stage's blocks for one micro-batch, or of
    its messages where these take longer; the first and last messages lie beside nothing. Every
    stage reads x itself, as Fig. 5's blocks do. All micro-batches' activations are kept.

    Args:
        workload: what is trained.
        machine: on which.
        machines: P.
        micro_batches: M of a copy; at most its part of the batch.
        algorithm: of the all-reduce between copies.
        stages: S, at most P and T: as many as possible unless given.
    """
    stages = min(machines, workload.blocks) if stages is None else stages
    copies = min(machines // stages, workload.batch)
    blocks, part = -(-workload.blocks // stages), -(-workload.batch // copies)
    micro_batches = min(micro_batches, part)
    micro = -(-part // micro_batches)
    message = machine.transfer(micro * workload.between) if stages > 1 else 0.0
    passes = blocks * machine.passes(micro)
    slots = (micro_batches + stages - 1) * max(passes, 2 * message) + 2 * (stages - 1) * message
    reduced, sent = all_reduce(copies, blocks * workload.gradient, machine, algorithm)
    busy = micro_batches * passes + blocks * machine.update
    links, over = min(stages - 1, 2), part * workload.between
    stretch = slowest(stages * copies, machine.jitter)
    own = workload.blocks * (micro_batches * machine.passes(micro) + machine.update)
    plan = Plan(
        compute=busy * stretch,
        total_compute=copies * own,
        wait=(slots - micro_batches * passes) * stretch + reduced,
        sent=sent + links * over,
        total_sent=copies * (2 * (stages - 1) * over)
        + 2 * (copies - 1) * workload.blocks * workload.gradient,
        groups=1,
        together=stages * copies,
        resident=blocks,
        kept=blocks * part,
        data=1 / copies,
        collected=stages > 1,
        written=blocks / copies,
    )
    return forecast(plan, workload, machine, machines)


def best_pipeline(
    workload: Workload, machine: Machine, machines: int, algorithm: Algorithm = "ring"
) -> Forecast:
    """The fastest of S = 1, 2, 4, … or min(P, T), and M = 1, 2, 4, … or the batch."""
    most = min(machines, workload.blocks)
    stages = {most, *(2**k for k in range(most.bit_length()))}
    micro = {workload.batch, *(2**k for k in range(workload.batch.bit_length()))}
    found = [
        pipeline(workload, machine, machines, m, algorithm, s)
        for s in sorted(stages)
        for m in sorted(micro)
        if s <= most
    ]
    return min(found, key=lambda forecast: forecast.seconds)


def _copies(workload: Workload, machines: int) -> tuple[int, int]:
    """Groups that have blocks of their own, and the machines of each."""
    groups = min(machines, workload.blocks)
    return groups, min(machines // groups, workload.batch)
