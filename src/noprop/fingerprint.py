"""What the weights of a run depend on: which settings, and a digest of them and of the data."""

import hashlib
import json
from typing import Any

from noprop.config import RunConfig, fields_of, inference_fields, to_mapping
from noprop.data import Examples

__all__ = ["difference", "fingerprint"]

FREE = {
    "": ("recipe", "data", "evaluation"),
    "train": ("device", "workers", "checkpoint_every", "offload", "keep_every"),
}
# Fields that came when runs were under way: at its default, none leaves a mark in a fingerprint.
YOUNGER = (
    "data.normalization",
    "method.dropout_kind",
    "method.embedding_norm",
    "method.gamma_shift",
    "method.time_scale",
)


def difference(there: RunConfig, asked: RunConfig) -> tuple[str, str, str] | None:
    """The first field that changes weights and is not the same in both, with both values.

    Of the data only the place is free here: whether the examples are the same is told by the
    fingerprint of each checkpoint, but how many are wanted is told sooner.
    """
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names if section}
    free |= {"recipe", "data.dataset", "data.test_size", *inference_fields(there)}
    for name, *_ in fields_of():
        section, _, field = name.partition(".")
        a, b = (to_mapping(c).get(section, {}) for c in (there, asked))
        a, b = (m.get(field) if isinstance(m, dict) else m for m in (a, b))
        if name not in free and a != b:
            return name, _shown(a), _shown(b)
    return None


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def fingerprint(config: RunConfig, train: Examples) -> str:
    """A digest of all that a unit's weights depend on: its settings, and the training examples.

    Where the examples lie, which device and how many workers train, where blocks wait, and how the
    result is read change nothing, so a run may go on with others. (With another ``train.offload``
    only once it is trained, for the checkpoints are of another form.)
    """
    mapping = to_mapping(config)
    c = config.method
    assert not any(getattr(c, name) == "auto" for name in c.gamma_over_distance), (
        "auto is unresolved"
    )
    if config.train.shards <= 1:  # as before there were any
        del mapping["train"]["shards"]
    for name, _, default, _ in fields_of():
        if name in YOUNGER:
            section, _, field = name.partition(".")
            value = mapping[section].pop(field, default)
            if value != default:  # beside its section, for that of the data goes as a whole
                mapping[name] = value
    for section, names in FREE.items():
        for name in names:
            (mapping[section] if section else mapping).pop(name)
    for name in inference_fields(config):
        section, _, field = name.partition(".")
        mapping.get(section, {}).pop(field, None)
    digest = hashlib.blake2b(json.dumps(mapping, sort_keys=True).encode(), digest_size=16)
    for part in (train.x, train.y):
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
