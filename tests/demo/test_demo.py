"""The demonstration without a browser: its answers are those of the model, and its HTML is text."""

import base64
import io
import re
from dataclasses import replace as changed

import pytest
import torch
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.data.drawings import as_digit
from noprop.demo.answers import (
    MAX_IMAGE,
    Answer,
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
    percent,
    pictures_markup,
    posterior_markup,
    text,
)
from noprop.errors import ConfigError, DataError
from noprop.model import Model
from noprop.task import Task
from tools import IN_PROCESS, rng

Image = pytest.importorskip("PIL.Image")
SHORT = {
    "dt": {"method.num_blocks": 2, "method.encoder": "mlp"},
    "ct": {"method.steps": 5, "method.encoder": "mlp"},
    "fm": {"method.steps": 5, "method.encoder": "mlp"},
    "backprop": {"method.num_blocks": 2, "method.encoder": "mlp"},
    "adjoint": {"method.encoder": "mlp"},
    "greedy": {"method.num_layers": 3},
    "dfa": {"method.num_layers": 3},
}
STACKS = ("ff", "greedy")  # that answer after each layer
STEPS = ("dt", "ct", "fm", "backprop", "adjoint", *STACKS)
ONCE = ("dtp", "dfa", "lg-fg-a")


def model_of(
    name: str = "dt",
    shape: tuple[int, ...] = (1, 8, 8),
    names: tuple[str, ...] = tuple(map(str, range(10))),
    dtype: str = "uint8",
    columns: tuple[str, ...] = (),
) -> Model:
    """A model as training would leave it, but for the training."""
    changes = {**IN_PROCESS, "method.name": name, **SHORT.get(name, {})}
    config = replace(RunConfig(), changes)
    normal = Normalization((0.5,) * shape[0], (0.2,) * shape[0])
    task = Task(shape, names, normal, dtype, columns)
    method = build_method(config, task, build_embedding(config, task, None))
    for unit in method.units:
        unit.module.eval()
    return Model(config, task, method, torch.device("cpu"), False)


def examples_of(model: Model, count: int = 4) -> Examples:
    x = torch.randint(0, 256, (count, *model.task.shape), generator=rng())
    return Examples(x.to(torch.uint8), torch.arange(count) % model.task.num_classes)


def ask(model: Model, samples: int = 7, noise: bool = True, seed: int = 3) -> Answer:
    question = from_example(examples_of(model), 1)
    return answer(model, question, samples=samples, noise=noise, seed=seed)


def png(image: Tensor, kind: str = "PNG") -> str:
    """An image as a browser sends it."""
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, kind)
    return f"data:image/x;base64,{base64.b64encode(file.getvalue()).decode()}"


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*STEPS, *ONCE} - {"adjoint"}))  # adjoint is slow
def test_the_answer_is_that_of_predict(name):
    """To the bit, with as many chains and the same seed; another seed gives another one."""
    model = model_of(name)
    found = ask(model)
    x = found.question.raw[None]
    assert torch.equal(found.probabilities, model.predict(x, samples=7, noise=True, seed=3)[0])
    chains = 7 if model.method.has_noise else 1
    assert found.ends.shape == (chains, 10)
    said = [int(end.argmax()) for end in found.ends]
    assert found.votes.tolist() == [said.count(i) for i in range(10)]
    of_ends = model.predict(x, samples=7, noise=True, seed=3, average="readout")[0]
    torch.testing.assert_close(found.ends.mean(dim=0), of_ends)
    assert torch.equal(ask(model, seed=4).probabilities, found.probabilities) == (chains == 1)
    assert ask(model, noise=False).ends.shape == (1, 10)


@pytest.mark.parametrize("name", STEPS)
def test_every_level_of_the_first_chain_is_shown(name):
    model = model_of(name)
    found = ask(model)
    assert len(found.levels) == len(found.prediction.times) > 2
    if found.prediction.path is None:
        return
    last = found.prediction.path[-1, 0]
    torch.testing.assert_close(found.levels[-1].probabilities, last)
    assert [frame.cosine is None for frame in found.levels] == [name in STACKS] * len(found.levels)


@pytest.mark.parametrize("name", ONCE)
def test_a_method_that_answers_once_shows_its_answer_alone(name):
    model = model_of(name)
    found = ask(model)
    assert found.levels == []
    assert "answers in one step" in level_markup(model, found, 0)
    assert pictures_markup(model, found) == ""
    assert '<div class="np-class">' in answer_markup(model, found)


def test_an_image_is_resized_as_by_predict_or_made_a_digit():
    model = model_of(shape=(1, 28, 28))
    drawn = torch.zeros(1, 100, 80, dtype=torch.uint8)
    drawn[0, 10:60, 20:30] = 255
    digit = from_image(model, png(drawn), digit=True)
    assert torch.equal(digit.raw, as_digit(drawn, 28))
    assert (digit.label, digit.picture is digit.raw) == (None, True)
    plain = from_image(model, png(drawn), digit=False)
    assert plain.raw.shape == (1, 28, 28)
    assert not torch.equal(plain.raw, digit.raw)
    same = torch.randint(0, 256, (1, 28, 28), generator=rng()).to(torch.uint8)
    assert torch.equal(from_image(model, png(same), digit=False).raw, same)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "image: wanted an address of the form data:"),
        ("/etc/passwd", "image: wanted an address"),
        ("file:///etc/passwd", "image: wanted an address"),
        ("data:image/png;base64,%%%", "image: is no base64"),
        ("data:image/png;base64,AAAA", "image: not a readable image of BMP"),
        ("too large", "image: has more than 10 MiB"),
        ("data:;base64," + "A" * (MAX_IMAGE * 4 // 3 + 100), "image: has more than 10 MiB"),
    ],
)
def test_what_is_no_image_is_one_line(address, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        from_image(model_of(), address, digit=True)
    assert "/tmp" not in str(caught.value)


def test_a_format_that_starts_a_program_is_refused():
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    address = f"data:image/eps;base64,{base64.b64encode(eps.getvalue()).decode()}"
    with pytest.raises(DataError, match="image: not a readable image of BMP"):
        from_image(model_of(), address, digit=False)


def test_numbers_are_the_row_and_are_checked():
    model = model_of(shape=(3,), dtype="float32", columns=("acid", "sugar", "salt"))
    assert image_shape(model) is None
    question = from_numbers(model, [1.5, -2.0, 3.0])
    assert question.raw.tolist() == [1.5, -2.0, 3.0]
    assert answer(model, question, samples=2, noise=True, seed=0).probabilities.shape == (10,)
    for wrong in (None, float("nan"), float("inf"), 1e39):
        with pytest.raises(DataError, match="sugar: wanted a number"):
            from_numbers(model, [1.0, wrong, 1.0])
    pixels = model_of(shape=(2,), dtype="uint8")
    with pytest.raises(DataError, match=re.escape("feature 1: wanted a whole number in 0..255")):
        from_numbers(pixels, [1.0, 256.0])


def test_what_is_out_of_range_is_one_line():
    model = model_of()
    with pytest.raises(ConfigError, match="0 to 3, got 4"):
        from_example(examples_of(model), 4)
    for chains in (0, 201):
        with pytest.raises(DataError, match="chains: wanted 1 to 200"):
            ask(model, samples=chains)


def test_drawings_are_made_digits_for_models_of_digits():
    model = model_of(shape=(1, 28, 28))
    for dataset, wanted in [("mnist", True), ("digits", True), ("fashion-mnist", False)]:
        other = changed(model, config=replace(model.config, {"data.dataset": dataset}))
        assert trained_on_digits(other) is wanted


# -- HTML ------------------------------------------------------------------------------------------


def widths(markup: str) -> list[float]:
    return [float(w) for w in re.findall(r"width:([\d.]+)%", markup)]


def test_bars_are_the_numbers():
    """Votes beside probabilities, and cosines from the middle beside probabilities."""
    model = model_of()
    found = ask(model)
    shares = torch.stack([found.votes / 7, found.probabilities], dim=1).flatten()
    torch.testing.assert_close(
        torch.tensor(widths(posterior_markup(model, found))), 100 * shares, atol=0.051, rtol=0
    )
    best = int(found.votes.argmax())
    assert f"{int(found.votes[best])} of 7 chains answer {best}" in posterior_markup(model, found)
    frame = found.levels[1]
    assert frame.cosine is not None
    numbers = torch.stack([frame.cosine.abs() / 2, frame.probabilities], dim=1).flatten()
    drawn = torch.tensor(widths(level_markup(model, found, 1)))
    torch.testing.assert_close(drawn, 100 * numbers, atol=0.051, rtol=0)


def test_the_true_class_is_marked():
    model = model_of()
    markup = answer_markup(model, ask(model))
    right = int(ask(model).probabilities.argmax()) == 1
    assert f'true class 1, <b class="np-{"right" if right else "wrong"}">' in markup
    assert level_markup(model, ask(model), 2).count('<tr class="np-own"><td>1</td>') == 1


def test_names_of_strangers_stay_text():
    evil = ("<script>alert(1)</script>", "${alert(2)}{{x}}`\\")
    model = model_of(names=evil)
    found = ask(model)
    for make in (answer_markup, posterior_markup, lambda m, a: level_markup(m, a, 1)):
        markup = make(model, found)
        assert "<script" not in markup
        assert not set("${}`\\") & set(markup)
    assert text("a\u202eb\n") == "a&#92;u202eb&#92;n"


def test_few_of_many_classes_get_a_bar():
    model = model_of(names=tuple(f"class {i}" for i in range(100)))
    assert posterior_markup(model, ask(model)).count("<tr") == 1 + 12


def test_pictures_are_those_of_plot():
    pytest.importorskip("matplotlib")
    for name, count in [("dt", 2), ("backprop", 1)]:
        model = model_of(name)
        assert pictures_markup(model, ask(model)).count("<img") == count


def test_an_image_is_shown_as_it_is():
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    for given in (image, image / 63, image.expand(3, 8, 8)):
        head, _, data = data_uri(given).partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert opened.mode == ("RGB" if len(given) == 3 else "L")
            assert opened.size == (8, 8)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0.0 %"),
        (1e-9, "&lt;0.1 %"),
        (0.125, "12.5 %"),
        (0.99999, "&gt;99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_a_share_is_zero_or_whole_only_if_it_is(share, shown):
    assert percent(share) == shown
