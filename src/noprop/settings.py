"""What all settings share: fields with a help text, and what is asked of every method.

A method's settings are a frozen, validated dataclass. It also answers what the rest of the package
asks of a method before it is built, such as the names and costs of its units. This module does not
import torch.
"""

import types
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "NO_OTHER_FIELDS",
    "AboveZero",
    "Blocks",
    "Dimension",
    "EncoderConfig",
    "MethodConfig",
    "Steps",
    "option",
]

# Every number has an upper bound: a larger one would cause an overflow or exhaust memory.
Dimension = Annotated[int, Field(ge=1, le=200_000)]  # an image of 3·256² has 196,608
Steps = Annotated[int, Field(ge=1, le=100_000)]
Blocks = Annotated[int, Field(ge=1, le=10_000)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
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
