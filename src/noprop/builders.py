"""One function for each method, which makes it of its settings and of the parts."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from noprop.chain_settings import AdjointConfig, BackpropConfig, CTConfig, DTConfig, FMConfig
from noprop.errors import ConfigError
from noprop.methods.adjoint import NeuralODE, SolverUnit
from noprop.methods.backprop import BackpropChain, ChainUnit
from noprop.methods.base import Method
from noprop.methods.ct import ContinuousNoProp, DenoiserUnit
from noprop.methods.dfa import FeedbackLayer, FeedbackStack, OutputLayer
from noprop.methods.dt import DiscreteNoProp
from noprop.methods.dtp import InverseUnit, OutputUnit, TargetLayer, TargetStack, tanh_layer
from noprop.methods.ff import ForwardForwardStack, GoodnessLayer, SoftmaxUnit
from noprop.methods.fm import FlowNoProp, VelocityUnit
from noprop.methods.greedy import GreedyStack, HeadedLayer
from noprop.methods.lg_fg_a import ClassifierUnit, LocalBlock, LocalMixerStack, MixerBlock
from noprop.parts import Parts
from noprop.randomness import derive_seed, generator
from noprop.schedules import (
    ContinuousSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    cosine_gamma,
)
from noprop.settings import MethodConfig
from noprop.stack_settings import DFAConfig, DTPConfig, FFConfig, GreedyConfig, LocalMixerConfig

__all__ = ["BUILDERS"]


def _discrete(c: DTConfig, parts: Parts) -> DiscreteNoProp:
    assert c.gamma_shift != "auto"
    names = c.unit_names[:-1]
    return DiscreteNoProp(
        [
            parts.discrete_block(n, c.network_reads) if parts.only in (None, n) else None
            for n in names
        ],
        parts.embedding,
        parts.readout(),
        cosine_gamma(c.num_blocks, offset=c.offset, epsilon=c.epsilon) + c.gamma_shift,
        eta=c.eta,
        weighting=c.weighting,
        objective=c.objective,
        label_smoothing=parts.config.train.label_smoothing,
        exact=c.evidence == "exact",
        noise_only=c.train_levels == "noise",
        step=c.step,
        # In Algorithm 1 the readout takes a step with every block's step.
        readout_passes=c.num_blocks if parts.config.train.order == "sequential" else 1,
    )


def _continuous(c: CTConfig, parts: Parts) -> ContinuousNoProp:
    schedule: ContinuousSchedule
    assert c.gamma_noise != "auto"
    if c.schedule == "learned":
        schedule = LearnedSchedule(c.gamma_noise, c.gamma_clean, c.gamma_room)
    else:
        fixed = LinearSchedule if c.schedule == "linear" else CosineSchedule
        schedule = fixed(c.gamma_noise, c.gamma_clean)
    unit = DenoiserUnit(
        parts.continuous_block(c.time_scale, reads=c.network_reads),
        parts.readout(),
        schedule,
        parts.embedding,
        eta=c.eta,
        weighting=c.weighting,
        objective=c.objective,
        time_sampling=c.time_sampling,
        label_smoothing=parts.config.train.label_smoothing,
        exact=c.evidence == "exact",
        noise_only=c.train_levels == "noise",
    )
    return ContinuousNoProp(unit, steps=c.steps, sampler=c.sampler)


def _flow(c: FMConfig, parts: Parts) -> FlowNoProp:
    unit = VelocityUnit(
        parts.continuous_block(c.time_scale, reads=c.network_reads),
        None if c.evidence == "exact" else parts.readout(),
        parts.embedding,
        sigma=c.path_sigma,
        anchor=c.anchor == "always" or (c.anchor == "learned" and c.learned),
        noise_only=c.train_levels == "noise",
    )
    return FlowNoProp(unit, steps=c.steps, sampler=c.sampler, tolerance=c.tolerance)


def _backprop(c: BackpropConfig, parts: Parts) -> BackpropChain:
    blocks = [parts.discrete_block(f"block-{t}") for t in range(1, c.num_blocks + 1)]
    return BackpropChain(ChainUnit(blocks, parts.readout(), parts.embedding, mixing=c.mixing))


def _adjoint(c: AdjointConfig, parts: Parts) -> NeuralODE:
    network = parts.continuous_block(c.time_scale, latent_dropout=0.0)
    readout, embedding = parts.readout(), parts.embedding
    return NeuralODE(SolverUnit(network, readout, embedding, steps=c.steps, gradient=c.gradient))


def _greedy(c: GreedyConfig, parts: Parts) -> GreedyStack:
    layers = parts.image_layers(c)
    units = [
        HeadedLayer(n, layer, parts.classifier(f"head-{n}", features))
        for n, (layer, features) in enumerate(layers, start=1)
    ]
    return GreedyStack(units, parts.embedding)


def _dfa(c: DFAConfig, parts: Parts) -> FeedbackStack:
    layers, m, seed = parts.image_layers(c), parts.task.num_classes, parts.config.train.seed
    units = [
        FeedbackLayer(n, layer, m, size, derive_seed(seed, "feedback", n))
        for n, (layer, size) in enumerate(layers, start=1)
    ]
    output = OutputLayer(parts.classifier("output", layers[-1][1]))
    return FeedbackStack(units, output, parts.embedding)


def _forward_forward(c: FFConfig, parts: Parts) -> ForwardForwardStack:
    shape, m, seed = parts.task.shape, parts.task.num_classes, parts.config.train.seed
    features = torch.Size(shape).numel()
    if c.negatives == "hybrids" and len(shape) != 3:
        raise ConfigError(f"method.negatives: hybrids are made of images, got features of {shape}")
    in_front = c.negatives == "labels" and len(shape) == 1
    if c.negatives == "labels" and not in_front and features < m:
        raise ConfigError(
            f"method.negatives: a label takes the first {m} numbers of an input, which has "
            f"{features}; use hybrids"
        )
    sizes = [features + m * in_front, *[c.width] * c.num_layers]
    layers = [
        GoodnessLayer(n, i, o, generator(seed, "init", 0, f"layer-{n}"), peer=c.peer_normalization)
        for n, (i, o) in enumerate(pairwise(sizes), start=1)
    ]
    softmax = SoftmaxUnit(c.width * len(layers[1:] or layers), m)
    return ForwardForwardStack(
        layers,
        softmax,
        parts.embedding,
        negatives=c.negatives,
        inference=c.inference,
        label_in_front=in_front,
    )


def _target_propagation(c: DTPConfig, parts: Parts) -> TargetStack:
    seed, features = parts.config.train.seed, torch.Size(parts.task.shape).numel()

    def layer(name: str, inputs: int) -> nn.Sequential:
        return tanh_layer(inputs, c.width, generator(seed, "init", 0, name))

    sizes = [features, *[c.width] * (c.num_layers - 1)]
    layers = [TargetLayer(n, layer(f"layer-{n}", i)) for n, i in enumerate(sizes, start=1)]
    inverses = [
        InverseUnit(n, layer(f"inverse-{n}", c.width), c.inverse_rate)
        for n in range(2, c.num_layers + 1)
    ]
    output = OutputUnit(parts.classifier("output", c.width))
    with torch.no_grad():
        nn.init.orthogonal_(output.layer.weight, generator=generator(seed, "init", 0, "output"))
        output.layer.bias.zero_()
    return TargetStack(
        layers, output, inverses, parts.embedding, step=c.target_step, noise=c.inverse_noise
    )


def _local_mixer(c: LocalMixerConfig, parts: Parts) -> LocalMixerStack:
    shape, seed = parts.task.shape, parts.config.train.seed
    if len(shape) != 3:
        raise ConfigError(f"method.name: lg-fg-a is for images, got features of shape {shape}")
    if shape[1] % c.side or shape[2] % c.side:
        raise ConfigError(
            f"method.side: an image must be cut into {c.side} by {c.side} equal patches, got "
            f"inputs of {shape}"
        )
    patches = c.side**2
    inputs = [torch.Size(shape).numel() // patches, *[c.width] * (c.num_blocks - 1)]
    blocks = [
        LocalBlock(
            n,
            MixerBlock(
                patches,
                size,
                c.width,
                c.groups,
                generator(seed, "init", 0, f"block-{n}"),
                first=n == 1,
            ),
            parts.classifier(f"head-{n}", c.width),
        )
        for n, size in enumerate(inputs, start=1)
    ]
    classifier = ClassifierUnit(
        parts.classifier("classifier", c.width), c.groups, c.classifier_rate
    )
    return LocalMixerStack(blocks, classifier, parts.embedding, side=c.side)


BUILDERS: Mapping[type[MethodConfig], Callable[[Any, Parts], Method]] = {
    DTConfig: _discrete,
    CTConfig: _continuous,
    FMConfig: _flow,
    BackpropConfig: _backprop,
    AdjointConfig: _adjoint,
    GreedyConfig: _greedy,
    DFAConfig: _dfa,
    FFConfig: _forward_forward,
    DTPConfig: _target_propagation,
    LocalMixerConfig: _local_mixer,
}
