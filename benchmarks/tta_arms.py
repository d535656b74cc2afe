"""A comparison of TTA arms: seconds, by this version and by another checkout in turns.

    python -m benchmarks.tta_arms --before CHECKOUT --json FILE [--words KEY=VALUE …]

Each round runs one comparison by each version, into an empty folder; the data is decoded before.
The numbers of the evaluations must be equal to the bit, or the benchmark ends with an error. Rounds
are added to those that FILE has of the same comparison, so a long measurement can have pieces.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Spread, Stopwatch, parser, ratio, report
from runner.terminal.tables import Table

_HERE = Path(__file__).parent.parent


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("tta_arms", "A comparison of TTA arms, by two versions in turns.")
    options.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--arms", nargs="+", default=["tta=flip", "tta=book", "tta=ten_crop"])
    options.add_argument("--words", nargs="*", default=["budget.epochs=1"], help="of every run")
    arguments = options.parse_args()
    versions = {"before": arguments.before.absolute(), "now": _HERE}
    folder = arguments.outputs.absolute() / "tta_arms"
    command = [sys.executable, "-m", "runner.compare", f"outputs={folder}", *arguments.words]
    command += ["--seeds", str(arguments.seeds)]
    for arm in arguments.arms:
        command += ["--try", arm]

    def compare(version: str) -> tuple[float, dict[str, bytes]]:
        """Run the comparison anew; return its seconds, and the numbers of its evaluations."""
        for path in folder.glob("*"):
            if path.name != "cache":
                shutil.rmtree(path)
        environment = {**os.environ, "PYTHONPATH": str(versions[version])}
        with Stopwatch() as watch:
            subprocess.run(  # noqa: S603
                command, check=True, capture_output=True, env=environment, cwd=versions[version]
            )
        found = folder.glob("*/evaluations/*.npz")
        return watch.seconds, {str(path.relative_to(folder)): path.read_bytes() for path in found}

    what = [arguments.words, arguments.seeds, arguments.arms]
    taken: dict[str, list[float]] = {version: [] for version in versions}
    if arguments.json is not None and arguments.json.exists():
        found = json.loads(arguments.json.read_text())
        if found["what"] == what:
            taken = {version: found[version]["values"] for version in versions}
    if not (folder / "cache").exists():
        compare("before")  # the data is decoded
    for _ in range(arguments.repeats):
        expected: dict[str, bytes] = {}
        for version, seconds in taken.items():
            measured, numbers = compare(version)
            seconds.append(measured)
            expected = expected or numbers
            if numbers != expected or len(numbers) != arguments.seeds * len(arguments.arms):
                sys.exit(f"{version}: evaluations are not equal to the bit")
        _report(what, taken, arguments.json)


def _report(what: list[Any], taken: Mapping[str, Sequence[float]], target: Path | None) -> None:
    """Print the rounds so far, and write them to ``target``."""
    words, num_seeds, arms = what
    spreads = {version: Spread(tuple(seconds)) for version, seconds in taken.items()}
    part = ratio(spreads["now"], spreads["before"])
    table = Table(
        f"{num_seeds} seeds, {len(arms)} TTA arms ({' '.join(words)}), "
        f"{len(taken['now'])} rounds, median [min, max]",
        ("version", "seconds", "ratio"),
        (("before", str(spreads["before"]), ""), ("now", str(spreads["now"]), str(part))),
        ("version",),
    )
    results = {version: spread.to_dict() for version, spread in spreads.items()}
    report("tta_arms", table, {"what": what, **results, "ratio": part.to_dict()}, target)


if __name__ == "__main__":
    main()
