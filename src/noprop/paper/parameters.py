"""Table 5: the parameters of one block, counted; readout, W_Embed and schedule are not of it."""

import torch

from noprop.data import SOURCES
from noprop.networks import ContinuousBlock, DiscreteBlock
from noprop.paper.cells import Cell
from noprop.paper.numbers import DATASETS, EMBEDDINGS, PARAMETERS_MILLIONS

__all__ = ["block_parameters", "parameter_rows", "printed_millions"]


def block_parameters(cell: Cell) -> int:
    """Parameters of a cell's block: of DT and backprop one of ten, of the others the network."""
    source = SOURCES[cell.dataset]
    latent = {"one-hot": (source.num_classes,), "d20": (20,)}.get(cell.embedding, source.shape)
    kind = DiscreteBlock if cell.method in ("dt", "backprop") else ContinuousBlock
    with torch.device("meta"):  # counted, not made
        block = kind(source.shape, latent, source.num_classes)
    return sum(p.numel() for p in block.parameters())


def printed_millions(cell: Cell) -> float | None:
    """What Table 5 prints for it."""
    time = "dt" if cell.method in ("dt", "backprop") else "ct"
    return PARAMETERS_MILLIONS[time].get(cell.dataset, {}).get(cell.embedding)


def parameter_rows() -> list[tuple[Cell, int, float]]:
    """Each row of Table 5: the cell, parameters counted, and millions printed."""
    cells = [
        Cell(dataset, method, embedding)
        for method in PARAMETERS_MILLIONS
        for dataset in DATASETS
        for embedding in EMBEDDINGS
    ]
    rows = [(cell, printed_millions(cell)) for cell in cells]
    return [(cell, block_parameters(cell), m) for cell, m in rows if m is not None]
