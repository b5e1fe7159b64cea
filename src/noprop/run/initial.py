"""Starting a run from the weights of another one (fine-tuning).

The model file of the source is copied into the new run as ``initial.safetensors``, and its SHA-256
is ``train.init`` of the configuration, on which the weights depend. So a run resumes to the same
bits when the source has changed or is gone.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from noprop.config import RunConfig, replace
from noprop.embeddings import Embedding
from noprop.encoders import EncoderFactory
from noprop.errors import ConfigError, DamagedError, RunError
from noprop.files import open_regular, read_object
from noprop.methods.base import Unit
from noprop.model import empty_model, open_run
from noprop.task import RunData
from noprop.tensor_files import flatten, load_tensors, unflatten
from noprop.terminal import printable
from noprop.training.events import Initialized

__all__ = [
    "INITIAL",
    "Start",
    "digest_of",
    "initial_bytes",
    "start_embedding",
    "start_units",
    "tensors_of",
]

INITIAL = "initial.safetensors"


def _read_source(folder: Path, data: RunData) -> bytes:
    """Return the model file of a finished run, for a run on data with the same classes.

    Raises:
        RunError: If the folder is no run, its training has not finished, or the file is damaged.
        ConfigError: If it was trained on other classes.
    """
    open_run(folder)
    path, about = folder / "model.safetensors", folder / "model.json"
    if not path.is_file() or not about.is_file():
        raise RunError(
            f"init: {folder} has no model yet; finish it with noprop train --resume {folder}"
        )
    there, here = read_object(about).get("class_names"), list(data.task.class_names)
    if there != here:
        raise ConfigError(
            f"init: {folder} was trained on the classes {_some(there)}; these data have "
            f"{_some(here)}"
        )
    load_tensors(path)  # checks its digest
    return _content(path)


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing, and the run starts from it") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None


def _some(names: object) -> str:
    if not isinstance(names, list):
        return "?"
    more = f", … ({len(names)})" if len(names) > 5 else ""
    return printable(", ".join(map(str, names[:5]))) + more


def digest_of(content: bytes) -> str:
    """Return the SHA-256 in hex: ``train.init`` of a run that starts from a file."""
    return hashlib.sha256(content).hexdigest()


def initial_bytes(folder: Path, config: RunConfig) -> UInt8[Tensor, " bytes"]:
    """Return the file that a run starts from; nothing for a run that starts from its seed.

    Raises:
        RunError: If it is missing, or not the file of ``train.init``.
    """
    if config.train.init is None:
        return torch.empty(0, dtype=torch.uint8)
    path = folder / INITIAL
    content = _content(path)
    if digest_of(content) != config.train.init:
        raise DamagedError(f"{path}: is not the file that the run started from (train.init)")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def tensors_of(content: UInt8[Tensor, " bytes"]) -> dict[str, Tensor]:
    """Return the tensors of the file that :func:`initial_bytes` returned."""
    if not len(content):
        return {}
    try:
        return load(content.numpy().tobytes())
    except SafetensorError as error:
        raise DamagedError(f"{INITIAL}: is damaged ({error})") from None


def _fits(unit: Unit, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors have all weights of a unit, in the same shapes."""
    prefix = f"{unit.name}/module"
    own = {n: v.shape for n, v in flatten(prefix, unit.module.state_dict()).items()}
    there = {n: v.shape for n, v in tensors.items() if n.startswith(f"{prefix}/")}
    return own == there


def start_units(units: Iterable[Unit], tensors: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of the units that fit, and return their names."""
    taken = []
    for unit in units:
        if tensors and _fits(unit, tensors):
            unit.module.load_state_dict(unflatten(f"{unit.name}/module", tensors))
            taken.append(unit.name)
    return taken


def start_embedding(embedding: Embedding, tensors: Mapping[str, Tensor]) -> None:
    """Load learned embeddings, where they have the same shape; fixed ones stay as configured."""
    there = tensors.get("shared/weight")
    if embedding.learned and there is not None and there.shape == embedding.weight.shape:
        embedding.load_state_dict({"weight": there})


def _what_fits(
    config: RunConfig,
    data: RunData,
    encoder: EncoderFactory | None,
    source: Path,
    tensors: Mapping[str, Tensor],
) -> Initialized:
    """Return which units of a run start from the tensors of a source.

    Raises:
        ConfigError: If none does.
    """
    units = empty_model(config, data.task, encoder).method.units
    taken = start_units(units, tensors)
    if not taken:
        raise ConfigError(
            f"init: no unit of {source} has the name and the shapes of one of this run; compare "
            f"noprop describe {source} with noprop describe of the recipe"
        )
    fresh = [unit.name for unit in units if unit.name not in taken]
    return Initialized(str(source), taken, fresh)


@dataclass(frozen=True)
class Start:
    """What a new run starts from: its seed, or the weights of another run.

    Attributes:
        config: Configuration of the new run, with ``train.init``.
        source: The other run.
        content: Its model file.
        tensors: The tensors in it.
    """

    config: RunConfig
    source: Path | None = None
    content: bytes | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: RunConfig, data: RunData, init: Path | str | None, *, exists: bool = False
    ) -> "Start":
        """Read a source; ``exists`` says that the run exists, with a copy of it."""
        if init is None:
            if config.train.init and not exists:
                raise ConfigError(
                    "train.init: a new run starts from weights only with --init RUN (init=)"
                )
            return cls(config)
        content = _read_source(Path(init), data)
        config = replace(config, {"train.init": digest_of(content)})
        tensors = tensors_of(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return cls(config, Path(init), content, tensors)

    def check(
        self, config: RunConfig, data: RunData, encoder: EncoderFactory | None
    ) -> Initialized | None:
        """Return which units of the run start from the source; None without one."""
        if self.source is None:
            return None
        return _what_fits(config, data, encoder, self.source, self.tensors)
