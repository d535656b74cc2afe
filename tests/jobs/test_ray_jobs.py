"""Jobs of Ray, with a script in place of Ray; ``tests/test_ray.py`` has a real one."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner.errors import ConfigError, StorageError, SweepError
from runner.jobs import ray_jobs
from runner.jobs.ray_jobs import RayJobs
from runner.jobs.reporter import Reporter
from runner.records.sweep_folder import SweepFolder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(60),
]

DEATHS = ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "LocalRayletDiedError")
Happens = Callable[[int, int], str]
"""What happens to a job, by its number and its attempt: returns what Ray's task returned."""


class FakeRay(ModuleType):
    """As much of Ray as is used, with one machine of two cores."""

    def __init__(self, happens: Happens, machines: list[dict[str, float]]) -> None:
        super().__init__("ray")
        self.happens = happens
        self.machines = machines
        self.options: dict[str, Any] = {}
        self.started: dict[str, Any] | None = None
        self.waits = 0
        self.cancelled: list[int] = []
        self.attempts: dict[int, int] = {}
        self.exceptions = ModuleType("ray.exceptions")
        for name in (*DEATHS, "TaskCancelledError"):
            setattr(self.exceptions, name, type(name, (Exception,), {}))

    def remote(self, **options: Any) -> Callable[[object], "FakeRay"]:
        if "foo" in options:
            raise ValueError("Invalid option keyword foo")
        self.options = options

        class Function:
            @staticmethod
            def remote(number: int, *_: object) -> tuple[int, int]:
                self.attempts[number] = self.attempts.get(number, 0) + 1
                return number, self.attempts[number]

        return lambda _: Function

    def is_initialized(self) -> bool:
        return self.started is not None

    def init(self, **values: Any) -> None:
        self.started = values

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [gone, *({"Alive": True, "Resources": has} for has in self.machines)]

    def cluster_resources(self) -> Mapping[str, float]:
        return self.machines[0]

    def available_resources(self) -> Mapping[str, float]:
        return {}

    def wait(self, left: list[Any], **_: object) -> tuple[list[Any], list[Any]]:
        if self.waits:
            self.waits -= 1
            return [], left
        return left[:1], left[1:]

    def get(self, reference: tuple[int, int]) -> str:
        number, attempt = reference
        if number in self.cancelled:
            raise self.exceptions.TaskCancelledError
        return self.happens(number, attempt)

    def cancel(self, reference: tuple[int, int]) -> None:
        self.cancelled.append(reference[0])


class Sweep:
    """Three jobs of Ray, and what was told about them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs = [["a=1", f"seed={seed}"] for seed in range(3)]
        self.folder = SweepFolder.create(folder, self.jobs)
        self.lines: list[str] = []
        self.told: list[tuple[str, int]] = []
        self.may_begin = True
        self.fake = FakeRay(lambda number, attempt: self.end(number), [{"CPU": 2.0}])
        monkeypatch.setitem(sys.modules, "ray", self.fake)
        monkeypatch.setitem(sys.modules, "ray.exceptions", self.fake.exceptions)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def end(self, number: int, status: str = "finished", **more: Any) -> str:
        self.folder.write(number, status, **more)
        return ""

    def run(self, init: Mapping[str, Any] | None = None, **remote: Any) -> list[str]:
        """The status of each job at the end."""
        values = {"init": init, "remote": {"num_cpus": 1, "max_retries": 3, **remote}}
        jobs = RayJobs(
            self.folder,
            self.jobs,
            values,
            Reporter(
                say=self.lines.append,
                on_begin=lambda number: self.told.append(("begin", number)),
                on_end=lambda number: self.told.append(("end", number)),
            ),
        )

        class Context:
            class config_loader:  # noqa: N801  as Hydra's
                @staticmethod
                def load_sweep_config(config: object, words: list[str]) -> object:
                    return OmegaConf.create({"hydra": {"job": {}}})

        jobs.run(range(3), None, Context, None, lambda: self.may_begin)
        return [self.folder.read(number)["status"] for number in range(3)]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    return Sweep(tmp_path, monkeypatch)


def test_jobs_of_ray_are_told_as_they_begin_and_end(sweep: Sweep) -> None:
    assert sweep.run() == ["finished"] * 3
    assert sweep.told == [(what, number) for number in range(3) for what in ("begin", "end")]
    assert sweep.lines == ["Ray is starting on this machine", "Ray has 2 CPUs, 0 GPUs on 1 machine"]
    assert sweep.fake.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}


@pytest.mark.parametrize("kind", DEATHS)
def test_a_job_whose_process_died_is_started_again_and_at_last_has_crashed(
    sweep: Sweep, kind: str
) -> None:
    def happens(number: int, attempt: int) -> str:
        if number == 0 and (attempt == 1 or sweep.fake.attempts[0] > 9):
            sweep.folder.write(0, "running")
        if number == 1 or (number == 0 and attempt < 3):
            raise getattr(sweep.fake.exceptions, kind)("low on memory\nmore")
        return sweep.end(number)

    sweep.fake.happens = happens
    assert sweep.run() == ["finished", "crashed", "finished"]
    assert sweep.fake.attempts == {0: 3, 1: 4, 2: 1}
    assert sorted(number for what, number in sweep.told if what == "end") == [0, 1, 2]
    error = sweep.folder.read(1)["error"]
    assert error.startswith("crashed: ")
    assert ("low on memory" in error) == (kind == "OutOfMemoryError")
    assert f"{error}; started again (3 of 3): seed=1" in sweep.lines
    assert not any("4 of 3" in line for line in sweep.lines)


def test_a_job_that_its_machine_interrupts_goes_on_but_not_without_end(sweep: Sweep) -> None:
    def happens(number: int, attempt: int) -> str:
        is_over = number != 1 and (number, attempt) != (0, 1)
        return sweep.end(number, "finished" if is_over else "interrupted")

    sweep.fake.happens = happens
    assert sweep.run() == ["finished", "interrupted", "finished"]
    assert sweep.fake.attempts == {0: 2, 1: 4, 2: 1}


def test_once_the_sweep_is_stopped_no_job_begins_or_begins_again(sweep: Sweep) -> None:
    def happens(number: int, attempt: int) -> str:
        sweep.may_begin = False
        return sweep.end(number, "interrupted")

    sweep.fake.happens = happens
    assert sweep.run() == ["interrupted", "pending", "pending"]
    assert sweep.fake.cancelled == [1, 2]
    assert sweep.fake.attempts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(
    ("machines", "remote", "key", "advised"),
    [
        ([{"CPU": 2.0}, {"CPU": 4.0}], {"num_cpus": 5}, "num_cpus=5", "num_cpus=4"),
        ([{"CPU": 2.0}], {"num_gpus": 1}, "num_gpus=1", "num_gpus=0"),
        ([{"CPU": 2.0, "memory": 8e9}], {"memory": 9e9}, "memory=9e+09", "memory=8e+09"),
        ([{"CPU": 2.0}], {"resources": {"big": 1}}, "resources.big=1", "resources.big=0"),
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0}], {"num_cpus": 4, "num_gpus": 1}, "", "num_cpus"),
    ],
)
def test_what_no_machine_of_ray_has_is_refused(
    sweep: Sweep, machines: list[dict[str, float]], remote: dict[str, Any], key: str, advised: str
) -> None:
    sweep.fake.machines = machines
    with pytest.raises(ConfigError) as caught:
        sweep.run(**remote)
    assert key in caught.value.where
    assert caught.value.where.startswith("hydra.launcher.ray.remote")
    assert advised in caught.value.fix
    assert sweep.fake.attempts == {}


def test_a_card_is_asked_for_where_ray_has_any(sweep: Sweep) -> None:
    sweep.fake.machines = [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}]
    sweep.run(num_gpus=None)
    assert sweep.fake.options["num_gpus"] == 1
    sweep.run(num_gpus=0)
    assert sweep.fake.options["num_gpus"] == 0


def test_an_unknown_option_is_refused_before_ray_starts(sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match="Invalid option keyword foo"):
        sweep.run(foo=1)
    assert sweep.fake.started is None


def test_what_jobs_wait_for_is_said_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_QUIET_SECONDS", -1)
    sweep.fake.waits = 3
    sweep.run()
    told = [line for line in sweep.lines if "wait" in line]
    assert told == ["3 jobs wait for Ray: each asks for 1 CPU; free: 0 of 2 CPUs"]


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (None, {"address": "local", "object_store_memory": 75 * 2**20, "include_dashboard": False}),
        ({"address": None, "include_dashboard": True},
         {"address": "local", "object_store_memory": 75 * 2**20, "include_dashboard": True}),
        ({"address": "auto"}, {"address": "auto"}),
    ],
)  # fmt: skip
def test_ray_is_started_or_joined(
    sweep: Sweep, init: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    sweep.run(init)
    assert sweep.fake.started == {"log_to_driver": False, "logging_level": "error", **expected}


def test_the_address_of_the_environment_counts(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    sweep.run()
    assert sweep.fake.started is not None
    assert sweep.fake.started["address"] == "auto"


def test_an_address_at_which_nothing_listens_is_an_error_at_once(sweep: Sweep) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StorageError, match=r"Ray cannot be used: .*refused") as caught:
        sweep.run({"address": address})
    assert caught.value.where == f"hydra.launcher.ray.init.address={address}"
    assert sweep.fake.started is None


def test_why_a_job_could_not_begin_is_raised(sweep: Sweep) -> None:
    def happens(number: int, attempt: int) -> str:
        if number == 1:
            raise ImportError("No module named 'runner'\nand so on")
        return sweep.end(number)

    sweep.fake.happens = happens
    with pytest.raises(SweepError, match=r"a job: ImportError: No module named 'runner'\n"):
        sweep.run()
    assert [sweep.folder.read(number)["status"] for number in range(3)][::2] == ["finished"] * 2


def test_a_signal_while_ray_starts_is_ours(sweep: Sweep) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    sweep.fake.init = init  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        sweep.run()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_job_on_another_machine_ends_with_its_sweep(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(ray_jobs, "_STOP_SECONDS", 0.01)
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())

    class Task:
        folder, sweeper = sweep.folder, (1, host)

    try:
        with ray_jobs._stopped_with_sweep(Task, 0):
            sweep.folder.stop(signal.SIGINT)
            time.sleep(0.1)
            assert not received.is_set(), "a job that has not begun does not begin"
        sweep.folder.write(0, "running")  # before the watch, which else may look too early
        with ray_jobs._stopped_with_sweep(Task, 0):
            assert received.wait(5 if host == "elsewhere" else 0.1) == (host == "elsewhere")
    finally:
        signal.signal(signal.SIGTERM, before)
