"""Methods whose units are the layers of a stack, which read each other's outputs without gradient.

All layers are one group: they are trained on the same mini-batch, each by a loss of its own. A
method writes :meth:`~noprop.methods.base.Method.signals`, one forward pass of a mini-batch for all
units, the ``loss`` of each unit on these, and :meth:`Stack.answers`.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.layers import stochastic_call
from noprop.methods.base import Method, Unit
from noprop.methods.chains import Chains

__all__ = ["Stack", "with_gradient_of"]


class Stack(Method):
    """Layers that are trained together, each by its own loss, and one forward pass to predict.

    A prediction has no latents and no noise. The chain of :class:`~noprop.methods.base.Prediction`
    holds what the network answers after each step: z_t is the mean of the one-hot embeddings under
    the probabilities, and z_0 is 0.

    Args:
        units: All units, the layers from the input to the output first.
        embedding: One-hot embeddings, which nothing trains.
        modules: Layers from the input to the top, each of which reads the output of the one before.
        steps: Number of answers, the last of which is the prediction.
        guesses: Whether the answers are trained to predict the label, each by itself. Then they are
            the path that is averaged.

    Attributes:
        evaluations: Number of forward passes of a prediction.
    """

    evaluations = 1

    noise_by_default = False
    has_noise = False

    def __init__(
        self,
        units: Sequence[Unit],
        embedding: Embedding,
        *,
        modules: Sequence[nn.Module] = (),
        steps: int = 1,
        guesses: bool = False,
    ):
        stretches = steps if guesses else 0
        super().__init__(units, embedding, steps=steps, stretches=stretches, end_time=steps)
        self.modules = modules

    def outputs(
        self, x: Float[Tensor, "batch ..."], generator: torch.Generator | None = None
    ) -> list[Float[Tensor, "batch ..."]]:
        """Return the output of every module, whose gradient reaches this module alone."""
        found = []
        for module in self.modules:
            x = stochastic_call(module, x.detach(), generator)
            found.append(x)
        return found

    @abstractmethod
    def answers(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the class probabilities after each step."""

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch classes"]]:
        """Return the answers, in float32."""
        return [p.float() for p in self.answers(x)]

    def chain(
        self, chains: Chains, prepared: Sequence[Float[Tensor, "batch classes"]]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        """See :meth:`Method.chain`; without noise it is a single one."""
        weight = self.embedding.weight
        chains.observe(0, chains.z)
        for i, p in enumerate(prepared):
            if self.path_weights is not None:
                chains.guess(i, p)
            chains.observe(i + 1, p @ weight)
        return prepared[-1], self.evaluations


def with_gradient_of(surrogate: Float[Tensor, ""], value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return ``value``, with the gradient of ``surrogate``.

    A layer whose gradient is not that of a loss is trained by a surrogate, such as the product of
    its output with a signal. What is logged is then a loss in nats.
    """
    return value.detach() + (surrogate - surrogate.detach())
