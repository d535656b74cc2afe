"""What is printed of a sweep while its jobs are at work, and when they have ended."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cluster import DEAD, JOBS, Cluster, edit, submitted
from rich.console import Console

from runner.errors import SweepError
from runner.jobs import following
from runner.jobs.following import drawn, show_sweep, under_way
from runner.jobs.overview import Overview
from runner.machine.signals import raise_on_signals
from runner.records.sweep_folder import SweepFolder

Steps = Callable[..., None]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Let something happen between two looks, instead of the time that passes."""
    left: list[Callable[[], None]] = []

    def sleep(seconds: float) -> None:
        assert left, "it is watched for longer than the jobs are at work"
        left.pop(0)()

    monkeypatch.setattr(following.time, "sleep", sleep)
    yield lambda *more: left.extend(more)
    assert not left, "it was not watched to the end"


def text(overview: Overview, width: int, height: int = 1000) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(drawn(overview, width, height))
    return [line.rstrip() for line in console.export_text().rstrip("\n").split("\n")]


def test_a_pipe_gets_a_table_and_then_a_line_per_change(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], steps: Steps
) -> None:
    folder = submitted(tmp_path / ("long" * 40))  # the line of the logs stays whole
    for number in range(4):
        cluster.put(f"7_{number}", "PENDING", "Priority")

    def first_begins() -> None:
        cluster.put("7_0", "RUNNING", node="far")
        folder.write(0, "running")
        cluster.put("7_3", "CANCELLED")

    def reason_changes() -> None:
        cluster.put("7_1", "PENDING", "Resources")

    def all_end() -> None:
        folder.write(0, "finished", accuracy=0.5)
        folder.write(1, "failed", error="no such\x1b file")
        folder.write(2, "finished", accuracy=0.25, tta=0.5)

    steps(first_begins, lambda: None, reason_changes, all_end)
    with pytest.raises(SweepError, match="2 of 4 jobs failed") as caught:
        show_sweep(folder, once=False)
    assert caught.value.exit_code == 6
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    begun, ended = (
        lines.index("running: seed=0  7_0 on far"),
        lines.index("4 jobs: 2 finished, 1 failed, 1 cancelled"),
    )
    assert lines[:4] == [
        f"sweep {folder.path.name}",
        f"  logs: {folder.path}/N.log",
        "  Slurm: 7_[0-3]; scancel 7 ends them, and what runs is saved",
        "4 jobs: 4 queued",
    ]
    assert lines[begun - 1] == "7_[0-3] wait: jobs of higher priority come first (Priority)"
    assert lines[begun:ended] == [
        "running: seed=0  7_0 on far",
        "cancelled: seed=3  cancelled in Slurm",
        "7_1 waits: next in line, until enough cores, memory or GPUs are free (Resources)",
        "finished: seed=0  accuracy 50.00%",
        r"failed: seed=1  no such\x1b file",
        "finished: seed=2  accuracy 25.00%, with TTA 50.00%",
    ]  # fmt: skip
    rows = [line.split() for line in lines[ended:]]
    assert ["seed=2", "finished", "25.00%", "50.00%"] in rows
    assert "failed: seed=1" in lines[ended:]
    assert r"  no such\x1b file" in lines[ended:]


def test_once_prints_and_leaves(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = submitted(tmp_path)
    cluster.put("7_0", "RUNNING", node="far")
    show_sweep(folder, once=True)
    out = capsys.readouterr().out
    assert "4 jobs: 1 queued, 3 cancelled" in out, "the three that Slurm does not know"
    cluster.problem = "Slurm does not answer: no route"
    show_sweep(submitted(tmp_path), once=True)
    out = capsys.readouterr().out
    assert "4 jobs: 4 queued" in out
    assert "Slurm does not answer: no route; it is asked again" in out
    folder.write(0, "finished", accuracy=0.25, tta=0.75)
    show_sweep(folder, once=True)
    out = capsys.readouterr().out
    assert out.index("accuracy") < out.index("TTA")
    assert out.index("25.00%") < out.index("75.00%")
    for number in range(4):
        folder.write(number, "finished", accuracy=0.5)
    show_sweep(folder, once=True)
    assert "4 jobs: 4 finished" in capsys.readouterr().out


def test_a_sweep_that_was_left_has_jobs_without_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SweepFolder.create(tmp_path, JOBS)
    folder.write(0, "finished", accuracy=0.5)
    folder.write(1, "interrupted")
    edit(folder, "sweep.json", pid=DEAD)
    with pytest.raises(SweepError, match="3 of 4 jobs have no result, and nothing is at work"):
        show_sweep(folder, once=False)
    assert "4 jobs: 1 finished, 1 interrupted, 2 pending" in capsys.readouterr().out


def test_a_signal_ends_the_watching_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: Steps
) -> None:
    folder = SweepFolder.create(tmp_path, JOBS)
    folder.write(0, "running")
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    raise_on_signals()
    steps(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as caught:
            show_sweep(folder, once=False)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert caught.value.code == 143
    assert capsys.readouterr().err.splitlines() == [
        "not watched any more; the jobs go on. To watch again:",
        f"  python -m runner.show {folder.path}",
    ]
    assert folder.stopped_by is None
    assert folder.read(0)["status"] == "running"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_the_terminal(tmp_path: Path, cluster: Cluster, width: int) -> None:
    folder = submitted(
        tmp_path,
        [["model=timm", "+trick=[mixup,label_smoothing]", f"seed={seed}"] for seed in range(3)]
        + [["model=timm", "seed=3"]],
    )
    for number in range(4):
        cluster.put(f"7_{number}", "PENDING", "QOSMaxCpuPerUserLimit")
    cluster.put("7_0", "COMPLETING", node="gpu-node-012")
    folder.write(0, "running")
    overview = Overview(folder)
    overview.look()
    lines = text(overview, width)
    assert max(map(len, lines)) <= width
    assert "4 jobs: 1 running, 3 queued" in lines
    if width >= 80:
        (row,) = [line for line in lines if "7_0" in line and "COMPLETING" in line]
        assert row.split() == [
            "+trick=[mixup,label_smoothing]", "seed=0", "running", "7_0", "COMPLETING",
            "gpu-node-012",
        ]  # fmt: skip


def test_of_many_jobs_those_are_drawn_that_need_a_look(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, [[f"seed={seed}"] for seed in range(60)])
    for number in range(40):
        folder.write(number, "finished", accuracy=0.5)
    folder.write(20, "failed", error="no")
    folder.write(55, "running")
    overview = Overview(folder)
    overview.look()
    lines = text(overview, 80, 20)
    assert len(lines) <= 20
    assert "60 jobs: 39 finished, 1 failed, 19 pending, 1 running" in lines
    rows = [line.split() for line in lines]
    assert ["seed=20", "failed"] in rows
    assert ["seed=55", "running"] in rows
    (rest,) = [line for line in lines if line.startswith("and ")]
    shown = sum(row[0].startswith("seed=") for row in rows if row)
    assert rest.startswith(f"and {60 - shown} jobs: 39 finished, ")
    assert len(text(overview, 80)) > 60


def test_a_terminal_is_drawn_anew_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "_SECONDS", 0.01)
    out = io.StringIO()
    console = following.LiveConsole(
        file=out, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"}
    )
    monkeypatch.setattr(following, "LiveConsole", lambda **_: console)
    folder = SweepFolder.create(tmp_path, JOBS[:2])
    folder.write(0, "running")
    watching = threading.Thread(target=show_sweep, args=(folder,), kwargs={"once": False})
    watching.start()
    deadline = time.monotonic() + 20
    while "2 jobs: 1 running, 1 pending" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in range(2):
        folder.write(number, "finished", accuracy=0.5)
    watching.join(20)
    assert not watching.is_alive()
    assert "2 jobs: 1 running, 1 pending" in out.getvalue()
    assert "\x1b[?25l" not in out.getvalue(), "the cursor stays visible"
    assert "2 jobs: 2 finished" in capsys.readouterr().out


def test_sweeps_under_way_are_named(tmp_path: Path, cluster: Cluster) -> None:
    ended = submitted(tmp_path)
    for number in range(4):
        ended.write(number, "finished", accuracy=0.5)
    queued = submitted(tmp_path)
    for number in range(4):
        cluster.put(f"7_{number}", "PENDING")
    (tmp_path / "sweeps" / "foreign").mkdir()
    assert [*under_way(tmp_path)] == [f"sweep {queued.path.name}: 4 jobs: 4 queued"]
    assert [*under_way(tmp_path / "nowhere")] == []
