"""How many jobs at a time: the fastest of what was measured, which is measured once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from runner.machine.children import Barrier, answers_of_children
from runner.models import build_model
from runner.terminal.start import Rate, Work
from runner.training import rate
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


def test_splits_are_halves() -> None:
    assert splits.splits(16) == [1, 2, 4, 8, 16]
    assert splits.splits(6) == [1, 3, 6]


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that take little memory: these are forks of the process of the tests."""
    monkeypatch.setattr(splits, "_peak", lambda: 2**20)


@pytest.fixture
def config(composed: Composed, tmp_path: Path) -> RunConfig:
    return composed(f"outputs={tmp_path}", "device=cpu")


class Measured:
    """Rates that say who measured them: children, which write a line each."""

    def __init__(self, log: Path, rates: dict[int, float]) -> None:
        self.log = log
        self.rates = rates

    def __call__(self, config: RunConfig) -> Rate:
        parent = os.getpid()

        def rate(threads: int, begin: Barrier, end: Barrier, seconds: float) -> float:
            assert os.getppid() == parent
            began = time.monotonic()
            for barrier in (begin, end):
                barrier.arrive()
                while not barrier.have_all_arrived:
                    time.sleep(0.01)
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {threads} {parent} {began} {time.monotonic()}\n")
            return self.rates[threads]

        return rate

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]


def test_each_split_is_measured_by_processes_that_work_together(
    config: RunConfig, tmp_path: Path
) -> None:
    rates = Measured(tmp_path / "log", {1: 30.0, 2: 40.0, 4: 90.0})
    found = measured_split(config, rates, cores=4, num_jobs=8)
    assert found is not None
    assert (found.at_once, found.threads) == (4, 1)
    for part in ("4 of 8 jobs at a time, each with 1 thread:", "120 images/s by 4 × 1", "2 × 2"):
        assert part in found.note
    lines = rates.lines
    assert sorted(line[1] for line in lines) == ["1"] * 4 + ["2"] * 2 + ["4"]
    # One child has imported what measures, and forked all the others.
    assert len({line[0] for line in lines} | {line[2] for line in lines} | {str(os.getpid())}) == 9
    for wanted in ("1", "2"):
        times = [(float(line[3]), float(line[4])) for line in lines if line[1] == wanted]
        assert max(began for began, _ in times) <= min(ended for _, ended in times)


def test_a_measurement_is_kept_for_the_same_work_alone(composed: Composed, tmp_path: Path) -> None:
    words = (f"outputs={tmp_path}", "device=cpu", "precision=bf16")  # auto goes by the processor
    config = composed(*words)
    rates = Measured(tmp_path / "log", {1: 10.0, 2: 40.0})
    first = measured_split(config, rates, 2, 8)
    assert first is not None
    assert (first.at_once, first.threads) == (1, 2)
    assert measured_split(config, rates, 2, 8) == first
    assert len(rates.lines) == 3
    for number, word in enumerate(
        ("resize.size=32", "data.batch_size=8", "precision=fp32", "accumulate.steps=2"), 2
    ):
        measured_split(composed(*words, word), rates, 2, 8)
        assert len(rates.lines) == 3 * number
    kept = tmp_path / "cache" / "training-rates.json"
    for damage in (b"", b"[]", b'{"x": 3}', b'{"x": {"a": 1}}', b"\xff"):
        kept.write_bytes(damage)
        before = len(rates.lines)
        assert measured_split(config, rates, 2, 8) == first
        assert len(rates.lines) == before + 3
    assert len(json.loads(kept.read_text())) == 1
    assert str(kept) in first.note  # which file to remove, to measure again


def test_two_sweeps_measure_one_after_the_other_and_keep_both(
    composed: Composed, tmp_path: Path
) -> None:
    rates = Measured(tmp_path / "log", {1: 10.0, 2: 40.0})

    def slow(config: RunConfig) -> Rate:
        time.sleep(0.3)
        return rates(config)

    def measure(size: int) -> str:
        config = composed(f"outputs={tmp_path}", "device=cpu", f"resize.size={size}")
        found = measured_split(config, slow, 2, 8)
        assert found is not None
        return found.note

    asks = [partial(measure, size) for size in (32, 32, 64, 64)]
    assert len(set(answers_of_children(asks))) == 1
    assert len(json.loads((tmp_path / "cache" / "training-rates.json").read_text())) == 2
    assert len(rates.lines) == 6  # once for each size
    times = sorted((float(line[3]), float(line[4])) for line in rates.lines)
    by_sweep = [times[:3], times[3:]]
    assert max(ended for _, ended in by_sweep[0]) <= min(began for began, _ in by_sweep[1])


def short_of_memory(config: RunConfig) -> Rate:
    def rate(threads: int, *_: Any) -> float:
        if threads < 4:
            raise MemoryError("DefaultCPUAllocator: not enough memory")
        return 100.0

    return rate


def test_more_jobs_at_a_time_than_memory_suffices_for_are_not_chosen(
    config: RunConfig, composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured_split(config, short_of_memory, 16, 16)
    assert found is not None
    assert (found.at_once, found.threads) == (4, 4)
    assert "400 images/s by 4 × 4 (jobs" in found.note
    rates = Measured(tmp_path / "log", dict.fromkeys((1, 2, 4, 8, 16), 100.0))
    for peak, at_once in ((2**30, 4), (2**32 + 1, 1), (2**40, 1)):
        monkeypatch.setattr(splits, "_peak", lambda peak=peak: peak)
        monkeypatch.setattr(splits, "memory", lambda: 2**33)  # of which jobs may have half
        config = composed(f"outputs={tmp_path / str(peak)}", "device=cpu")
        found = measured_split(config, rates, 16, 16)
        assert found is not None
        assert found.at_once == at_once


def test_a_measurement_that_cannot_be_kept_counts(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    found = measured_split(config, Measured(tmp_path / "log", {1: 10.0, 2: 40.0}), 2, 8)
    assert found is not None
    assert (found.at_once, found.threads) == (1, 2)


def fails(config: RunConfig) -> Rate:
    raise ValueError("a network that does not exist")


def test_what_cannot_be_measured_is_as_before(
    config: RunConfig, composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Measured(tmp_path / "log", {1: 10.0, 2: 40.0})
    assert measured_split(config, rates, cores=1, num_jobs=8) is None
    assert measured_split(config, rates, cores=2, num_jobs=splits.FEWEST_JOBS - 1) is None
    assert measured_split(composed("device=cuda"), rates, 2, 8) is None
    monkeypatch.setattr(splits, "can_fork", lambda: False)
    assert measured_split(config, rates, 2, 8) is None
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


def rate_of_work(config: RunConfig) -> Rate:
    return lambda threads, *_: float(threads**3)  # threads are worth more than jobs


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, Share]]]:
    """The number of jobs at a time, and their share, at each launch of joblib; on four cores."""
    found: list[tuple[int, Share]] = []

    def launched(self: Any, numbers: list[int]) -> None:
        """Instead of joblib, whose processes take seconds."""
        found.append((self._config.hydra.launcher.n_jobs, self._task.share))

    monkeypatch.setattr(launch._Launch, "_round", launched)
    for module in (launch, shares):
        monkeypatch.setattr(module, "num_cores", lambda: 4)
    with mock.patch.dict(os.environ):
        yield found


@pytest.mark.parametrize(
    ("words", "at_once", "threads"),
    [
        (("hydra/launcher=joblib",), 1, 4),
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), 2, 2),  # as the user says
    ],
)
def test_the_launcher_does_as_was_measured(
    tmp_path: Path,
    seen: list[tuple[int, Share]],
    words: tuple[str, ...],
    at_once: int,
    threads: int,
) -> None:
    jobs = [[f"seed={seed}", f"outputs={tmp_path}", "device=cpu"] for seed in range(4)]
    said: list[str] = []
    asked = Work(work, rate_of=rate_of_work)
    # As a comparison: its live table is quiet, and says what matters.
    run_jobs(jobs, asked, words, tmp_path, is_quiet=True, say=said.append)
    ((found, share),) = seen
    assert (found, share.threads) == (at_once, threads)
    assert any("1 of 4 jobs at a time" in line for line in said) == (at_once == 1)


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_jobs_for_which_another_evaluates_take_no_part_of_the_machine(
    tmp_path: Path, seen: list[tuple[int, Share]], num_seeds: int
) -> None:
    jobs = [
        [f"seed={seed}", f"tta={tta}", f"outputs={tmp_path}", "device=cpu"]
        for seed in range(num_seeds)
        for tta in ("none", "flip", "book", "ten_crop")
    ]
    rates = {1: 1.0, 2: 1.5, 4: 2.0}  # by threads: most for as many jobs as there are cores
    asked = Work(work, can_share=True, rate_of=lambda config: lambda threads, *_: rates[threads])
    run_jobs(jobs, asked, ("hydra/launcher=joblib",), tmp_path, is_quiet=True)
    ((at_once, share),) = seen
    assert (at_once, share.threads) == {1: (1, 4), 2: (2, 2), 3: (3, 1)}[num_seeds]


def rate_by_size(config: RunConfig) -> Rate:
    power = 0.5 if config.size == 32 else 2.0  # of small images, more jobs are faster
    return lambda threads, *_: float(threads**power)


def test_a_sweep_has_the_same_threads_again_whatever_it_has_finished(
    tmp_path: Path, seen: list[tuple[int, Share]]
) -> None:
    jobs = [
        [f"resize.size={size}", f"seed={seed}", f"outputs={tmp_path}", "device=cpu"]
        for size in (32, 64)
        for seed in (0, 1)
    ]
    done = {"status": "skipped", "folder": "", "accuracy": 0.5}
    for num_finished in (0, 1, 2, 3):

        def finished_before(
            configs: Sequence[RunConfig], count: int = num_finished
        ) -> list[dict[str, Any] | None]:
            return [dict(done) if number < count else None for number in range(len(configs))]

        asked = Work(work, finished_before, rate_of=rate_by_size)
        run_jobs(jobs, asked, ("hydra/launcher=joblib",), tmp_path, is_quiet=True)
    assert [(at_once, share.threads) for at_once, share in seen] == [(4, 1)] * 4


def test_the_rate_of_a_network(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("model=timm", "model.name=test_resnet", "resize.size=16", "data.batch_size=8")
    config = composed(*words, "accumulate.steps=2", f"outputs={tmp_path}")
    start = time.monotonic()
    sizes = list[int]()

    def seen(*arguments: Any, **keys: Any) -> Any:
        model = build_model(*arguments, **keys)
        model.register_forward_hook(lambda *found: sizes.append(len(found[1][0])))
        return model

    monkeypatch.setattr(rate, "build_model", seen)
    assert 4 < training_rate(config, 1, Barrier(), Barrier(), 0.2) < 1e6
    assert {*sizes} == {4}  # the images of a micro-batch
    assert time.monotonic() >= start + 0.2


class Noted(Barrier):
    """A barrier that notes the times at which a process arrives and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = self.passed = 0.0

    def arrive(self) -> None:
        self.arrived = time.monotonic()
        super().arrive()

    @property
    def have_all_arrived(self) -> bool:
        self.passed = time.monotonic()
        return super().have_all_arrived


def test_a_slow_process_is_measured_with_the_load_of_the_others(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("resize.size=16", "data.batch_size=8", f"outputs={tmp_path}")
    begin, end, real = Noted(), Noted(), rate.build_model

    def ask(delay: float, seconds: float) -> str:
        def build_model(*arguments: Any, **keys: Any) -> Any:
            time.sleep(delay)  # as on a machine with more processes than cores
            return real(*arguments, **keys)

        monkeypatch.setattr(rate, "build_model", build_model)
        training_rate(config, 1, begin, end, seconds)
        return f"{begin.arrived} {begin.passed} {end.arrived} {end.passed}"

    asks = [partial(ask, 0.0, 0.0), partial(ask, 0.5, 1.0)]
    answers = answers_of_children(asks, (begin, end))
    quick, slow = ([float(part) for part in answer.split()] for answer in answers)
    assert quick[1] >= slow[0]  # nothing is measured before both networks train
    assert quick[3] >= slow[2]  # nor alone at the end


def test_torch_is_imported_once_and_not_here(tmp_path: Path) -> None:
    code = f"""
import os, sys
from runner.config.schema import RunConfig
from runner.jobs import splits
from runner.train import rate_of

def noted(config):
    print("before", "torch" in sys.modules, flush=True)
    measure = rate_of(config)
    def rate(*arguments):
        print("each", "torch" in sys.modules, flush=True)
        return 1.0
    return rate

config = RunConfig(outputs={str(tmp_path)!r}, device="cpu")
print(splits.measured_split(config, noted, 2, 8).threads, "torch" in sys.modules)
"""
    words = [sys.executable, "-c", code]
    lines = subprocess.check_output(words, text=True).splitlines()
    assert lines == ["before False", *["each True"] * 3, "1 False"]
