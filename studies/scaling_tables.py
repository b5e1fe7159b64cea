"""Tables and figures of ``scaling.py``, and what they assume of machines and networks."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from noprop.report.pictures import draw, save_pictures
from scaling_model.cluster import Machine, Workload
from scaling_model.methods import (
    Forecast,
    best_pipeline,
    data_parallel,
    noprop_fixed,
    noprop_learned,
)
from scaling_runs import BATCHES, make_block
from study import markdown

# MNIST's block of Table 5, the paper's 100 epochs and batch, on the 54,000 images trained on.
SMALL = Workload(
    blocks=1, parameters=919_946, examples=54_000, epochs=100, batch=128, classes=10, dim=20,
    activations=0.0, example=784.0,
)  # fmt: skip
# Blocks of ResNet-50's size (He et al. 2016: 25.6 million parameters, 3.8e9 multiply-adds) on
# ImageNet's 1,281,167 images; bytes of an image and d are assumptions.
LARGE = Workload(
    blocks=1, parameters=25_600_000, examples=1_281_167, epochs=90, batch=1024, classes=1000,
    dim=512, activations=0.0, example=110_000.0,
)  # fmt: skip
# H100 SXM by its data sheet: 989e12 operations/s in bf16, 3.35e12 bytes/s. Llama 3's training used
# 38 to 43 % of the former; Adam's step moves 28 bytes a parameter.
H100 = Machine(
    forward=2 * 3.8e9 / (0.4 * 989e12),
    backward=4 * 3.8e9 / (0.4 * 989e12),
    update=28 * 25.6e6 / 3.35e12,
)
# Llama 3 (arXiv:2407.21783): 419 unexpected interruptions in 54 days of 16,384 GPUs.
LLAMA_MTBF_HOURS = 54 * 24 * 16_384 / 419
# Assumptions, not published figures.
RESTART, STORAGE = 300.0, 2e8  # seconds; bytes a second of a machine's checkpoint
LATENCY = {1.0: 50e-6, 100.0: 10e-6}  # seconds, by Gbit/s; else the first
GREAT_BATCH = 8192  # Goyal et al. 2017: as accurate on ImageNet up to there

Method = Callable[[Workload, Machine, int], Forecast]


def data_parallel_great(workload: Workload, machine: Machine, machines: int) -> Forecast:
    """The batch grows with P up to 8192 (and the epochs stay): fewer steps, fewer all-reduces."""
    batch = max(workload.batch, min(workload.batch * machines, GREAT_BATCH, workload.examples))
    grown = dataclasses.replace(workload, batch=batch)
    return data_parallel(grown, machine, machines, "halving", 1.0)


# The rivals at their best: the all-reduce of fewest messages, all of it beside the backward pass.
METHODS: dict[str, Method] = {
    "NoProp, fixed": lambda w, m, p: noprop_fixed(w, m, p, "halving"),
    "NoProp, learned": lambda w, m, p: noprop_learned(w, m, p, "halving"),
    "data parallel": lambda w, m, p: data_parallel(w, m, p, "halving", 1.0),
    "data parallel, batch to 8192": data_parallel_great,
    "pipeline, best S and M": lambda w, m, p: best_pipeline(w, m, p, "halving"),
}
INK = dict(
    zip(METHODS, ("tab:blue", "tab:cyan", "tab:gray", "tab:green", "tab:orange"), strict=True)
)
LINES = dict(zip(METHODS, ("-", "--", "-", (0, (1, 1)), "-."), strict=True))  # some coincide


def scenario(found: dict[str, Any], name: str) -> tuple[Workload, Machine]:
    """One core as measured with Fig. 5's MNIST block, or an H100 by its data sheet."""
    if name == "large":
        return LARGE, H100
    core = Machine(**found["machines"]["alone"])
    return dataclasses.replace(SMALL, activations=kept_bytes()), core


def placed(machine: Machine, gbit: float, mtbf_hours: float) -> Machine:
    """On a network, with failures."""
    return dataclasses.replace(
        machine,
        bandwidth=gbit * 1e9 / 8,
        latency=LATENCY.get(gbit, 50e-6),
        mtbf=mtbf_hours * 3600,
        restart=RESTART,
        storage=STORAGE,
    )


def kept_bytes(batch: int = 16) -> float:
    """Bytes that a block of Fig. 5 keeps for its backward pass, an example; weights not counted."""
    block, kept = make_block(), {}
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(torch.randn(batch, 10), torch.randn(batch, 1, 28, 28))
        out.sum()
    return sum(kept.values()) / batch


# -- tables ----------------------------------------------------------------------------------------


def constants_table(found: dict[str, Any]) -> str:
    """Return fitted constants, alone and beside each other, and the spread at each batch."""
    words = {
        "forward": "forward, ms a block and example",
        "backward": "backward, the same",
        "call": "both passes whatever the batch, ms",
        "update": "update, ms a block",
    }
    names = ("alone", "beside")
    rows = [
        [what, *(f"{1e3 * found['machines'][name][field]:.3g}" for name in names)]
        for field, what in words.items()
    ]
    for batch in BATCHES:
        cells = []
        for name in names:
            row = found["constants"][name][str(batch)]
            values = [sum(row[p][k] for p in row) for k in ("median", "least", "greatest")]
            cells.append("{:.3g} ({:.3g}-{:.3g})".format(*(1e3 * v for v in values)))
        rows.append([f"step of a block, batch {batch}, ms", *cells])
    link = found["machines"]["beside"]
    speed = f"{1e6 * link['latency']:.0f}; {link['bandwidth'] / 1e9:.2g}"
    rows.append(["latency, µs; bandwidth each way, GB/s", "", speed])
    return markdown(["constant", "alone", "beside another"], rows)


def check_table(found: dict[str, Any]) -> str:
    """Return predicted beside measured, and the prediction's error against least and median."""
    rows = []
    for name, row in found["runs"].items():
        measured = [row["measured"][k] for k in ("least", "median", "greatest")]
        errors = [f"{100 * (row['predicted'] / m - 1):+.0f} %" for m in measured[:2]]
        rows.append([name, *(_short(1e3 * v) for v in (*measured, row["predicted"])), *errors])
    head = ["run", "measured, ms: least", "median", "greatest", "predicted"]
    return markdown([*head, "error", "of the median"], rows)


def _short(value: float) -> str:
    """Return three digits, more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def predict_text(
    found: dict[str, Any],
    name: str,
    blocks: Sequence[int],
    machines: Sequence[int],
    gbits: Sequence[float],
    hours: Sequence[float],
) -> str:
    """Return a table of hours for every network, and one of traffic and memory."""
    workload, machine = scenario(found, name)

    def table(title: str, cell: Callable[[Method, Workload, int], str]) -> str:
        rows = [
            [str(t), str(p), *(cell(m, work, p) for m in METHODS.values())]
            for t, work in ((t, dataclasses.replace(workload, blocks=t)) for t in blocks)
            for p in machines
        ]
        return f"{title}\n\n{markdown(['T', 'P', *METHODS], rows)}"

    def hours_of(gbit: float) -> Callable[[Method, Workload, int], str]:
        on = [placed(machine, gbit, h) for h in hours]
        return lambda method, work, p: " / ".join(
            _short(method(work, m, p).seconds / 3600) for m in on
        )

    def traffic(method: Method, work: Workload, p: int) -> str:
        f = method(work, placed(machine, gbits[-1], math.inf), p)
        return " / ".join(map(_short, (f.sent / 1e6, f.total_sent / 1e9, f.memory / 1e6)))

    failures = " / ".join("none" if math.isinf(h) else f"every {h:,.0f} h" for h in hours)
    parts = [
        table(f"{gbit:g} Gbit/s; hours with failures of a machine: {failures}", hours_of(gbit))
        for gbit in gbits
    ]
    what = "MB a step out of the busiest machine / GB of all machines in all steps / MB of memory"
    return "\n\n".join([*parts, table(what, traffic)])


# -- figures ---------------------------------------------------------------------------------------


def draw_figures(found: dict[str, Any], folder: Path) -> list[Path]:
    """Hours over machines, what failures cost, and predicted against measured; PNG files."""
    workload, machine = scenario(found, "small")
    drawings = {
        "scaling-time": lambda figure: _times(figure, workload, machine),
        "scaling-failures": lambda figure: _failures(figure, workload, machine),
        "scaling-check": lambda figure: _check(figure, found["runs"]),
    }
    return save_pictures([draw(name, drawing) for name, drawing in drawings.items()], folder)


def _counts() -> list[int]:
    """1 to 1000, about evenly on a logarithmic axis, T among them."""
    return sorted({round(10 ** (i / 12)) for i in range(37)})


def _times(figure: Any, workload: Workload, machine: Machine) -> None:
    figure.set_size_inches(9, 6)
    axes = figure.subplots(2, 3, sharex=True, sharey="col")
    for row, gbit in zip(axes, (1.0, 100.0), strict=True):
        for axis, t in zip(row, (10, 100, 1000), strict=True):
            work = dataclasses.replace(workload, blocks=t)
            on = placed(machine, gbit, math.inf)
            for name, method in METHODS.items():
                hours = [method(work, on, p).seconds / 3600 for p in _counts()]
                axis.plot(_counts(), hours, color=INK[name], linestyle=LINES[name], label=name)
            alone = work.alone(on) / 3600
            axis.plot([1, 1000], [alone, alone / 1000], ":", color="black", label="one machine / P")
            axis.axvline(t, color="lightgray", linewidth=1, zorder=0)
            axis.set(xscale="log", yscale="log", title=f"T = {t}, {gbit:g} Gbit/s")
    for axis in axes[1]:
        axis.set_xlabel("machines P (grey line: P = T)")
    for axis in axes[:, 0]:
        axis.set_ylabel("hours")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _failures(figure: Any, workload: Workload, machine: Machine) -> None:
    """Time with failures over time without, against their rate and against P."""
    left, right = figure.subplots(1, 2, sharey=True)
    work = dataclasses.replace(workload, blocks=100)
    hours = [10 ** (i / 8) for i in range(4, 33)]
    for name, method in METHODS.items():
        ratio = []
        for h in hours:
            found = method(work, placed(machine, 100.0, h), 100)
            ratio.append(found.seconds / found.work)
        left.plot(hours, ratio, color=INK[name], linestyle=LINES[name], label=name)
        ratio = []
        for p in _counts():
            found = method(dataclasses.replace(work, blocks=1000), placed(machine, 100.0, 24.0), p)
            ratio.append(found.seconds / found.work)
        right.plot(_counts(), ratio, color=INK[name], linestyle=LINES[name], label=name)
    left.set(xscale="log", xlabel="hours between failures of a machine", title="T = P = 100")
    left.set(ylabel="time with failures / without", ylim=(0.95, 4))
    right.set(xscale="log", xlabel="machines P", title="T = 1000, a failure every 24 h")
    left.legend()


def _check(figure: Any, runs: dict[str, Any]) -> None:
    axis = figure.subplots()
    places = range(len(runs), 0, -1)
    for place, row in zip(places, runs.values(), strict=True):
        least, median, most = (1e3 * row["measured"][k] for k in ("least", "median", "greatest"))
        axis.plot([least, most], [place, place], color="tab:gray", linewidth=2)
        axis.plot(least, place, "|", color="black", markersize=10)
        axis.plot(median, place, "o", color="tab:gray", markersize=5)
        axis.plot(1e3 * row["predicted"], place, "x", color="tab:blue", markersize=8)
    marks = (("|", "black", "measured, least"), ("o", "tab:gray", "median, and range"),
             ("x", "tab:blue", "predicted"))  # fmt: skip
    for marker, color, label in marks:
        axis.plot([], [], marker, color=color, label=label)
    axis.set_yticks(list(places), list(runs), fontsize=8)
    axis.set(xscale="log", xlabel="milliseconds a step", title="two processes on two cores")
    axis.grid(axis="x", which="both", color="0.9")
    axis.legend()
