"""The settings of the methods with a chain of latents: NoProp's three, and the two baselines."""

import math
import types
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError
from noprop.settings import (
    NO_OTHER_FIELDS,
    AboveZero,
    Blocks,
    Dimension,
    EncoderConfig,
    Steps,
    option,
)

__all__ = [
    "MAX_ABS_GAMMA",
    "AdjointConfig",
    "BackpropConfig",
    "CTConfig",
    "DTConfig",
    "FMConfig",
    "LatentConfig",
]

# Beyond ±20 the noise or the signal is below float32's precision, and SNR' overflows soon after.
MAX_ABS_GAMMA = 20
READOUT_COST = 0.01  # fraction of a block's time: Fig. 5 on MNIST, T = 10 (docs/speed.md)

Gamma = Annotated[float, Field(ge=-MAX_ABS_GAMMA, le=MAX_ABS_GAMMA, allow_inf_nan=False)]
Weighting = Literal["snr", "uniform", "min-snr"]
Objective = Literal["l2", "cross-entropy"]
# One text for the methods that have it, whose samplers differ.
SAMPLERS = (
    "inference. ct: the stochastic chain (ancestral), or the probability-flow ODE by euler or "
    "heun. fm: its ODE, by euler, heun or dopri5, which chooses its own steps"
)


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class LatentConfig(EncoderConfig):
    """Method with a chain of latents: embeddings of the classes, and a readout."""

    embedding: Literal["one-hot", "orthogonal", "random", "prototype"] = option(
        "one-hot", "class embeddings, or the initial value of learned ones"
    )
    learned: bool = option(False, "train the embeddings (all kinds except one-hot)")
    dim: Dimension | None = option(
        None, "d of orthogonal and random embeddings, 20 unless given; with C·H·W, z is an image"
    )
    readout: Literal["softmax", "radial"] = option("softmax", "kind of readout (Eqs. 14-16)")
    embedding_norm: Annotated[float, Field(ge=1e-6, le=1e6)] | Literal["prototype"] = option(
        1.0,
        "length of orthogonal embeddings and mean length of random ones; prototype: the mean "
        "length of the prototypes",
    )
    readout_start: Literal["auto", "nearest", "random"] = option(
        "auto",
        "initial readout: the nearest-embedding classifier, or torch's random default; auto: "
        "nearest for fixed embeddings, random for learned ones",
    )
    sigma: AboveZero | None = option(None, "σ of the radial readout")

    def __post_init__(self) -> None:
        if self.embedding == "one-hot" and self.learned:
            raise ConfigError("method.learned: one-hot embeddings are fixed; use orthogonal")
        if self.dim is not None and self.embedding in ("one-hot", "prototype"):
            raise ConfigError(f"method.dim: {self.embedding} embeddings have a fixed dimension")
        if self.embedding_norm != 1 and self.embedding in ("one-hot", "prototype"):
            raise ConfigError(
                f"method.embedding_norm: {self.embedding} embeddings have a fixed length, "
                f"got {self.embedding_norm}"
            )

    @property
    def coupled(self) -> bool:
        """Whether the units share W_Embed."""
        return self.learned

    @property
    def auto_fields(self) -> tuple[str, ...]:
        """Fields that are ``auto`` until a run is created."""
        names = ("readout_start", *self.gamma_over_distance)
        return tuple(name for name in names if getattr(self, name) == "auto")


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class BlocksConfig(LatentConfig):
    """Method with a separate network for each step."""

    num_blocks: Blocks = option(
        10, "T, blocks of the chain; lg-fg-a: blocks of the LocalMixer, 1 unless given"
    )

    @property
    def chain_length(self) -> int:
        """T of inference."""
        return self.num_blocks


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class OneNetworkConfig(LatentConfig):
    """Method with one network for all times."""

    one_network = True

    steps: Steps = option(1000, "T, steps of inference", inference=True)
    time_scale: AboveZero = option(1000.0, "factor of t in 0..1 in the sinusoidal time embedding")

    @property
    def chain_length(self) -> int:
        """T of inference."""
        return self.steps


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DenoiserConfig(LatentConfig):
    """Method whose networks are trained to denoise the label."""

    evidence: Literal["learned", "exact"] = option(
        "learned",
        "what z says about the label: learned by the networks, or the exact term of Bayes' rule",
    )
    network_reads: Literal["x and z", "x"] = option(
        "x and z", "inputs of the networks; x alone needs evidence=exact"
    )
    train_levels: Literal["all", "noise"] = option(
        "all",
        "levels of z in training: all (of dt each block's own), or pure noise, at which networks "
        "that read x alone learn p(y|x)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network_reads == "x" and self.evidence != "exact":
            raise ConfigError(
                "method.network_reads: networks that read x alone need method.evidence=exact, got "
                f"{self.evidence}"
            )
        if self.train_levels == "noise" and self.network_reads != "x":
            raise ConfigError(
                "method.train_levels: networks that are trained on noise must not read it; it "
                f"needs method.network_reads=x, got {self.network_reads}"
            )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DTConfig(BlocksConfig, DenoiserConfig):
    """NoProp with discrete time."""

    gamma_over_distance = types.MappingProxyType({"gamma_shift": -math.log(2)})

    name: Literal["dt"] = option("dt", "the method")
    eta: AboveZero = option(0.1, "weight of the denoising terms (Eq. 8)")
    weighting: Weighting = option(
        "snr",
        "weight of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5); ½ with "
        "train_levels=noise",
    )
    objective: Objective = option(
        "l2", "denoising error: of the embedding, or cross-entropy of the logits"
    )
    offset: Annotated[float, Field(gt=0, lt=1)] = option(0.008, "s of the cosine schedule")
    epsilon: Annotated[float, Field(gt=0, lt=0.5)] = option(1e-6, "bound on ᾱ and 1 - ᾱ")
    gamma_shift: Gamma | Literal["auto"] = option(
        0.0,
        "shift of γ at every level; auto: log of half the greatest squared distance between two "
        "embeddings, 0 for one-hot",
    )
    step: Literal["mean", "label"] = option(
        "mean",
        "step of a chain with noise: towards the mean of the embeddings, or that of a drawn label",
        inference=True,
    )

    @property
    def unit_costs(self) -> dict[str, float]:
        """``block-1`` … ``block-T`` and ``readout``, which reads no images."""
        blocks = {f"block-{t}": 1.0 for t in range(1, self.num_blocks + 1)}
        return blocks | {"readout": READOUT_COST}

    @property
    def noise_at_every_step(self) -> bool:
        """Always: see Eq. 3."""
        return True


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class CTConfig(OneNetworkConfig, DenoiserConfig):
    """NoProp with continuous time."""

    # D² SNR = e^-6 at t = 0: the means of any two classes are 0.05 standard deviations apart.
    gamma_over_distance = types.MappingProxyType({"gamma_noise": 6.0})

    name: Literal["ct"] = option("ct", "the method")
    eta: AboveZero = option(1.0, "weight of the denoising term (Eq. 9)")
    weighting: Weighting = option(
        "snr",
        "weight of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5); ½ with "
        "train_levels=noise",
    )
    objective: Objective = option(
        "l2", "denoising error: of the embedding, or cross-entropy of the logits"
    )
    schedule: Literal["learned", "cosine", "linear"] = option(
        "learned", "γ(t) of Appendix B, or a fixed one"
    )
    gamma_noise: Gamma | Literal["auto"] = option(
        "auto",
        "γ at t = 0, in -20..20, the initial value of a learned schedule; auto: 6 + log of the "
        "greatest squared distance between two embeddings",
    )
    gamma_clean: Gamma = option(
        -6.0, "γ at t = 1, in -20..20, the initial value of a learned schedule"
    )
    gamma_room: AboveZero = option(3.0, "greatest change of learned endpoints of γ")
    time_sampling: Literal["uniform", "stratified"] = option(
        "uniform", "t of a batch: independent draws, or an even grid with one random shift"
    )
    sampler: Literal["ancestral", "euler", "heun"] = option("ancestral", SAMPLERS, inference=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        room = 2 * self.gamma_room if self.schedule == "learned" else 0.0
        if self.gamma_noise != "auto" and not self.gamma_noise - self.gamma_clean > room:
            raise ConfigError(
                "method.gamma_noise: must exceed gamma_clean"
                + (" by more than twice gamma_room" if room else "")
                + f", got {self.gamma_noise} and {self.gamma_clean}"
            )

    @property
    def noise_at_every_step(self) -> bool:
        """Whether the chain is stochastic, rather than an ODE."""
        return self.sampler == "ancestral"


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class FMConfig(OneNetworkConfig, DenoiserConfig):
    """NoProp with flow matching."""

    chain_end = "the nearest embedding"

    name: Literal["fm"] = option("fm", "the method")
    path_sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        0.0, "σ of the Gaussian path (Eq. 10)"
    )
    anchor: Literal["learned", "always", "never"] = option(
        "learned",
        "when the cross-entropy (Eq. 13; with exact evidence that of the network's own class "
        "probabilities) trains the network: only with learned embeddings, always or never",
    )
    sampler: Literal["euler", "heun", "dopri5"] = option("euler", SAMPLERS, inference=True)
    # Below 1e-6 the error of a step is rounding noise in float32, and dopri5 would not end.
    tolerance: Annotated[float, Field(ge=1e-6, le=1)] = option(
        1e-4, "relative and absolute tolerance of dopri5, at least 1e-6", inference=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence == "exact" and (self.readout, self.sigma) != ("softmax", None):
            given = "readout" if self.readout != "softmax" else "sigma"
            raise ConfigError(
                f"method.{given}: fm with method.evidence=exact has no readout, got "
                f"{getattr(self, given)}"
            )
        if self.learned and self.train_levels == "noise":
            raise ConfigError(
                "method.train_levels: at noise nothing of fm keeps learned embeddings apart; use "
                "all, or fixed embeddings"
            )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class BackpropConfig(BlocksConfig):
    """Baseline: DT's blocks in a chain, trained by back-propagation through the whole chain."""

    trains_chain = True

    name: Literal["backprop"] = option("backprop", "the method")
    mixing: Annotated[float, Field(gt=0, lt=1)] = option(
        0.5, "α of Eq. 18 before training, the same in every block"
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class AdjointConfig(OneNetworkConfig):
    """Baseline: CT's network as an ODE, trained by the adjoint method."""

    trains_chain = True

    name: Literal["adjoint"] = option("adjoint", "the method")
    steps: Steps = option(1000, "T, Euler steps in training and inference")
    gradient: Literal["adjoint", "autograd"] = option(
        "adjoint", "gradient of the solver: a second ODE backward in time, or through every step"
    )

    @property
    def keeps_chain(self) -> bool:
        """Whether the gradient goes through every step."""
        return self.gradient == "autograd"
