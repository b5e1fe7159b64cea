"""The pictures and the page of a run: what they say, and that nobody's name becomes HTML."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace, to_toml
from noprop.data import Examples, Normalization
from noprop.errors import ConfigError
from noprop.evaluate import evaluate, inputs, prepare
from noprop.methods.base import Prediction
from noprop.model import Model
from noprop.predictions import FILE, Predictions, predictions_of, save_predictions
from noprop.report import chain, plots
from noprop.report import page as page_module
from noprop.report.answers import class_rows, draw_confusion, draw_mistakes, draw_reliability
from noprop.report.page import write_page
from noprop.report.pictures import Picture, draw, save_pictures
from noprop.report.plots import draw_run
from noprop.report.tables import mean_text
from noprop.task import Task
from noprop.tensor_files import save_tensors
from tools import IN_PROCESS, LEARNED, remove_package

matplotlib = pytest.importorskip("matplotlib")
EVIL = (
    "<script>alert(1)</script>",
    "$\\frac{$",
    "two\nlines $",
    "--><script>",
    "\ud800\x00",
    "a" * 300,
)
SHORT: dict[str, dict[str, int]] = {
    "dt": {"method.num_blocks": 2},
    "ct": {"method.steps": 20},
    "fm": {"method.steps": 20},
    "backprop": {"method.num_blocks": 2},
    "adjoint": {"method.steps": 4},
    "greedy": {"method.num_layers": 3},
}


def untrained(classes: tuple[str, ...] = ("cat", "dog"), /, **changes) -> Model:
    """A model as training would leave it, but for the training."""
    small = {**IN_PROCESS, "method.encoder": "mlp"}
    small |= {"evaluation.runs": 2, **SHORT[changes.get("method.name", "dt")]}
    config = replace(RunConfig(), {**small, **changes})
    task = Task((1, 8, 8), classes, Normalization((0.5,), (0.2,)))
    method = build_method(config, task, build_embedding(config, task, None))
    for unit in method.units:
        unit.module.eval()
    return Model(config, task, method, torch.device("cpu"), False)


def some_examples(model: Model, count: int = 6) -> Examples:
    x = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Examples(x.to(torch.uint8), torch.arange(count) % model.task.num_classes)


def epoch(unit: str, number: int, loss: float, distance: float | None = None) -> dict:
    event = {"event": "epoch", "unit": unit, "epoch": number, "loss": loss}
    event["validation_loss"] = 2 * loss
    if distance is not None:
        keys = ("least_distance", "least_length", "greatest_length")
        event["embedding"] = dict(zip(keys, (distance, distance, 2 * distance), strict=True))
    return event


def write_run(folder: Path, model: Model, distances: tuple[float, ...] = ()) -> Path:
    """A run folder with all that a page reads."""
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(to_toml(model.config))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "by": "<b>me</b>"}))
    results = evaluate(
        model,
        some_examples(model),
        keep=lambda found: save_predictions(folder, found, "test"),
    )
    (folder / "evaluation.json").write_text(json.dumps(results))
    units = [unit.name for unit in model.method.units]
    events = [
        epoch(unit, number, 1 / number, distances[number - 1] if distances else None)
        for number in range(1, max(2, len(distances)) + 1)
        for unit in units
    ]
    if facts := model.method.facts():
        events = [event | {"facts": facts} for event in events]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def page_of(run: Path, model: Model) -> str:
    pictures = draw_run(run, model, some_examples(model))
    return write_page(run, model, pictures, run / "report.html").read_text(encoding="utf-8")


@contextmanager
def figures_recorded() -> Iterator[dict[str, Any]]:
    """Record every figure drawn in this block, by name."""
    figures: dict[str, Any] = {}
    original = draw

    def record(name, drawing):
        def keep(figure):
            figures[name] = figure
            drawing(figure)

        return original(name, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", record)
        patch.setattr(page_module, "draw", record)
        yield figures


@dataclass(frozen=True)
class Drawn:
    """A run with its pictures and its page; not to be changed."""

    model: Model
    run: Path
    pictures: list[Picture]
    figures: dict[str, Any]
    html: str

    @property
    def page(self) -> "Page":
        return Page(self.html)

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.run / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Callable[[str], Drawn]:
    """A function from a method, or ``learned``, to its run, rendered once for all tests."""
    made: dict[str, Drawn] = {}

    def find(kind: str) -> Drawn:
        if kind not in made:
            learned = kind == "learned"
            model = untrained(**LEARNED) if learned else untrained(**{"method.name": kind})
            run = tmp_path_factory.mktemp(kind) / "run"
            write_run(run, model, (1.0, 0.5) if learned else ())
            with figures_recorded() as figures:
                pictures = draw_run(run, model, some_examples(model))
                path = write_page(run, model, pictures, run / "report.html")
            made[kind] = Drawn(model, run, pictures, figures, path.read_text(encoding="utf-8"))
        return made[kind]

    return find


class Page(HTMLParser):
    """The tags and ids of a page, its references, its text, and its ``data`` values."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.values: list[float] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.references.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "value" and tag == "data":
                self.values.append(float(value or "nan"))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def unrendered(monkeypatch) -> None:
    """Figures are made and not rendered, which takes most of the time of a picture."""

    def save(figure, file, **options):
        file.write(b"<svg></svg>")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)


@pytest.fixture
def drawn(unrendered) -> Iterator[dict[str, Any]]:
    """Every figure as it is when it has been drawn, by name."""
    with figures_recorded() as figures:
        yield figures


# -- the page --------------------------------------------------------------------------------------


def test_the_page_says_what_the_evaluation_says(rendered):
    page, model, results = rendered("dt").page, rendered("dt").model, rendered("dt").results
    modes = results["modes"]
    expected = [modes[results["default"]]["accuracy"]]
    expected += [m[key] for m in modes.values() for key in ("accuracy", "log_loss")]
    expected += [results["calibration_error"], results["last_block_alone"]["accuracy"]]
    expected += results["elbo"].values()
    assert page.values == expected
    for m in modes.values():
        assert mean_text(m["accuracy"], m["accuracy_se"]) in page.text
        assert mean_text(m["log_loss"], m["log_loss_se"], 4) in page.text
        low, high = m["accuracy_interval"]
        assert f"{low:.2f} to {high:.2f}" in page.text
    low, high = modes[results["default"]]["accuracy_interval"]
    assert f"95 % interval over examples: {low:.2f} to {high:.2f} %" in page.text
    assert f"{model.config.evaluation.samples} chains averaged" in page.text
    assert to_toml(model.config) in page.text
    assert "<b>me</b>" in page.text  # of environment.json: text, no tag
    assert "b" not in page.tags


@pytest.mark.parametrize("method", ["fm", "backprop", "adjoint"])
def test_the_page_of_a_method_without_a_bound_has_its_results(rendered, method):
    """What a method does not have is left out of its page, and nothing else with it."""
    page, results = rendered(method).page, rendered(method).results
    assert "elbo" not in results
    assert "There are no results" not in page.text
    modes = results["modes"]
    expected = [modes[results["default"]]["accuracy"]]
    expected += [m[key] for m in modes.values() for key in ("accuracy", "log_loss")]
    expected += [results["calibration_error"]]
    assert page.values == expected
    assert "Last step alone on noise" not in page.text
    assert "The bound on" not in page.text
    assert f"takes {results['evaluations']:.4g} network function evaluations (NFE)" in page.text


def test_names_of_strangers_stay_text(tmp_path):
    """Classes, data set and folder are another's words; figures are drawn all the same."""
    dataset = "</title><script>alert(2)</script><img src=x>"
    model = untrained(EVIL, **{"data.dataset": dataset})
    run = write_run(tmp_path / "<script src=y>", model)
    html = page_of(run, model)
    page = Page(html)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(page.tags)
    assert EVIL[0] in page.text
    assert "<script src=y>" in page.text
    assert page.text.count(dataset) >= 2
    assert "cannot be drawn" not in html
    assert page.tags.count("svg") == 8
    assert page.text.count(EVIL[0]) == 2  # the list of classes, and its own row


def test_the_page_needs_nothing_else(rendered):
    """No reference leaves it, no id stands twice, and each figure's references are its own."""
    html, page = rendered("learned").html, rendered("learned").page
    assert page.references
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    inside = [r[1:] for r in page.references if r.startswith("#")]
    inside += re.findall(r"url\(#([^)]*)\)", html)
    assert set(inside) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import", html)


def test_the_same_run_gives_the_same_bytes(tmp_path, rendered):
    """Under another style too, with another's mathtext and fonts."""
    model, run, first = rendered("learned").model, rendered("learned").run, rendered("learned")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20}):
        again = draw_run(run, model, some_examples(model))
        path = write_page(run, model, again, tmp_path / "report.html")
    assert again == first.pictures
    assert path.read_bytes() == (run / "report.html").read_bytes()


@pytest.mark.usefixtures("unrendered")
def test_a_run_without_results_says_so(tmp_path):
    model = untrained()
    run = write_run(tmp_path / "run", model)
    for name in ("evaluation.json", "environment.json", "config.toml", "metrics.jsonl"):
        (run / name).unlink()
    text = Page(page_of(run, model)).text
    assert "evaluation.json is missing" in text
    assert "environment.json is missing" in text
    assert "config.toml is missing" in text
    assert "“curves” cannot be drawn: metrics.jsonl has no epoch" in text


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"modes": 3}', '{"modes": {}, "default": "x"}']
)
def test_a_damaged_evaluation_is_named(tmp_path, rendered, content):
    run = tmp_path / "run"
    shutil.copytree(rendered("dt").run, run)
    (run / "evaluation.json").write_text(content)
    path = write_page(run, rendered("dt").model, rendered("dt").pictures, run / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "There are no results: evaluation.json" in text


# -- the pictures ----------------------------------------------------------------------------------


def test_learned_distances_are_those_of_the_events(tmp_path, drawn):
    """Epoch 0 is the start; of the units of one epoch the worst stands; the axis begins at 0."""
    model = untrained(**LEARNED)
    run = write_run(tmp_path / "run", model, (0.7, 0.3, 0.01))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(epoch("readout", 3, 1.0, 0.02)) + "\n")
    save_tensors(run / "embedding.safetensors", {"weight": torch.eye(2)}, {})
    draw_run(run, model, some_examples(model))
    distance, lengths = drawn["separation"].axes
    assert list(distance.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert list(distance.lines[0].get_ydata()) == pytest.approx([2**0.5, 0.7, 0.3, 0.01])
    greatest, least = (list(line.get_ydata()) for line in lengths.lines)
    assert greatest == pytest.approx([1, 1.4, 0.6, 0.04])
    assert least == pytest.approx([1, 0.7, 0.3, 0.01])
    assert distance.get_ylim()[0] == lengths.get_ylim()[0] == 0


def test_fixed_embeddings_have_no_separation(rendered):
    assert [p.name for p in rendered("dt").pictures] == [
        "curves",
        "chain",
        "embeddings",
        "confusion",
        "reliability",
        "mistakes",
        "schedule",
    ]


def test_a_hundred_blocks_have_no_hundred_legends(tmp_path):
    """One curve a block and one for the readout, which alone is named; colour tells t."""
    model = untrained()
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps(epoch(unit, number, 1 / number)) + "\n"
            for unit in [*(f"block-{t}" for t in range(1, 101)), "readout"]
            for number in (1, 2)
        )
    )
    with figures_recorded() as drawn:
        picture = draw_run(tmp_path, model, some_examples(model))[0]
    left, right, bar = drawn["curves"].axes
    assert len(left.lines) == len(right.lines) == 101
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["readout"]
    assert bar.get_ylim() == (1, 100)
    assert len({line.get_color() for line in left.lines[:100]}) > 90
    assert list(right.lines[50].get_ydata()) == [2, 1]
    assert len(picture.svg) < 400_000


def test_layers_and_their_inverses_are_told_apart(tmp_path):
    """Colour tells the number, the style the kind; all are named."""
    model = untrained()
    units = ["inverse-2", "inverse-3", "layer-1", "layer-2", "layer-3", "output"]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(epoch(unit, n, 1 / n)) + "\n" for unit in units for n in (1, 2))
    )
    with figures_recorded() as drawn:
        draw_run(tmp_path, model, some_examples(model))
    left, right = drawn["curves"].axes
    looks = {line.get_label(): (str(line.get_color()), line.get_linestyle()) for line in left.lines}
    assert looks.keys() == set(units)
    assert len(set(looks.values())) == 6
    for n in (2, 3):
        assert looks[f"inverse-{n}"][0] == looks[f"layer-{n}"][0]
    assert {t.get_text() for t in left.get_legend().get_texts()} == set(units)
    assert len(right.lines) == 6


def test_of_many_classes_the_likeliest_are_named(tmp_path, drawn):
    names = tuple(f"class {i}" for i in range(100))
    model = untrained(names)
    examples = Examples(some_examples(model).x[:1], torch.tensor([57]))
    draw_run(tmp_path, model, examples)
    labels = [t.get_text() for t in drawn["chain"].axes[1].get_yticklabels()]
    assert len(labels) == 12
    assert "class 57" in labels
    cosine, guesses = chain.panels_of(model, chain.one_chain(model, examples.x))
    assert [(p.start, p.end) for p in (cosine, guesses)] == [(0, 2), (1, 2)]
    assert cosine.values.shape == (3, 100)
    assert f"class {int(guesses.values.max(0).values.argmax())}" in labels
    assert torch.equal(guesses.values.sum(1), guesses.values.sum(1).clamp(0.999, 1.001))


def test_the_chain_and_its_control_are_drawn(rendered):
    results = rendered("dt").results
    steps, alone, chance = rendered("dt").figures["steps"].axes[0].lines
    assert list(steps.get_ydata()) == results["steps"]
    assert alone.get_ydata()[0] == results["last_block_alone"]["accuracy"]
    assert chance.get_ydata()[0] == 50


def test_what_cannot_be_drawn_is_named_and_the_rest_is_there(tmp_path):
    model = untrained()
    run = write_run(tmp_path / "run", model)
    nothing: Tensor = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)
    empty = Examples(nothing, torch.zeros(0, dtype=torch.int64))
    pictures = {p.name: p for p in draw_run(run, model, empty)}
    assert pictures.pop("chain") == Picture("chain", trouble="there is no example to follow")
    other = "the data are not those of the evaluation"
    assert pictures.pop("mistakes") == Picture("mistakes", trouble=other)
    assert all(p.svg.startswith("<svg") and not p.trouble for p in pictures.values())
    paths = save_pictures([*pictures.values(), Picture("chain", trouble="why")], tmp_path / "out")
    assert {p.name for p in paths} == {f"{name}.png" for name in pictures}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


@pytest.mark.parametrize("method", ["ct", "fm", "backprop", "adjoint"])
def test_every_method_has_its_pictures(rendered, method):
    """One unit's curve; the guesses on the way and a schedule where there are such."""
    model, drawn = rendered(method).model, rendered(method).figures
    pictures = {p.name: p for p in rendered(method).pictures}
    schedule = {"schedule"} if method in ("ct", "backprop") else set()
    answers = {"confusion", "reliability", "mistakes"}
    assert pictures.keys() == {"curves", "chain", "embeddings"} | answers | schedule
    assert not [p for p in pictures.values() if p.trouble]
    for axis in drawn["curves"].axes:
        assert [line.get_label() for line in axis.lines] == ["network"]
    pathless = method in ("backprop", "adjoint")
    titles = [axis.get_title() for axis in drawn["chain"].axes]
    assert "latent z_t: cosine to each u_y" in titles
    assert ("class probabilities at t" in titles) == (not pathless)
    cosine, *guesses = chain.panels_of(model, chain.one_chain(model, some_examples(model).x[:1]))
    levels = 21 if method in ("ct", "fm") else len(cosine.values)
    assert len(cosine.values) == levels
    assert [len(panel.values) for panel in guesses] == ([] if pathless else [10])
    assert cosine.end == (2 if method == "backprop" else 1)


def test_a_stack_has_its_answers_in_place_of_latents():
    model = untrained(**{"method.name": "greedy"})
    x = some_examples(model, 1).x
    (panel,) = chain.panels_of(model, chain.one_chain(model, x))
    answers = torch.stack(prepare(model, inputs(model, x)))[:, 0]
    torch.testing.assert_close(panel.values, answers)
    assert (panel.start, panel.end, panel.unit) == (1, 3, "answer")


def test_a_learned_schedule_is_drawn_after_each_epoch(tmp_path, drawn):
    """γ(t) of every epoch from noise (t = 0) to clean, its ends and its greatest weight."""
    model = untrained(**{"method.name": "ct"})
    run = write_run(tmp_path / "run", model)
    facts = [
        {"gamma": [g, 0.0, -g], "alpha_bar_0": 0.1 * g, "alpha_bar_1": 0.9, "max_snr_slope": 7 * g}
        for g in (4.0, 5.0)
    ]
    events = [epoch("network", n, 1.0) | {"facts": f} for n, f in enumerate(facts, start=1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    draw_run(run, model, some_examples(model))
    curves, ends = drawn["schedule"].axes
    assert [list(line.get_ydata()) for line in curves.lines] == [[4, 0, -4], [5, 0, -5]]
    assert [list(line.get_xdata()) for line in curves.lines] == [[0, 0.5, 1]] * 2
    assert [t.get_text() for t in curves.get_legend().get_texts()] == ["epoch 1", "epoch 2"]
    found = {line.get_label(): list(line.get_ydata()) for line in ends.lines}
    assert found["ᾱ(0)"] == pytest.approx([0.4, 0.5])
    assert found["1 - ᾱ(1)"] == pytest.approx([0.1, 0.1])
    assert found["max SNR′(t)"] == [28, 35]


def test_the_mixing_weights_are_drawn_block_by_block(tmp_path, drawn):
    model = untrained(**{"method.name": "backprop"})
    run = write_run(tmp_path / "run", model)
    events = [epoch("network", n, 1.0) | {"facts": {"mixing": [0.1 * n, 0.2, 0.3]}} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    draw_run(run, model, some_examples(model))
    (axis,) = drawn["schedule"].axes
    assert axis.get_title() == "α_t"
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.1, 0.2, 0.3], [0.2, 0.2, 0.3]]
    assert [list(line.get_xdata()) for line in axis.lines] == [[1, 2, 3]] * 2


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_without_the_extra_there_is_one_clear_line(tmp_path, monkeypatch, name):
    model = untrained()
    run = write_run(tmp_path / "run", model)
    remove_package(monkeypatch, name)
    with pytest.raises(ConfigError, match=rf"need.? {name}: pip install 'noprop\[plots\]'"):
        page_of(run, model)


# -- the answers of the evaluation -----------------------------------------------------------------


def test_losses_are_drawn_without_their_weights(rendered):
    """A logged loss is the weight of Eq. 8 times an error: here 1 and 1/2 in epochs 1 and 2."""
    model = rendered("dt").model
    training, validation, _ = rendered("dt").figures["curves"].axes
    weights = [unit.weight for unit in model.method.units]
    assert len(set(weights)) == 3  # two blocks and the readout, whose weight is 1
    for line, weight in zip(training.lines, weights, strict=True):
        assert list(line.get_ydata()) == pytest.approx([1 / weight, 0.5 / weight])
    for line, weight in zip(validation.lines, weights, strict=True):
        assert list(line.get_ydata()) == pytest.approx([2 / weight, 1 / weight])
    assert training.get_ylabel() == "loss, divided by the unit's weight"
    (line,) = rendered("fm").figures["curves"].axes[0].lines
    assert list(line.get_ydata()) == [1, 0.5]


def some_answers(classes: int, count: int = 600) -> Predictions:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    logits = torch.randn(count, classes, generator=g)
    logits[torch.arange(count), y] += 3
    return predictions_of(logits.softmax(dim=1), y)


def test_each_class_has_its_row(rendered):
    found = predictions_of(
        torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.1, 0.9, 0]]),
        torch.tensor([0, 0, 0, 1]),
    )
    a, b, c = class_rows(found, ("a", "b", "c"))
    assert (a["examples"], a["correct"], a["mistake"]) == (3, 1, "b (2)")
    assert a["accuracy"] == pytest.approx(100 / 3)
    assert (b["examples"], b["correct"], b["mistake"]) == (1, 1, "")
    assert (c["examples"], c["accuracy"], c["interval"]) == (0, None, "")
    page = rendered("dt").page
    assert "most often predicted instead" in page.text
    assert page.text.count("cat") >= 2


def test_the_numbers_of_the_confusion_matrix_are_counts():
    found, names = some_answers(4), tuple("abcd")
    with figures_recorded() as drawn:
        plots.draw("confusion", lambda figure: draw_confusion(figure, found, names))
    (axis,) = drawn["confusion"].axes
    shown = {
        (int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axis.texts
    }
    counts = found.confusion(4)
    assert shown == {(i, j): int(counts[i, j]) for i in range(4) for j in range(4) if counts[i, j]}
    assert axis.get_ylabel() == "true class"  # rows
    assert [t.get_text() for t in axis.get_yticklabels()] == list(names)


def test_a_hundred_classes_have_a_map_and_the_most_confused_by_name():
    """No more names and numbers than fit: class 7 is often taken for 93."""
    found, names = some_answers(100, 2000), tuple(f"name {i}" for i in range(100))
    label = torch.where(found.y == 7, 93, found.label)
    confused = Predictions(found.index, found.y, label, found.confidence, found.likelihood)
    with figures_recorded() as drawn:
        picture = plots.draw("confusion", lambda figure: draw_confusion(figure, confused, names))
    everything, some = drawn["confusion"].axes
    assert not everything.texts
    assert everything.images[0].get_array().shape[:2] == (100, 100)
    labels = [t.get_text() for t in some.get_yticklabels()]
    assert len(labels) <= 12
    assert {"7 name 7", "93 name 93"} <= set(labels)
    row, column = labels.index("7 name 7"), labels.index("93 name 93")
    assert [t.get_text() for t in some.texts if t.get_position() == (column, row)] == ["20"]
    assert len(picture.svg) < 200_000


def test_the_reliability_diagram_has_the_calibration_error():
    found = some_answers(4)
    p = found.confidence.double()
    with figures_recorded() as drawn:
        plots.draw("reliability", lambda figure: draw_reliability(figure, found))
    upper, lower = drawn["reliability"].axes
    error = 0.0
    for b in range(15):
        inside = ((p * 15).long().clamp(max=14) == b).nonzero()[:, 0]
        if len(inside):
            gap = found.correct[inside].double().mean() - p[inside].mean()
            error += len(inside) / 600 * abs(float(gap))
    assert upper.get_title() == f"expected calibration error {100 * error:.2f} %"
    assert sum(bar.get_height() for bar in lower.patches) == 600
    confidence, accuracy = upper.containers[0].lines[0].get_data()
    assert len(confidence) == len(accuracy) <= 15
    assert all(0 <= c <= 100 for c in (*confidence, *accuracy))


@pytest.mark.usefixtures("unrendered")
def test_a_mistake_is_drawn_with_its_own_image_and_probabilities():
    """The answers are those of examples 4, 1 and 3, of which the second is right."""
    p = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.4, 0.6]])
    found = predictions_of(p, torch.tensor([0, 0, 0]))
    found = dataclasses.replace(found, index=torch.tensor([4, 1, 3]))
    x = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)
    examples = Examples(x, torch.zeros(6, dtype=torch.int64))
    with figures_recorded() as drawn:
        plots.draw("mistakes", lambda figure: draw_mistakes(figure, found, ("a", "b"), examples))
    axes = [axis for axis in drawn["mistakes"].axes if axis.images]
    assert [int(axis.images[0].get_array().max()) for axis in axes] == [4, 3]
    assert [axis.get_title() for axis in axes] == [
        "predicted b (75.0 %)\ntrue a (25.0 %)\nexample 4",
        "predicted b (60.0 %)\ntrue a (40.0 %)\nexample 3",
    ]
    named = dataclasses.replace(found, files=("a/one.png", "a/two.png", f"a/{'x' * 40}/three.png"))
    with figures_recorded() as drawn:
        plots.draw("mistakes", lambda figure: draw_mistakes(figure, named, ("a", "b"), examples))
    axes = [axis for axis in drawn["mistakes"].axes if axis.images]
    assert [axis.get_title().splitlines()[-1] for axis in axes] == [
        "a/one.png",
        f"…{'x' * 13}/three.png",
    ]


def test_a_run_of_an_older_version_has_a_page(tmp_path, rendered):
    """Without the answers nothing else is missing, and the page says how to get them."""
    run, model = tmp_path / "run", rendered("dt").model
    shutil.copytree(rendered("dt").run, run)
    (run / FILE).unlink()
    pictures = draw_run(run, model, some_examples(model))
    assert [p.name for p in pictures] == ["curves", "chain", "embeddings", "schedule"]
    html = write_page(run, model, pictures, run / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "noprop assemble RUN" in page.text
    assert "Which classes are confused" not in page.text
    assert page.values == rendered("dt").page.values


def test_damaged_answers_are_named(tmp_path, rendered):
    run, model = tmp_path / "run", rendered("dt").model
    shutil.copytree(rendered("dt").run, run)
    (run / FILE).write_bytes(b"no tensors")
    pictures = draw_run(run, model, some_examples(model))
    html = write_page(run, model, pictures, run / "report.html").read_text(encoding="utf-8")
    assert f"There are no answers of single examples: {FILE}: is damaged" in Page(html).text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("rows", [(), ("row 7", "row 3")], ids=["arrays", "table"])
def test_the_mistakes_of_a_table_are_rows(tmp_path, rows):
    """Features have no picture: the name of each row, and both classes with probabilities."""
    model = untrained(("cat", "<script>"))
    run = write_run(tmp_path / "run", model)
    p = torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    wrong = predictions_of(p, torch.tensor([0, 1]))
    wrong = dataclasses.replace(wrong, index=torch.tensor([31, 47]), files=rows)
    save_predictions(run, wrong, "test")
    examples = Examples(torch.zeros(60, 64), torch.zeros(60, dtype=torch.int64))
    names = {p.name for p in plots.draw_run(run, model, examples)}
    assert "mistakes" not in names
    html = write_page(run, model, [], run / "report.html").read_text(encoding="utf-8")
    cells = re.findall(
        r"<tr><td>([^<]+)</td><td>([^<]+)</td><td[^>]*>([^<]*)</td><td>([^<]+)</td><td", html
    )
    script, (first, second) = "&lt;script&gt;", rows or ("example 31", "example 47")
    assert cells == [(second, "cat", "90.0 %", script), (first, script, "75.0 %", "cat")]


# -- the example that is followed ------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_the_example_that_is_followed_can_be_named(tmp_path, drawn):
    model = untrained()
    examples = some_examples(model)
    draw_run(tmp_path, model, examples, 3)
    assert drawn["chain"].get_suptitle() == "test example 3, from noise to label"
    shown = drawn["chain"].subfigs[0].axes[0].images[0].get_array()
    assert torch.equal(torch.as_tensor(shown), examples.x[3, 0])
    for wrong in (-1, 6):
        with pytest.raises(ConfigError, match=f"example: .* 0 to 5, got {wrong}"):
            draw_run(tmp_path, model, examples, wrong)


def test_an_example_that_is_hard_at_first_is_followed(monkeypatch):
    """Four examples: sure from the first step, wrong at the end, sure late, sure somewhat late."""
    model = untrained()
    own = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.1, 0.2], [0.1, 0.6, 0.95], [0.4, 0.8, 0.9]])

    def run(model: Model, raw: Tensor) -> Prediction:
        p = own[raw[:, 0, 0, 0].long()].T
        path = torch.stack([p, 1 - p], dim=2)
        levels = torch.zeros(3, len(raw), dtype=torch.int64)
        return Prediction(path[-1], path[-1:], path, torch.arange(3.0), levels, path, 3)

    monkeypatch.setattr(chain, "one_chain", run)
    x = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 8, 8)
    examples = Examples(x, torch.zeros(4, dtype=torch.int64))
    assert chain._hard_at_first(model, examples) == 2
    assert chain._hard_at_first(model, examples.take(torch.tensor([0, 1, 3]))) == 2
    assert chain._hard_at_first(model, examples.take(torch.tensor([1, 1]))) == 0  # none is right
