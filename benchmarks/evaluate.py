"""Validation compared with the forward-only limit, and test time augmentation with fastai's.

    python -m benchmarks.evaluate --data FOLDER_OR_ARCHIVE [--peers FOLDER] --json FILE

The data is Imagenette-160's 3,925 validation images from a warm cache; the network is xresnet18 at
64 px. The limit is as many forward passes of one fixed random batch. ``without kept`` resizes
the images in each evaluation; trick-runner keeps the resized squares. ``tta=book`` is fastai's
``learn.tta()``: four augmented passes and a plain pass.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Spread,
    Worker,
    add_data_option,
    own_worker,
    parser,
    peer_worker,
    ratio,
    report,
    unpacked,
)
from benchmarks.throughput import words
from runner.terminal.tables import Table


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("evaluate", "Validation compared with the limit, TTA with fastai's.")
    add_data_option(options)
    options.add_argument("--peers", type=Path, metavar="FOLDER", help="environments of the peers")
    options.add_argument("--size", type=int, default=64, metavar="PX")
    options.add_argument("--validate-only", action="store_true", help="leave out tta=book")
    options.add_argument("--repeats", type=int, default=5, help="measured rounds")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    seconds: dict[tuple[str, str], list[float]] = {}
    with unpacked(arguments.data) as data, ExitStack() as stack:
        workers: dict[str, Worker] = {}
        own_words = words(data, arguments.size, outputs, "tta=book")
        roles = {"trick-runner": "run", "without kept": "run without kept", "limit": "limit"}
        for name, role in roles.items():
            settings: dict[str, Any] = {"words": own_words, "role": role}
            log = outputs / f"{name}.log"
            workers[name] = stack.enter_context(own_worker(settings, log))
        if arguments.peers:
            settings = {"data": str(data), "size": arguments.size, "batch_size": 64, "threads": 2}
            log = outputs / "fastai.log"
            workers["fastai"] = stack.enter_context(
                peer_worker(arguments.peers, "fastai", settings, log)
            )
        both = ("validate",) if arguments.validate_only else ("validate", "tta")
        for turn in range(1 + arguments.repeats):
            for name, worker in workers.items():
                for what in both if name != "limit" else ("validate",):
                    said = worker.ask(what)
                    if turn > 0:  # the first turn is the warm-up
                        seconds.setdefault((what, name), []).append(said["seconds"])
    found = {key: Spread(tuple(values)) for key, values in seconds.items()}
    rows, results = [], []
    for (what, name), spread in found.items():
        # Speed relative to the limit, and time as a multiple of trick-runner's.
        to_limit = ratio(found["validate", "limit"], spread) if what == "validate" else None
        times = ratio(spread, found[what, "trick-runner"])
        rows.append((what, name, str(spread), str(to_limit or ""), str(times)))
        results.append(
            {
                "what": what,
                "contestant": name,
                "seconds": spread.to_dict(),
                "ratio_to_limit": to_limit.median if to_limit else None,
                "times_trick_runner": times.median,
                "times_trick_runner_rounds": times.to_dict(),
            }
        )
    columns = ("what", "contestant", "seconds", "ratio to limit", "times ours")
    table = Table("evaluation, median [min, max]", columns, tuple(rows), ("what", "contestant"))
    report("evaluate", table, {"size": arguments.size, "results": results}, arguments.json)


if __name__ == "__main__":
    main()
