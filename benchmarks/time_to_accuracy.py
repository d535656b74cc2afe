"""Seconds and accuracy of whole trainings, compared with five epochs of fastai.

    python -m benchmarks.time_to_accuracy --data FOLDER_OR_ARCHIVE [--peers FOLDER] --json FILE

Whole commands are timed, from a warm image cache: Python's start, imports, training, evaluation
(once, with the recipe's ``eval.every``) and the result on disk. fastai validates after each epoch,
which is its default; its start is not counted.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.measure import (
    Spread,
    Stopwatch,
    add_data_option,
    parser,
    peer_worker,
    report,
    unpacked,
)
from runner.terminal.tables import Table


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("time_to_accuracy", "Seconds to an accuracy.")
    add_data_option(options)
    options.add_argument("--peers", type=Path, metavar="FOLDER", help="environments of the peers")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6],
        help="seeds of our runs; the recipe was found with 0 and 1 (default: %(default)s)",
    )  # fmt: skip
    options.add_argument("--peer-seeds", type=int, default=1, help="fastai's seeds, minutes each")
    options.add_argument(
        "--words", nargs="*", default=["+recipe=speedrun"], help="words of our runs"
    )
    arguments = options.parse_args()
    folder = arguments.outputs.absolute() / "time_to_accuracy"
    results = []
    with unpacked(arguments.data) as data:
        words = [*arguments.words, f"data.root='{data}'", f"outputs='{folder}'"]
        _run([*words, "budget.epochs=1", "checkpoint.minutes=60"], folder)  # fills the cache
        own = [_run([*words, f"seed={seed}"], folder) for seed in arguments.seeds]
        results.append(_entry("trick-runner", own))
        if arguments.peers:
            settings = {"data": str(data), "size": 64, "batch_size": 64, "threads": 2,
                        "mixup_alpha": 0.0, "smoothing": 0.0}  # fmt: skip
            log = arguments.outputs / "fastai.log"
            with peer_worker(arguments.peers, "fastai", settings, log) as worker:
                said = [
                    worker.ask("epochs", epochs=5, lr=3e-3, seed=seed)
                    for seed in range(arguments.peer_seeds)
                ]
            peers = [{"seconds": one["seconds"], "accuracy": one["accuracy"][-1]} for one in said]
            results.append(_entry(worker.name, peers))
    rows = tuple(
        (
            entry["contestant"],
            f"{entry['n']}",
            f"{100 * entry['accuracy']:.2f}"
            + (f" ± {100 * entry['deviation']:.2f}" if entry["n"] > 1 else ""),
            str(Spread(tuple(entry["seconds"]))),
        )
        for entry in results
    )
    columns = ("contestant", "n", "accuracy, %", "seconds")
    table = Table("time to accuracy", columns, rows, ("contestant",))
    report("time_to_accuracy", table, {"words": arguments.words, "results": results},
           arguments.json)  # fmt: skip


def _run(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a whole command; return its seconds and accuracy."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    command = [sys.executable, "-m", "runner.train", *words, f"run_dir='{place}'"]
    with Stopwatch() as watch:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    metrics = json.loads((place / "result.json").read_text())["metrics"]
    return {"seconds": watch.seconds, "accuracy": metrics["plain"]["accuracy"]}


def _entry(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["accuracy"] for run in runs]
    return {
        "contestant": name,
        "n": len(runs),
        "accuracy": fmean(accuracies),
        "deviation": stdev(accuracies) if len(runs) > 1 else 0.0,
        "accuracies": accuracies,
        "seconds": [run["seconds"] for run in runs],
    }


if __name__ == "__main__":
    main()
