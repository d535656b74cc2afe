"""The list of runs: whatever is below the folder, and whoever is at it."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from small import Command

from runner.errors import DataError
from runner.machine.locks import locked
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import SweepFolder
from runner.show import _table, _watch, rows, sweep_at

WHAT = {"identity": "0" * 16, "fingerprint": "f", "values": {"seed": 0}}


def begun(outputs: Path, name: str) -> RunFolder:
    folder = RunFolder(outputs / name)
    folder.begin(WHAT, {"seed": 0}, ["seed=0"])
    return folder


def by_name(outputs: Path) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in rows(outputs)}


def test_every_state_of_a_run_is_distinguishable(tmp_path: Path) -> None:
    begun(tmp_path, "killed")
    begun(tmp_path, "failed").write_status("failed", "the loss is not finite\nwhere: epoch 1")
    begun(tmp_path, "stopped").write_status("interrupted", "SIGTERM after step 3 of 9")
    finished = begun(tmp_path, "finished")
    finished.append_row({"epoch": 1, "val_accuracy": 0.25})
    finished.append_row({"epoch": 2, "val_accuracy": 0.5})
    finished.finish({"config": {}})
    running = begun(tmp_path, "running")
    with locked(running.lock):
        found = by_name(tmp_path)
    assert {name: row["status"] for name, row in found.items()} == {
        "killed": "killed", "failed": "failed", "stopped": "interrupted",
        "finished": "finished", "running": "running",
    }  # fmt: skip
    assert by_name(tmp_path)["running"]["status"] == "killed", "once nobody holds the lock"
    assert found["failed"]["reason"] == "the loss is not finite"
    assert (found["finished"]["epoch"], found["finished"]["accuracy"]) == (2, 0.5)
    assert (found["killed"]["epoch"], found["killed"]["accuracy"]) == (0, None)


@pytest.mark.parametrize("tail", ['{"epoch": 2, "val_acc', "[]\n", "\x00", '"text"\n'])
def test_a_row_that_is_being_written_is_passed_over(tmp_path: Path, tail: str) -> None:
    folder = begun(tmp_path, "run")
    folder.append_row({"epoch": 1, "val_accuracy": 0.25})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert by_name(tmp_path)["run"]["epoch"] == 1


def test_of_long_logs_only_the_end_is_read(tmp_path: Path) -> None:
    folder = begun(tmp_path, "run")
    with (folder.path / "metrics.jsonl").open("wb") as file:
        file.truncate(2**40)  # without a block on the disk
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"epoch": 7, "val_accuracy": 0.5}\n')
    row = by_name(tmp_path)["run"]
    assert (row["epoch"], row["accuracy"]) == (7, 0.5)


def test_a_pipe_in_the_place_of_the_rows_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(begun(tmp_path, "run").path / "metrics.jsonl")
    assert by_name(tmp_path)["run"]["epoch"] == 0


def test_foreign_and_broken_folders_do_no_harm(tmp_path: Path) -> None:
    begun(tmp_path, "run")
    (tmp_path / "cache").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    broken = begun(tmp_path, "broken")
    (broken.path / "status.json").write_bytes(b"\xff{")
    (broken.path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert set(by_name(tmp_path)) == {"run", "broken"}
    assert by_name(tmp_path)["broken"]["status"] == "new"
    with pytest.raises(DataError, match="no such folder"):
        list(rows(tmp_path / "nowhere"))


def test_the_command(command: Command, tmp_path: Path) -> None:
    assert command(module="runner.show").returncode == 3
    folder = begun(tmp_path / "outputs", "run-[red]\x1b[31m")
    (folder.path / "status.json").write_text(
        json.dumps({"status": "failed", "reason": "[bold]\x1b[2J"})
    )
    done = command(module="runner.show", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert "1 failed" in done.stdout
    assert "run-[red]" in done.stdout, "markup in a name is text"
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("reason", ["", "SIGTERM after step 2 of 18"])
def test_names_of_runs_stay_in_one_piece(tmp_path: Path, width: int, reason: str) -> None:
    names = (
        "fashion-xresnet18-baseline-seed0-265849e3",
        "fashion-xresnet18-progressive_resizing-seed12-0c5c290f",
    )
    for name in names:
        folder = begun(tmp_path, name)
        folder.append_row({"epoch": 1, "val_accuracy": 0.25, "val_balanced_accuracy": 0.25})
        folder.write_status("interrupted", reason)
    out = io.StringIO()
    _table([*rows(tmp_path)]).print(Console(file=out, width=width, highlight=False))
    assert {*names, "interrupted", "25.00%", *reason.split()} <= {*out.getvalue().split()}
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert "balanced" not in out.getvalue(), "it repeats the accuracy"
    assert ("reason" in out.getvalue()) == bool(reason)
    folder.append_row({"epoch": 2, "val_accuracy": 0.25, "val_balanced_accuracy": 0.5})
    assert "balanced" in _table([*rows(tmp_path)]).columns, "the negative control"


def test_a_run_at_work_has_its_pace_and_the_time_that_is_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(WHAT, {"budget": {"epochs": 10}}, [])
    folder.append_row({"epoch": 4, "val_accuracy": 0.25})
    times = {"epoch": 4, "images_per_second": 500.0, "total_seconds": 80.0}
    folder.append_row(times, "timings.jsonl")
    with locked(folder.lock):
        found = by_name(tmp_path)["run"]
    assert (found["epoch"], found["epochs"], found["speed"]) == (4, 10, 500.0)
    assert found["left"] == pytest.approx(120, abs=5)  # six epochs of twenty seconds
    assert by_name(tmp_path)["run"]["left"] is None, "the run is not at work any more"


def test_watching_a_pipe_prints_a_line_per_change_until_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, looks = begun(tmp_path, "run"), iter((1, 1, 2))

    def sleep(seconds: float) -> None:
        try:
            folder.append_row({"epoch": next(looks), "val_accuracy": 0.25})
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("runner.show.time.sleep", sleep)
    with pytest.raises(SystemExit) as ended:
        _watch(tmp_path)
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"run: killed, epoch {epoch}" for epoch in (0, 1, 2)]
    assert "the runs go on" in err


def test_a_sweep_is_found_by_folder_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    assert sweep_at(Path("outputs")) is None
    (outputs / "sweeps").mkdir(parents=True)
    with pytest.raises(DataError, match="no sweep here yet"):
        sweep_at(Path("outputs/sweeps"))
    older = SweepFolder.create(outputs, [["seed=0"]])
    (older.path).rename(older.path.with_name("20250102-030405-17"))
    sweep = SweepFolder.create(outputs, [["seed=0"]])
    (outputs / "sweeps" / "zzz").mkdir()
    for place in (f"outputs/sweeps/{sweep.path.name}", sweep.path.name, "outputs/sweeps"):
        found = sweep_at(Path(place))
        assert found is not None
        assert found.path == sweep.path
        assert found.outputs == outputs
    monkeypatch.chdir(outputs / "sweeps" / "20250102-030405-17")
    assert sweep_at(Path()) is not None
    with pytest.raises(DataError, match="no such sweep"):
        sweep_at(Path("outputs/sweeps/20250102-030405-18"))


def test_the_command_shows_a_sweep(command: Command, tmp_path: Path) -> None:
    sweep = SweepFolder.create(tmp_path / "outputs", [["seed=0"], ["seed=1"]])
    for number in range(2):
        sweep.write(number, "finished", accuracy=0.5)
    done = command(sweep.path.name, module="runner.show")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 jobs: 2 finished" in done.stdout
    sweep.write(1, "failed", error="no")
    done = command("outputs/sweeps", "--once", module="runner.show")
    assert done.returncode == 6
    assert "1 of 2 jobs failed" in done.stderr
    sweep.write(1, "running")
    done = command(module="runner.show")
    assert f"sweep {sweep.path.name}: 2 jobs: 1 finished, 1 running" in done.stdout
