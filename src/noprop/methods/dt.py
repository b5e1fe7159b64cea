r"""NoProp-DT: T blocks, each trained on its own to guess the label (Eqs. 3-8, Algorithm 1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.diffusion import denoising_weights, prior_kl, sample_latent, step_coefficients
from noprop.embeddings import Embedding, nearest_class
from noprop.methods.base import LossTerms, Method, Prediction, Unit
from noprop.networks import DiscreteBlock
from noprop.readouts import Readout
from noprop.samplers import ancestral

__all__ = ["Block", "DiscreteNoProp", "ReadoutUnit", "fit_path_weights"]


class Block(Unit):
    r"""Block t: reads $z_{t-1} \sim q(\cdot|y)$ and x, and guesses $u_y$.

    Its loss is the term ``denoising`` of Eq. 8, (T/2) η (SNR(t) - SNR(t-1)) ‖û_t - u_y‖².

    Args:
        t: 1..T.
        network: the block's own network.
        embedding: W_Embed, shared.
        gamma: the whole schedule, shape (T + 1,).
        eta: η of Eq. 8.
    """

    def __init__(
        self,
        t: int,
        network: DiscreteBlock,
        embedding: Embedding,
        gamma: Float[Tensor, " levels"],
        eta: float,
    ):
        self.name = f"block-{t}"
        self.module = network
        self.network = network
        self.embedding = embedding
        # Algorithm 1 as printed samples z_t but reads z_{t-1}: the latent drawn here is z_{t-1}.
        self.gamma = gamma[t - 1].float()
        self.weight = float(denoising_weights(gamma, eta)[t - 1])
        self.coupling = 1 / (gamma.shape[0] - 1)

    def error(
        self, x: Float[Tensor, "batch ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean over the batch of ‖û_t - u_y‖², before its weight."""
        u = self.embedding(y)
        z = sample_latent(u, self.gamma.to(u.device), generator)
        logits = self.network(z, self.network.context(x, generator), generator)
        return (self.embedding.expectation(logits) - u).square().sum(dim=1).mean()

    def loss(
        self, x: Float[Tensor, "batch ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """The denoising term of this block."""
        return LossTerms({"denoising": self.weight * self.error(x, y, generator)})


class ReadoutUnit(Unit):
    """p_out(y | z_T), trained on z_T ~ q(z_T|y): ``classification`` and ``prior`` of Eq. 8.

    The prior term has no parameter but W_Embed; with fixed embeddings it is a constant.
    """

    name = "readout"
    reads_images = False

    def __init__(self, readout: Readout, embedding: Embedding, gamma: Float[Tensor, " levels"]):
        self.module = readout
        self.readout = readout
        self.embedding = embedding
        self.gamma = gamma.float()

    def loss(
        self, x: Float[Tensor, "images ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """Cross-entropy of the readout on the clean end, and the KL of the noise end."""
        u = self.embedding(y)
        gamma = self.gamma.to(u.device)
        z = sample_latent(u, gamma[-1], generator)
        with torch.autocast(u.device.type, enabled=False):
            logits = self.readout(z, self.embedding.weight)
        return LossTerms(
            {
                "classification": F.cross_entropy(logits, y),
                "prior": prior_kl(u, gamma[0]).mean(),
            }
        )


class DiscreteNoProp(Method):
    """NoProp with discrete time: units ``block-1`` … ``block-T`` and ``readout``.

    Args:
        blocks: T networks, each with weights of its own; None for one that another process has.
            Training goes without it, prediction does not.
        embedding: W_Embed.
        readout: p_out(y | z).
        gamma: -log SNR at t = 0..T, shape (T + 1,), falling strictly.
        eta: η of Eq. 8.
        readout_passes: how often the readout sees the labels in an epoch; in Algorithm 1 once a
            block.
    """

    def __init__(
        self,
        blocks: Sequence[DiscreteBlock | None],
        embedding: Embedding,
        readout: Readout,
        gamma: Float[Tensor, " levels"],
        *,
        eta: float = 0.1,
        readout_passes: int = 1,
    ):
        self.embedding = embedding
        self.shared: nn.Module = embedding
        self.gamma = gamma
        self.coefficients = step_coefficients(gamma)
        self.blocks = [
            Block(t, network, embedding, gamma, eta)
            for t, network in enumerate(blocks, start=1)
            if network is not None
        ]
        self.readout = ReadoutUnit(readout, embedding, gamma)
        self.readout.passes = readout_passes
        self.path_weights = torch.full((len(blocks),), 1 / len(blocks))

    @property
    def units(self) -> Sequence[Unit]:
        """``block-1`` … ``block-T``, ``readout``."""
        return [*self.blocks, self.readout]

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch width"]]:
        """What each block takes from x: the only part of prediction with convolutions."""
        assert len(self.blocks) == len(self.coefficients), "prediction needs every block"
        return [b.network.context(x).float() for b in self.blocks]

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "batch ..."],
        generator: torch.Generator,
        *,
        samples: int = 1,
        noise: bool = True,
        average: str = "readout",
        prepared: Sequence[Float[Tensor, "batch width"]] | None = None,
    ) -> Prediction:
        """Class probabilities of a batch, from x and noise alone.

        One chain with noise (the paper's protocol) is one *sample* from p(y|x).

        Args:
            x: inputs, normalised as in training.
            generator: source of z_0 and of the steps' noise, on the device of ``x``.
            samples: K, how many chains to average; x's features are computed once for all of them.
            noise: whether the chain draws; without, it is the mean chain from z_0 = 0.
            average: ``readout`` for the readout of z_T, or ``path`` for the mean over chains and
                blocks of the blocks' own probabilities, weighted by ``path_weights``. Differs from
                the paper: along a chain every block's expected guess is the same p(y|x), so their
                mean estimates it with less variance.
            prepared: the result of :meth:`prepare`, where it is at hand.

        Raises:
            ValueError: If ``samples`` or ``average`` is out of range.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if average not in ("readout", "path"):
            raise ValueError(f"average must be 'readout' or 'path', got {average!r}")
        chains = samples if noise else 1
        weight = self.embedding.weight
        batch = x.shape[0]
        contexts = self.prepare(x) if prepared is None else prepared
        shape = (chains * batch, weight.shape[1])
        z = torch.zeros(shape, device=x.device)
        if noise:
            z.normal_(generator=generator)
        path: list[Tensor] = []
        latents: list[Tensor] = []

        def denoise(step: int, z: Tensor) -> Tensor:
            context = contexts[step].repeat(chains, 1)
            p = self.blocks[step].network(z, context).float().softmax(dim=1)
            path.append(p.unflatten(0, (chains, batch)).mean(dim=0))
            return p @ weight

        k = self.coefficients.to(x.device, torch.float32)
        z = ancestral(
            denoise, z, k.a, k.b, k.c, generator if noise else None,
            lambda t, z: latents.append(z[:batch]),
        )  # fmt: skip
        blocks = torch.stack(path)
        p = self.readout.readout(z, weight).softmax(dim=1)
        probabilities = p.unflatten(0, (chains, batch)).mean(dim=0)
        if average == "path":
            probabilities = torch.einsum("t,tbm->bm", self.path_weights.to(x.device), blocks)
        steps = torch.stack([nearest_class(level, weight) for level in latents])
        return Prediction(probabilities, p[:batch], blocks, steps, torch.stack(latents))

    @torch.no_grad()
    def last_block_alone(
        self, generator: torch.Generator, context: Float[Tensor, "batch width"]
    ) -> Int64[Tensor, " batch"]:
        """The control: block T on z ~ N(0, I), its guess taken as the answer.

        A chain that works denoises step by step; one whose schedule runs backwards leaves all the
        work to its last block, which this shows. ``context`` is the last of :meth:`prepare`.
        """
        z = torch.empty(context.shape[0], self.embedding.weight.shape[1], device=context.device)
        z.normal_(generator=generator)
        return self.blocks[-1].network(z, context).argmax(dim=1)

    @torch.no_grad()
    def bound(
        self, x: Float[Tensor, "batch ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> dict[str, float]:
        """The three terms of the bound on -log p(y|x) (Eq. 5), in nats, one draw an example.

        ``denoising`` is Σ_t ½ (SNR(t) - SNR(t-1)) ‖û_t - u_y‖²: η is 1 here, whatever trained the
        blocks.
        """
        terms = self.readout.loss(x, y, generator).terms
        weights = denoising_weights(self.gamma, 1.0) / len(self.blocks)
        denoising = sum(
            float(w) * float(b.error(x, y, generator))
            for w, b in zip(weights, self.blocks, strict=True)
        )
        return {name: float(v) for name, v in terms.items()} | {"denoising": float(denoising)}


def fit_path_weights(
    path: Float[Tensor, "steps batch classes"], y: Int64[Tensor, " batch"], iterations: int = 500
) -> Float[Tensor, " steps"]:
    """Weights over blocks, ≥ 0 with sum 1, of least log-loss for the mixture Σ_t w_t p_t(y|x).

    Expectation maximisation: the problem is concave in w, each iteration lowers the loss, and no
    step size is chosen. Fit on the validation split.

    Args:
        path: each block's class probabilities, shape (T, B, m).
        y: labels, shape (B,).
        iterations: of EM.
    """
    likelihood = path.double().clamp_min(1e-12)[:, torch.arange(y.shape[0], device=y.device), y]
    weights = torch.full((path.shape[0],), 1 / path.shape[0], dtype=torch.float64, device=y.device)
    for _ in range(iterations):
        joint = weights[:, None] * likelihood
        weights = (joint / joint.sum(dim=0)).mean(dim=1)
    return weights.float()
