"""``noprop predict``: classify images, arrays and rows of tables."""

import argparse
import csv
import io

from noprop.commands.options import Parser, add_trained_run, load_run, path, whole_number
from noprop.errors import ConfigError
from noprop.terminal import is_number, printable, show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Classify images, arrays in .npy and .npz files, or rows of tables."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_trained_run(parser)
    parser.add_argument(
        "files",
        type=path,
        nargs="+",
        metavar="FILE",
        help="an image, a folder of images, .npy, .npz, .csv, .tsv or .parquet; - is CSV on "
        "standard input",
    )
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="json keeps names unchanged; csv puts ' before names that look like formulas [table]",
    )
    parser.add_argument(
        "--samples",
        type=whole_number,
        metavar="N",
        help="number of chains to average [as configured]",
    )
    parser.add_argument(
        "--average",
        choices=("path", "readout"),
        help="path: average the intermediate predictions of all steps, an ensemble over steps; "
        "readout: average the ends of the chains [path, if the method has one]",
    )
    parser.add_argument(
        "--no-noise",
        action="store_true",
        help="run one chain without noise: the deterministic sampler (mean chain)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the chains [0]")
    parser.add_argument(
        "--top", type=whole_number, default=3, metavar="N", help="number of classes to show [3]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.data import read_inputs
    from noprop.data.features import input_shape
    from noprop.report.tables import table

    if arguments.samples is not None and arguments.samples < 1:
        raise ConfigError(f"--samples must be at least 1, got {arguments.samples}")
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, got {arguments.top}")
    model = load_run(arguments)
    task = model.task
    shape, dtype = task.shape, task.dtype
    if frozen := model.config.data.features:  # it resizes images itself
        shape, dtype = input_shape(frozen), "uint8"
    names, x = read_inputs(arguments.files, shape, columns=task.columns, dtype=dtype)
    probabilities = model.predict(
        x,
        samples=arguments.samples,
        noise=False if arguments.no_noise else None,
        average=arguments.average,
        seed=arguments.seed,
    )
    top = probabilities.topk(min(arguments.top, len(model.class_names)), dim=1)
    rows = [
        [name, *(f"{model.class_names[i]} {p:.3f}" for i, p in zip(labels, values, strict=True))]
        for name, labels, values in zip(
            names, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]
    form = "json" if arguments.json else arguments.format
    if form == "table":
        show(table(["file", *(f"#{i + 1}" for i in range(top.indices.shape[1]))], rows))
    elif form == "csv":
        classes = list(map(_csv_cell, model.class_names))
        writer = csv.writer(lines := io.StringIO(), lineterminator="\n")
        writer.writerow(["file", "label", *classes])
        for name, p in zip(names, probabilities.tolist(), strict=True):
            label = classes[p.index(max(p))]
            writer.writerow([_csv_cell(name), label, *(f"{v:.6f}" for v in p)])
        show(lines.getvalue().removesuffix("\n"))
    else:
        answer = [
            {
                "file": name,
                "label": model.class_names[p.index(max(p))],
                "probabilities": dict(zip(model.class_names, p, strict=True)),
            }
            for name, p in zip(names, probabilities.tolist(), strict=True)
        ]
        show_json(answer)
    return 0


def _csv_cell(name: str) -> str:
    """Return a name in one line that spreadsheets do not read as a formula; numbers are kept."""
    name = printable(name)
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") and not is_number(name) else name
