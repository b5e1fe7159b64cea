"""Table 5: parameters of one block, without readout, W_Embed and schedule."""

import torch

from noprop.data import SOURCES
from noprop.networks import ContinuousBlock, DiscreteBlock
from noprop.paper.cells import Cell
from noprop.paper.numbers import DATASETS, EMBEDDINGS, PARAMETERS_MILLIONS

__all__ = ["block_parameters", "parameter_rows", "printed_millions"]


def block_parameters(cell: Cell) -> int:
    """Count the parameters of one block of DT and backprop, or of the network of other methods."""
    source = SOURCES[cell.dataset]
    latent = {"one-hot": (source.num_classes,), "d20": (20,)}.get(cell.embedding, source.shape)
    kind = DiscreteBlock if cell.method in ("dt", "backprop") else ContinuousBlock
    with torch.device("meta"):  # without memory
        block = kind(source.shape, latent, source.num_classes)
    return sum(p.numel() for p in block.parameters())


def printed_millions(cell: Cell) -> float | None:
    """Return the number that Table 5 prints for a cell, in millions, or None."""
    time = "dt" if cell.method in ("dt", "backprop") else "ct"
    return PARAMETERS_MILLIONS[time].get(cell.dataset, {}).get(cell.embedding)


def parameter_rows() -> list[tuple[Cell, int, float]]:
    """Return each row of Table 5: the cell, the counted parameters, and the printed millions."""
    cells = [
        Cell(dataset, method, embedding)
        for method in PARAMETERS_MILLIONS
        for dataset in DATASETS
        for embedding in EMBEDDINGS
    ]
    rows = [(cell, printed_millions(cell)) for cell in cells]
    return [(cell, block_parameters(cell), m) for cell, m in rows if m is not None]
