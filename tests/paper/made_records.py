"""Made-up lines of results, of the form that a trained cell leaves."""

from typing import Any

from noprop.config import to_mapping
from noprop.paper.cells import Cell
from noprop.paper.scale import parse_scale

MNIST_DT = Cell("mnist", "dt", "one-hot")


def made(
    cell: Cell = MNIST_DT,
    *,
    scale: str = "full",
    seed: int = 0,
    epochs: int = 100,
    train: int = 54_000,
    single: float = 99.0,
    error: float = 0.01,
    curve: tuple[dict[str, float], ...] = (),
) -> dict[str, Any]:
    modes = {
        mode: {"accuracy": value, "accuracy_se": error, "log_loss": 0.1, "log_loss_se": 0.01}
        for mode, value in {"single": single, "path-fitted": single + 0.5, "mean": single}.items()
    }
    return {
        "cell": cell.name,
        "dataset": cell.dataset,
        "method": cell.method,
        "embedding": cell.embedding,
        "readout": cell.readout,
        "scale": scale,
        "seed": seed,
        "extent": {"epochs": [epochs, 100], "train": [train, 54_000], "test": [10_000, 10_000]},
        "test": {
            "modes": modes,
            "default": "path-fitted",
            "runs": 5,
            "samples": 5,
            "examples": 10_000,
            "steps": [10.0, 50.0, single],
            "calibration_error": 0.01,
        },
        "train": {"accuracy": 99.9, "accuracy_se": 0.01, "runs": 5, "examples": 10_000},
        "training": {"seconds": 60.0, "peak_memory_mb": 500.0, "memory_counter": "resident set"},
        "curve": list(curve),
        "config": to_mapping(cell.config(parse_scale(scale), seed)),
        "environment": {"processor": "a processor", "commit": "abc", "bf16": True},
        "command": "noprop reproduce table1",
    }
