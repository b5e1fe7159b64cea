r"""Difference Target Propagation (Lee, Zhang, Fischer, Bengio 2015, arXiv:1412.7525).

A network of layers $h_l = f_l(h_{l-1}) = \tanh(W_l h_{l-1} + b_l)$, $l = 1 \dots L$, with a softmax
on top. Each layer descends the distance of its output to a *target*. The target of the last hidden
layer is a step along the true gradient; those below come through learned inverses
$g_l \approx f_l^{-1}$,

.. math:: \hat h_L = h_L - \eta \frac{\partial \mathrm{NLL}}{\partial h_L}, \qquad
          \hat h_{l-1} = h_{l-1} + g_l(\hat h_l) - g_l(h_l),

where the difference cancels what $g_l$ does not invert. An epoch trains the inverses, each to
reconstruct $h_{l-1}$ with noise from $f_l$ of it, and then the layers. No gradient crosses a layer.

All is computed in the weights' precision, whatever autocast asks for: in bf16 most targets would
equal their outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Unit
from noprop.methods.stack import Stack

__all__ = [
    "InverseUnit",
    "OutputUnit",
    "TargetLayer",
    "TargetSignals",
    "TargetStack",
    "tanh_layer",
    "targets",
]

Layer = Float[Tensor, "batch width"]


def tanh_layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Return a product with orthogonal weights and bias 0, then tanh: an f or a g."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.Tanh())


def targets(
    outputs: Sequence[Layer], last: Layer, inverses: Sequence[nn.Module]
) -> list[Float[Tensor, "batch width"]]:
    r"""Return $\hat h_1 \dots \hat h_L$ by the difference of inverses.

    Args:
        outputs: $h_1 \dots h_L$, each of shape (B, width).
        last: $\hat h_L$.
        inverses: $g_2 \dots g_L$.
    """
    found = [last]
    pairs = zip(outputs[:-1], outputs[1:], inverses, strict=True)
    for below, output, inverse in reversed(list(pairs)):
        found.append(below + inverse(found[-1]) - inverse(output))
    return found[::-1]


@dataclass(frozen=True)
class TargetSignals:
    r"""One forward pass of a mini-batch, without gradient but for the logits.

    Attributes:
        inputs: $h_0 \dots h_{L-1}$ of the layers; for the inverses those of $f_2 \dots f_L$ with
            noise.
        wanted: The targets of the layers; for the inverses $f_l$ of their noisy inputs.
        top: $h_L$; None for the inverses.
    """

    inputs: Sequence[Float[Tensor, "batch ..."]]
    wanted: Sequence[Layer]
    top: Layer | None = None


def _exactly(x: Tensor) -> torch.autocast:
    """Return a context in which products keep the precision of the weights."""
    return torch.autocast(x.device.type, enabled=False)


def _distance(a: Layer, b: Layer) -> Float[Tensor, ""]:
    """Return the squared distance, a sum over units and a mean over the batch."""
    return (a - b).square().sum(dim=1).mean()


class TargetLayer(Unit):
    r"""A layer $f_l$. Its one term ``target`` is the squared distance of $h_l$ to $\hat h_l$.

    Args:
        number: l, from 1.
        layer: $f_l$.
    """

    phase = 1

    def __init__(self, number: int, layer: nn.Module):
        self.name, self.number = f"layer-{number}", number
        self.module = self.layer = layer

    def loss(
        self, x: TargetSignals, y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """Return the distance to the target, whose gradient goes through this layer alone."""
        h, wanted = x.inputs[self.number - 1], x.wanted[self.number - 1]
        with _exactly(h):
            return LossTerms({"target": _distance(self.layer(h), wanted)})


class OutputUnit(Unit):
    """The linear classifier of $h_L$, trained by the true gradient of its cross-entropy.

    Args:
        layer: Linear layer from the last hidden layer's output to m logits.
    """

    name = "output"
    phase = 1

    def __init__(self, layer: nn.Linear):
        self.module = self.layer = layer

    def loss(
        self, x: TargetSignals, y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """Return the cross-entropy."""
        assert x.top is not None
        with _exactly(x.top):
            return LossTerms({"classification": F.cross_entropy(self.layer(x.top), y)})


class InverseUnit(Unit):
    r"""An inverse $g_l$. Its one term ``inverse`` is the squared error of the reconstruction.

    Args:
        number: l, from 2.
        inverse: $g_l$, from outputs of layer l to those of layer l - 1.
        rate: Learning rate, a factor of that of the layers.
    """

    def __init__(self, number: int, inverse: nn.Module, rate: float = 1.0):
        self.name, self.number = f"inverse-{number}", number
        self.module = self.inverse = inverse
        self.rate = rate

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group, with the rate."""
        return [{"params": list(self.parameters), "rate": self.rate}]

    def loss(
        self, x: TargetSignals, y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        r"""Return $\|g_l(f_l(h + \epsilon)) - (h + \epsilon)\|^2$ for $h = h_{l-1}$."""
        h, reached = x.inputs[self.number - 2], x.wanted[self.number - 2]
        with _exactly(h):
            return LossTerms({"inverse": _distance(self.inverse(reached), h)})


class TargetStack(Stack):
    r"""The layers, the output and the inverses; only the output answers.

    Args:
        layers: $f_1 \dots f_L$.
        output: The output layer.
        inverses: $g_2 \dots g_L$.
        embedding: One-hot embeddings.
        step: $\eta$, the step of the last hidden layer's target along the gradient of the mean
            cross-entropy of a batch.
        noise: Deviation of the noise with which the inverses are trained.
    """

    def __init__(
        self,
        layers: Sequence[TargetLayer],
        output: OutputUnit,
        inverses: Sequence[InverseUnit],
        embedding: Embedding,
        *,
        step: float = 0.3277,
        noise: float = 0.3598,
    ):
        units, modules = [*inverses, *layers, output], [unit.layer for unit in layers]
        super().__init__(units, embedding, modules=modules)
        self.layers, self.output, self.inverses = layers, output, inverses
        self.step, self.noise = step, noise

    @torch.no_grad()
    def signals(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        phase: int = 0,
    ) -> TargetSignals:
        """Return noisy pairs for the inverses in phase 0, and targets for the layers in phase 1."""
        with _exactly(x):
            outputs = self.outputs(x.flatten(1))
            if phase == 0:
                noisy = [self._with_noise(h, generator) for h in outputs[:-1]]
                reached = [unit.layer(h) for unit, h in zip(self.layers[1:], noisy, strict=True)]
                return TargetSignals(noisy, reached)
            top = outputs[-1]
            p = self.output.layer(top).softmax(dim=1)
            error = (p - F.one_hot(y, p.shape[1])) / len(y)
            last = top - self.step * (error @ self.output.layer.weight)
            wanted = targets(outputs, last, [unit.inverse for unit in self.inverses])
            return TargetSignals([x.flatten(1), *outputs[:-1]], wanted, top)

    def _with_noise(self, h: Layer, generator: torch.Generator) -> Layer:
        return h + self.noise * torch.empty_like(h).normal_(generator=generator)

    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the probabilities of the output."""
        return [self.output.layer(self.outputs(x.flatten(1))[-1]).float().softmax(dim=1)]
