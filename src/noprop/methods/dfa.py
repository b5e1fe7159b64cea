r"""Direct feedback alignment (Nøkland 2016): the output's error sent straight to every layer.

Layer l computes $h_l = f_l(h_{l-1})$, its weights with its nonlinearity, pool and dropout. The
error of the output $e = \partial L / \partial o = (\mathrm{softmax}(o) - y) / B$ reaches it by a
fixed random matrix, $\delta_l = e B_l$, in place of $\partial L / \partial h_l$. Its gradient goes
through its own nonlinearity alone: that of $\langle h_l, \delta_l \rangle$ with $h_{l-1}$ and
$\delta_l$ held fixed. The output layer has the true gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Unit, cross_entropy
from noprop.methods.stack import Stack, with_gradient_of

__all__ = ["FeedbackLayer", "FeedbackSignals", "FeedbackStack", "OutputLayer", "random_feedback"]


@dataclass(frozen=True)
class FeedbackSignals:
    """One forward pass of a mini-batch.

    Attributes:
        outputs: $h_l$ of every hidden layer, whose gradient reaches this layer alone.
        logits: o, whose gradient reaches the output layer alone.
        error: e, the gradient of the mean cross-entropy with respect to the logits.
        cross_entropy: The loss of the network, in nats.
    """

    outputs: Sequence[Float[Tensor, "batch ..."]]
    logits: Float[Tensor, "batch classes"]
    error: Float[Tensor, "batch classes"]
    cross_entropy: Float[Tensor, ""]

    def loss(
        self, y: Int64[Tensor, " batch"], weight: Float[Tensor, " batch"] | None
    ) -> Float[Tensor, ""]:
        """Return the loss of the network, with weights of the examples if there are any."""
        if weight is None:
            return self.cross_entropy
        with torch.autocast(self.logits.device.type, enabled=False):
            return cross_entropy(self.logits, y, weight)


def random_feedback(
    classes: int, features: int, generator: torch.Generator
) -> Float[Tensor, "classes features"]:
    """Return a feedback matrix with entries N(0, 1/m)."""
    return torch.randn(classes, features, generator=generator) / classes**0.5


class FeedbackLayer(Unit):
    """A hidden layer. Its one term ``classification`` is the network's cross-entropy.

    The value is the network's; the gradient is that of the feedback.

    Args:
        number: l, from 1.
        layer: The layer, with its nonlinearity, pool and dropout.
        classes: m.
        features: F, count of numbers in an output.
        seed: Seed of $B_l$. A file of the weights holds it in place of the matrix, so weights keep
            the feedback that they learned from in a run with any other seed.
    """

    def __init__(self, number: int, layer: nn.Module, classes: int, features: int, seed: int):
        self.name, self.number = f"layer-{number}", number
        self.module = self.layer = layer
        layer.register_buffer("feedback_seed", torch.tensor(seed))
        layer.register_buffer("feedback", torch.empty(classes, features), persistent=False)
        layer.register_load_state_dict_post_hook(_draw_feedback)
        _draw_feedback(layer)

    @property
    def feedback(self) -> Float[Tensor, "classes features"]:
        """$B_l$."""
        return self.layer.get_buffer("feedback")

    def loss(
        self,
        x: FeedbackSignals,
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the network's cross-entropy with this layer's gradient.

        ``weight`` are weights of the examples, by which the error of each is multiplied.
        """
        error = x.error if weight is None else x.error * weight[:, None].to(x.error.dtype)
        output = x.outputs[self.number - 1].flatten(1)
        with torch.autocast(output.device.type, enabled=False):
            surrogate = (output.to(error.dtype) * (error @ self.feedback)).sum()
        return LossTerms({"classification": with_gradient_of(surrogate, x.loss(y, weight))})


def _draw_feedback(layer: nn.Module, *_: Any) -> None:
    """Draw the feedback of a layer from its seed."""
    feedback = layer.get_buffer("feedback")
    classes, features = feedback.shape
    draws = torch.Generator().manual_seed(int(layer.get_buffer("feedback_seed")))
    feedback.copy_(random_feedback(classes, features, draws))


class OutputLayer(Unit):
    """The linear classifier of the last hidden layer, trained by the true gradient.

    Args:
        layer: Linear layer from the last hidden layer's output to m logits.
    """

    name = "output"

    def __init__(self, layer: nn.Linear):
        self.module = self.layer = layer

    def loss(
        self,
        x: FeedbackSignals,
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy; ``weight`` are weights of the examples."""
        return LossTerms({"classification": x.loss(y, weight)})


class FeedbackStack(Stack):
    """Hidden layers and the output layer; only the output answers.

    Args:
        layers: The hidden layers, from the input.
        output: The output layer.
        embedding: One-hot embeddings.
    """

    def __init__(self, layers: Sequence[FeedbackLayer], output: OutputLayer, embedding: Embedding):
        super().__init__([*layers, output], embedding, modules=[unit.layer for unit in layers])
        self.layers, self.output = layers, output

    def signals(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator | None,
        phase: int = 0,
    ) -> FeedbackSignals:
        """Return the outputs of all layers and the output's error."""
        outputs = self.outputs(x, generator)
        logits = self.output.layer(outputs[-1].detach().flatten(1))
        logits = logits.to(self.output.layer.weight.dtype)  # from bf16
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits, y)
            error = (logits.detach().softmax(dim=1) - F.one_hot(y, logits.shape[1])) / len(y)
        return FeedbackSignals(outputs, logits, error, loss)

    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the probabilities of the output."""
        top = self.outputs(x)[-1].flatten(1)
        return [self.output.layer(top).float().softmax(dim=1)]
