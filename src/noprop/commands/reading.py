"""``noprop evaluate``, ``predict``, ``describe``, ``data`` and ``plot``: nothing is trained."""

import argparse
import csv
import io
from typing import Any

from noprop import api
from noprop.commands.options import named_encoder
from noprop.config import RunConfig
from noprop.data import SOURCES, inspect_sources, load_dataset, read_inputs, search_path
from noprop.errors import ConfigError
from noprop.report.describe import describe as description
from noprop.report.tables import description_text, evaluation_text, table
from noprop.terminal import printable, show, show_json, tell

__all__ = ["data", "describe", "evaluate", "plot", "predict"]


def evaluate(arguments: argparse.Namespace) -> int:
    """``noprop evaluate``."""
    encoder = named_encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    results = model.evaluate(arguments.data_dir, arguments.part)
    show_json(results) if arguments.json else show(evaluation_text(results))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """``noprop predict``."""
    if arguments.samples is not None and arguments.samples < 1:
        raise ConfigError(f"--samples must be at least 1, got {arguments.samples}")
    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, got {arguments.top}")
    encoder = named_encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    names, x = read_inputs(arguments.files, model.model.task.shape)
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
    """A name in one line, which no spreadsheet takes for a formula; numbers stay numbers."""
    name = printable(name)
    return f"'{name}" if name[:1] in ("=", "+", "-", "@") and not _is_number(name) else name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def describe(arguments: argparse.Namespace) -> int:
    """``noprop describe``."""
    config = arguments.configuration()
    about = description(config, *_shape(config))
    show_json(about) if arguments.json else show(description_text(about))
    return 0


def _shape(config: RunConfig) -> tuple[tuple[int, ...], int]:
    name = config.data.dataset
    if name in SOURCES:
        for status in inspect_sources():
            if status.name == name:
                return tuple(status.shape), status.num_classes
    if name == "digits":
        return (1, 8, 8), 10
    c = config.data
    dataset = load_dataset(name, image_size=c.image_size, color=c.color)
    return dataset.shape, dataset.num_classes


def data(arguments: argparse.Namespace) -> int:
    """``noprop data``."""
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


def plot(arguments: argparse.Namespace) -> int:
    """``noprop plot``: pictures, and the page, in the run or both in ``--out``."""
    from noprop.report.page import write_page
    from noprop.report.pictures import save_pictures
    from noprop.report.plots import draw_run

    encoder = named_encoder(arguments.encoder)
    overrides = arguments.changes()
    model = api.load(arguments.run, device=arguments.device, encoder=encoder, overrides=overrides)
    examples = model.examples("test", arguments.data_dir)
    pictures = draw_run(arguments.run, model.model, examples)
    paths = save_pictures(pictures, arguments.out or arguments.run / "plots")
    for picture in pictures:
        if picture.trouble:
            tell(f"{picture.name}: cannot be drawn: {picture.trouble}")
    place = (arguments.out or arguments.run) / "report.html"
    page = write_page(arguments.run, model.model, pictures, place)
    if arguments.json:  # the pictures; the page is always report.html
        show_json([str(p) for p in paths])
    else:
        show("\n".join(map(printable, [*paths, page])))
    return 0
