"""How long commands take to answer, and to make the first step of training.

    python -m benchmarks.startup --json FILE

Times whole processes on the embedded data, with Python's compiled files and the image cache in
place. ``first step`` ends after the first update of the weights.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Spread, Stopwatch, parser, report
from runner.terminal.tables import Table


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("startup", "Seconds until commands answer or train.")
    options.add_argument("--repeats", type=int, default=7)
    arguments = options.parse_args()
    python = [sys.executable, "-m"]
    outputs = f"outputs={arguments.outputs.absolute()}/startup"
    run = [*python, "runner.train", outputs, "budget=smoke"]
    subprocess.run(run, check=True, capture_output=True)  # noqa: S603  our own command
    (trained,) = map(str, Path(outputs.partition("=")[2]).glob("fashion-*"))
    commands = {
        "--help": [*python, "runner.train", "--help"],
        "--cfg job": [*python, "runner.train", "+trick=mixup", "--cfg", "job"],
        "a typing error": [*python, "runner.train", "+trick=mixpu"],
        "a finished run": run,
        "report": [*python, "runner.report", outputs.partition("=")[2]],
        "show": [*python, "runner.show", outputs.partition("=")[2]],
        "predict --help": [*python, "runner.predict", "--help"],
        "predict": [*python, "runner.predict", trained, *_images(arguments.outputs / "startup")],
        "first step": [*python, "benchmarks.first_step", f"{outputs}/first", "force=true"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(1 + arguments.repeats):
        for name, command in commands.items():
            taken = _seconds(command)
            if turn > 0:
                seconds[name].append(taken)
    found = {name: Spread(tuple(values)) for name, values in seconds.items()}
    rows = tuple((name, str(spread)) for name, spread in found.items())
    table = Table("seconds, median [min, max]", ("command", "seconds"), rows, ("command",))
    results = [{"command": name, "seconds": spread.to_dict()} for name, spread in found.items()]
    report("startup", table, {"results": results}, arguments.json)


def _images(folder: Path) -> list[str]:
    """Write three images of noise, and return their paths."""
    paths = [folder / f"{number}.png" for number in range(3)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


def _seconds(command: Sequence[str]) -> float:
    with Stopwatch() as watch:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, 2):
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return watch.seconds


if __name__ == "__main__":
    main()
