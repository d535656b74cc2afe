"""Sweeps: what a bad job, a crash or a signal does to the others, and the same command again.

Sweeps in one process are forks of a server (``kill.py``). Those through other launchers are started
as their user starts them. Their jobs hear of the files they open (``HOOK``), so that one can stop
or die when it is about to write the row of an epoch.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import kill
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from kill import (
    STEP,
    Attempt,
    Place,
    Trap,
    at_work,
    statuses,
    table,
    wait_until,
)
from omegaconf import OmegaConf

from runner.config.complaints import translated
from runner.config.options import CONF_DIR, LAUNCHERS
from runner.errors import ConfigError
from runner.jobs import launch as launching
from runner.jobs.shares import Share
from runner.records.sweep_folder import SweepFolder
from runner.terminal.start import Task, Work

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),
]

STEPS = 6  # of each run, in two epochs

CRASHES = {
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "os._exit(3)",
}

Make = Callable[..., Place]
Outcome = dict[str, bytes]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Make]:
    """A new place for a sweep with these words."""
    root = tmp_path_factory.mktemp("sweeps").resolve()
    words = (
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "threads=1",
        "checkpoint.minutes=0",
    )  # fmt: skip
    numbers = iter(range(10**6))

    def make_one(*more: str) -> Place:
        return Place(root / str(next(numbers)), ("-m", *words, *more))

    yield make_one
    kill.end_all()


@pytest.fixture(scope="module")
def reference(make: Make) -> list[Outcome]:
    """Outcomes of four undisturbed runs, of seeds 0 to 3."""
    place = make("seed=0,1,2,3")
    assert place.run().code == 0
    return outcomes(place)


def outcomes(place: Place) -> list[Outcome]:
    """By job; of one without a result empty."""
    return [
        kill.outcome(place.root / job["folder"]) if "accuracy" in job else {}
        for job in table(place)
    ]


def differing(found: Sequence[Outcome], expected: Sequence[Outcome]) -> list[str]:
    """What is not to the bit as expected, without the bytes themselves."""
    assert len(found) == len(expected)
    return [
        f"job {number}: {name}"
        for number, pair in enumerate(zip(found, expected, strict=True))
        for name in pair[0].keys() | pair[1].keys()
        if pair[0].get(name) != pair[1].get(name)
    ]


def overlays(place: Place, contents: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Words of a sweep in which each job brings its own values."""
    folder = place.root / "mine" / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in contents.items():
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(values)}")
    return (f"+recipe={','.join(contents)}", "--config-dir", str(folder.parent))


def start(
    place: Place, *words: str, act: str, seeds: str, is_later: bool
) -> "subprocess.Popen[str]":
    """The command as its user starts it, on two cores at most.

    Jobs of some seeds ``act`` before they write their first row, or a later one.
    """
    hook = kill.write_hook(place, act=act, seeds=seeds, is_later=is_later)
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.train", *place.words, *words],
        cwd=place.root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": hook},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:2])
    return process


def end(process: "subprocess.Popen[str] | Attempt") -> tuple[int, str]:
    """Exit code and output; no process is left over."""
    if isinstance(process, Attempt):
        assert process.wait().group() == []
        assert process.code is not None
        return process.code, process.out + process.err
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def hold(descriptor: int) -> None:
    """As in ``HOOK``."""
    Path(f"held-{os.getpid()}").touch()
    while Path("hold").exists():
        time.sleep(0.01)


def held(place: Place) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in place.root.glob("held-*")]


def has_heard(pid: int) -> bool:
    """Whether a run knows that it shall end: the next signal would end it at once."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*(\w+)", text, re.M)
    return caught is not None and not int(caught[1], 16) >> (signal.SIGTERM - 1) & 1


# ── Jobs that fail ─────────────────────────────────────────────────────────────────────────────


def test_failing_jobs_stop_no_other_and_alone_are_run_again(
    make: Make, reference: list[Outcome]
) -> None:
    place = make()
    words = overlays(
        place,
        {
            "a": {"seed": 0},
            "bad": {"optim": {"name": "sgd", "lr": 1e30}},
            "b": {"seed": 1},
            "few": {"model": {"num_outputs": 2}},
            "c": {"seed": 2},
        },
    )
    first = place.run(*words)
    assert first.code == 6, first.err
    expected = ["finished", "failed", "finished", "failed", "finished"]
    assert statuses(place) == expected
    assert differing([found for found in outcomes(place) if found], reference[:3]) == []
    assert "5 jobs: 3 finished, 2 failed" in first.out
    assert "2 of 5 jobs failed" in first.err
    for name, reason in {"bad": "is not finite", "few": "cannot tell 3 classes apart"}.items():
        told = first.out.partition(f"failed: +recipe={name}\n")[2].splitlines()
        assert reason in told[0]
        log = Path(next(re.findall(r"^ *log: (.*)", line)[0] for line in told if "log: " in line))
        assert "Traceback" in log.read_text()

    def files() -> dict[Path, tuple[int, int]]:
        found = [path for job in table(place) if "accuracy" in job
                 for path in (place.root / job["folder"]).rglob("*")]  # fmt: skip
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    before = files()
    again = place.run(*words)
    assert again.code == 6
    assert statuses(place) == [{"finished": "skipped"}.get(each, each) for each in expected]
    assert again.count(STEP) <= 2, "of the job that diverges"
    assert files() == before


@pytest.mark.slow
def test_a_job_without_memory_stops_no_other(make: Make) -> None:
    place, alone = make("data.batch_size=48"), make("data.batch_size=48")
    done = place.run("resize.size=16,1024,24", setup=[partial(kill.limit_memory, 700)])
    assert done.code == 6, done.err
    assert statuses(place) == ["finished", "failed", "finished"]
    assert "failed: resize.size=1024" in done.out
    assert "out of memory" in done.out
    assert alone.run("resize.size=16,24").code == 0
    assert differing(outcomes(place)[::2], outcomes(alone)) == []


@pytest.mark.slow
def test_jobs_that_would_share_a_folder(make: Make, reference: list[Outcome]) -> None:
    place = make("seed=0,1", "run_dir=here")
    attempt = place.run()
    assert attempt.code == 6
    assert statuses(place) == ["finished", "failed"]
    assert "seed: 0 → 1" in attempt.out
    assert differing(outcomes(place)[:1], reference[:1]) == []


def test_a_mistake_in_one_of_twelve_jobs_is_told_before_anything_is_written(make: Make) -> None:
    place = make("seed=0,1,2,3", "+trick=baseline,mixup,mixpu")
    attempt = place.run()
    assert attempt.code == 2
    assert "did you mean mixup" in attempt.err
    assert not (place.root / "outputs").exists()


# ── Ended from outside ─────────────────────────────────────────────────────────────────────────


def test_a_sweep_that_was_killed_goes_on_where_it_was(make: Make, reference: list[Outcome]) -> None:
    place = make("seed=0,1,2,3")
    killed = place.run(traps=[Trap(STEP, STEPS + 5, kill.die_with_the_sweep)])
    assert killed.code == -signal.SIGKILL
    wait_until(lambda: "running" not in statuses(place))  # the kernel ends the job with its sweep
    assert statuses(place) == ["finished"] + ["crashed"] + ["pending"] * 2
    done = {path: path.stat() for path in place.root.glob("outputs/*/result.json")}
    again = place.run()
    assert end(again)[0] == 0
    assert statuses(place) == ["skipped"] + ["resumed"] + ["finished"] * 2
    assert differing(outcomes(place), reference) == []
    assert again.count(STEP) <= 3 * STEPS - 3, "the first epoch of the second job is not repeated"
    for path, before in done.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    ("launcher", "signum"),
    [
        pytest.param("basic", signal.SIGINT, marks=pytest.mark.whole),
        ("basic", signal.SIGTERM),
        pytest.param("joblib", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("submitit_local", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("submitit_local", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_what_runs_and_leaves_the_rest_for_later(
    make: Make, reference: list[Outcome], launcher: str, signum: int
) -> None:
    place = make("seed=0,1,2")
    (place.root / "hold").touch()
    if launcher == "basic":
        at_once, step = 1, "step-000000002"
        process = place.start(traps=[Trap(STEP, 2, hold)])
    else:
        at_once, step = 2, "step-000000003"
        more = f"hydra/launcher={launcher}"
        process = start(place, more, act="hold()", seeds="0|1|2", is_later=False)
    try:
        wait_until(lambda: len(held(place)) == at_once)
        if signum == signal.SIGINT:  # as the terminal does
            os.killpg(process.pid, signum)
        else:
            os.kill(process.pid, signum)
        started = time.monotonic()
        wait_until(lambda: all(has_heard(pid) for pid in held(place)))
        (place.root / "hold").unlink()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    code, output = end(process)
    assert code == 128 + signum, output
    assert time.monotonic() - started < 20
    assert "Traceback" not in output
    wait_until(lambda: at_work(place) == {}, 10)
    assert sorted(statuses(place)) == ["interrupted"] * at_once + ["pending"] * (3 - at_once)
    assert len(list(place.root.glob("outputs/*/status.json"))) == at_once
    for path in place.root.glob("outputs/*/status.json"):
        assert json.loads(path.read_text())["status"] == "interrupted"
        assert (path.parent / "checkpoints" / step).exists()
    assert place.run().code == 0
    assert sorted(statuses(place)) == ["finished"] * (3 - at_once) + ["resumed"] * at_once
    assert differing(outcomes(place), reference[:3]) == []


# ── Crashes, watched from outside ──────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Crashed:
    """A sweep over seeds 0 to 3, in which seed 1 crashes.

    Attributes:
        launcher: of the sweep.
        how: seed 1 crashes.
        place: of the sweep.
        code: its exit code.
        output: of the sweep.
        jobs: how they stood at the end.
        seen: how each job stood at any time, by the name of its file.
    """

    launcher: str
    how: str
    place: Place
    code: int
    output: str
    jobs: list[dict[str, Any]]
    seen: dict[str, set[str]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("joblib", "kill"), marks=pytest.mark.slow),  # tests/jobs has a quick one
        pytest.param(("submitit_local", "segfault"), marks=pytest.mark.slow),
        pytest.param(("joblib", "segfault"), marks=pytest.mark.slow),
        pytest.param(("joblib", "exit"), marks=pytest.mark.slow),
        pytest.param(("submitit_local", "kill"), marks=pytest.mark.slow),
        pytest.param(("submitit_local", "exit"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def crashed(make: Make, request: pytest.FixtureRequest) -> Crashed:
    launcher, how = request.param
    place = make("seed=0,0,1,2,3", "threads=0")
    process = start(place, f"hydra/launcher={launcher}", act=CRASHES[how], seeds="1", is_later=True)
    seen: dict[str, set[str]] = {}
    try:
        while process.poll() is None:
            for path in place.root.glob("outputs/sweeps/*/*.json"):
                content = json.loads(path.read_text())  # whole at any time
                seen.setdefault(path.name, set()).add(content.get("status", ""))
            time.sleep(0.02)
    finally:
        code, output = end(process)
    return Crashed(launcher, how, place, code, output, table(place), seen)


def test_a_crash_stops_no_other_job(crashed: Crashed, reference: list[Outcome]) -> None:
    assert crashed.code == 6, crashed.output
    assert "Traceback" not in crashed.output
    assert "1 of 4 jobs failed" in crashed.output
    found = [job["status"] for job in crashed.jobs]
    assert found.pop(1) == "crashed"
    # joblib kills the neighbours of a process that died; they go on in another.
    assert set(found) <= {"finished", "resumed"}
    assert differing(outcomes(crashed.place), [reference[0], {}, *reference[2:4]]) == []


def test_a_crash_is_told_with_its_cause(crashed: Crashed) -> None:
    reason = crashed.output.partition("crashed: seed=1\n")[2].splitlines()[0]
    is_fault = crashed.how == "segfault"
    assert ("Segmentation fault" if is_fault else "ended without a message") in reason


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (kill.segfault, "crashed (signal 11): Segmentation fault"),
        pytest.param(
            kill.die, "crashed (signal 9): its process ended without", marks=pytest.mark.whole
        ),
        pytest.param(
            kill.leave, "crashed (exit code 3): its process ended without", marks=pytest.mark.whole
        ),
    ],
)
def test_a_crash_stops_no_other_job_of_a_sweep_without_a_launcher(
    make: Make, reference: list[Outcome], act: Callable[[int], None], reason: str
) -> None:
    place = make("seed=0,1,2")
    done = place.run(traps=[Trap(STEP, STEPS + 5, act)])
    code, output = end(done)
    assert code == 6, output
    assert "1 of 3 jobs failed" in output
    assert reason in " ".join(output.split())
    assert statuses(place) == ["finished", "crashed", "finished"]
    assert [path.stem for path in place.root.glob("outputs/sweeps/*/*.log")] in ([], ["1"])
    assert end(place.run())[0] == 0
    assert statuses(place) == ["skipped", "resumed", "skipped"]
    assert differing(outcomes(place), reference[:3]) == []


def test_a_job_given_twice_is_run_once(crashed: Crashed) -> None:
    assert crashed.seen.keys() == {"sweep.json", "0.json", "1.json", "2.json", "3.json"}
    assert len(list(crashed.place.root.glob("outputs/*/run.json"))) == 4


def test_jobs_share_the_cores(crashed: Crashed) -> None:
    """Two cores: two jobs with a thread each. One: one at a time."""
    spans = []
    for path in crashed.place.root.glob("outputs/*/result.json"):
        assert json.loads(path.read_text())["environment"]["threads"] == 1
        spans.append(((path.parent / "split.csv.gz").stat().st_mtime_ns, path.stat().st_mtime_ns))
    assert len(spans) == 3
    for begin, _ in spans:
        assert sum(first <= begin <= last for first, last in spans) <= 2
    if crashed.launcher == "submitit_local":  # which starts all jobs at once
        assert any("waiting" in seen for seen in crashed.seen.values())


def test_the_same_command_runs_what_crashed(crashed: Crashed, reference: list[Outcome]) -> None:
    assert crashed.place.run("threads=1").code == 0
    assert statuses(crashed.place) == ["skipped", "resumed", "skipped", "skipped"]
    assert differing(outcomes(crashed.place), reference[:4]) == []


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_idle_process(make: Make) -> None:
    place = make("seed=0,1")
    (place.root / "hold").touch()
    process = start(place, "hydra/launcher=joblib", act="hold()", seeds="0|1", is_later=True)

    def left() -> list[int]:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        found = {pid: kill.process_stat(pid) for pid in pids}
        return [
            pid for pid, (state, group) in found.items() if state != "Z" and group == process.pid
        ]

    try:
        wait_until(lambda: len(held(place)) == 2, 60)
        process.kill()
        process.wait()
        assert len(left()) >= 2  # the jobs go on
        (place.root / "hold").unlink()
        wait_until(lambda: left() == [], 60)
    finally:
        end(process)
    assert len(list(place.root.glob("outputs/*/result.json"))) == 2


def test_what_died_beside_others_is_tried_alone(tmp_path: Path) -> None:
    jobs, rounds = [[f"seed={seed}"] for seed in range(4)], []
    folder = SweepFolder.create(tmp_path, jobs)
    gone = subprocess.Popen(["true"])
    gone.wait()

    class Brittle:
        """Two jobs at a time; seed 1 crashes and takes the other down with it."""

        def launch(self, words: Sequence[list[str]], initial_job_idx: int) -> None:
            rounds.append([jobs.index(job) for job in words])
            for pair in (rounds[-1][:2], rounds[-1][2:]):
                for number in pair:
                    folder.write(number, "running" if 1 in pair else "finished", accuracy=1.0)
                if 1 in pair:
                    for number in pair:
                        path = folder.path / f"{number}.json"
                        path.write_text(path.read_text().replace(str(os.getpid()), str(gone.pid)))
                    raise RuntimeError("a process died")

    config = OmegaConf.create({"hydra": {"launcher": {"_target_": "JoblibLauncher", "n_jobs": 2}}})
    launch = launching._Launch(
        config, None, Task(Work(lambda config, words: {})), jobs, folder, Share()
    )
    launch._launcher = Brittle
    launch.until_whole()
    assert rounds == [[0, 1, 2, 3], [2, 3], [0], [1]]
    found = [folder.read(number)["status"] for number in range(4)]
    assert found == ["finished", "crashed", "finished", "finished"]


# ── Beside one another ─────────────────────────────────────────────────────────────────────────


def test_equal_sweeps_at_the_same_time_share_the_work(make: Make, reference: list[Outcome]) -> None:
    place = make("seed=0,1,2")
    one, other = place.start(), place.start()
    assert (one.wait().code, other.wait().code) == (0, 0)
    assert one.count(STEP) + other.count(STEP) == 3 * STEPS, "each run was trained once"
    found = [
        SweepFolder(path.parent).read(number)["status"]
        for path in place.root.glob("outputs/sweeps/*/sweep.json")
        for number in range(3)
    ]
    assert sorted(found) == ["finished"] * 3 + ["skipped"] * 3
    assert differing(outcomes(place), reference[:3]) == []
    for path in place.root.glob("outputs/*/metrics.jsonl"):
        assert [json.loads(row)["epoch"] for row in path.read_text().splitlines()] == [1, 2]


@pytest.mark.slow
def test_a_job_that_another_process_is_at_is_waited_for(
    make: Make, reference: list[Outcome]
) -> None:
    place = make()
    place.words = place.words[1:]  # without -m
    single = place.start("seed=1", traps=[Trap(STEP, 2, kill.pause)])
    single.wait_for(lambda: single.is_paused)
    place.words = ("-m", *place.words)
    beside = place.start("seed=0,1,2")
    beside.wait_for(lambda: "waiting for" in beside.out)
    assert statuses(place) == ["finished", "busy", "finished"]
    os.kill(single.pid, signal.SIGCONT)
    assert (single.wait().code, beside.wait().code) == (0, 0)
    assert statuses(place) == ["finished", "skipped", "finished"]
    assert differing(outcomes(place), reference[:3]) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_run_does_not_depend_on_what_ran_before_it(make: Make, is_whole: bool) -> None:
    """Nor, in the whole, on being in a sweep at all, or on networks of another library."""
    resnet = {"source": "timm", "name": "test_resnet"}
    dropping = {**resnet, "dropout": 0.5}
    jobs: dict[str, dict[str, Any]] = {
        "one": {"seed": 1, "threads": 2, "model": dropping},
        "two": {"threads": 1, "precision": "bf16", "model": resnet, "augment": {"flip": 0.0}},
        "three": {"threads": 1, "model": {"source": "torchvision", "name": "shufflenet_v2_x0_5"}},
        "bad": {"threads": 1, "model": dropping, "optim": {"name": "sgd", "lr": 1e30}},
    }
    own = ("threads", "model", "model.name")  # said by the jobs, not for all of them

    def run(*names: str) -> dict[str, Outcome]:
        place = make()
        place.words = tuple(word for word in place.words if word.partition("=")[0] not in own)
        words = overlays(place, {name: jobs[name] for name in names})
        attempt = place.run("budget.epochs=1", *words)
        assert attempt.code == (6 if "bad" in names else 0), attempt.err
        return dict(zip(names, outcomes(place), strict=True))

    last = ("three",) if is_whole else ()
    forth = run("one", "bad", "two", *last)
    back = run(*last, "two", "bad", "one")
    assert differing([back[name] for name in forth], [*forth.values()]) == []
    for name in ("one", "two", "three") if is_whole else ():
        assert differing([run(name)[name]], [forth[name]]) == []
    jobs["one"]["seed"] = 2
    assert differing([run("one")["one"]], [forth["one"]]) != []


# ── Launchers ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("launcher", "changed"),
    [
        ("joblib", {"n_jobs": -1}),
        ("submitit_local", {"timeout_min": 366 * 24 * 60, "cpus_per_task": None}),
        ("submitit_slurm", {"timeout_min": 1440, "max_num_timeout": 20, "array_parallelism": 16}),
    ],
)
def test_defaults_of_launchers_that_would_bite_are_changed(
    composed: object, launcher: str, changed: dict[str, int]
) -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        config = hydra.compose(
            "config", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True
        )
    found = config.hydra.launcher
    assert {key: found[key] for key in changed} == changed
    assert "Launcher" in found._target_


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_not_installed(
    composed: object, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, f"{launcher}_plugin.yaml", raising=False)
    with (
        hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)),
        pytest.raises(MissingConfigException) as caught,
    ):
        hydra.compose("config", overrides=[f"hydra/launcher={launcher}"])
    error = translated(caught.value)
    assert isinstance(error, ConfigError)
    assert error.what == f"the launcher {launcher} is not installed"
    assert error.fix == f"pip install 'trick-runner[{LAUNCHERS[launcher]}]'"
