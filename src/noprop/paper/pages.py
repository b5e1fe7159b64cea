"""A Markdown page for each experiment, with tables and figures, made from the records alone."""

from collections.abc import Sequence
from pathlib import Path

from noprop.errors import ConfigError
from noprop.files import write_whole
from noprop.paper.cells import EXPERIMENTS
from noprop.paper.figures import draw_experiment
from noprop.paper.numbers import DATASETS, EMBEDDINGS, TABLE1, TABLE2
from noprop.paper.parameters import parameter_rows
from noprop.paper.records import Summary, read_records, summaries
from noprop.paper.tables import accuracy_tables, markdown, memory_table, more_table
from noprop.report.pictures import save_pictures

__all__ = ["page", "parameter_table", "write_pages"]

TITLES = {
    "table1": "Table 1: accuracy on MNIST, CIFAR-10 and CIFAR-100",
    "table2": "Table 2: accuracy on Tiny ImageNet",
    "table3": "Table 3: memory of training",
    "table5": "Table 5: parameters of one block",
    "fig3": "Fig. 3: prototypes before and after training",
    "fig4": "Fig. 4: accuracy against time",
    "fig6": "Fig. 6: the two readouts",
    "fig7": "Fig. 7: what embeddings of an image's size start from",
}
ACCURACY = """\
Accuracy in %. *One chain* is the paper's protocol, *averaged* is our default prediction, and *mean
chain* is without noise. Our values are the mean ± standard error over all inference runs of all
seeds, as the paper states for its own. (Some of the paper's are too large for standard errors and
may be standard deviations: docs/reproduction.md.) Runs of one seed without noise are equal and
count as one. A row is *full* if it has the paper's epochs, steps and runs, and all training images
except a held-out tenth. Other rows state their scale and do not reproduce the paper's value.
*Train* is measured on as many training images as the test part has."""
NOISELESS = """\
Forward-Forward, Forward Gradient and Difference Target Prop draw no noise and have no chain: their
one prediction is under *one chain* and *averaged*."""


def write_pages(experiments: Sequence[str], records: Path, runs: Path, out: Path) -> list[Path]:
    """Write the page of each experiment, and its figures if matplotlib is installed.

    Args:
        experiments: Names of the experiments.
        records: File of the records.
        runs: Folder of the run folders.
        out: Folder to write to.

    Returns:
        Paths of the written files.
    """
    found, paths = summaries(read_records(records)), []
    for name in experiments:
        try:
            drawn = draw_experiment(name, found, runs)
        except ConfigError:  # without matplotlib, pages have tables only
            drawn = []
        paths += save_pictures(drawn, out)
        figures = [f"{picture.name}.png" for picture in drawn if picture.png]
        if name == "fig3" and not drawn:  # the runs are elsewhere: keep the existing pictures
            figures = sorted(path.name for path in out.glob(f"{name}-*.png"))
        troubles = [f"{p.name} cannot be drawn: {p.trouble}" for p in drawn if p.trouble]
        path = out / f"{name}.md"
        write_whole(path, page(name, found, figures, troubles).encode())
        paths.append(path)
    return paths


def page(
    name: str,
    found: Sequence[Summary],
    figures: Sequence[str] = (),
    troubles: Sequence[str] = (),
) -> str:
    """Return the page of an experiment.

    Args:
        name: Name of the experiment.
        found: Results of any experiments.
        figures: File names of the experiment's pictures.
        troubles: Messages about pictures that could not be drawn.
    """
    cells = {cell.name for cell in EXPERIMENTS[name]}
    mine = [s for s in found if s.cell.name in cells]
    parts = [f"# {TITLES[name]}", f"Made by `noprop reproduce {name}`; do not edit."]
    if name == "table5":
        return "\n\n".join([*parts, parameter_table()]) + "\n"
    parts += [f"![{TITLES[name]}]({figure})" for figure in figures]
    parts += troubles
    if name == "table3":
        parts.append(memory_table(mine))
    elif mine or name.startswith("table"):
        paper = TABLE2 if name == "table2" else TABLE1
        datasets = {cell.dataset for cell in EXPERIMENTS[name]}
        rows = {(cell.method, cell.embedding) for cell in EXPERIMENTS[name]}
        shown = {
            row: {d: v for d, v in numbers.items() if d in datasets}
            for row, numbers in paper.items()
            if row in rows
        }
        parts += [ACCURACY, *[NOISELESS] * (name == "table1"), accuracy_tables(mine, shown)]
    if mine:
        parts += ["## What the paper does not report", more_table(mine)]
    return "\n\n".join(parts) + "\n"


def parameter_table() -> str:
    """Return Table 5: counted and printed numbers of parameters."""
    head = ["data set", "embedding", "time", "parameters", "in millions", "Table 5"]
    rows = [
        [
            DATASETS[cell.dataset],
            EMBEDDINGS[cell.embedding],
            "discrete" if cell.method in ("dt", "backprop") else "continuous",
            f"{count:,}",
            f"{count / 1e6:.2f}",
            f"{printed:.2f}" + ("" if f"{count / 1e6:.2f}" == f"{printed:.2f}" else " (differs)"),
        ]
        for cell, count, printed in parameter_rows()
    ]
    return markdown(head, rows)
