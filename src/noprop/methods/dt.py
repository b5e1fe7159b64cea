r"""NoProp-DT: T blocks, each trained on its own to guess the label (Eqs. 3-8, Algorithm 1)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from noprop.diffusion import (
    Weighting,
    denoising_weights,
    level_weight,
    prior_kl,
    sample_latent,
    step_coefficients,
)
from noprop.embeddings import Embedding, Objective, denoising_error
from noprop.evidence import level_evidence
from noprop.methods.base import LossTerms, Method, Unit, cross_entropy, weighted_mean
from noprop.methods.chains import Chains, class_probabilities, float32_or_64, initial_latent
from noprop.networks import DiscreteBlock
from noprop.readouts import Readout
from noprop.samplers import ancestral
from noprop.schedules import alpha_bar, snr

__all__ = ["Block", "DiscreteNoProp", "ReadoutUnit"]


class Block(Unit):
    r"""Block t: reads $z_{t-1} \sim q(\cdot|y)$ and x, and guesses $u_y$.

    Its loss is the term ``denoising`` of Eq. 8, (T/2) η (SNR(t) - SNR(t-1)) ‖û_t - u_y‖².

    Args:
        t: 1..T.
        network: The block's own network.
        embedding: W_Embed, shared.
        gamma: The whole schedule, shape (T + 1,).
        eta: η of Eq. 8.
        weighting: Weighting of the block's error: a constant factor, because a block has one level.
        objective: Squared error of the embedding, or cross-entropy of the logits.
        label_smoothing: Probability that the cross-entropy's target spreads over all classes.
        exact: Whether the exact evidence of the latent is added to the network's logits. Differs
            from the paper, whose networks learn it. The term passes a gradient to
            W_Embed through z, and none as its rows: so the validation part was predicted best
            (docs/theory.md).
        noise_only: Whether training has the level t = 0 in place of the block's own. There z tells
            nothing, and a network that reads x alone learns log p(y|x) from every example.
    """

    def __init__(
        self,
        t: int,
        network: DiscreteBlock,
        embedding: Embedding,
        gamma: Float[Tensor, " levels"],
        eta: float,
        weighting: Weighting = "snr",
        objective: Objective = "l2",
        label_smoothing: float = 0.0,
        exact: bool = False,
        noise_only: bool = False,
    ):
        self.name = f"block-{t}"
        self.module = network
        self.network = network
        self.embedding = embedding
        # Algorithm 1 as printed samples z_t but reads z_{t-1}: the latent drawn here is z_{t-1}.
        self.gamma = gamma[t - 1].float()
        self.train_gamma = gamma[0].float() if noise_only else self.gamma
        weights = level_weight(weighting, gamma[1:], denoising_weights(gamma, 1.0))
        self.weight = eta * float(weights[t - 1])
        self.objective: Objective = objective
        self.label_smoothing, self.exact = label_smoothing, exact
        self.coupling = 1 / (gamma.shape[0] - 1)

    def logits(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        generator: torch.Generator | None = None,
        gamma: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of û_t, shape (B, m), at the level of z_{t-1} or another.

        ``context`` is what the network takes from x.
        """
        logits = self.network(z, context, generator)
        if not self.exact:
            return logits
        gamma = (self.gamma if gamma is None else gamma).to(z.device)
        weight = self.embedding.weight.detach()
        return float32_or_64(logits) + level_evidence(z, weight, gamma)

    def error(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        objective: Objective = "l2",
        context: Float[Tensor, "batch width"] | None = None,
        label_smoothing: float = 0.0,
        weight: Float[Tensor, " batch"] | None = None,
        gamma: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the batch mean of ‖û_t - u_y‖², or of the cross-entropy, before its weight.

        ``context`` is what the network takes from x, if it was computed before; ``weight`` are
        weights of the examples; ``gamma`` is the level of the latents, that of z_{t-1} by default.
        """
        gamma = (self.gamma if gamma is None else gamma).to(y.device)
        z = sample_latent(self.embedding(y), gamma, generator)
        context = self.network.context(x, generator) if context is None else context
        logits = self.logits(z, context, generator, gamma)
        errors = denoising_error(logits, y, self.embedding, objective, label_smoothing)
        return weighted_mean(errors, weight)

    def loss(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the denoising term of this block; ``weight`` are weights of the examples."""
        error = self.error(
            x,
            y,
            generator,
            self.objective,
            label_smoothing=self.label_smoothing,
            weight=weight,
            gamma=self.train_gamma,
        )
        return LossTerms({"denoising": self.weight * error})


class ReadoutUnit(Unit):
    """p_out(y | z_T), trained on z_T ~ q(z_T|y): ``classification`` and ``prior`` of Eq. 8.

    The prior term has no parameter but W_Embed; with fixed embeddings it is a constant.
    """

    name = "readout"
    beside = True
    reads_images = False

    def __init__(self, readout: Readout, embedding: Embedding, gamma: Float[Tensor, " levels"]):
        self.module = readout
        self.readout = readout
        self.embedding = embedding
        self.gamma = gamma.float()

    def loss(
        self,
        x: Float[Tensor, "images ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy of the readout on the clean end, and the KL of the noise end.

        ``weight`` are weights of the examples.
        """
        u = self.embedding(y)
        gamma = self.gamma.to(u.device)
        z = sample_latent(u, gamma[-1], generator)
        with torch.autocast(u.device.type, enabled=False):
            logits = self.readout(z, self.embedding.weight)
        return LossTerms(
            {
                "classification": cross_entropy(logits, y, weight),
                "prior": weighted_mean(prior_kl(u, gamma[0]), weight),
            }
        )


class DiscreteNoProp(Method):
    """NoProp with discrete time: units ``block-1`` … ``block-T`` and ``readout``.

    Args:
        blocks: T networks, each with weights of its own; None for one that another process has.
            Training works without it, prediction does not.
        embedding: W_Embed.
        readout: p_out(y | z).
        gamma: -log SNR at t = 0..T, shape (T + 1,), falling strictly.
        eta: η of Eq. 8.
        weighting: Weighting of the errors, see :class:`Block`.
        objective: Kind of error, see :class:`Block`.
        label_smoothing: See :class:`Block`.
        exact: Whether blocks add the exact evidence, see :class:`Block`.
        noise_only: Whether blocks are trained on pure noise, see :class:`Block`; the weighting is
            then ``uniform``.
        step: What a step of a chain with noise moves towards: the mean û, as in Eq. 3, or the
            embedding of a label that is drawn from the block's probabilities.
        readout_passes: Number of passes of the readout over the labels in an epoch; in Algorithm 1
            one for each block.
    """

    def __init__(
        self,
        blocks: Sequence[DiscreteBlock | None],
        embedding: Embedding,
        readout: Readout,
        gamma: Float[Tensor, " levels"],
        *,
        eta: float = 0.1,
        weighting: Weighting = "snr",
        objective: Objective = "l2",
        label_smoothing: float = 0.0,
        exact: bool = False,
        noise_only: bool = False,
        step: Literal["mean", "label"] = "mean",
        readout_passes: int = 1,
    ):
        self.gamma, self.eta, self.step = gamma, eta, step
        # One level for all: its weight is the same for all, and not that of the block's own level.
        self.weighting: Weighting = "uniform" if noise_only else weighting
        self.coefficients = step_coefficients(gamma)
        self.blocks = [
            Block(
                t,
                network,
                embedding,
                gamma,
                eta,
                self.weighting,
                objective,
                label_smoothing,
                exact,
                noise_only,
            )
            for t, network in enumerate(blocks, start=1)
            if network is not None
        ]
        self.readout = ReadoutUnit(readout, embedding, gamma)
        self.readout.passes = readout_passes
        units = [*self.blocks, self.readout]
        length = len(blocks)
        super().__init__(units, embedding, steps=length, stretches=length, end_time=length)

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> list[Float[Tensor, "batch width"]]:
        """Return what each block takes from x: the only part of prediction with convolutions."""
        assert len(self.blocks) == len(self.coefficients), "prediction needs every block"
        return [float32_or_64(b.network.context(x)) for b in self.blocks]

    def chain(
        self, chains: Chains, prepared: Sequence[Float[Tensor, "batch width"]]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        """See :meth:`Method.chain`; one block a step.

        Differs from the paper: the path average. Along a chain every block's expected guess is the
        same p(y|x), so the mean of the guesses estimates it with less variance.

        Differs from the paper with ``step="label"``: p(z_t | z_{t-1}, x) is a mixture over labels,
        of which Eq. 3 keeps the mean. A drawn label y, then z_t ~ q(z_t | z_{t-1}, y), samples it.
        """
        weight = self.embedding.weight

        def denoise(i: int, z: Tensor) -> Tensor:
            logits = self.blocks[i].logits(z, chains.repeat(prepared[i]))
            p = class_probabilities(float32_or_64(logits))
            chains.guess(i, p)
            if self.step == "label" and isinstance(chains.generator, torch.Generator):
                return weight[p.multinomial(1, generator=chains.generator)[:, 0]]
            return p @ weight

        k = self.coefficients.to(chains.z.device, chains.z.dtype)
        z = ancestral(denoise, chains.z, k.a, k.b, k.c, chains.generator, chains.observe)
        return self.readout.readout(z, weight).softmax(dim=1), self.num_steps

    @torch.no_grad()
    def control(
        self, generator: torch.Generator, prepared: Sequence[Float[Tensor, "batch width"]]
    ) -> Int64[Tensor, " batch"]:
        """Return the guess of block T on z ~ N(0, I)."""
        context = prepared[-1]
        dim = self.embedding.weight.shape[1]
        z = initial_latent(context.shape[0], dim, generator, context.device)
        return self.blocks[-1].logits(z, context).argmax(dim=1)

    @torch.no_grad()
    def bound(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        *,
        prepared: Sequence[Float[Tensor, "batch width"]] | None = None,
    ) -> dict[str, float]:
        """Return the three terms of the bound on -log p(y|x) (Eq. 4) in nats, one draw per example.

        ``denoising`` is Σ_t ½ (SNR(t) - SNR(t-1)) ‖û_t - u_y‖² (Eq. 57, Appendix A.4): Eq. 8 with
        η = 1, whatever trained the blocks.
        """
        terms = self.readout.loss(x, y, generator).terms
        weights = denoising_weights(self.gamma, 1.0) / len(self.blocks)
        contexts = self.prepare(x) if prepared is None else prepared
        denoising = sum(
            float(w) * float(b.error(x, y, generator, context=context))
            for w, b, context in zip(weights, self.blocks, contexts, strict=True)
        )
        return {name: float(v) for name, v in terms.items()} | {"denoising": float(denoising)}

    def schedule_table(self) -> list[dict[str, Any]]:
        """Return the levels; a block's weight and coefficients lead to its level from the last."""
        gamma, k = self.gamma, self.coefficients
        bound = denoising_weights(gamma, 1.0)
        weights = level_weight(self.weighting, gamma[1:], bound) * self.eta
        steps = {"a": k.a, "b": k.b, "c": k.c, "weight": weights}
        levels = zip(alpha_bar(gamma).tolist(), snr(gamma).tolist(), strict=True)
        return [
            {"t": t, "alpha_bar": power, "snr": ratio}
            | {name: v[t - 1].item() if t else None for name, v in steps.items()}
            for t, (power, ratio) in enumerate(levels)
        ]
