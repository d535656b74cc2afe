"""Rooms, arrows, floors and circles of a package made for the test."""

from pathlib import Path

import pytest

from scripts import rooms

FILES = {
    "runner/__init__.py": "__version__ = '1'\n",
    "runner/errors.py": "import ast\n",
    "runner/disk/__init__.py": "",
    "runner/disk/files.py": "from runner.errors import E\nfrom runner import __version__\n",
    "runner/disk/locks.py": "from runner.disk import files\n",
    "runner/work/__init__.py": "",
    "runner/work/loop.py": "def f():\n    import runner.disk.locks\n",
    "runner/work/__main__.py": "from runner.work.loop import f\nfrom runner import errors\n",
    "tests/test_architecture.py": "FLOORS = [{'errors'}, {'disk'}, {'work', 'work.__main__'}]\n",
}
ARROWS = {
    "errors": set(),
    "disk": {"errors"},
    "work": {"disk"},
    "work.__main__": {"work", "errors"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_arrows_are_read_from_every_import(root: Path) -> None:
    assert rooms.read_arrows(root) == ARROWS


def test_imports_of_functions_can_be_left_out(root: Path) -> None:
    path = root / "runner" / "work" / "loop.py"
    assert rooms.imports(path) == ["runner.disk.locks"]
    assert rooms.imports(path, top_level_only=True) == []


def test_relative_imports_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("from .files import f\n")
    with pytest.raises(AssertionError, match="relative import"):
        rooms.imports(path)


def test_a_room_is_one_floor_above_what_it_imports() -> None:
    assert rooms.floors(ARROWS) == {"errors": 1, "disk": 2, "work": 3, "work.__main__": 4}
    assert rooms.circles(ARROWS) == []


def test_circles_are_found_and_share_a_floor() -> None:
    arrows = {"a": set(), "b": {"a", "c"}, "c": {"d"}, "d": {"b"}, "e": {"d"}}
    assert rooms.circles(arrows) == [{"b", "c", "d"}]
    assert rooms.floors(arrows) == {"a": 1, "b": 2, "c": 2, "d": 2, "e": 3}


def test_upward_and_level_arrows_are_found(root: Path) -> None:
    floors = rooms.declared_floors(root)
    assert floors == [{"errors"}, {"disk"}, {"work", "work.__main__"}]
    assert rooms.upward(ARROWS, floors) == [("work.__main__", "work")]
    assert rooms.upward({**ARROWS, "errors": {"disk"}}, floors)[0] == ("errors", "disk")
    with pytest.raises(KeyError, match="cellar"):
        rooms.upward({**ARROWS, "cellar": {"disk"}}, floors)


def test_the_table(root: Path) -> None:
    head, _, rest = rooms.table(root).partition("\n\n")
    assert [line.split() for line in head.splitlines()] == [
        ["rooms", "4"], ["arrows", "4"], ["floors", "4"], ["circles", "none"],
        ["upward", "1:", "work.__main__", "→", "work"],
    ]  # fmt: skip
    assert rest.splitlines()[-1] == "    1  errors"


def test_an_older_checkout_needs_no_test_of_its_architecture(root: Path) -> None:
    (root / "tests" / "test_architecture.py").unlink()
    assert "upward" not in rooms.table(root)
