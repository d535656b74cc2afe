"""Decisions that must outlive their authors, read off the source itself."""

import ast
from pathlib import Path

import pytest

from runner.config.schema import trick_groups
from scripts import rooms
from scripts.rooms import imports, module_name

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")])

# Imports go down only: a room knows rooms of lower floors. `python scripts/rooms.py` shows them.
FLOORS = [
    {"errors", "randomness"},
    {"machine"},
    {"config"},
    {"terminal"},
    {"data"},
    {"tricks", "records"},
    {"models"},
    {"training"},
    {"report", "export"},
    {"train", "lr_find", "show", "evaluate", "predict", "export.__main__", "report.__main__",
     "data.__main__", "__main__"},
]  # fmt: skip
HYDRA = {"compose.py", "complaints.py", "overrides.py", "start.py", "trick_runner.py"}
NO_TORCH = {
    "errors", "randomness", "machine", "config", "terminal", "training.metrics",
    "records.run_folder", "records.identity", "records.sweep_folder",
    "__main__", "train", "lr_find", "show", "report", "report.__main__",
    "evaluate", "predict", "export.__main__", "data.__main__",
}  # fmt: skip


def test_imports_go_down() -> None:
    arrows = rooms.read_arrows(ROOT)
    assert set().union(*FLOORS) == {*arrows}
    assert rooms.upward(arrows, FLOORS) == []
    arrows["models"].add("training")
    assert rooms.upward(arrows, FLOORS) == [("models", "training")], "the test cannot fail"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hydra_and_torch_stay_where_they_belong(path: Path) -> None:
    at_start = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    anywhere = {name.split(".")[0] for name in imports(path)}
    if path.name not in HYDRA:
        assert not {"hydra", "omegaconf"} & anywhere
    name = module_name(path, ROOT)
    if NO_TORCH & {rooms.room(name), name.removeprefix("runner.")}:
        assert "torch" not in at_start


RUNS_CODE = ROOT / "runner" / "tricks" / "idea.py"  # that the user names on the command line
FORBIDDEN_CALLS = {"eval", "exec", "extractall", "instantiate", "__import__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_that_is_read_can_run_code(path: Path) -> None:
    assert not {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & set(imports(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
        else:
            name, owner = ast.unparse(node.func), ""
        is_idea = name == "exec" and path == RUNS_CODE
        is_method_of_ours = owner in ("learner.model", "self.model", "model")  # model.eval()
        assert name not in FORBIDDEN_CALLS or is_method_of_ours or is_idea, ast.unparse(node)
        if (owner, name) == ("torch", "load"):
            assert ast.unparse(keywords["weights_only"]) == "True"
        if (owner, name) == ("np", "load"):
            assert ast.unparse(keywords["allow_pickle"]) == "False"
        assert "shell" not in keywords
        assert (owner, name) not in {("yaml", "load"), ("os", "system"), ("os", "popen")}


def test_code_of_the_user_runs_in_one_place() -> None:
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(RUNS_CODE.read_text()))
             if isinstance(node, ast.Call)]  # fmt: skip
    assert calls.count("exec") == 1
    assert "eval" not in calls


def test_every_option_file_has_the_code_and_the_tests_of_its_trick() -> None:
    for group in ("augment", *trick_groups()):
        assert (ROOT / "conf" / group).is_dir()
        assert (ROOT / "runner" / "config" / f"{group}.py").is_file()
        assert (ROOT / "runner" / "tricks" / f"{group}.py").is_file()
        assert (ROOT / "tests" / "tricks" / f"test_{group}.py").is_file()


def test_public_functions_say_what_they_do() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"
