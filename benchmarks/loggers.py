"""The price of a logger: the time of whole trainings with it, relative to those without.

    python -m benchmarks.loggers NAME… [--repeats 5] [--words WORDS…] --json FILE

Each NAME is one of ``logger=NAME``. A round makes one training without a logger and one with each,
in turns, each in a process of its own; the ratio is that of each round. Two times are measured: the
training with its evaluations, as the run records it, and the whole command, which at its end waits
for the logger's table and figures.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Spread, parser, ratio, report
from runner.terminal.tables import Table

NONE = "none"


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("loggers", "The time of trainings with loggers, relative to none.")
    options.add_argument("names", nargs="+", metavar="NAME", help="as in logger=NAME")
    options.add_argument("--repeats", type=int, default=5, help="measured rounds")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    names = list(dict.fromkeys((NONE, *arguments.names)))
    training: dict[str, list[float]] = {name: [] for name in names}
    command: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, arguments.repeats):  # the first round reads data and programs
        # Each begins as often as the others.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            trained, whole = _seconds(name, arguments.words, arguments.outputs.absolute())
            if number >= 0:
                training[name].append(trained)
                command[name].append(whole)
    rows, results = [], []
    for name in names:
        spreads = [Spread(tuple(times[name])) for times in (training, command)]
        times = [
            ratio(spread, Spread(tuple(base[NONE])))
            for spread, base in zip(spreads, (training, command), strict=True)
        ]
        rows.append((name, str(spreads[0]), str(times[0]), str(spreads[1]), str(times[1])))
        results.append(
            {
                "logger": name,
                "training_seconds": spreads[0].to_dict(), "training_times": times[0].to_dict(),
                "command_seconds": spreads[1].to_dict(), "command_times": times[1].to_dict(),
            }
        )  # fmt: skip
    table = Table(
        "price of a logger, median [min, max] of the rounds",
        ("logger", "training, s", "×", "command, s", "× "),
        tuple(rows),
        ("logger",),
    )
    words = shlex.join(["python", "-m", "benchmarks.loggers", *sys.argv[1:]])
    report("loggers", table, {"command": words, "results": results}, arguments.json)


def _seconds(name: str, words: list[str], outputs: Path) -> tuple[float, float]:
    """The seconds of a training with its evaluations, and those of its command."""
    run = outputs / "run"
    shutil.rmtree(run, ignore_errors=True)
    started = time.perf_counter()
    subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "runner.train", f"logger={name}", f"outputs={outputs}",
         f"run_dir={run}", *words],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    whole = time.perf_counter() - started
    return float(json.loads((run / "result.json").read_text())["budget"]["seconds"]), whole


if __name__ == "__main__":
    main()
