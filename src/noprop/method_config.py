"""The settings of each method: frozen, validated dataclasses with the paper's values as defaults.

What all methods have is in :class:`MethodConfig`; ``name`` tells them apart in a file.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "GREATEST_GAMMA",
    "MAX_SAMPLES",
    "METHODS",
    "AdjointConfig",
    "BackpropConfig",
    "CTConfig",
    "DTConfig",
    "FMConfig",
    "MethodConfig",
    "Positive",
    "STRICT",
    "Text",
    "described",
]

# Every number has two ends: a larger one is a slip, and would end in an overflow or without memory.
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Dimension = Annotated[int, Field(ge=1, le=200_000)]  # an image of 3·256² has 196,608
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]
MAX_SAMPLES = 1000  # chains are run at once
# Beyond ±20 the noise or the signal is under float32's digits, and SNR' overflows soon after.
GREATEST_GAMMA = 20
Gamma = Annotated[float, Field(ge=-GREATEST_GAMMA, le=GREATEST_GAMMA, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weighting = Literal["snr", "uniform", "min-snr"]
Objective = Literal["l2", "cross-entropy"]
Steps = Annotated[int, Field(ge=1, le=100_000)]
STRICT = ConfigDict(extra="forbid")


def described(default: Any, text: str, *, reading: bool = False) -> Any:
    """A field with a default and the words that ``--help`` says of it.

    ``reading`` marks what changes no weight, only how a trained method is read.
    """
    return field(default=default, metadata={"help": text, "reading": reading})


@dataclass(frozen=True, config=STRICT)
class MethodConfig:
    """What every method has: embeddings, a readout and the networks' image path."""

    embedding: Literal["one-hot", "orthogonal", "random", "prototype"] = described(
        "one-hot", "class embeddings, or what learned ones start from"
    )
    learned: bool = described(False, "train the embeddings (all kinds but one-hot)")
    dim: Dimension | None = described(
        None, "d of orthogonal and random embeddings; 20 unless given. At C·H·W, z is an image too"
    )
    readout: Literal["softmax", "radial"] = described("softmax", "kind of readout (Eqs. 14-16)")
    embedding_norm: Annotated[float, Field(ge=1e-6, le=1e6)] | Literal["prototype"] = described(
        1.0,
        "length of orthogonal embeddings and mean length of random ones; prototype: the mean "
        "length of the prototypes",
    )
    readout_start: Literal["auto", "nearest", "random"] = described(
        "auto",
        "initial readout: the nearest-embedding classifier, or torch's random default; auto: "
        "nearest for fixed embeddings, random for learned ones",
    )
    sigma: AboveZero | None = described(None, "σ of the radial readout")
    encoder: Literal["auto", "conv", "small", "mlp", "custom"] = described(
        "auto", "image path: Fig. 5, small convolutions, MLP, or a function given as encoder"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = described(
        0.2, "probability of dropping a feature"
    )
    dropout_kind: Literal["feature", "channel"] = described(
        "feature", "what convolutions drop at once: one feature, or a channel of an image"
    )


@dataclass(frozen=True, config=STRICT)
class DTConfig(MethodConfig):
    """NoProp with discrete time."""

    name: Literal["dt"] = described("dt", "the method")
    num_blocks: Annotated[int, Field(ge=1, le=10_000)] = described(10, "T, blocks of the chain")
    eta: AboveZero = described(0.1, "weight of the denoising terms (Eq. 8)")
    weighting: Weighting = described(
        "snr", "of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5)"
    )
    objective: Objective = described(
        "l2", "denoising error: of the embedding, or cross-entropy of the logits"
    )
    offset: Annotated[float, Field(gt=0, lt=1)] = described(0.008, "s of the cosine schedule")
    epsilon: Annotated[float, Field(gt=0, lt=0.5)] = described(1e-6, "bound on ᾱ and 1 - ᾱ")
    gamma_shift: Gamma | Literal["auto"] = described(
        0.0,
        "added to γ at every level; auto: log of half the greatest squared distance between two "
        "embeddings, 0 for one-hot",
    )


@dataclass(frozen=True, config=STRICT)
class CTConfig(MethodConfig):
    """NoProp with continuous time."""

    name: Literal["ct"] = described("ct", "the method")
    steps: Steps = described(1000, "T, steps of inference", reading=True)
    eta: AboveZero = described(1.0, "weight of the denoising term (Eq. 9)")
    weighting: Weighting = described(
        "snr", "of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5)"
    )
    objective: Objective = described(
        "l2", "denoising error: of the embedding, or cross-entropy of the logits"
    )
    schedule: Literal["learned", "cosine", "linear"] = described(
        "learned", "γ(t) of Appendix B, or a fixed one"
    )
    gamma_noise: Gamma | Literal["auto"] = described(
        "auto",
        "γ at t = 0, in -20..20, the initial value of a learned schedule; auto: 6 + log of the "
        "greatest squared distance between two embeddings",
    )
    gamma_clean: Gamma = described(-6.0, "γ at t = 1, in -20..20; a learned schedule starts there")
    gamma_room: AboveZero = described(3.0, "how far learned endpoints may move")
    time_scale: AboveZero = described(
        1000.0, "what t in 0..1 is multiplied by in the sinusoidal time embedding"
    )
    time_sampling: Literal["uniform", "stratified"] = described(
        "uniform", "t of a batch: drawn apart, or spread evenly with one random shift"
    )
    sampler: Literal["ancestral", "euler", "heun"] = described(
        "ancestral", "inference: the stochastic chain, or the probability-flow ODE", reading=True
    )


@dataclass(frozen=True, config=STRICT)
class FMConfig(MethodConfig):
    """NoProp with flow matching."""

    name: Literal["fm"] = described("fm", "the method")
    steps: Steps = described(1000, "T, steps of inference", reading=True)
    path_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = described(
        0.0, "σ of the Gaussian path (Eq. 10)"
    )
    time_scale: AboveZero = described(
        1000.0, "what t in 0..1 is multiplied by in the sinusoidal time embedding"
    )
    anchor: Literal["learned", "always", "never"] = described(
        "learned", "when the cross-entropy of Eq. 13 trains the network: with learned embeddings"
    )
    sampler: Literal["euler", "heun", "dopri5"] = described(
        "euler", "inference: fixed steps, or dopri5 with its own", reading=True
    )
    # Below 1e-6 float32 cannot tell a step's error, and dopri5 would not end.
    tolerance: Annotated[float, Field(ge=1e-6, le=1)] = described(
        1e-4, "of dopri5, relative and absolute, at least 1e-6", reading=True
    )


@dataclass(frozen=True, config=STRICT)
class BackpropConfig(MethodConfig):
    """The baseline: DT's blocks in a chain, trained through all of it."""

    name: Literal["backprop"] = described("backprop", "the method")
    num_blocks: Annotated[int, Field(ge=1, le=10_000)] = described(10, "T, blocks of the chain")
    mixing: Annotated[float, Field(gt=0, lt=1)] = described(
        0.5, "α of Eq. 18 before training, the same in every block"
    )


@dataclass(frozen=True, config=STRICT)
class AdjointConfig(MethodConfig):
    """The baseline: CT's network as an ODE, trained by the adjoint method."""

    name: Literal["adjoint"] = described("adjoint", "the method")
    steps: Steps = described(1000, "T, Euler steps in training and inference")
    time_scale: AboveZero = described(
        1000.0, "what t in 0..1 is multiplied by in the sinusoidal time embedding"
    )
    gradient: Literal["adjoint", "autograd"] = described(
        "adjoint", "of the solver: a second ODE backwards in time, or through every step"
    )


METHODS: dict[str, type[MethodConfig]] = {
    "dt": DTConfig,
    "ct": CTConfig,
    "fm": FMConfig,
    "backprop": BackpropConfig,
    "adjoint": AdjointConfig,
}
