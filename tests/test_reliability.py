"""The table of ``docs/reliability.md``: every row has tests, and the tests that it names exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUM_ROWS = 68


def table_rows(page: str, first: str) -> dict[str, list[str]]:
    """Cells after the first of each row whose first cell is ``first`` and a number.

    Raises:
        ValueError: if a row occurs twice, or has another number of cells than its table.
    """
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if re.match(rf"\| {first}\d+ \|", line):
            name, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if name.strip() in found or len(cells) != 3:
                raise ValueError(line)
            found[name.strip()] = cells
    return found


def named_tests(cell: str) -> list[tuple[str, str]]:
    """The tests of a cell, as file and function."""
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", cell)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = table_rows(PAGE.partition("\n## Cases\n")[2], "")
PROMISES = table_rows(PAGE, "G")


def test_every_row_is_there_once() -> None:
    assert list(ROWS) == [str(number) for number in range(1, NUM_ROWS + 1)]
    assert list(PROMISES) == [f"G{number}" for number in range(1, 11)]


@pytest.mark.parametrize("name", [*ROWS, *PROMISES])
def test_every_row_has_tests_that_exist(name: str) -> None:
    cells = {**ROWS, **PROMISES}[name]
    assert all(cells)
    named = named_tests(cells[-1])
    # Nothing else is in the cell, such as a test whose name is misspelled.
    assert ", ".join(f"`{file}::{function}`" for file, function in named) == cells[-1]
    assert named
    for file, function in named:
        assert function in functions(ROOT / file), f"{file}::{function}"


def test_every_exit_code_is_explained() -> None:
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    told = {int(code) for code in re.findall(r"^\| (\d+) \| [^|]+ \|$", page, re.MULTILINE)}
    assert told == {0, 1, 2, 3, 4, 5, 6, 7, 75, 129, 130, 143}


def test_the_check_can_fail() -> None:
    assert table_rows("| 1 | a | b | c |\n| x | a | b | c |", "") == {"1": ["a", "b", "c"]}
    with pytest.raises(ValueError, match="again"):
        table_rows("| 1 | a | b | c |\n| 1 | again | b | c |", "")
    with pytest.raises(ValueError, match="short"):
        table_rows("| 1 | short | c |", "")
    assert named_tests("tests/a.py::test_x, `tests/b.py::test_y`") == [("tests/b.py", "test_y")]
