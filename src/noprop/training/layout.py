"""How processes share a run: a mesh of block × data, and which units each place along block has.

Blocks cost the same and a readout next to nothing, so a mesh is as fast as its slowest process. Two
processes that share a unit send each other its whole gradient at each update, two with different
ones do not: so a mesh has several along data only where there are more processes than units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from noprop.config import RunConfig

__all__ = ["Layout", "choose_layout", "deal", "unit_costs"]


@dataclass(frozen=True)
class Layout:
    """A mesh of processes.

    Attributes:
        shares: units of each place along block.
        data: processes that share each of them.
        shards: parts of a mini-batch; a multiple of ``data``.
    """

    shares: tuple[tuple[str, ...], ...]
    data: int
    shards: int

    @property
    def size(self) -> int:
        """Processes in the mesh."""
        return len(self.shares) * self.data

    def share(self, rank: int) -> tuple[str, ...]:
        """The units of a process; ranks go along data first."""
        return self.shares[rank // self.data]


def unit_costs(config: RunConfig) -> dict[str, float]:
    """Time of each unit in an epoch, that of a block being 1."""
    costs = config.method.unit_costs
    networks = [name for name, cost in costs.items() if cost >= 1]
    passes = len(networks) if config.train.order == "sequential" else 1
    return {name: cost if name in networks else cost * passes for name, cost in costs.items()}


def deal(
    costs: Mapping[str, float], places: int, *, neighbours: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Units for each of at most ``places`` processes, so that the slowest takes little time.

    Args:
        costs: time of each unit, in the order of the run.
        places: processes.
        neighbours: whether each has units that follow each other.

    Returns:
        A share for each process that has one; each in the order of the run.
    """
    if neighbours:
        return _deal_neighbours(costs, places)
    loads, dealt = [0.0] * places, [set[str]() for _ in range(places)]
    for name in sorted(costs, key=lambda name: -costs[name]):
        place = loads.index(min(loads))
        loads[place] += costs[name]
        dealt[place].add(name)
    return tuple(tuple(n for n in costs if n in share) for share in dealt if share)


def _deal_neighbours(costs: Mapping[str, float], places: int) -> tuple[tuple[str, ...], ...]:
    """The least limit on a share's time that needs no more shares than there are places."""

    def cut(limit: float) -> list[list[str]]:
        shares: list[list[str]] = [[]]
        load = 0.0
        for name, cost in costs.items():
            if shares[-1] and load + cost > limit:
                shares.append([])
                load = 0.0
            shares[-1].append(name)
            load += cost
        return shares

    low, high = max(costs.values()), sum(costs.values()) * (1 + 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if len(cut(middle)) <= places else (middle, high)
    return tuple(map(tuple, cut(high)))


def choose_layout(
    config: RunConfig, processes: int, units: Sequence[str] | None = None, *, shards: int = 0
) -> Layout:
    """The mesh that takes little time, and sends little.

    Args:
        config: the run.
        processes: at most so many.
        units: those that are not trained yet; all unless given.
        shards: of a mini-batch; 0 for as many as the mesh has processes along data.
    """
    learned, costs = config.method.learned, unit_costs(config)
    left = {name: cost for name, cost in costs.items() if units is None or name in units}
    together = learned and (config.train.order == "sequential" or len(costs) == 1)

    def layout(data: int) -> tuple[float, Layout]:
        rows = 1 if together else max(1, processes // data)
        shares = deal(left, rows, neighbours=learned)
        slowest = max(sum(left[name] for name in share) for share in shares) / data
        return slowest, Layout(shares, data, shards or data)

    most = min(-(-processes // (1 if together else len(left))), config.train.batch_size // 2)
    most = 1 if config.train.offload else most
    widths = [n for n in range(1, most + 1) if shards % n == 0]
    return min(map(layout, widths), key=lambda found: (round(found[0], 9), found[1].data))[1]
