"""``noprop data``: the data sets on this machine, and where they are."""

import argparse
from typing import Any

from noprop.commands.options import Parser, add_data_dir
from noprop.terminal import printable, show, show_json

__all__ = ["HELP", "add_options", "run"]

HELP = "Show which data sets are on this machine, where, and whether they are intact."


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument("--verify", action="store_true", help="compare every file with its hash")
    add_data_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its status."""
    from noprop.data import inspect_sources, search_path
    from noprop.report.tables import table

    found = inspect_sources(arguments.data_dir, verify=arguments.verify)
    if arguments.json:
        show_json([_status(s) for s in found])
        return 0
    rows = []
    for s in found:
        bad = [f.name for f in s.files if f.intact is False]
        state = "damaged: " + ", ".join(bad) if bad else ("here" if s.available else "absent")
        size = "×".join(map(str, s.shape))
        where = s.how if s.available else "downloaded when asked for"
        sizes = [f"{n:,}" for n in s.sizes]
        rows.append([s.name, size, str(s.num_classes), *sizes, state, str(s.folder or where)])
    show(table(["data set", "shape", "classes", "train", "test", "state", "where, or how"], rows))
    places = ", ".join(map(printable, search_path(arguments.data_dir)))
    show(f"\nlooked in {places} (--data-dir, then NOPROP_DATA, then the cache)")
    return 0


def _status(s: Any) -> dict[str, Any]:
    return {
        "name": s.name,
        "shape": list(s.shape),
        "classes": s.num_classes,
        "train": s.sizes[0],
        "test": s.sizes[1],
        "available": s.available,
        "folder": str(s.folder) if s.folder else None,
        "files": [
            {"name": f.name, "path": str(f.path) if f.path else None, "intact": f.intact}
            for f in s.files
        ],
        "how": s.how,
    }
