r"""NoProp-CT: one network that denoises at every time $t \in [0, 1]$ (Eq. 9, Algorithm 2)."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.diffusion import (
    StepCoefficients,
    TimeSampling,
    Weighting,
    draw_times,
    level_weight,
    prior_kl,
    sample_latent,
    step_coefficients,
)
from noprop.embeddings import Embedding, Objective, denoising_error
from noprop.evidence import level_evidence
from noprop.methods.base import LossTerms, Method, Unit, cross_entropy, weighted_mean
from noprop.methods.chains import (
    NUM_STRETCHES,
    Chains,
    class_probabilities,
    float32_or_64,
    initial_latent,
)
from noprop.networks import ContinuousBlock
from noprop.readouts import Readout
from noprop.samplers import ancestral, euler, heun, probability_flow
from noprop.schedules import ContinuousSchedule, alpha_bar, snr, snr_slope

__all__ = ["ContinuousNoProp", "DenoiserUnit"]


class DenoiserUnit(Unit):
    r"""The network, the readout and the schedule, trained together on Eq. 9.

    Terms: ``classification``, the readout's cross-entropy on $z_1 \sim q(z_1|y)$; ``prior``, the KL
    at t = 0; ``denoising``, ½ η SNR'(t) ‖û(z_t, x, t) - u_y‖² at one t for each example.

    Args:
        network: û's logits from z_t, x and t.
        readout: p_out(y | z_1).
        schedule: γ(t).
        embedding: W_Embed, shared.
        eta: η of Eq. 9.
        weighting: Weighting of the denoising errors over t. Differs from the paper unless it is
            ``snr``: the sum is then no bound, and would train the schedule to make the task easy.
        objective: Squared error of the embedding, or cross-entropy of the logits. Unless both are
            the paper's choice, only ``classification`` and ``prior`` train the schedule.
        time_sampling: Way of drawing a batch's times.
        label_smoothing: Probability that the cross-entropy's target spreads over all classes.
        exact: Whether the exact evidence of the latent is added to the network's logits. Differs
            from the paper, whose network learns it. The term passes a gradient to
            W_Embed through z, and none as its rows: so the validation part was predicted best
            (docs/theory.md).
        noise_only: Whether training has t = 0 alone. There z tells nothing, and a network that
            reads x alone learns log p(y|x) from every example. The schedule is trained by
            ``classification`` and ``prior`` only, and the one time has the weight ½ of ``uniform``.
    """

    name = "network"

    def __init__(
        self,
        network: ContinuousBlock,
        readout: Readout,
        schedule: ContinuousSchedule,
        embedding: Embedding,
        *,
        eta: float = 1.0,
        weighting: Weighting = "snr",
        objective: Objective = "l2",
        time_sampling: TimeSampling = "uniform",
        label_smoothing: float = 0.0,
        exact: bool = False,
        noise_only: bool = False,
    ):
        self.network, self.readout, self.schedule = network, readout, schedule
        self.module = nn.ModuleDict({"network": network, "readout": readout, "schedule": schedule})
        self.embedding = embedding
        self.eta = eta
        self.weighting: Weighting = "uniform" if noise_only else weighting
        self.objective: Objective = objective
        self.time_sampling: TimeSampling = time_sampling
        self.label_smoothing, self.exact = label_smoothing, exact
        self.noise_only = noise_only

    def logits(
        self,
        z: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch width"],
        time_context: Float[Tensor, "times features"],
        gamma: Float[Tensor, "*batch"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of û, shape (B, m), at a level for the batch or one for each latent.

        ``context`` and ``time_context`` are what the network takes from x and t.
        """
        logits = self.network(z, context, time_context, generator)
        if not self.exact:
            return logits
        weight = self.embedding.weight.detach()
        return float32_or_64(logits) + level_evidence(z, weight, gamma)

    def denoising(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        generator: torch.Generator,
        weighting: Weighting,
        objective: Objective,
        context: Float[Tensor, "batch width"] | None = None,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, " batch"]:
        """Return each example's weighted error at its time, before η.

        ``context`` is what the network takes from x, if it was computed before.
        """
        gamma, slope = self.schedule(t)
        if self.noise_only or (weighting, objective) != ("snr", "l2"):
            gamma, slope = gamma.detach(), slope.detach()
        z = sample_latent(self.embedding(y), gamma, generator)
        context = self.network.context(x, generator) if context is None else context
        logits = self.logits(z, context, self.network.time_context(t), gamma, generator)
        error = denoising_error(logits, y, self.embedding, objective, label_smoothing)
        return level_weight(weighting, gamma, 0.5 * snr_slope(gamma, slope)) * error

    def ends(
        self,
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the terms ``classification`` and ``prior``, which do not read x."""
        u = self.embedding(y)
        gamma, _ = self.schedule(torch.tensor([0.0, 1.0], device=u.device))
        z = sample_latent(u, gamma[1], generator)
        with torch.autocast(u.device.type, enabled=False):
            logits = self.readout(z, self.embedding.weight)
        return {
            "classification": cross_entropy(logits, y, weight),
            "prior": weighted_mean(prior_kl(u, gamma[0]), weight),
        }

    def loss(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> LossTerms:
        """Return the three terms of Eq. 9; ``weight`` are weights of the examples."""
        t = draw_times(len(y), self.time_sampling, generator)
        t = torch.zeros_like(t) if self.noise_only else t
        errors = self.denoising(
            x, y, t, generator, self.weighting, self.objective, None, self.label_smoothing
        )
        denoising = self.eta * weighted_mean(errors, weight)
        return LossTerms({**self.ends(y, generator, weight), "denoising": denoising})


class ContinuousNoProp(Method):
    """NoProp with continuous time: one unit, ``network``.

    Args:
        unit: The unit that is trained.
        steps: T of inference.
        sampler: ``ancestral``, the stochastic chain of Eq. 3 over T levels, or the
            probability-flow ODE by ``euler`` or ``heun``.
    """

    noise_by_default = False

    def __init__(
        self,
        unit: DenoiserUnit,
        *,
        steps: int = 1000,
        sampler: Literal["ancestral", "euler", "heun"] = "ancestral",
    ):
        stretches = min(NUM_STRETCHES, steps)
        super().__init__([unit], unit.embedding, steps=steps, stretches=stretches)
        self.unit, self.schedule, self.sampler = unit, unit.schedule, sampler

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Return what the network takes from x: the only part of prediction with convolutions."""
        return float32_or_64(self.unit.network.context(x))

    def levels(self) -> tuple[Float[Tensor, " levels"], StepCoefficients]:
        """Return γ at the levels of a chain, and the coefficients of its steps, in float64."""
        levels = self.schedule.levels(self.num_steps)
        return levels, step_coefficients(levels)

    def chain(
        self, chains: Chains, prepared: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "rows classes"], int]:
        """See :meth:`Method.chain`; the path has ten stretches of equal length."""
        network, weight, steps = self.unit.network, self.embedding.weight, self.num_steps
        context, times = chains.repeat(prepared), network.time_context(chains.times)
        levels, coefficients = self.levels()
        gamma = levels.float().to(context.device)

        def denoise(i: int, z: Tensor) -> Tensor:
            p = class_probabilities(self.unit.logits(z, context, times[i : i + 1], gamma[i]))
            if i < steps:  # Heun's method evaluates once at t = 1
                chains.guess(i, p)
            return p @ weight

        if self.sampler == "ancestral":
            k = coefficients.to(context.device, torch.float32)
            z = ancestral(denoise, chains.z, k.a, k.b, k.c, chains.generator, chains.observe)
        else:
            follow = euler if self.sampler == "euler" else heun
            z = follow(probability_flow(denoise, gamma), chains.z, -gamma, chains.observe)
        evaluations = 2 * steps if self.sampler == "heun" else steps
        return self.unit.readout(z, weight).softmax(dim=1), evaluations

    @torch.no_grad()
    def control(
        self, generator: torch.Generator, prepared: Float[Tensor, "batch width"]
    ) -> Int64[Tensor, " batch"]:
        """Return the guess of the network at the last step's time on z ~ N(0, I)."""
        t = torch.tensor([1 - 1 / self.num_steps], device=prepared.device)
        dim = self.embedding.weight.shape[1]
        z = initial_latent(prepared.shape[0], dim, generator, prepared.device)
        time_context, gamma = self.unit.network.time_context(t), self.schedule(t)[0]
        return self.unit.logits(z, prepared, time_context, gamma).argmax(dim=1)

    @torch.no_grad()
    def bound(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        *,
        prepared: Float[Tensor, "batch width"] | None = None,
    ) -> dict[str, float]:
        """Return the three terms of the bound on -log p(y|x) (Eq. 4) in nats: Eq. 9 with η = 1.

        One time an example, spread evenly over the batch.
        """
        t = draw_times(len(y), "stratified", generator)
        errors = self.unit.denoising(x, y, t, generator, "snr", "l2", context=prepared)
        ends = self.unit.ends(y, generator)
        return {name: float(v) for name, v in ends.items()} | {"denoising": float(errors.mean())}

    @torch.no_grad()
    def schedule_table(self) -> list[dict[str, Any]]:
        """Return the schedule at eleven times."""
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        gamma, slope = self.schedule(t)
        slope = snr_slope(gamma, slope)
        weight = self.unit.eta * level_weight(self.unit.weighting, gamma, 0.5 * slope)
        columns = {
            "t": t,
            "alpha_bar": alpha_bar(gamma),
            "snr": snr(gamma),
            "snr_slope": slope,
            "weight": weight,
        }
        return [{n: round(v[i].item(), 12) for n, v in columns.items()} for i in range(len(t))]

    def facts(self) -> dict[str, float | list[float]]:
        """Return those of the schedule, see :meth:`ContinuousSchedule.facts`."""
        return self.schedule.facts()
