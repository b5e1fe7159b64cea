"""Copies of a run's weights as they were after some epochs (``train.keep_every``).

With the learning rate constant, a run of few epochs is the beginning of one of many: its copies say
what shorter runs would have come to.
"""

import re
from pathlib import Path

from noprop.build import RunData, unit_names
from noprop.config import RunConfig
from noprop.encoders import EncoderFactory
from noprop.fingerprint import fingerprint
from noprop.model import Model, empty_model, load_weights
from noprop.training.checkpoint import DamagedError, check_fingerprint, load_tensors
from noprop.training.state import kept_path

__all__ = ["kept_epochs", "kept_model"]


def kept_epochs(folder: Path, config: RunConfig) -> list[int]:
    """The epochs after which there is a copy of every unit, ascending."""
    found = []
    for unit in unit_names(config):
        names = [path.name for path in folder.glob(f"units/*/{unit}.epoch-*.safetensors")]
        matches = [re.search(r"epoch-(\d+)", name) for name in names]
        found.append({int(match[1]) for match in matches if match})
    return sorted(set.intersection(*found))


def kept_model(
    folder: Path,
    config: RunConfig,
    data: RunData,
    epoch: int,
    factory: EncoderFactory | None = None,
) -> tuple[Model, float]:
    """The model as it was after an epoch, with uniform path weights.

    Args:
        folder: the run.
        config: its configuration.
        data: its data.
        epoch: one of :func:`kept_epochs`.
        factory: a user's own encoder.

    Returns:
        The model, and the seconds of training until then: of all groups together.

    Raises:
        RunError: If a copy is damaged, or of other settings or data.
    """
    mark, state = fingerprint(config, data.train), {}
    seconds: dict[Path, float] = {}
    for unit in unit_names(config):
        for path in folder.glob(f"units/*/{kept_path(Path(), unit, epoch).name}"):
            tensors, about = load_tensors(path)
            check_fingerprint(path, about, mark)
            state |= tensors
            if "seconds" not in about:
                raise DamagedError(f"{path}: is damaged (its header has no seconds)")
            seconds[path.parent] = max(seconds.get(path.parent, 0.0), about["seconds"])
    model = empty_model(config, data.task, factory)
    load_weights(model, state, folder)
    return model, sum(seconds.values())
