"""The groups of units of a run: their names, their folders, and how far each is trained.

A group is what can be trained separately: a unit, or all units when W_Embed is learned or the units
read each other's outputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from noprop.config import RunConfig
from noprop.errors import ConfigError, RunError
from noprop.training.commits import latest
from noprop.training.layout import Layout

__all__ = [
    "COUPLED",
    "UnitState",
    "choose_groups",
    "condensed",
    "group_folder",
    "group_lock",
    "groups_of",
    "share_of_groups",
    "state_of",
    "survey",
    "unfinished_text",
]

COUPLED = "all"  # name of the group of all units


def groups_of(config: RunConfig) -> list[str]:
    """Return the names of the groups of a run, in the order of its units."""
    return [COUPLED] if config.method.coupled else config.method.unit_names


def share_of_groups(config: RunConfig, layout: Layout, rank: int) -> list[str]:
    """Return the groups that a process of a mesh trains with others."""
    return [COUPLED] if config.method.coupled else list(layout.share(rank))


def group_folder(folder: Path, group: str) -> Path:
    """Return the folder of a group, with its commits, in a run folder."""
    return folder / "units" / group


def group_lock(folder: Path, group: str) -> Path:
    """Return the lock file that the process which trains a group holds."""
    return group_folder(folder, group) / ".lock"


@dataclass(frozen=True)
class UnitState:
    """Progress of a group: one unit, or ``all`` of them where they are coupled.

    Attributes:
        name: Name of the group.
        position: Number of updates made.
        total: Number of updates of its training; None before the first checkpoint.
        damage: Fault of its checkpoint; empty if it can be read.
    """

    name: str
    position: int = 0
    total: int | None = None
    damage: str = ""

    @property
    def finished(self) -> bool:
        """Whether it is trained to its end."""
        return self.position == self.total

    def __str__(self) -> str:
        if self.damage:
            return "damaged"
        if self.finished:
            return "trained"
        return f"{self.position} of {self.total} updates" if self.total else "not begun"


def choose_groups(config: RunConfig, wanted: Iterable[str]) -> list[str]:
    """Return the groups of some units, in the order of the run.

    Args:
        config: Configuration of the run.
        wanted: Names, and ranges such as ``block-3..block-7``; or one of these as a string.

    Raises:
        ConfigError: If a unit does not exist, or only some of the units of a group are named.
    """
    names, chosen = config.method.unit_names, set()
    for text in [wanted] if isinstance(wanted, str) else wanted:
        first, dots, last = text.strip().partition("..")
        ends = [first.strip(), last.strip()] if dots else [first]
        if unknown := [end for end in ends if end not in names]:
            raise ConfigError(
                f"units: there is no unit {unknown[0]!r}; there are {condensed(names)}"
            )
        low, high = names.index(ends[0]), names.index(ends[-1])
        if low > high:
            raise ConfigError(f"units: the range {text.strip()} is empty; its ends are swapped")
        chosen |= set(names[low : high + 1])
    if not chosen:
        raise ConfigError(f"units: none is named; there are {condensed(names)}")
    if config.method.coupled and len(chosen) < len(names):
        why = "method.learned ties all units together by W_Embed"
        if config.method.stack:
            why = f"those of {config.method.name} read each other's outputs"
        raise ConfigError(
            f"units: {why}, so {condensed(names)} are trained together; name all of them"
        )
    return groups_of(config) if config.method.coupled else [n for n in names if n in chosen]


def condensed(names: Sequence[str]) -> str:
    """Return names in one line, with three or more neighbours as a range: ``block-1..block-10``."""
    runs: list[list[str]] = []
    for name in names:
        stem, _, number = name.rpartition("-")
        if runs and number.isdigit() and runs[-1][-1] == f"{stem}-{int(number) - 1}":
            runs[-1].append(name)
        else:
            runs.append([name])
    parts = [[f"{run[0]}..{run[-1]}"] if len(run) > 2 else run for run in runs]
    return ", ".join(name for part in parts for name in part)


def survey(folder: Path, config: RunConfig, mark: str | None = None) -> list[UnitState]:
    """Return the progress of every group of a run, from the manifests of its checkpoints.

    Raises:
        RunError: If ``mark`` is given and a group was trained with other settings or other data.
    """
    return [state_of(folder, group, mark) for group in groups_of(config)]


def state_of(
    folder: Path, group: str, mark: str | None = None, *, files: bool = False
) -> UnitState:
    """Return the progress of one group; see :func:`survey`. ``files`` checks its files as well."""
    place = group_folder(folder, group)
    try:
        found = latest(place, files=files)
    except RunError as error:
        return UnitState(group, damage=str(error))
    if found is None:
        return UnitState(group)
    if mark is not None:
        found.commit.check(place, mark)
    return UnitState(group, found.commit.position, found.commit.total)


def unfinished_text(states: Sequence[UnitState]) -> str:
    """Return the unfinished units with their progress; empty if all are trained."""
    left = [state for state in states if not state.finished]
    parts = []
    for how, alike in groupby(left, key=str):
        parts.append(f"{condensed([state.name for state in alike])} ({how})")
    return ", ".join(parts)
