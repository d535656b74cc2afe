"""How cost grows with the number of images, their size, the depth of the network, and the jobs.

    python -m benchmarks.growth --data FOLDER_OR_ARCHIVE --json FILE --figure FILE.svg

Measures throughput and peak memory of training, as ``benchmarks.memory`` does. For sweeps, it
measures the seconds that a job after the first takes, and the peak memory of the process that runs
the jobs.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import add_data_option, parser, report, unpacked
from benchmarks.memory import Memory, by_images, linked, measured
from runner.terminal.tables import Table

Entries = list[dict[str, Any]]


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("growth", "How throughput and memory grow.")
    add_data_option(options)
    options.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 160, 224])
    options.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50])
    options.add_argument("--jobs", type=int, nargs="+", default=[10, 30, 100])
    options.add_argument("--steps", type=int, default=20, help="steps of each measurement")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves as SVG")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    with unpacked(arguments.data) as data:
        words = ["+recipe=small", "+trick=[mixup]", f"data.root='{data}'", f"outputs='{outputs}'"]
        log = outputs / "growth.log"
        found: dict[str, Entries] = {
            "images": by_images(data, arguments.images, arguments.steps, outputs),
            "size": [
                {"size": size, **measured([*words, f"resize.size={size}"], arguments.steps, log)}
                for size in arguments.sizes
            ],
            "depth": [
                {"depth": n, **measured([*words, f"model=xresnet{n}"], arguments.steps, log)}
                for n in arguments.depths
            ],
            "jobs": sweeps(linked(data, data.parent / "linked", 640), arguments.jobs, outputs),
        }
    if arguments.figure:
        draw(found, arguments.figure)
    columns = ("what grows", "to", "images/s", "seconds a job", "peak memory, GB")
    rows = tuple(
        (
            what,
            f"{entry[what]:,}" + (f" {entry['kind']}" if "kind" in entry else ""),
            f"{entry['images_per_second']:,.0f}" if "images_per_second" in entry else "",
            f"{entry['seconds_per_job']:.2f}" if "seconds_per_job" in entry else "",
            f"{entry['peak_bytes'] / 1e9:.2f}",
        )
        for what, entries in found.items()
        for entry in entries
    )
    report("growth", Table("growth", columns, rows, ("what grows",)), found, arguments.json)


def sweeps(data: Path, numbers: Sequence[int], outputs: Path) -> Entries:
    """Measure sweeps of short jobs: ten steps at 32 px, and an evaluation."""
    found = []
    for number in numbers:
        folder = outputs / f"jobs-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        words = ["data=folder", f"data.root='{data}'", "resize.size=32", "budget=smoke",
                 f"outputs='{folder}'"]  # fmt: skip
        command = [sys.executable, "-m", "runner.train", "-m", *words, f"seed=range({number})"]
        started = time.time()
        with Memory(os.getpid()) as memory:
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        results = list(folder.glob("*/result.json"))
        assert len(results) == number
        ends = sorted(path.stat().st_mtime for path in results)
        found.append(
            {
                "jobs": number,
                "peak_bytes": memory.peak,
                "first_job_seconds": ends[0] - started,  # imports, survey and cache included
                "seconds_per_job": (ends[-1] - ends[0]) / (number - 1),
            }
        )
    return found


def draw(found: dict[str, Entries], target: Path) -> None:
    """Write the curves: a column for each quantity that grows, memory below speed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    labels = {"images": "images", "size": "image size, px", "depth": "xresnet depth",
              "jobs": "jobs of a sweep"}  # fmt: skip
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots(2, len(found))
        for column, (what, entries) in enumerate(found.items()):
            speed = "seconds_per_job" if what == "jobs" else "images_per_second"
            for kind in dict.fromkeys(entry.get("kind", "") for entry in entries):
                chosen = [entry for entry in entries if entry.get("kind", "") == kind]
                x = [entry[what] for entry in chosen]
                for row, (key, unit) in enumerate(((speed, 1), ("peak_bytes", 1e9))):
                    y = [entry[key] / unit for entry in chosen]
                    axes[row, column].plot(x, y, marker="o", label=kind)
            for row, name in enumerate((speed.replace("_", " "), "peak memory, GB")):
                place = axes[row, column]
                place.set_ylim(bottom=0)
                place.set_ylabel(name)
                place.spines[["top", "right"]].set_visible(False)
                if what in ("images", "jobs"):
                    place.set_xscale("log")
            axes[1, column].set_xlabel(labels[what])
        axes[0, 0].legend(frameon=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
