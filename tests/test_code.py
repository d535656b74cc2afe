"""``code=FILE`` through the commands: trained, killed, swept, reported, used; never by itself."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill
import numpy as np
import pytest
from kill import STEP, Place, Trap, bits_that_differ, check_survived, statuses
from markupsafe import escape
from small import CLASSES, Command

from runner.config import compose
from runner.config.idea import read_idea
from runner.config.schema import RunConfig
from runner.errors import ArtefactError, CodeError, ConfigError
from runner.export.__main__ import export
from runner.predict import find_images, rank
from runner.records.bundle import open_bundle, read_bundle
from runner.records.run_folder import RunFolder
from runner.report.answer import answer
from runner.report.page import page as render
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding-a-trick.md").read_text()
NOISE = """
import torch

def images(images, generator, progress):
    return images + 0.1 * torch.randn(images.shape, generator=generator)

def after_step(model, progress):
    for weight in model.parameters():
        weight.clamp_(-1, 1)
"""
NETWORK = """
from torch import nn

def model(model):
    return nn.Sequential(model, nn.Linear({outputs}, {outputs}))
"""
HALF = """
def predictions(logits):
    return (logits / 2).softmax(dim=1)
"""
SMALL = ("model=timm", "model.name=test_resnet")


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> Iterator[Callable[..., Place]]:
    """A new place with these files, for a command with these words; two epochs of three steps."""
    root = tmp_path_factory.mktemp("places").resolve()
    numbers = iter(range(10**6))

    def make_one(*words: str, **files: str) -> Place:
        place = Place(
            root / str(next(numbers)),
            (*words, "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", *SMALL,
             "resize.size=16", "budget.epochs=2", "threads=1", "checkpoint.minutes=0"),
        )  # fmt: skip
        for name, text in files.items():
            (place.root / f"{name}.py").write_text(text)
        return place

    yield make_one
    kill.end_all()


def folders(place: Place) -> list[Path]:
    return sorted(path.parent for path in place.root.glob("outputs/*/run.json"))


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


# ── Exactness ──────────────────────────────────────────────────────────────────────────────────


def test_a_run_with_code_survives_kills_to_the_bit(make: Callable[..., Place]) -> None:
    undisturbed, killed = (make("code=idea.py", "mixup=beta", idea=NOISE) for _ in range(2))
    assert undisturbed.run().code == 0
    for step in (2, 3):  # of each attempt
        assert killed.run(traps=[Trap(STEP, step, kill.die)]).code == -signal.SIGKILL
    attempt = killed.run()
    assert attempt.code == 0, attempt.out + attempt.err
    assert "resuming" in attempt.out
    check_survived(killed, undisturbed)
    workers = make("code=idea.py", "mixup=beta", "data.num_workers=2", idea=NOISE)
    assert workers.run().code == 0
    assert bits_that_differ(workers, undisturbed) == 0
    other = make("code=idea.py", "mixup=beta", idea=NOISE.replace("0.1", "0.11"))
    assert other.run().code == 0
    assert bits_that_differ(other, undisturbed) > 1000, "the comparison cannot fail"
    assert other.folder.name != undisturbed.folder.name


def test_the_file_decides_the_run_and_its_path_does_not(make: Callable[..., Place]) -> None:
    place = make("code=idea.py", idea=NOISE)
    assert place.run().code == 0
    folder = place.folder
    name = r"folder-test_resnet-idea-seed0-[0-9a-f]{8}"
    assert re.fullmatch(name, folder.name)
    assert (folder / "code.py").read_text() == NOISE
    facts = {"file": "idea.py", "functions": ["images", "after_step"],
             "sha256": read_idea(str(place.root / "idea.py")).sha256}  # fmt: skip
    assert result(folder)["code"] == facts
    assert json.loads((folder / "run.json").read_text())["code"] == facts

    (place.root / "elsewhere").mkdir()
    shutil.move(place.root / "idea.py", place.root / "elsewhere" / "idea.py")
    again = place.run(f"code={place.root / 'elsewhere' / 'idea.py'}")
    assert "finished before" in again.out
    assert folders(place) == [folder]
    (place.root / "idea.py").write_text(f"{NOISE}\n# edited")
    refused = place.run(f"run_dir={folder}")
    assert refused.code == 2
    assert "code: " in refused.err
    assert place.run().code == 0
    assert len(folders(place)) == 2


def test_a_finished_run_is_told_without_torch(make: Callable[..., Place]) -> None:
    place = make("code=idea.py", idea=NOISE)
    assert place.run().code == 0
    program = f"import sys; sys.argv = ['train', *{place.words!r}]; from runner.train import main"
    program += "; main(); assert 'torch' not in sys.modules"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=place.root, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "finished before" in ran.stdout


# ── Sweeps ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_over_code(make: Callable[..., Place], capfd: pytest.CaptureFixture[str]) -> None:
    place = make("-m", "code=null,one.py,two.py", "seed=0,1", one=NOISE, two=HALF)
    first = place.run()
    assert first.code == 0, first.out + first.err
    assert statuses(place) == ["finished"] * 6
    assert place.run().code == 0
    assert statuses(place) == ["skipped"] * 6
    names = sorted(path.name.rpartition("-seed")[0].rpartition("-")[2] for path in folders(place))
    assert names == ["baseline", "baseline", "one", "one", "two", "two"]

    # Through joblib, from the same relative paths: the very same runs.
    before = {path.name: kill.outcome(path) for path in folders(place)}
    for path in folders(place):
        shutil.rmtree(path)
    ran = subprocess.run(
        [sys.executable, "-m", "runner.train", *place.words, "hydra/launcher=joblib"],
        cwd=place.root, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {path.name: kill.outcome(path) for path in folders(place)} == before

    told = subprocess.run(
        [sys.executable, "-m", "runner.report", "outputs", "--markdown", "-"], cwd=place.root,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "code=one.py" in told.stdout
    assert "code=two.py" in told.stdout

    # The page shows the copies; one that is no longer what ran is not shown.
    for path in folders(place):
        if "-two-" in path.name:
            (path / "code.py").write_text("<script>changed</script>")
    page = render(
        answer(find_runs([place.root / "outputs"]), ScoreBook(place.root / "x.npz"), 0.005)
    )
    one, two = (read_idea(str(place.root / f"{name}.py")) for name in ("one", "two"))
    assert f"<summary>one.py, SHA-256 {one.sha256}</summary>" in page
    assert f"<pre><code>{escape(NOISE)}</code></pre>" in page
    assert f"two.py, SHA-256 {two.sha256}</summary>\n<p>No run keeps a copy" in page
    assert "changed" not in page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def loss(logits, y):\n    pass\n", "bad.py:1: loss takes (logits, targets)"),
        (f"import nowhere_at_all\n{HALF}", "bad.py:1, in <module>"),
        (None, "cannot read the file: No such file or directory"),
    ],
)
def test_a_sweep_with_a_bad_file_writes_nothing(
    make: Callable[..., Place], text: str | None, told: str
) -> None:
    place = make("-m", "code=good.py,bad.py", good=NOISE, **({"bad": text} if text else {}))
    ended = place.run()
    assert ended.code == 2, ended.out + ended.err
    assert told in ended.err
    assert "Traceback" not in ended.out + ended.err
    assert not (place.root / "outputs").exists()


# ── Mistakes ───────────────────────────────────────────────────────────────────────────────────


def test_an_exception_in_a_step_is_told_with_its_line(make: Callable[..., Place]) -> None:
    text = "def loss(logits, targets):\n    return logits[7, 7, 7]\n"
    place = make("code=idea.py", idea=text)
    ended = place.run()
    assert ended.code == 5, ended.out + ended.err
    assert "the code of the run failed: IndexError: too many indices" in ended.err
    assert "where: idea.py:2, in loss, epoch 1, step 1, lr " in ended.err
    assert "Traceback" not in ended.out + ended.err
    status = json.loads((place.folder / "status.json").read_text())
    assert status["status"] == "failed"
    assert "idea.py:2, in loss" in status["reason"]
    (place.root / "idea.py").write_text(text.replace("[7, 7, 7]", ".double()"))
    ended = place.run()
    assert ended.code == 5
    assert "loss must return a tensor () or (16,), and returned (16, 3) float64" in ended.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # A gradient that cannot be computed is raised in no line of the file.
        ("def loss(logits, targets):\n    loss = logits.exp()\n    logits.mul_(2)\n"
         "    x = logits.sigmoid()\n    y = x.sum()\n    x.zero_()\n    return y\n",
         "what the functions of idea.py returned, epoch 1, step 1"),
        ("def predictions(logits):\n    return 1 / 0\n", "idea.py:2, in predictions"),
        ("from torch import nn\n\nclass _Net(nn.Module):\n    def __init__(self, inner):\n"
         "        super().__init__()\n        self.inner = inner\n\n    def forward(self, x):\n"
         "        return self.inner(x).nothing\n\ndef model(model):\n    return _Net(model)\n",
         "idea.py:9, in forward, epoch 1, step 1"),
        ("import torch\n\ndef optimizer(groups, lr):\n    return torch.optim.LBFGS(\n"
         "        [p for g in groups for p in g['params']])\n", "idea.py:3, in optimizer"),
    ],
)  # fmt: skip
def test_other_exceptions_are_told(
    finished_run: Callable[..., Path], tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "idea.py").write_text(text)
    with pytest.raises(CodeError) as caught:
        finished_run(f"code={tmp_path / 'idea.py'}")
    assert told in caught.value.where


def test_the_command_tells_what_happens_before_the_run(command: Command, tmp_path: Path) -> None:
    (tmp_path / "idea.py").write_text("def model(model):\n    return 1 / 0\n")
    words = ("code=idea.py", "budget.epochs=1", "resize.size=16", *SMALL)
    ended = command(*words)
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert "where: idea.py:2, in model" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Traceback" in command(*words, RUNNER_DEBUG="1").stderr
    (tmp_path / "idea.py").write_text("def modle(model):\n    return model\n")
    ended = command(*words)
    assert ended.returncode == 2
    assert "idea.py:1: unknown function modle (did you mean model?)" in ended.stderr
    assert not list(tmp_path.glob("outputs/*/run.json"))


# ── Using a network that code changed ──────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def changed(finished_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose network and predictions a file changed."""
    path = tmp_path_factory.mktemp("code") / "idea.py"
    path.write_text(NETWORK.format(outputs=3) + HALF)
    return finished_run(f"code={path}")


def test_a_bundle_says_that_code_changed_it(
    changed: Path, finished_run: Callable[..., Path]
) -> None:
    bundle = open_bundle(changed)
    code = read_idea(str(changed / "code.py"))
    (change,) = bundle.architecture.changes
    assert change.name == "code"
    assert change.values == {"file": "idea.py", "sha256": code.sha256,
                             "functions": ["model", "predictions"]}  # fmt: skip
    description = json.loads((changed / "bundle" / "model.json").read_text())
    assert description["format"] == 3
    plain = json.loads((finished_run() / "bundle" / "model.json").read_text())
    assert plain["format"] == 2
    assert plain["model"] == {"source": "timm", "name": "test_resnet", "num_outputs": 3}


def test_predicting_needs_that_very_file(changed: Path, tiny_folder: Path, tmp_path: Path) -> None:
    bundle, images = open_bundle(changed), find_images([str(tiny_folder / "val")], iter).paths
    code = read_idea(str(changed / "code.py"))
    with pytest.raises(ArtefactError) as caught:
        rank(bundle, images, top=3, threads=1)
    assert code.sha256 in caught.value.what
    assert "idea.py" in caught.value.what
    assert "--code FILE" in caught.value.fix
    canary = tmp_path / "canary"
    (tmp_path / "idea.py").write_text(f"open({str(canary)!r}, 'w')\n{HALF}")
    other = read_idea(str(tmp_path / "idea.py"))
    with pytest.raises(ArtefactError) as caught:
        rank(bundle, images, top=3, threads=1, code=other)
    assert code.sha256 in caught.value.what
    assert other.sha256 in caught.value.what
    assert not canary.exists()  # it did not even run

    found = rank(bundle, images, top=3, threads=1, code=code)
    rows = np.array([[dict(one.top)[name] for name in CLASSES] for one in found])
    assert np.array_equal(rows, RunFolder(changed).predictions()["plain"].astype(float))


@pytest.mark.slow
def test_the_commands_take_the_file(
    changed: Path, command: Command, tiny_folder: Path, finished_run: Callable[..., Path]
) -> None:
    plain, copy = finished_run(), str(changed / "code.py")
    image = str(next((tiny_folder / "val").rglob("*.png")))
    for module, words in (
        ("runner.evaluate", (str(plain), str(changed), "tta=flip")),
        ("runner.predict", (str(changed), image)),
        ("runner.export", (str(changed), "--format", "torch")),
    ):
        refused = command(*words, module=module)
        assert refused.returncode == 7, refused.stdout + refused.stderr
        assert "--code FILE" in refused.stderr
        assert "Traceback" not in refused.stderr
        done = command(*words, "--code", copy, module=module)
        assert done.returncode == 0, done.stdout + done.stderr
        if module == "runner.evaluate":
            assert done.stderr.count("the plain row reproduces the run") == 2
        else:
            more = ("--force",) if module == "runner.export" else ()
            idle = command(str(plain), *words[1:], "--code", copy, *more, module=module)
            assert idle.returncode == 2
            assert "no code changed this network" in idle.stderr


@pytest.mark.slow
def test_an_export_has_the_predictions_of_the_code(changed: Path) -> None:
    from runner.data.embedded import load_fashion
    from runner.data.images import ArrayImages

    real = ArrayImages("fashion", load_fashion().val_images[:9])
    done = export(open_bundle(changed), "onnx", real, threads=1,
                  code=read_idea(str(changed / "code.py")))  # fmt: skip
    assert done.difference < 1e-4


def test_weights_of_such_a_network_need_the_file(
    changed: Path, finished_run: Callable[..., Path], tmp_path: Path
) -> None:
    words = (f"model.weights={changed}", "normalize=none", "normalize.allow_mismatch=true")
    with pytest.raises(ArtefactError, match=r"code of idea\.py") as caught:
        finished_run(*words)
    assert "code=FILE" in caught.value.fix
    (tmp_path / "other.py").write_text(HALF)
    with pytest.raises(ArtefactError, match=r"other\.py has"):
        finished_run(*words, f"code={tmp_path / 'other.py'}")
    again = finished_run(*words, f"code={changed / 'code.py'}")
    assert result(again)["model"]["weights"]["fresh"] == []
    assert result(again)["config"]["code"] != result(changed)["config"]["code"]  # the path


def test_a_change_that_is_not_known_is_refused(changed: Path, tmp_path: Path) -> None:
    from runner.models import build_model
    from runner.records.bundle import Change

    with pytest.raises(ArtefactError, match="changed by dilation"):
        build_model("timm", "test_resnet", 3, seed=0, changes=[Change("dilation", {})])
    folder = Path(shutil.copytree(changed / "bundle", tmp_path / "bundle"))
    for change in ({"name": "code"}, {"name": "code", "file": "a.py", "sha256": "x" * 64,
                                      "functions": []}):  # fmt: skip
        path = folder / "model.json"
        description = json.loads(path.read_text())
        description["model"]["changes"] = [change]
        path.write_text(json.dumps(description))
        with pytest.raises(ArtefactError):
            read_bundle(folder)


# ── Nothing that is read brings code ───────────────────────────────────────────────────────────


def test_the_copy_never_runs_by_itself(
    changed: Path, finished_run: Callable[..., Path], tmp_path: Path, command: Command,
    tiny_folder: Path,
) -> None:  # fmt: skip
    canary = tmp_path / "canary"
    image = str(next((tiny_folder / "val").rglob("*.png")))
    for number, source in enumerate((changed, finished_run())):
        run = Path(shutil.copytree(source, tmp_path / f"run{number}"))
        harmful = f"open({str(canary)!r}, 'w')\n{HALF}"
        for path in (run / "code.py", tmp_path / "code.py", run / "bundle" / "code.py"):
            path.write_text(harmful)
        for name in ("result.json", "run.json"):  # each names the file as its own
            content = json.loads((run / name).read_text())
            sha256 = read_idea(str(run / "code.py")).sha256
            content["code"] = {"file": "code.py", "sha256": sha256, "functions": ["predictions"]}
            if name == "result.json":
                content["config"]["code"] = str(run / "code.py")
            (run / name).write_text(json.dumps(content))
        for module, words in (
            ("runner.evaluate", (str(run),)),
            ("runner.predict", (str(run), image)),
            ("runner.export", (str(run), "--format", "torch")),
            ("runner.show", (str(tmp_path),)),
            ("runner.report", (str(tmp_path),)),
            ("runner.train", ("data=folder", f"data.root={tiny_folder}", f"model.weights={run}",
                              "normalize=pretrained", "budget.epochs=1", *SMALL)),
        ):  # fmt: skip
            ended = command(*words, module=module)
            assert "Traceback" not in ended.stderr, ended.stderr
            assert not canary.exists(), module
    refused = command(str(tmp_path / "run0"), image, "--code", str(tmp_path / "run0" / "code.py"),
                      module="runner.predict")  # fmt: skip
    assert refused.returncode == 7
    assert not canary.exists()


# ── Examples and the page ──────────────────────────────────────────────────────────────────────

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_is_an_example_of_each_kind() -> None:
    functions = {path.stem: list(read_idea(str(path)).lines) for path in EXAMPLES}
    assert functions == {"augmentation": ["images"], "loss": ["loss"], "network": ["model"],
                         "optimizer": ["optimizer"]}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run(finished_run: Callable[..., Path], path: Path) -> None:
    words = ("model.source=xresnet", "model.name=xresnet18") if path.stem == "network" else ()
    run, plain = finished_run(f"code={path}", *words), finished_run(*words)
    assert result(run)["code"]["file"] == path.name
    assert kill.outcome(run) != kill.outcome(plain)
    for line in re.findall(r"python -m runner\.train (.*)", path.read_text()):
        for job in compose.jobs([word for word in line.split() if word != "-m"]):
            code = compose.config_of(job).code
            assert code is None or (ROOT / code) == path


def test_the_network_of_the_examples_refuses_another_architecture(
    finished_run: Callable[..., Path],
) -> None:
    with pytest.raises(ValueError, match="model=xresnet18"):
        finished_run(f"code={ROOT / 'examples' / 'network.py'}")


def test_the_idea_of_the_page_runs(make: Callable[..., Place]) -> None:
    (idea,) = re.findall(r"<!-- test: idea -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (commands,) = re.findall(r"<!-- test: commands -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(idea.splitlines()) <= 10
    train_words, report_words = (line.split()[3:] for line in commands.splitlines())
    assert report_words == []
    place = make(*(word.replace("0,1,2,3,4", "0,1") for word in train_words), my_idea=idea)
    ended = place.run()
    assert ended.code == 0, ended.out + ended.err
    assert statuses(place) == ["finished"] * 4


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\((\.\./[^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_code_is_no_key_of_another_kind(composed: Callable[..., RunConfig]) -> None:
    assert composed().code is None
    assert composed("code=2024").code == "2024"
    with pytest.raises(ConfigError, match="code"):
        composed("code=[a.py,b.py]")
