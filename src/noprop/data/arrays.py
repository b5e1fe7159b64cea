"""Data sets in memory: tensors, and parts of them that never overlap.

A :class:`Dataset` has a training and a test part. Validation is a stratified, seeded part of
training (:func:`hold_out`); the test part chooses nothing. A source without a test part of its own
gives one fifth of itself, always the same fifth, so that runs with different seeds are scored on
the same examples (:func:`split_off_test`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from noprop.errors import DataError

__all__ = [
    "MAX_CLASSES",
    "Dataset",
    "Examples",
    "Splits",
    "hold_out",
    "split_off_test",
    "stratified",
    "stratified_indices",
    "stratified_split",
]

MAX_CLASSES = 10_000  # one-hot embeddings are the square of it: 400 MB
MAX_NAME_LENGTH = 255  # what a folder's name can have
TEST_FRACTION = 0.2
TEST_SEED = 0  # never the seed of a run: the test part is the same for all of them


@dataclass(frozen=True)
class Examples:
    """Inputs with their labels, on one device.

    Attributes:
        x: Images, uint8 of shape (N, C, H, W) in 0..255, or features, float32 of shape (N, ...).
        y: Labels from 0, int64 of shape (N,).
        files: Name of each example, that of its file or its row of a table; else none.

    Raises:
        DataError: If these differ in length or have other types than these.
    """

    x: Tensor  # no shapes in the annotations: these are checked below in every run, not in tests
    y: Tensor
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.x.dtype == torch.uint8 and self.x.ndim == 4
        if not images and (self.x.dtype != torch.float32 or self.x.ndim < 2):
            raise DataError(
                f"examples must be uint8 images (N, C, H, W) or float32 features (N, ...), "
                f"got {self.x.dtype} of shape {tuple(self.x.shape)}"
            )
        if self.y.dtype != torch.int64 or self.y.ndim != 1:
            raise DataError(
                f"labels must be int64 of shape (N,), got {self.y.dtype} of {tuple(self.y.shape)}"
            )
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} examples came with {len(self.y)} labels")
        if self.files and len(self.files) != len(self.y):
            raise DataError(f"{len(self.x)} examples came with {len(self.files)} names of files")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: Int64[Tensor, " k"]) -> "Examples":
        """Return a copy of the examples at ``indices``, in that order."""
        files = [self.files[i] for i in indices.tolist()] if self.files else ()
        return Examples(self.x[indices], self.y[indices], tuple(files))

    def to(self, device: torch.device | str) -> "Examples":
        """Return the same examples on another device."""
        return Examples(self.x.to(device), self.y.to(device), self.files)


@dataclass(frozen=True)
class Dataset:
    """A named data set with a training and a test part.

    Attributes:
        name: Name that the user gave.
        train: The training part, with the validation part.
        test: The test part, which is read once, at the end.
        class_names: One name per label, in label order.
        columns: Name of each feature, of a table; else none.

    Raises:
        DataError: If there are fewer than 2 or more than 10,000 classes, a name is longer than 255
            characters, a part is empty, the parts differ in shape or type, a label has no name, or
            a class has no training example.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= MAX_CLASSES:
            count = f"{self.num_classes} class{'es' * (self.num_classes != 1)}"
            raise DataError(f"{self.name}: has {count}, wanted 2 to {MAX_CLASSES:,}")
        if long := [name for name in self.class_names if len(name) > MAX_NAME_LENGTH]:
            raise DataError(
                f"{self.name}: a class name has {len(long[0])} characters, wanted at most "
                f"{MAX_NAME_LENGTH}: {long[0][:40]!r}…"
            )
        for part, examples in (("training", self.train), ("test", self.test)):
            if len(examples) == 0:
                raise DataError(f"{self.name}: the {part} part is empty")
            low, high = int(examples.y.min()), int(examples.y.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(
                    f"{self.name}: {part} labels lie in {low}..{high}, "
                    f"wanted 0..{self.num_classes - 1} for {self.num_classes} classes"
                )
        if (
            self.train.x.shape[1:] != self.test.x.shape[1:]
            or self.train.x.dtype != self.test.x.dtype
        ):
            raise DataError(
                f"{self.name}: training examples are {_describe(self.train.x)} but test examples "
                f"are {_describe(self.test.x)}"
            )
        absent = (torch.bincount(self.train.y, minlength=self.num_classes) == 0).nonzero()
        if len(absent):
            label = int(absent[0, 0])
            raise DataError(
                f"{self.name}: class {label} ({self.class_names[label]}) has no training example; "
                f"labels must be 0..{self.num_classes - 1} with none left out"
            )

    @property
    def num_classes(self) -> int:
        """m, the number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, such as (1, 28, 28)."""
        return tuple(self.train.x.shape[1:])


@dataclass(frozen=True)
class Splits:
    """Three parts without common examples. ``validation`` may be empty."""

    train: Examples
    validation: Examples
    test: Examples


def stratified_split(
    y: Int64[Tensor, " n"], fraction: float, seed: int
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " held_out"]]:
    """Divide 0..N-1 so that both parts have the class proportions of ``y``.

    Each class of n examples gives ``fraction * n``, rounded down or up by largest remainder so that
    ``round(fraction * N)`` are held out in all. A class never gives its last example: where that
    binds, fewer are held out.

    Args:
        y: Labels, shape (N,), on any device.
        fraction: Fraction of the examples to hold out, in [0, 1).
        seed: Seed of the choice; the numbers per class do not depend on it.

    Returns:
        The kept and the held-out indices, each ascending, on the CPU.

    Raises:
        ValueError: If ``fraction`` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction to hold out must be in [0, 1), got {fraction}")
    y = y.cpu()
    counts = torch.bincount(y).tolist()
    wanted = [fraction * count for count in counts]
    quota = [int(share) for share in wanted]
    missing = round(fraction * len(y)) - sum(quota)
    by_remainder = sorted(range(len(counts)), key=lambda c: quota[c] - wanted[c])
    can_give = [c for c in by_remainder if quota[c] < wanted[c] and quota[c] + 1 < counts[c]]
    for label in can_give[: max(missing, 0)]:
        quota[label] += 1

    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(y), dtype=torch.bool)
    for label, number in enumerate(quota):
        members = (y == label).nonzero()[:, 0]
        held_out[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def hold_out(
    dataset: Dataset,
    fraction: float,
    seed: int,
    train_size: int | None = None,
    test_size: int | None = None,
) -> Splits:
    """Hold a stratified ``fraction`` of the training part out as validation; the test part stays.

    Args:
        dataset: The whole data set.
        fraction: Fraction of the training part, in [0, 1).
        seed: Seed of the choice.
        train_size: About how many of the other training examples to keep, stratified; None for all.
        test_size: About how many test examples to keep, the same for every seed; None for all.

    Raises:
        ValueError: If ``fraction`` is not in [0, 1).
    """
    kept, held_out = stratified_split(dataset.train.y, fraction, seed)
    device = dataset.train.y.device
    train, validation = dataset.train.take(kept.to(device)), dataset.train.take(held_out.to(device))
    if train_size is not None and train_size < len(train):
        _, chosen = stratified_split(train.y, train_size / len(train), seed)
        train = train.take(chosen.to(device))
    test = dataset.test if test_size is None else stratified(dataset.test, test_size)
    return Splits(train, validation, test)


def stratified(examples: Examples, count: int) -> Examples:
    """Return about ``count`` of the examples with the same class proportions, the same ones always.

    All of them, if there are no more.
    """
    if count >= len(examples):
        return examples
    return examples.take(stratified_indices(examples.y, count).to(examples.y.device))


def stratified_indices(y: Int64[Tensor, " n"], count: int) -> Int64[Tensor, " chosen"]:
    """Return the indices, ascending, of the examples that :func:`stratified` takes."""
    if count >= len(y):
        return torch.arange(len(y))
    return stratified_split(y, count / len(y), TEST_SEED)[1]


def split_off_test(name: str, whole: Examples, class_names: Sequence[str]) -> Dataset:
    """Split off one fifth of ``whole`` as the test part, stratified and the same in every run.

    Raises:
        DataError: If ``whole`` is too small for a test part.
    """
    train, test = stratified_split(whole.y, TEST_FRACTION, TEST_SEED)
    if len(test) == 0:
        raise DataError(
            f"{name}: {len(whole)} examples of {len(class_names)} classes are too few to take a "
            f"test part of 20 % from; add examples or give a test part"
        )
    return Dataset(name, whole.take(train), whole.take(test), tuple(class_names))


def _describe(x: Shaped[Tensor, "n ..."]) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape[1:])}"
