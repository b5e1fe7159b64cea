"""A page of Markdown for each experiment, with its tables and figures, made of the lines alone."""

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
Accuracy in %. *One chain* is the paper's protocol; *averaged* is our default prediction, and *mean
chain* is without noise. Ours is the mean ± standard error over all inference runs of all seeds, as
the paper says of its own (but some that it prints are too large for that, and may be standard
deviations: docs/reproduction.md). Runs of one seed without noise are equal and count as one. A row
is *full* if epochs, steps and runs are the paper's and all images are trained on but a tenth, which
is held out; otherwise it says what it had of them, and is no reproduction but what so much gives.
*Train* is of as many training images as the test part has."""


def write_pages(experiments: Sequence[str], records: Path, runs: Path, out: Path) -> list[Path]:
    """Write the page of each experiment, and its figures where matplotlib is installed.

    Args:
        experiments: their names.
        records: the file of lines.
        runs: where run folders are.
        out: where pages go.

    Returns:
        The files written.
    """
    found, paths = summaries(read_records(records)), []
    for name in experiments:
        try:
            drawn = draw_experiment(name, found, runs)
        except ConfigError:  # without matplotlib there are tables all the same
            drawn = []
        paths += save_pictures(drawn, out)
        figures = [f"{picture.name}.png" for picture in drawn if picture.png]
        if name == "fig3" and not drawn:  # the runs are elsewhere: the pictures of before stay
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
    """The page of an experiment.

    Args:
        name: of it.
        found: what is done, of whatever experiment.
        figures: file names of its pictures.
        troubles: why others could not be drawn.
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
        parts += [ACCURACY, accuracy_tables(mine, shown)]
    if mine:
        parts += ["## What the paper does not report", more_table(mine)]
    return "\n\n".join(parts) + "\n"


def parameter_table() -> str:
    """Table 5, counted, beside what is printed."""
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
