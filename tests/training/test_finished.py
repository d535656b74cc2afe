"""Jobs whose runs are finished are answered as they would answer, and no others."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from small import write_images

from runner import train
from runner.config.schema import RunConfig
from runner.data import dataset
from runner.training.finished import finished_before

Composed = Callable[..., RunConfig]
WORDS = (
    "data=folder", "data.batch_size=8", "resize.size=16", "model=timm", "model.name=test_resnet",
    "budget.epochs=1", "threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, composed: Composed) -> RunConfig:
    """The configuration of a finished run on 192 images, whose folders may be changed."""
    root = tmp_path_factory.mktemp("finished")
    for seed, name in enumerate(("circle", "square")):
        write_images(root / "data" / "train" / name, 80, (200, 50 * seed, 0), seed)
        write_images(root / "data" / "val" / name, 16, (200, 50 * seed, 0), 100 + seed)
    config = composed(*WORDS, f"data.root={root / 'data'}", f"outputs={root / 'outputs'}")
    train.run(config, [])
    return config


@pytest.fixture
def opened() -> Any:
    """Counts how often data is read."""
    with mock.patch.object(dataset, "load_dataset", side_effect=dataset.load_dataset) as load:
        yield load


def test_a_finished_run_is_answered_as_its_job_would(trained: RunConfig, opened: Any) -> None:
    other = replace(trained, seed=1)
    answers = finished_before([trained, other, replace(trained, force=True), trained])
    assert answers == [train.run(trained, []), None, None, train.run(trained, [])]
    assert answers[0]["status"] == "skipped"
    assert opened.call_count == 3, "once for four jobs, and once for each of the two that ran"


def test_an_evaluation_that_is_missing_is_left_to_the_job(
    trained: RunConfig, composed: Composed
) -> None:
    with_tta = composed(
        *WORDS, f"data.root={trained.data.root}", f"outputs={trained.outputs}", "+trick=tta"
    )
    assert finished_before([with_tta]) == [None]
    evaluated = train.run(with_tta, [])
    assert evaluated["status"] == "evaluated"
    assert finished_before([with_tta, trained]) == [
        {**evaluated, "status": "skipped"},
        train.run(trained, []),
    ]


def test_a_folder_that_is_named_is_answered(trained: RunConfig, tmp_path: Path) -> None:
    named = replace(trained, run_dir=str(tmp_path / "mine"))
    assert finished_before([named]) == [None]
    shutil.copytree(train.run(trained, [])["folder"], tmp_path / "mine")
    (answer,) = finished_before([named])
    assert answer is not None
    assert answer["folder"] == str(tmp_path / "mine")
    assert finished_before([replace(named, seed=5)]) == [None], "the folder of another run"


def test_data_is_read_only_if_a_run_may_be_finished(
    trained: RunConfig, tmp_path: Path, opened: Any
) -> None:
    assert finished_before([replace(trained, outputs=str(tmp_path / "nowhere"))]) == [None]
    assert finished_before([replace(trained, seed=9)]) == [None]
    assert opened.call_count == 0


def test_data_that_was_never_read_here_is_left_to_the_job(
    trained: RunConfig, tmp_path: Path, opened: Any
) -> None:
    elsewhere = tmp_path / "outputs"
    shutil.copytree(trained.outputs, elsewhere, ignore=shutil.ignore_patterns("cache"))
    moved = [replace(trained, outputs=str(elsewhere), threads=number) for number in (1, 2)]
    assert finished_before(moved) == [None, None]
    assert opened.call_count == 1, "once, although it raised"
    assert not list(elsewhere.glob("cache/decoded/*/*"))


def test_what_is_wrong_is_left_to_the_job(trained: RunConfig, tmp_path: Path) -> None:
    no_data = replace(trained, data=replace(trained.data, root=str(tmp_path / "gone")))
    no_code = replace(trained, code=str(tmp_path / "gone.py"))
    outputs = tmp_path / "outputs"
    shutil.copytree(trained.outputs, outputs)
    damaged = replace(trained, outputs=str(outputs))
    for path in outputs.glob("*/result.json"):
        path.write_text("{")
    for one in (no_data, no_code, damaged):
        assert finished_before([one, trained]) == [None, train.run(trained, [])]


def test_a_change_of_the_data_is_another_run(trained: RunConfig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(str(trained.data.root), data)
    moved = replace(trained, data=replace(trained.data, root=str(data)))
    train.run(moved, [])  # reads the copies, and finds the run
    assert finished_before([moved]) == [train.run(trained, [])]
    next((data / "train" / "circle").iterdir()).unlink()
    assert finished_before([moved]) == [None]
