"""The cores and GPUs of jobs. The GPUs here are names; which job sees which is real."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from joblib.externals.loky import get_reusable_executor
from omegaconf import OmegaConf

from runner.config.schema import RunConfig
from runner.errors import ConfigError, StorageError
from runner.jobs import launch as launching
from runner.jobs import shares
from runner.jobs.launch import JobsResult, run_jobs
from runner.jobs.shares import Share, share_of
from runner.machine.hardware import num_cores
from runner.machine.processes import from_environment
from runner.records.sweep_folder import SweepFolder
from runner.terminal.start import Work

JOBLIB, LOCAL = "a.JoblibLauncher", "a.LocalLauncher"
DEFAULTS = {
    JOBLIB: {"n_jobs": -1},
    LOCAL: {"cpus_per_task": None, "tasks_per_node": 1, "gpus_per_node": None},
    "a.SlurmLauncher": {"cpus_per_task": 4},
    "a.RayLauncher": {},
    "a.BasicLauncher": {},
}
Found = Callable[..., Share]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """The share of each of four jobs, on a machine of these cores and GPUs."""

    def found(kind: str, cores: int, gpus: int = 0, *, device: str = "auto", **keys: Any) -> Share:
        monkeypatch.setattr(shares, "num_cores", lambda: cores)
        monkeypatch.setattr(shares, "visible_gpus", lambda: tuple("abcdefgh"[:gpus]))
        launcher = {**DEFAULTS[kind], **keys}
        config = OmegaConf.create({"device": "auto", "hydra": {"launcher": launcher}})
        jobs = [[f"seed={seed}", f"device={device}"] for seed in range(4)]
        return share_of(config, kind.removeprefix("a."), jobs)

    return found


@pytest.mark.parametrize(
    ("kind", "keys", "cores", "expected"),
    [
        (JOBLIB, {"n_jobs": -1}, 2, (0, 1)),
        (JOBLIB, {"n_jobs": -1}, 8, (0, 2)),  # there are four jobs
        (JOBLIB, {"n_jobs": 2}, 8, (0, 4)),
        (JOBLIB, {"n_jobs": 4}, 2, (0, 1)),
        (LOCAL, {}, 2, (2, 1)),
        (LOCAL, {"cpus_per_task": 2, "tasks_per_node": 2}, 9, (2, 2)),
        (LOCAL, {"cpus_per_task": 4}, 2, (1, 4)),
        ("a.SlurmLauncher", {}, 2, (0, 4)),  # the cores of this machine do not matter
        ("a.SlurmLauncher", {"cpus_per_task": None}, 2, (0, 0)),  # what the job itself sees
        ("a.RayLauncher", {}, 8, (0, 1)),  # Ray's own default
        ("a.RayLauncher", {"ray": {"remote": {"num_cpus": 3}}}, 8, (0, 3)),
        ("a.RayLauncher", {"ray": {"remote": {"num_cpus": 0.5}}}, 8, (0, 1)),
        ("a.BasicLauncher", {}, 8, (0, 0)),
    ],
)
def test_cores_are_divided_among_the_jobs(
    found: Found, kind: str, keys: dict[str, Any], cores: int, expected: tuple[int, int]
) -> None:
    share = found(kind, cores, **keys)
    assert (share.num_slots, share.threads, share.gpus) == (*expected, ())


@pytest.mark.parametrize(
    ("kind", "keys", "words", "in_config", "expected"),
    [
        (JOBLIB, {}, "threads=4", 0, 2),
        (JOBLIB, {}, "seed=0", 4, 2),  # as compare has it
        (JOBLIB, {}, "seed=0", 0, 4),  # there are four jobs
        (JOBLIB, {}, "threads=16", 0, 1),
        (JOBLIB, {"n_jobs": 3}, "threads=4", 0, 3),  # as the user says
        (LOCAL, {}, "threads=4", 0, 2),
        (LOCAL, {"cpus_per_task": 2}, "threads=4", 0, 4),
        (LOCAL, {}, "threads=${seed}", 0, 8),  # not a number yet
    ],
)
def test_no_more_jobs_run_than_have_cores_for_their_threads(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    keys: dict[str, Any],
    words: str,
    in_config: int,
    expected: int,
) -> None:
    monkeypatch.setattr(shares, "num_cores", lambda: 8)
    monkeypatch.setattr(shares, "visible_gpus", tuple)
    launcher = {**DEFAULTS[kind], **keys}
    config = OmegaConf.create(
        {"device": "cpu", "threads": in_config, "hydra": {"launcher": launcher}}
    )
    share = share_of(
        config, kind.removeprefix("a."), [[f"mixup.alpha={n}", words] for n in range(4)]
    )
    at_once = config.hydra.launcher.n_jobs if kind == JOBLIB else share.num_slots
    assert at_once == expected


@pytest.mark.parametrize(
    ("kind", "keys", "gpus", "expected"),
    [
        (JOBLIB, {}, 2, (2, 4, "a b")),
        (JOBLIB, {}, 8, (4, 2, "a b c d e f g h")),  # there are four jobs
        (JOBLIB, {"n_jobs": 4}, 2, (4, 2, "a b")),
        (JOBLIB, {"n_jobs": 1}, 2, (1, 8, "a b")),
        (JOBLIB, {"device": "cpu"}, 2, (0, 2, "")),
        (LOCAL, {}, 2, (2, 4, "a b")),
        (LOCAL, {"gpus_per_node": 2}, 5, (2, 4, "a,b c,d")),
        (LOCAL, {"gpus_per_node": 1}, 8, (4, 2, "a b c d")),
        (LOCAL, {"tasks_per_node": 2}, 4, (2, 2, "a,b c,d")),
        (LOCAL, {"gpus_per_node": 1, "cpus_per_task": 3}, 4, (2, 3, "a b")),
        (LOCAL, {"gpus_per_node": 1, "cpus_per_task": 9}, 2, (1, 9, "a")),
        (LOCAL, {"gpus_per_node": 0}, 2, (8, 1, "")),
        (LOCAL, {"device": "cpu"}, 2, (8, 1, "")),
        ("a.SlurmLauncher", {}, 2, (0, 4, "")),
        ("a.BasicLauncher", {}, 2, (0, 0, "")),
    ],
)
def test_gpus_are_divided_among_the_jobs(
    found: Found, kind: str, keys: dict[str, Any], gpus: int, expected: tuple[int, int, str]
) -> None:
    share = found(kind, 8, gpus, **keys)
    assert (share.num_slots, share.threads, " ".join(share.gpus)) == expected
    assert bool(share.note) == (keys.get("n_jobs") == 4)


@pytest.mark.parametrize(
    ("kind", "keys", "where", "fix"),
    [
        (LOCAL, {"gpus_per_node": 3}, "hydra.launcher.gpus_per_node=3", "gpus_per_node=1"),
        (
            LOCAL,
            {"gpus_per_node": 1, "tasks_per_node": 2},
            "hydra.launcher.gpus_per_node=1",
            "gpus_per_node=2",
        ),
        (LOCAL, {"tasks_per_node": 3}, "hydra.launcher.tasks_per_node=3", "gpus_per_node=0"),
        (LOCAL, {"device": "cuda:1"}, "device=cuda:1", "CUDA_VISIBLE_DEVICES=b"),
        (JOBLIB, {"device": r"cuda\:1"}, "device=cuda:1", "CUDA_VISIBLE_DEVICES=b"),
        (JOBLIB, {"device": "cuda:9"}, "device=cuda:9", "device=auto"),
    ],
)
def test_gpus_that_do_not_exist_are_refused(
    found: Found, kind: str, keys: dict[str, Any], where: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        found(kind, 8, 2, **keys)
    assert refused.value.where == where
    assert fix in refused.value.fix


def test_a_second_gpu_of_a_job_may_be_named(found: Found) -> None:
    assert found(LOCAL, 8, 4, gpus_per_node=2, device="cuda:1").gpus == ("a,b", "c,d")


@pytest.mark.parametrize("kind", [JOBLIB, LOCAL])
@pytest.mark.parametrize(
    ("word", "num_jobs", "precisions", "is_refused"),
    [
        ("precision=auto", 4, "bf16 fp32 bf16", True),
        ("seed=0", 4, "bf16 fp32 bf16", True),  # the default
        ("precision=auto", 4, "bf16 bf16 bf16", False),
        ("precision=auto", 4, "fp32 fp32 fp32", False),
        ("precision=auto", 4, "", False),  # torch sees none, which the jobs report
        ("precision=bf16", 4, "bf16 fp32 bf16", False),
        ("device=cpu", 4, "bf16 fp32 bf16", False),
        ("precision=auto", 1, "bf16 fp32 bf16", False),  # the job always gets the first GPU
    ],
)
def test_gpus_of_different_precision_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    word: str,
    num_jobs: int,
    precisions: str,
    is_refused: bool,
) -> None:
    monkeypatch.setattr(shares, "visible_gpus", lambda: ("4", "5", "7"))
    monkeypatch.setattr(shares, "precisions_of_gpus", lambda: tuple(precisions.split()))
    launcher = DEFAULTS[kind]
    config = OmegaConf.create(
        {"device": "auto", "precision": "auto", "hydra": {"launcher": launcher}}
    )
    jobs = [[f"seed={seed}", word] for seed in range(num_jobs)]
    if not is_refused:
        share_of(config, kind.removeprefix("a."), jobs)
        return
    with pytest.raises(ConfigError, match="is bf16 on GPUs 4, 7 and fp32 on GPU 5, so") as caught:
        share_of(config, kind.removeprefix("a."), jobs)
    assert caught.value.where == "precision=auto"
    assert caught.value.fix == "precision=fp32; or CUDA_VISIBLE_DEVICES=4,7 before the command"


def test_gpus_without_gpus_are_refused(found: Found) -> None:
    with pytest.raises(ConfigError, match="asks for 1 GPU, and this machine has none"):
        found(LOCAL, 8, 0, gpus_per_node=1)


# ── Jobs of real launchers ─────────────────────────────────────────────────────────────────────


def seen(config: RunConfig, words: list[str]) -> dict[str, Any]:
    """A job that writes which GPUs its process sees, and when; seed 0 dies at its first attempt."""
    begin, rank = time.time(), from_environment().rank
    outputs = Path(config.outputs)
    if config.seed == 0 and not (outputs / "died").exists():
        (outputs / "died").touch()
        os._exit(9)
    (outputs / f"begun-{config.seed}").touch()
    while len(list(outputs.glob("begun-*"))) < 2 and time.time() < begin + 30:
        time.sleep(0.05)  # so that the first two jobs run at the same time if they may
    time.sleep(0.3)
    content = {
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "begin": begin,
        "end": time.time(),
        "cores": num_cores(),
        "threads": config.threads,
        "seed": config.seed,
    }
    (outputs / f"seen-{config.seed}-{rank}.json").write_text(json.dumps(content))
    return {"status": "finished", "folder": "", "accuracy": 0.5, "seconds": 0.0}


def run(outputs: Path, num_jobs: int, *launcher: str) -> tuple[JobsResult, list[dict[str, Any]]]:
    jobs = [[f"seed={seed}", f"outputs={outputs}"] for seed in range(num_jobs)]
    for path in outputs.glob("begun-*"):
        path.unlink()
    # Processes that the launcher starts find this module.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        result = run_jobs(jobs, Work(seen), launcher, outputs, is_quiet=True)
    gc.collect()  # what warns when it is collected, warns here
    return result, [json.loads(path.read_text()) for path in sorted(outputs.glob("seen-*"))]


def most_at_once(found: list[dict[str, Any]]) -> dict[str, int]:
    """For each value of ``CUDA_VISIBLE_DEVICES``, how many jobs had it at the same time."""
    most = dict[str, int]()
    for one in found:
        rivals = [
            other["seed"]
            for other in found
            if other["gpus"] == one["gpus"] and other["begin"] <= one["begin"] < other["end"]
        ]
        most[one["gpus"]] = max(most.get(one["gpus"], 0), len(set(rivals)))
    return most


pytestmark = pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # of submitit


@pytest.fixture
def own_workers() -> Iterator[None]:
    """Workers of joblib that no other test has started or uses."""
    get_reusable_executor().shutdown()
    yield
    get_reusable_executor().shutdown()


LAUNCHERS = [
    pytest.param("hydra/launcher=joblib", "2,3", 2, id="joblib"),  # its workers live on
    pytest.param("hydra/launcher=submitit_local", "GPU-8932f937,GPU-46e6d3ab", 1, id="submitit"),
]


@pytest.mark.whole
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("own_workers")
@pytest.mark.parametrize(("launcher", "visible", "num_sweeps"), LAUNCHERS)
def test_no_two_jobs_at_a_time_see_the_same_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    visible: str,
    num_sweeps: int,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    share = max(1, num_cores() // 2)
    for _ in range(num_sweeps):
        result, found = run(tmp_path, 5, launcher)
        assert [outcome.status for outcome in result.outcomes] == ["finished"] * 5
        assert most_at_once(found) == dict.fromkeys(visible.split(","), 1)
        assert {(one["cores"], one["threads"]) for one in found} == {(share, share)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("own_workers")
@pytest.mark.parametrize(("launcher", "visible", "num_sweeps"), LAUNCHERS)
def test_without_the_assignment_jobs_share_a_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    visible: str,
    num_sweeps: int,
) -> None:
    """The control: the test above can fail."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(launching, "share_of", lambda *of: replace(share_of(*of), gpus=()))
    (tmp_path / "died").touch()
    _, found = run(tmp_path, 4, launcher)
    assert max(most_at_once(found).values()) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_processes_of_a_job_see_the_same_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    (tmp_path / "died").touch()
    _, found = run(tmp_path, 3, *launcher)
    assert len(found) == 6
    for seed in range(3):
        assert len({one["gpus"] for one in found if one["seed"] == seed}) == 1
    assert most_at_once(found) == {"4,5": 1, "6,7": 1}


# ── Several processes for one job ──────────────────────────────────────────────────────────────


def test_the_others_learn_the_slot_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "12")
    folder = SweepFolder(tmp_path)
    shares._write_slot(folder, 0, None)
    writer = threading.Timer(0.3, shares._write_slot, (folder, 0, 3))
    writer.start()
    assert shares._slot_of_first(folder, 0) == 3
    writer.join()
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "13")  # a later attempt, whose first never begins
    monkeypatch.setattr(shares, "_BEGIN_SECONDS", 0.1)
    with pytest.raises(StorageError, match="did not begin"):
        shares._slot_of_first(folder, 0)


def test_the_others_end_if_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    content = {"job": shares._own_job(), "pid": gone.pid, "slot": None}
    (tmp_path / "0.slot").write_text(json.dumps(content))
    with pytest.raises(StorageError, match="ended"):
        shares._slot_of_first(SweepFolder(tmp_path), 0)
