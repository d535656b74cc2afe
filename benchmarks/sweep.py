"""A sweep of twelve jobs compared with twelve runs in turn.

    python -m benchmarks.sweep --json FILE [--words KEY=VALUE …]

Trains twelve seeds for one epoch each on the embedded data. Every single run starts Python, imports
torch and opens the data; a sweep does so once. ``between jobs`` is the time per job that does not
go into training and evaluation, the start of the command included; ``a further job`` is that time
for the jobs of the plain sweep after the first, from one ``result.json`` to the next.
"""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Spread, Stopwatch, parser, ratio, report
from runner.terminal.tables import Table

_WAYS = {
    "a sweep": [],
    "joblib": ["hydra/launcher=joblib"],
}


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("sweep", "A sweep compared with its runs in turn.")
    options.add_argument("--jobs", type=int, default=12)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--words", nargs="*", default=["budget=smoke"], help="words of every run")
    options.add_argument("--ways", nargs="*", default=list(_WAYS), choices=list(_WAYS))
    arguments = options.parse_args()
    folder = arguments.outputs.absolute() / "sweep"
    train, words = [sys.executable, "-m", "runner.train"], [f"outputs={folder}", *arguments.words]
    subprocess.run([*train, *words, "seed=99"], check=True, capture_output=True)  # noqa: S603  warm-up
    taken: dict[str, list[float]] = {}
    between: dict[str, list[float]] = {}
    further: list[float] = []
    for _ in range(arguments.repeats):
        _forget_runs(folder)
        with Stopwatch() as watch:
            for seed in range(arguments.jobs):
                command = [*train, *words, f"seed={seed}"]
                subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        _add("runs in turn", watch.seconds, folder, taken, between)
        for way in arguments.ways:
            _forget_runs(folder)
            command = [*train, "-m", *words, f"seed=range({arguments.jobs})", *_WAYS[way]]
            with Stopwatch() as watch:
                subprocess.run(command, check=True, capture_output=True)  # noqa: S603
            _add(way, watch.seconds, folder, taken, between)
            if not _WAYS[way]:
                further.append(_further(folder))
    rows, results = [], []
    for way, values in taken.items():
        spread, besides = Spread(tuple(values)), Spread(tuple(between[way]))
        part = ratio(spread, Spread(tuple(taken["runs in turn"])))
        rows.append((way, str(spread), str(part), str(besides)))
        results.append(
            {
                "way": way,
                "seconds": spread.to_dict(),
                "ratio_to_runs_in_turn": part.to_dict(),
                "between_jobs": besides.to_dict(),
            }
        )
    table = Table(
        f"{arguments.jobs} jobs ({' '.join(arguments.words)}), median [min, max]",
        ("way", "seconds", "ratio to runs in turn", "between jobs, s"),
        tuple(rows),
        ("way",),
    )
    content: dict[str, Any] = {"jobs": arguments.jobs, "results": results}
    if further:
        content["further_job"] = Spread(tuple(further)).to_dict()
        print(f"a further job of a sweep: {Spread(tuple(further))} s besides its training")
    report("sweep", table, content, arguments.json)


def _add(
    way: str,
    seconds: float,
    folder: Path,
    taken: dict[str, list[float]],
    between: dict[str, list[float]],
) -> None:
    spent = [
        json.loads(path.read_text())["budget"]["seconds"] for path in folder.glob("*/result.json")
    ]
    taken.setdefault(way, []).append(seconds)
    between.setdefault(way, []).append((seconds - sum(spent)) / len(spent))


def _further(folder: Path) -> float:
    """Return the median time from one result to the next, without training and evaluation."""
    ends: list[tuple[float, float]] = sorted(
        (path.stat().st_mtime, json.loads(path.read_text())["budget"]["seconds"])
        for path in folder.glob("*/result.json")
    )
    return median(
        end - before - seconds for (before, _), (end, seconds) in itertools.pairwise(ends)
    )


def _forget_runs(folder: Path) -> None:
    """Remove everything but the cache, which stays warm."""
    for path in folder.iterdir():
        if path.name != "cache":
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
