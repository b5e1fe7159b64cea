"""Events of training: what a run reports while it trains, to the caller's ``emit``.

Every event is a frozen dataclass, which pickles. ``metrics.jsonl`` holds most of them as JSON, one
object a line, with the name of the class in lower case under ``"event"``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

__all__ = [
    "Created",
    "Damaged",
    "Deadline",
    "Emit",
    "Epoch",
    "Evaluated",
    "Evaluating",
    "Event",
    "Failed",
    "Finished",
    "Found",
    "Grid",
    "Initialized",
    "Progress",
    "Restarted",
    "Started",
    "Step",
    "Tick",
    "Timing",
    "Trained",
    "event_of",
    "print_nothing",
]


@dataclass(frozen=True)
class Event:
    """What every event has.

    Attributes:
        run: Name of the run in a grid or a reproduction; empty for a single run.
    """

    run: str = field(default="", kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON has it, without the fields that have their default."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        optional = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        shown = {n: v for n, v in values.items() if n not in optional or v != optional[n]}
        return {"event": type(self).__name__.lower(), **shown}


Emit = Callable[[Event], None]


def print_nothing(event: Event) -> None:
    """Ignore an event: the ``emit`` of a caller that wants no reports."""


# -- one run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Created(Event):
    """The folder of a new run was made.

    Attributes:
        folder: Path of the folder.
    """

    folder: str


@dataclass(frozen=True)
class Initialized(Event):
    """A new run starts from the weights of another.

    Attributes:
        source: Path of the other run.
        taken: Names of the units that start from its weights.
        fresh: Names of the units that start from the seed.
    """

    source: str
    taken: Sequence[str]
    fresh: Sequence[str]


@dataclass(frozen=True)
class Started(Event):
    """Training starts.

    Attributes:
        groups: Names of the groups that are not trained yet.
        workers: Number of processes that train them; 0 if there is room for none at the moment.
        engine: Name of the engine, where it is not the local one.
        shards: Number of shards of each mini-batch.
        quick: Names of the run's units whose updates take almost no time.
        epochs: Number of epochs of each unit.
        evaluation: Estimated time of the evaluation, as a multiple of the training's; None if it
            is not known.
    """

    groups: Sequence[str]
    workers: int
    engine: str = ""
    shards: int = 1
    quick: Sequence[str] = ()
    epochs: int = 0
    evaluation: float | None = None


@dataclass(frozen=True)
class Found(Event):
    """A group was trained before, or by another process.

    Attributes:
        group: Name of the group.
    """

    group: str


@dataclass(frozen=True)
class Restarted(Event):
    """A group was started again on Ray, because its worker was lost.

    Attributes:
        group: Name of the group.
        attempt: Number of this start, from 1.
        node: Name of the machine that trains it now.
    """

    group: str
    attempt: int
    node: str


@dataclass(frozen=True)
class Damaged(Event):
    """The last checkpoint of a group cannot be read, and the one before it is used.

    Attributes:
        units: Names of the group's units.
        reason: Which file is damaged, and how.
        position: Number of updates in the checkpoint that is used.
        total: Number of updates of the group's training.
    """

    units: Sequence[str]
    reason: str
    position: int
    total: int


@dataclass(frozen=True)
class Progress(Event):
    """How far a group is; the only event of a run's training that is not kept.

    Attributes:
        unit: Name of the unit that was updated last.
        epoch: Number of that unit's epoch, from 1.
        position: Number of updates of the group so far.
        total: Number of updates of the group's training.
        work: Number of updates so far that read images.
        total_work: Number of updates of the group's training that read images.
        loss: Mean loss of the unit since its last epoch ended, in nats.
    """

    unit: str
    epoch: int
    position: int
    total: int
    work: int
    total_work: int
    loss: float


@dataclass(frozen=True)
class Epoch(Event):
    """A unit has finished an epoch.

    Attributes:
        unit: Name of the unit.
        epoch: Number of the epoch, from 1.
        loss: Mean training loss of the epoch, in nats.
        terms: Terms of the last mini-batch's loss, by name, in nats.
        validation_loss: The unit's own loss on the validation part; None without such a part.
        embedding: ``least_length``, ``greatest_length`` and ``least_distance`` of learned class
            embeddings; None where they are fixed.
        facts: Numbers that the method reports, by name; None where it has none.
        lr: Learning rate of the last update.
    """

    unit: str
    epoch: int
    loss: float
    terms: Mapping[str, float]
    validation_loss: float | None
    embedding: Mapping[str, float] | None = None
    facts: Mapping[str, Any] | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Trained(Event):
    """A group is trained to its end.

    Attributes:
        units: Names of the units that this process has trained.
        seconds: Time of training, summed over all processes that had the group, in seconds.
        peak_memory_mb: Largest memory in use, in MB.
        memory_counter: Name of the counter that measured it.
        last_epoch: With ``train.patience``, the number of the last epoch; fewer than
            ``train.epochs`` where the group was stopped.
        best_epoch: With ``train.patience``, the number of the epoch that the weights are of.
    """

    units: Sequence[str]
    seconds: float
    peak_memory_mb: float
    memory_counter: str
    last_epoch: int = 0
    best_epoch: int = 0


@dataclass(frozen=True)
class Evaluating(Event):
    """The model is assembled, and its accuracy is measured.

    Attributes:
        share: Share of the evaluation that is done, 0 to 1.
        text: What is evaluated; only in the first of these events.
    """

    share: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Evaluated(Event):
    """The run is finished.

    Attributes:
        results: Content of ``evaluation.json``.
    """

    results: Mapping[str, Any]


# -- several runs, and measurements ----------------------------------------------------------------


@dataclass(frozen=True)
class Grid(Event):
    """A grid of runs, or a reproduction of the paper, starts.

    Attributes:
        runs: Amount of work of each run, by its name; only their ratios count.
        done: Number of further runs that an earlier command has finished.
        notes: Lines to show at the start.
    """

    runs: Mapping[str, int | float]
    done: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Finished(Event):
    """A run of several is trained and evaluated.

    Attributes:
        results: Content of its ``evaluation.json``; of a reproduction, its line of results (see
            :mod:`noprop.paper.records`).
    """

    results: Mapping[str, Any]


@dataclass(frozen=True)
class Failed(Event):
    """A run of several was stopped by an error.

    Attributes:
        reason: Text of the error.
    """

    reason: str


@dataclass(frozen=True)
class Deadline(Event):
    """The time that a reproduction was given is over.

    Attributes:
        left: Number of runs that are not finished.
    """

    left: int


@dataclass(frozen=True)
class Tick(Event):
    """Nothing has happened for a while: the evaluation of a run may take minutes."""


@dataclass(frozen=True)
class Timing(Event):
    """The steps of a cell are about to be timed.

    Attributes:
        cell: Name of the cell.
    """

    cell: str


@dataclass(frozen=True)
class Step(Event):
    """A step of a benchmark is done.

    Attributes:
        text: What was done.
        number: Number of the step, from 1.
        total: Number of steps.
    """

    text: str
    number: int
    total: int


KINDS: dict[str, type[Event]] = {kind.__name__.lower(): kind for kind in Event.__subclasses__()}


def event_of(value: Mapping[str, Any]) -> Event:
    """Return the event of what :meth:`Event.to_json` made.

    Args:
        value: JSON of an event.

    Raises:
        KeyError: If there is no such event.
        TypeError: If a field is missing or unknown.
    """
    return KINDS[value["event"]](**{name: v for name, v in value.items() if name != "event"})
