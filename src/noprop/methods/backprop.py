r"""The baseline: NoProp-DT's blocks in a chain, trained by back-propagation (Eqs. 17-19)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Method, Unit, cross_entropy
from noprop.methods.chains import Chains, initial_latent
from noprop.networks import DiscreteBlock
from noprop.readouts import Readout

__all__ = ["BackpropChain", "ChainUnit"]


class ChainUnit(Unit):
    r"""All blocks, their mixing weights and the readout, trained by one backward pass.

    $z_t = (1 - \alpha_t) z_{t-1} + \alpha_t \hat u_t(z_{t-1}, x)$ with $\alpha_t = \tanh(w_t)$
    (Eq. 18) from $z_0 \sim \mathcal{N}(0, I)$ (Eq. 17). Its one term is ``classification``, the
    cross-entropy of the readout on $z_T$.

    Args:
        blocks: T networks, each with weights of its own.
        readout: p_out(y | z_T).
        embedding: W_Embed; a learned one is reached through every û_t.
        mixing: Value of every $\alpha_t$ before training, in (0, 1); the paper does not give it.
    """

    name = "network"

    def __init__(
        self,
        blocks: Sequence[DiscreteBlock],
        readout: Readout,
        embedding: Embedding,
        *,
        mixing: float = 0.5,
    ):
        self.blocks, self.readout, self.embedding = list(blocks), readout, embedding
        self.w = nn.Parameter(torch.full((len(blocks),), mixing).atanh())
        self.module = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "readout": readout})
        self.module.register_parameter("w", self.w)

    @property
    def mixing(self) -> Float[Tensor, " steps"]:
        r"""$\alpha_t$ in (-1, 1), shape (T,)."""
        return self.w.tanh()

    def loss(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy at the end; ``weight`` are weights of the examples."""
        dim = self.embedding.weight.shape[1]
        z = initial_latent(len(y), dim, generator, y.device)
        for alpha, block in zip(self.mixing, self.blocks, strict=True):
            guess = self.embedding.expectation(block(z, block.context(x, generator), generator))
            z = (1 - alpha) * z + alpha * guess
        with torch.autocast(z.device.type, enabled=False):
            logits = self.readout(z, self.embedding.weight)
        return LossTerms({"classification": cross_entropy(logits, y, weight)})


class BackpropChain(Method):
    """The baseline's chain: one unit, ``network``.

    Its steps are not trained to guess the label, so it has no path to average.

    Args:
        unit: The unit that is trained.
    """

    def __init__(self, unit: ChainUnit):
        steps = len(unit.blocks)
        super().__init__([unit], unit.embedding, steps=steps, end_time=steps)
        self.unit = unit

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch width"]]:
        """Return what each block takes from x."""
        return [block.context(x).float() for block in self.unit.blocks]

    def chain(
        self, chains: Chains, prepared: Sequence[Float[Tensor, "batch width"]]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        """See :meth:`Method.chain`; the only noise is z_0."""
        z, weight = chains.z, self.embedding.weight
        chains.observe(0, z)
        for i, (alpha, block) in enumerate(zip(self.unit.mixing, self.unit.blocks, strict=True)):
            guess = block(z, chains.repeat(prepared[i])).softmax(dim=1) @ weight
            z = (1 - alpha) * z + alpha * guess
            chains.observe(i + 1, z)
        return self.unit.readout(z, weight).softmax(dim=1), self.num_steps

    @torch.no_grad()
    def facts(self) -> dict[str, float | list[float]]:
        r"""Return $\alpha_t$ of every block."""
        return {"mixing": [round(alpha, 4) for alpha in self.unit.mixing.tolist()]}
