"""The run folder: what is written when, what a failure leaves behind, what is kept secret."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from runner.errors import ArtefactError, StorageError
from runner.records import VERSION, RunFolder, redacted

RESULT = {"config": {"seed": 3}, "command": ["python", "seed=3"], "metrics": {"accuracy": 0.5}}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def status(folder):
    return json.loads((folder.path / "status.json").read_text())


def test_a_run_from_start_to_result(folder):
    assert folder.result() is None
    folder.start({"seed": 3, "optim": {"lr": 0.1}}, ["seed=3", "+trick=mixup"])
    assert folder.result() is None
    assert status(folder)["status"] == "running"
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["optim"] == {"lr": 0.1}
    assert (folder.path / "overrides.txt").read_text() == "seed=3\n+trick=mixup\n"
    assert (folder.path / "bundle").is_dir()

    for epoch in (1, 2):
        folder.append_row({"epoch": epoch, "val_loss": 1 / 3})
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"epoch": 1, "val_loss": 1 / 3}, {"epoch": 2, "val_loss": 1 / 3}]

    labels = np.array([0, 1])
    plain, tta = np.eye(2, dtype=np.float32), np.full((2, 2), 0.5, np.float32)
    folder.write_predictions(labels, plain, tta)
    with np.load(folder.path / "predictions.npz") as found:
        assert set(found) == {"labels", "plain", "tta"}
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["plain"], plain)
        np.testing.assert_array_equal(found["tta"], tta)
    assert folder.result() is None

    folder.finish(RESULT)
    assert status(folder)["status"] == "finished"
    assert folder.result() == {**RESULT, "record_version": VERSION, "status": "finished"}
    assert not [path for path in folder.path.rglob("*") if "tmp" in path.name]


def test_a_failed_run_says_why(folder):
    folder.start({}, [])
    folder.write_status("failed", "the loss is not finite")
    assert status(folder)["reason"] == "the loss is not finite"
    assert folder.result() is None


# ── Nothing half written ───────────────────────────────────────────────────────────────────────


def test_the_result_is_the_last_file_to_appear(folder, monkeypatch):
    folder.start({}, [])
    written, original = [], Path.replace

    def recorded(self, target):
        written.append(Path(target).name)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    folder.finish(RESULT)
    assert written == ["status.json", "result.json"]


def test_a_failure_while_writing_leaves_no_result(folder, monkeypatch):
    folder.start({}, [])
    original = Path.replace

    def full(self, target):
        if Path(target).name == "result.json":
            raise OSError(28, "No space left on device")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match="No space left") as caught:
            folder.finish(RESULT)
    assert caught.value.exit_code == 4
    assert "result.json" in caught.value.where
    assert folder.result() is None
    folder.finish(RESULT)  # with space again
    assert folder.result() is not None


def test_a_process_killed_while_writing_leaves_no_result(folder):
    folder.start({}, [])
    (folder.path / "result.json.tmp").write_text('{"record_version": 1, "stat')
    assert folder.result() is None


def test_a_rewritten_file_is_old_or_new_never_half(folder, monkeypatch):
    folder.start({}, [])
    folder.finish(RESULT)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError):
        folder.write_text("result.json", "other")
    assert folder.result()["config"] == {"seed": 3}


def test_starting_removes_what_an_earlier_attempt_left(folder):
    folder.start({}, ["seed=1"])
    folder.append_row({"epoch": 1})
    (folder.path / "bundle" / "model.safetensors").write_bytes(b"old")
    (folder.path / "plots").mkdir()
    (folder.path / "plots" / "loss.svg").write_text("old")
    (folder.path / "result.json.tmp").write_text("half")
    folder.finish(RESULT)
    (folder.path / "run.lock").write_text("held")

    folder.start({}, ["seed=2"])
    assert {path.name for path in folder.path.iterdir()} == {
        "run.lock", "bundle", "config.yaml", "overrides.txt", "status.json",
    }  # fmt: skip
    assert not list((folder.path / "bundle").iterdir())
    assert (folder.path / "run.lock").read_text() == "held"
    assert (folder.path / "overrides.txt").read_text() == "seed=2\n"
    assert folder.result() is None


def test_the_old_result_is_the_first_to_go(folder, monkeypatch):
    folder.start({}, [])
    folder.finish(RESULT)

    def stuck(self):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "iterdir", stuck)
    with pytest.raises(StorageError, match="busy"):
        folder.start({}, [])
    assert folder.result() is None


# ── What is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"record_version": 1', b"[]", b"{}", b"null", b"\xff\xfe",
        b'{"record_version": 0}', b'{"record_version": "1"}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_result_is_refused(folder, content):
    folder.start({}, [])
    (folder.path / "result.json").write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        folder.result()
    assert caught.value.exit_code == 7
    assert caught.value.where == str(folder.path / "result.json")
    assert "force=true" in caught.value.fix


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_never_written(folder, bad):
    folder.start({}, [])
    folder.append_row({"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        folder.append_row({"epoch": 2, "val_loss": bad})
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    with pytest.raises(ValueError, match="JSON"):
        folder.finish({**RESULT, "metrics": {"accuracy": bad}})
    assert folder.result() is None
    assert status(folder)["status"] == "running"


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: folder.start({}, []),
        lambda folder: folder.append_row({"epoch": 1}),
        lambda folder: folder.write_status("running"),
        lambda folder: folder.write_predictions(np.zeros(1), np.zeros((1, 2)), np.zeros((1, 2))),
        lambda folder: folder.finish(RESULT),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, write):
    (tmp_path / "file").write_text("in the way")  # root may write anywhere, but not into a file
    with pytest.raises(StorageError) as caught:
        write(RunFolder(tmp_path / "file" / "run"))
    assert caught.value.exit_code == 4
    assert str(tmp_path / "file" / "run") in caught.value.where
    assert "outputs=" in caught.value.fix


# ── Secrets ────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_blanked_wherever_they_are():
    values = {
        "api_token": "hush",
        "Password": "hush",
        "aws": [{"SECRET_KEY": "hush", "region": "eu"}],
        "proxy": {"credentials": {"user": "hush"}},
        "hub_token": None,
        "seed": 3,
    }
    shown = redacted(values)
    assert "hush" not in json.dumps(shown)
    assert shown["aws"][0]["region"] == "eu"
    assert (shown["hub_token"], shown["seed"]) == (None, 3)
    assert "<redacted>" not in values.values()  # what came in stays as it was


@pytest.mark.parametrize("key", ["+api_token", "hub.token", "++data.password", "API_KEY"])
def test_no_file_of_the_folder_holds_a_secret(folder, key):
    words = ["seed=3", f"{key}=hush", "~data.token"]
    folder.start({"api_token": "hush", "seed": 3}, words)
    folder.finish({**RESULT, "config": {"api_token": "hush"}, "command": ["python", *words]})
    for path in folder.path.rglob("*"):
        assert path.is_dir() or "hush" not in path.read_text(), path
    overrides = (folder.path / "overrides.txt").read_text().splitlines()
    assert overrides == ["seed=3", f"{key}=<redacted>", "~data.token"]
    assert folder.result()["command"] == ["python", *overrides]
