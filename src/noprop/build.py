"""The one place where a configuration becomes objects: data, networks, units, methods, devices."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noprop.config import RunConfig, replace
from noprop.data import GIVEN, Dataset, Examples, Normalization, hold_out, load_dataset
from noprop.data.features import with_features
from noprop.embeddings import (
    Embedding,
    class_medoids,
    greatest_distance,
    one_hot_embeddings,
    orthogonal_embeddings,
    random_embeddings,
    separation,
)
from noprop.encoders import EncoderFactory, image_layers
from noprop.errors import ConfigError, DataError
from noprop.method_settings import (
    MAX_ABS_GAMMA,
    AdjointConfig,
    BackpropConfig,
    CTConfig,
    DFAConfig,
    DTConfig,
    DTPConfig,
    EncoderConfig,
    FFConfig,
    FMConfig,
    GreedyConfig,
    ImagePathConfig,
    LatentConfig,
    LocalMixerConfig,
    MethodConfig,
)
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
from noprop.networks import ContinuousBlock, DiscreteBlock, Reads
from noprop.randomness import derive_seed, generator, seeded
from noprop.readouts import RadialReadout, Readout, SoftmaxReadout
from noprop.schedules import (
    ContinuousSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    cosine_gamma,
)

__all__ = [
    "RunData",
    "Task",
    "build_embedding",
    "build_method",
    "load_data",
    "resolve_auto",
    "resolve_layers",
    "split_data",
]

Block = TypeVar("Block", DiscreteBlock, ContinuousBlock)


@dataclass(frozen=True)
class Task:
    """The properties of the data that are needed to build networks without the data."""

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    normalization: Normalization
    dtype: str = "uint8"  # of an input as it is read: pixels, or "float32" features
    columns: tuple[str, ...] = ()  # names of the features of a table

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)


@dataclass(frozen=True)
class RunData:
    """The three parts and the task. Only ``evaluate`` reads the test part."""

    task: Task
    train: Examples
    validation: Examples
    test: Examples


def load_data(config: RunConfig, data_dir: Path | None = None) -> RunData:
    """Read, split and measure the data set of a run; pixels stay uint8."""
    c = config.data
    if c.dataset == GIVEN and not Path(GIVEN).exists():
        raise DataError(f"{GIVEN}: the run was trained on arrays of a script; give them as data")
    how = {"image_size": c.image_size, "color": c.color, "label": c.label}
    return split_data(config, load_dataset(c.dataset, data_dir=data_dir, **how))


def split_data(config: RunConfig, dataset: Dataset) -> RunData:
    """Split and measure a data set, as the configuration of the run says."""
    c = config.data
    if c.features:
        dataset = with_features(dataset, c.features)
    sizes = {"train_size": c.train_size, "test_size": c.test_size}
    parts = hold_out(dataset, c.validation, config.train.seed, **sizes)
    dtype = str(parts.train.x.dtype).removeprefix("torch.")
    normalization = _normalization(config, parts.train.x)
    task = Task(dataset.shape, dataset.class_names, normalization, dtype, dataset.columns)
    return RunData(task, parts.train, parts.validation, parts.test)


def _normalization(config: RunConfig, x: Tensor) -> Normalization:
    """Return the statistics of the training part, or those that map pixels to 0..1 or -1..1.

    Raises:
        ConfigError: If a range of pixels is chosen for features, which have no fixed range.
    """
    kind = config.data.normalization
    if kind == "standard":
        return Normalization.of(x)
    if x.dtype != torch.uint8:
        raise ConfigError(
            f"data.normalization: {kind} is for pixels, and {config.data.dataset} has features; "
            "use standard"
        )
    mean, std = (0.0, 1.0) if kind == "unit" else (0.5, 0.5)
    return Normalization((mean,) * x.shape[1], (std,) * x.shape[1])


def build_embedding(config: RunConfig, task: Task, train: Examples | None) -> Embedding:
    """Return W_Embed as it is before training.

    Args:
        config: The run.
        task: The task.
        train: The training part, from which prototypes are chosen; without it prototypes are
            random, to be filled from a checkpoint.

    Raises:
        ConfigError: If two classes get the same embedding, for then no latent tells them apart.
        DataError: If the reason is that two prototypes are the same image.
    """
    c, seed = config.method, generator(config.train.seed, "embedding")
    if c.embedding == "one-hot":
        return Embedding(one_hot_embeddings(task.num_classes), learned=False)
    assert isinstance(c, LatentConfig)
    if c.embedding == "prototype":
        weight = _prototypes(task, train)
        if pair := _equal_rows(weight):
            a, b = (task.class_names[i] for i in pair)
            raise DataError(
                f"method.embedding: two classes have the same embedding: the prototypes of {a} and "
                f"{b} are the same example; learn from another start, or mend the data"
            )
        return Embedding(weight, learned=c.learned)
    start = orthogonal_embeddings if c.embedding == "orthogonal" else random_embeddings
    dim = c.dim or 20
    weight = start(task.num_classes, dim, seed) * _norm(c, task, train)
    if _equal_rows(weight):
        raise ConfigError(
            f"method.dim: two classes have the same embedding: {task.num_classes} {c.embedding} "
            f"embeddings do not fit into {dim} dimension{'s' * (dim > 1)}"
        )
    return Embedding(weight, learned=c.learned)


def _norm(c: LatentConfig, task: Task, train: Examples | None) -> float:
    if c.embedding_norm == "prototype":
        return _prototypes(task, train).norm(dim=1).mean().item()
    return c.embedding_norm


def _equal_rows(weight: Tensor) -> tuple[int, int] | None:
    """Return two rows that are equal in float32, or None."""
    lengths, least = separation(weight)
    if least > 1e-6 * float(lengths.max()):
        return None
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    return divmod(int(distances.fill_diagonal_(torch.inf).argmin()), len(weight))


def _prototypes(task: Task, train: Examples | None) -> Tensor:
    size = torch.Size(task.shape).numel()
    if train is None:
        # Any distinct rows: readouts are built for them and then overwritten.
        return torch.randn(task.num_classes, size, generator=torch.Generator().manual_seed(0))
    rows = []
    for label in range(task.num_classes):
        x = task.normalization.apply(train.x[train.y == label])
        if len(x) == 0:
            raise DataError(
                f"method.embedding: {task.class_names[label]} has no training example to make a "
                "prototype of; train on more"
            )
        rows.append(x[class_medoids(x, torch.zeros(len(x), dtype=torch.int64), 1)[0]].flatten())
    return torch.stack(rows)


def resolve_auto(config: RunConfig, embedding: Embedding) -> RunConfig:
    """Return the configuration with a value for each ``auto`` of its method.

    The paper gives no γ(0). Here it is 6 + log of the greatest squared distance between two
    embeddings, so that z_0 does not tell the label whatever their length. The readout starts at
    random with learned embeddings, as in the paper: one that classifies them from the beginning
    has no gradient that keeps them apart, and the denoising losses draw them together.

    Args:
        config: The run.
        embedding: W_Embed before training.

    Raises:
        ConfigError: If the embeddings are too far apart or too close for any allowed γ.
    """
    c, changes = config.method, dict[str, Any]()
    if "readout_start" in c.auto_fields:
        changes["method.readout_start"] = "random" if c.learned else "nearest"
    for name, gamma in c.gamma_over_distance.items():
        if getattr(c, name) == "auto":
            changes[f"method.{name}"] = _gamma_over_distance(name, embedding, gamma)
    return replace(config, changes) if changes else config


def resolve_layers(
    config: RunConfig, task: Task, factory: EncoderFactory | None = None
) -> RunConfig:
    """Return the configuration with the layers of the image path, where their number is ``auto``.

    Args:
        config: The run.
        task: The task.
        factory: Function that makes the user's own encoder.

    Raises:
        ConfigError: If the encoder does not suit the data.
    """
    if "num_layers" not in config.method.auto_fields:
        return config
    try:
        count = len(_image_path(config, task, factory))
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error
    return replace(config, {"method.num_layers": count})


def _image_path(
    config: RunConfig, task: Task, factory: EncoderFactory | None
) -> Sequence[nn.Module]:
    """Return the layers of the image path as they are before training."""
    c = config.method
    assert isinstance(c, ImagePathConfig)
    with seeded(derive_seed(config.train.seed, "init", block="image")):
        return image_layers(
            task.shape,
            kind=c.encoder,
            dropout=c.dropout,
            factory=factory,
            dropout_kind=c.dropout_kind,
        )


def _gamma_over_distance(name: str, embedding: Embedding, gamma: float) -> float:
    """Return the log of the greatest squared distance of two embeddings, plus ``gamma``."""
    distance = greatest_distance(embedding.weight)
    value = round(2 * math.log(distance) + gamma, 6)  # processors may round in different ways
    if abs(value) > MAX_ABS_GAMMA:
        raise ConfigError(
            f"method.{name}: embeddings {distance:.4g} apart want {value:.2f}, and γ lies in "
            f"-{MAX_ABS_GAMMA}..{MAX_ABS_GAMMA}; give a value, or another method.embedding_norm"
        )
    return value


def build_method(
    config: RunConfig,
    task: Task,
    embedding: Embedding,
    *,
    factory: EncoderFactory | None = None,
    only: str | None = None,
) -> Method:
    """Return the initialised method of a run; each part's start depends only on seed and name.

    Args:
        config: The run.
        task: The task.
        embedding: W_Embed; the method shares it.
        factory: Function that makes the user's own encoder, for ``method.encoder = "custom"``.
        only: The only unit of NoProp-DT to build, so that training one block needs the memory of
            one; by default all.

    Raises:
        ConfigError: If the settings do not fit together or do not suit the data.
    """
    config = resolve_auto(config, embedding)
    parts = _Parts(config, task, embedding, factory, only)
    try:
        return BUILDERS[type(config.method)](config.method, parts)
    except ValueError as error:
        raise ConfigError(f"method: {error}") from error


def _discrete(c: DTConfig, parts: "_Parts") -> DiscreteNoProp:
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


def _continuous(c: CTConfig, parts: "_Parts") -> ContinuousNoProp:
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


def _flow(c: FMConfig, parts: "_Parts") -> FlowNoProp:
    unit = VelocityUnit(
        parts.continuous_block(c.time_scale, reads=c.network_reads),
        parts.readout(),
        parts.embedding,
        sigma=c.path_sigma,
        anchor=c.anchor == "always" or (c.anchor == "learned" and c.learned),
        exact=c.evidence == "exact",
        noise_only=c.train_levels == "noise",
    )
    return FlowNoProp(unit, steps=c.steps, sampler=c.sampler, tolerance=c.tolerance)


def _backprop(c: BackpropConfig, parts: "_Parts") -> BackpropChain:
    blocks = [parts.discrete_block(f"block-{t}") for t in range(1, c.num_blocks + 1)]
    return BackpropChain(ChainUnit(blocks, parts.readout(), parts.embedding, mixing=c.mixing))


def _adjoint(c: AdjointConfig, parts: "_Parts") -> NeuralODE:
    network = parts.continuous_block(c.time_scale, latent_dropout=0.0)
    readout, embedding = parts.readout(), parts.embedding
    return NeuralODE(SolverUnit(network, readout, embedding, steps=c.steps, gradient=c.gradient))


def _greedy(c: GreedyConfig, parts: "_Parts") -> GreedyStack:
    layers = parts.image_layers(c)
    units = [
        HeadedLayer(n, layer, parts.classifier(f"head-{n}", features))
        for n, (layer, features) in enumerate(layers, start=1)
    ]
    return GreedyStack(units, parts.embedding)


def _dfa(c: DFAConfig, parts: "_Parts") -> FeedbackStack:
    layers, m, seed = parts.image_layers(c), parts.task.num_classes, parts.config.train.seed
    units = [
        FeedbackLayer(n, layer, m, size, derive_seed(seed, "feedback", n))
        for n, (layer, size) in enumerate(layers, start=1)
    ]
    output = OutputLayer(parts.classifier("output", layers[-1][1]))
    return FeedbackStack(units, output, parts.embedding)


def _forward_forward(c: FFConfig, parts: "_Parts") -> ForwardForwardStack:
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


def _target_propagation(c: DTPConfig, parts: "_Parts") -> TargetStack:
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


def _local_mixer(c: LocalMixerConfig, parts: "_Parts") -> LocalMixerStack:
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


BUILDERS: Mapping[type[MethodConfig], Callable[[Any, "_Parts"], Method]] = {
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


@dataclass(frozen=True)
class _Parts:
    """Networks and readouts of a configuration, each seeded by its own name."""

    config: RunConfig
    task: Task
    embedding: Embedding
    factory: EncoderFactory | None
    only: str | None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(d,), or the shape of an image if d is the size of one (Section 2.3.2)."""
        dim, shape = self.embedding.weight.shape[1], self.task.shape
        kind = self.config.method.embedding
        as_large = len(shape) == 3 and dim == torch.Size(shape).numel() and kind != "one-hot"
        return shape if as_large or kind == "prototype" else (dim,)

    def discrete_block(self, name: str, reads: Reads = "x and z") -> DiscreteBlock:
        """Return a block of Fig. 5, left."""
        return self._network(DiscreteBlock, name, reads=reads)

    def continuous_block(
        self,
        time_scale: float,
        latent_dropout: float | None = None,
        reads: Reads = "x and z",
    ) -> ContinuousBlock:
        """Return the network of Fig. 5, right."""
        options = {"time_scale": time_scale, "latent_dropout": latent_dropout}
        return self._network(ContinuousBlock, "network", reads=reads, **options)

    def _network(self, kind: Callable[..., Block], name: str, **options: Any) -> Block:
        c = self.config.method
        assert isinstance(c, EncoderConfig)
        with seeded(derive_seed(self.config.train.seed, "init", block=name)):
            return kind(
                self.task.shape,
                self.latent_shape,
                self.task.num_classes,
                encoder=c.encoder,
                dropout=c.dropout,
                dropout_kind=c.dropout_kind,
                factory=self.factory,
                **options,
            )

    def image_layers(self, c: ImagePathConfig) -> list[tuple[nn.Module, int]]:
        """Return the layers of Fig. 5's image path, each with the size of its output."""
        layers = _image_path(self.config, self.task, self.factory)
        if c.num_layers not in ("auto", len(layers)):
            raise ConfigError(
                f"method.num_layers: wanted {len(layers)}, the layers with weights of the image "
                f"path, or auto, got {c.num_layers}"
            )
        x, sized = torch.zeros(2, *self.task.shape), list[tuple[nn.Module, int]]()
        with torch.no_grad():
            for layer in layers:
                x = layer.eval()(x)
                sized.append((layer.train(), x[0].numel()))
        return sized

    def classifier(self, name: str, features: int) -> nn.Linear:
        """Return a linear layer to m logits."""
        with seeded(derive_seed(self.config.train.seed, "init", block=name)):
            return nn.Linear(features, self.task.num_classes)

    def readout(self) -> Readout:
        """Return the readout as it is before training."""
        c = self.config.method
        assert isinstance(c, LatentConfig)
        weight = self.embedding.weight.detach()
        with seeded(derive_seed(self.config.train.seed, "init", block="readout")):
            assert c.readout_start != "auto"
            if c.readout == "softmax":
                return SoftmaxReadout(weight, c.readout_start)
            return RadialReadout(weight, c.readout_start, c.sigma)
