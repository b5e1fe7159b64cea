"""A run as one page: ``report.html``, which needs no network and no other file.

All names that a stranger may have chosen (classes, recipes, files) are escaped; figures are SVG
elements whose text is paths. The same run gives the same bytes.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from noprop.errors import RunError, import_extra
from noprop.files import read_object, write_whole
from noprop.model import Model
from noprop.predictions import read_predictions
from noprop.report.answers import class_rows, mistake_rows
from noprop.report.pictures import MANY_CLASSES, Picture, draw, marker, whole_ticks
from noprop.report.tables import answer_rows, is_stack, mean_text, mode_name

__all__ = ["write_page"]

WORST = 10  # of many classes, those shown before all of them
CAPTIONS = {
    "curves": "Loss of each unit after each epoch, on the training and the validation split.",
    "schedule": "Numbers that the method reports after each epoch.",
}
# In place of those, by the name of the method.
METHOD_CAPTIONS = {
    "dt": {
        "curves": "Loss of each unit after each epoch, on the training and the validation split, "
        "divided by the constant weight that a block has in training, such as (T/2) η (SNR(t) - "
        "SNR(t-1)) of Eq. 8. So the blocks can be compared. Late blocks have less to do, because "
        "their latent already tells the label.",
        "schedule": "Signal and noise in the latent at t, and the coefficients of one step.",
    },
    "ct": {
        "curves": "Loss of the network after each epoch, on the training and the validation split. "
        "The weight of Eq. 9 differs from example to example with t, so it cannot be divided out.",
        "schedule": "The noise schedule after each epoch. If a weight explodes, the greatest SNR′ "
        "grows; if the schedule collapses, its ends approach each other.",
    },
    "backprop": {"schedule": "The share of each block's output that enters the latent."},
}


def write_page(run: Path, model: Model, pictures: list[Picture], path: Path) -> Path:
    """Write the page of a run.

    Args:
        run: The run folder, for its results, configuration and environment.
        model: The trained model.
        pictures: Pictures of the run; those that could not be drawn are named, with the reason.
        path: The file to write.

    Raises:
        ConfigError: If jinja2 or matplotlib is not installed.
        RunError: If the disk is full or the folder cannot be written.
    """
    jinja2 = import_extra("jinja2", "plots", "the page needs")
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    jinja.filters |= {"fixed": lambda v, n: f"{v:.{n}f}", "short": lambda v: f"{v:.4g}"}
    jinja.filters["spread"] = lambda error, n: mean_text(0.0, error, n).removeprefix(f"{0.0:.{n}f}")
    source = (files("noprop.report") / "page.html.jinja").read_text(encoding="utf-8")
    template, content = jinja.from_string(source), _content(run, model, pictures)
    results, reason = _read(run / "evaluation.json")
    try:
        html = template.render(content | _results(content, results, reason))
    except (jinja2.TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"evaluation.json is damaged ({type(error).__name__}: {error})."
        html = template.render(content | _results(content, {}, reason))
    write_whole(path, html.encode("utf-8", "replace"))
    return path


def _content(run: Path, model: Model, pictures: list[Picture]) -> dict[str, Any]:
    """Return what the page shows besides results."""
    environment, no_environment = _read(run / "environment.json")
    file, method = run / "config.toml", model.config.method
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return {
        "recipe": model.config.recipe,
        "method": method.name,
        "stack": method.stack,
        "captions": CAPTIONS | METHOD_CAPTIONS.get(method.name, {}),
        "dataset": model.config.data.dataset,
        "folder": run.resolve().name,
        "classes": model.task.class_names,
        "shape": " × ".join(map(str, model.task.shape)),
        "blocks": None if method.stack else getattr(method, "num_blocks", None),
        "pictures": {p.name: p for p in pictures},
        "environment": environment,
        "no_environment": no_environment,
        "configuration": text,
        "answers": _answers(run, model),
    }


def _answers(run: Path, model: Model) -> dict[str, Any]:
    """Return what the page shows of the answers of the evaluation, or the reason for nothing."""
    names = model.task.class_names
    try:
        stored = read_predictions(run, len(names))
    except RunError as error:
        return {"trouble": str(error).removeprefix(f"{run}/")}
    if stored is None:
        return {"trouble": ""}
    found, part = stored
    rows = class_rows(found, names)
    worst = sorted((r for r in rows if r["examples"]), key=lambda r: r["accuracy"])[:WORST]
    return {
        "trouble": "",
        "part": part,
        "examples": len(found),
        "wrong": int((~found.correct).sum()),
        "classes": rows,
        "worst": worst if len(rows) > MANY_CLASSES else [],
        "mistakes": mistake_rows(found, names),
    }


def _results(content: dict[str, Any], results: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return what the page shows of an evaluation, or the reason why there is none."""
    if not results:
        return {"results": {}, "no_results": reason}
    classes = len(content["classes"])
    pictures = content["pictures"]
    if not is_stack(results):
        steps = draw("steps", lambda figure: _steps(figure, results, classes))
        pictures = pictures | {steps.name: steps}
    names = {mode: mode_name(mode, results) for mode in results.get("modes", ())}
    found = {"results": results, "no_results": "", "names": names, "pictures": pictures}
    return found | {"answer_rows": answer_rows(results)}


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Return the object of a JSON file, or an empty one and the reason."""
    if not path.exists():
        return {}, f"{path.name} is missing from the run folder."
    try:
        value = read_object(path)
    except RunError as error:
        return {}, f"{path.name}{str(error).removeprefix(str(path))}."
    return value, "" if value else f"{path.name} has no content."


def _steps(figure: Any, results: dict[str, Any], classes: int) -> None:
    """Draw accuracy after each step of one chain, that of the last step alone, and of chance."""
    steps, alone = results["steps"], results.get("last_block_alone")
    times = results.get("times") or range(len(steps))
    figure.set_size_inches(9, 3.6)
    axis = figure.subplots()
    axis.plot(times, steps, marker=marker(steps), label="class nearest to z_t")
    if alone:
        error = alone["accuracy_se"] or 0.0
        low, high = (alone["accuracy"] + sign * error for sign in (-1, 1))
        axis.axhspan(low, high, color="C1", alpha=0.25, linewidth=0)
        name = "ablation: last step alone, on noise"
        axis.axhline(alone["accuracy"], color="C1", linestyle="--", label=name)
    axis.axhline(100 / classes, color="grey", linestyle=":", label=f"chance, {classes} classes")
    axis.set(xlabel="t", ylabel="accuracy %", ylim=(-2, 102))
    if times[-1] > 1:
        whole_ticks(axis)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
