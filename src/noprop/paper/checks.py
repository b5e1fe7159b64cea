"""Checks of a full result that differs from the paper's, each made again and described."""

from collections.abc import Iterable

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, from_mapping, replace
from noprop.data import SOURCES, Normalization
from noprop.errors import ConfigError
from noprop.methods.base import Method
from noprop.methods.dt import DiscreteNoProp
from noprop.networks import ContinuousBlock, DiscreteBlock
from noprop.paper.cells import Cell
from noprop.paper.numbers import EARLIER, EPOCHS, SETTINGS
from noprop.paper.parameters import printed_millions
from noprop.paper.records import Summary
from noprop.task import Task

__all__ = ["checks"]

# Choices that the paper does not have, with the values of its recipes.
METHOD_CHOICES = {
    "evidence": "learned",
    "network_reads": "x and z",
    "train_levels": "all",
    "step": "mean",
}
TRAIN_CHOICES = {"schedule": "constant", "label_smoothing": 0.0, "clip": 0.0, "ema": 0.0}


def checks(summary: Summary) -> list[str]:
    """Describe parameters, settings, schedule, update order, inference, images and precision.

    All are taken from the configurations in the records. If they differ between seeds, all are
    listed.
    """
    found: dict[str, None] = {}
    for record in summary.records:
        try:
            config = from_mapping(record["config"])
        except ConfigError as error:
            found[f"nothing: the record's configuration is of another version ({error})"] = None
            continue
        found |= dict.fromkeys(_checks_of(summary.cell, config))
        precision = "bf16" if record["environment"].get("bf16") else "float32"
        found[f"{record['extent']['train'][0]:,} training images, {precision}"] = None
    return list(found)


def _checks_of(cell: Cell, config: RunConfig) -> Iterable[str]:
    method = _built(cell, config)
    if cell.method in EARLIER:
        count = sum(p.numel() for unit in method.units for p in unit.parameters)
        yield f"{count:,} parameters, {config.train.epochs} epochs; the paper quotes this number"
        return
    yield _parameters(cell, method)
    yield _settings(cell, config)
    if isinstance(method, DiscreteNoProp):
        rising = bool((method.gamma.diff() < 0).all())
        yield "SNR(t) − SNR(t−1) > 0 for every t" if rising else "SNR does NOT rise at every t"
    yield _order(config)
    yield _inference(config)


def _built(cell: Cell, config: RunConfig) -> Method:
    """Build the method of a configuration; of DT only one block."""
    source = SOURCES[cell.dataset]
    channels, names = source.shape[0], tuple(map(str, range(source.num_classes)))
    task = Task(source.shape, names, Normalization((0.0,) * channels, (1.0,) * channels))
    config = replace(config, {"train.device": "cpu"})
    return build_method(config, task, build_embedding(config, task, None), only="block-1")


def _parameters(cell: Cell, method: Method) -> str:
    modules = method.units[0].module.modules()
    block = next(m for m in modules if isinstance(m, DiscreteBlock | ContinuousBlock))
    count, printed = sum(p.numel() for p in block.parameters()), printed_millions(cell)
    if printed is None:
        return f"{count:,} parameters a block, not in Table 5"
    agrees = "as" if f"{count / 1e6:.2f}" == f"{printed:.2f}" else "NOT as"
    return f"{count:,} parameters a block, {agrees} in Table 5 ({printed:.2f}M)"


def _settings(cell: Cell, config: RunConfig) -> str:
    m, paper = config.method, dict(SETTINGS[cell.method])
    if epochs := EPOCHS[cell.method].get(cell.dataset):
        paper["epochs"] = epochs
    ours = {"T": m.chain_length, "eta": getattr(m, "eta", None)}
    ours |= {name: getattr(config.train, name, None) for name in paper if name not in ours}
    others = [f"{n} {ours[n]} for {v}" for n, v in paper.items() if ours[n] != v]
    if (start := getattr(m, "readout_start", "random")) != "random":
        others.append(f"readout from the {start} start for torch's default")
    if (dropout := getattr(m, "dropout", 0.2)) != 0.2:
        others.append(f"dropout {dropout} for 0.2")
    if config.train.crop_padding or config.train.flip or config.train.cutout:
        others.append("images augmented")
    for part, names in ((m, METHOD_CHOICES), (config.train, TRAIN_CHOICES)):
        found = {name: getattr(part, name, value) for name, value in names.items()}
        others += [f"{n} {found[n]} for {v}" for n, v in names.items() if found[n] != v]
    if others:
        return "unlike Table 4: " + ", ".join(others)
    return f"settings of Table 4 ({', '.join(paper)}, readout start, dropout, augmentation)"


def _order(config: RunConfig) -> str:
    if len(config.method.unit_names) == 1:
        return "all parameters in one step"
    if config.train.order == "sequential":
        return "blocks one after another in each epoch (Algorithm 1)"
    return "all blocks on each mini-batch, not Algorithm 1"


def _inference(config: RunConfig) -> str:
    """Describe the chain; the tests of each method show that it does not read the label."""
    m = config.method
    how = "with noise at every step" if m.noise_at_every_step else "without noise on the way"
    return f"one chain from z_0 ~ N(0, I), T = {m.chain_length}, {how}, then {m.chain_end}"
