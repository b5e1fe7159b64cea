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

    Args:
        network: Weights of the embeddings in v, from z_t, x and t; any numbers, no softmax.
        readout: p_out(y | z̃_1).
        embedding: W_Embed, shared.
        sigma: σ of the path (Eq. 10).
        anchor: Whether ``classification`` also trains the network and W_Embed.
        exact: Whether the velocity is that of û = softmax(logits + exact evidence) W_Embed. Differs
            from the paper, whose network has any velocity and learns the best one. The
            evidence passes a gradient to W_Embed through z alone, as in the other methods. Class
            probabilities along a chain are then softmax(logits + exact evidence), and not the
            readout's.
        noise_only: Whether training has t = 0 alone. There z tells nothing, and a network that
            reads x alone learns log p(y|x) from every example.
    """

    name = "network"

    def __init__(
        self,
        network: ContinuousBlock,
        readout: Readout,
        embedding: Embedding,
        *,
        sigma: float = 0.0,
        anchor: bool = False,
        exact: bool = False,
        noise_only: bool = False,
    ):
        self.network, self.readout, self.embedding = network, readout, embedding
        self.module = nn.ModuleDict({"network": network, "readout": readout})
        self.sigma, self.anchor, self.exact = sigma, anchor, exact
        self.noise_only = noise_only

    def velocity_and_logits(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        time_context: Float[Tensor, "times features"],
        t: Float[Tensor, "*batch"],
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch classes"] | None]:
        """Return v(z_t, x, t), and with exact evidence the logits of p(y | z_t, x), else None.

        ``context`` and ``time_context`` are what the network takes from x and t; t is one time for
        the batch, or one for each latent.
        """
        out = self.network(z, context, time_context, generator)
        if not self.exact:
            return self.embedding.combination(out), None
        weight = self.embedding.weight.detach()
        logits = float32_or_64(out) + flow_evidence(z, weight, t, self.sigma)
        return expected_velocity(self.embedding.expectation(logits), z, t, self.sigma), logits

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
        v, _ = self.velocity_and_logits(z, context, self.network.time_context(t), t, generator)
        guess, table = extrapolate(z, t, v), self.embedding.weight
        if not self.anchor:
            guess, table = guess.detach(), table.detach()
        with torch.autocast(v.device.type, enabled=False):
            classification = cross_entropy(self.readout(guess, table), y, weight)
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
                if logits is None:
                    logits = self.unit.readout(extrapolate(z, times[i], v), weight)
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
