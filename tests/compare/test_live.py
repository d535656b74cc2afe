"""What a comparison shows while it runs: lines in a pipe, a table in a terminal, both sane."""

import io
import json
import os
import pty
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from runner.compare import live as lives
from runner.compare.live import Live
from runner.compare.plan import Planned, as_recorded
from runner.compare.question import Job
from runner.jobs.launch import Outcome
from runner.records.comparison_folder import BASE
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import ComparisonAnswer, Standing
from runner.report.measures import Mean
from runner.terminal.console import PipeConsole

Plan = Callable[..., Planned]
HELPS = Standing(
    label="mixup=beta", words=("mixup=beta",), chosen=(), seeds=(0, 1, 2), failed={}, mean=0.0123,
    interval=(0.001, 0.023), p_zero=0.01, p_margin=0.9, verdict="helps", is_open=False,
    reason="decided", is_early=True, max_seeds=10,
)  # fmt: skip
OPEN = Standing(
    label="tta=book", words=("tta=book",), chosen=(), seeds=(0, 1, 2), failed={}, mean=-0.002,
    interval=None, p_zero=None, p_margin=None, verdict="cannot tell", is_open=True, reason="",
    is_early=False, max_seeds=10,
)  # fmt: skip


def answered(plan: Planned, *standings: Standing) -> ComparisonAnswer:
    return ComparisonAnswer(
        plan=plan.comparison, base=Mean(0.8, (0.7, 0.9)), base_seeds=(0, 1, 2), base_failed={},
        base_chosen=(), base_price={}, standings=standings, looks=(), is_ended=False,
        num_trainings=6, num_evaluations=0, notes=(), base_value=Mean(0.8, (0.7, 0.9)),
    )  # fmt: skip


def job(label: str, seed: int) -> Job:
    return Job(label, seed, (f"seed={seed}",))


def done(accuracy: float, seconds: float = 12) -> Outcome:
    return Outcome(status="finished", accuracy=accuracy, seconds=seconds)


@pytest.fixture
def pair(plan: Plan, tiny_words: tuple[str, ...]) -> Planned:
    return plan(tiny_words, "mixup=beta", "tta=book")


def drawn(live: Live, width: int) -> list[str]:
    """The table as a terminal of ``width`` shows it."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(live.renderable())
    return console.export_text().rstrip("\n").split("\n")


def test_a_pipe_gets_a_line_per_job_and_per_arm(pair: Planned) -> None:
    out = io.StringIO()
    with Live(pair, console=PipeConsole(file=out, highlight=False)) as live:
        live.round([job(BASE, 0), job("mixup=beta", 0)])
        live.begun(job(BASE, 0))
        live.ended(job(BASE, 0), done(0.813))
        live.begun(job("mixup=beta", 0))
        live.ended(job("mixup=beta", 0), Outcome(status="skipped", accuracy=0.82))
        live.round([job("mixup=beta", 1)])
        live.ended(job("mixup=beta", 1), Outcome(status="failed", error="the loss\x1b is nan"))
        live.looked(answered(pair, HELPS, OPEN))
    assert out.getvalue().splitlines()[:6] == [
        "to 1 seed: 2 runs",
        "baseline, seed 0: 81.30% (12 s)",
        "mixup=beta, seed 0: 82.00% (finished before)",
        "to 2 seeds: 1 run",
        r"mixup=beta, seed 1: failed: the loss\x1b is nan",
        f"  {verdict_line(HELPS, 0.005)}",
    ]
    assert "tta=book: -0.2 points so far, after 3 seeds" in out.getvalue()


def test_the_first_epoch_says_how_long_it_will_take(
    pair: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "_REFRESH_SECONDS", 0.01)
    out = io.StringIO()
    with Live(pair, console=PipeConsole(file=out, highlight=False)) as live:
        live.round([job(BASE, seed) for seed in range(3)])
        live.begun(job(BASE, 1))
        folder = pair.folders[BASE][1].path
        folder.mkdir(parents=True)
        (folder / "timings.jsonl").write_text(json.dumps({"epoch": 1, "total_seconds": 7}) + "\n")
        limit = time.monotonic() + 20
        while "measured" not in out.getvalue() and time.monotonic() < limit:
            time.sleep(0.01)
    # One epoch each: three of the round, twenty of the baseline and mixup; tta costs none.
    assert "measured: about 21 s to the next look, 2 min at most to the end\n" in out.getvalue()
    assert out.getvalue().count("measured") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_shows_arms_seeds_difference_state_and_what_runs(
    pair: Planned, width: int
) -> None:
    live = Live(pair, console=PipeConsole(file=io.StringIO()))
    live.round([job(BASE, 3), job("tta=book", 3), job("tta=book", 4)])
    live.looked(answered(pair, HELPS, OPEN))
    live.begun(job(BASE, 3))
    folder = pair.folders[BASE][3].path
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    live.ended(job("tta=book", 4), Outcome(status="crashed", error="killed"))
    shown = drawn(live, width)
    assert max(map(len, shown)) <= width
    heading, base, helps, still, progress, *last = (line.rstrip() for line in shown)
    assert heading.split() == ["arm", "seeds", "difference", "state", "now"]
    assert re.match(r"baseline +3/10 +accuracy 80.00% +seed 3, epoch 1/1", base)
    assert re.match(r"mixup=beta +3/10 +\+1.23 \[\+0.10, \+2.30\] +helps$", helps)
    assert re.match(r"tta=book +3/10 \(1 failed\) +-0.20 +open$", still)
    assert progress == "1 of 3 runs of the round"
    assert last in ([""], [])


def test_failed_seeds_are_those_of_pairs_of_this_call_and_of_earlier_ones(pair: Planned) -> None:
    live = Live(pair, console=PipeConsole(file=io.StringIO()))
    failed = Outcome(status="failed", error="nan")
    live.ended(Job("mixup=beta", 1_000_000, ("seed=1000000",), is_tuning=True), failed)
    live.ended(job("tta=book", 3), failed)
    answer = answered(pair, HELPS, replace(OPEN, failed={1: "nan", 3: "nan"}))
    live.looked(replace(answer, base_failed={4: "nan"}))
    _, base, helps, still, *_ = (line.rstrip() for line in drawn(live, 100))
    assert re.match(r"baseline +3/10 \(1 failed\)", base)
    assert "failed" not in helps, "the search has seeds of its own"
    assert re.match(r"tta=book +3/10 \(2 failed\)", still)


def test_the_labels_are_those_of_the_record(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    before = plan(tiny_words, "+trick=mixup")
    found = as_recorded(plan(tiny_words, "mixup=beta"), before.comparison)
    live = Live(found, console=PipeConsole(file=io.StringIO()))
    live.round([job("mixup", 0)])
    live.begun(job("mixup", 0))
    folder = found.folders["mixup"][0].path
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    assert re.match(r"mixup +0/10 +open +seed 0, epoch 1/1", drawn(live, 100)[2])


def test_a_narrow_terminal_is_no_error(pair: Planned) -> None:
    live = Live(pair, console=PipeConsole(file=io.StringIO()))
    live.looked(answered(pair, HELPS, OPEN))
    assert max(map(len, drawn(live, 20))) <= 20


def test_the_search_for_values_is_called_so(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    out = io.StringIO()
    found = plan(tiny_words, "mixup=beta", tune=("optim.lr=1e-3,1e-2",))
    search = Job("mixup=beta", 1_000_000, ("optim.lr=0.01", "seed=1000000"), is_tuning=True)
    with Live(found, console=PipeConsole(file=out, highlight=False)) as live:
        live.round([search])
        live.begun(search)
        assert "search" in "".join(drawn(live, 100))
        live.ended(search, done(0.5))
    assert "search for values: 1 run" in out.getvalue()
    assert "mixup=beta, search, optim.lr=0.01 seed=1000000: 50.00% (12 s)" in out.getvalue()


def in_terminal(work: Callable[[], None]) -> bytes:
    """What ``work``, in a child, writes to a terminal of its own until it ends."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="30")
        try:
            work()
        finally:
            os._exit(0)
    written = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # the child has ended
            part = b""
        if not part:
            break
        written += part
    os.waitpid(child, 0)
    os.close(terminal)
    return written


def terminal_work(pair: Planned, ending: Callable[[], None]) -> Callable[[], None]:
    def work() -> None:
        import sys

        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
        with Live(pair) as live:
            live.round([job(BASE, 0)])
            live.begun(job(BASE, 0))
            time.sleep(0.7)
            ending()
            live.ended(job(BASE, 0), done(0.5))
        print("the verdict")

    return work


@pytest.mark.parametrize("how", ["ends", "is killed", "is stopped"])
def test_the_terminal_stays_sane(pair: Planned, how: str) -> None:
    def stop() -> None:
        def wake(pid: int) -> None:
            time.sleep(0.3)
            os.kill(pid, signal.SIGCONT)

        if (child := os.fork()) == 0:
            wake(os.getppid())
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(child, 0)

    endings = {"ends": lambda: None, "is killed": lambda: os._exit(9), "is stopped": stop}
    written = in_terminal(terminal_work(pair, endings[how]))
    assert b"seed 0" in written
    # The cursor is never hidden, so that there is nothing to restore.
    assert b"\x1b[?25l" not in written
    if how != "is killed":
        assert written.rstrip().endswith(b"the verdict")
        assert b"\x1b[2K" in written  # the table is removed before


@pytest.mark.slow
def test_a_child_is_never_made_while_the_table_is_drawn(pair: Planned) -> None:
    """The child would start with a lock that nobody releases."""
    reader, writer = os.pipe()
    console = PipeConsole(file=os.fdopen(writer, "w"), force_terminal=True, width=100)
    threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65_536), b"")],
                     daemon=True).start()  # fmt: skip
    with Live(pair, console=console) as live:
        live.round([job(BASE, 0)])
        stop = threading.Event()

        def draw() -> None:
            while not stop.is_set():
                live.line("x")

        drawing = threading.Thread(target=draw)
        drawing.start()
        try:
            for _ in range(30):
                child = os.fork()
                if child == 0:
                    signal.alarm(5)  # ends a child that waits for the lock
                    live.line("child")
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            stop.set()
            drawing.join()
    console.file.close()
