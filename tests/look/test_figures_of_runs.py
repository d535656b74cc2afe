"""The figures of a finished run: all that can be drawn is drawn, the rest is said with a remedy."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import Command

from runner.errors import ArtefactError, DataError
from runner.look import gradcam
from runner.look.__main__ import main
from runner.look.finished import Places, draw
from runner.look.gradcam import network_input
from runner.records.bundle import open_bundle
from runner.records.run_folder import RunFolder, packed
from runner.records.validation_images import ValidationImages
from runner.training.learners import trained_learner

CHARTS = ["confusion.svg", "curves.svg", "reliability.svg", "schedule.svg"]
IN_ORDER = [
    *(f"{name}.svg" for name in ("curves", "schedule", "confusion", "reliability")),
    "mistakes.csv", "mistakes.png", "gradcam.png",
]  # fmt: skip
ALL = sorted(IN_ORDER)


@pytest.fixture(scope="module")
def trained(finished_run: Callable[..., Path]) -> Path:
    return finished_run("budget.epochs=2", "seed=3", "precision=fp32")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose predictions have six mistakes."""
    copied = Path(shutil.copytree(trained, tmp_path / "run"))
    labels = RunFolder(copied).predictions()["labels"]
    predict(copied, np.where(np.arange(len(labels)) % 4 == 0, (labels + 1) % 3, labels))
    return copied


def predict(run: Path, predicted: np.ndarray) -> None:
    labels = RunFolder(run).predictions()["labels"]
    plain = (0.1 + 0.7 * np.eye(3)[predicted]).astype(np.float32)
    (run / "predictions.npz").write_bytes(packed(labels=labels, plain=plain))


def drawn(run: Path, places: Places | None = None) -> tuple[list[str], str]:
    """Names of the files in figures/, and what was said beyond their paths."""
    said: list[str] = []
    written = draw(run, places, said.append)
    names = sorted(path.name for path in (run / "figures").iterdir())
    assert names == sorted(path.name for path in written)
    assert [line for line in said if not line.startswith("note")] == [*map(str, written)]
    return names, "\n".join(line for line in said if line.startswith("note"))


def test_every_figure_is_drawn(run: Path) -> None:
    names, notes = drawn(run)
    assert (names, notes) == (ALL, "")
    labels = RunFolder(run).predictions()["labels"]
    with (run / "figures" / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(labels) / 4
    assert {row["confidence"] for row in rows} == {"0.8"}
    assert {row["normalized_margin"] for row in rows} == {"-0.7"}
    assert all(row["image"].split("/")[1] == row["label"] for row in rows)
    for name, alt in (("mistakes", "6 of 6 validation images"), ("gradcam", "Grad-CAM of 6")):
        with Image.open(run / "figures" / f"{name}.png") as picture:
            assert alt in str(picture.info["Title"])
    assert "in 2 epochs" in (run / "figures" / "curves.svg").read_text()


@pytest.mark.whole
def test_figures_are_written_in_the_format_that_was_asked_for(run: Path) -> None:
    names, _ = drawn(run, Places(suffix=".png"))
    assert {Path(name).suffix for name in names} == {".png", ".csv"}


def test_the_squares_are_what_the_run_evaluated(trained: Path) -> None:
    found, result = RunFolder(trained).predictions(), RunFolder(trained).result()
    assert result is not None
    bundle = open_bundle(trained)
    images = ValidationImages(trained, result["config"]["data"], len(found["labels"]))
    squares = [images.square(row, bundle.preprocess) for row in range(len(found["labels"]))]
    learner = trained_learner(bundle, device="cpu", precision="fp32", threads=1)
    learner.model.eval()
    with torch.no_grad():
        inputs = network_input([square for square in squares if square is not None], learner)
        again = learner.probabilities(learner.logits(inputs)).numpy()
    np.testing.assert_allclose(again, found["plain"], atol=1e-5)
    assert np.abs(again - found["plain"][::-1]).max() > 1e-3


def moved_data(run: Path, place: Path) -> str:
    """Pretend that the data of the run is gone; where it is now."""
    result = json.loads((run / "result.json").read_text())
    root = result["config"]["data"]["root"]
    result["config"]["data"]["root"] = str(place)
    (run / "result.json").write_text(json.dumps(result))
    return str(root)


def test_without_the_data_all_else_is_drawn(run: Path, tmp_path: Path) -> None:
    root = moved_data(run, tmp_path / "gone")
    names, notes = drawn(run)
    assert names == sorted([*CHARTS, "mistakes.csv"])
    assert str(tmp_path / "gone") in notes
    assert f"python -m runner.look {run} data.root=PATH" in notes
    names, notes = drawn(run, Places(root=root))
    assert (names, notes) == (ALL, "")


def test_changed_images_are_not_shown(run: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(moved_data(run, tmp_path / "images"), tmp_path / "images"))
    for path in images.rglob("*.png"):
        Image.new("RGB", (32, 24)).save(path)
    names, notes = drawn(run)
    assert "gradcam.png" not in names
    assert "changed or removed" in notes


def test_without_the_package_gradcam_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    names, notes = drawn(run)
    assert names == [name for name in ALL if name != "gradcam.png"]
    assert notes == "note: gradcam is not drawn: pip install 'trick-runner[gradcam]'"


def test_what_the_package_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As opencv-python on a machine without a display."""
    (tmp_path / "pytorch_grad_cam.py").write_text("raise ImportError('libGL.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pytorch_grad_cam", raising=False)
    assert "pip install opencv-python-headless" in gradcam.missing()
    (tmp_path / "pytorch_grad_cam.py").write_text("import cv3_is_missing")
    assert "--force-reinstall 'trick-runner[gradcam]'" in gradcam.missing()


def test_a_damaged_bundle_leaves_the_charts(run: Path) -> None:
    (run / "bundle" / "model.safetensors").write_bytes(b"no weights")
    names, notes = drawn(run)
    assert names == sorted([*CHARTS, "mistakes.csv"])
    assert "mistakes and gradcam are not drawn" in notes


def test_a_run_without_mistakes_is_said(run: Path) -> None:
    predict(run, RunFolder(run).predictions()["labels"])
    names, notes = drawn(run)
    assert names == sorted([*CHARTS, "mistakes.csv"])
    assert "no validation image has a wrong prediction" in notes


def test_damaged_rows_are_left_out(run: Path, tmp_path: Path) -> None:
    moved_data(run, tmp_path / "gone")
    (run / "metrics.jsonl").write_text('{"epoch": 1}\nno row\n{"epoch": "x", "lr": []}\n')
    assert "curves.svg" in drawn(run)[0]
    assert "no evaluation was recorded" in (run / "figures" / "curves.svg").read_text()


@pytest.mark.parametrize("damage", ["cut", "classes", "labels", "infinite"])
def test_damaged_predictions_are_refused(run: Path, damage: str) -> None:
    path, found = run / "predictions.npz", RunFolder(run).predictions()
    labels, plain = found["labels"], found["plain"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "classes":
        path.write_bytes(packed(labels=labels, plain=plain[:, :2]))
    elif damage == "labels":
        path.write_bytes(packed(labels=labels + 2, plain=plain))
    else:
        path.write_bytes(packed(labels=labels, plain=plain * np.inf))
    with pytest.raises(ArtefactError, match="predictions"):
        drawn(run)


def test_other_folders_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        drawn(tmp_path / "nowhere")
    (run / "result.json").unlink()
    with pytest.raises(DataError, match="no finished run is here"):
        drawn(run)


@pytest.mark.whole
def test_the_command_prints_the_paths(run: Path, command: Command) -> None:
    done = command(str(run), "--threads", "1", module="runner.look")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run / "figures" / name) for name in IN_ORDER]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no such folder"),
        (["RUN", "seed=3"], "only the place of its data is allowed"),
        (["RUN", "data.root="], "data.root=PATH"),
        (["RUN", "--threads", "-1"], "is not a whole number"),
    ],
)
def test_mistakes_of_the_command_are_said(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        sys, "argv", ["look", *(str(run) if one == "RUN" else one for one in words)]
    )
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code in (2, 3)
    assert said in capsys.readouterr().err
