"""The page of the demonstration in a real browser, without a network: draw, choose, drop, change.

It needs gradio, Playwright for Python, and Debian's chromium (``apt-get install chromium``).
"""

import base64
import gc
import http.client
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from noprop.cli import main
from noprop.data import Examples
from noprop.data.drawings import as_digit
from noprop.demo.answers import answer, from_image
from noprop.demo.markup import data_uri, pictures_markup
from noprop.errors import ConfigError
from noprop.model import Model, load
from test_demo import model_of, png

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECOND = 1000  # of Playwright, in milliseconds
PATIENCE = 120 * SECOND  # of a busy machine
DEFAULTS = {"samples": 50, "noise": True, "seed": 0}
WATCH = """() => {
    window.levels = [];
    const level = document.querySelector("#level");
    const look = () => window.levels.push(level.innerText);
    new MutationObserver(look).observe(
        level, { subtree: true, childList: true, characterData: true });
}"""
# Strokes on the canvas, of 280 pixels.
FOUR = [[(160, 40), (70, 160), (220, 160)], [(170, 110), (170, 240)]]
THREE = [[(80, 60), (150, 50), (190, 90), (130, 130), (195, 175), (160, 225), (80, 220)]]


def needs_gradio() -> None:
    """Skip a test without gradio, which is not imported here: that takes seconds."""
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install 'noprop[demo]'")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on digits that is right nearly always, trained in seconds."""
    needs_gradio()
    folder = tmp_path_factory.mktemp("demo") / "run"
    size = ["--num-blocks=3", "--encoder=mlp", "--epochs=15", "--workers=1", "--evaluation=off"]
    assert main(["train", "digits-dt", *size, "--quiet", f"--run={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    """The address of the page, which another process serves at a free port."""
    needs_gradio()
    command = [sys.executable, "-m", "noprop", "demo", str(run), "--port=0", "--json", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        yield json.loads("".join(lines))["address"]
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Any]:
    """The page, with its first answer; a request to elsewhere or an error of a script fails."""
    page, troubles = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("response", lambda r: r.status >= 400 and troubles.append(f"{r.status} {r.url}"))
    page.on("request", lambda r: _is_elsewhere(r.url, address) and troubles.append(r.url))
    page.goto(address)
    page.wait_for_selector("#pictures img")
    yield page
    page.close()
    assert troubles == []


def _is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def draw(page: Any, strokes: list[list[tuple[int, int]]]) -> None:
    page.get_by_role("button", name="Clear").click()
    wait_for(page, "#answer", "Draw, drop an image")
    box = page.locator("#canvas canvas").bounding_box()
    scale = box["width"] / 280
    for (x, y), *rest in strokes:
        page.mouse.move(box["x"] + x * scale, box["y"] + y * scale)
        page.mouse.down()
        for x, y in rest:
            page.mouse.move(box["x"] + x * scale, box["y"] + y * scale, steps=10)
        page.mouse.up()


def drop(page: Any, *files: bytes, clear: bool = False) -> None:
    """Drop files on the canvas one after the other; clear it before the last of them is read."""
    page.evaluate(
        """async ([files, clear]) => {
            for (const bytes of files) {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
                document.querySelector("#canvas canvas").dispatchEvent(
                    new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
                if (clear) document.querySelector("#canvas button").click();
                await new Promise((done) => setTimeout(done, 30));
            }
        }""",
        [[list(file) for file in files], clear],
    )


def png_bytes(image: Tensor) -> bytes:
    return base64.b64decode(png(image).partition(",")[2])


def wait_for_input(page: Any, image: Tensor) -> None:
    """Wait until an image is shown as what the model reads."""
    page.wait_for_function(
        "src => document.querySelector('#answer img.np-input')?.src === src", arg=data_uri(image)
    )


def wait_for(page: Any, place: str, words: str) -> str:
    """Wait until the text of a place has some words, and return it."""
    found = page.locator(place, has_text=words)
    found.wait_for()
    return found.inner_text()


def changed(page: Any, place: str, before: str) -> str:
    """Wait until the HTML of a place differs, and return it."""
    page.wait_for_function(
        "([place, before]) => document.querySelector(place).innerHTML !== before",
        arg=[place, before],
    )
    return page.inner_html(place)


@pytest.mark.slow
def test_a_digit_that_is_drawn_is_answered(page):
    """With its picture, bars of every step, votes of the chains, and pictures of all steps."""
    draw(page, FOUR)
    page.wait_for_function("document.querySelector('#answer .np-class')?.innerText === '4'")
    seen = page.get_attribute("#answer img.np-input", "src")
    assert "of 50 chains answer 4" in wait_for(page, "#posterior", "of 50 chains")
    assert "t = 3 of 3" in page.inner_text("#level")
    page.wait_for_selector("#pictures img")
    draw(page, THREE)
    page.wait_for_function("document.querySelector('#answer .np-class')?.innerText === '3'")
    assert page.get_attribute("#answer img.np-input", "src") != seen


@pytest.mark.slow
def test_chains_and_seed_change_the_answer(page):
    draw(page, FOUR)
    wait_for(page, "#posterior", "of 50 chains")
    before, pictures = page.inner_html("#posterior"), page.inner_html("#pictures")
    page.get_by_role("button", name="New noise").click()
    before = changed(page, "#posterior", before)
    changed(page, "#pictures", pictures)
    page.wait_for_function("document.querySelector('#seed input').value === '1'")
    page.locator("#chains input[type=number]").fill("20")
    page.locator("#chains input[type=number]").press("Enter")
    wait_for(page, "#posterior", "of 20 chains")
    page.get_by_label("Noise", exact=True).uncheck()
    wait_for(page, "#posterior", "One chain")


@pytest.mark.slow
def test_the_steps_are_shown_one_after_the_other(page):
    page.locator("#step input[type=number]").fill("0")
    page.locator("#step input[type=number]").press("Enter")
    assert ": noise" in wait_for(page, "#level", "t = 0 of 3")
    page.evaluate(WATCH)
    page.get_by_role("button", name="Play").click()
    wait_for(page, "#level", "t = 3 of 3")
    seen = " ".join(page.evaluate("window.levels"))
    places = [seen.index(f"t = {t} of 3") for t in (1, 2, 3)]
    assert places == sorted(places)


@pytest.mark.slow
def test_an_example_is_chosen_by_its_image_or_number(page, run):
    model = load(run)
    examples = model.examples("test")
    page.get_by_role("tab", name="Test examples").click()
    page.locator("#examples button").nth(5).click()
    wait_for(page, "#answer", f"test example 5: true class {int(examples.y[5])}")
    assert page.input_value("#example input") == "5"
    page.locator("#example input").fill("7")
    page.locator("#example input").press("Enter")
    wait_for(page, "#answer", f"test example 7: true class {int(examples.y[7])}")
    p = model.predict(examples.x[7:8], samples=50, seed=0)[0]
    assert page.inner_text("#answer .np-class") == model.class_names[int(p.argmax())]
    assert f"{100 * float(p.max()):.1f} %" in page.inner_text("#answer")
    page.locator("#example input").fill("99999")
    page.locator("#example input").press("Enter")
    page.get_by_text("wanted a number of a test example, 0 to 358, got 99999").wait_for()


@pytest.mark.slow
def test_an_image_is_dropped_or_chosen(page, tmp_path):
    """A file that the page opens, and one that is dropped on the canvas; no image is an error."""
    Image = pytest.importorskip("PIL.Image")
    pixels = torch.full((60, 60), 240, dtype=torch.uint8)  # a dark stroke on light paper
    pixels[10:50, 27:33] = 30
    file = tmp_path / "stroke.png"
    Image.fromarray(pixels.numpy()).save(file)
    page.locator("#canvas input[type=file]").set_input_files(file)
    wait_for(page, "#answer", "your image")
    before = page.inner_html("#answer")
    page.get_by_label("Crop, scale and centre").uncheck()
    before = changed(page, "#answer", before)
    pixels[10:50, 27:33], pixels[27:33, 10:50] = 240, 30
    Image.fromarray(pixels.numpy()).save(file)
    drop(page, file.read_bytes())
    changed(page, "#answer", before)
    drop(page, b"no image")
    page.get_by_text("image: not a readable image").wait_for()


@pytest.mark.slow
def test_the_last_of_many_questions_is_answered(page, run):
    """Asked while earlier ones are answered and drawn; one that is no image loses no later one."""
    model, images = load(run), []
    for column in range(1, 7):
        image = torch.zeros(1, 8, 8, dtype=torch.uint8)
        image[0, 1:7, column] = 255
        images.append(image)
    page.get_by_label("Crop, scale and centre").uncheck()
    drop(page, *(png_bytes(image) for image in images))
    wait_for_input(page, images[-1])
    drop(page, b"no image", *(png_bytes(image) for image in images[:3]))
    wait_for_input(page, images[2])
    found = answer(model, from_image(model, png(images[2]), digit=False), **DEFAULTS)
    drawn = re.findall('src="([^"]+)"', pictures_markup(model, found))
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('#pictures img')].map((i) => i.src).join() "
        "=== wanted",
        arg=",".join(drawn),
    )


@pytest.mark.slow
def test_a_cleared_canvas_stays_without_an_answer(page):
    """Also where a file was dropped just before and is still read, or its pictures are drawn."""
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 1:7, 3] = 255
    drop(page, *[png_bytes(image)] * 3)
    wait_for_input(page, as_digit(image, 8))
    drop(page, png_bytes(image), clear=True)
    wait_for(page, "#answer", "Draw, drop an image")
    page.wait_for_function("!document.querySelector('#pictures img')")
    page.wait_for_timeout(2 * SECOND)  # what was asked before would be shown in this time
    assert "Draw, drop an image" in page.inner_text("#answer")
    assert page.locator("#pictures img").count() == 0


@pytest.mark.slow
def test_a_new_question_ends_the_play_of_the_old_one(page):
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('#level').innerText.includes('t = 0 of 3')")
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 1:7, 3] = 255
    drop(page, png_bytes(image))
    wait_for_input(page, as_digit(image, 8))
    wait_for(page, "#level", "t = 3 of 3")
    page.evaluate(WATCH)
    page.wait_for_timeout(2 * SECOND)  # in which the old play would show its other steps
    assert all("t = 3 of 3" in seen for seen in page.evaluate("window.levels"))
    assert "t = 3 of 3" in page.inner_text("#level")


@pytest.mark.slow
def test_the_page_fits_a_telephone(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_no_file_can_be_read_through_it(address, run):
    """Neither by a route of gradio, nor as the image of a question."""
    host = address.removeprefix("http://").rstrip("/")

    def status(method: str, path: str, body: str | None = None) -> int:
        connection = http.client.HTTPConnection(host, timeout=60)
        with closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().status

    assert status("GET", "/") == 200
    for path in ("/etc/passwd", f"{run}/config.toml", "pyproject.toml"):
        assert status("GET", f"/gradio_api/file={path}") == 404
        assert status("GET", f"/static/..{path}") in (403, 404)
        assert status("GET", f"/assets/%2e%2e/%2e%2e{path}") in (403, 404)
    assert status("POST", "/gradio_api/upload", "x") == 404


def built(model: Model, examples: Examples | None) -> dict[str, dict[str, Any]]:
    """Build a page, and return the properties of its components by label."""
    needs_gradio()
    from noprop.demo.page import build_page

    page, _ = build_page(model, examples)
    found = {c["props"].get("label"): c["props"] for c in page.config["components"]}
    gc.collect()  # of sockets that gradio leaves open, which are this test's to excuse
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_inputs_that_cannot_be_had_are_one_line():
    with pytest.raises(ConfigError, match=r"float32 of shape \(2, 3, 3\), which can be neither"):
        built(model_of(shape=(2, 3, 3), dtype="float32"), None)
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["dt", "dtp"])
def test_a_table_has_a_field_for_each_column(name):
    """They begin with an example, or else with the means; beyond 64 there are examples alone."""
    columns = ("acid", "sugar")
    model = model_of(name, shape=(2,), dtype="float32", columns=columns)
    examples = Examples(torch.tensor([[1.5, 2.5]]), torch.tensor([0]))
    for part, values in [(examples, [1.5, 2.5]), (None, [0.5, 0.5])]:
        fields = built(model, part)
        assert [fields[name]["value"] for name in columns] == values
