"""The documentation site: it has every page and every public name, and builds without a warning."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import noprop

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("sphinx", "furo", "myst_nb", "sphinxcontrib.mermaid", "matplotlib")


def absent() -> list[str]:
    """The packages of the extra that are not installed."""
    return [name for name in NEEDED if not find_spec(name.split(".")[0]) or not find_spec(name)]


def test_every_page_is_in_the_contents():
    """A page without an entry is found by nobody, and Sphinx warns of it."""
    trees = re.findall(r"```{toctree}\n(.*?)```", (ROOT / "docs/index.md").read_text(), flags=re.S)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    listed = {re.sub(r"^.*<(.+)>$", r"\1", line) for line in lines}
    pages = {p.stem for p in (ROOT / "docs").iterdir() if p.suffix in (".md", ".ipynb")} - {"index"}
    pages |= {f"../{page.stem}" for page in ROOT.glob("*.md")}
    assert listed == pages | {"../results/reproduction/*"}


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs/api.md").read_text()
    directives = set(re.findall(r"^\.\. auto\w+:: noprop\.(\w+)$", text, flags=re.M))
    in_words = {"RECIPES", "__version__"}  # values, which have no docstring
    assert in_words <= set(re.findall(r"`noprop\.(\w+)`", text))
    assert set(noprop.__all__) - in_words <= directives


def test_the_notebook_is_kept_without_outputs():
    """The site executes it; outputs would make every change unreadable."""
    text = (ROOT / "docs/tour.ipynb").read_text()
    notebook = json.loads(text)
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert {(cell["execution_count"], *cell["outputs"]) for cell in code} == {(None,)}


@pytest.mark.slow
@pytest.mark.skipif(bool(absent()), reason=f"not installed: {', '.join(absent())}; noprop[docs]")
def test_the_site_builds_without_a_warning(tmp_path):
    """A link to nothing, an unknown name or a malformed docstring is a warning, and so an error.

    So is a warning or an exception of the notebook, which is executed.
    """
    out = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E"]
    places = ["-d", str(tmp_path / "doctrees"), "-c", str(ROOT / "docs"), str(ROOT), str(out)]
    done = subprocess.run(command + places, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "docs/index.html" in (out / "index.html").read_text()
    reference = (out / "docs/api.html").read_text()
    missing = [
        name
        for name in set(noprop.__all__) - {"RECIPES", "__version__"}
        if not re.search(rf'id="noprop\.([\w.]+\.)?{name}"', reference)
    ]
    assert missing == []
    assert 'href="methods.html#adding-one"' in reference  # a link into a page, as GitHub writes it
    tour = (out / "docs/tour.html").read_text()
    assert len(re.findall(r'<img [^>]*src="../_images/\w+\.(?:png|gif)"', tour)) == 4
    assert re.search(r"\n?([1-9]\d*) of \1 tensors are equal to the last bit\n", tour)
    assert "units with a gradient: block-4\n" in tour
