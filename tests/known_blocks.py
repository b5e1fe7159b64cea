"""Networks that are written down, not trained: what a chain of them does is known.

One ignores its input, one is Bayes' rule.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.dt import DiscreteNoProp
from noprop.networks import ContinuousBlock, DiscreteBlock
from noprop.readouts import SoftmaxReadout
from noprop.schedules import cosine_gamma

__all__ = ["Bayes", "Known", "KnownNetwork", "known"]


class Known(DiscreteBlock):
    """Logits that are ``scale`` times x, whatever z is; keeps the latents it was shown."""

    def __init__(self, scale: float = 1.0):
        nn.Module.__init__(self)
        self.scale = scale
        self.seen: list[Tensor] = []

    def context(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def forward(
        self, z: Tensor, context: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        self.seen.append(z.clone())
        return self.scale * context


class KnownNetwork(ContinuousBlock):
    """Logits that are ``scale`` times x, whatever z and t are; keeps what it was shown."""

    def __init__(self, scale: float = 1.0):
        nn.Module.__init__(self)
        self.scale = scale
        self.seen: list[tuple[Tensor, Tensor]] = []

    def context(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def time_context(self, t: Tensor) -> Tensor:
        return t[:, None]

    def forward(
        self,
        z: Tensor,
        context: Tensor,
        time_context: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self.seen.append((z.clone(), time_context[:, 0].expand(len(z))))
        return self.scale * context


class Bayes(Known):
    """Bayes' rule: x is log p(y|x), z a draw of q(z|y) at level ``gamma``."""

    def __init__(self, gamma: Tensor, weight: Tensor):
        super().__init__()
        self.gamma, self.weight = gamma.float(), weight

    def forward(
        self, z: Tensor, context: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        mean = torch.sigmoid(-self.gamma).sqrt() * self.weight
        square = (z[:, None] - mean).square().sum(dim=2)
        return context - square / (2 * torch.sigmoid(self.gamma))


def known(
    blocks: Sequence[DiscreteBlock | None],
    weight: Tensor,
    *,
    eta: float = 0.1,
    learned: bool = False,
) -> DiscreteNoProp:
    """The method with these blocks, on the paper's schedule."""
    gamma = cosine_gamma(len(blocks))
    embedding = Embedding(weight, learned=learned)
    return DiscreteNoProp(blocks, embedding, SoftmaxReadout(weight), gamma, eta=eta)
