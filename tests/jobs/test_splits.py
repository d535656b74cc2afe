"""How many jobs at a time: the fastest of what was measured, which is measured once."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from runner.config.schema import RunConfig
from runner.jobs import launch, shares, splits
from runner.jobs.launch import run_jobs
from runner.jobs.shares import Share
from runner.jobs.splits import fastest, measured_split
from runner.machine import children
from runner.terminal.start import Work
from runner.training.rate import training_rate

pytestmark = pytest.mark.skipif(not children.can_fork(), reason="forks")

Composed = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("rates", "num_jobs", "expected"),
    [
        ({1: 100, 2: 130}, 4, 2),
        ({1: 130, 2: 100}, 4, 1),
        ({1: 100, 2: 100}, 4, 2),  # nothing to choose: as many as there are cores
        ({1: 100, 2: 110}, 3, 1),  # the second round of two leaves a core unused
        ({1: 100, 2: 140}, 3, 2),
        ({1: 100, 2: 150, 4: 200, 8: 220}, 8, 8),
        ({1: 100, 2: 150, 4: 200, 8: 220}, 4, 4),
        ({1: 100, 2: 150, 4: 200, 8: 220}, 100, 8),
        ({1: 100, 2: 190, 4: 200, 8: 60}, 100, 4),
    ],
)
def test_the_fastest_split(rates: dict[int, float], num_jobs: int, expected: int) -> None:
    assert fastest(rates, num_jobs) == expected


def test_splits_are_halves_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "memory", lambda: 2**40)
    assert splits.splits(16) == [16, 8, 4, 2, 1]
    assert splits.splits(6) == [6, 3, 1]
    monkeypatch.setattr(splits, "memory", lambda: 2**32)  # 4 GiB
    assert splits.splits(16) == [4, 2, 1]
    monkeypatch.setattr(splits, "memory", lambda: 2**20)
    assert splits.splits(16) == [1]


@pytest.fixture
def config(composed: Composed, tmp_path: Path) -> RunConfig:
    return composed(f"outputs={tmp_path}", "device=cpu")


class Measured:
    """A rate that says who measured it: children, which write a line each."""

    def __init__(self, log: Path, rates: dict[int, float]) -> None:
        self.log = log
        self.rates = rates

    def __call__(self, config: RunConfig, threads: int, begin: float, seconds: float) -> float:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {threads} {begin}\n")
        return self.rates[threads]

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]


def test_each_split_is_measured_by_processes_that_begin_together(
    config: RunConfig, tmp_path: Path
) -> None:
    rate = Measured(tmp_path / "log", {1: 30.0, 2: 40.0, 4: 90.0})
    found = measured_split(config, rate, cores=4, num_jobs=8)
    assert found is not None
    assert (found.at_once, found.threads) == (4, 1)
    for part in ("4 of 8 jobs at a time, each with 1 thread:", "120 images/s by 4 × 1", "2 × 2"):
        assert part in found.note
    lines = rate.lines
    assert sorted(threads for _, threads, _ in lines) == ["1"] * 4 + ["2"] * 2 + ["4"]
    assert len({pid for pid, _, _ in lines} | {str(os.getpid())}) == 8  # all are children
    assert len({begin for _, threads, begin in lines if threads == "1"}) == 1


def test_a_measurement_is_kept_for_the_same_work_alone(composed: Composed, tmp_path: Path) -> None:
    words = (f"outputs={tmp_path}", "device=cpu", "precision=bf16")  # auto goes by the processor
    config = composed(*words)
    rate = Measured(tmp_path / "log", {1: 10.0, 2: 40.0})
    first = measured_split(config, rate, 2, 8)
    assert first is not None
    assert (first.at_once, first.threads) == (1, 2)
    assert measured_split(config, rate, 2, 8) == first
    assert len(rate.lines) == 3
    for number, word in enumerate(("resize.size=32", "data.batch_size=8", "precision=fp32"), 2):
        measured_split(composed(*words, word), rate, 2, 8)
        assert len(rate.lines) == 3 * number
    kept = tmp_path / "cache" / "training-rates.json"
    for damage in (b"", b"[]", b'{"x": 3}', b'{"x": {"a": 1}}', b"\xff"):
        kept.write_bytes(damage)
        before = len(rate.lines)
        assert measured_split(config, rate, 2, 8) == first
        assert len(rate.lines) == before + 3
    assert len(json.loads(kept.read_text())) == 1


def fails(*_: Any) -> float:
    raise ValueError("a network that does not exist")


def test_what_cannot_be_measured_is_as_before(
    config: RunConfig, composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Measured(tmp_path / "log", {1: 10.0, 2: 40.0})
    assert measured_split(config, rate, cores=1, num_jobs=8) is None
    assert measured_split(config, rate, cores=2, num_jobs=splits.FEWEST_JOBS - 1) is None
    assert measured_split(composed("device=cuda"), rate, 2, 8) is None
    monkeypatch.setattr(splits, "can_fork", lambda: False)
    assert measured_split(config, rate, 2, 8) is None
    assert not (tmp_path / "log").exists()


def test_an_error_of_the_measurement_is_left_to_the_job(
    config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    assert measured_split(config, fails, 2, 8) is None
    assert capfd.readouterr() == ("", "")


def work(config: RunConfig, words: list[str], *_: Any) -> dict[str, Any]:
    from runner.machine.hardware import num_cores

    content = {"cores": num_cores(), "threads": config.threads}
    (Path(config.outputs) / f"seen-{config.seed}").write_text(json.dumps(content))
    return {"status": "finished", "folder": "", "accuracy": 0.5, "seconds": 0.0}


def rate_of_work(config: RunConfig, threads: int, begin: float, seconds: float) -> float:
    return float(threads**3)  # threads are worth more than jobs


@pytest.mark.parametrize(
    ("words", "at_once", "threads"),
    [
        (("hydra/launcher=joblib",), 1, 4),
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), 2, 2),  # as the user says
    ],
)
def test_the_launcher_does_as_was_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    at_once: int,
    threads: int,
) -> None:
    seen: list[tuple[int, Share]] = []

    class Launcher:
        """Instead of joblib, whose processes take seconds."""

        def launch(self, jobs: Any, initial_job_idx: int) -> None:
            pass

    def launcher(self: Any) -> Launcher:
        seen.append((self._config.hydra.launcher.n_jobs, self._task.share))
        return Launcher()

    monkeypatch.setattr(launch._Launch, "_launcher", launcher)
    for module in (launch, shares):
        monkeypatch.setattr(module, "num_cores", lambda: 4)
    jobs = [[f"seed={seed}", f"outputs={tmp_path}", "device=cpu"] for seed in range(4)]
    said: list[str] = []
    with mock.patch.dict(os.environ):
        run_jobs(jobs, Work(work, rate=rate_of_work), words, tmp_path, say=said.append)
    ((found, share),) = seen
    assert (found, share.threads) == (at_once, threads)
    assert any("1 of 4 jobs at a time" in line for line in said) == (at_once == 1)


def test_the_rate_of_a_network(composed: Composed, tmp_path: Path) -> None:
    words = ("model=timm", "model.name=test_resnet", "resize.size=16", "data.batch_size=8")
    config = composed(*words, f"outputs={tmp_path}")
    begin = time.monotonic() + 0.2
    rate = training_rate(config, 1, begin, 0.2)
    assert time.monotonic() >= begin + 0.2
    assert 8 < rate < 1e6
