"""The processes that train one group together, and what they tell each other.

Two axes. Along *block* each process has some of the group's units, and nothing crosses but the
gradients of shared parameters, summed in the order of the units. Along *data* each computes some of
the shards that a mini-batch is cut into, and gradients are summed in the order of the shards. Both
sums have one order, whatever the number of processes: on a CPU the weights then are the same to the
last bit. With fixed embeddings nothing crosses along *block* at all.

Here is one process alone; :mod:`noprop.training.mesh` has those of ``torch.distributed``.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from noprop.errors import TrainingError

__all__ = ["SAVE", "STOP", "PeerLostError", "PeerStoppedError", "Team", "in_order"]

# What a process may wish at the end of an update; added up over a team's processes.
SAVE = 1
STOP = 4096


class PeerLostError(TrainingError):
    """Another process of the team has ended."""


class PeerStoppedError(KeyboardInterrupt):
    """Another process of the team was asked to stop; all have saved the same update."""


class Team:
    """One process alone.

    Args:
        shards: parts that a mini-batch is cut into, each batch-normalised by itself.

    Attributes:
        is_alone: whether there is no other.
        leads: whether this process holds the group's lock and writes its checkpoint.
        speaks: whether it reports; of those with the same units one does.
        units: names of the units it has; None for all.
        shards: numbers of the shards that it computes.
        all_shards: how many there are.
    """

    is_alone: bool = True
    leads: bool = True
    speaks: bool = True
    units: frozenset[str] | None = None

    def __init__(self, shards: int = 1):
        self.all_shards = shards
        self.shards: Sequence[int] = range(shards)

    def mean(
        self, shards: Sequence[Float[Tensor, " n"]], wish: int
    ) -> tuple[Float[Tensor, " n"], int]:
        """The sum over all shards, in their order, of vectors that are weighted already.

        Args:
            shards: those of this process, in order.
            wish: of this process.

        Returns:
            The sum, and that of the wishes.

        Raises:
            PeerLostError: If another process of the team has ended.
        """
        return in_order(shards), wish

    def fold(
        self, parts: Sequence[Float[Tensor, " n"]], wish: int
    ) -> tuple[Float[Tensor, " n"], int]:
        """The sum over all units, in their order, of what each gives to the shared gradient.

        Args:
            parts: those of the units of this process, in order.
            wish: of this process.

        Returns:
            The sum, and that of the wishes.

        Raises:
            PeerLostError: If another process of the team has ended.
        """
        return in_order(parts), wish

    def share(self, number: int) -> int:
        """The number that the leader has."""
        return number

    def meet(self) -> None:
        """Wait until all processes of the team are here."""


def in_order(parts: Sequence[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """((p_1 + p_2) + p_3) + …: floating-point sums depend on the order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
