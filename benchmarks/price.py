"""The price of tricks: time per training step and peak memory, relative to the baseline.

    python -m benchmarks.price NAME… --json FILE [--words WORDS…]

Each NAME is one of ``+trick=NAME``. The baseline is that of the embedded data, with ``--words``.
The trainings take turns, and the ratio is that of each round. Memory is measured in processes of
their own, one at a time, as in ``benchmarks.memory``.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Spread, own_worker, parser, ratio, report, throughput
from benchmarks.memory import Memory
from runner.terminal.tables import Table

BATCH_SIZE = 64
BASELINE = "baseline"


@dataclass(frozen=True)
class Price:
    """What a trick costs.

    Attributes:
        rate: images per second, by round.
        times: seconds of a step, relative to the baseline, by round.
        peak_bytes: peak memory.
    """

    rate: Spread
    times: Spread
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the values, ready for JSON."""
        return {
            "images_per_second": self.rate.to_dict(),
            "times_the_baseline": self.times.to_dict(),
            "peak_bytes": self.peak_bytes,
        }


def prices(
    names: Sequence[str], words: Sequence[str], outputs: Path, *, images: int, repeats: int
) -> dict[str, Price]:
    """Measure the baseline and tricks in turns.

    Args:
        names: the tricks, each as in ``+trick=NAME``.
        words: further words of every training.
        outputs: folder of logs and caches.
        images: approximate number of images of a turn.
        repeats: number of measured rounds.
    """
    asked: dict[str, tuple[dict[str, Any], Path]] = {}
    for name in dict.fromkeys((BASELINE, *names)):
        own = [f"+trick={name}", f"data.batch_size={BATCH_SIZE}", f"outputs='{outputs}'"]
        asked[name] = ({"words": [*own, *words]}, outputs / f"{name}.log")
    peaks = {}
    for name, (settings, log) in asked.items():
        with Memory(os.getpid()) as memory, own_worker(settings, log) as worker:
            worker.ask("train", steps=3)
        peaks[name] = memory.peak
    with ExitStack() as stack:
        workers = {name: stack.enter_context(own_worker(*each)) for name, each in asked.items()}
        rates = throughput(workers, images, BATCH_SIZE, repeats)
    return {
        name: Price(rate, ratio(rates[BASELINE], rate), peaks[name]) for name, rate in rates.items()
    }


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("price", "Time per step and memory of tricks, relative to the baseline.")
    options.add_argument("names", nargs="+", metavar="NAME", help="as in +trick=NAME")
    options.add_argument("--repeats", type=int, default=7, help="measured rounds")
    options.add_argument("--images", type=int, default=1280, help="images of a turn")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    found = prices(
        arguments.names, arguments.words, arguments.outputs.absolute(),
        images=arguments.images, repeats=arguments.repeats,
    )  # fmt: skip
    rows, results = [], []
    for name, one in found.items():
        rows.append((name, str(one.rate), str(one.times), f"{one.peak_bytes / 1e9:.2f}"))
        results.append({"name": name, **one.to_dict()})
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
