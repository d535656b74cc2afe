"""Sweeps on a real Slurm, whose jobs are on another host than the sweep; see ``tests/slurm.py``."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import kill
import pytest
import yaml
from kill import Attempt, Place, wait_until
from slurm import MAX_ARRAY_SIZE, Slurm, slurm  # noqa: F401  a fixture

pytestmark = [pytest.mark.whole, pytest.mark.timeout(300)]

LONG = "budget.epochs=200"  # ten seconds and more


class Stage(Place):
    """A place for sweeps of one grid on a Slurm.

    Args:
        root: made here.
        words: of the sweeps.
        cluster: the Slurm.
    """

    def __init__(self, root: Path, words: Sequence[str], cluster: Slurm) -> None:
        super().__init__(root, words)
        self.cluster = cluster
        self.variables = dict(cluster.environment)
        self._before = {*cluster.jobs()}

    def begin(self, *more: str, module: str = "runner.train") -> Attempt:
        """Start the sweep, or another command, in a fork that knows this Slurm."""
        setup = [partial(kill.set_variables, self.variables)]
        words = [*self.words, *more] if module == "runner.train" else more
        return Attempt(self.root, words, setup=setup, module=module)

    def hold(self, seeds: str) -> None:
        """Let runs of some seeds wait before their second row, until ``hold`` is removed."""
        (self.root / "hold").touch()
        hook = kill.write_hook(self, act="hold()", seeds=seeds, is_later=True)
        self.variables["PYTHONPATH"] = hook

    def let_go(self) -> None:
        (self.root / "hold").unlink()

    def held(self, count: int = 1) -> list[int]:
        """The ids, on their node, of processes that wait; once so many do."""
        wait_until(lambda: len([*self.root.glob("held-*")]) >= count)
        return [int(path.name.partition("-")[2]) for path in self.root.glob("held-*")]

    def wait_for_rows(self, count: int) -> None:
        """Wait until every run that has begun has written so many rows, and one has begun."""

        def are_there() -> bool:
            rows = [
                path.read_text().count("\n") for path in self.root.glob("outputs/*/metrics.jsonl")
            ]
            return bool(rows) and min(rows) >= count

        wait_until(are_there)

    @property
    def jobs(self) -> dict[str, str]:
        """The state of every job that was submitted from here, by id."""
        known = self.cluster.jobs()
        return {one: state for one, state in known.items() if one not in self._before}

    @property
    def statuses(self) -> list[str]:
        """Of the jobs of the newest sweep; none before there is one."""
        is_there = any(self.root.glob("outputs/sweeps/*/sweep.json"))
        return kill.statuses(self) if is_there else []

    def wait_for_statuses(self, *statuses: str) -> None:
        with suppress(AssertionError):
            wait_until(lambda: self.statuses == [*statuses])
        assert self.statuses == [*statuses], self.jobs

    @property
    def arrays(self) -> set[str]:
        return {one.partition("_")[0] for one in self.jobs}


Make = Callable[..., Stage]


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Path,
    slurm: Slurm,  # noqa: F811
) -> Iterator[Make]:
    """A new stage for sweeps with these words."""
    root = tmp_path_factory.mktemp("slurm-sweeps").resolve()
    words = (
        "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1",
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "model=timm", "model.name=test_resnet",
    )  # fmt: skip
    numbers = iter(range(10**6))

    def make_one(*more: str) -> Stage:
        return Stage(root / str(next(numbers)), (*words, *more), slurm)

    yield make_one
    kill.end_all()


@pytest.fixture(autouse=True)
def none_left(slurm: Slurm) -> Iterator[None]:  # noqa: F811
    """No test leaves jobs to the next."""
    yield
    kill.end_all()
    slurm.end_jobs()


def test_a_job_that_dies_elsewhere_is_resumed_and_no_other_is_submitted_again(make: Make) -> None:
    stage = make(
        "seed=range(3)", "budget.epochs=3", "checkpoint.minutes=0",
        "hydra.launcher.array_parallelism=2",
    )  # fmt: skip
    stage.hold(seeds="0")
    sweep = stage.begin()
    (pid,) = stage.held()
    assert len(stage.jobs) == 3
    assert "PENDING" in stage.jobs.values()
    stage.let_go()
    stage.cluster.kill(pid)
    assert sweep.wait().code == 0, sweep.err + sweep.out
    assert stage.statuses == ["resumed", "finished", "finished"]
    assert len(stage.jobs) == 4, "the job that was killed, again"
    assert "3 jobs: 1 resumed, 2 finished" in sweep.out
    assert re.search(r"\b\d+_\[0-2\]", sweep.out + sweep.err), "the ids of the jobs"

    again = stage.begin().wait()
    assert again.code == 0, again.err
    assert stage.statuses == ["skipped"] * 3
    assert len(stage.jobs) == 4, "finished runs need no job"

    shown = stage.begin(str(kill.sweep(stage).path), module="runner.show").wait()
    assert shown.code == 0, shown.err
    assert "3 jobs: 3 skipped" in shown.out


def test_time_limit_with_a_slow_scontrol_after_ctrl_c(make: Make) -> None:
    stage = make("seed=0", LONG)
    slow = stage.root / "slow"
    slow.mkdir()
    scontrol = slow / "scontrol"
    scontrol.write_text('#!/bin/sh\n/usr/bin/scontrol "$@"\ncode=$?\nsleep 2\nexit $code\n')
    scontrol.chmod(0o755)
    stage.variables["PATH"] = f"{slow}:{stage.variables['PATH']}"
    first = stage.begin()
    stage.wait_for_rows(2)
    (job,) = stage.jobs
    os.kill(first.pid, signal.SIGINT)
    assert first.wait().code == 128 + signal.SIGINT
    assert "1 job goes on in Slurm" in first.out
    assert f"scancel {job}" in first.out.partition("goes on")[2], "how to end it"
    assert stage.jobs == {job: "RUNNING"}

    second = stage.begin()
    second.wait_for(lambda: job in second.out + second.err)
    stage.cluster.say("scancel", "--signal=USR2", job)  # as Slurm does before the end of the time
    wait_until(lambda: stage.jobs == {job: "PENDING"})
    stage.wait_for_statuses("queued")
    assert second.wait().code == 0, second.err
    assert stage.statuses == ["resumed"]
    assert stage.jobs.keys() == {job}


def test_preempted_jobs_are_queued_again_and_resume(make: Make) -> None:
    stages = [
        make("seed=0", LONG, f"hydra.launcher.partition={name}") for name in ("nightly", "patient")
    ]
    sweeps = [stage.begin() for stage in stages]
    for stage in stages:
        stage.wait_for_rows(2)
    cluster = stages[0].cluster
    cluster.say("sbatch", "-p", "urgent", "-c4", "--output=/dev/null", "--wrap=sleep 1")
    known = {*cluster.jobs()}
    for stage, sweep in zip(stages, sweeps, strict=True):
        assert sweep.wait(240).code == 0, sweep.err
        assert stage.statuses == ["resumed"]
    assert {*cluster.jobs()} == known, "nothing was submitted again"


def test_cancelled_jobs_are_not_submitted_again_and_failed_ones_fail_in_slurm(make: Make) -> None:
    stage = make("hydra.launcher.array_parallelism=1")
    recipes = stage.root / "mine" / "recipe"
    recipes.mkdir(parents=True)
    for name, values in {
        "bad": {"optim": {"name": "sgd", "lr": 1e30}},
        "long": {"budget": {"epochs": 2000}},
        "late": {"seed": 1},
    }.items():
        (recipes / f"{name}.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(values)}")
    sweep = stage.begin("+recipe=bad,long,late", "--config-dir", str(recipes.parent))
    stage.wait_for_statuses("failed", "running", "queued")
    bad, running, waiting = sorted(stage.jobs)
    assert stage.jobs[bad] == "FAILED"
    stage.cluster.say("scancel", waiting)
    stage.cluster.say("scancel", running)
    assert sweep.wait().code == 6, sweep.err
    assert stage.statuses == ["failed", "cancelled", "cancelled"]
    assert "2 cancelled" in sweep.out
    assert stage.arrays == {bad.partition("_")[0]}


def test_submit_and_leave_in_arrays_of_the_size_that_the_cluster_allows(make: Make) -> None:
    count = MAX_ARRAY_SIZE + 2
    stage = make(f"seed=range({count})", "budget.epochs=1", "hydra.launcher.partition=closed")
    left = stage.begin("--detach").wait()
    assert left.code == 0, left.err
    assert {*stage.jobs.values()} == {"PENDING"}
    assert len(stage.jobs) == count
    first, second = sorted(stage.arrays, key=int)
    assert f"scancel {first} {second}" in left.out

    shown = stage.begin(str(kill.sweep(stage).path), module="runner.show")
    shown.wait_for(lambda: "PartitionDown" in shown.out)
    assert f"{count} jobs: {count} queued" in shown.out
    os.kill(shown.pid, signal.SIGINT)
    shown.wait()

    attached = stage.begin()
    attached.wait_for(lambda: "PartitionDown" in attached.out)
    assert len(stage.jobs) == count
    stage.cluster.say("scancel", first, second)
    assert attached.wait().code == 6, attached.err
    assert {*stage.statuses} == {"cancelled"}
    assert len(stage.arrays) == 2


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("hydra.launcher.cpus_per_task=64", "hydra.launcher.cpus_per_task="),
        ("hydra.launcher.partition=short", "hydra.launcher.timeout_min="),
        ("hydra.launcher.partition=nope", "hydra.launcher.partition="),
        ("hydra.launcher.mem_gb=64", "hydra.launcher.mem_gb="),
        ("hydra.launcher.gpus_per_node=1", "hydra.launcher.gpus_per_node="),
    ],
)
def test_impossible_requests_end_at_once(make: Make, word: str, key: str) -> None:
    stage = make("seed=0,1", word)
    refused = stage.begin().wait()
    assert refused.code == 2, refused.out + refused.err
    assert f"fix: {key}" in refused.err
    assert "PENDING" not in stage.jobs.values()
    assert "RUNNING" not in stage.jobs.values()


def test_nothing_is_left_of_a_slurm_whose_tests_were_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib, slurm\n"
        "with slurm.started(pathlib.Path(sys.argv[1])) as running:\n"
        "    running.say('sbatch', '--output=/dev/null', '--wrap=sleep 1000')\n"
        "    print(running.init, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tests.stdout is not None
    init = int(tests.stdout.readline())
    everything = {"munged", "slurmctld", "slurmd", "sleep"}
    wait_until(lambda: everything <= _programs(tmp_path))
    tests.kill()
    tests.wait()
    tests.stdout.close()
    wait_until(lambda: not _programs(tmp_path) and not Path(f"/proc/{init}").exists(), 10)


def _programs(folder: Path) -> set[str]:
    """The names of the programs whose environment names a folder: daemons and jobs."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and str(folder).encode() in (entry / "environ").read_bytes():
                found.add((entry / "comm").read_text().strip())
    return found
