"""The model of a run, put together from the commits of its groups."""

from pathlib import Path

from torch import Tensor

from noprop.config import RunConfig
from noprop.encoders import EncoderFactory
from noprop.errors import DamagedError, RunError
from noprop.fingerprint import fingerprint
from noprop.model import Model, empty_model, load_weights
from noprop.run.units import group_folder, groups_of, survey, unfinished_text
from noprop.task import RunData
from noprop.training.commits import Commit, kept_epochs, latest, load_part, read_kept

__all__ = ["assemble_model", "check_trained", "epochs_kept", "kept_model"]


def check_trained(folder: Path, config: RunConfig, mark: str | None = None) -> None:
    """Check that every unit exists and is trained to its end.

    Raises:
        RunError: If not, with what is missing and how far it is; or, if ``mark`` is given, a unit
            was trained with other settings or other data.
    """
    if missing := unfinished_text(survey(folder, config, mark)):
        raise RunError(
            f"{folder}: is not fully trained: {missing}; resume it with noprop train --resume "
            f"{folder}"
        )


def assemble_model(
    folder: Path, config: RunConfig, data: RunData, encoder: EncoderFactory | None = None
) -> Model:
    """Return the model of a run whose groups are all trained; each file is read once.

    Raises:
        RunError: If a unit is missing, unfinished, damaged, or of other settings or data.
    """
    mark, tensors = fingerprint(config, data.train), dict[str, Tensor]()
    check_trained(folder, config, mark)
    for group in groups_of(config):
        place = group_folder(folder, group)
        found = latest(place)
        assert found  # by the check
        try:
            tensors |= _weights(place, found.commit)
        except DamagedError as error:
            raise DamagedError(
                f"{error}; train this part again with noprop train --resume {folder}"
            ) from None
    model = empty_model(config, data.task, encoder, folder)
    load_weights(model, tensors, folder)
    return model


def epochs_kept(folder: Path, config: RunConfig) -> list[int]:
    """Return the epochs after which weights of every group were kept, in ascending order.

    With the learning rate constant, a run of few epochs is the beginning of one of many: its kept
    weights (``train.keep_every``) say what shorter runs would have come to.
    """
    found = (kept_epochs(group_folder(folder, group)) for group in groups_of(config))
    return sorted(set.intersection(*found))


def kept_model(
    folder: Path,
    config: RunConfig,
    data: RunData,
    epoch: int,
    encoder: EncoderFactory | None = None,
) -> tuple[Model, float]:
    """Return the model as it was after an epoch, with uniform path weights.

    Args:
        folder: The run.
        config: Its configuration.
        data: Its data.
        epoch: One of :func:`epochs_kept`.
        encoder: The user's own encoder.

    Returns:
        The model, and the seconds of training until then, over all groups.

    Raises:
        RunError: If a file is damaged, or of other settings or data.
    """
    mark, tensors, seconds = fingerprint(config, data.train), dict[str, Tensor](), 0.0
    for group in groups_of(config):
        place = group_folder(folder, group)
        commit = read_kept(place, epoch)
        commit.check(place, mark)
        tensors |= _weights(place, commit)
        seconds += commit.seconds
    model = empty_model(config, data.task, encoder, folder)
    load_weights(model, tensors, folder)
    return model, seconds


def _weights(place: Path, commit: Commit) -> dict[str, Tensor]:
    """Return the weights of a commit that predict: their averages, where they were averaged."""
    found: dict[str, Tensor] = {}
    for part in commit.files.values():
        found |= load_part(place, part)
    kinds = {"optimizer", "shared-optimizer", "average", "shared-average", "best", "shared-best"}
    kinds.add("patience")
    weights = {name: t for name, t in found.items() if not kinds & set(name.split("/")[:2])}
    for name in weights:
        if name.startswith("shared/"):
            average = name.replace("shared/", "shared-average/", 1)
        else:
            average = name.replace("/module/", "/average/", 1)
        weights[name] = found.get(average, weights[name])
    return weights
