"""The figure of ``docs/design.md``: the floors are those that the imports are compared with."""

import re
from pathlib import Path

from test_architecture import FLOORS

FIGURE = (Path(__file__).parent.parent / "docs" / "design.svg").read_text(encoding="utf-8")


def test_the_figure_has_the_floors() -> None:
    rows = re.findall(r'class="f" text-anchor="middle">([^<]+)<', FIGURE)
    drawn = [set(row.split(", ")) for row in rows]
    rooms = [{room for room in floor if "." not in room and room != "__main__"} for floor in FLOORS]
    commands = {"train", "lr_find", "show", "evaluate", "predict", "api"}
    assert drawn[::-1] == [floor for floor in rooms if floor and not floor & commands]
