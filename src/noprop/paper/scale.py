"""Scale of an experiment: full, or a fraction that is stated wherever its results are shown."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from noprop.config import RunConfig, replace
from noprop.errors import ConfigError

__all__ = ["PRESETS", "Scale", "parse_scale"]


@dataclass(frozen=True)
class Scale:
    """Fraction of an experiment; the default is the full experiment.

    Attributes:
        epochs: Fraction of the paper's epochs, in (0, 1]. A fraction of one epoch becomes one epoch
            on that fraction of the images.
        images: Greatest number of training images.
        test: Greatest number of test images.
        steps: Greatest T of CT, FM and adjoint; for adjoint also in training.
        validation: Fraction of the training part that is held out.
        runs: Number of inference runs.
        samples: Number K of chains that are averaged.
        seeds: Number of seeds: 0, 1, ….
    """

    epochs: float = 1.0
    images: int | None = None
    test: int | None = None
    steps: int | None = None
    validation: float = 0.1
    runs: int = 5
    samples: int = 5
    seeds: int = 3

    @property
    def name(self) -> str:
        """``full``, or the fields that differ from it, except the number of seeds."""
        full = Scale()
        values = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        differs = [(n, v) for n, v in values if n != "seeds" and v != getattr(full, n)]
        return ",".join(f"{n}={v}" for n, v in differs) or "full"

    def applied(self, config: RunConfig, images: int) -> RunConfig:
        """Return a recipe of the paper reduced to this scale.

        Args:
            config: Recipe to reduce.
            images: Number of images in the published training part.
        """
        epochs = self.epochs * config.train.epochs
        wanted = math.inf if self.images is None else self.images
        if epochs < 1:  # at least one mini-batch
            part = epochs * images * (1 - self.validation)
            wanted = min(wanted, max(config.train.batch_size, round(part)))
        changes: dict[str, Any] = {
            "train.epochs": max(1, round(epochs)),
            "data.validation": self.validation,
            "evaluation.runs": self.runs,
            "evaluation.samples": self.samples,
        }
        if wanted < math.inf:
            changes["data.train_size"] = int(wanted)
        if self.test is not None:
            changes["data.test_size"] = self.test
        if self.steps is not None and config.method.one_network:
            changes["method.steps"] = min(self.steps, config.method.chain_length)
        return replace(config, changes)


PRESETS: dict[str, Scale] = {
    "full": Scale(),
    "smoke": Scale(
        epochs=0.001,
        images=512,
        test=256,
        steps=10,
        validation=0.01,
        runs=2,
        samples=2,
        seeds=1,
    ),
}


def parse_scale(text: str) -> Scale:
    """Parse ``--scale``: a preset, a preset with changes, or changes of ``full``.

    Raises:
        ConfigError: If a preset or field does not exist, or a value is out of range.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    if "=" in first:
        first, rest = "full", [first, *rest]
    if first not in PRESETS:
        raise ConfigError(
            f"--scale: wanted {', '.join(PRESETS)} or such as epochs=0.05,images=5000, got {text!r}"
        )
    changes: dict[str, Any] = {}
    parts = {f.name: f.type for f in dataclasses.fields(Scale)}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals or name not in parts:
            raise ConfigError(f"--scale: {part!r} is none of {', '.join(f'{n}=…' for n in parts)}")
        changes[name] = _number(name, value, whole=name not in ("epochs", "validation"))
    scale = dataclasses.replace(PRESETS[first], **changes)
    if not 0 < scale.epochs <= 1:
        raise ConfigError(f"--scale: epochs is a fraction in (0, 1], got {scale.epochs:g}")
    if not 0 <= scale.validation < 1:
        raise ConfigError(f"--scale: validation is a fraction in [0, 1), got {scale.validation:g}")
    return scale


def _number(name: str, text: str, *, whole: bool) -> float | int:
    try:
        above, slash, below = text.partition("/")
        value = int(text) if whole else float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"--scale: {name} wants {kind}, got {text!r}") from None
    most = 100_000 if name == "seeds" else 1_000_000_000
    if whole and not 1 <= value <= most:
        way = "at least 1" if value < 1 else f"at most {most:,}"
        raise ConfigError(f"--scale: {name} must be {way}, got {text}")
    return value
