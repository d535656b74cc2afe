"""What each logger writes, read back by the library itself; after an interruption too."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fabricated import config, write_run
from PIL import Image

from runner.config.logger import Logger
from runner.loggers.log import RunLog
from runner.records.run_folder import RunFolder

pytestmark = pytest.mark.whole
STEPS = [10, 20, 30]
ACCURACIES = [0.25, 0.5, 0.75]
FIGURES = ["confusion", "curves", "reliability", "schedule"]


def row(folder: RunFolder, epoch: int) -> None:
    accuracy = ACCURACIES[epoch - 1]
    metrics = {"epoch": epoch, "step": 10 * epoch, "train_loss": 2 / epoch, "val_loss": 1 / epoch,
               "val_accuracy": accuracy, "lr": 0.1, "size": 64}  # fmt: skip
    folder.append_row(metrics)
    folder.append_row({"epoch": epoch, "images_per_second": 100.0}, "timings.jsonl")


def logged(root: Path, name: str, **keys: Any) -> tuple[RunFolder, dict[str, Any]]:
    """Log a run with mixup whose first attempt is interrupted after the second of three epochs.

    Returns its folder, and the final metrics of its result.
    """

    folder = write_run(root, "mixup", name="the-run")
    result = folder.result()
    assert result is not None
    content = (folder.path / "result.json").read_bytes()
    (folder.path / "result.json").unlink()
    folder.clear_rows()
    logger = Logger(name=name, project="project", **keys)  # type: ignore[arg-type]
    said = list[str]()

    def log() -> RunLog:
        chosen = config("mixup", logger=logger, outputs=str(root))
        return RunLog(chosen, folder.path, is_first=True, say=said.append)

    with log() as one:
        one.start()
        for epoch in (1, 2):
            row(folder, epoch)
            one.news()
        folder.write_status("interrupted", "SIGTERM")
    folder.clear_rows()
    row(folder, 1)  # as after a checkpoint at the first epoch
    with log() as other:
        other.start()
        for epoch in (2, 3):
            row(folder, epoch)
            other.news()
        (folder.path / "result.json").write_bytes(content)
    assert [line for line in said if "warning" in line] == []
    return folder, result["metrics"]["plain"]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, final = logged(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard" / "the-run"))
    found.Reload()
    points = found.Scalars("val/accuracy")
    assert [point.step for point in points] == STEPS
    assert [point.value for point in points] == ACCURACIES
    for tag in ("train/loss", "val/loss", "lr", "size", "images_per_second"):
        assert len(found.Scalars(tag)) == 3, tag
    assert found.Scalars("final/accuracy")[0].value == pytest.approx(final["accuracy"])
    assert sorted(found.Tags()["images"]) == [f"figures/{name}" for name in FIGURES]
    for name in FIGURES:
        (image,) = found.Images(f"figures/{name}")
        opened = Image.open(io.BytesIO(image.encoded_image_string))
        assert opened.size == (image.width, image.height)
    text = found.Tensors("configuration")[0].tensor_proto.string_val[0].decode()
    assert "| mixup.probability | " in text
    assert "| tricks | mixup |" in text
    assert "accuracy" in found.Tensors("final")[0].tensor_proto.string_val[0].decode()
    status = [item.tensor_proto.string_val[0].decode() for item in found.Tensors("status")]
    assert status == ["interrupted", "finished"]


@pytest.fixture
def file_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.mark.usefixtures("file_store")
def test_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    _, final = logged(tmp_path, "mlflow")
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("the-run", "FINISHED")
    points = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [(point.step, point.value) for point in points] == [*zip(STEPS, ACCURACIES, strict=True)]
    assert run.data.metrics["final/accuracy"] == pytest.approx(final["accuracy"])
    assert run.data.metrics.keys() >= {"train/loss", "lr", "size", "images_per_second"}
    assert run.data.tags["tricks"] == "mixup"
    assert run.data.tags["status"] == "finished"
    assert run.data.params["mixup.probability"] == "1.0"
    listed = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert listed >= {"config.json", "final.json", "figures"}
    figures = [item.path for item in client.list_artifacts(run.info.run_id, "figures")]
    assert sorted(figures) == [f"figures/{name}.png" for name in FIGURES]


def records(file: Path) -> Iterator[Any]:
    """Read a file of an offline run of wandb, in the format of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15  # of a block
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items(found: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in found}


def test_wandb(tmp_path: Path) -> None:
    _, final = logged(tmp_path, "wandb")
    files = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2, "an attempt each"
    attempts = [[*records(file)] for file in files]
    runs = [record.run for one in attempts for record in one if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    assert {run.project for run in runs} == {"project"}
    assert {run.display_name for run in runs} == {"the-run"}
    assert [*runs[0].tags] == ["mixup"]
    assert items(runs[0].config.update)["mixup.probability"] == 1.0
    history = [
        items(record.history.item)
        for one in attempts
        for record in one
        if record.HasField("history")
    ]
    points = [(values["_step"], values["val/accuracy"]) for values in history if "lr" in values]
    assert points == [*zip(STEPS, ACCURACIES, strict=True)]
    last = history[-1]
    assert {f"figures/{name}/path" for name in FIGURES} <= last.keys()
    assert last["final/_type"] == "table-file"
    summary: dict[str, Any] = {}
    for record in attempts[-1]:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    assert summary["final/accuracy"] == pytest.approx(final["accuracy"])
    assert summary["status"] == "finished"


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    _, final = logged(tmp_path, "trackio")
    import trackio

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    storage = trackio.SQLiteStorage
    assert storage.get_runs("project") == ["the-run"]
    found = storage.get_logs("project", "the-run")
    points = [(one["step"], one["val/accuracy"]) for one in found if "val/accuracy" in one]
    assert points == [*zip(STEPS, ACCURACIES, strict=True)]
    last = found[-1]
    assert last["final/accuracy"] == pytest.approx(final["accuracy"])
    assert last["status"] == "finished"
    assert {f"figures/{name}" for name in FIGURES} <= last.keys()
    chosen = storage.get_run_config("project", "the-run")
    assert chosen["mixup.probability"] == 1.0
    assert chosen["tricks"] == "mixup"


@pytest.mark.parametrize(
    ("name", "variable"), [("wandb", "WANDB_BASE_URL"), ("mlflow", "MLFLOW_TRACKING_URI")]
)
def test_a_server_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    from runner.loggers import log as logs

    monkeypatch.setattr(logs, "END_SECONDS", 3)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(AssertionError, match="stopped"):  # of `logged`, which has no warnings
        logged(tmp_path, name, online=True)
