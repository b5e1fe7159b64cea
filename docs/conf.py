"""The documentation site: ``sphinx-build -W -c docs . build/site`` writes it, and begins at docs/.

The source directory is the repository, so that a link which works on GitHub works on the site.
"""

import re
from typing import Any

from noprop import __version__

project = "noprop"
author = copyright = "The noprop developers"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/*.ipynb", "*.md", "results/reproduction/*.md"]
exclude_patterns = [".*", "bench*", "build", "dist", "examples", "runs", "src", "studies", "tests"]

myst_heading_anchors = 4  # links to a heading are those of GitHub
myst_fence_as_directive = ["mermaid"]

nb_execution_mode = "force"  # notebooks are kept without outputs, and executed here
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds of one cell, on a busy machine
nb_output_stderr = "error"  # a warning is written there
nb_mime_priority_overrides = [("html", "image/gif", 35)]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"noprop {version}"
html_copy_source = False
html_extra_path = ["site"]  # a first page that leads to docs/index.html


def formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn ``$...$`` of a docstring into a formula of reStructuredText."""
    text = re.sub(r"\$([^$`]+)\$", r":math:`\1`", "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    """Register the change of docstrings."""
    app.connect("autodoc-process-docstring", formulas)
