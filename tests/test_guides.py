"""The guide pages: each command and script runs as it stands, for one epoch on small data."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from noprop.cli import main

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Later options win: these shorten what a page asks for.
SHORT = {
    "train": ["--epochs=1", "--workers=1", "--quiet"],
    "grid": ["--epochs=1", "--workers=1", "--quiet", "--seeds=0", "--train-size=100"],
}


def make_photos(folder: Path) -> None:
    """Dark and light noise, in two class folders."""
    Image = pytest.importorskip("PIL.Image", reason="pip install 'noprop[images]'")
    rng = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 190)):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(level - 50, level + 50, (40, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")


def make_table(path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal(k):.3f},{rng.normal():.3f},{'rw'[k]}" for k in (0, 1) for _ in range(60)]
    path.write_text("\n".join(["acid,sugar,colour", *rows]))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["train-on-images", "train-on-a-table", "compare-rules"])
def test_the_commands_of_a_guide_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    make_table(tmp_path / "wine.csv")
    blocks = re.findall(r"```(\w*)\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.S)
    lines = [line for kind, text in blocks if not kind for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("noprop ")]
    assert len(commands) > 3
    for _, command, *words in commands:
        if not any(word.startswith("timm:") for word in words):  # it would download weights
            assert main([command, *words, *SHORT.get(command, [])]) == 0, (command, words)
    for kind, text in blocks:
        if kind == "python":
            exec(text, {})
            assert "tensor(" in capsys.readouterr().out or page == "train-on-a-table"
