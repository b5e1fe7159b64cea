r"""Forward-Forward (Hinton 2022): layers that tell real inputs from negative ones, by goodness.

Layer l computes $h_l = \mathrm{ReLU}(a_l)$, $a_l = W_l \hat h_{l-1} + b_l$, of the direction of the
activities below, $\hat h = h / \sqrt{\mathrm{mean}(h^2)}$; the input is scaled in the same way. Its
goodness is $G_l = \sum h_l^2$, and $p = \sigma(G_l - n)$, for n units, is its probability that an
input is positive. Each layer ascends log p on positives and log(1 - p) on negatives.

*Supervised*, the first m pixels hold the label, one-hot: the true one in a positive, a wrong one in
a negative. Features have no border to write on, so m numbers stand before them. Wrong labels are
*hard*: drawn from a softmax that reads the layers from the second on, given the neutral label 1/m.
*Unsupervised*, positives are images, and negatives hybrids of two.

The rule is that of Hinton's published script, in which the derivative by $a_l$ has no factor 2 and
peer normalization is not gated by the ReLU. The paper's text leaves these and the rates open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Unit
from noprop.methods.stack import Stack, with_gradient_of

__all__ = [
    "ForwardForwardStack",
    "GoodnessLayer",
    "Passes",
    "SoftmaxUnit",
    "direction",
    "hybrids",
    "random_masks",
    "with_labels",
    "wrong_labels",
]


def direction(h: Float[Tensor, "batch units"]) -> Float[Tensor, "batch units"]:
    """Return each row scaled to a mean square of 1; a row of zeros stays one."""
    return h / (h.square().mean(dim=1, keepdim=True).sqrt() + 1e-7)


def with_labels(
    x: Float[Tensor, "batch features"], labels: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch features"]:
    """Return inputs whose first m numbers hold the label: one-hot, or 1/m each for the neutral."""
    return torch.cat([labels, x[:, labels.shape[1] :]], dim=1)


def wrong_labels(
    logits: Float[Tensor, "batch classes"], y: Int64[Tensor, " batch"], generator: torch.Generator
) -> Int64[Tensor, " batch"]:
    """Draw a label for each row from the softmax of its logits without the true class."""
    others = logits.float().scatter(1, y[:, None], -torch.inf)
    return torch.multinomial(others.softmax(dim=1), 1, generator=generator)[:, 0]


def random_masks(
    count: int, height: int, width: int, generator: torch.Generator
) -> Float[Tensor, "count 1 height width"]:
    """Draw masks of 0 and 1 with large regions: random bits, blurred and then cut at one half.

    The blur is [1/4, 1/2, 1/4] in both directions, repeated 10 times for 28 pixels a side, and in
    proportion to the area for others. Differs from the paper: it gives no number. The blur reflects
    at the border.
    """
    bits = torch.empty(count, height, width, device=generator.device)
    bits.bernoulli_(0.5, generator=generator).sub_(0.5)  # about 0, where bf16 has no ties
    rows, columns = (_blur(side).to(bits) for side in (height, width))
    return (rows @ bits @ columns.T > 0).float()[:, None]


def _blur(side: int) -> Float[Tensor, "side side"]:
    """Return the matrix of the repeated blur of a line of pixels."""
    eye = torch.eye(side, dtype=torch.float64)
    padded = torch.cat([eye[:1], eye, eye[-1:]])
    once = padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4
    return torch.linalg.matrix_power(once, max(1, round(10 * (side / 28) ** 2)))


def hybrids(
    x: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Return images that take each pixel from their own image, or from another of the batch."""
    batch, _, height, width = x.shape
    mask = random_masks(batch, height, width, generator).to(x)
    shift = torch.randint(1, max(2, batch), (1,), generator=generator, device=generator.device)
    return torch.where(mask.bool(), x, x.roll(int(shift), dims=0))


@dataclass(frozen=True)
class Passes:
    r"""Forward passes of a mini-batch of B examples.

    Attributes:
        preactivations: $a_l$ of each layer, of B positives and then B negatives, shape (2B, n). Its
            gradient reaches this layer alone.
        directions: $\hat h$ of the layers that the softmax reads, side by side, of inputs without
            a label.
    """

    preactivations: Sequence[Float[Tensor, "rows units"]]
    directions: Float[Tensor, "batch features"]


class GoodnessLayer(Unit):
    """A hidden layer. Its terms are -log p of ``positive`` and -log(1 - p) of ``negative`` inputs.

    Args:
        number: l, from 1.
        inputs: Number of inputs.
        units: n, number of units.
        generator: Source of the weights, N(0, 1/inputs).
        peer: Strength of peer normalization: units whose mean activity on positives is below that
            of the layer are pushed up, also where the ReLU is 0, and others down.
    """

    def __init__(
        self, number: int, inputs: int, units: int, generator: torch.Generator, *, peer: float
    ):
        self.name, self.number, self.peer = f"layer-{number}", number, peer
        self.module = self.layer = nn.Linear(inputs, units, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.layer.weight.normal_(generator=generator).div_(inputs**0.5)
            self.layer.bias.zero_()
        self.layer.register_buffer("mean_activity", torch.full((units,), 0.5))

    @property
    def mean_activity(self) -> Float[Tensor, " units"]:
        """Running mean of each unit's activity on positives."""
        return self.layer.get_buffer("mean_activity")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights, and the biases without decay."""
        biases = {"params": [self.layer.bias], "weight_decay": 0.0}
        return [{"params": [self.layer.weight]}, biases]

    @torch.no_grad()
    def observe(self, preactivation: Float[Tensor, "batch units"]) -> None:
        """Move the running mean of the activities by a tenth, towards those of positives."""
        self.mean_activity.lerp_(preactivation.relu().mean(dim=0).to(self.mean_activity), 0.1)

    def log_odds(self, h: Float[Tensor, "batch units"]) -> Float[Tensor, " batch"]:
        """Return G - n: how much the goodness exceeds that of activities of mean square 1."""
        return h.square().sum(dim=1) - h.shape[1]

    def loss(self, x: Passes, y: Int64[Tensor, " batch"], generator: torch.Generator) -> LossTerms:
        """Return both terms, each with the gradient of the published rule."""
        a = x.preactivations[self.number - 1]
        with torch.autocast(a.device.type, enabled=False):
            positive, negative = a.to(self.layer.weight.dtype).chunk(2)
            peers = self.peer * (self.mean_activity.mean() - self.mean_activity)
            return LossTerms(
                {
                    "positive": self._term(positive, 1.0, peers),
                    "negative": self._term(negative, -1.0, torch.zeros_like(peers)),
                }
            )

    def _term(
        self, a: Float[Tensor, "batch units"], sign: float, peers: Float[Tensor, " units"]
    ) -> Float[Tensor, ""]:
        """Return -log of the probability of the truth, whose gradient by ``a`` is -up / B."""
        h = a.detach().relu()
        odds = sign * self.log_odds(h)  # of the truth, in nats
        up = (sign * torch.sigmoid(-odds))[:, None] * h + peers
        return with_gradient_of(-(a * up).sum() / len(a), F.softplus(-odds).mean())


class SoftmaxUnit(Unit):
    """A linear classifier of the layers' directions. Its one term is ``classification``.

    Args:
        features: Number of activities that it reads.
        classes: m.
    """

    name = "softmax"

    def __init__(self, features: int, classes: int):
        layer = nn.Linear(features, classes, bias=False, device="meta")
        self.module = self.layer = layer.to_empty(device="cpu")
        nn.init.zeros_(self.layer.weight)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the weights with the script's rate, ten times that of the layers, and decay."""
        return [{"params": [self.layer.weight], "rate": 10.0, "weight_decay": 3e-3}]

    def loss(self, x: Passes, y: Int64[Tensor, " batch"], generator: torch.Generator) -> LossTerms:
        """Return the cross-entropy."""
        logits = self.layer(x.directions)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.to(self.layer.weight.dtype), y)
        return LossTerms({"classification": loss})


class ForwardForwardStack(Stack):
    """Hidden layers and the softmax.

    The answers are the softmax's, in one pass without a label, and for ``goodness`` then a second:
    the softmax of the goodness with each of the m labels in the image, summed over the layers from
    the second on. The paper takes the label of the greatest sum, which is the same.

    Args:
        layers: The hidden layers, from the input.
        softmax: The classifier of all layers but the first.
        embedding: One-hot embeddings.
        negatives: ``labels`` (supervised) or ``hybrids`` (unsupervised).
        inference: ``goodness`` or ``softmax``, the last answer; ``softmax`` with hybrids.
        label_in_front: Whether the label is m numbers before the input, rather than its first m.
    """

    def __init__(
        self,
        layers: Sequence[GoodnessLayer],
        softmax: SoftmaxUnit,
        embedding: Embedding,
        *,
        negatives: Literal["labels", "hybrids"] = "labels",
        inference: Literal["goodness", "softmax"] = "goodness",
        label_in_front: bool = False,
    ):
        steps = 2 if inference == "goodness" else 1
        super().__init__([*layers, softmax], embedding, steps=steps)
        self.layers, self.softmax = layers, softmax
        self.negatives, self.inference = negatives, inference
        self.num_classes = embedding.weight.shape[0]
        self.label_in_front = label_in_front
        if inference == "goodness":
            self.evaluations = 1 + self.num_classes

    def signals(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        phase: int = 0,
    ) -> Passes:
        """Return the passes, with new negatives; in training mode, positives move the means."""
        flat, batch = self._flat(x), len(x)
        directions = None
        if self.negatives == "labels":
            directions = self._features(self._neutral(flat))
            with torch.no_grad():
                logits = self.softmax.layer(directions)
            wrong = wrong_labels(logits, y, generator)
            labels = F.one_hot(torch.cat([y, wrong]), self.num_classes).to(flat)
            rows = with_labels(flat.repeat(2, 1), labels)
        else:
            rows = torch.cat([flat, hybrids(x, generator).flatten(1)])
        preactivations, found = self._pass(rows)
        for unit, a in zip(self.layers, preactivations, strict=True):
            if unit.module.training:
                unit.observe(a[:batch])
        if directions is None:
            directions = _read(found)[:batch]
        return Passes(preactivations, directions)

    def _pass(
        self, rows: Float[Tensor, "rows features"]
    ) -> tuple[list[Float[Tensor, "rows units"]], list[Float[Tensor, "rows units"]]]:
        r"""Return $a_l$ and $\hat h_l$ of all layers; the latter have no gradient."""
        preactivations, directions, x = [], [], direction(rows)
        for unit in self.layers:
            a = unit.layer(x)
            x = direction(a.detach().to(unit.layer.weight.dtype).relu())
            preactivations.append(a)
            directions.append(x)
        return preactivations, directions

    @torch.no_grad()
    def _features(self, rows: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows features"]:
        """Return what the softmax reads of inputs."""
        return _read(self._pass(rows)[1])

    def _flat(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch inputs"]:
        """Return inputs as rows with a place for the label, if there are labels."""
        return F.pad(x.flatten(1), (self.num_classes * self.label_in_front, 0))

    def _neutral(self, flat: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """Return inputs as the softmax reads them: with the neutral label, where labels are."""
        if self.negatives == "hybrids":
            return flat
        m = self.num_classes
        return with_labels(flat, flat.new_full((flat.shape[0], m), 1 / m))

    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the probabilities of the softmax, and those of the goodness if it answers."""
        flat = self._flat(x)
        logits = self.softmax.layer(self._features(self._neutral(flat)))
        answers = [logits.float().softmax(dim=1)]
        if self.inference == "goodness":
            answers.append(self.goodness(flat).softmax(dim=1))
        return answers

    @torch.no_grad()
    def goodness(self, flat: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Return for each label the goodness, less its threshold, of the layers but the first."""
        batch, m = flat.shape[0], self.num_classes
        labels = torch.eye(m).to(flat).repeat(batch, 1)
        preactivations, _ = self._pass(with_labels(flat.repeat_interleave(m, dim=0), labels))
        sums = torch.zeros(batch * m, device=flat.device)
        pairs = list(zip(self.layers, preactivations, strict=True))
        for unit, a in pairs[1:] or pairs:
            sums = sums + unit.log_odds(a.to(unit.layer.weight.dtype).relu())
        return sums.view(batch, m)


def _read(directions: Sequence[Float[Tensor, "rows units"]]) -> Float[Tensor, "rows features"]:
    """Return the directions of all layers but the first, or of the only one, side by side."""
    return torch.cat(list(directions[1:] or directions), dim=1)
