"""The functions of Python do what commands do, raise what commands print, and leave no trace."""

import gc
import inspect
import json
import os
import pydoc
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from small import Command

import runner
from runner.api import functions
from runner.api.functions import COMMAND_ONLY, _words
from runner.api.process import _error
from runner.compare.__main__ import parser
from runner.errors import ArtefactError, ConfigError, DataError

SMALL = (
    "data=folder", "data.batch_size=16", "resize.size=16", "model=timm", "model.name=test_resnet",
    "budget.epochs=1", "threads=1",
)  # fmt: skip


@pytest.fixture
def words(tiny_folder: Path, tmp_path: Path) -> tuple[str, ...]:
    return (*SMALL, f"data.root={tiny_folder}", f"outputs={tmp_path / 'outputs'}")


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> runner.Run:
    outputs = tmp_path_factory.mktemp("outputs")
    return runner.train(*SMALL, f"data.root={tiny_folder}", f"outputs={outputs}", tta="flip")


def test_the_public_names() -> None:
    functions = {"compare", "load_model", "load_runs", "train"}
    assert set(runner.__all__) == functions | {"Comparison", "Run", "Runs"}
    for name in runner.__all__:
        assert callable(getattr(runner, name))
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        runner.tran  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import runner; runner.train; runner.load_runs; runner.__version__",
        "from runner.train import WORK; import runner; assert callable(runner.train)",
        "from runner import train; assert train.WORK; assert callable(train)",
        "import runner.compare.question; assert callable(runner.compare)",
        "import runner; assert runner.train is __import__('runner.train').train",
    ],
)
def test_importing_is_quick_and_gives_the_same_whatever_was_imported_before(code: str) -> None:
    code += "; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_is_that_of_the_command(words: tuple[str, ...], command: Command) -> None:
    ended = command(*words, "seed=3")
    assert ended.returncode == 0, ended.stderr
    mine = runner.train(*words, seed=3)
    assert mine.status == "skipped"
    assert mine.result == json.loads((mine.folder / "result.json").read_text())
    other = runner.train(*words, **{"seed": 3, "optim.lr": 1e-4})
    assert (other.status, other.folder == mine.folder) == ("finished", False)


def test_what_a_run_says(run: runner.Run) -> None:
    assert run.tricks == ["tta"]
    assert run.metrics == run.result["metrics"]["tta"]
    found = run.predictions()
    assert (found["tta"].argmax(axis=1) == found["labels"]).mean() == pytest.approx(run.accuracy)
    assert [row["epoch"] for row in run.epochs()] == [1]
    assert run.folder.name in repr(run)


def test_runs_as_a_table(run: runner.Run) -> None:
    runs = runner.load_runs(run.folder.parent)
    assert [one.tricks for one in runs] == [[], ["tta"]]
    plain, tta = runs.table()
    assert plain["accuracy"] == run.result["metrics"]["plain"]["accuracy"]
    assert tta["accuracy"] == run.accuracy
    assert all(
        isinstance(value, str | int | float) for row in runs.table() for value in row.values()
    )
    assert isinstance(runs[:1], runner.Runs)
    with pytest.raises(DataError, match="no such folder"):
        runner.load_runs(run.folder / "none")


def test_a_model_predicts_what_the_command_predicts(
    run: runner.Run, tiny_folder: Path, command: Command
) -> None:
    paths = sorted(path for path in (tiny_folder / "val").rglob("*") if path.is_file())[:5]
    ended = command(
        str(run.folder), *map(str, paths), "--json", "-", "--top", "3", module="runner.predict"
    )
    assert ended.returncode == 0, ended.stderr
    model = runner.load_model(run)
    found = model.predict(paths)
    for row, said in zip(found, json.loads(ended.stdout)["images"], strict=True):
        top = {one["class"]: one["probability"] for one in said["top"]}
        assert top == pytest.approx(dict(zip(model.classes, row.tolist(), strict=True)), abs=1e-6)
    with Image.open(paths[0]) as image:
        picture = image.convert("RGB")
    for one in (picture, np.asarray(picture), paths[0], str(paths[0])):
        assert np.allclose(model.predict(one), found[:1], atol=1e-6)
        assert np.allclose(model.predict([one, one]), found[[0, 0]], atol=1e-6)
    with pytest.raises(ConfigError, match="an image is"):
        model.predict([np.asarray(picture)[0]])  # a row of pixels is no image
    assert model.top(paths[:1])[0][0][1] == pytest.approx(float(found[0].max()))


def test_a_model_is_a_module(run: runner.Run) -> None:
    model = runner.load_model(run.folder)
    assert isinstance(model, torch.nn.Module)
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        logits = model(images)
    assert logits.shape == (2, len(model.classes))
    with pytest.raises(ConfigError, match="paths"):
        model.predict([images[0]])
    with pytest.raises(DataError, match="No such file"):
        model.predict(["none.jpg"])
    with pytest.raises(DataError, match="no such folder"):
        runner.load_model("none")


@pytest.mark.parametrize("name", ["train", "compare"])
def test_help_describes_the_function(name: str) -> None:
    module, function = getattr(runner, name), getattr(functions, name)
    assert inspect.signature(module) == inspect.signature(function)
    shown = pydoc.render_doc(module, renderer=pydoc.plaintext)
    documented = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters.values():
        assert f"    {parameter},\n" in shown
        assert f"\n    {parameter.name}: " in documented
    for line in documented.splitlines():
        assert line in shown
    for other in ("main", "rate_of", "WORK", "make_callable"):  # what the module has besides
        assert not re.search(rf"^ +{other}\b", shown, re.MULTILINE)
    with pytest.raises(AttributeError, match=f"'runner.{name}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_options_of_a_comparison_are_parameters_or_told() -> None:
    options = {name.lstrip("-").replace("-", "_") for name in parser().options()}
    parameters = {*inspect.signature(functions.compare).parameters} - {"words", "values"}
    only = {*COMMAND_ONLY["compare"]}
    assert options == (parameters - {"tries"}) | only | {"h", "help"}
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    for name in parameters:
        assert f"`{name}" in page
    for name in only - {"try"}:
        assert f"`--{name.replace('_', '-')}`" in page


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of the command, which does not run."""
    found = list[str]()

    def stop(module: str, given: list[str]) -> str:
        found.extend(given)
        raise DataError("stopped")

    monkeypatch.setattr(functions, "output_of", stop)
    return found


def test_a_single_string_is_one_element(arguments: list[str]) -> None:
    with pytest.raises(DataError, match="stopped"):
        runner.compare(tries="+trick=tta", tune="optim.lr=1e-3,1e-2", seeds=3)
    expected = ["--seeds", "3", "--try", "+trick=tta", "--tune", "optim.lr=1e-3,1e-2"]
    assert arguments == [*expected, "--json", "-"]
    arguments.clear()
    with pytest.raises(DataError, match="stopped"):
        runner.compare(tries=("mixup=beta", ""), tune=(f"optim.lr={n},1" for n in (2,)))  # type: ignore[arg-type]
    assert arguments[:-2] == ["--try", "mixup=beta", "--try", "", "--tune", "optim.lr=2,1"]


WRONG_KEYWORDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a number": ({"tries": 3}, "tries takes strings", 'tries=["mixup=beta", "optim.lr=1e-2"]'),
    "lists of lists": ({"tries": [["mixup=beta"]]}, "tries takes strings", "tries=["),
    "keys and values": ({"tune": {"optim.lr": [1, 2]}}, "tune takes strings", "tune=["),
    "nothing": ({"tries": None}, "tries takes strings", "tries=["),
    "an option": ({"tries": "--plan"}, "options of the command are no words", "KEY=VALUE"),
    "a typo": (
        {"max_seed": 4},
        "unknown keyword max_seed (did you mean max_seeds?)",
        "max_seeds=4",
    ),
    "a dash": ({"max-seeds": 4}, "did you mean max_seeds?", "max_seeds=4"),
    "another typo": ({"metrics": "brier"}, "did you mean metric?", "metric='brier'"),
    "the plan": ({"plan": True}, "plan is an option of the command alone", "… --plan"),
    "the page": ({"html": "q.html"}, "html is an option of the command alone", ".page()"),
    "its exit code": ({"exit_code": True}, "of the command alone", ".verdicts"),
    "the test part": ({"confirm_on": "test"}, "of the command alone", "--confirm-on test"),
    "the spelling of the command": ({"try": "mixup=beta"}, "of the command alone", "tries=["),
}


@pytest.mark.parametrize(("values", "said", "fix"), WRONG_KEYWORDS.values(), ids=WRONG_KEYWORDS)
def test_a_wrong_keyword_is_told_before_anything_runs(
    arguments: list[str], values: dict[str, Any], said: str, fix: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        runner.compare(**values)
    assert fix in caught.value.fix
    assert arguments == []


def test_keys_are_no_wrong_keywords(arguments: list[str]) -> None:
    with pytest.raises(DataError, match="stopped"):
        runner.compare(seed=3, data="folder", mixup="beta", **{"optim.lr": 1e-3})
    assert arguments[:4] == ["seed=3", "data=folder", "mixup=beta", "optim.lr=0.001"]
    with pytest.raises(ConfigError, match="config_dir is an option of the command alone"):
        runner.train(config_dir="mine")


def test_an_option_of_the_command_is_no_word(arguments: list[str]) -> None:
    for call in (runner.train, runner.compare):
        with pytest.raises(ConfigError, match="options of the command are no words"):
            call("--plan")
    assert arguments == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"mixup.alpah": 1}, "mixup.alpha"),
    "out of range": ({"mixup.alpha": -1}, "mixup.alpha"),
    "option": ({"mixup": "betta"}, "beta"),
}


@pytest.mark.parametrize(("values", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_raises_and_writes_nothing(
    values: dict[str, Any], said: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        runner.train(*words, **values)
    assert caught.value.fix or said in str(caught.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "name", ["a (1)", "x=y", "{a}", "Müller's", "a,b", "back\\slash", "~x", "end\\", "b\\'q"]
)
def test_any_path_is_a_value(name: str, composed: Any) -> None:
    (word,) = _words((), {"data.root": f"/data/{name}"})
    assert composed("data=folder", word).data.root == f"/data/{name}"


def test_values_are_words(composed: Any) -> None:
    words = _words((), {"optim.lr": 1e-3, "force": True, "data.root": None, "tta.scales": [1, 0.5]})
    assert words == ["optim.lr=0.001", "force=true", "data.root=null", "tta.scales=[1,0.5]"]
    assert composed(*words).tta.scales == (1, 0.5)


def test_a_word_is_a_string() -> None:
    with pytest.raises(ConfigError, match="a word is a string"):
        runner.train(3)  # type: ignore[arg-type]


def state() -> list[Any]:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return [handlers, Path.cwd(), dict(os.environ), threading.active_count(),
            gc.get_threshold(), GlobalHydra.instance().is_initialized()]  # fmt: skip


def test_a_call_leaves_no_trace(words: tuple[str, ...]) -> None:
    before = state()
    runner.train(*words, seed=1)
    assert state() == before


def test_a_call_works_in_another_thread(words: tuple[str, ...]) -> None:
    found: list[runner.Run] = []
    thread = threading.Thread(target=lambda: found.append(runner.train(*words, seed=1)))
    thread.start()
    thread.join()
    assert found[0].status == "finished"


def test_an_interrupted_call_is_resumed(words: tuple[str, ...], monkeypatch: Any) -> None:
    from runner.training import step

    real, calls = step.train_step, iter(range(10**6))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr("runner.training.loop.train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.train(*words, seed=1)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert runner.train(*words, seed=1).status == "resumed"


@pytest.mark.whole
def test_a_comparison(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = runner.compare(*words, tries=["tta=flip"], seeds=3, margin=5)
    assert list(found.verdicts) == ["tta=flip"]
    (row,) = found.table()
    assert row["n"] == 3
    assert "tta=flip" in repr(found)
    assert "seed 0" in capsys.readouterr().out
    again = runner.compare(*words, tries=["tta=flip"], seeds=3, margin=5)
    assert again.answer == found.answer
    assert "<svg" in found.page()
    assert found._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(ConfigError, match="mixup"):
        runner.compare(*words, tries=["mixup=betta"])


def test_the_error_of_a_process_is_an_exception_again() -> None:
    lines = ["a note", "error: what", "and more", "where: here", "fix: one", "two"]
    found = _error(7, lines)
    assert type(found) is ArtefactError
    assert (found.what, found.where, found.fix) == ("what\nand more", "here", "one\ntwo")
    assert _error(1, ["Traceback", "KeyError: 3"]).what == "Traceback\nKeyError: 3"
    assert "code -9" in _error(-9, []).what


@pytest.fixture(autouse=True)
def one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
