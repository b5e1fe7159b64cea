"""Settings that the weights of a run depend on, and a digest of them and of the data."""

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
# Fields that are newer than existing runs: at their defaults they do not change a fingerprint.
YOUNGER = (
    "data.normalization",
    "method.dropout_kind",
    "method.embedding_norm",
    "method.evidence",
    "method.gamma_shift",
    "method.network_reads",
    "method.time_scale",
    "method.train_levels",
    "train.class_weights",
    "train.clip",
    "train.cutout",
    "train.ema",
    "train.init",
    "train.label_smoothing",
    "train.momentum",
    "train.patience",
    "train.schedule",
    "train.warmup",
)


def difference(there: RunConfig, asked: RunConfig) -> tuple[str, str, str] | None:
    """Return the first field that affects weights and differs, with both values.

    ``data.dataset`` may differ, because the same examples may lie in another folder; the
    fingerprint of each checkpoint covers them. A different number of examples is reported here.
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
    """Return a digest of everything that weights depend on: settings and training examples.

    Fields that do not affect weights are left out, so a run may be resumed with other values of
    them: folders of the data, device, workers, offload, and the settings of inference.
    """
    mapping = to_mapping(config)
    c = config.method
    assert not any(getattr(c, name) == "auto" for name in c.gamma_over_distance), (
        "auto is unresolved"
    )
    if first := mapping["train"].pop("extended_from", None):  # the same first updates
        mapping["train"]["epochs"] = first
    if config.train.shards <= 1:  # as in runs from before shards existed
        del mapping["train"]["shards"]
    for name, _, default, _ in fields_of():
        if name in YOUNGER:
            section, _, field = name.partition(".")
            value = mapping[section].pop(field, default)
            if value != default:  # at the top level, because the section of the data is dropped
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
