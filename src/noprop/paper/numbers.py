"""The paper's numbers: Tables 1 to 5, as printed.

Table 1 also quotes earlier methods, some without a standard error or a training accuracy.

Accuracies are in percent. The paper calls the numbers after ± standard errors of 15 values, 3 seeds
× 5 inference runs. But 15 values in 0..100 with a mean of 75.66 have a standard error of at most
11.5, and Table 2 prints 33.67. So all of them may be standard deviations.
"""

import math
from dataclasses import dataclass

__all__ = [
    "DATASETS",
    "EARLIER",
    "EMBEDDINGS",
    "EPOCHS",
    "MEMORY_GB",
    "METHODS",
    "PARAMETERS_MILLIONS",
    "SETTINGS",
    "TABLE1",
    "TABLE2",
    "Number",
]

DATASETS = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny ImageNet",
}
METHODS = {
    "backprop": "Backprop",
    "dt": "NoProp-DT",
    "adjoint": "Adjoint",
    "ct": "NoProp-CT",
    "fm": "NoProp-FM",
}
# Methods without back-propagation through the whole network that Table 1 quotes, by the recipe that
# trains them. It quotes Forward-Forward without supervision.
EARLIER = {
    "ff-unsupervised": "Forward-Forward",
    "ff": "Forward-Forward, supervised",
    "lg-fg-a": "Forward Gradient",
    "dtp": "Difference Target Prop",
}
EMBEDDINGS = {"one-hot": "one-hot", "d20": "dim=20", "prototype": "prototype"}


@dataclass(frozen=True)
class Number:
    """A mean and its standard error; for the paper's numbers, the value printed after ±, or NaN."""

    mean: float
    error: float


def _quoted(accuracy: float | None) -> Number | None:
    """Return the number of another's work, which Table 1 quotes without a standard error."""
    return None if accuracy is None else Number(accuracy, math.nan)


def _numbers(text: str) -> list[tuple[Number, Number]]:
    """Parse ``100.0±0.0 99.46±0.06 …``: train and test accuracy of each data set in turn."""
    values = [Number(*map(float, part.split("±"))) for part in text.split()]
    return list(zip(values[::2], values[1::2], strict=True))


_ROWS = {
    ("backprop", "one-hot"): "100.0±0.0 99.46±0.06 99.98±0.01 79.92±0.14 98.63±1.34 45.85±2.07",
    ("backprop", "d20"): "99.99±0.0 99.43±0.03 99.96±0.02 79.3±0.52 94.28±7.43 46.57±0.87",
    ("backprop", "prototype"): "99.99±0.01 99.44±0.05 99.97±0.01 79.58±0.44 99.19±0.71 47.8±0.19",
    ("dt", "one-hot"): "99.92±0.01 99.47±0.05 95.02±0.19 79.25±0.28 84.97±0.67 45.93±0.46",
    ("dt", "d20"): "99.93±0.01 99.49±0.04 94.95±0.09 79.12±0.37 83.25±0.39 45.19±0.22",
    ("dt", "prototype"): "99.97±0.0 99.54±0.04 97.23±0.11 80.54±0.2 90.7±0.14 46.06±0.25",
    ("adjoint", "one-hot"): "98.7±0.13 98.62±0.14 70.64±0.49 66.78±0.76 26.72±0.81 25.03±0.7",
    ("ct", "one-hot"): "97.88±0.61 97.84±0.71 97.31±0.84 73.35±0.55 75.1±3.43 33.66±0.5",
    ("ct", "d20"): "97.7±0.42 97.7±0.51 94.88±3.08 71.77±2.47 74.22±2.33 33.99±1.08",
    ("ct", "prototype"): "97.18±1.02 97.17±0.94 86.2±7.34 66.54±3.63 40.88±10.72 21.31±4.17",
    ("fm", "one-hot"): "99.97±0.0 99.21±0.09 98.46±0.4 73.14±0.9 12.69±10.4 6.38±4.9",
    ("fm", "d20"): "99.99±0.0 99.29±0.05 99.49±0.15 73.5±0.28 83.49±4.62 31.14±0.52",
    ("fm", "prototype"): "99.27±0.09 98.52±0.16 99.8±0.03 75.18±0.57 96.37±1.09 37.57±0.32",
}

# Accuracy on the training and on the test part, by (method, embedding) and data set.
TABLE1: dict[tuple[str, str], dict[str, tuple[Number | None, Number | None]]] = {
    row: dict(zip(("mnist", "cifar10", "cifar100"), _numbers(text), strict=True))
    for row, text in _ROWS.items()
}

TABLE1 |= {
    (method, "one-hot"): {d: (_quoted(train), _quoted(test)) for d, (train, test) in quoted.items()}
    for method, quoted in {
        "ff-unsupervised": {"mnist": (None, 98.63)},
        "ff": {"mnist": (None, None)},
        "lg-fg-a": {"mnist": (100.0, 97.45), "cifar10": (80.61, 69.32)},
        "dtp": {"mnist": (None, 98.06), "cifar10": (None, 50.71)},
    }.items()
}

TABLE2: dict[tuple[str, str], dict[str, tuple[Number | None, Number | None]]] = {
    row: {"tiny-imagenet": _numbers(text)[0]}
    for row, text in {
        ("backprop", "one-hot"): "75.66±33.67 23.83±6.7",
        ("backprop", "prototype"): "99.82±0.02 31.26±0.1",
        ("dt", "one-hot"): "69.78±1.71 26.55±0.4",
        ("dt", "prototype"): "78.45±0.97 25.65±0.19",
    }.items()
}

# Table 3: GPU memory of the process in GB, one-hot embeddings. It lacks NoProp-DT on MNIST.
MEMORY_GB: dict[str, dict[str, float]] = {
    "backprop": {"mnist": 0.87, "cifar10": 1.17, "cifar100": 1.73},
    "dt": {"cifar10": 0.64, "cifar100": 1.23},
    "adjoint": {"mnist": 2.32, "cifar10": 6.23, "cifar100": 6.45},
    "ct": {"mnist": 1.05, "cifar10": 0.45, "cifar100": 0.50},
    "fm": {"mnist": 1.06, "cifar10": 0.44, "cifar100": 0.49},
}

# Table 4: epochs by method and data set, and the settings that all data sets share. T is that of
# inference, and for the adjoint method also of training. η is that of Eq. 8 or 9.
EPOCHS: dict[str, dict[str, int]] = {
    "backprop": {"mnist": 100, "cifar10": 150, "cifar100": 150},
    "dt": {"mnist": 100, "cifar10": 150, "cifar100": 150},
    "adjoint": {"mnist": 2, "cifar10": 4, "cifar100": 4},
    "ct": {"mnist": 100, "cifar10": 500, "cifar100": 1000},
    "fm": {"mnist": 100, "cifar10": 500, "cifar100": 1000},
}
SETTINGS: dict[str, dict[str, float | str]] = {
    method: {
        "batch_size": 128,
        "optimizer": "adam" if method in ("ct", "fm") else "adamw",
        "lr": 0.001,
        "weight_decay": 0.001,
        "T": 10 if method in ("backprop", "dt") else 1000,
        **({"eta": {"dt": 0.1, "ct": 1.0}[method]} if method in ("dt", "ct") else {}),
    }
    for method in ("backprop", "dt", "adjoint", "ct", "fm")
}

# Table 5: parameters of one block in millions, for discrete and continuous time, by data set and
# embedding. It has no dim=20 and no continuous time for Tiny ImageNet.
PARAMETERS_MILLIONS: dict[str, dict[str, dict[str, float]]] = {
    "dt": {
        "mnist": {"one-hot": 0.92, "d20": 0.92, "prototype": 1.40},
        "cifar10": {"one-hot": 1.22, "d20": 1.22, "prototype": 1.99},
        "cifar100": {"one-hot": 1.25, "d20": 1.23, "prototype": 2.00},
        "tiny-imagenet": {"one-hot": 2.45, "prototype": 4.30},
    },
    "ct": {
        "mnist": {"one-hot": 0.87, "d20": 0.87, "prototype": 1.48},
        "cifar10": {"one-hot": 1.16, "d20": 1.17, "prototype": 2.07},
        "cifar100": {"one-hot": 1.20, "d20": 1.18, "prototype": 2.08},
    },
}
