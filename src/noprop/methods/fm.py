r"""NoProp-FM: flow matching from noise to the label's embedding (Eqs. 10-13, Algorithm 3)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.errors import import_extra
from noprop.evidence import flow_evidence
from noprop.flow import expected_velocity, extrapolate, sample_path, target_velocity
from noprop.methods.base import LossTerms, Method, Unit, cross_entropy, weighted_mean
from noprop.methods.chains import NUM_STRETCHES, Chains, class_probabilities, float32_or_64
from noprop.networks import ContinuousBlock
from noprop.readouts import Readout, nearest_embedding_logits
from noprop.samplers import euler, heun

__all__ = ["FlowNoProp", "VelocityUnit"]


class VelocityUnit(Unit):
    r"""The velocity network and the readout of Eq. 13.

    Terms: ``flow``, ‖v(z_t, x, t) - (z_1 - z_0)‖² (Eq. 11), and ``classification``, the readout's
    cross-entropy on $\tilde z_1$ = z_t + (1 - t) v (Eqs. 12, 13).

    Differs from the paper if the anchor is off, as with fixed embeddings: the readout is still
    trained, but on a copy of $\tilde z_1$ without a gradient, so that nothing else is trained. The
    readout turns velocities into class probabilities at every step of a chain.

    Differs from the paper with exact evidence too: class probabilities are then softmax(logits +
    exact evidence), ``classification`` is their cross-entropy, and there is no readout. On top of
    $\hat u$, which is a point among the embeddings, a readout's cross-entropy would not be least
    where $\hat u$ is Bayes' rule, and the anchor would train the network to something else.

    Args:
        network: Weights of the embeddings in v, from z_t, x and t; any numbers, no softmax.
        readout: p_out(y | z̃_1); None with exact evidence.
        embedding: W_Embed, shared.
        sigma: σ of the path (Eq. 10).
        anchor: Whether ``classification`` also trains the network and W_Embed. With exact evidence
            it reaches W_Embed through z, so at t = 0 not at all.
        noise_only: Whether training has t = 0 alone. There z tells nothing, and a network that
            reads x alone learns log p(y|x) from every example.
    """

    name = "network"

    def __init__(
        self,
        network: ContinuousBlock,
        readout: Readout | None,
        embedding: Embedding,
        *,
        sigma: float = 0.0,
        anchor: bool = False,
        noise_only: bool = False,
    ):
        self.network, self.readout, self.embedding = network, readout, embedding
        trained: dict[str, nn.Module] = {"network": network}
        self.module = nn.ModuleDict(trained | ({} if readout is None else {"readout": readout}))
        self.sigma, self.anchor, self.noise_only = sigma, anchor, noise_only

    def velocity_and_logits(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        time_context: Float[Tensor, "times features"],
        t: Float[Tensor, "*batch"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"]]:
        """Return v(z_t, x, t), and the logits of p(y | z_t, x).

        With exact evidence v is that of û = softmax(logits) W_Embed. The evidence passes a gradient
        to W_Embed through z alone, as in the other methods. ``context`` and ``time_context`` are
        what the network takes from x and t; t is one time for the batch, or one for each latent.
        """
        out, table = self.network(z, context, time_context, generator), self.embedding.weight
        if self.readout is None:
            logits = float32_or_64(out) + flow_evidence(z, table.detach(), t, self.sigma)
            v = expected_velocity(self.embedding.expectation(logits), z, t, self.sigma)
            return v, logits if self.anchor else logits.detach()
        v = self.embedding.combination(out)
        guess = extrapolate(z, t, v)
        if not self.anchor:
            guess, table = guess.detach(), table.detach()
        with torch.autocast(v.device.type, enabled=False):
            return v, self.readout(guess, table)

    def loss(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the two terms, at one t ~ U(0, 1) for each example.

        ``weight`` are weights of the examples.
        """
        z1 = self.embedding(y)
        z0 = torch.empty_like(z1).normal_(generator=generator)
        t = torch.rand(len(y), generator=generator, device=z1.device)
        t = torch.zeros_like(t) if self.noise_only else t
        z = sample_path(z0, z1, t, self.sigma, generator)
        context = self.network.context(x, generator)
        times = self.network.time_context(t)
        v, logits = self.velocity_and_logits(z, context, times, t, generator)
        classification = cross_entropy(logits, y, weight)
        flow = weighted_mean((v - target_velocity(z0, z1)).square().sum(dim=1), weight)
        return LossTerms({"flow": flow, "classification": classification})


def _dopri5() -> Callable[..., Any]:
    """Import torchdiffeq's solver, before anything is trained."""
    return import_extra("torchdiffeq", "ode", "sampler dopri5 needs").odeint


class FlowNoProp(Method):
    """NoProp with flow matching: one unit, ``network``.

    Args:
        unit: The unit that is trained.
        steps: T of ``euler`` and ``heun``.
        sampler: Solver of the ODE; ``dopri5`` chooses its own steps.
        tolerance: Relative and absolute tolerance of ``dopri5``.

    Raises:
        ConfigError: If the sampler is ``dopri5`` and torchdiffeq is not installed.
    """

    noise_by_default = False

    def __init__(
        self,
        unit: VelocityUnit,
        *,
        steps: int = 1000,
        sampler: Literal["euler", "heun", "dopri5"] = "euler",
        tolerance: float = 1e-4,
    ):
        self.solve = _dopri5() if sampler == "dopri5" else None
        steps = NUM_STRETCHES if self.solve else steps
        stretches = min(NUM_STRETCHES, steps)
        super().__init__([unit], unit.embedding, steps=steps, stretches=stretches)
        self.unit, self.sampler, self.tolerance = unit, sampler, tolerance
        self.end_logits = nearest_embedding_logits  # an exported graph has it as a layer

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Return what the network takes from x: the only part of prediction with convolutions."""
        return float32_or_64(self.unit.network.context(x))

    def chain(
        self, chains: Chains, prepared: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        r"""See :meth:`Method.chain`; the only noise is $z_0$.

        Differs from the paper if σ is above 0: the chain starts from N(0, (1 + σ²) I), which is
        what Eq. 10 makes of t = 0, and not from N(0, I).

        The class of a chain is the embedding nearest to its end (Section 2.3.1), and its
        probabilities are those of :func:`nearest_embedding_logits`. The path averages the readout's
        probabilities at $\tilde z_1$, or p(y | z_t, x) with exact evidence, over ten stretches of
        equal length.
        """
        network, weight, steps = self.unit.network, self.embedding.weight, self.num_steps
        context, times = chains.repeat(prepared), chains.times
        time_contexts = network.time_context(times)

        def velocity(i: int, z: Tensor) -> Tensor:
            time_context = time_contexts[i : i + 1]
            v, logits = self.unit.velocity_and_logits(z, context, time_context, times[i])
            if i < steps:  # Heun's method evaluates once at t = 1
                chains.guess(i, class_probabilities(logits))
            return v

        # The path begins at N(z_0, σ²), so its first marginal is wider than the noise alone.
        z = chains.z * (1 + self.unit.sigma**2) ** 0.5
        if self.sampler == "dopri5":
            levels, evaluations = self._adaptive(z, context, times)
            for i, level in enumerate(levels):
                chains.observe(i, level)
                if i < steps:
                    velocity(i, level)
            z, evaluations = levels[-1], evaluations + steps
        else:
            follow, evaluations = (euler, steps) if self.sampler == "euler" else (heun, 2 * steps)
            z = follow(velocity, z, times, chains.observe)
        return self.end_logits(z, weight).softmax(dim=1), evaluations

    def _adaptive(
        self,
        z: Float[Tensor, "rows dim"],
        context: Float[Tensor, "rows width"],
        times: Float[Tensor, " levels"],
    ) -> tuple[Float[Tensor, "levels rows dim"], int]:
        """Return the levels by Dormand and Prince's method, and its number of evaluations."""
        assert self.solve is not None
        asked = 0

        def velocity(t: Tensor, z: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            time = self.unit.network.time_context(t[None].float())
            return self.unit.velocity_and_logits(z, context, time, t.float())[0]

        tolerance = self.tolerance
        levels = self.solve(velocity, z, times, rtol=tolerance, atol=tolerance, method="dopri5")
        assert isinstance(levels, Tensor)
        return levels, asked
