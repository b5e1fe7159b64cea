r"""How long a training takes on machines that fail: expectations and bounds.

Machines fail independently after exponential times. Those that wait for each other at every step
form a *group*: one failure sends the whole group back to its last checkpoint, and a failure while
it starts again begins the start again. Groups know nothing of each other; the training ends with
the last of them. A synchronous method is one group of P machines, NoProp with fixed embeddings P
groups of one.

Not modelled: failures that come in bursts or with age, a checkpoint that is lost, machines that
never come back, spare machines that take over another's work.

- J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974.
- J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
  Generation Computer Systems 22(3), 2006.
"""

import math
from dataclasses import dataclass

__all__ = [
    "Recovery",
    "daly_interval",
    "expected_seconds",
    "finish_bound",
    "young_interval",
]


@dataclass(frozen=True)
class Recovery:
    """A group's failures and what they cost.

    Attributes:
        mtbf: mean time between failures of the *group*, seconds, above 0; infinite for none.
        restart: seconds from a failure until the group works again, at least 0.
        write: seconds for which a checkpoint stops the group, at least 0.
        segments: between two checkpoints lies this part of the work, 1 / segments.
    """

    mtbf: float
    restart: float
    write: float
    segments: int

    def attempt(self, work: float) -> float:
        """Seconds from one checkpoint to the next if nothing fails."""
        return work / self.segments + self.write


def young_interval(write: float, mtbf: float) -> float:
    r"""Seconds of work between checkpoints, $\sqrt{2 \delta M}$ (Young 1974)."""
    return math.sqrt(2 * write * mtbf)


def daly_interval(write: float, mtbf: float) -> float:
    r"""Seconds of work between checkpoints, Daly's higher-order estimate (Daly 2006).

    $\sqrt{2 \delta M} [1 + \frac{1}{3} \sqrt{\delta / 2M} + \frac{1}{9} \delta / 2M] - \delta$
    for $\delta < 2 M$, else M; $\delta$ is the time to write one and M the time between failures.
    """
    if write >= 2 * mtbf:
        return mtbf
    ratio = write / (2 * mtbf)
    return young_interval(write, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def expected_seconds(work: float, recovery: Recovery) -> float:
    r"""Expected seconds of one group: $n M e^{R/M} (e^{(\tau + \delta)/M} - 1)$ (Daly 2006).

    Exact for exponential failures, n segments of $\tau$ seconds of work, checkpoints of $\delta$
    and restarts of R seconds, each of which may fail too. Infinite where a float cannot hold it.
    """
    mtbf, attempt = recovery.mtbf, recovery.attempt(work)
    if math.isinf(mtbf):
        return work + recovery.segments * recovery.write
    if max(attempt, recovery.restart) / mtbf > 300:
        return math.inf
    return recovery.segments * mtbf * math.exp(recovery.restart / mtbf) * math.expm1(attempt / mtbf)


def finish_bound(work: float, recovery: Recovery, groups: int) -> float:
    r"""No less than the expected seconds until the last of several groups ends.

    One group: its expectation, which is a bound from below for more. N groups: the lesser of two
    bounds from above. A maximum is no more than the sum, of what each loses by failures. It obeys
    Chernoff's bound, with $\phi(s)$ the moment generating function of a segment's seconds:
    $E \max \le (\ln N + n \ln \phi(s)) / s$ for every s > 0, here on a grid.
    """
    alone = expected_seconds(work, recovery)
    if groups == 1 or math.isinf(recovery.mtbf) or math.isinf(alone):
        return alone
    attempt = recovery.attempt(work)
    smooth = recovery.segments * attempt
    best = smooth + groups * (alone - smooth)
    for power in range(-60, 61):
        s = 10 ** (power / 10) / (attempt + recovery.restart)
        grown = _log_mgf(s, attempt, recovery)
        if not math.isnan(grown):
            best = min(best, (math.log(groups) + recovery.segments * grown) / s)
    return best


def _log_mgf(s: float, attempt: float, recovery: Recovery) -> float:
    """Of the seconds of a segment, at s; nan where it is infinite."""
    rate = 1 / recovery.mtbf

    def fails(seconds: float) -> float:
        """E[exp(s · time of the failure); it comes within these seconds]."""
        a = rate - s
        return rate * seconds if a == 0 else rate * -math.expm1(-a * seconds) / a

    def succeeds(seconds: float) -> float:
        """E[exp(s · seconds); no failure within them]."""
        return math.exp((s - rate) * seconds)

    if s * max(attempt, recovery.restart) > 300 or fails(recovery.restart) >= 1:
        return math.nan
    again = succeeds(recovery.restart) / (1 - fails(recovery.restart))
    if fails(attempt) * again >= 1:
        return math.nan
    return (s - rate) * attempt - math.log1p(-fails(attempt) * again)
