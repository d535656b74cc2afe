"""The peers run in environments without this project, so nothing of it may be asked for there."""

import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks" / "peers"
SOURCES = sorted(FOLDER.glob("*.py"))
WORKERS = sorted(FOLDER.glob("*_worker.py"))
# Of this project, and what only works where the package `benchmarks` can be imported.
OURS = {"runner", "hydra_plugins", "benchmarks", "scripts", "tests"}


def imported(source: str) -> set[str]:
    """Top-level names of all imports that run; a relative one counts as ``.``."""
    names, nodes = set[str](), [*ast.parse(source).body]
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)
    return names


def test_there_are_peers() -> None:
    assert {path.stem for path in WORKERS} >= {"fastai_worker", "timm_worker", "torchvision_worker"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_compiles_and_asks_for_nothing_of_ours(path: Path) -> None:
    compile(path.read_text(), str(path), "exec")
    assert not imported(path.read_text()) & (OURS | {"."})


@pytest.mark.parametrize("line", ["import runner.data", "from runner import x", "from . import x"])
def test_the_check_can_fail(line: str) -> None:
    assert imported(f"def f():\n    {line}\n") & (OURS | {"."})
    assert imported(f"if TYPE_CHECKING:\n    pass\nelse:\n    {line}\n") & (OURS | {"."})
    assert not imported(f"if TYPE_CHECKING:\n    {line}\n")


def test_the_protocol_needs_only_python() -> None:
    assert imported((FOLDER / "protocol.py").read_text()) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", WORKERS, ids=lambda path: path.name)
def test_a_worker_serves_only_as_a_script(path: Path) -> None:
    last = ast.parse(path.read_text()).body[-1]
    # Processes that load data may import the script again; they must not serve.
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    assert ast.unparse(last.body[0]).startswith("serve(")
