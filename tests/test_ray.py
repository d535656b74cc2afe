"""Sweeps on a real Ray: what a signal, a death and an impossible request do.

A Ray of this machine starts with each sweep, which takes about ten seconds.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import kill
import pytest
from kill import Place, at_work, statuses, table, wait_until

pytest.importorskip("ray", reason="needs the extra `ray`")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(480),
]

RAY = ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2")
Make = Callable[..., Place]


@pytest.fixture
def make(tmp_path: Path, tiny_folder: Path) -> Iterator[Make]:
    """A new place for a sweep on Ray with these words."""
    words = (
        "-m", "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "checkpoint.minutes=0",
    )  # fmt: skip

    def make_one(*more: str) -> Place:
        return Place(tmp_path / "sweep", (*words, *more))

    yield make_one
    wait_until(lambda: ray_processes(tmp_path / "sweep") == [], 30)


def ray_processes(folder: Path) -> list[int]:
    """Processes of Ray that were started by a command in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (path / "environ").read_bytes()
            command = (path / "cmdline").read_bytes()
            if f"OWNER={folder}".encode() in environment and b"ray" in command:
                found.append(int(path.name))
    return found


def start(place: Place, *words: str, act: str = "pass", seeds: str = "none") -> subprocess.Popen:
    """The command as its user starts it; jobs of some seeds ``act`` before their first row."""
    shutil.rmtree(place.root / "hook", ignore_errors=True)
    hook = kill.write_hook(place, act=act, seeds=seeds, is_later=False)
    return subprocess.Popen(
        [sys.executable, "-m", "runner.train", *place.words, *words],
        cwd=place.root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": hook, "OWNER": str(place.root)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in output
    return process.returncode, output


def run(place: Place, *words: str) -> tuple[int, str]:
    return end(start(place, *words))


def held(place: Place) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in place.root.glob("held-*")]


def test_jobs_get_their_share_and_finished_ones_start_no_ray(make: Make) -> None:
    place = make("seed=0,1", *RAY)
    code, output = run(place, "hydra.launcher.ray.remote.num_cpus=2")
    assert code == 0, output
    assert statuses(place) == ["finished"] * 2
    for job in table(place):
        result = json.loads((place.root / job["folder"] / "result.json").read_text())
        assert result["environment"]["threads"] == 2
    code, output = run(place)
    assert code == 0, output
    assert statuses(place) == ["skipped"] * 2
    assert "Ray" not in output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_what_runs(make: Make, signum: int) -> None:
    place = make("seed=0,1,2", "threads=1", *RAY)
    (place.root / "hold").touch()
    process = start(place, act="hold()", seeds="0|1|2")
    try:
        wait_until(lambda: len(held(place)) == 2, 150)
        os.killpg(process.pid, signum)  # as a terminal does
        wait_until(lambda: list(place.root.glob("outputs/sweeps/*/stop")) != [])
        time.sleep(1)
    finally:
        (place.root / "hold").unlink()
    code, output = end(process)
    assert code == 128 + signum, output
    assert sorted(statuses(place)) == ["interrupted"] * 2 + ["pending"]
    assert len({path.parent for path in place.root.glob("outputs/*/checkpoints/step-*")}) == 2
    code, output = run(place)
    assert code == 0, output
    assert sorted(statuses(place)) == ["finished", "resumed", "resumed"]


def test_a_second_signal_ends_all_at_once(make: Make) -> None:
    place = make("seed=0,1", "threads=1", *RAY)
    (place.root / "hold").touch()
    process = start(place, act="hold()", seeds="0|1")
    wait_until(lambda: len(held(place)) == 2, 150)
    os.killpg(process.pid, signal.SIGINT)
    wait_until(lambda: list(place.root.glob("outputs/sweeps/*/stop")) != [])
    os.killpg(process.pid, signal.SIGINT)
    assert end(process)[0] == 130
    wait_until(lambda: at_work(place) == {}, 10)
    wait_until(lambda: ray_processes(place.root) == [], 20)


def test_a_job_that_was_killed_goes_on(make: Make) -> None:
    place = make("seed=0,1", "threads=1", *RAY)
    (place.root / "hold").touch()
    process = start(place, act="hold()", seeds="0")
    try:
        wait_until(lambda: len(held(place)) == 1, 150)
        os.kill(held(place)[0], signal.SIGKILL)
    finally:
        (place.root / "hold").unlink()
    code, output = end(process)
    assert code == 0, output
    assert "crashed: its process ended without a message" in output
    assert "started again (1 of 3): seed=0" in output
    assert "raylet" not in output
    assert sorted(statuses(place)) == ["finished", "resumed"]


def test_requests_that_cannot_be_met_end_at_once(make: Make) -> None:
    place = make("seed=0,1", *RAY)
    code, output = run(place, "hydra.launcher.ray.remote.num_cpus=3")
    assert code == 2
    assert "each job asks for 3 CPUs, and no machine of Ray has more than 2" in output
    assert "fix: hydra.launcher.ray.remote.num_cpus=2" in output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    code, output = run(place, f"hydra.launcher.ray.init.address={address}")
    assert code == 4
    assert "Ray cannot be used" in output
    assert time.monotonic() - begun < 30
