"""Real comparisons of a tiny network that are killed, interrupted and run through launchers."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill
import numpy as np
import pytest
from kill import Attempt, Trap

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(600),
]

RECORD = r"^rename outputs/comparisons/.*/runs\.json"
"""A job has ended, and is about to be recorded."""
FOLDER = r"^(open|rename) outputs/comparisons/.*"


class Comparison:
    """One folder in which a comparison is run, again and again."""

    def __init__(self, root: Path, words: tuple[str, ...]) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.words = words

    def start(self, *more: str, traps: tuple[Trap, ...] = ()) -> Attempt:
        return Attempt(self.root, [*self.words, *more], traps, module="runner.compare.__main__")

    def run(self, *more: str, traps: tuple[Trap, ...] = ()) -> Attempt:
        return self.start(*more, traps=traps).wait()

    @property
    def folder(self) -> Path:
        (found,) = (self.root / "outputs" / "comparisons").iterdir()
        return found

    def files(self) -> dict[str, Any]:
        """Bytes of the files of the comparison; of its answer all but the seconds."""
        found: dict[str, Any] = {
            path.name: path.read_bytes() for path in self.folder.iterdir() if path.suffix == ".json"
        }
        answer = json.loads(found.pop("answer.json"))
        found["answer"] = without_seconds(answer["answer"])
        return found

    def rows(self) -> dict[str, Any]:
        """By run: rows of the metrics and predictions."""
        found = {}
        for path in sorted((self.root / "outputs").glob("*/result.json")):
            with np.load(path.parent / "predictions.npz") as arrays:
                predictions = arrays["plain"].tobytes()
            found[path.parent.name] = (path.parent / "metrics.jsonl").read_bytes(), predictions
        return found


def without_seconds(content: Any) -> Any:
    """The same content without values that depend on the clock."""
    if isinstance(content, dict):
        return {key: without_seconds(one) for key, one in content.items() if key != "seconds"}
    return [without_seconds(one) for one in content] if isinstance(content, list) else content


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> tuple[str, ...]:
    """A base that trains for two epochs of two steps, and two arms, one of which trains nothing."""
    return (
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "threads=1", "device=cpu",
        "checkpoint.minutes=0", "--try", "+trick=mixup", "--try", "+trick=tta", "--max-seeds", "4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]
) -> Iterator[Comparison]:
    whole = Comparison(tmp_path_factory.mktemp("undisturbed") / "place", words)
    attempt = whole.run()
    assert attempt.code == 0, attempt.err
    yield whole
    kill.end_all()


def check(found: Comparison, undisturbed: Comparison) -> None:
    """All rows, verdicts and files are those of a comparison that nothing happened to."""
    assert found.files() == undisturbed.files()
    assert found.rows() == undisturbed.rows()


@pytest.mark.whole
def test_killed_five_times_at_random(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison
) -> None:
    place, rng, kills = Comparison(tmp_path / "place", words), np.random.default_rng(0), 0
    for _ in range(5):
        attempt = place.start()
        attempt.wait_for(lambda one=attempt: one.code is not None or one.count(RECORD) > 0)
        time.sleep(rng.uniform(0, 0.3))
        if attempt.code is None:
            os.killpg(attempt.pid, signal.SIGKILL) if rng.random() < 0.5 else attempt.kill()
            kills += 1
        attempt.wait()
    assert kills >= 4
    last = place.run()
    assert last.code == 0, last.err
    check(place, undisturbed)


@pytest.mark.slow
def test_killed_at_each_change_of_its_folder(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison
) -> None:
    """Also while the question and the answer are written."""
    place = Comparison(tmp_path / "place", words)
    for pattern, number in (
        (FOLDER, 1), (FOLDER, 2), (FOLDER, 3), (RECORD, 1), (RECORD, 3), (FOLDER, 9),
        (r"^open outputs/comparisons/.*answer", 1), (r"^rename outputs/comparisons/.*answer", 1),
    ):  # fmt: skip
        attempt = place.run(traps=(Trap(pattern, number, kill.die),))
        assert attempt.code == -signal.SIGKILL, f"{pattern} {number}: {attempt.err}"
    last = place.run()
    assert last.code == 0, last.err
    check(place, undisturbed)
    assert place.run().count(RECORD) == 0, "it answers from its file"


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(kill.interrupt, marks=pytest.mark.whole),
        pytest.param(kill.terminate, marks=pytest.mark.slow),
    ],
)
def test_interrupted_it_continues(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison, act: Any
) -> None:
    place = Comparison(tmp_path / "place", words)
    attempt = place.run(traps=(Trap(RECORD, 2, act),))
    assert attempt.code == {kill.interrupt: 130, kill.terminate: 143}[act], attempt.err
    assert "Traceback" not in attempt.err
    assert place.run().code == 0
    check(place, undisturbed)


def let_no_file_grow(descriptor: int) -> None:
    """No file may be larger than 100 bytes from now on, not even that of this error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


@pytest.mark.whole
def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison
) -> None:
    place = Comparison(tmp_path / "place", words)
    opened = r"^open outputs/comparisons/.*runs\.json"
    attempt = place.run(traps=(Trap(opened, 3, let_no_file_grow),))
    assert attempt.code == 4, attempt.err
    assert attempt.err.startswith("error: cannot write: File too large")
    assert place.run().code == 0
    check(place, undisturbed)


@pytest.mark.slow
def test_the_second_of_two_is_told_of_the_first(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison
) -> None:
    place = Comparison(tmp_path / "place", words)
    first = place.start(traps=(Trap(RECORD, 1, kill.pause),))
    first.wait_for(lambda: first.is_paused)
    second = place.run()
    assert second.code == 75
    assert f"process {first.pid}" in second.err
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().code == 0, first.err
    check(place, undisturbed)


@pytest.mark.slow
def test_two_jobs_at_a_time_end_with_the_same_files(
    tmp_path: Path, words: tuple[str, ...], undisturbed: Comparison
) -> None:
    place = Comparison(tmp_path / "place", words)
    command = [
        sys.executable, "-m", "runner.compare", *words,
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        # Not a fork: joblib keeps its workers until the interpreter ends.
        first = subprocess.Popen(command, cwd=place.root, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while first.poll() is None and not any(place.root.glob("outputs/comparisons/*/runs.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        assert first.wait() == -signal.SIGKILL, "it ended before"
    again = subprocess.run(command, cwd=place.root, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    check(place, undisturbed)


@pytest.mark.slow
def test_a_search_for_settings_is_killed(tmp_path: Path, words: tuple[str, ...]) -> None:
    tuned = (*words, "--tune", "optim.lr=1e-3,1e-2")
    whole, place = (Comparison(tmp_path / name, tuned) for name in ("whole", "killed"))
    assert whole.run().code == 0
    first = place.start()
    first.wait_for(lambda: first.count(r"^rename outputs/[^/]*/result\.json") >= 5)
    first.kill()
    first.wait()
    assert not any(place.root.glob("outputs/comparisons/*/tuning.json"))
    assert place.run().code == 0
    check(place, whole)
