"""Greedy layerwise training: each layer with an auxiliary head of its own (Belilovsky et al. 2019).

Layer l reads the current output of layer l-1 without gradient, and is trained by the cross-entropy
of a linear classifier on its own output. All layers are trained at the same time, as in decoupled
greedy learning (Belilovsky et al. 2020), on the image path of Fig. 5.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Unit, cross_entropy
from noprop.methods.stack import Stack

__all__ = ["GreedyStack", "HeadedLayer"]


class HeadedLayer(Unit):
    """A layer and its classifier. Its one term is ``classification``, the cross-entropy.

    Args:
        number: l, from 1.
        layer: The layer, with its nonlinearity, pool and dropout.
        head: Linear classifier of the flattened output.
    """

    def __init__(self, number: int, layer: nn.Module, head: nn.Module):
        self.name, self.number = f"layer-{number}", number
        self.layer, self.head = layer, head
        self.module = nn.ModuleDict({"layer": layer, "head": head})

    def loss(
        self,
        x: Sequence[Float[Tensor, "batch ..."]],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy of the head on this layer's output, of the outputs of all.

        ``weight`` are weights of the examples.
        """
        logits = self.head(x[self.number - 1].flatten(1))
        with torch.autocast(logits.device.type, enabled=False):
            return LossTerms({"classification": cross_entropy(logits.float(), y, weight)})


class GreedyStack(Stack):
    """Layers with heads; the heads' answers are intermediate predictions, which can be averaged.

    Args:
        layers: The units, from the input to the output.
        embedding: One-hot embeddings.
    """

    def __init__(self, layers: Sequence[HeadedLayer], embedding: Embedding):
        modules = [unit.layer for unit in layers]
        super().__init__(layers, embedding, modules=modules, steps=len(layers), guesses=True)
        self.layers = layers

    def signals(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator | None,
        phase: int = 0,
    ) -> list[Float[Tensor, "batch ..."]]:
        """Return every layer's output, whose gradient reaches this layer alone."""
        return self.outputs(x, generator)

    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the probabilities of every head."""
        pairs = zip(self.layers, self.outputs(x), strict=True)
        logits = [unit.head(h.flatten(1)) for unit, h in pairs]
        return [each.float().softmax(dim=1) for each in logits]
