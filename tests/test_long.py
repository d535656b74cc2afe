"""What takes minutes: a sweep of the embedded data that is killed again and again. ``-m slow``."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

WORDS = (
    "-m", "+trick=baseline,mixup,label_smoothing", "seed=range(4)", "budget=smoke",
    "checkpoint.minutes=0.05",
)  # fmt: skip


def start(outputs: Path) -> "subprocess.Popen[bytes]":
    with (outputs.parent / f"{outputs.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "runner.train", *WORDS, f"outputs={outputs}"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def table(outputs: Path) -> dict[str, tuple[bytes, dict[str, object], bytes]]:
    """By run: rows of the metrics, metrics of the result, and predictions, to the bit."""
    found = {}
    for path in sorted(outputs.glob("*/result.json")):
        with np.load(path.parent / "predictions.npz") as arrays:
            predictions = b"".join(arrays[name].tobytes() for name in sorted(arrays))
        metrics = json.loads(path.read_text())["metrics"]
        found[path.parent.name] = (
            (path.parent / "metrics.jsonl").read_bytes(), metrics, predictions
        )  # fmt: skip
    return found


def last_sweep(outputs: Path) -> list[dict[str, object]]:
    folder = max((outputs / "sweeps").iterdir())
    jobs = [json.loads((folder / f"{number}.json").read_text()) for number in range(12)]
    return [{key: job[key] for key in ("folder", "accuracy", "tta")} for job in jobs]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twelve_jobs_killed_five_times(tmp_path: Path) -> None:
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    started = time.monotonic()
    assert start(reference).wait(timeout=1500) == 0
    seconds = time.monotonic() - started
    rng, kills = random.Random(0), 0  # noqa: S311  no secret
    while kills < 5:
        process = start(killed)
        try:
            code = process.wait(timeout=rng.uniform(0.05, 0.3) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            pytest.fail(f"finished with {code} after {kills} kills: too early to count")
    assert start(killed).wait(timeout=1500) == 0
    expected, found = table(reference), table(killed)
    assert len(expected) == 12
    assert found == expected
    assert [{**job, "folder": Path(str(job["folder"])).name} for job in last_sweep(killed)] == [
        {**job, "folder": Path(str(job["folder"])).name} for job in last_sweep(reference)
    ]
    resumed = (tmp_path / "killed.log").read_text().count("resuming after step")
    print(f"\nsweep of 12 jobs: killed {kills} times, {resumed} resumed, 12 of 12 runs equal")
