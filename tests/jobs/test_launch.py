"""Jobs through launchers: how each ended, who is told when, and what the terminal shows.

What a job does here is a function of this module; sweeps have tests with real trainings.
"""

import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import kill
import pytest
from kill import Setup
from rich.console import Console
from rich.live import Live
from rich.text import Text

from runner import train
from runner.config.requested import Requested
from runner.config.schema import RunConfig, Tta
from runner.errors import BusyError, ConfigError, DivergedError, StorageError
from runner.jobs import launch
from runner.jobs.job import SweepJob
from runner.jobs.launch import JobsResult, Outcome, run_jobs
from runner.machine.signals import raise_on_signals
from runner.records.sweep_folder import SweepFolder
from runner.terminal.start import Task, Work

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning"),  # submitit waits for no end
]

Lingering = Callable[[tuple[str, ...], int], tuple[kill.Attempt, list[int]]]

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LAUNCHERS = {
    "here": (),
    "one worker": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1"),
    "joblib": JOBLIB,
    "submitit": ("hydra/launcher=submitit_local",),
}
ELSEWHERE = [
    pytest.param(LAUNCHERS["here"], id="here"),
    pytest.param(LAUNCHERS["one worker"], id="one worker"),
    pytest.param(LAUNCHERS["joblib"], id="joblib", marks=pytest.mark.whole),
    pytest.param(LAUNCHERS["submitit"], id="submitit", marks=pytest.mark.slow),
]
SEEDS = {"good": 0, "evaluated": 1, "fails": 2, "diverges": 3, "dies": 4, "has a bug": 5}


def work(config: RunConfig, words: list[str]) -> dict[str, Any]:
    """A job that ends as its seed says, after it wrote in every way that there is."""
    print(f"printed by {config.seed}", flush=True)
    print(f"complained by {config.seed}", file=sys.stderr, flush=True)
    os.write(1, b"from below\n")
    with (Path(config.outputs) / "begun").open("a") as file:
        file.write(f"{config.seed} {os.getpid()}\n")
    end = {seed: name for name, seed in SEEDS.items()}.get(config.seed, "good")
    if end == "fails":
        raise ConfigError("no such thing", where="a=b")
    if end == "diverges":
        error = DivergedError("not finite")
        error.run = "some/run"
        raise error
    if end == "dies":
        os._exit(3)
    if end == "has a bug":
        raise ZeroDivisionError("a bug")
    return {
        "status": "evaluated" if end == "evaluated" else "finished",
        "folder": f"run {config.seed}",
        "accuracy": 0.5,
        "tta": None,
        "evaluation": "name" if end == "evaluated" else None,
        "seconds": 1.5,
    }


def linger(config: RunConfig, words: list[str]) -> dict[str, Any]:
    """A job that takes until the file ``hold`` is gone."""
    (Path(config.outputs) / f"at-work-{os.getpid()}").touch()
    while (Path(config.outputs) / "hold").exists():
        time.sleep(0.01)
    return {"status": "finished", "folder": "run", "accuracy": 0.5}


def words(outputs: Path, *seeds: int) -> list[list[str]]:
    return [[f"outputs={outputs}", f"seed={seed}"] for seed in seeds]


def run(
    outputs: Path, *seeds: int, launcher: tuple[str, ...] = (), **more: Any
) -> tuple[JobsResult, list[tuple[int, Outcome | None]]]:
    """The result, and the calls of the callbacks, in this order."""
    calls: list[tuple[int, Outcome | None]] = []
    parent = os.getpid()

    def on_begin(number: int) -> None:
        assert os.getpid() == parent
        calls.append((number, None))

    def on_end(number: int, outcome: Outcome) -> None:
        assert os.getpid() == parent
        calls.append((number, outcome))

    # Processes that the launcher starts find this module.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        done = run_jobs(
            words(outputs, *seeds),
            Work(work),
            launcher,
            outputs,
            on_begin=on_begin,
            on_end=on_end,
            **more,
        )
    if launcher:
        gc.collect()  # what warns when it is collected, warns here
    return done, calls


def begun(outputs: Path) -> list[int]:
    """The seeds of the jobs that began."""
    lines = (outputs / "begun").read_text().splitlines()
    return sorted(int(line.split()[0]) for line in lines)


# ── Outcomes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_every_job_ends_in_its_way_and_is_told_once(
    tmp_path: Path, launcher: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    done, calls = run(tmp_path, *SEEDS.values(), launcher=launcher, is_quiet=True)
    assert capfd.readouterr() == ("", "")
    good, evaluated, failed, diverged, died, bug = done.outcomes
    assert good == Outcome("finished", "run 0", None, 0.5, "", "", 1.5)
    assert evaluated == Outcome("evaluated", "run 1", "name", 0.5, "", "", 1.5)
    assert failed == Outcome("failed", error="no such thing", error_kind="ConfigError")
    assert diverged == Outcome("failed", "some/run", None, None, "not finite", "DivergedError")
    assert (died.status, died.error_kind) == ("crashed", "")
    assert bug.error_kind == "ZeroDivisionError"
    assert [one.is_good for one in done.outcomes] == [True] * 2 + [False] * 4
    assert [one.is_failed for one in done.outcomes] == [False] * 2 + [True] * 4
    assert [one.is_diverged for one in done.outcomes] == [False] * 3 + [True] + [False] * 2
    assert done.stopped_by is None
    for number, outcome in enumerate(done.outcomes):
        *begins, end = [end for job, end in calls if job == number]
        assert end == outcome
        is_in_turn = launcher in (LAUNCHERS["here"], LAUNCHERS["one worker"])
        assert begins == [None] or (not is_in_turn and {*begins} == {None}), "beside one that died"
        log = done.folder.log(number)
        if outcome.is_good and is_in_turn:
            assert not log.exists()
        else:
            assert f"printed by {number}\n" in log.read_text()
            assert f"complained by {number}\n" in log.read_text()
            assert "from below\n" in log.read_text()
    assert "Traceback" in done.folder.log(5).read_text()


def test_a_job_that_is_tried_again_has_not_crashed_while_its_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher takes other jobs down with one that dies, and seconds to start a new process."""

    def launched(self: Any) -> SimpleNamespace:
        def launch(jobs: list[list[str]], initial_job_idx: int) -> None:
            numbers = [self._jobs.index(job) for job in jobs]
            if len(numbers) > 1:
                for number in numbers:
                    if (child := os.fork()) == 0:
                        self._folder.write(number, "running")
                        os._exit(9)
                    os.waitpid(child, 0)
                return
            time.sleep(1.2)  # more than twice as long as it takes to look once
            self._folder.write(numbers[0], "failed", error="its own", error_kind="ConfigError")

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(launch._Launch, "_launcher", launched)
    done, calls = run(tmp_path, 0, 1, launcher=JOBLIB, is_quiet=True)
    assert [one.error for one in done.outcomes] == ["its own"] * 2
    assert [end.error for _, end in calls if end is not None] == ["its own"] * 2


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_a_job_whose_words_are_refused_fails_alone(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    jobs = [[*own, f"tta={tta}"] for own in words(tmp_path, 0, 6) for tta in ("none", "flip")]
    for refused in (["data.num_folds=5"], *[["mixup=nowhere"]] * (not launcher)):
        jobs.insert(2, [*jobs[0][:2], *refused])
    calls: list[tuple[int, str]] = []
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        done = run_jobs(
            jobs,
            Work(sharing, answers(), can_share=True),
            launcher,
            tmp_path,
            on_end=lambda number, outcome: calls.append((number, outcome.status)),
            is_quiet=True,
        )
    *refused, third, last = done.outcomes[2:]
    good = [*done.outcomes[:2], third, last]
    assert [one.status for one in good] == ["finished", "evaluated"] * 2
    assert {(one.status, one.error_kind) for one in refused} == {("failed", "ConfigError")}
    assert any("folds" in one.error for one in refused)
    assert launcher or "has no option nowhere" in refused[0].error
    assert sorted(calls) == [(n, one.status) for n, one in enumerate(done.outcomes)]


def test_jobs_that_are_not_quiet_have_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done, _ = run(tmp_path, 0)
    out, err = capfd.readouterr()
    assert out.split("\n") == ["printed by 0", "from below", ""]
    assert err == "complained by 0\n"
    assert [path.name for path in done.folder.path.iterdir() if path.suffix == ".log"] == []


def test_where_no_process_can_be_forked_jobs_are_quiet_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = list[JobsResult]()
    thread = threading.Thread(  # signals, and so forks, are for the main thread
        target=lambda: found.append(run(tmp_path, 0, 2, is_quiet=True)[0])
    )
    thread.start()
    thread.join()
    assert capfd.readouterr() == ("from below\n" * 2, "")
    assert [one.status for one in found[0].outcomes] == ["finished", "failed"]
    assert "printed by 2" in found[0].folder.log(1).read_text()


# ── One training, several evaluations ──────────────────────────────────────────────────────────


def sharing(
    config: RunConfig, words: list[str], others: Sequence[Requested] = ()
) -> dict[str, Any]:
    """A job that evaluates for the others, but not with ``scales``; seed 1 fails, seed 2 dies."""
    with (Path(config.outputs) / "begun").open("a") as file:
        file.write(f"{config.seed} {words[-1]} {' '.join(one.words[-1] for one in others)}\n")
    if config.seed == 1 and config.tta.passes:
        raise ConfigError("no such thing", where="a=b")
    if config.seed == 2 and config.tta.passes:
        os._exit(3)
    if config.seed == 3 and (hold := Path(config.outputs) / "held").exists():
        hold.unlink()
        raise BusyError("at work", where=str(Path(config.outputs) / "other" / "run.lock"))
    done = {"status": "finished", "folder": "run", "accuracy": 0.5}
    return {
        **done,
        "others": [
            None if len(one.config.tta.scales) > 1 else {**done, "status": "evaluated"}
            for one in others
        ],
    }


def run_sharing(
    outputs: Path,
    *seeds: int,
    ttas: Sequence[str] = ("book", "flip", "scales", "crops"),
    launcher: tuple[str, ...] = (),
    **more: Any,
) -> tuple[JobsResult, list[tuple[int, str]], list[str]]:
    """The result, what was reported, and the jobs that began."""
    reported: list[tuple[int, str]] = []
    jobs = [[f"outputs={outputs}", f"seed={seed}", f"tta={tta}"] for seed in seeds for tta in ttas]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        done = run_jobs(
            jobs,
            Work(sharing, can_share=True),
            launcher,
            outputs,
            is_quiet=True,
            on_begin=lambda number: reported.append((number, "begins")),
            on_end=lambda number, outcome: reported.append((number, outcome.status)),
            **more,
        )
    if launcher:
        gc.collect()  # what warns when it is collected, warns here
    begun = (outputs / "begun").read_text().replace("tta=", "").splitlines()
    return done, reported, [" ".join(line.split()) for line in begun]


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_the_first_job_of_a_training_evaluates_for_the_others(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    done, reported, begun = run_sharing(tmp_path, 0, 6, launcher=launcher)
    assert sorted(begun) == sorted(
        ["0 book flip scales crops", "0 scales", "6 book flip scales crops", "6 scales"]
    ), "the one that got no evaluation makes its own"
    how = [one.status for one in done.outcomes]
    assert how == ["finished", "evaluated", "finished", "evaluated"] * 2
    assert {job: end for job, end in reported if end != "begins"} == dict(enumerate(how))
    assert len(reported) == 16, "each is reported once"


@pytest.mark.parametrize("launcher", ELSEWHERE)
@pytest.mark.parametrize(("seed", "how"), [(1, "failed"), (2, "crashed")])
def test_a_job_that_fails_takes_no_other_down(
    tmp_path: Path, launcher: tuple[str, ...], seed: int, how: str
) -> None:
    done, calls, begun = run_sharing(tmp_path, seed, launcher=launcher)
    assert [one.status for one in done.outcomes] == [how, "finished", "finished", "evaluated"]
    assert f"{seed} flip scales crops" in begun
    ends = [(job, end) for job, end in calls if end != "begins"]
    assert sorted(ends) == [(0, how), (1, "finished"), (2, "finished"), (3, "evaluated")]


@pytest.mark.parametrize("one", [("hydra.launcher.n_jobs=1",), ()])
def test_one_job_of_joblib_at_a_time_ends_no_sweep_by_its_crash(
    tmp_path: Path, one: tuple[str, ...]
) -> None:
    """joblib runs it in the process of the sweep; also where only one job begins."""
    more = () if one else ("book", "flip")  # the second one is evaluated by the first
    done, calls, _ = run_sharing(
        tmp_path, 2, ttas=more or ("book",), launcher=("hydra/launcher=joblib", *one)
    )
    assert done.outcomes[0].status == "crashed"
    assert "code 3" in done.outcomes[0].error
    assert (0, "crashed") in calls


def test_jobs_wait_for_the_one_that_is_busy(tmp_path: Path) -> None:
    lock = tmp_path / "other" / "run.lock"
    lock.parent.mkdir()
    lock.touch()
    (tmp_path / "held").touch()
    done, _, begun = run_sharing(tmp_path, 3, ttas=("book", "flip"))
    assert begun == ["3 book flip"] * 2, "the other one does not begin meanwhile"
    assert [one.status for one in done.outcomes] == ["finished", "evaluated"]


def test_jobs_that_may_not_begin_are_evaluated_or_left(tmp_path: Path) -> None:
    done, calls, begun = run_sharing(tmp_path, 1, num_begun=1)
    assert begun == ["1 book flip scales crops"]
    assert [one.status for one in done.outcomes] == ["failed"] + ["pending"] * 3
    (tmp_path / "begun").unlink()
    done, calls, begun = run_sharing(tmp_path, 0, num_begun=1)
    assert begun == ["0 book flip scales crops"]
    assert [one.status for one in done.outcomes] == [
        "finished",
        "evaluated",
        "pending",
        "evaluated",
    ]
    assert calls == [(n, how) for n, end in ((0, "finished"), (1, "evaluated"), (3, "evaluated"))
                    for how in ("begins", end)]  # fmt: skip


@pytest.mark.parametrize("launcher", ELSEWHERE[:2])
def test_a_job_that_crashes_leaves_those_that_may_not_begin(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    jobs = [
        [f"outputs={tmp_path}", f"seed={seed}", f"tta={tta}"]
        for tta in ("book", "flip")
        for seed in (2, 0)
    ]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        done = run_jobs(
            jobs, Work(sharing, can_share=True), launcher, tmp_path, is_quiet=True, num_begun=2
        )
    assert [one.status for one in done.outcomes] == ["crashed", "finished", "pending", "evaluated"]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_jobs_of_several_processes_begin_at_the_same_time(
    tmp_path: Path, num_processes: int
) -> None:
    jobs = [[f"outputs={tmp_path}", "device=cpu", f"tta={tta}"] for tta in ("book", "flip")]
    launcher = (*LAUNCHERS["submitit"], f"hydra.launcher.tasks_per_node={num_processes}")
    with mock.patch.object(launch._Launch, "_launcher") as starting:
        run_jobs(jobs, Work(sharing, can_share=True), launcher, tmp_path, is_quiet=True)
    (call,) = starting.return_value.launch.call_args_list
    assert call.args == (jobs[:num_processes],), "one evaluates for the other, if it can"


def test_configurations_that_are_known_are_not_composed(tmp_path: Path) -> None:
    known = RunConfig(seed=7, outputs=str(tmp_path))
    configs = [known, replace(known, tta=Tta(flip=True)), replace(known, seed=8)]
    with mock.patch.object(launch.compose, "job_configs", side_effect=AssertionError):
        _, _, begun = run_sharing(tmp_path, 0, ttas=("none", "flip", "crops"), configs=configs)
    assert begun == ["7 none flip", "8 crops"], "the third has another training, it is said"


# ── Finished before ────────────────────────────────────────────────────────────────────────────


def answers(*seeds: int) -> Callable[[Sequence[RunConfig]], list[dict[str, Any] | None]]:
    """Says that the runs with these seeds are finished."""

    def finished_before(configs: Sequence[RunConfig]) -> list[dict[str, Any] | None]:
        done = {"status": "skipped", "folder": "run", "accuracy": 0.25, "seconds": 2.0}
        return [done if config.seed in seeds else None for config in configs]

    return finished_before


@pytest.mark.parametrize("launcher", [JOBLIB, LAUNCHERS["submitit"]])
@pytest.mark.parametrize(
    ("finished", "launched"), [((0, 1, 6), None), ((0, 6), [1]), ((), [0, 1, 6])]
)
def test_a_launcher_gets_the_jobs_that_are_not_finished(
    tmp_path: Path,
    launcher: tuple[str, ...],
    finished: tuple[int, ...],
    launched: list[int] | None,
) -> None:
    calls = []
    with mock.patch.object(launch._Launch, "_launcher") as starting:
        done = run_jobs(
            words(tmp_path, 0, 1, 6),
            Work(work, answers(*finished)),
            launcher,
            tmp_path,
            on_begin=lambda number: calls.append((number, "begins")),
            on_end=lambda number, outcome: calls.append((number, outcome.status)),
            is_quiet=True,
        )
    skipped = [number for number, seed in enumerate((0, 1, 6)) if seed in finished]
    assert calls == [(number, how) for number in skipped for how in ("begins", "skipped")]
    assert [one.status for one in done.outcomes] == [
        "skipped" if number in skipped else "pending" for number in range(3)
    ]
    if launched is None:
        assert not starting.called
    else:
        (call,) = starting.return_value.launch.call_args_list
        assert call.args == (words(tmp_path, *launched),)


def test_jobs_of_this_process_say_themselves_that_they_are_finished(tmp_path: Path) -> None:
    done = run_jobs(words(tmp_path, 0), Work(work, answers(0)), (), tmp_path, is_quiet=True)
    assert done.outcomes[0].status == "finished"


# ── Not all begin ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_no_job_begins_after_the_deadline(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    done, calls = run(tmp_path, 0, 1, launcher=launcher, deadline=time.monotonic() - 1)
    assert [one.status for one in done.outcomes] == ["pending"] * 2
    assert done.is_out_of_time
    assert done.stopped_by is None
    assert calls == []
    assert not (tmp_path / "begun").exists()


@pytest.mark.whole
def test_a_job_that_runs_at_the_deadline_ends(tmp_path: Path) -> None:
    deadline = time.monotonic() + 4
    ended = list[float]()

    def on_begin(number: int) -> None:
        time.sleep(max(0, deadline - time.monotonic()) + 0.1)

    done = run_jobs(
        words(tmp_path, 0, 1), Work(work), (), tmp_path, on_begin=on_begin,
        on_end=lambda number, outcome: ended.append(time.monotonic()), deadline=deadline,
    )  # fmt: skip
    assert [one.status for one in done.outcomes] == ["finished", "pending"]
    assert done.is_out_of_time
    assert len(ended) == 1


@pytest.mark.parametrize("which", ["on_begin", "on_end"])
@pytest.mark.parametrize("launcher", ELSEWHERE[:2])
def test_what_a_callback_raises_is_raised_and_no_further_job_begins(
    tmp_path: Path, which: str, launcher: tuple[str, ...]
) -> None:
    def refuse(number: int, outcome: object = None) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        run_jobs(words(tmp_path, 0, 1, 6), Work(work), launcher, tmp_path, **{which: refuse})
    assert begun(tmp_path) == [0] or launcher


def test_without_slurm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Slurm is not installed here: there is no sbatch"):
        run(tmp_path / "outputs", 0, launcher=("hydra/launcher=submitit_slurm",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", [JOBLIB, LAUNCHERS["submitit"]])
def test_a_launcher_that_cannot_begin_says_why(
    tmp_path: Path, launcher: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError("cannot pickle '_thread.lock' object")

    with mock.patch.object(launch._Launch, "_launcher") as starting:
        starting.return_value.launch.side_effect = fail
        with pytest.raises(ConfigError, match="cannot be sent to other processes") as caught:
            run(tmp_path, 0, 6, launcher=launcher)
    assert "cannot pickle '_thread.lock' object" in caught.value.what
    assert caught.value.where == launcher[0]
    assert isinstance(caught.value.__cause__, TypeError)
    assert capfd.readouterr().err == f"note: {caught.value.what}\n"


def test_words_of_a_launcher_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Hydra's own"):
        run(tmp_path / "outputs", 0, launcher=("hydra.run.dir=elsewhere",))
    assert list(tmp_path.iterdir()) == []


def test_a_job_can_be_sent_to_another_process(tmp_path: Path) -> None:
    job = SweepJob(Task(train.WORK), SweepFolder(tmp_path), [["seed=0"]], (1, "host"), 1, 0, True)
    sent = pickle.loads(pickle.dumps(job))  # noqa: S301  what has just been made
    assert sent.task == Task(train.WORK)
    assert (sent.jobs, sent.sweeper, sent.until) == (job.jobs, job.sweeper, job.until)


# ── Ended from outside ─────────────────────────────────────────────────────────────────────────


def run_lingering(outputs: str, launcher: tuple[str, ...]) -> None:
    """Instead of a command: three jobs that linger."""
    raise_on_signals()
    done = run_jobs(
        words(Path(outputs), 0, 1, 2), Work(linger), launcher, Path(outputs), is_quiet=True
    )
    leave(outputs, [done.stopped_by, [one.status for one in done.outcomes]])


def leave(outputs: str, found: object) -> None:
    (Path(outputs) / "done").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # the end of a process of multiprocessing would wait for those of joblib


def start(root: Path, instead: Setup) -> kill.Attempt:
    """A process that has computed nothing yet, unlike this one."""
    return kill.Attempt(root, (), setup=[instead])


@pytest.fixture
def lingering(tmp_path: Path) -> Iterator[Lingering]:
    """Start jobs that linger; the process, and those of the jobs that run."""
    (tmp_path / "hold").touch()

    def start_jobs(launcher: tuple[str, ...], count: int) -> tuple[kill.Attempt, list[int]]:
        attempt = start(tmp_path, partial(run_lingering, str(tmp_path), launcher))
        attempt.wait_for(lambda: len(list(tmp_path.glob("at-work-*"))) == count)
        return attempt, [int(path.name[8:]) for path in tmp_path.glob("at-work-*")]

    yield start_jobs
    for path in tmp_path.glob("at-work-*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.name[8:]), signal.SIGKILL)
    kill.end_all()


def is_alive(pid: int) -> bool:
    return kill.process_stat(pid)[0] != "Z"


@pytest.mark.parametrize(
    ("launcher", "signum", "count"),
    [
        ((), signal.SIGTERM, 1),
        pytest.param(JOBLIB, signal.SIGINT, 2, marks=pytest.mark.slow),  # of sweeps by default
    ],
)
def test_a_signal_saves_what_runs_and_is_told(
    tmp_path: Path, lingering: Lingering, launcher: tuple[str, ...], signum: int, count: int
) -> None:
    attempt, jobs = lingering(launcher, count)
    os.kill(attempt.pid, signum)
    assert attempt.wait(30).code == 0
    stopped_by, states = json.loads((tmp_path / "done").read_text())
    assert stopped_by == signum
    assert sorted(states) == ["interrupted"] * count + ["pending"] * (3 - count)
    assert not any(map(is_alive, jobs))


def test_jobs_end_with_the_process_that_has_them(tmp_path: Path, lingering: Lingering) -> None:
    attempt, jobs = lingering((), 1)
    attempt.kill()
    kill.wait_until(lambda: not any(map(is_alive, jobs)), 10)
    assert not (tmp_path / "done").exists()


# ── Beside a live table ────────────────────────────────────────────────────────────────────────


def run_beside_a_table(outputs: str, rate: int, count: int) -> None:
    """Instead of a command: jobs below a table that another thread refreshes at this rate, Hz."""
    console = Console(force_terminal=True, width=40)
    table = Live(
        get_renderable=lambda: Text("table " * 50), console=console, refresh_per_second=rate
    )
    jobs = words(Path(outputs), *range(10, 10 + count))
    with table:
        done = run_jobs(jobs, Work(work), (), Path(outputs), is_quiet=True)
    leave(outputs, [one.status for one in done.outcomes])


@pytest.mark.parametrize(
    ("rate", "count"), [(10, 3), pytest.param(50, 20, marks=pytest.mark.whole)]
)
def test_a_table_is_refreshed_while_jobs_are_forked(tmp_path: Path, rate: int, count: int) -> None:
    done = start(tmp_path, partial(run_beside_a_table, str(tmp_path), rate, count)).wait(60)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "done").read_text()) == ["finished"] * count
    assert "table" in done.out
    for text in ("printed", "complained", "from below"):
        assert text not in done.out + done.err
