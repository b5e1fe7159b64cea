"""Division of a run among processes: a mesh of block × data, and the units of each row along block.

A mesh is as fast as its slowest process; all blocks cost the same, and a readout almost nothing.
Processes that share a unit exchange its whole gradient at each update, processes with different
units do not. So a mesh has several processes along data only if processes outnumber units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from noprop.config import RunConfig

__all__ = ["Layout", "choose_layout", "deal", "unit_costs"]


@dataclass(frozen=True)
class Layout:
    """Mesh of processes.

    Attributes:
        shares: Names of the units of each row along block.
        data: Number of processes in each row.
        shards: Number of parts of a mini-batch, a multiple of ``data``.
    """

    shares: tuple[tuple[str, ...], ...]
    data: int
    shards: int

    @property
    def size(self) -> int:
        """Number of processes in the mesh."""
        return len(self.shares) * self.data

    def share(self, rank: int) -> tuple[str, ...]:
        """Return the units of a process; ranks count along data first."""
        return self.shares[rank // self.data]


def unit_costs(config: RunConfig) -> dict[str, float]:
    """Return the time of each unit in an epoch, as a multiple of a block's."""
    costs, quick = config.method.unit_costs, config.method.quick_units
    passes = len(costs) - len(quick) if config.train.order == "sequential" else 1
    return {name: cost * passes if name in quick else cost for name, cost in costs.items()}


def deal(
    costs: Mapping[str, float], places: int, *, neighbours: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Divide units among processes, so that the slowest takes little time.

    Args:
        costs: Time of each unit, in the order of the run.
        places: Greatest number of processes.
        neighbours: Whether the units of a process must be consecutive.

    Returns:
        The units of each process that has any, in the order of the run.
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
    """Divide consecutive units, with the least limit on a share's time that ``places`` allow."""

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
    """Return the fastest mesh; of equally fast ones that with the fewest processes along data.

    Args:
        config: Configuration of the run.
        processes: Greatest number of processes.
        units: Names of the units to train; all unless given.
        shards: Number of parts of a mini-batch; 0 for the number of processes along data.
    """
    learned, costs = config.method.learned, unit_costs(config)
    left = {name: cost for name, cost in costs.items() if units is None or name in units}
    stack = config.method.stack  # one process trains it, for its units wait for each other
    together = stack or (learned and (config.train.order == "sequential" or len(costs) == 1))

    def layout(data: int) -> tuple[float, Layout]:
        rows = 1 if together else max(1, processes // data)
        shares = deal(left, rows, neighbours=learned)
        slowest = max(sum(left[name] for name in share) for share in shares) / data
        return slowest, Layout(shares, data, shards or data)

    most = min(-(-processes // (1 if together else len(left))), config.train.batch_size // 2)
    most = 1 if config.train.offload or stack else most
    widths = [n for n in range(1, most + 1) if shards % n == 0]
    return min(map(layout, widths), key=lambda found: (round(found[0], 9), found[1].data))[1]
