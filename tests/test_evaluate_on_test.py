"""``evaluate --split test``: the test part is predicted, kept apart, and never judged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Command, add_test_part

from runner import train
from runner.config.schema import RunConfig
from runner.data.dataset import Dataset, load_dataset
from runner.evaluate import configurations, evaluate_run, read_run, variants
from runner.records import evaluations, evaluations_on_test
from runner.records.run_folder import RunFolder
from runner.report.runs import find_runs
from runner.terminal.display import Display
from runner.training.metrics import METRICS, classification_metrics

MODULE = "runner.evaluate"
NUM_TEST = 15


@pytest.fixture(scope="module")
def data(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/, val/ and test/ with three classes of 16, 8 and 5 images."""
    root = tmp_path_factory.mktemp("with_test") / "data"
    shutil.copytree(tiny_folder, root)
    add_test_part(root)
    return root


@pytest.fixture(scope="module")
def trained_run(
    data: Path, tmp_path_factory: pytest.TempPathFactory, composed: Callable[..., RunConfig]
) -> Path:
    outputs = tmp_path_factory.mktemp("outputs") / "outputs"
    words = [
        "data=folder", f"data.root={data}", "data.batch_size=16", "resize.size=16",
        "budget.epochs=1", "threads=1", f"outputs={outputs}",
    ]  # fmt: skip
    return Path(train.run(composed(*words), [])["folder"])


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained_run, tmp_path / "outputs" / trained_run.name))


def kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "evaluations" / "test").glob("*"))


def test_the_test_part_is_evaluated_and_kept_apart(
    command: Command, run: Path, data: Path, tmp_path: Path
) -> None:
    before = find_runs([run.parent])
    done = command(str(run), "tta=flip", "--split", "test", "--json", "-", module=MODULE)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    plain, flip = content["runs"][0]["rows"]
    assert (content["split"], content["runs"][0]["images"]) == ("test", NUM_TEST)
    # Independently: the same images as the validation part of another folder.
    other = tmp_path / "other"
    shutil.copytree(data / "train", other / "train")
    shutil.copytree(data / "test", other / "val")
    found = as_validation(run, other)
    assert [row["accuracy"] for row in found] == [plain["accuracy"], flip["accuracy"]]
    for name in METRICS:
        assert (plain[name], flip[name]) == tuple(row[name] for row in found)
    assert plain["per_class"] == found[0]["per_class"]
    assert plain["accuracy"] != before.runs[0].metrics["plain"]["accuracy"], "other images"
    # The files: own names, own folder, the probabilities of the test images.
    folder, fingerprint = RunFolder(run), content["test_fingerprint"]
    assert len(kept(run)) == 4
    assert evaluations.names(folder) == []
    identity = read_run(run).identity
    name = evaluations_on_test.name_of(None, fingerprint)
    record = evaluations_on_test.read(folder, name, identity, fingerprint)
    saved = evaluations_on_test.predictions(folder, name)
    assert saved.labels.tolist() == sorted(saved.labels.tolist())
    recorded = classification_metrics(saved.probabilities, saved.labels, ("blue", "green", "red"))
    assert {name: record["metrics"][name] for name in METRICS} == {
        name: recorded[name] for name in METRICS
    }
    assert find_runs([run.parent]) == before, "the report sees nothing of it"
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    again = command(str(run), "--split", "test", module=MODULE)
    assert again.returncode == 0, again.stderr
    assert f"{NUM_TEST} test images" in again.stdout
    assert "95% interval" in again.stdout
    assert "plain, by class" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")} == times
    (run / "evaluations" / "test" / f"{name}.npz").write_bytes(b"damaged")
    assert command(str(run), "--split", "test", module=MODULE).returncode == 0
    repaired = evaluations_on_test.predictions(folder, name)
    assert np.array_equal(repaired.probabilities, saved.probabilities)


def as_validation(run: Path, root: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation of a run whose validation part is that of another folder."""
    recorded = read_run(run)
    wanted = variants([f"data.root={root}", "tta=flip"], is_sweep=False)
    (config,) = configurations(recorded, wanted)

    def load(data: Any, size: int, outputs: str) -> Dataset:
        found = load_dataset(data, size, run.parent / "cache", lambda what, done, total: None)
        return replace(found, fingerprint=recorded.fingerprint)

    with Display(stderr=True, quiet=True) as display:
        rows: list[dict[str, Any]] = evaluate_run(recorded, {wanted[0]: config}, load, display)[
            "rows"
        ]
    return rows


@pytest.mark.parametrize("problem", ["no test part", "a broken image", "a leak"])
def test_a_test_part_that_cannot_be_used_is_reported(
    command: Command, run: Path, data: Path, tmp_path: Path, problem: str
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    if problem == "no test part":
        shutil.rmtree(root / "test")
    elif problem == "a broken image":
        (root / "test" / "red" / "000.png").write_bytes(b"broken")
    else:
        shutil.copy(root / "train" / "red" / "000.png", root / "test" / "red" / "000.png")
    done = command(str(run), f"data.root={root}", "--split", "test", module=MODULE)
    assert "Traceback" not in done.stderr
    assert {
        "no test part": "the data has no test part",
        "a broken image": "1 broken image",
        "a leak": "1 of 15 test images are in training or validation too, such as train",
    }[problem] in done.stderr
    if problem == "a leak":  # as in training, where data.on_leak=error refuses it
        assert done.returncode == 0
    else:
        assert (done.returncode, done.stdout) == (3, "")
        assert str(root) in done.stderr
        assert kept(run) == []


def test_another_split_is_a_mistake(command: Command, run: Path) -> None:
    done = command(str(run), "--split", "train", module=MODULE)
    assert done.returncode == 2
    assert "--split" in done.stderr
