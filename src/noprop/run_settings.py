"""The settings of the data, the training and the evaluation: frozen, validated dataclasses.

Those of each method are in :mod:`noprop.chain_settings` and :mod:`noprop.stack_settings`. This
module does not import torch.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from noprop.settings import NO_OTHER_FIELDS, Steps, option

__all__ = ["MAX_SAMPLES", "DataConfig", "EvaluationConfig", "TrainConfig"]

MAX_SAMPLES = 1000  # chains run at the same time
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[
    int, Field(ge=0, le=1024), BeforeValidator(lambda value: 0 if value == "auto" else value)
]
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class DataConfig:
    """The examples and their division."""

    dataset: Text = option(
        "digits", "name, folder of class folders, .npz file, table, or hf: and a name of the Hub"
    )
    label: Text | None = option(
        None, "column of a table with the labels; label, labels, target, class or y unless given"
    )
    image_size: Annotated[int, Field(ge=1, le=1024)] | None = option(
        None, "side in pixels to which a folder's images are resized"
    )
    color: Literal["auto", "grey", "rgb"] = option("auto", "how a folder's images are read")
    validation: Annotated[float, Field(ge=0, lt=1)] = option(
        0.1, "fraction of the training set held out for validation, stratified"
    )
    train_size: Positive | None = option(
        None, "number of training examples, stratified; all unless given"
    )
    test_size: Positive | None = option(
        None, "number of test examples, stratified, the same for every seed; all unless given"
    )
    features: Annotated[str, Field(pattern=r"^timm:[\w.]+(:random)?$", max_length=200)] | None = (
        option(
            None,
            "read images through a frozen network, timm:NAME, whose features are kept; "
            "timm:NAME:random has random weights",
        )
    )
    normalization: Literal["standard", "unit", "symmetric"] = option(
        "standard", "inputs: mean 0 and deviation 1 per channel, or pixels in 0..1 or -1..1"
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class TrainConfig:
    """The training of the units."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = option(5, "passes over the training set")
    extended_from: Annotated[int, Field(ge=1, le=1_000_000)] | None = option(
        None, "epochs first asked for, of a run that is trained longer; set by --resume --epochs"
    )
    init: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = option(
        None, "SHA-256 of the weights that the units start from; set by --init"
    )
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = option(128, "examples per step")
    order: Literal["sequential", "parallel"] = option(
        "sequential",
        "Algorithm 1 (block after block in each epoch), or all blocks on each batch; of no effect "
        "where units read each other's outputs, or there is one",
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = option(
        "adamw", "optimizer of each unit; rmsprop: centred, ε = √1e-3, averages over 20 updates"
    )
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = option(1e-3, "learning rate")
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = option(
        0,
        "epochs without a lower validation loss after which a unit stops, with its best weights; "
        "units that are trained together stop together; 0: never",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "sgd, rmsprop: factor per update of the sum of earlier steps"
    )
    schedule: Literal["constant", "linear", "cosine", "one-cycle", "constant-linear"] = option(
        "constant",
        "learning rate of a unit: constant, a line to 0, half a cosine to 0, a linear rise and "
        "then half a cosine, or constant for half of the updates and then linear to 0",
    )
    warmup: Annotated[float, Field(gt=0, lt=1)] = option(
        0.25, "one-cycle: fraction of a unit's updates in which the learning rate rises"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(1e-3, "weight decay")
    crop_padding: Annotated[int, Field(ge=0, le=256)] = option(
        0, "augmentation: padding in pixels of random crops"
    )
    flip: bool = option(False, "augmentation: mirror half of the images")
    cutout: Annotated[int, Field(ge=0, le=1024)] = option(
        0, "augmentation: side in pixels of a black square at a random place"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0, "objective cross-entropy: probability that is spread over all classes"
    )
    class_weights: Literal["none", "balanced"] = option(
        "none",
        "weights of examples in the losses: equal, or balanced over the classes (not ff, dtp)",
    )
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        0.0, "greatest norm of a unit's gradient; 0: no limit"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0,
        "decay per update of a moving average of each unit's weights, which then predicts; 0: the "
        "last weights predict",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = option(0, "seed of all random numbers")
    device: Text = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bf16"] = option(
        "auto", "auto: bf16 if the device has instructions for it"
    )
    channels_last: bool = option(True, "memory order of images; faster on CPU and CUDA")
    shards: Count = option(
        0,
        "parts of a mini-batch, each batch-normalised separately; auto or 0: one, or with torchrun "
        "the number of processes that share a unit",
    )
    workers: Count = option(0, "worker processes; auto or 0: one per core")
    threads: Count = option(
        0, "threads of each process; auto or 0: one, or all if the method is a single unit"
    )
    offload: bool = option(
        False, "learned embeddings: keep one block in memory, and the others in files of the run"
    )
    checkpoint_every: Annotated[float, Field(ge=0, allow_inf_nan=False)] = option(
        20.0, "seconds of training between checkpoints"
    )
    keep_every: Annotated[int, Field(ge=0, le=1_000_000)] = option(
        0,
        "epochs between permanent copies of the weights; the last epoch has one too; 0: no copies",
    )


@dataclass(frozen=True, config=NO_OTHER_FIELDS)
class EvaluationConfig:
    """The evaluation of a trained run."""

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = option(5, "K, chains to average")
    runs: Steps = option(5, "inference runs of each mean ± standard error")
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = option(500, "examples per batch")
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["full", "off"] = option(
        0.2,
        "evaluation after training: greatest cost as a fraction of the training's, full for no "
        "limit, or off; noprop evaluate has no limit",
    )
