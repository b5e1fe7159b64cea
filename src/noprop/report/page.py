"""A run as one page: ``report.html``, which needs no network and no file beside it.

Everything on it that a stranger may have named (classes, recipes, files) is escaped; the figures
are SVG elements whose text is paths. The same run gives the same bytes.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from noprop.errors import ConfigError, RunError
from noprop.files import read_object, write_whole
from noprop.model import Model
from noprop.report.pictures import Picture, draw
from noprop.report.tables import MODE_NAMES

__all__ = ["write_page"]


CAPTIONS = {
    "curves": "Loss of each unit after each epoch.",
    "schedule": "What the method told of itself after each epoch.",
}
OTHER_CAPTIONS = {
    "dt": {
        "curves": "Loss of each unit after each epoch. A block's loss carries its weight "
        "(T/2) η (SNR(t) - SNR(t-1)) of Eq. 8, so late blocks stand higher.",
        "schedule": "Signal and noise in the latent at t, and the three coefficients of one step.",
    },
    "ct": {
        "schedule": "The noise schedule after each epoch. A weight that explodes shows in the "
        "greatest SNR′, a schedule that collapses in ends that approach each other.",
    },
    "backprop": {"schedule": "How much of its guess each block mixes into the latent."},
}


def write_page(run: Path, model: Model, pictures: list[Picture], path: Path) -> Path:
    """Write the page of a run.

    Args:
        run: the run folder, for its results, configuration and environment.
        model: the trained model.
        pictures: of the run; those that could not be drawn are named, with the reason.
        path: of the page.

    Raises:
        ConfigError: If jinja2 or matplotlib is not installed.
        RunError: If the disk is full or the folder cannot be written.
    """
    try:
        from jinja2 import Environment, StrictUndefined, TemplateError
    except ImportError:
        raise ConfigError("the page needs jinja2: pip install 'noprop[plots]'") from None
    page = Environment(autoescape=True, undefined=StrictUndefined)
    page.filters |= {"fixed": lambda v, n: f"{v:.{n}f}", "short": lambda v: f"{v:.4g}"}
    source = (files("noprop.report") / "page.html.jinja").read_text(encoding="utf-8")
    template = page.from_string(source)
    results, no_results = _read(run / "evaluation.json")
    content = _content(run, model, pictures)
    try:
        html = template.render(content | _results(content, results, no_results))
    except (TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"evaluation.json is damaged ({type(error).__name__}: {error})."
        html = template.render(content | _results(content, {}, reason))
    write_whole(path, html.encode("utf-8", "replace"))
    return path


def _content(run: Path, model: Model, pictures: list[Picture]) -> dict[str, Any]:
    """What the page shows besides results."""
    environment, no_environment = _read(run / "environment.json")
    configuration = run / "config.toml"
    return {
        "recipe": model.config.recipe,
        "method": model.config.method.name,
        "captions": CAPTIONS | OTHER_CAPTIONS.get(model.config.method.name, {}),
        "dataset": model.config.data.dataset,
        "folder": run.resolve().name,
        "classes": model.task.class_names,
        "shape": " × ".join(map(str, model.task.shape)),
        "blocks": getattr(model.config.method, "num_blocks", None),
        "pictures": {p.name: p for p in pictures},
        "environment": environment,
        "no_environment": no_environment,
        "configuration": (
            configuration.read_text(encoding="utf-8", errors="replace")
            if configuration.is_file()
            else ""
        ),
    }


def _results(content: dict[str, Any], results: dict[str, Any], reason: str) -> dict[str, Any]:
    """What the page shows of an evaluation; where there is none, the reason."""
    if not results:
        return {"results": {}, "no_results": reason}
    classes = len(content["classes"])
    steps = draw("steps", lambda figure: _steps(figure, results, classes))
    names = {
        mode: str(MODE_NAMES.get(mode, mode)).replace("{samples}", str(results.get("samples", "?")))
        for mode in results.get("modes", ())
    }
    pictures = content["pictures"] | {steps.name: steps}
    return {"results": results, "no_results": "", "names": names, "pictures": pictures}


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, and nothing; or nothing, and the reason why."""
    if not path.exists():
        return {}, f"{path.name} is absent from the run folder."
    try:
        value = read_object(path)
    except RunError as error:
        return {}, f"{path.name}{str(error).removeprefix(str(path))}."
    return value, "" if value else f"{path.name} holds no results."


def _steps(figure: Any, results: dict[str, Any], classes: int) -> None:
    """Accuracy after each step of one chain, beside the last block alone and mere guessing."""
    steps, alone = results["steps"], results.get("last_block_alone")
    times = results.get("times") or range(len(steps))
    figure.set_size_inches(9, 3.6)
    axis = figure.subplots()
    marker = "." if len(steps) <= 40 else None
    axis.plot(times, steps, marker=marker, label="class nearest to z_t")
    if alone:
        low, high = (alone["accuracy"] + sign * alone["accuracy_se"] for sign in (-1, 1))
        axis.axhspan(low, high, color="C1", alpha=0.25, linewidth=0)
        name = "last step alone, on noise"
        axis.axhline(alone["accuracy"], color="C1", linestyle="--", label=name)
    axis.axhline(100 / classes, color="grey", linestyle=":", label=f"one of {classes} classes")
    axis.set(xlabel="t", ylabel="accuracy %", ylim=(-2, 102))
    if times[-1] > 1:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
