"""How the tests themselves are run."""

from types import SimpleNamespace
from typing import Any

import pytest

SOME = ("tests/data", "tests/test_habits.py")


def options(*files: str, markers: str = "", usepdb: bool = False) -> Any:
    """What of pytest's configuration decides in how many processes tests run."""
    return SimpleNamespace(
        option=SimpleNamespace(file_or_dir=list(files), usepdb=usepdb),
        getoption={"-m": markers}.__getitem__,
    )


@pytest.mark.parametrize(
    ("asked", "is_one_process"),
    [
        (options(), False),
        (options(*SOME), False),
        (options(*SOME, markers="whole"), False),
        (options(__file__), True),
        (options(f"{__file__}::test_a", f"{__file__}::test_b"), True),
        (options(*SOME, usepdb=True), True),
        (options("tests/gpu", markers="gpu"), True),
        (options(markers="gpu and not whole"), True),
        (options(markers="slow or gpu"), True),
        (options(markers="(not slow) and gpu"), True),
        (options(markers="not gpu"), False),
        (options(markers="slow and not gpu"), False),
    ],
)
def test_tests_of_a_gpu_and_single_files_run_in_one_process(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, asked: Any, is_one_process: bool
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    found = pytestconfig.hook.pytest_xdist_auto_num_workers(config=asked)
    assert found == (0 if is_one_process else 3)


@pytest.mark.parametrize(
    ("markers", "skipped"),
    [
        ("", {"slow", "whole", "gpu"}),
        ("gpu", {"slow", "whole"}),
        ("whole", {"slow", "gpu"}),
        ("slow or gpu", {"whole"}),
    ],
)
def test_what_nobody_asks_for_is_skipped(
    pytestconfig: pytest.Config, markers: str, skipped: set[str]
) -> None:
    found = set()

    class Item:
        def __init__(self, marker: str) -> None:
            self.marker = marker

        def get_closest_marker(self, name: str) -> bool:
            return name == self.marker

        def add_marker(self, mark: pytest.MarkDecorator) -> None:
            assert mark.name == "skip"
            found.add(self.marker)

    items = [Item(marker) for marker in ("slow", "whole", "gpu", "peers")]
    (plugin,) = (
        each for each in pytestconfig.pluginmanager.get_plugins() if hasattr(each, "ASKED_FOR")
    )
    plugin.pytest_collection_modifyitems(options(markers=markers), items)
    assert found == skipped
