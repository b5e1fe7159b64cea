"""``noprop export``: a trained model as one graph, for ONNX Runtime or torch.export."""

import argparse

from noprop.commands.options import Parser, add_trained_run, load_run, path
from noprop.terminal import show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Write a trained model as one graph: ONNX, or torch.export."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_trained_run(parser)
    parser.add_argument(
        "--format",
        choices=("onnx", "torch"),
        default="onnx",
        help="file format: ONNX, or torch.export [onnx]",
    )
    parser.add_argument(
        "--chain",
        action="store_true",
        help="export one chain with noise, which is an input of the graph [the default prediction "
        "without noise: deterministic sampler (mean chain), ensemble over steps if any]",
    )
    parser.add_argument(
        "--out", type=path, metavar="FILE", help="file to write [RUN/model.onnx or RUN/model.pt2]"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.export import FORMATS, export

    model = load_run(arguments)
    kind = "chain" if arguments.chain else "mean"
    name = f"{'chain' if arguments.chain else 'model'}{FORMATS[arguments.format]}"
    out = arguments.out or model.folder / name
    difference = export(model, out, format=arguments.format, kind=kind)
    if arguments.json:
        show_json({"file": str(out), "format": arguments.format, "difference": difference})
        return 0
    show(f"wrote {out}")
    if difference is not None:
        show(f"probabilities differ from torch's by {difference:.1e} at most")
    elif arguments.format == "onnx":
        show("not compared with torch: onnxruntime is not installed")
    return 0
