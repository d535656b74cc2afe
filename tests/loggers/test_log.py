"""A logger that fails, waits or dies: the run is not affected, and says so once."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from runner.config.logger import Logger
from runner.config.schema import RunConfig, to_dict
from runner.errors import ConfigError
from runner.loggers import log as logs
from runner.loggers.copier import scalars
from runner.loggers.log import RunLog
from runner.loggers.tool import require_package
from runner.records.run_folder import RunFolder

WHAT = {"identity": "0123456789abcdef", "fingerprint": "f", "values": {"seed": 0}}
TOOL = """
import json, os, sys, time
class Run:
    def log(self, values, step):
        {on_log}
        with open({file!r}, "a") as file:
            file.write(json.dumps([step, values.get("val/accuracy"), values.get("status")]) + "\\n")
    def finish(self):
        {on_finish}
def init(**words):
    {on_init}
    with open({file!r}, "a") as file:
        file.write(json.dumps(["init", words["name"], words["resume"]]) + "\\n")
    return Run()
"""


class Logged:
    """A run that is logged by a fake of Trackio, which writes what it is given to a file."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.said = root, list[str]()
        self.config = RunConfig(logger=Logger(name="trackio"), outputs=str(root))
        self.folder = RunFolder(root / "run")
        monkeypatch.setenv("PYTHONPATH", str(root))
        self.tool()

    def tool(self, on_init: str = "pass", on_log: str = "pass", on_finish: str = "pass") -> None:
        code = TOOL.format(
            file=str(self.root / "seen"), on_init=on_init, on_log=on_log, on_finish=on_finish
        )
        (self.root / "trackio.py").write_text(code)

    def begin(self) -> None:
        self.folder.begin(WHAT, to_dict(self.config), [])

    def row(self, epoch: int) -> None:
        metrics = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.0, "val_accuracy": epoch / 9}
        self.folder.append_row(metrics)
        self.folder.append_row({"epoch": epoch, "images_per_second": 5.0}, "timings.jsonl")

    def log(self, *, is_first: bool = True) -> RunLog:
        return RunLog(self.config, self.folder.path, is_first=is_first, say=self.said.append)

    def run(self, *epochs: int) -> None:
        """Make some epochs, as an attempt at the run would, and be interrupted."""
        self.begin()
        with self.log() as log:
            log.start()
            for epoch in epochs:
                self.row(epoch)
                log.news()
            self.folder.write_status("interrupted", "SIGTERM")

    @property
    def seen(self) -> list[list[object]]:
        file = self.root / "seen"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said if line.startswith("warning: ")]


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logged:
    return Logged(tmp_path, monkeypatch)


def test_an_attempt_that_resumes_continues_the_logged_run(logged: Logged) -> None:
    logged.run(1, 2)
    first, rows, end = logged.seen[0], logged.seen[1:3], logged.seen[3:]
    assert first == ["init", "run", "never"]
    assert [row[0] for row in rows] == [10, 20]
    assert end == [[20, None, "interrupted"]]
    assert logged.warnings == []
    assert "TRACKIO_DIR=" in logged.said[0], "the command that shows the files"
    (logged.root / "seen").unlink()
    logged.folder.clear_rows()  # as without a checkpoint, so that all rows are made again
    logged.run(1, 2, 3)
    assert logged.seen[0] == ["init", "run", "allow"]
    assert [row[0] for row in logged.seen[1:]] == [30, 30], "the third epoch, and the end"


def test_a_run_that_begins_anew_is_a_new_logged_run(logged: Logged) -> None:
    logged.run(1)
    logged.folder.clear()  # force=true
    logged.run(1)
    assert [row for row in logged.seen if row[0] == "init"] == [["init", "run", "never"]] * 2


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"on_init": "raise ValueError('no entry')"}, "ValueError: no entry"),
        ({"on_log": "raise OSError(28, 'No space left on device')"}, "No space left on device"),
        ({"on_finish": "raise ConnectionError('no network')"}, "ConnectionError: no network"),
        ({"on_init": "os.kill(os.getpid(), 9)"}, "its process ended with code -9"),
        ({"on_init": "sys.exit(3)"}, "its process ended with code 3"),
    ],
    ids=["first", "disk", "last", "killed", "exit"],
)
def test_a_logger_that_fails_is_reported_once(
    logged: Logged, where: dict[str, str], reason: str
) -> None:
    logged.tool(**where)
    logged.run(1, 2, 3)
    (warning,) = logged.warnings
    assert reason in warning
    assert warning.startswith("warning: logger=trackio stopped: ")
    assert len(logged.folder.rows()) == 3


def test_a_failure_is_reported_while_the_run_goes_on(logged: Logged) -> None:
    logged.tool(on_init="raise ValueError('no entry')")
    logged.begin()
    with logged.log() as log:
        log.start()
        process = log._process
        assert process is not None
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for epoch in (1, 2):
            logged.row(epoch)
            log.news()
        assert len(logged.warnings) == 1


def test_a_logger_that_hangs_is_not_waited_for(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "END_SECONDS", 0.3)
    logged.tool(on_init="time.sleep(600)")
    logged.begin()
    with logged.log() as log:
        log.start()
        process = log._process
        assert process is not None
        began = time.monotonic()
        for _ in range(100_000):  # more than a pipe holds
            log.news()
        assert time.monotonic() - began < 10
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert process.returncode == -9
    assert "not done 0.3 s after the end of the run" in logged.warnings[0]


def test_a_logger_that_prints_does_not_wait_for_a_reader(logged: Logged) -> None:
    logged.tool(on_log="print('x' * 1_000_000); print('x' * 1_000_000, file=sys.stderr)")
    logged.run(1)
    assert logged.warnings == []
    assert len(logged.seen) == 3


def test_only_the_first_process_logs_and_only_if_asked_to(logged: Logged) -> None:
    logged.begin()
    with logged.log(is_first=False) as log:
        log.start()
        assert log._process is None
    logged.config = RunConfig(outputs=str(logged.root))
    with logged.log() as log:
        log.start()
        assert log._process is None
    assert (logged.seen, logged.said) == ([], [])


def test_a_missing_package_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # the folder that wandb writes is no package
    for name in ("tensorboard", "mlflow", "wandb", "trackio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=f"needs the package {name}") as error:
            require_package(Logger(name=name))
        assert error.value.fix == f"pip install 'trick-runner[{name}]'"
    require_package(Logger())


def test_scalars_have_the_names_of_the_field() -> None:
    row = {"epoch": 2, "step": 9, "stage": "all", "train_loss": 0.5, "val_accuracy": 0.25,
           "val_balanced_accuracy": 0.2, "val_auroc": None, "lr": 0.1, "size": 64,
           "images_per_second": 10.0, "clipped": 0.5}  # fmt: skip
    assert scalars(row) == {
        "epoch": 2, "train/loss": 0.5, "val/accuracy": 0.25, "val/balanced_accuracy": 0.2,
        "lr": 0.1, "size": 64, "images_per_second": 10.0, "train/clipped": 0.5,
    }  # fmt: skip
