"""The settings of each method: frozen, validated dataclasses.

Each also answers what the rest of the package asks of a method before it is built, such as the
names and costs of its units. This module does not import torch.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError

__all__ = [
    "MAX_ABS_GAMMA",
    "METHODS",
    "NO_OTHER_FIELDS",
    "AdjointConfig",
    "AnyMethod",
    "BackpropConfig",
    "CTConfig",
    "DFAConfig",
    "DTConfig",
    "DTPConfig",
    "EncoderConfig",
    "FFConfig",
    "FMConfig",
    "GreedyConfig",
    "ImagePathConfig",
    "LatentConfig",
    "LocalMixerConfig",
    "MethodConfig",
    "StackConfig",
    "Steps",
    "option",
]

# Beyond ±20 the noise or the signal is below float32's precision, and SNR' overflows soon after.
MAX_ABS_GAMMA = 20
READOUT_COST = 0.01  # fraction of a block's time: Fig. 5 on MNIST, T = 10 (docs/speed.md)

# Every number has an upper bound: a larger one would cause an overflow or exhaust memory.
Dimension = Annotated[int, Field(ge=1, le=200_000)]  # an image of 3·256² has 196,608
Steps = Annotated[int, Field(ge=1, le=100_000)]
Blocks = Annotated[int, Field(ge=1, le=10_000)]
Gamma = Annotated[float, Field(ge=-MAX_ABS_GAMMA, le=MAX_ABS_GAMMA, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weighting = Literal["snr", "uniform", "min-snr"]
Objective = Literal["l2", "cross-entropy"]
# One text for the methods that have it, whose samplers differ.
SAMPLERS = (
    "inference. ct: the stochastic chain (ancestral), or the probability-flow ODE by euler or "
    "heun. fm: its ODE, by euler, heun or dopri5, which chooses its own steps"
)
NO_OTHER_FIELDS = ConfigDict(extra="forbid")


def option(default: Any, text: str, *, inference: bool = False) -> Any:
    """Declare a field with a default and the text of ``--help``.

    ``inference`` marks a field that changes no weight, only what a trained method predicts.
    """
    return field(default=default, metadata={"help": text, "inference": inference})


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class MethodConfig:
    """Settings of every method.

    Attributes:
        one_network: Whether one network serves every step of a chain.
        trains_chain: Whether one mini-batch of training runs the whole chain.
        gamma_over_distance: Fields for which ``auto`` means the log of the greatest squared
            distance between two embeddings, plus the number given here.
        chain_end: Description of what predicts the class at the end of a chain, if there is one.
        stack: Whether the units read each other's outputs, and are trained on the same mini-batch.
        unweighted: Why the losses take no weights of the examples. If it is empty, the loss of
            every unit takes a fourth argument ``weight``, shape (B,).
    """

    one_network: ClassVar[bool] = False
    trains_chain: ClassVar[bool] = False
    gamma_over_distance: ClassVar[Mapping[str, float]] = types.MappingProxyType({})
    chain_end: ClassVar[str] = "the readout of z_T"
    stack: ClassVar[bool] = False
    unweighted: ClassVar[str] = ""

    name: str = option("", "the method")

    @property
    def unit_costs(self) -> dict[str, float]:
        """Names of the units, and the time of one pass over the training set; 1 for a network."""
        return {"network": 1.0}

    @property
    def unit_names(self) -> list[str]:
        """Names of the units, in the order of Algorithm 1."""
        return list(self.unit_costs)

    @property
    def quick_units(self) -> list[str]:
        """Names of the units that have no network: their updates take almost no time."""
        return [name for name, cost in self.unit_costs.items() if cost < 1]

    @property
    def coupled(self) -> bool:
        """Whether all units are one group, which is trained together."""
        return self.stack

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of the answers of a stack, the last of which is the prediction; none of a chain."""
        return ()

    @property
    def auto_fields(self) -> tuple[str, ...]:
        """Fields that are ``auto`` until a run is created."""
        return ()

    @property
    def keeps_chain(self) -> bool:
        """Whether the backward pass of training needs every step of the chain in memory."""
        return self.trains_chain

    @property
    def noise_at_every_step(self) -> bool:
        """Whether a chain of inference draws noise after z_0."""
        return False

    @property
    def has_own_code(self) -> bool:
        """Whether the networks have an encoder that the user wrote."""
        return False


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class EncoderConfig(MethodConfig):
    """Method whose networks have an image path."""

    encoder: Literal["auto", "conv", "conv-bn", "small", "mlp", "custom"] = option(
        "auto",
        "image path: convolutions of Fig. 5, five with batch norm, small ones, MLP, or a function "
        "given as encoder",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = option(0.2, "probability of dropping a feature")
    dropout_kind: Literal["feature", "channel"] = option(
        "feature", "dropout of convolutions: single features, or whole channels of an image"
    )

    @property
    def has_own_code(self) -> bool:
        """Whether the networks have an encoder that the user wrote."""
        return self.encoder == "custom"


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
        "snr", "weight of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5)"
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
        "snr", "weight of the denoising errors: the bound's SNR slope, ½, or ½ min(SNR, 5)"
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
        "when the cross-entropy of Eq. 13 trains the network: only with learned embeddings, always "
        "or never",
    )
    sampler: Literal["euler", "heun", "dopri5"] = option("euler", SAMPLERS, inference=True)
    # Below 1e-6 the error of a step is rounding noise in float32, and dopri5 would not end.
    tolerance: Annotated[float, Field(ge=1e-6, le=1)] = option(
        1e-4, "relative and absolute tolerance of dopri5, at least 1e-6", inference=True
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


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class StackConfig(MethodConfig):
    """Method whose units are layers that read each other's outputs: no latents, no readout."""

    stack = True
    # Its prediction is a chain of one-hot classes; nothing else has a choice.
    embedding: ClassVar[Literal["one-hot"]] = "one-hot"
    learned: ClassVar[bool] = False

    @property
    def answers(self) -> tuple[str, ...]:
        """That of the output layer alone."""
        return ("output layer, one pass",)

    @property
    def chain_length(self) -> int:
        """Number of answers."""
        return len(self.answers)


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class ImagePathConfig(EncoderConfig, StackConfig):
    """Method that trains the image path of Fig. 5, layer by layer."""

    num_layers: Blocks | Literal["auto"] = option(
        "auto",
        "hidden layers with weights. ff: 3 unless given, dtp: 7. greedy, dfa: auto, those of the "
        "encoder, the FC 256 included: 4 of Fig. 5's image path, 5 from 48 pixels a side, 3 of the "
        "small one and the MLP, 6 of conv-bn, 2 of your own",
    )

    @property
    def auto_fields(self) -> tuple[str, ...]:
        """``num_layers``, if it is ``auto``."""
        return ("num_layers",) if self.num_layers == "auto" else ()

    @property
    def layer_count(self) -> int:
        """The number of layers; while it is ``auto``, that of Fig. 5's image path."""
        return 4 if self.num_layers == "auto" else self.num_layers

    @property
    def unit_costs(self) -> dict[str, float]:
        """``layer-1`` … ``layer-L``."""
        return {f"layer-{n}": 1.0 for n in range(1, self.layer_count + 1)}


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class GreedyConfig(ImagePathConfig):
    """Greedy layerwise training with an auxiliary head for each layer."""

    name: Literal["greedy"] = option("greedy", "the method")

    @property
    def answers(self) -> tuple[str, ...]:
        """One of each layer's head."""
        heads = [f"head of layer {n}" for n in range(1, self.layer_count + 1)]
        return (*heads[:-1], f"{heads[-1]}, the last")


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DFAConfig(ImagePathConfig):
    """Direct feedback alignment."""

    name: Literal["dfa"] = option("dfa", "the method")

    @property
    def unit_costs(self) -> dict[str, float]:
        """``layer-1`` … ``layer-L`` and ``output``."""
        return super().unit_costs | {"output": 1.0}


# One text for the methods that have it, whose defaults differ.
WIDTHS = (
    "units of each hidden layer. ff: also the threshold of goodness, 1000 unless given; dtp: 240; "
    "lg-fg-a: 512"
)


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class FFConfig(StackConfig):
    """Forward-Forward (Hinton 2022)."""

    unweighted = "its layers compare real examples with negative ones, whatever the class"

    name: Literal["ff"] = option("ff", "the method")
    negatives: Literal["labels", "hybrids"] = option(
        "labels",
        "negative examples: the image with a wrong label in its first pixels, drawn from the "
        "softmax, or hybrids of two images, without labels",
    )
    num_layers: Blocks = option(3, "hidden layers")
    width: Dimension = option(1000, WIDTHS)
    peer_normalization: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        0.03, "strength of the pull of each unit's mean activity towards that of its layer"
    )
    inference: Literal["goodness", "softmax"] = option(
        "goodness",
        "prediction: the label with the greatest goodness of m passes, or a softmax in one",
        inference=True,
    )

    def __post_init__(self) -> None:
        if self.negatives == "hybrids" and self.inference != "softmax":
            raise ConfigError(
                "method.inference: without labels in the images (method.negatives=hybrids) it must "
                f"be softmax, got {self.inference}"
            )

    @property
    def unit_costs(self) -> dict[str, float]:
        """``layer-1`` … ``layer-L`` and ``softmax``."""
        return {f"layer-{n}": 1.0 for n in range(1, self.num_layers + 1)} | {"softmax": 1.0}

    @property
    def answers(self) -> tuple[str, ...]:
        """That of the softmax, and of the goodness if it predicts; of many layers but the first."""
        layers = {1: "layer 1", 2: "layer 2"}.get(self.num_layers, f"layers 2 to {self.num_layers}")
        softmax = f"softmax readout of {layers}, one pass"
        if self.inference == "softmax":
            return (softmax,)
        return softmax, f"goodness of {layers}, one pass per label"


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DTPConfig(StackConfig):
    """Difference target propagation (Lee et al. 2015)."""

    unweighted = "its layers and inverses learn distances to activities, not losses of labels"

    name: Literal["dtp"] = option("dtp", "the method")
    num_layers: Blocks = option(7, "hidden layers")
    width: Dimension = option(240, WIDTHS)
    target_step: AboveZero = option(
        0.3277, "step of the last hidden layer's target along the gradient of the cross-entropy"
    )
    inverse_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        0.3598, "deviation of the noise with which the inverses are trained"
    )
    inverse_rate: AboveZero = option(
        0.3365, "learning rate of the inverses, as a factor of train.lr"
    )

    @property
    def unit_costs(self) -> dict[str, float]:
        """``inverse-2`` … ``inverse-L``, ``layer-1`` … ``layer-L`` and ``output``."""
        numbers = range(1, self.num_layers + 1)
        inverses = {f"inverse-{n}": 1.0 for n in numbers[1:]}
        return inverses | {f"layer-{n}": 1.0 for n in numbers} | {"output": 1.0}


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class LocalMixerConfig(StackConfig):
    """LG-FG-A: local losses by forward gradients of activities (Ren et al. 2023)."""

    name: Literal["lg-fg-a"] = option("lg-fg-a", "the method")
    num_blocks: Blocks = option(1, "blocks of the LocalMixer")
    side: Annotated[int, Field(ge=1, le=256)] = option(1, "patches along a side of the image")
    width: Dimension = option(512, WIDTHS)
    groups: Annotated[int, Field(ge=1, le=4096)] = option(
        16, "groups of channels, each with a local loss of its own; a divisor of width"
    )
    classifier_rate: AboveZero = option(
        0.1, "learning rate of the classifier, as a factor of train.lr"
    )

    def __post_init__(self) -> None:
        if self.width % self.groups:
            raise ConfigError(
                f"method.groups: must divide method.width, got {self.groups} and {self.width}"
            )

    @property
    def unit_costs(self) -> dict[str, float]:
        """``block-1`` … ``block-N`` and ``classifier``."""
        return {f"block-{n}": 1.0 for n in range(1, self.num_blocks + 1)} | {"classifier": 1.0}

    @property
    def answers(self) -> tuple[str, ...]:
        """That of the classifier; the heads of the blocks only train."""
        return ("classifier of the last block, one pass",)


AnyMethod = (
    DTConfig
    | CTConfig
    | FMConfig
    | BackpropConfig
    | AdjointConfig
    | GreedyConfig
    | DFAConfig
    | FFConfig
    | DTPConfig
    | LocalMixerConfig
)
METHODS = {cls.name: cls for cls in typing.get_args(AnyMethod)}
