"""The examples of docstrings give what they say, and stand in the API reference."""

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for path in (ROOT / "src").rglob("*.py") if ">>>" in path.read_text()]
NAMES = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in SOURCES]


def examples() -> dict[str, doctest.DocTest]:
    """Return the docstrings that have examples, by the name of what they describe."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in NAMES for test in finder.find(importlib.import_module(name), name)]
    return {test.name: test for test in found if test.examples}


EXAMPLES = examples()
SLOW = {"noprop.api.train", "noprop.api.train_units"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in sorted(EXAMPLES)],
)
def test_an_example_gives_what_it_says(name, trained_run, tmp_path, monkeypatch):
    """The folder has the run that an example loads, and a place for one that it makes."""
    if any("noprop.load(" in example.source for example in EXAMPLES[name].examples):
        shutil.copytree(trained_run("digits-dt"), tmp_path / "runs/digits-dt")
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    doctest.DocTestRunner().run(EXAMPLES[name], out=report.append)
    assert not report, "".join(report)


def test_the_reference_shows_the_examples():
    assert len(EXAMPLES) > 15
    text = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^\.\. auto\w+:: (noprop\.[\w.]+)$", text, flags=re.M))
    homes = {"noprop.api": "noprop", "noprop.model": "noprop"}  # where public names come from
    for name in EXAMPLES:
        module, _, rest = name.rpartition(".")
        if module == "noprop.model.Model":  # a method of a class that is shown
            module, rest = "noprop.model", "Model"
        assert f"{homes.get(module, module)}.{rest}" in shown, name
