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
    {"errors", "randomness", "callable_module"},
    {"machine"},
    {"config"},
    {"terminal"},
    {"data", "pictures"},
    {"tricks", "records"},
    {"models", "loggers"},
    {"training"},
    {"report", "export", "jobs", "look"},
    {"compare"},
    {"train", "lr_find", "show", "evaluate", "predict", "export.__main__", "report.__main__",
     "data.__main__", "look.__main__", "__main__"},
    {"compare.__main__"},
    {"api"},
]  # fmt: skip
HYDRA = {
    "runner/config/compose.py", "runner/config/complaints.py", "runner/config/overrides.py",
    "runner/terminal/start.py", "hydra_plugins/trick_runner.py",
    "runner/jobs/checks.py", "runner/jobs/job.py", "runner/jobs/launch.py", "runner/jobs/shares.py",
    "runner/jobs/slurm_launcher.py", "runner/jobs/ray_jobs.py",
}  # fmt: skip
NO_TORCH = {
    "errors", "randomness", "machine", "config", "terminal", "training.metrics",
    "records.run_folder", "records.identity", "records.sweep_folder", "records.comparison_folder",
    "__main__", "train", "lr_find", "show", "report", "report.__main__", "compare",
    "compare.__main__",
    "evaluate", "predict", "export.__main__", "data.__main__", "look.__main__", "jobs",
    "pictures", "loggers",
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
    if str(path.relative_to(ROOT)) not in HYDRA:
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


OPENING = {
    "open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "fromfile", "memmap",
    "ZipFile", "is_zipfile", "gzopen", "bz2open", "xzopen", "taropen", "GzipFile", "safe_open",
    "load_file", "save_file", "rmtree", "unlink", "touch",
    "np.load", "np.save", "np.savez", "np.savez_compressed", "torch.load", "torch.save",
    "Image.open", "os.open", "os.remove", "os.unlink", "os.truncate",
}  # fmt: skip
OPENED_ELSEWHERE = {
    # Files of the program itself.
    "runner/__main__.py": ("path.read_bytes",),
    "runner/config/describe.py": ("path.read_text",),
    "runner/config/overlays.py": ("(CONF_DIR / group / f'{option}.yaml').read_text",
                                  "(CONF_DIR / overlay / f'{name}.yaml').read_text"),
    "runner/data/embedded/__init__.py": ("path.read_bytes", "np.load",
                                         "(_FOLDER / 'fashion.sha256').read_text"),
    "runner/report/page.py": ("(_HERE / name).read_text",),
    "runner/terminal/completion.py": ("path.read_bytes",),
    # Files of the system.
    "runner/machine/control_groups.py": ("file.read_text", "Path('/proc/self/cgroup').read_text"),
    "runner/machine/hardware.py": ("Path('/proc/cpuinfo').read_text",),
    "runner/records/sweep_folder.py": ("Path(f\"/proc/{job['pid']}/stat\").read_text",),
    "runner/loggers/copier.py": ("os.open",),
    "runner/terminal/command.py": ("os.open",),
    "runner/terminal/console.py": ("os.open",),
    "runner/terminal/streams.py": ("os.open",),
    "runner/jobs/job.py": ("Path(os.devnull).open",),
    # Content that was read already.
    "runner/data/idx.py": ("gzip.GzipFile",),
    "runner/machine/arrays.py": ("archive.open", "ZipFile"),
    "runner/models/pretrained.py": ("torch.load",),
    "runner/loggers/mlflow.py": ("Image.open",),
    "runner/loggers/trackio.py": ("Image.open",),
    "runner/loggers/wandb.py": ("Image.open",),
    "runner/records/run_folder.py": ("np.savez_compressed",),
    "runner/records/validation_images.py": ("gzip.open", "self._images.open"),
    "runner/report/scores.py": ("np.savez",),
    # A folder that this process has just made under a name of its own, or files opened by it.
    "runner/data/store.py": ("np.save", "(building / 'survey.json').write_text",
                             "(building / 'pixels.u8').open", "np.load", "np.memmap",
                             "shutil.rmtree", "self.images.open"),
    "runner/data/download.py": ("os.open", "os.fdopen", "part.unlink", "shutil.rmtree",
                                "member.open", "zipfile.ZipFile", "zipfile.is_zipfile"),
    # They open with care of their own.
    "runner/machine/locks.py": ("os.open",),
    "runner/data/images.py": ("self.open",),
    "runner/data/decoding.py": ("Image.open",),
}  # fmt: skip
"""Every call outside ``runner/machine/files.py`` that opens or removes a file."""


def opening_calls(source: str) -> set[str]:
    """The functions in ``source`` that are called and open or remove a file by its name."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = {ast.unparse(call) for call in calls}
    ours = {"self.write_text", "self.write_bytes", "folder.write_text", "folder.write_bytes"}
    return {name for name in found - ours if OPENING & {name, name.rpartition(".")[2]}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_foreign_files_are_opened_in_one_place(path: Path) -> None:
    """Elsewhere, a pipe could be waited for without end, or a link be written through."""
    name = str(path.relative_to(ROOT))
    if name != "runner/machine/files.py":
        assert opening_calls(path.read_text()) <= {*OPENED_ELSEWHERE.get(name, ())}


def test_an_opened_file_is_noticed() -> None:
    source = "with gzip.open(path) as file: (a / b).read_bytes(); self.write_text(c)"
    assert opening_calls(source) == {"gzip.open", "(a / b).read_bytes"}
    assert opening_calls((ROOT / "runner/machine/files.py").read_text())


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
