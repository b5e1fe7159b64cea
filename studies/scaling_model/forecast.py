"""From one step of a method to its whole training: failures, traffic, memory."""

import math
from dataclasses import dataclass

from scaling_model.cluster import Machine, Workload
from scaling_model.failures import Recovery, daly_interval, finish_bound

__all__ = ["Forecast", "Plan", "forecast"]


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
        written: blocks in a machine's part of a checkpoint.
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
    written: float


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
