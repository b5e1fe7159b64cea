"""The settings of the stacks: methods whose units are layers that read each other's outputs."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from noprop.errors import ConfigError
from noprop.settings import (
    NO_OTHER_FIELDS,
    AboveZero,
    Blocks,
    Dimension,
    EncoderConfig,
    MethodConfig,
    option,
)

__all__ = [
    "DFAConfig",
    "DTPConfig",
    "FFConfig",
    "GreedyConfig",
    "ImagePathConfig",
    "LocalMixerConfig",
    "StackConfig",
]


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
