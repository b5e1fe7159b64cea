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

import math
from dataclasses import dataclass

from scaling_model.cluster import FLOAT, Algorithm, Machine, Workload, all_reduce, slowest
from scaling_model.failures import Recovery, daly_interval, finish_bound

__all__ = [
    "Forecast",
    "best_pipeline",
    "data_parallel",
    "noprop_fixed",
    "noprop_learned",
    "pipeline",
]


@dataclass(frozen=True)
class Plan:
    """A step of one method, and who waits for whom.

    Attributes:
        compute: seconds a step of the busiest machine.
        total_compute: seconds a step of all machines added up.
        wait: seconds a step for the network, and in a pipeline for other stages.
        sent: bytes a step that the busiest machine sends.
        total_sent: bytes a step of all machines.
        groups: of machines that know nothing of each other.
        together: machines of a group.
        resident: blocks whose weights, gradients and moments a machine holds.
        kept: examples times blocks whose activations it holds at the same time.
        data: share of the training part that a machine must have.
        collected: whether the blocks lie on different machines at the end.
    """

    compute: float
    total_compute: float
    wait: float
    sent: float
    total_sent: float
    groups: int
    together: int
    resident: int
    kept: int
    data: float
    collected: bool

    @property
    def written(self) -> float:
        """Blocks in a machine's part of a checkpoint, which replicas divide as they do the data."""
        return self.resident * self.data


@dataclass(frozen=True)
class Forecast:
    """What a training takes.

    Attributes:
        step: seconds of a mini-batch through all blocks of the busiest machine.
        work: seconds without failures, with the data brought and the weights collected.
        seconds: expected with failures and checkpoints; of several groups a bound from above.
        lost: ``seconds`` less ``work``.
        interval: seconds of work between checkpoints, infinite without failures.
        sent: bytes a step that the busiest machine sends, in one direction of its links added up.
        total_sent: bytes that all machines send in all steps.
        once: bytes brought to or collected from all machines once.
        memory: bytes of weights, gradients, Adam's moments and activations of the busiest machine.
        computing: share of all machines' time without failures in which they compute.
        efficiency: time of one machine without failures over P times ``seconds``.
    """

    step: float
    work: float
    seconds: float
    lost: float
    interval: float
    sent: float
    total_sent: float
    once: float
    memory: float
    computing: float
    efficiency: float


def forecast(plan: Plan, workload: Workload, machine: Machine, machines: int) -> Forecast:
    """The whole training of a plan on P machines, of which the plan may leave some idle.

    Checkpoints come at Daly's interval, of a group's failures or of all groups', whichever ends
    sooner, but no more often than steps.
    """
    step = plan.compute + plan.wait
    data, weights = workload.examples * workload.example, workload.blocks * workload.gradient
    once = plan.groups * plan.together * plan.data * data + plan.collected * weights
    moved = (plan.data * data + plan.collected * weights) / machine.bandwidth
    work = workload.steps * step + moved * (machines > 1)
    # Weights and two moments; a gradient more while training.
    write = plan.written * 3 * workload.gradient / machine.storage
    seconds, interval = work, math.inf
    if not math.isinf(machine.mtbf):
        mtbf = machine.mtbf / plan.together
        # The best interval for the mean of one group, or for the first failure of any.
        tried = [daly_interval(write, m) for m in (mtbf, mtbf / plan.groups)]
        counts = [math.ceil(work / min(work, max(step, i))) for i in tried]
        recoveries = [Recovery(mtbf, machine.restart, write, n) for n in counts]
        seconds, interval = min(
            (finish_bound(work, r, plan.groups), work / r.segments) for r in recoveries
        )
    state = plan.resident * 4 * workload.gradient
    return Forecast(
        step=step,
        work=work,
        seconds=seconds,
        lost=seconds - work,
        interval=interval,
        sent=plan.sent,
        total_sent=workload.steps * plan.total_sent,
        once=once * (machines > 1),
        memory=state + plan.kept * workload.activations,
        computing=workload.steps * plan.total_compute / (machines * work),
        efficiency=workload.alone(machine) / (machines * seconds),
    )


def noprop_fixed(
    workload: Workload, machine: Machine, machines: int, algorithm: Algorithm = "ring"
) -> Forecast:
    """NoProp-DT with fixed embeddings: nothing is sent while P ≤ T.

    Beyond, every block has P // T machines, each with a part of the batch, that average its
    gradient; machines left over idle. Only the current unit is in memory. The whole training part
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
