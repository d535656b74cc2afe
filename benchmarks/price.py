"""The price of tricks: time per training step and peak memory, relative to the baseline.

    python -m benchmarks.price NAME… --json FILE [--words WORDS…]

Each NAME is one of ``+trick=NAME``. The baseline is that of the embedded data, with ``--words``.
The trainings take turns, and the ratio is that of each round. Memory is measured in processes of
their own, one at a time, as in ``benchmarks.memory``.
"""

import os
import shlex
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import own_worker, parser, ratio, report, throughput
from benchmarks.memory import Memory
from runner.terminal.tables import Table

BATCH_SIZE = 64
BASELINE = "baseline"


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("price", "Time per step and memory of tricks, relative to the baseline.")
    options.add_argument("names", nargs="+", metavar="NAME", help="as in +trick=NAME")
    options.add_argument("--repeats", type=int, default=7, help="measured rounds")
    options.add_argument("--images", type=int, default=1280, help="images of a turn")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    asked: dict[str, tuple[dict[str, Any], Any]] = {}
    for name in dict.fromkeys((BASELINE, *arguments.names)):
        words = [f"+trick={name}", f"data.batch_size={BATCH_SIZE}", f"outputs='{outputs}'"]
        asked[name] = ({"words": [*words, *arguments.words]}, outputs / f"{name}.log")
    peaks = {}
    for name, (settings, log) in asked.items():
        with Memory(os.getpid()) as memory, own_worker(settings, log) as worker:
            worker.ask("train", steps=3)
        peaks[name] = memory.peak
    with ExitStack() as stack:
        workers = {name: stack.enter_context(own_worker(*each)) for name, each in asked.items()}
        rates = throughput(workers, arguments.images, BATCH_SIZE, arguments.repeats)
    rows, results = [], []
    for name, rate in rates.items():
        times = ratio(rates[BASELINE], rate)
        rows.append((name, str(rate), str(times), f"{peaks[name] / 1e9:.2f}"))
        results.append(
            {
                "name": name,
                "images_per_second": rate.to_dict(),
                "times_the_baseline": times.to_dict(),
                "peak_bytes": peaks[name],
            }
        )
    table = Table(
        "price, median [min, max] of the rounds",
        ("trick", "images/s", "time ×", "peak memory, GB"),
        tuple(rows),
        ("trick",),
    )
    command = shlex.join(["python", "-m", "benchmarks.price", *sys.argv[1:]])
    report("price", table, {"command": command, "results": results}, arguments.json)


if __name__ == "__main__":
    main()
