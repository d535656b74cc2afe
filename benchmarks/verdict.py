"""Trainings and seconds until every verdict: in rounds, with five seeds, and with ten.

    python -m benchmarks.verdict --json FILE [--words KEY=VALUE …]

``python -m runner.compare`` starts from nothing, and its wall-clock time is measured. The designs
with a fixed number of seeds then judge the same runs and train those that are missing, so all
designs have the same luck. A design's seconds are those of its trainings and evaluations, each of
which ran once, without the start of a job.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch, parser, report
from runner.records.comparison_folder import FOLDER, ComparisonFolder
from runner.terminal.tables import Table

_DESIGNS = {
    "rounds": [],
    "five": ["--seeds", "5", "--name", "five"],
    "ten": ["--seeds", "10", "--name", "ten"],
}


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("verdict", "Trainings and seconds until every verdict.")
    options.add_argument("--words", nargs="*", default=[], help="words of every run")
    options.add_argument(
        "--keep",
        action="store_true",
        help="go on with the runs of a benchmark that was interrupted",
    )
    arguments = options.parse_args()
    folder = arguments.outputs.absolute() / "verdict"
    if not arguments.keep:
        _forget_runs(folder)
    results = []
    for name, words in _DESIGNS.items():
        command = [sys.executable, "-m", "runner.compare", *arguments.words, f"outputs={folder}"]
        with Stopwatch() as watch:
            said = _answer([*command, *words])
        results.append({"design": name, "wall_seconds": watch.seconds, **_cost(folder, said)})
    labels = [arm["label"] for arm in results[0]["arms"]]
    rows = [
        ("trainings", *(f"{found['trainings']}" for found in results)),
        ("evaluations with TTA", *(f"{found['evaluations']}" for found in results)),
        ("minutes of both", *(f"{found['seconds'] / 60:.1f}" for found in results)),
        ("arms decided", *(f"{_num_decided(found)} of {len(labels)}" for found in results)),
        *((label, *(_said(found, label) for found in results)) for label in labels),
    ]
    columns = ("", "compare", "five seeds", "ten seeds")
    table = Table("until every verdict", columns, tuple(rows), columns)
    report("verdict", table, {"words": arguments.words, "results": results}, arguments.json)


def _answer(command: Sequence[str]) -> dict[str, Any]:
    """Run a comparison to its end; the answer that it prints."""
    done = subprocess.run(  # noqa: S603
        [*command, "--json", "-"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _cost(folder: Path, answer: dict[str, Any]) -> dict[str, Any]:
    """The trainings and evaluations of a comparison, each counted once, and their seconds."""
    comparison = ComparisonFolder(folder / FOLDER / answer["plan"]["name"])
    pairs = [pair for runs in comparison.runs().values() for pair in runs.values() if pair.run]
    trained = {str(pair.run) for pair in pairs}
    evaluated = {(str(pair.run), pair.evaluation) for pair in pairs if pair.evaluation}
    seconds = [
        json.loads((folder / run / "result.json").read_text())["budget"]["seconds"]
        for run in trained
    ] + [
        json.loads((folder / run / "evaluations" / f"{name}.json").read_text())["seconds"]
        for run, name in evaluated
    ]
    return {
        "trainings": len(trained),
        "evaluations": len(evaluated),
        "seconds": sum(seconds),
        "arms": answer["arms"],
    }


def _num_decided(found: dict[str, Any]) -> int:
    return sum(arm["verdict"] != "cannot tell" for arm in found["arms"])


def _said(found: dict[str, Any], label: str) -> str:
    """Return the verdict on an arm, its difference in points, and the number of seeds."""
    arm = next(one for one in found["arms"] if one["label"] == label)
    if arm["difference"] is None:
        return f"{arm['verdict']} (no pair)"
    return f"{arm['verdict']} ({100 * arm['difference']:+.2f}, n = {len(arm['seeds'])})"


def _forget_runs(folder: Path) -> None:
    """Remove everything but the cache, which stays warm."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != "cache":
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
