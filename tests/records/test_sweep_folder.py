"""The files of a sweep: how its jobs stand, also when a process is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill import (
    process_stat,
    wait_until,
)

from runner.records.sweep_folder import SlurmRecord, SweepFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder.create(tmp_path, [["seed=0"], ["seed=1"]])


@pytest.fixture
def dead(folder: SweepFolder) -> Iterator[int]:
    """A process that ended while its job was running, and that nobody has waited for."""
    process = subprocess.Popen(["true"])
    wait_until(lambda: process_stat(process.pid)[0] == "Z")
    (folder.path / "0.json").write_text(
        json.dumps({"status": "running", "pid": process.pid, "host": socket.gethostname()})
    )
    yield process.pid
    process.wait()


def test_sweeps_that_start_together_have_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two containers do, in each of which the sweep is process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    found = [SweepFolder.create(tmp_path, [[f"seed={seed}"]]) for seed in range(5)]
    assert len({folder.path for folder in found}) == 5
    for seed, folder in enumerate(found):
        listed = json.loads((folder.path / "sweep.json").read_text())
        assert listed["jobs"] == [[f"seed={seed}"]]
        assert folder.read(0) == {"status": "pending"}


@pytest.mark.parametrize(
    "change",
    [{"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": None}, {"host": 3}, {"status": []},
     {"error": 5}, {"accuracy": "good"}, {"folder": {}}],
    ids=str,
)  # fmt: skip
def test_a_status_that_is_none_is_neither_believed_nor_acted_on(
    folder: SweepFolder, change: dict[str, object]
) -> None:
    folder.write(0, "running")
    path = folder.path / "0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert folder.read(0) == {"status": "pending"}


def test_a_job_that_has_not_begun_is_pending(folder: SweepFolder) -> None:
    assert folder.read(0) == {"status": "pending"}
    (folder.path / "0.json").write_text("{")
    assert folder.read(0) == {"status": "pending"}


@pytest.mark.parametrize("status", ["waiting", "running", "finished", "busy", "failed"])
def test_a_job_stands_as_it_says(folder: SweepFolder, status: str) -> None:
    folder.write(1, status, accuracy=0.5)
    found = folder.read(1)
    assert (found["status"], found["accuracy"], found["pid"]) == (status, 0.5, os.getpid())
    assert folder.read(0) == {"status": "pending"}


def test_a_job_whose_process_is_gone_has_crashed(folder: SweepFolder, dead: int) -> None:
    assert folder.read(0)["status"] == "crashed"
    assert "ended without a message" in folder.read(0)["error"]
    folder.log(0).write_text("epoch 1\nFatal Python error: Aborted\n\nThread 0x7f\n")
    assert folder.read(0)["error"] == "crashed: Aborted"


def test_what_is_gone_here_may_live_on_another_machine(folder: SweepFolder, dead: int) -> None:
    text = (folder.path / "0.json").read_text()
    (folder.path / "0.json").write_text(text.replace(socket.gethostname(), "elsewhere"))
    assert folder.read(0)["status"] == "running"


def test_a_job_that_has_ended_does_not_need_its_process(folder: SweepFolder, dead: int) -> None:
    text = (folder.path / "0.json").read_text()
    (folder.path / "0.json").write_text(text.replace("running", "finished"))
    assert folder.read(0)["status"] == "finished"


def test_the_first_signal_is_remembered(folder: SweepFolder) -> None:
    assert folder.stopped_by is None
    folder.stop(signal.SIGTERM)
    folder.stop(signal.SIGINT)
    assert folder.stopped_by == signal.SIGTERM


def test_secrets_are_not_written_down(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, [["seed=0", "+api_token=hunter2"]])
    text = (folder.path / "sweep.json").read_text()
    assert "hunter2" not in text
    assert "seed=0" in text
    assert "+api_token=" in text


def test_sweeps_have_folders_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from runner.records.sweep_folder import SweepFolder;"
        "print(SweepFolder.create(Path(sys.argv[1]), []).path)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in several}) == 2


def test_slots_bound_the_jobs_of_all_processes(tmp_path: Path) -> None:
    """Each of four processes takes one of two slots twice, and says when."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from runner.records.sweep_folder import SweepFolder\n"
        "log = os.open(sys.argv[1] + '/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for _ in range(2):\n"
        "    with SweepFolder(Path(sys.argv[1])).slot(2):\n"
        "        os.write(log, b'+'); time.sleep(0.1); os.write(log, b'-')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in several] == [0] * 4
    log = (tmp_path / "log").read_text()
    taken = [log[:end].count("+") - log[:end].count("-") for end in range(len(log) + 1)]
    assert len(log) == 16
    assert max(taken) == 2


def test_the_command_that_cancels_leaves_the_other_jobs_of_another_sweep(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, [["a"], ["b"], ["c"], ["d"]])
    name = "20260101-000000-1"
    own = {number: SlurmRecord(f"7_{number}", None, number) for number in range(2)}
    others = {number: SlurmRecord(f"5_{number}", name, number) for number in (2, 3)}
    folder.submitted(own | others)
    assert folder.scancel([0]) == "scancel 7"
    assert folder.scancel(range(4)) == "scancel 7 '5_[2-3]'"
