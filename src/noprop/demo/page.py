"""The page: inputs on the left, answers on the right, with gradio.

Everything that is shown is text and inline images, so the page needs no other file and no network.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import torch

from noprop.data import Examples
from noprop.demo.answers import (
    MAX_CHAINS,
    MAX_IMAGE,
    Answer,
    Question,
    answer,
    from_example,
    from_image,
    from_numbers,
    image_shape,
    trained_on_digits,
)
from noprop.demo.markup import (
    answer_markup,
    data_uri,
    level_markup,
    pictures_markup,
    posterior_markup,
    text,
)
from noprop.errors import ConfigError, NoPropError
from noprop.model import Model
from noprop.report.chain import choose_example
from noprop.terminal import printable

__all__ = ["build_page"]

THUMBNAILS = 24
MOST_NUMBERS = 64  # a row of more cannot be edited
CHAINS = 50
SECONDS_A_STEP = 0.3
FONTS = ("system-ui", "sans-serif")
DIGIT_HELP = (
    "As MNIST was made: scaled into 20x20 of 28x28 pixels, with the centre of mass in the middle"
)
HINT = '<div class="np-note">Draw, drop an image, or choose an example.</div>'


def build_page(model: Model, examples: Examples | None) -> tuple[Any, dict[str, Any]]:
    """Return the page, and the options with which gradio serves it.

    Args:
        model: The model.
        examples: The test part; None if it cannot be had.

    Raises:
        ConfigError: If gradio or matplotlib is missing, or the inputs of the model can neither be
            drawn, typed nor chosen.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            import gradio  # pyright: ignore[reportMissingImports]
            import matplotlib  # noqa: F401 (for the pictures)
    except ImportError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'noprop[demo]'") from None
    with warnings.catch_warnings(action="ignore"):
        theme = gradio.themes.Default(font=FONTS, font_mono=("monospace",))
        page = Page(model, examples, gradio).blocks
    return page, {"theme": theme, "css": _file("style.css")}


def _file(name: str) -> str:
    return (files("noprop.demo") / name).read_text(encoding="utf-8")


class Page:
    """The components, and what happens when they change.

    Args:
        model: The model.
        examples: The test part; None if it cannot be had.
        gr: The module gradio.

    Attributes:
        blocks: The page.
    """

    def __init__(self, model: Model, examples: Examples | None, gr: Any):
        self.model, self.examples, self.gr = model, examples, gr
        shape = model.task.shape
        self.takes_images = image_shape(model) is not None
        self.takes_numbers = len(shape) == 1 and shape[0] <= MOST_NUMBERS and not self.takes_images
        self.count = 0 if examples is None else len(examples)
        if not (self.takes_images or self.takes_numbers or self.count):
            raise ConfigError(
                f"{printable(model.folder)}: the model takes {model.task.dtype} of shape {shape}, "
                "which can be neither drawn nor typed, and its data cannot be found"
            )
        empty = torch.zeros(shape, dtype=getattr(torch, model.task.dtype))
        self.levels = len(self._answer(Question(empty, None, None, ""), 1, True, 0).levels)
        self.first = self._first()
        self.blocks = gr.Blocks(title=f"noprop {model.config.recipe}", analytics_enabled=False)
        with self.blocks:
            self._build()

    def _first(self) -> int | None:
        """Return the index of the example that the page begins with, if it has any."""
        if not self.count or self.examples is None:
            return None
        some = torch.arange(min(THUMBNAILS, self.count))
        return choose_example(self.model, self.examples.take(some), None)

    # -- components --------------------------------------------------------------------------------

    def _build(self) -> None:
        gr = self.gr
        gr.HTML(self._title())
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tabs():
                    connect = self._inputs()
            with gr.Column(scale=3, min_width=320):
                self._outputs()
        for each in connect:
            each()
        self._connect_settings()

    def _title(self) -> str:
        config, results = self.model.config, self.model.results
        known = f", {results['accuracy']:.2f} % of the test part right" if results else ""
        data = text(config.data.dataset)
        return f"<h2>{text(config.recipe)}</h2>{text(config.method.name)} on {data}{known}"

    def _inputs(self) -> list[Callable[[], None]]:
        """Build a tab for each kind of input, and return what connects them to the outputs."""
        gr, connect = self.gr, []
        if self.takes_images:
            with gr.Tab("Draw or drop an image"):
                connect.append(self._canvas())
        if self.takes_numbers:
            with gr.Tab("Numbers"):
                connect.append(self._numbers())
        elif self.count:
            with gr.Tab("Test examples"):
                connect.append(self._chooser())
        return connect

    def _canvas(self) -> Callable[[], None]:
        gr, shape = self.gr, image_shape(self.model)
        assert shape is not None
        colour = '<input type="color" value="#ffffff" aria-label="Colour">' if shape[0] == 3 else ""
        canvas = gr.HTML(
            html_template='<div class="np-pad"><canvas width="280" height="280" tabindex="0" '
            'aria-label="Draw here, or drop an image"></canvas><div class="np-tools">'
            '<button type="button">Clear</button>'
            f'<label>Image<input type="file" accept="image/*"></label>{colour}</div></div>',
            js_on_load=_file("canvas.js").replace("__MAX_IMAGE__", str(MAX_IMAGE)),
            elem_id="canvas",
        )
        digit = gr.Checkbox(
            trained_on_digits(self.model),
            label="Crop, scale and centre as a digit",
            info=DIGIT_HELP,
            visible=shape[0] == 1 and shape[1] == shape[2],
            elem_id="digit",
        )

        def drawn(address: str | None, digit: bool, *settings: Any) -> Any:
            if not address:  # the canvas was cleared
                return [None, None, HINT, gr.skip(), "", ""]
            return self._show(lambda: from_image(self.model, address, digit=digit), settings)

        def again(question: Question | None, digit: bool, *settings: Any) -> Any:
            address = question.source if question else ""
            if not address:
                return [gr.skip()] * len(self.outputs)
            return self._show(lambda: from_image(self.model, address, digit=digit), settings)

        def connect() -> None:
            self._ask(canvas.input, drawn, [canvas, digit])
            self._ask(digit.input, again, [self.question, digit])

        return connect

    def _numbers(self) -> Callable[[], None]:
        gr, task = self.gr, self.model.task
        chosen = self._index() if self.count else None
        names = task.columns or [f"feature {i}" for i in range(task.shape[0])]
        if self.first is not None and self.examples is not None:
            values = self.examples.x[self.first].tolist()
        else:
            values = list(task.normalization.mean)
        with gr.Row():
            numbers = [
                gr.Number(float(f"{value:.6g}"), label=printable(name), min_width=120)
                for name, value in zip(names, values, strict=True)
            ]

        def typed(*values: Any) -> Any:
            row, settings = values[: len(numbers)], values[len(numbers) :]
            return self._show(lambda: from_numbers(self.model, row), settings)

        def filled(index: Any, *settings: Any) -> Any:
            shown = self._show(lambda: self._example(index), settings)
            found = isinstance(shown[0], Question)
            return [*shown, *(shown[0].raw.tolist() if found else [gr.skip()] * len(numbers))]

        def connect() -> None:
            self._ask([n.input for n in numbers], typed, numbers)
            if chosen:
                self._connect_index(chosen, filled, numbers)
            else:
                self._ask(self.blocks.load, typed, numbers)

        return connect

    def _index(self) -> tuple[Any, Any]:
        """Build the number of a test example and the button for another, and return both."""
        gr = self.gr
        with gr.Row():
            index = gr.Number(
                self.first,
                label=f"Test example, 0 to {self.count - 1}",
                precision=0,
                elem_id="example",
                min_width=160,
            )
            another = gr.Button("Another", elem_id="another", min_width=100)
        return index, another

    def _chooser(self) -> Callable[[], None]:
        gr = self.gr
        thumbnails = gr.HTML(
            html_template=self._thumbnails(),
            js_on_load='element.addEventListener("click", (event) => {'
            'const found = event.target.closest("button");'
            "if (found) { props.value = Number(found.dataset.index); trigger('select'); } });",
            elem_id="examples",
            visible=self.takes_images,
        )
        chooser = self._index()

        def chosen(index: Any, *settings: Any) -> Any:
            return self._show(lambda: self._example(index), settings)

        def connect() -> None:
            picked = thumbnails.select(None, thumbnails, chooser[0], js="(index) => index")
            self._ask(picked.then, chosen, [chooser[0]])
            self._connect_index(chooser, chosen, [])

        return connect

    def _thumbnails(self) -> str:
        """Return the first test examples as buttons; none that are no images."""
        if not self.takes_images or self.examples is None or self.model.config.data.features:
            return ""
        names, y = self.model.class_names, self.examples.y.tolist()
        buttons = [
            f'<button type="button" data-index="{i}" title="{text(names[y[i]])}">'
            f'<img alt="example {i}" src="{data_uri(self.examples.x[i].cpu())}"></button>'
            for i in range(min(THUMBNAILS, self.count))
        ]
        return f'<div class="np-examples">{"".join(buttons)}</div>'

    def _settings(self) -> None:
        gr, method = self.gr, self.model.method
        has_noise = method.has_noise and self.levels > 0
        self.chains = gr.Slider(
            *(1, MAX_CHAINS), CHAINS, step=1, label="Chains", elem_id="chains", visible=has_noise
        )
        with gr.Row():
            self.noise = gr.Checkbox(
                has_noise, label="Noise", info="without it, one mean chain", elem_id="noise",
                min_width=160, visible=has_noise,
            )  # fmt: skip
            self.seed = gr.Number(
                0, label="Seed", precision=0, elem_id="seed", min_width=100, visible=has_noise
            )
            self.new = gr.Button("New noise", elem_id="new-noise", visible=has_noise, min_width=100)

    def _outputs(self) -> None:
        gr, last = self.gr, max(1, self.levels - 1)
        self.question, self.answered = gr.State(None), gr.State(None)
        headline = gr.HTML(HINT, elem_id="answer")
        self._settings()
        gr.HTML("<h3>Step by step</h3>")
        with gr.Row():
            self.step = gr.Slider(
                *(0, last), last, step=1, label="Step", elem_id="step", visible=self.levels > 1,
                min_width=240,
            )  # fmt: skip
            self.play = gr.Button("Play", elem_id="play", scale=0, visible=self.levels > 1)
        level = gr.HTML(elem_id="level")
        posterior = gr.HTML(elem_id="posterior")
        self.pictures = gr.HTML(elem_id="pictures")
        self.outputs = [self.question, self.answered, headline, self.step, level, posterior]
        shown = [self.step, level]
        self.playing = self.play.click(self._play, self.answered, shown, show_progress="hidden")

    # -- what happens ------------------------------------------------------------------------------

    def _ask(
        self, event: Any, handler: Any, given: list[Any], more: list[Any] | None = None
    ) -> None:
        """Let events ask the model, show its answer, and then draw the pictures.

        A question that comes while another is answered waits, and a later one takes its place. The
        browser then reads the inputs again, but it sends the data of the *first* event, and after
        an error it sends nothing. So questions are inputs, not data of events, and no handler
        raises an error.
        """
        gr = self.gr
        given = [*given, self.chains, self.noise, self.seed]
        outputs = [*self.outputs, *(more or [])]
        how = {"trigger_mode": "always_last", "show_progress": "hidden"}
        asked = {**how, "concurrency_id": "model", "cancels": self.playing}
        if isinstance(event, list):
            done = gr.on(event, handler, given, outputs, **asked)
        else:
            done = event(handler, given, outputs, **asked)
        # With a queue of their own: they take longer than an answer, which need not wait for them.
        done.then(self._pictures, self.answered, self.pictures, **how, concurrency_id="pictures")

    def _connect_index(self, chooser: tuple[Any, Any], handler: Any, more: list[Any]) -> None:
        index, another = chooser
        self._ask([index.submit, index.input, self.blocks.load], handler, [index], more)
        drawn = another.click(
            None, None, index, js=f"() => Math.floor({self.count} * Math.random())"
        )
        self._ask(drawn.then, handler, [index], more)

    def _connect_settings(self) -> None:
        def again(question: Question | None, *settings: Any) -> Any:
            if question is None:
                return [self.gr.skip()] * len(self.outputs)
            return self._show(lambda: question, settings)

        changed = [self.chains.release, self.chains.input, self.noise.input, self.seed.input]
        self._ask(changed, again, [self.question])
        renewed = self.new.click(None, self.seed, self.seed, js="(seed) => (seed ?? 0) + 1")
        self._ask(renewed.then, again, [self.question])
        if self.levels > 1:
            level = self.outputs[4]
            given = [self.answered, self.step]
            how = {"trigger_mode": "always_last", "show_progress": "hidden"}
            self.step.input(self._level, given, level, **how, cancels=self.playing)

    def _example(self, index: Any) -> Question:
        assert self.examples is not None
        if index is None:
            raise ConfigError(f"example: wanted a number, 0 to {self.count - 1}")
        return from_example(self.examples, int(index))

    def _answer(self, question: Question, chains: Any, noise: Any, seed: Any) -> Answer:
        if seed is None:
            raise ConfigError("seed: wanted a whole number")
        return answer(self.model, question, samples=int(chains), noise=bool(noise), seed=int(seed))

    def _show(self, ask: Callable[[], Question], settings: Any) -> list[Any]:
        """Return what :attr:`outputs` show: an answer, or an error in its place."""
        try:
            question = ask()
            found = self._answer(question, *settings)
        except NoPropError as error:
            skip = self.gr.skip()  # the question stays, for which a setting can be mended
            return [skip, None, f'<div class="np-wrong">{text(error)}</div>', skip, "", ""]
        last = max(0, self.levels - 1)
        model = self.model
        headline, level = answer_markup(model, found), level_markup(model, found, last)
        posterior = f"<h3>Posterior</h3>{posterior_markup(model, found)}" if self.levels else ""
        return [question, found, headline, max(1, last), level, posterior]

    def _level(self, found: Answer | None, step: Any) -> str:
        return level_markup(self.model, found, min(int(step), self.levels - 1)) if found else ""

    def _play(self, found: Answer | None) -> Iterator[tuple[int, str]]:
        for step in range(self.levels if found else 0):
            yield step, self._level(found, step)
            time.sleep(SECONDS_A_STEP)

    def _pictures(self, found: Answer | None) -> str:
        if found is None or not found.levels:
            return ""
        return f"<h3>All steps</h3>{pictures_markup(self.model, found)}"
