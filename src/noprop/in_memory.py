"""Training a method in this process without a run folder, and its state as arrays of numpy.

It is the trainer of every run, one epoch after another. Nothing is committed, so training that is
interrupted begins again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig
from noprop.data import Examples, Normalization
from noprop.methods.base import Method
from noprop.model import load_method, method_tensors
from noprop.randomness import generator
from noprop.task import Task
from noprop.tensor_files import flatten, unflatten
from noprop.training.events import print_nothing
from noprop.training.optimizers import optimizer_state, restore_optimizer
from noprop.training.trainer import Trainer

__all__ = [
    "Arrays",
    "arrays_of",
    "build_for_shape",
    "epochs_of",
    "for_prediction",
    "load_arrays",
    "optimizer_arrays",
    "place",
    "probabilities",
    "restore_optimizers",
    "threads",
    "trainer_in_memory",
]

Arrays = dict[str, NDArray[Any]]


def build_for_shape(config: RunConfig, shape: tuple[int, ...], num_classes: int) -> Method:
    """Return the initialised method of a configuration, for standardised inputs of one shape."""
    task = Task(shape, tuple(map(str, range(num_classes))), _identity(shape), "float32")
    return build_method(config, task, build_embedding(config, task, None))


def _identity(shape: tuple[int, ...]) -> Normalization:
    return Normalization((0.0,) * shape[0], (1.0,) * shape[0])


def trainer_in_memory(
    config: RunConfig,
    method: Method,
    examples: Examples,
    weights: Tensor | None,
    device: torch.device,
) -> Trainer:
    """Return a trainer of all units of a method, which never writes a file.

    Args:
        config: Settings of the training.
        method: The method, which is moved to the device.
        examples: Standardised examples.
        weights: Their weights in the losses, shape (N,), of mean 1; None if all are 1.
        device: Device of training.
    """
    place(method, device)
    return Trainer(
        config,
        method,
        method.units,
        examples.to(device),
        Examples(examples.x[:0], examples.y[:0]).to(device),
        _identity(examples.x.shape[1:]),
        bf16=False,
        folder=Path(),
        emit=print_nothing,
        weights=None if weights is None else weights.to(device),
    )


def epochs_of(trainer: Trainer) -> Iterator[int]:
    """Train, and yield the number of each epoch when it has ended."""
    while not trainer.is_finished:
        for unit in trainer.units:
            unit.module.train()
        for _ in trainer.plan.rows:
            trainer.step()
        yield trainer.position // len(trainer.plan.rows)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with some threads of torch in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- prediction ------------------------------------------------------------------------------------


def place(method: Method, device: torch.device | str) -> Method:
    """Return the method after moving it to a device."""
    for module in (method.shared, *(unit.module for unit in method.units)):
        module.to(device)
    return method


def for_prediction(method: Method) -> Method:
    """Return the method in float64, where rounding by other rows of a batch is far below 1e-7."""
    for module in (method.shared, *(unit.module for unit in method.units)):
        module.double()
    return method


def probabilities(method: Method, x: Tensor) -> Tensor:
    """Return the path average of the mean chain, shape (N, m), for standardised inputs."""
    for unit in method.units:
        unit.module.eval()
    draws = generator(0, "unused", device=x.device)
    return method.predict(x, draws, noise=False, average="path").probabilities


# -- arrays ----------------------------------------------------------------------------------------


def arrays_of(method: Method) -> Arrays:
    """Return a copy of the weights by name."""
    return {name: value.cpu().numpy().copy() for name, value in method_tensors(method).items()}


def load_arrays(method: Method, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Load what :func:`arrays_of` returned.

    Raises:
        RunError: If the weights are of another architecture.
    """
    load_method(method, _tensors(arrays), "weights")


def optimizer_arrays(trainer: Trainer) -> Arrays:
    """Return a copy of the state of the optimizers by unit and name."""
    tensors: dict[str, Tensor] = {}
    for unit, optimizer in zip(trainer.units, trainer.state.optimizers, strict=True):
        assert optimizer
        tensors |= flatten(unit.name, optimizer_state(optimizer))
    return {name: value.cpu().numpy().copy() for name, value in tensors.items()}


def restore_optimizers(trainer: Trainer, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Load what :func:`optimizer_arrays` returned; without arrays optimizers start from nothing."""
    for unit, optimizer in zip(trainer.units, trainer.state.optimizers, strict=True):
        if optimizer and arrays:
            restore_optimizer(optimizer, unflatten(unit.name, _tensors(arrays)))


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
