"""The animation of a prediction: its frames are the chain's, and the last one has the answer."""

import pytest
import torch
from torch import Tensor

from noprop.build import build_embedding, build_method
from noprop.config import RunConfig, replace
from noprop.data import Examples, Normalization
from noprop.errors import ConfigError
from noprop.model import Model
from noprop.report import animation
from noprop.report.animation import Frame, animate, frames_of
from noprop.report.chain import one_chain
from noprop.task import Task
from tools import IN_PROCESS, remove_package, rng

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
# Method and length of the chain, and the frames: up to 4 a step, the first one and the answer.
FRAMES = [
    ({"method.name": "dt", "method.num_blocks": 3}, 14),
    ({"method.name": "dt", "method.num_blocks": 40}, 42),
    ({"method.name": "ct", "method.steps": 1000}, 42),
    ({"method.name": "fm", "method.steps": 25}, 52),
    ({"method.name": "backprop", "method.num_blocks": 2}, 10),
    ({"method.name": "greedy"}, 14),
]


def model_of(classes: int = 10, shape: tuple[int, ...] = (1, 8, 8), /, **changes) -> Model:
    """A model as training would leave it, but for the training."""
    name = changes["method.name"]
    if name in ("ct", "fm"):
        changes = {"method.steps": 5, **changes}
    parts = {"method.num_layers": 3} if name in ("greedy", "dfa") else {"method.encoder": "mlp"}
    config = replace(RunConfig(), {**IN_PROCESS, **changes, **parts})
    channels = shape[0]
    task = Task(
        shape,
        tuple(f"class {i}" for i in range(classes)),
        Normalization((0.5,) * channels, (0.2,) * channels),
    )
    method = build_method(config, task, build_embedding(config, task, None))
    for unit in method.units:
        unit.module.eval()
    return Model(config, task, method, torch.device("cpu"), False)


def examples_of(model: Model, count: int = 4) -> Examples:
    g = rng()
    x = torch.randint(0, 256, (count, *model.task.shape), generator=g).to(torch.uint8)
    return Examples(x, torch.arange(count) % model.task.num_classes)


@pytest.mark.parametrize(("changes", "count"), FRAMES, ids=lambda v: str(v))
def test_the_frames_are_the_levels_of_the_chain(changes, count):
    """A few frames a step, at most 60; at the levels the values are those of the prediction."""
    model = model_of(**changes)
    x, y = examples_of(model).x[2], 2
    frames, p = frames_of(model, x, y), one_chain(model, x[None])
    assert len(frames) == count <= 60
    levels = len(p.times)
    between = (count - 2) // (levels - 1)
    kept = frames[:-1:between]
    assert len(kept) == levels
    for level, frame in enumerate(kept):
        if model.config.method.stack:
            assert frame.cosine is None
            torch.testing.assert_close(frame.probabilities, p.latents[level, 0])
            continue
        unit = torch.nn.functional.normalize(model.method.embedding.weight.detach(), dim=1)
        near = torch.nn.functional.normalize(p.latents[level], dim=1) @ unit.T
        torch.testing.assert_close(frame.cosine, near[0])
        if level == 0 or p.path is None:
            assert not frame.probabilities.any()
        else:
            t = level * model.method.num_steps // (levels - 1)
            guess = p.path[(t - 1) * len(p.path) // model.method.num_steps, 0]
            torch.testing.assert_close(frame.probabilities, guess)
    if between > 1:  # halfway between noise and the first level
        middle = torch.lerp(kept[0].probabilities, kept[1].probabilities, 1 / between)
        torch.testing.assert_close(frames[1].probabilities, middle)


@pytest.mark.parametrize("name", ["dt", "ct", "fm", "backprop", "greedy"])
def test_the_last_frame_has_the_answer(name):
    model = model_of(**{"method.name": name})
    x = examples_of(model).x[1]
    single = one_chain(model, x[None]).single[0]
    found = int(single.argmax())
    percent = f"{100 * float(single.max()):.0f} %"
    last = frames_of(model, x, found)[-1]
    assert torch.equal(last.probabilities, single)
    assert last.text == f"answer: class {found} ({percent}), right"
    other = (found + 1) % 10
    wrong = f"answer: class {found} ({percent}), the true class is class {other}"
    assert frames_of(model, x, other)[-1].text == wrong


def widths_of(figure) -> list[list[float]]:
    panels = figure.axes[1:] if figure.subfigs else figure.axes  # the first has the input
    return [[bar.get_width() for bar in axis.patches] for axis in panels]


@pytest.mark.parametrize("name", ["dt", "backprop", "greedy"])
def test_the_file_is_small_loops_and_rests_on_the_answer(monkeypatch, tmp_path, name):
    """Every frame is in the file, the last one with the answer's heading and bars."""
    model, drawn = model_of(**{"method.name": name}), []
    original = animation._draw

    def record(figure, *rest):
        drawn.append(figure)
        return original(figure, *rest)

    monkeypatch.setattr(animation, "_draw", record)
    examples = examples_of(model)
    path = animate(model, examples, 1, tmp_path / "new" / "chain.gif")
    frames = frames_of(model, examples.x[1], 1)
    assert [p.name for p in path.parent.iterdir()] == ["chain.gif"]
    assert path.stat().st_size < 2_000_000
    with Image.open(path) as gif:
        assert gif.n_frames == len(frames)
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 800
        gif.seek(gif.n_frames - 1)
        assert gif.info["duration"] == 3000
        assert gif.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    (figure,) = drawn
    assert figure.get_suptitle() == frames[-1].text
    values = [v for v in (frames[-1].cosine, frames[-1].probabilities) if v is not None]
    assert widths_of(figure) == [pytest.approx(v.tolist()) for v in values]
    titles = [axis.get_title() for axis in figure.axes]
    assert ("class probabilities (at the end only)" in titles) == (name == "backprop")
    assert titles[0] == "test example 1\ntrue class: class 1"


def test_the_largest_file_is_below_2_mb(monkeypatch, tmp_path):
    """Sixty frames that share no bar, of an image of noise in colors, with twelve of 30 classes."""
    model = model_of(30, (3, 64, 64), **{"method.name": "dt", "method.num_blocks": 1})
    g = rng()
    p = torch.rand(60, 30, generator=g)
    frames = [Frame(f"t = {i}", 2 * torch.rand(30, generator=g) - 1, p[i]) for i in range(60)]
    monkeypatch.setattr(animation, "frames_of", lambda *_: frames)
    path = animate(model, examples_of(model), 1, tmp_path / "chain.gif")
    with Image.open(path) as gif:
        assert gif.n_frames == 60
    assert 100_000 < path.stat().st_size < 2_000_000


def test_features_have_no_picture_and_a_hostile_name_stays_text(tmp_path):
    model = model_of(2, (5,), **{"method.name": "dt", "method.num_blocks": 2})
    model.task = Task((5,), ("$\\frac{$", "two\nlines $"), Normalization((0.5,), (0.2,)))
    x: Tensor = torch.rand(3, 5, generator=rng())
    path = animate(model, Examples(x, torch.tensor([0, 1, 0])), 1, tmp_path / "chain.gif")
    assert path.read_bytes().startswith(b"GIF89a")


def test_what_cannot_be_animated_is_one_clear_line(tmp_path):
    model = model_of(**{"method.name": "dt"})
    for wrong in (-1, 4):
        with pytest.raises(ConfigError, match=f"example: .* 0 to 3, got {wrong}"):
            animate(model, examples_of(model), wrong, tmp_path / "chain.gif")
    none = examples_of(model).take(torch.arange(0))
    with pytest.raises(ConfigError, match="there is no example"):
        animate(model, none, None, tmp_path / "chain.gif")
    model = model_of(**{"method.name": "dfa"})
    with pytest.raises(ConfigError, match="in steps, such as dt, got dfa, which answers once"):
        animate(model, examples_of(model), 0, tmp_path / "chain.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "package"), [("matplotlib", "matplotlib"), ("PIL", "Pillow")])
def test_without_the_extra_there_is_one_clear_line(tmp_path, monkeypatch, name, package):
    model = model_of(**{"method.name": "dt"})
    remove_package(monkeypatch, name)
    with pytest.raises(ConfigError, match=rf"need {package}: pip install 'noprop\[plots\]'"):
        animate(model, examples_of(model), 0, tmp_path / "chain.gif")
