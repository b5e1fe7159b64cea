r"""LG-FG-A: greedy local losses by forward gradients of activities (Ren et al. 2023, 2210.03310).

The network is a LocalMixer: an image is cut into P patches, and each block mixes patches, then
channels, and ends with a product in G groups of channels. Layer norm without weights stands before
and after every product. Each patch and group of a block's output has a loss of its own: the
cross-entropy of a linear head on the mean over the patches, as a function of this patch and group
alone.

No gradient is propagated through a block. All activities before their ReLU are moved in one random
direction $v \sim \mathcal{N}(0, I)$, and the change of each local loss comes from one forward pass
with tangents: its *forward gradient* g. Then

.. math:: \mathbb{E}[g\, v] = \frac{\partial L}{\partial a},

so $g\, v$ estimates the gradient of an activity $a$. From there each layer has its exact gradient,
through its own norm. A layer's activity changes few of the local losses, and only their g are
noise to it: those of its patch and group, or of all groups for a layer that mixes patches.
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

__all__ = [
    "ClassifierUnit",
    "LocalBlock",
    "LocalMixerStack",
    "MixerSignals",
    "MixerBlock",
    "forward_gradients",
    "to_patches",
]

Tokens = Float[Tensor, "batch patches width"]
Activity = Float[Tensor, "batch patches channels"]


def to_patches(x: Float[Tensor, "batch c h w"], side: int) -> Tokens:
    """Cut images into ``side``² patches, each a row of C·(H/side)·(W/side) numbers."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, side, h // side, side, w // side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, side * side, -1)


def _norm(x: Tensor) -> Tensor:
    """Return x with mean 0 and deviation 1 along the last axis (layer norm without weights)."""
    return F.layer_norm(x, x.shape[-1:])


class Product(nn.Module):
    r"""A product between two layer norms, along one axis of tokens.

    Args:
        inputs: Numbers before the product.
        outputs: Numbers after it.
        generator: Source of the initial weights, $\mathcal{N}(0, s^2)$ with s = 2/√inputs, at most
            0.1.
        groups: Number of groups of channels that the product does not mix.
        over_patches: Whether the product is over the patches of a channel, rather than over the
            channels of a patch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        generator: torch.Generator,
        *,
        groups: int = 1,
        over_patches: bool = False,
    ):
        super().__init__()
        self.groups, self.over_patches = groups, over_patches
        scale = min(2 / (inputs // groups) ** 0.5, 0.1)
        shape = (groups, outputs // groups, inputs // groups)
        self.weight = nn.Parameter(scale * torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tokens) -> Activity:
        """Return the activity before the ReLU."""
        x = x.transpose(1, 2) if self.over_patches else x
        x = _norm(x.unflatten(2, (self.groups, -1)))
        x = torch.einsum("npgi,goi->npgo", x, self.weight) + self.bias.unflatten(
            0, (self.groups, -1)
        )
        x = _norm(x).flatten(2)
        return x.transpose(1, 2) if self.over_patches else x


class MixerBlock(nn.Module):
    """A block of the LocalMixer.

    The first block takes the patches to its width. Each further one mixes patches and then
    channels, and adds its input. All end with a product in groups.

    Args:
        patches: P.
        inputs: Numbers of a patch of the input.
        width: Channels D.
        groups: G, a divisor of D.
        generator: Source of the initial weights.
        first: Whether it is the first block.
    """

    def __init__(
        self,
        patches: int,
        inputs: int,
        width: int,
        groups: int,
        generator: torch.Generator,
        *,
        first: bool,
    ):
        super().__init__()
        self.groups, self.first = groups, first
        products = [] if first else [Product(patches, patches, generator, over_patches=True)]
        products.append(Product(inputs, width, generator))
        products.append(Product(width, width, generator, groups=groups))
        self.products = nn.ModuleList(products)

    def activities(
        self, x: Tokens, moved: Sequence[Activity] | None = None, *, detached: bool = False
    ) -> tuple[list[Activity], Activity]:
        """Return the activities before each ReLU, and the output of the block.

        Args:
            x: Input, shape (B, P, inputs).
            moved: What is added to each activity.
            detached: Whether each product's input is detached, so that the gradient of an activity
                reaches one product alone.
        """
        h, found = x, []
        for i, product in enumerate(self.products):
            a = product(h.detach() if detached else h)
            if moved is not None:
                a = a + moved[i]
            is_last = i == len(self.products) - 1
            a = a + x if is_last and not self.first else a
            found.append(a)
            h = F.relu(a)
        return found, h

    def forward(self, x: Tokens) -> Activity:
        """Return the output, shape (B, P, D)."""
        return self.activities(x)[1]


def head_logits(head: nn.Linear, output: Tokens, groups: int) -> Float[Tensor, "batch classes"]:
    """Return the logits of a head on the mean over patches of the output, normed in its groups."""
    normed = _norm(output.unflatten(2, (groups, -1))).flatten(2)
    return head(normed.mean(dim=1))


def forward_gradients(
    block: MixerBlock,
    head: nn.Linear,
    x: Tokens,
    y: Int64[Tensor, " batch"],
    directions: Sequence[Tensor],
) -> list[Tensor]:
    r"""Return the estimate $g\, v$ of the gradient of every activity of a block.

    Args:
        block: The block.
        head: Its head.
        x: Input of the block, shape (B, P, inputs).
        y: Labels.
        directions: $v$ of every activity.

    Returns:
        For each activity, $\partial L / \partial a$ of the sum over the batch, in expectation over
        $v$; 0 where the ReLU is closed.
    """
    groups = block.groups

    def normed(moved: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        found, output = block.activities(x, moved)
        return _norm(output.unflatten(2, (groups, -1))), tuple(found)

    zeros = tuple(torch.zeros_like(v) for v in directions)
    (features, activities), moves, *_ = torch.func.jvp(normed, (zeros,), (tuple(directions),))
    logits = head(features.flatten(2).mean(dim=1))
    error = logits.softmax(dim=1) - F.one_hot(y, logits.shape[1])
    slope = (error @ head.weight).unflatten(1, (groups, -1)) / features.shape[1]
    # Of the loss of each patch and group; the softmax is that of all of them.
    g = torch.einsum("npgc,ngc->npg", moves[0], slope)
    found = []
    for product, v, a in zip(block.products, directions, activities, strict=True):
        assert isinstance(product, Product)
        if product.over_patches:  # the product after it mixes the groups
            estimate = g.sum(dim=2, keepdim=True) * v
        else:
            estimate = (g[..., None] * v.unflatten(2, (groups, -1))).flatten(2)
        found.append(estimate * (a > 0))
    return found


@dataclass(frozen=True)
class MixerSignals:
    """One forward pass of a mini-batch, without gradient.

    Attributes:
        states: The patches, shape (B, P, inputs), and the output of every block, (B, P, D).
    """

    states: Sequence[Float[Tensor, "batch patches _"]]


class LocalBlock(Unit):
    """A block and its head. Its one term is ``classification``, the cross-entropy of the head.

    The head has the true gradient, the block's products that of :func:`forward_gradients`.

    Args:
        number: From 1.
        block: The block.
        head: Linear layer from its width to m logits.
    """

    def __init__(self, number: int, block: MixerBlock, head: nn.Linear):
        self.name, self.number = f"block-{number}", number
        self.block, self.head = block, head
        self.module = nn.ModuleDict({"block": block, "head": head})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights, and biases without decay."""
        return weights_and_biases(self.module)

    def loss(
        self,
        x: MixerSignals,
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy of the head, with the estimated gradient of the products.

        ``weight`` are weights of the examples.
        """
        inputs, output = x.states[self.number - 1 : self.number + 1]
        logits = head_logits(self.head, output, self.block.groups)
        loss = cross_entropy(logits, y, weight)
        if not torch.is_grad_enabled():  # a validation loss needs no estimates
            return LossTerms({"classification": loss})
        found, _ = self.block.activities(inputs, detached=True)
        with torch.no_grad():
            # Contiguous, as numbers are drawn one by one into others.
            directions = [
                torch.empty(a.shape, dtype=a.dtype, device=a.device).normal_(generator=generator)
                for a in found
            ]
            estimates = forward_gradients(self.block, self.head, inputs, y, directions)
            if weight is not None:  # an example's gradient is that of its own loss
                estimates = [e * weight[:, None, None].to(e.dtype) for e in estimates]
        surrogate = torch.stack([(a * e).sum() for a, e in zip(found, estimates, strict=True)])
        return LossTerms(
            {"classification": with_gradient_of(surrogate.sum() / len(y) + loss, loss)}
        )


class ClassifierUnit(Unit):
    """The linear classifier of the last block's output, trained by the true gradient.

    Args:
        layer: Linear layer from the width to m logits.
        groups: Groups of channels that are normed separately.
        rate: Learning rate, a factor of that of the blocks.
    """

    name = "classifier"

    def __init__(self, layer: nn.Linear, groups: int, rate: float = 0.1):
        self.module = self.layer = layer
        self.groups, self.rate = groups, rate

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights, and the biases without decay, both with the rate."""
        return weights_and_biases(self.module, rate=self.rate)

    def logits(self, output: Tokens) -> Float[Tensor, "batch classes"]:
        """Return the logits of the last block's output."""
        return head_logits(self.layer, output, self.groups)

    def loss(
        self,
        x: MixerSignals,
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy; ``weight`` are weights of the examples."""
        return LossTerms({"classification": cross_entropy(self.logits(x.states[-1]), y, weight)})


def weights_and_biases(module: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: weights, and biases without weight decay."""
    named = list(module.named_parameters())
    biases = [p for name, p in named if name.rpartition(".")[2] == "bias"]
    weights = [p for name, p in named if name.rpartition(".")[2] != "bias"]
    return [{"params": weights, **options}, {"params": biases, "weight_decay": 0.0, **options}]


class LocalMixerStack(Stack):
    """The blocks and the classifier; heads make intermediate predictions, the classifier the last.

    Args:
        blocks: The blocks, from the input.
        classifier: The classifier.
        embedding: One-hot embeddings.
        side: Patches along a side of the image.
    """

    def __init__(
        self,
        blocks: Sequence[LocalBlock],
        classifier: ClassifierUnit,
        embedding: Embedding,
        *,
        side: int,
    ):
        super().__init__([*blocks, classifier], embedding, modules=[unit.block for unit in blocks])
        self.blocks, self.classifier, self.side = blocks, classifier, side

    @torch.no_grad()
    def signals(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator | None,
        phase: int = 0,
    ) -> MixerSignals:
        """Return the patches and the output of every block."""
        tokens = to_patches(x, self.side)
        return MixerSignals([tokens, *self.outputs(tokens)])

    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the probabilities of the classifier."""
        top = self.outputs(to_patches(x, self.side))[-1]
        return [self.classifier.logits(top).float().softmax(dim=1)]
