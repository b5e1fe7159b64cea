r"""NoProp-CT: one network that denoises at every time $t \in [0, 1]$ (Eq. 9, Algorithm 2)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from noprop.continuous_schedules import ContinuousSchedule
from noprop.diffusion import prior_kl, sample_latent, step_coefficients
from noprop.embeddings import Embedding
from noprop.methods.base import LossTerms, Method, Prediction, Unit
from noprop.methods.chains import STRETCHES, start
from noprop.methods.continuous import features, open_chains
from noprop.networks import ContinuousBlock
from noprop.objectives import (
    Objective,
    TimeSampling,
    Weighting,
    denoising_error,
    draw_times,
    level_weight,
)
from noprop.readouts import Readout
from noprop.samplers import ancestral, euler, heun, probability_flow
from noprop.schedules import snr_slope

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
        weighting: of the denoising errors over t. Differs from the paper where it is not ``snr``:
            the sum is then no bound, and would teach the schedule to make the task easy.
        objective: the error: squared, of the embedding, or the cross-entropy of the logits. Any
            choice but the paper's two leaves the schedule to ``classification`` and ``prior``.
        time_sampling: how a batch's times are drawn.
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
    ):
        self.network, self.readout, self.schedule = network, readout, schedule
        self.module = nn.ModuleDict({"network": network, "readout": readout, "schedule": schedule})
        self.embedding = embedding
        self.eta = eta
        self.weighting: Weighting = weighting
        self.objective: Objective = objective
        self.time_sampling: TimeSampling = time_sampling

    def denoising(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        generator: torch.Generator,
        weighting: Weighting,
        objective: Objective,
        context: Float[Tensor, "batch width"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Each example's weighted error at its time, before η.

        ``context`` is what the network takes from x, where it is at hand.
        """
        gamma, slope = self.schedule(t)
        if (weighting, objective) != ("snr", "l2"):
            gamma, slope = gamma.detach(), slope.detach()
        z = sample_latent(self.embedding(y), gamma, generator)
        context = self.network.context(x, generator) if context is None else context
        logits = self.network(z, context, self.network.time_context(t), generator)
        error = denoising_error(logits, y, self.embedding, objective)
        return level_weight(weighting, gamma, 0.5 * snr_slope(gamma, slope)) * error

    def ends(
        self, y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms ``classification`` and ``prior``, which do not look at x."""
        u = self.embedding(y)
        gamma, _ = self.schedule(torch.tensor([0.0, 1.0], device=u.device))
        z = sample_latent(u, gamma[1], generator)
        with torch.autocast(u.device.type, enabled=False):
            logits = self.readout(z, self.embedding.weight)
        return {
            "classification": F.cross_entropy(logits, y),
            "prior": prior_kl(u, gamma[0]).mean(),
        }

    def loss(
        self, x: Float[Tensor, "batch ..."], y: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> LossTerms:
        """The three terms of Eq. 9."""
        t = draw_times(len(y), self.time_sampling, generator)
        errors = self.denoising(x, y, t, generator, self.weighting, self.objective)
        return LossTerms({**self.ends(y, generator), "denoising": self.eta * errors.mean()})


class ContinuousNoProp(Method):
    """NoProp with continuous time: one unit, ``network``.

    Args:
        unit: what is trained.
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
        self.unit = unit
        self.embedding = unit.embedding
        self.shared: nn.Module = unit.embedding
        self.schedule = unit.schedule
        self.num_steps, self.sampler = steps, sampler
        stretches = min(STRETCHES, steps)
        self.path_weights = torch.full((stretches,), 1 / stretches)

    @property
    def units(self) -> Sequence[Unit]:
        """``network`` alone."""
        return [self.unit]

    @torch.no_grad()
    def prepare(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """What the network takes from x: the only part of prediction with convolutions."""
        return features(self.unit.network, x)

    @torch.no_grad()
    def predict(
        self,
        x: Float[Tensor, "batch ..."],
        generator: torch.Generator,
        *,
        samples: int = 1,
        noise: bool = True,
        average: str | None = "readout",
        prepared: Float[Tensor, "batch width"] | None = None,
    ) -> Prediction:
        """See :meth:`Method.predict`.

        ``path`` averages the network's own probabilities over ten equal stretches of the chain.
        """
        average = self.averages(average)
        network, weight = self.unit.network, self.embedding.weight
        if prepared is None:
            prepared = self.prepare(x)
        chain = open_chains(
            network, weight, prepared, generator, steps=self.num_steps, samples=samples, noise=noise
        )
        levels, record = self.schedule.levels(self.num_steps), chain.record

        def denoise(i: int, z: Tensor) -> Tensor:
            p = network(z, chain.context, chain.time_contexts[i : i + 1]).softmax(dim=1)
            if i < self.num_steps:  # Heun asks once at t = 1
                record.guess(i, p)
            return p @ weight

        if self.sampler == "ancestral":
            k = step_coefficients(levels).to(x.device, torch.float32)
            z = ancestral(denoise, chain.z, k.a, k.b, k.c, chain.generator, record.observe)
        else:
            gamma = levels.float().to(x.device)
            follow = euler if self.sampler == "euler" else heun
            z = follow(probability_flow(denoise, gamma), chain.z, -gamma, record.observe)
        ends = self.unit.readout(z, weight).softmax(dim=1)
        path_weights = self.path_weights if average == "path" else None
        evaluations = self.num_steps * (2 if self.sampler == "heun" else 1)
        return record.prediction(ends, weight, path_weights, evaluations)

    @torch.no_grad()
    def control(
        self, generator: torch.Generator, prepared: Float[Tensor, "batch width"]
    ) -> Int64[Tensor, " batch"]:
        """The control: the network at the last step's time on z ~ N(0, I)."""
        t = torch.tensor([1 - 1 / self.num_steps], device=prepared.device)
        dim = self.embedding.weight.shape[1]
        z = start(1, prepared.shape[0], dim, generator, prepared.device)
        return self.unit.network(z, prepared, self.unit.network.time_context(t)).argmax(dim=1)

    @torch.no_grad()
    def bound(
        self,
        x: Float[Tensor, "batch ..."],
        y: Int64[Tensor, " batch"],
        generator: torch.Generator,
        *,
        prepared: Float[Tensor, "batch width"] | None = None,
    ) -> dict[str, float]:
        """The three terms of the bound on -log p(y|x) (Eq. 4), in nats: Eq. 9 with η = 1.

        One time an example, spread evenly over the batch.
        """
        t = draw_times(len(y), "stratified", generator)
        errors = self.unit.denoising(x, y, t, generator, "snr", "l2", context=prepared)
        ends = self.unit.ends(y, generator)
        return {name: float(v) for name, v in ends.items()} | {"denoising": float(errors.mean())}

    def facts(self) -> dict[str, float | list[float]]:
        """Of the schedule: see :meth:`ContinuousSchedule.facts`."""
        return self.schedule.facts()
