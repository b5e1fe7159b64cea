"""What is looked at where a full result is not the paper's: each check is made anew, and said."""

from noprop.build import Task, build_embedding, build_method
from noprop.config import RunConfig, from_mapping
from noprop.data import SOURCES, Normalization
from noprop.experiments.cells import Cell
from noprop.experiments.parameters import block_parameters, printed_millions
from noprop.experiments.records import Summary
from noprop.method_config import CTConfig, DTConfig, FMConfig
from noprop.methods.dt import DiscreteNoProp

__all__ = ["checks"]


def checks(summary: Summary) -> list[str]:
    """Parameter count, settings of Table 4, schedule, update order and inference, each in words."""
    cell = summary.cell
    config = from_mapping(summary.records[-1]["config"])
    return [
        _parameters(cell),
        _settings(cell, config),
        *_schedule(config, cell),
        _order(config),
        _inference(config),
    ]


def _parameters(cell: Cell) -> str:
    count, printed = block_parameters(cell), printed_millions(cell)
    if printed is None:
        return f"{count:,} parameters a block, of which Table 5 says nothing"
    agrees = "as" if f"{count / 1e6:.2f}" == f"{printed:.2f}" else "not as"
    return f"{count:,} parameters a block, {agrees} in Table 5 ({printed:.2f}M)"


def _settings(cell: Cell, config: RunConfig) -> str:
    names = ("batch_size", "epochs", "optimizer", "lr", "weight_decay")
    ours, paper = config.train, cell.recipe.train
    others = [n for n in names if getattr(ours, n) != getattr(paper, n)]
    if others:
        return "unlike Table 4: " + ", ".join(f"{n} {getattr(ours, n)}" for n in others)
    return "batch, epochs, optimizer, learning rate and weight decay of Table 4"


def _schedule(config: RunConfig, cell: Cell) -> list[str]:
    if not isinstance(config.method, DTConfig):
        return []
    source = SOURCES[cell.dataset]
    channels = source.shape[0]
    task = Task(
        source.shape,
        tuple(map(str, range(source.num_classes))),
        Normalization((0.0,) * channels, (1.0,) * channels),
    )
    method = build_method(config, task, build_embedding(config, task, None), only="readout")
    assert isinstance(method, DiscreteNoProp)
    rising = bool((method.gamma.diff() < 0).all())
    return ["SNR(t) − SNR(t−1) > 0 for every t" if rising else "SNR does NOT rise at every t"]


def _order(config: RunConfig) -> str:
    if not isinstance(config.method, DTConfig):
        return "all parameters in one step"
    if config.train.order == "sequential":
        return "blocks one after another in each epoch (Algorithm 1)"
    return "all blocks on each mini-batch, not Algorithm 1"


def _inference(config: RunConfig) -> str:
    """One chain from noise; that it does not read the label is a test of every method."""
    m = config.method
    steps = getattr(m, "num_blocks", None) or getattr(m, "steps", None)
    noise = isinstance(m, DTConfig) or (isinstance(m, CTConfig) and m.sampler == "ancestral")
    how = "with noise at every step" if noise else "without noise on the way"
    end = "the nearest embedding" if isinstance(m, FMConfig) else "the readout of z_T"
    return f"one chain from z_0 ~ N(0, I), T = {steps}, {how}, then {end}"
