"""Images per second by the rounds that a waiting thread turns before it sleeps.

    python -m benchmarks.spinning [--spins N …] [--repeats N] [--seconds S] [--words WORDS…]

The threads of a training wait for each other many times a step. A thread that turns rounds
meanwhile is quick to continue, and takes the core from whatever else could run there. So each value
of ``GOMP_SPINCOUNT`` is measured alone, alongside a program that keeps one core busy, and with two
trainings at the same time that have all cores each. The values take turns.
``runner/machine/system.py`` has the one that is used.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import Spread, Worker, parser, ratio, report
from runner.terminal.tables import Table

SPINS = ["300000", "10000", "5000", "2000"]
"""The first one is what the library does by itself."""
PLACES = ("alone", "with a busy program", "two at a time")


def rate(workers: Sequence[Worker], steps: int) -> float:
    """Return the images per second of all ``workers`` together, which train at the same time."""
    with ThreadPoolExecutor(len(workers)) as pool:
        answers = list(pool.map(lambda worker: worker.ask("train", steps=steps), workers))
    return sum(float(answer["images"] / answer["seconds"]) for answer in answers)


@contextmanager
def busy() -> Iterator[None]:
    """A program that keeps one core busy."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def measured(
    spins: Sequence[str], words: Sequence[str], seconds: float, repeats: int, log: Path
) -> dict[str, dict[str, Spread]]:
    """Train with each value in turns; images per second by value and place.

    Args:
        spins: values of GOMP_SPINCOUNT.
        words: words of runner.train.
        seconds: length of a turn that is alone, approximately.
        repeats: number of measured rounds, 1 or more.
        log: file for what the trainings print.
    """
    found: dict[str, dict[str, list[float]]] = {
        value: {place: [] for place in PLACES} for value in spins
    }

    def started(value: str) -> Worker:
        command = [sys.executable, "-m", "benchmarks.own_worker"]
        variables = {**os.environ, "GOMP_SPINCOUNT": value}
        return Worker(command, {"words": list(words)}, log, variables)

    with ExitStack() as stack:
        pairs = {value: [stack.enter_context(started(value)) for _ in range(2)] for value in spins}
        for pair in pairs.values():
            for worker in pair:
                took = [worker.ask("train", steps=4)["seconds"] for _ in range(2)]
        steps = max(1, round(4 * seconds / took[-1]))
        for _ in range(repeats):
            for value, pair in pairs.items():
                rates = found[value]
                rates["alone"].append(rate(pair[:1], steps))
                with busy():
                    rates["with a busy program"].append(rate(pair[:1], steps))
                rates["two at a time"].append(rate(pair, steps))
    return {
        value: {place: Spread(tuple(rates)) for place, rates in places.items()}
        for value, places in found.items()
    }


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("spinning", "Images per second by the rounds of a waiting thread.")
    options.add_argument("--spins", nargs="+", default=SPINS, metavar="N")
    options.add_argument("--repeats", type=int, default=5, help="measured rounds")
    options.add_argument("--seconds", type=float, default=4.0, help="of a turn alone, about")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    words = [f"outputs='{outputs}'", *arguments.words]
    found = measured(
        arguments.spins, words, arguments.seconds, arguments.repeats, outputs / "spinning.log"
    )
    base = found[arguments.spins[0]]
    rows = [
        (
            value,
            *(f"{places[place]}" for place in PLACES),
            *(f"{ratio(places[place], base[place]).median:.2f}" for place in PLACES),
        )
        for value, places in found.items()
    ]
    heads = ("rounds", *PLACES, *(f"× {place}" for place in PLACES))
    content = {
        "results": {
            value: {place: rates.to_dict() for place, rates in places.items()}
            for value, places in found.items()
        }
    }
    title = "training, images/s, median [min, max]; × the first line"
    report("spinning", Table(title, heads, tuple(rows), ("rounds",)), content, arguments.json)


if __name__ == "__main__":
    main()
