"""The drawing of the floors in docs/architecture.md is that of the imports."""

import floors


def test_the_page_shows_the_floors_as_they_are():
    """After a change of imports: ``python studies/floors.py``."""
    names = floors.floors()
    page = floors.PAGE.read_text()
    assert floors.replaced(page, floors.draw(names, floors.imports_of_floors(names))) == page


def test_an_arrow_is_left_out_where_others_lead_there():
    imports = {0: {1, 2}, 1: {2}, 2: set()}
    drawing = floors.draw([["a", "b"], ["c"], ["d"]], imports)
    assert [line.strip() for line in drawing.splitlines() if "-->" in line] == [
        "f0 --> f1",
        "f1 --> f2",
    ]
    assert '  f0["a · b"]' in drawing
