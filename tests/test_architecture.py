"""Decisions that must outlive their authors, read off the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")])

# Imports go down only: a module knows modules of lower floors, and those of its own package.
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
HYDRA = {"compose.py", "complaints.py", "start.py", "trick_runner.py"}
NO_TORCH = {
    "errors", "randomness", "machine", "config", "terminal", "training.metrics",
    "records.run_folder", "records.identity", "records.sweep_folder",
    "__main__", "train", "lr_find", "show", "report", "report.__main__",
    "evaluate", "predict", "export.__main__", "data.__main__",
}  # fmt: skip


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names += [f"{module}.{alias.name}" if module == "runner" else module
                      for alias in node.names]  # fmt: skip
    return names


def room(name: str) -> str:
    """``runner.data.store`` → ``data``; a command that lives in a package is a room of its own."""
    parts = name.split(".")
    if parts[-1] == "__main__":
        return ".".join(parts[1:])
    return parts[1] if name.count(".") else name


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


MODULES = [path for path in SOURCES if path.parts[-2:] != ("runner", "__init__.py")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    if path.parent.name == "hydra_plugins":
        return
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path):
        if not name.startswith("runner.") or name == "runner.__version__":
            continue
        other = room(name)
        if other not in (own, own.partition(".")[0]):
            assert floor(other) < floor(own), f"{own} must not know {other}"


def test_the_check_of_floors_can_fail(tmp_path: Path) -> None:
    upward = tmp_path / "x.py"
    upward.write_text("def f():\n    from runner.training.step import fit\n")
    assert [room(name) for name in imports(upward)] == ["training"]
    assert floor("training") > floor("models")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hydra_and_torch_stay_where_they_belong(path: Path) -> None:
    at_start = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    anywhere = {name.split(".")[0] for name in imports(path)}
    if path.name not in HYDRA:
        assert not {"hydra", "omegaconf"} & anywhere
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if room(name) in NO_TORCH or name.removeprefix("runner.") in NO_TORCH:
        assert "torch" not in at_start


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
        is_method_of_ours = owner in ("learner.model", "self.model", "model")  # model.eval()
        assert name not in FORBIDDEN_CALLS or is_method_of_ours, ast.unparse(node)
        if (owner, name) == ("torch", "load"):
            assert ast.unparse(keywords["weights_only"]) == "True"
        if (owner, name) == ("np", "load"):
            assert ast.unparse(keywords["allow_pickle"]) == "False"
        assert "shell" not in keywords
        assert (owner, name) not in {("yaml", "load"), ("os", "system"), ("os", "popen")}


def test_every_option_file_has_the_code_and_the_tests_of_its_trick() -> None:
    names = {"normalize": "normalize", "augment": "augment", "resize": "resize", "mixup": "mixup",
             "smoothing": "smoothing", "tta": "tta"}  # fmt: skip
    for group, module in names.items():
        assert (ROOT / "conf" / group).is_dir()
        assert (ROOT / "runner" / "tricks" / f"{module}.py").is_file()
        assert (ROOT / "tests" / "tricks" / f"test_{module}.py").is_file()


def test_public_functions_say_what_they_do() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"
