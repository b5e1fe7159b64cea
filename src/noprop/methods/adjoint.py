r"""The baseline: CT's network as a neural ODE, by the adjoint method (Chen et al., 2018)."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.embeddings import Embedding
from noprop.errors import import_extra
from noprop.methods.base import LossTerms, Method, Unit, cross_entropy
from noprop.methods.chains import Chains, initial_latent
from noprop.networks import ContinuousBlock
from noprop.readouts import Readout
from noprop.samplers import euler

__all__ = ["NeuralODE", "SolverUnit"]


class SolverUnit(Unit):
    r"""The field $\dot z = f(z, x, t)$ and a linear readout of $z(1)$, from $z(0) \sim N(0, I)$.

    f is the network's logits @ W_Embed, unrestricted as flow matching's velocity; the paper does
    not say. The one term is ``classification``, the cross-entropy of the readout. Features of x are
    computed once; the gradient that reaches them is part of what the solver returns.

    The network's latent path must draw no dropout: a field that changes between the forward and
    the backward solution has no adjoint.

    Args:
        network: The field.
        readout: Readout of z(1).
        embedding: W_Embed.
        steps: T, Euler steps of equal length.
        gradient: ``adjoint``, by a second ODE backwards in time, in memory that does not depend
            on T; or ``autograd``, through every step.

    Raises:
        ConfigError: If torchdiffeq is not installed.
    """

    name = "network"

    def __init__(
        self,
        network: ContinuousBlock,
        readout: Readout,
        embedding: Embedding,
        *,
        steps: int = 1000,
        gradient: Literal["adjoint", "autograd"] = "adjoint",
    ):
        torchdiffeq = import_extra("torchdiffeq", "ode", "method adjoint needs")
        self.odeint, self.odeint_adjoint = torchdiffeq.odeint, torchdiffeq.odeint_adjoint
        self.network, self.readout, self.embedding = network, readout, embedding
        self.module = nn.ModuleDict({"network": network, "readout": readout})
        self.num_steps, self.gradient = steps, gradient

    def solve(
        self, z: Float[Tensor, "batch dim"], context: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch dim"]:
        """Return z(1) from z(0), with the gradient of the chosen kind."""
        network, weight, steps = self.network, self.embedding.weight, self.num_steps

        def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z, context = state
            velocity = network(z, context, network.time_context(t[None])) @ weight
            return velocity, torch.zeros_like(context)

        def grid(_: object, z: Tensor, times: Tensor) -> Tensor:
            # Not step_size = 1 / T, which rounding makes T + 1 steps at some T, such as 61.
            return torch.linspace(times[0], times[-1], steps + 1, dtype=z.dtype, device=z.device)

        times = torch.tensor([0.0, 1.0], dtype=z.dtype, device=z.device)
        options = {"grid_constructor": grid}
        # The features are a part of the state that stands still. As a parameter they would bring
        # their graph into the field, and the first layer of the head, which is used in both, would
        # get the gradient of the features twice.
        state = (z, context)
        if self.gradient == "autograd":
            levels, _ = self.odeint(field, state, times, method="euler", options=options)
        else:
            inside = (network.latent, network.time, network.head)
            parameters = [p for module in inside if module for p in module.parameters()]
            reached = tuple(p for p in (*parameters, weight) if p.requires_grad)
            levels, _ = self.odeint_adjoint(
                field, state, times, method="euler", options=options, adjoint_params=reached
            )
        assert isinstance(levels, Tensor)
        return levels[-1]

    def loss(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the cross-entropy of the readout at the end of the solution.

        ``weight`` are weights of the examples.
        """
        z = initial_latent(len(y), self.embedding.weight.shape[1], generator, y.device)
        context = self.network.context(x, generator).float()
        # Backwards in time the field is evaluated outside of autocast: so it must be forwards.
        with torch.autocast(z.device.type, enabled=False):
            logits = self.readout(self.solve(z, context), self.embedding.weight)
        return LossTerms({"classification": cross_entropy(logits, y, weight)})


class NeuralODE(Method):
    """The baseline's ODE: one unit, ``network``; its steps make no guesses, so it has no path.

    Args:
        unit: The unit that is trained; inference has the same steps.
    """

    def __init__(self, unit: SolverUnit):
        super().__init__([unit], unit.embedding, steps=unit.num_steps)
        self.unit = unit

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Return what the field takes from x."""
        return self.unit.network.context(x).float()

    def chain(
        self, chains: Chains, prepared: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        """See :meth:`Method.chain`; the only noise is z(0)."""
        network, weight = self.unit.network, self.embedding.weight
        context, times = chains.repeat(prepared), network.time_context(chains.times)

        def field(i: int, z: Tensor) -> Tensor:
            return network(z, context, times[i : i + 1]) @ weight

        z = euler(field, chains.z, chains.times, chains.observe)
        return self.unit.readout(z, weight).softmax(dim=1), self.num_steps
