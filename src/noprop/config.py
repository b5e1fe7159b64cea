"""The configuration of a run: frozen, validated dataclasses, and conversion to and from TOML.

Components do not use configurations; ``build.py`` turns these into objects. Defaults are the
paper's values. The text of every field is also its help on the command line. This module does not
import torch.
"""

import dataclasses
import difflib
import functools
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError
from noprop.files import open_regular

__all__ = [
    "MAX_ABS_GAMMA",
    "MAX_SAMPLES",
    "METHODS",
    "AdjointConfig",
    "BackpropConfig",
    "CTConfig",
    "DFAConfig",
    "DTConfig",
    "DTPConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FFConfig",
    "FMConfig",
    "GreedyConfig",
    "ImagePathConfig",
    "LatentConfig",
    "LocalMixerConfig",
    "MethodConfig",
    "RunConfig",
    "StackConfig",
    "TrainConfig",
    "fields_of",
    "from_mapping",
    "from_toml",
    "inference_fields",
    "methods_with",
    "parse_value",
    "replace",
    "to_mapping",
    "to_toml",
]

MAX_SAMPLES = 1000  # chains run at the same time
MAX_FILE_BYTES = 2**14  # greatest size of a configuration file
# Beyond ±20 the noise or the signal is below float32's precision, and SNR' overflows soon after.
MAX_ABS_GAMMA = 20
READOUT_COST = 0.01  # fraction of a block's time: Fig. 5 on MNIST, T = 10 (docs/speed.md)

# Every number has an upper bound: a larger one would cause an overflow or exhaust memory.
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Dimension = Annotated[int, Field(ge=1, le=200_000)]  # an image of 3·256² has 196,608
Steps = Annotated[int, Field(ge=1, le=100_000)]
Blocks = Annotated[int, Field(ge=1, le=10_000)]
Count = Annotated[
    int, Field(ge=0, le=1024), BeforeValidator(lambda value: 0 if value == "auto" else value)
]
Gamma = Annotated[float, Field(ge=-MAX_ABS_GAMMA, le=MAX_ABS_GAMMA, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]
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


# -- methods ------------------------------------------------------------------------------------


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class MethodConfig:
    """Settings of every method.

    Attributes:
        one_network: Whether one network serves every step of a chain.
        trains_chain: Whether one mini-batch of training runs the whole chain.
        gamma_over_distance: Fields for which ``auto`` means the log of the greatest squared
            distance between two embeddings, plus the number given here.
        chain_end: Description of what predicts the class at the end of a chain.
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

    num_blocks: Blocks = option(10, "T, blocks of the chain")

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
        "learned", "what z tells of the label: learned by the networks, or the exact term of Bayes"
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
                "method.network_reads: networks that read x alone need method.evidence=exact"
            )
        if self.train_levels == "noise" and self.network_reads != "x":
            raise ConfigError(
                "method.train_levels: networks that are trained on noise must not read it; it "
                "needs method.network_reads=x"
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
    chain_end = "the output of the network"
    # Its prediction is a chain of one-hot classes; nothing else has a choice.
    embedding: ClassVar[Literal["one-hot"]] = "one-hot"
    learned: ClassVar[bool] = False

    @property
    def chain_length(self) -> int:
        """Number of answers in a forward pass."""
        return 1


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class ImagePathConfig(EncoderConfig, StackConfig):
    """Method that trains the image path of Fig. 5, layer by layer."""

    num_layers: Blocks = option(
        4,
        "hidden layers with weights. ff: 3 unless given, dtp: 7. greedy, dfa: those of the "
        "encoder, the FC 256 included: 4 of Fig. 5's image path, 5 from 48 pixels a side, 3 of the "
        "small one and the MLP, 6 of conv-bn, 2 of your own",
    )

    @property
    def unit_costs(self) -> dict[str, float]:
        """``layer-1`` … ``layer-L``."""
        return {f"layer-{n}": 1.0 for n in range(1, self.num_layers + 1)}


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class GreedyConfig(ImagePathConfig):
    """Greedy layerwise training with an auxiliary head for each layer."""

    chain_end = "the head of the last layer"

    name: Literal["greedy"] = option("greedy", "the method")

    @property
    def chain_length(self) -> int:
        """An answer of each layer's head."""
        return self.num_layers


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
    def chain_length(self) -> int:
        """The answer of the softmax, and that of the goodness."""
        return 2 if self.inference == "goodness" else 1


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
    num_blocks: Blocks = option(1, "blocks")
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


# -- a run --------------------------------------------------------------------------------------


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DataConfig:
    """The examples and their division."""

    dataset: Text = option(
        "digits", "name, folder of class folders, .npz file, table, or hf: and a name of the Hub"
    )
    label: Text | None = option(
        None, "column of a table with the labels; label, labels, target, class or y unless given"
    )
    image_size: Annotated[int, Field(ge=1, le=1024)] | None = option(
        None, "side in pixels to which a folder's images are resized"
    )
    color: Literal["auto", "grey", "rgb"] = option("auto", "how a folder's images are read")
    validation: Annotated[float, Field(ge=0, lt=1)] = option(
        0.1, "fraction of the training set held out for validation, stratified"
    )
    train_size: Positive | None = option(
        None, "number of training examples, stratified; all unless given"
    )
    test_size: Positive | None = option(
        None, "number of test examples, stratified, the same for every seed; all unless given"
    )
    features: Annotated[str, Field(pattern=r"^timm:[\w.]+(:random)?$", max_length=200)] | None = (
        option(
            None,
            "read images through a frozen network, timm:NAME, whose features are kept; "
            "timm:NAME:random has random weights",
        )
    )
    normalization: Literal["standard", "unit", "symmetric"] = option(
        "standard", "inputs: mean 0 and deviation 1 per channel, or pixels in 0..1 or -1..1"
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class TrainConfig:
    """The training of the units."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = option(5, "passes over the training set")
    extended_from: Annotated[int, Field(ge=1, le=1_000_000)] | None = option(
        None, "epochs first asked for, of a run that is trained longer; set by --resume --epochs"
    )
    init: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = option(
        None, "SHA-256 of the weights that the units start from; set by --init"
    )
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = option(128, "examples per step")
    order: Literal["sequential", "parallel"] = option(
        "sequential",
        "Algorithm 1 (block after block in each epoch), or all blocks on each batch; of no effect "
        "where units read each other's outputs, or there is one",
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = option(
        "adamw", "optimizer of each unit; rmsprop: centred, ε = √1e-3, averages over 20 updates"
    )
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = option(1e-3, "learning rate")
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = option(
        0,
        "epochs without a lower validation loss after which a unit stops, with its best weights; "
        "units that are trained together stop together; 0: never",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "sgd, rmsprop: factor per update of the sum of earlier steps"
    )
    schedule: Literal["constant", "linear", "cosine", "one-cycle", "constant-linear"] = option(
        "constant",
        "learning rate of a unit: constant, a line to 0, half a cosine to 0, a linear rise and "
        "then half a cosine, or constant for half of the updates and then linear to 0",
    )
    warmup: Annotated[float, Field(gt=0, lt=1)] = option(
        0.25, "one-cycle: fraction of a unit's updates in which the learning rate rises"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(1e-3, "weight decay")
    crop_padding: Annotated[int, Field(ge=0, le=256)] = option(
        0, "augmentation: padding in pixels of random crops"
    )
    flip: bool = option(False, "augmentation: mirror half of the images")
    cutout: Annotated[int, Field(ge=0, le=1024)] = option(
        0, "augmentation: side in pixels of a black square at a random place"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "objective cross-entropy: probability that is spread over all classes"
    )
    class_weights: Literal["none", "balanced"] = option(
        "none",
        "weights of examples in the losses: equal, or balanced over the classes (not ff, dtp)",
    )
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        0.0, "greatest norm of a unit's gradient; 0: no limit"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0,
        "decay per update of a moving average of each unit's weights, which then predicts; 0: the "
        "last weights predict",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = option(0, "seed of all random numbers")
    device: Text = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bf16"] = option(
        "auto", "auto: bf16 if the device has instructions for it"
    )
    channels_last: bool = option(True, "memory order of images; faster on CPU and CUDA")
    shards: Count = option(
        0,
        "parts of a mini-batch, each batch-normalised separately; auto or 0: one, or with torchrun "
        "the number of processes that share a unit",
    )
    workers: Count = option(0, "worker processes; auto or 0: one per core")
    threads: Count = option(
        0, "threads of each process; auto or 0: one, or all if the method is a single unit"
    )
    offload: bool = option(
        False, "learned embeddings: keep one block in memory, and the others in files of the run"
    )
    checkpoint_every: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        20.0, "seconds of training between checkpoints"
    )
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = option(
        0,
        "epochs between permanent copies of the weights; the last epoch has one too; 0: no copies",
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class EvaluationConfig:
    """The evaluation of a trained run."""

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = option(5, "K, chains to average")
    runs: Steps = option(5, "inference runs of each mean ± standard error")
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = option(500, "examples per batch")
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["full", "off"] = option(
        0.2,
        "evaluation after training: greatest cost as a fraction of the training's, full for no "
        "limit, or off; noprop evaluate has no limit",
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class RunConfig:
    """Everything that a run depends on."""

    # It becomes the name of a folder, and must not lead out of the parent folder.
    recipe: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)] = option(
        "custom", "name of the recipe"
    )
    data: DataConfig = field(default_factory=DataConfig)
    method: Annotated[AnyMethod, Field(discriminator="name")] = field(default_factory=DTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.train.batch_size < 2 * self.train.shards:
            raise ConfigError(
                f"train.shards: each of {self.train.shards} needs at least two examples, but "
                f"train.batch_size is {self.train.batch_size}"
            )
        if self.train.momentum and self.train.optimizer not in ("sgd", "rmsprop"):
            raise ConfigError(
                f"train.momentum: is for train.optimizer=sgd and rmsprop, got "
                f"{self.train.momentum} with {self.train.optimizer}"
            )
        if self.train.label_smoothing and getattr(self.method, "objective", "") != "cross-entropy":
            raise ConfigError(
                "train.label_smoothing: is for method.objective=cross-entropy, got "
                f"{self.train.label_smoothing} with another objective"
            )
        if self.train.patience:
            self._check_patience()
        if self.train.class_weights != "none" and (why := self.method.unweighted):
            raise ConfigError(
                f"train.class_weights: is not for method {self.method.name}: {why}; use none, got "
                f"{self.train.class_weights}"
            )
        if self.method.stack and self.train.shards > 1:
            raise ConfigError(
                f"train.shards: {self.method.name} trains on whole mini-batches, so it must be 0 "
                f"or 1, got {self.train.shards}"
            )
        blocks_wait = self.method.learned and len(self.method.unit_costs) > 1
        if self.train.offload and self.train.order == "parallel" and blocks_wait:
            raise ConfigError(
                "train.offload: with method.learned and train.order=parallel every mini-batch "
                "needs every block, so blocks cannot be offloaded; use train.order=sequential"
            )

    def _check_patience(self) -> None:
        if not self.data.validation:
            raise ConfigError(
                f"train.patience: needs a validation part, got {self.train.patience} with "
                "data.validation=0"
            )
        if self.train.offload and self.method.learned:
            raise ConfigError(
                "train.patience: needs all units in memory where they share embeddings, got "
                f"{self.train.patience} with train.offload and method.learned"
            )


# -- fields by dotted name ----------------------------------------------------------------------


def fields_of(cls: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the dotted name, type, default and help of every field; each method field once."""
    for f in dataclasses.fields(cls):
        if f.name == "method":
            yield from _method_fields()
        elif dataclasses.is_dataclass(f.type):
            yield from fields_of(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.type, f.default, f.metadata.get("help", "")


def _method_fields() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the fields of all methods, ``name`` first; a help text names the methods if not all."""
    yield "method.name", Literal[*METHODS], "dt", "training method (docs/methods.md)"
    seen = {"name"}
    for cls in METHODS.values():
        for f in dataclasses.fields(cls):
            if f.name not in seen:
                seen.add(f.name)
                owners = methods_with(f.name)
                some = f"{', '.join(owners)}: " if len(owners) < len(METHODS) else ""
                text = some + f.metadata.get("help", "")
                yield f"method.{f.name}", _type_of(f.name, owners), f.default, text


def _type_of(name: str, methods: list[str]) -> Any:
    """Return the type of a field of several methods; of words, those of any of the methods."""
    kinds = [f.type for m in methods for f in dataclasses.fields(METHODS[m]) if f.name == name]
    if not all(typing.get_origin(kind) is Literal for kind in kinds):
        return kinds[0]
    return Literal[*dict.fromkeys(word for kind in kinds for word in typing.get_args(kind))]


@functools.cache
def _field_names() -> list[str]:
    """Return the dotted names of all fields, which each of the recipes asks for as it is built."""
    return [name for name, *_ in fields_of()]


def methods_with(name: str) -> list[str]:
    """Return the names of the methods that have a field."""
    return [m for m, cls in METHODS.items() if name in {f.name for f in dataclasses.fields(cls)}]


def inference_fields(config: RunConfig) -> list[str]:
    """Return the fields that change no weight, only what a trained method predicts."""
    own = [f.name for f in dataclasses.fields(config.method) if f.metadata["inference"]]
    read = [f.name for f in dataclasses.fields(config.evaluation)]
    return [f"method.{name}" for name in own] + [f"evaluation.{name}" for name in read]


def parse_value(name: str, text: str) -> Any:
    """Return the value of ``--set name=text``, read as TOML.

    A bare word is a string, and so is any value of a text field; ``on`` and ``off`` mean true and
    false.

    Raises:
        ConfigError: If the field does not exist; the message names the nearest one.
    """
    types_by_name = {n: t for n, t, _, _ in fields_of()}
    if name not in types_by_name:
        raise ConfigError(unknown_field(name, list(types_by_name)))
    kind = types_by_name[name]
    if text.lower() == "none" and types.NoneType in typing.get_args(kind):
        return None
    if kind is bool and text in ("on", "off"):
        return text == "on"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, an integer of 5000 digits, 1000 brackets
        return text
    is_text = typing.get_args(kind)[:1] == (str,)
    return text if is_text and not isinstance(value, str) else value


def unknown_field(name: str, known: list[str]) -> str:
    """Return an error message with the nearest known field, by its whole name or its last part.

    The message for a table of fields is another one.
    """
    if inside := [k for k in known if k.startswith(f"{name}.")]:
        return f"{name} is a table of fields; set one of them, such as {inside[0]}"
    tails = [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]]
    near = tails or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
    return f"unknown field {name if len(name) <= 100 else f'{name[:100]}…'}{hint}"


def replace(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with some dotted fields changed, validated again.

    Raises:
        ConfigError: If a field is unknown or a value out of range.
    """
    known = _field_names()
    mapping = to_mapping(config)
    method = changes.get("method.name", config.method.name)
    if not isinstance(method, str):
        raise ConfigError(f"method.name: wanted one of {', '.join(METHODS)}, got {_short(method)}")
    if method != config.method.name:
        # Another method: what was chosen goes with it, where it has such a field; defaults do not.
        method_fields = dataclasses.fields(config.method)
        chosen = {f.name for f in method_fields if getattr(config.method, f.name) != f.default}
        own = {f.name for f in dataclasses.fields(METHODS.get(method, DTConfig))}
        mapping["method"] = {k: v for k, v in mapping["method"].items() if k in chosen & own}
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(unknown_field(name, known))
        *path, last = name.split(".")
        table = mapping
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return from_mapping(mapping)


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Return nested dictionaries of plain values, without None, because TOML has no null."""

    def drop_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop_none(v) for k, v in value.items() if v is not None}
        return value

    return drop_none(dataclasses.asdict(config))  # pyright: ignore[reportArgumentType]


def from_mapping(mapping: Mapping[str, Any], source: str = "") -> RunConfig:
    """Return a validated configuration.

    Raises:
        ConfigError: One line with the field, the wanted and the given value.
    """
    where = f"{source}: " if source else ""
    filled = dict(mapping)
    if isinstance(filled.get("method"), Mapping):
        filled["method"] = {"name": "dt"} | dict(filled["method"])
    try:
        return TypeAdapter(RunConfig).validate_python(filled)
    except ValidationError as error:
        raise ConfigError(where + _first_error(error)) from None
    except RecursionError:
        raise ConfigError(f"{where}is nested too deeply") from None


def _first_error(error: ValidationError) -> str:
    """Return one line with the field, the wanted and the given value."""
    first = error.errors()[0]
    parts = [part for part in first["loc"] if isinstance(part, str)]
    method = parts.pop(1) if parts[0] == "method" and len(parts) > 1 else "dt"
    name = ".".join(parts)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if parts[0] == "method" and (owners := methods_with(parts[-1])):
            return f"{name}: is not a field of method {method}; it belongs to {', '.join(owners)}"
        return unknown_field(name, [n for n, *_ in fields_of()])
    if first["type"].startswith("union_tag"):
        came = _short(first["input"]["name"])
        return f"method.name: wanted one of {', '.join(METHODS)}, got {came}"
    # pydantic adds the member of a union that failed, as in method.sigma.float
    name = next((n for n, *_ in fields_of() if f"{name}.".startswith(f"{n}.")), name)
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{name}: {message}, got {_short(first['input'])}"


def _short(value: Any) -> str:
    """Return a value as Python writes it, truncated if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; deep nesting
        return f"a very large {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}… ({len(text)} characters)"


def to_toml(config: RunConfig) -> str:
    """Return the complete configuration as TOML."""
    return tomli_w.dumps(to_mapping(config))


def from_toml(path: Path) -> RunConfig:
    """Read a configuration file; missing fields have their defaults.

    Raises:
        ConfigError: If the file cannot be read, is not TOML, or has a field that is unknown or out
            of range.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:  # the time to parse some files is quadratic in the size
            raise ConfigError(f"{path}: a configuration has at most {MAX_FILE_BYTES} bytes")
        return from_mapping(tomllib.loads(content.decode()), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # of the syntax, the encoding, or a number of too many digits
        raise ConfigError(f"{path}: is not a TOML file: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
