"""Draw the floors of the package in docs/architecture.md, from the imports themselves.

Each box is a floor of the layers contract in pyproject.toml. An arrow leads to a floor that is
imported, unless a longer way over other arrows leads there too.

    python studies/floors.py         # needs import-linter, which noprop[dev] brings
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import grimp

__all__ = ["draw", "floors", "imports_of_floors", "replaced"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- floors: written by studies/floors.py -->\n", "<!-- end of floors -->\n"
WIDTH = 70  # characters of a line in a box


def floors() -> list[list[str]]:
    """Return the modules of each floor, from the top, as the layers contract lists them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return [[name.strip().removeprefix("noprop.") for name in layer.split("|")] for layer in layers]


def imports_of_floors(names: Sequence[Sequence[str]]) -> dict[int, set[int]]:
    """Return the floors that the modules of each floor import, by number from the top."""
    graph = grimp.build_graph("noprop", exclude_type_checking_imports=True, cache_dir=None)
    floor_of = {f"noprop.{name}": i for i, floor in enumerate(names) for name in floor}
    imports: dict[int, set[int]] = {i: set() for i in range(len(names))}
    for module in graph.modules:
        here = floor_of.get(".".join(module.split(".")[:2]))
        for imported in graph.find_modules_directly_imported_by(module):
            there = floor_of.get(".".join(imported.split(".")[:2]))
            if here is not None and there is not None and here != there:
                imports[here].add(there)
    return imports


def without_detours(imports: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Leave out each import that other imports lead to (the transitive reduction)."""
    below: dict[int, set[int]] = {}
    for floor in sorted(imports, reverse=True):  # imports point down, so these are known
        below[floor] = imports[floor].union(*(below[i] for i in imports[floor]))
    return {
        floor: {i for i in there if not any(i in below[j] for j in there)}
        for floor, there in imports.items()
    }


def draw(names: Sequence[Sequence[str]], imports: Mapping[int, set[int]]) -> str:
    """Return the drawing as a Mermaid block.

    Args:
        names: Modules of each floor, from the top.
        imports: Floors that each floor imports; all lie below it.
    """
    lines = ["```mermaid", "flowchart TD"]
    for i, floor in enumerate(names):
        lines.append(f'  f{i}["{_wrapped(floor)}"]')
    for i, there in without_detours(imports).items():
        lines += [f"  f{i} --> f{j}" for j in sorted(there)]
    return "\n".join([*lines, "```", ""])


def _wrapped(words: Sequence[str]) -> str:
    text, length = "", 0
    for word in words:
        if text:
            text, length = (text + "<br>", 0) if length > WIDTH else (text + " · ", length + 3)
        text, length = text + word, length + len(word)
    return text


def replaced(page: str, drawing: str) -> str:
    """Return a page with the drawing between its two markers.

    Raises:
        ValueError: If the page does not have both markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name}: wanted the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + "\n" + drawing + "\n" + end + after


if __name__ == "__main__":
    all_floors = floors()
    drawn = draw(all_floors, imports_of_floors(all_floors))
    PAGE.write_text(replaced(PAGE.read_text(), drawn))
