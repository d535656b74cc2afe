"""How cost grows with the number of images, their size, the depth of the network, and the jobs.

    python -m benchmarks.growth --data FOLDER --json FILE --figure FILE.svg

Measures throughput and peak memory of training, as ``benchmarks.memory`` does: from the decoded
cache, streamed from the files, from a table whose images are of groups and divided into folds, and
with all augmentations. For sweeps, it measures the seconds that a job after the first takes, and
the peak memory of the process that runs the jobs; for splits, their seconds and memory; for each
augmentation, the price of a step.

Each measurement is written to FILE when it is made, and the same command makes those that are
missing. ``--seconds`` begins none after that time, and ``--prepare`` only makes the data sets and
decodes them, so that the measurements can be made in short pieces. For pieces, ``--data`` is a
folder: an archive is unpacked anew each time.
"""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import add_data_option, parser, report, unpacked
from benchmarks.memory import Memory, linked, measured
from benchmarks.price import BASELINE, prices
from runner.data.folds import stratified_folds
from runner.data.listing import stratified_split
from runner.machine.files import write_output
from runner.terminal.tables import Table

Entry = dict[str, Any]
Entries = list[Entry]
NUM_FOLDS = 5
GROUP_SIZE = 3
AUGMENTATIONS = ("trivial_augment", "rand_augment", "random_erasing", "balanced_sampling")
KINDS = ("cached", "streamed", "table, groups, folds", "all augmentations")


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("growth", "How throughput and memory grow.")
    add_data_option(options)
    options.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 160, 224])
    options.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50])
    options.add_argument("--jobs", type=int, nargs="+", default=[10, 30, 100])
    options.add_argument(
        "--splits", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000],
        help="numbers of images that are split",
    )  # fmt: skip
    options.add_argument("--steps", type=int, default=20, help="steps of each measurement")
    options.add_argument("--repeats", type=int, default=7, help="rounds of the augmentations")
    options.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no measurement after this time"
    )
    options.add_argument("--prepare", action="store_true", help="make and decode the data alone")
    options.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves as SVG")
    arguments = options.parse_args()
    outputs = arguments.outputs.absolute()
    until = time.monotonic() + arguments.seconds
    found = _measured_before(arguments.json)
    is_whole = True
    with unpacked(arguments.data) as data:
        place = data.parent / "linked"
        if arguments.prepare:
            for number in arguments.images:
                for kind in KINDS:
                    measured(
                        words_of(data, place, number, kind, outputs), 1, outputs / "growth.log"
                    )
            return
        words = ["+recipe=small", "+trick=[mixup]", f"data.root='{data}'", f"outputs='{outputs}'"]
        log, steps = outputs / "growth.log", arguments.steps
        todo: list[tuple[str, Entry, Callable[[Entry], Entry]]] = []
        todo += [
            ("split", {"split": number, "kind": kind}, split)
            for number in arguments.splits
            for kind in SPLITS
        ]
        todo += [
            ("images", {"images": number, "kind": kind},
             lambda what: measured(
                 words_of(data, place, what["images"], what["kind"], outputs), steps, log
             ))
            for number in arguments.images
            for kind in KINDS
        ]  # fmt: skip
        todo.append(
            ("augmentations", {"augmentations": len(AUGMENTATIONS)},
             lambda what: augmentations(data, outputs, arguments.repeats))
        )  # fmt: skip
        todo += [
            ("size", {"size": size},
             lambda what: measured([*words, f"resize.size={what['size']}"], steps, log))
            for size in arguments.sizes
        ]  # fmt: skip
        todo += [
            ("depth", {"depth": depth},
             lambda what: measured([*words, f"model=xresnet{what['depth']}"], steps, log))
            for depth in arguments.depths
        ]  # fmt: skip
        todo += [
            ("jobs", {"jobs": number},
             lambda what: sweep(linked(data, place, 640), what["jobs"], outputs))
            for number in arguments.jobs
        ]  # fmt: skip
        for name, what, measure in todo:
            if any(what.items() <= entry.items() for entry in found.setdefault(name, [])):
                continue
            if not (is_whole := time.monotonic() < until):
                break
            found[name].append({**what, **measure(what)})
            if arguments.json is not None:
                write_output(arguments.json, json.dumps({"results": found}).encode())
    if not is_whole:
        print("not all is measured yet: run the same command again", file=sys.stderr)
        return
    if arguments.figure:
        draw(found, arguments.figure)
    report("growth", _table(found), {"results": found}, arguments.json)


def _measured_before(path: Path | None) -> dict[str, Entries]:
    if path is None or not path.exists():
        return {}
    found: dict[str, Entries] = json.loads(path.read_text())["results"]
    return found


def _table(found: dict[str, Entries]) -> Table:
    columns = ("what grows", "to", "images/s", "seconds", "peak memory, GB")
    rows = []
    for what, entries in found.items():
        for entry in entries:
            if what == "augmentations":
                rows += [
                    (f"price of {name}", "", "", f"{one['times_the_baseline']['median']:.3f} ×",
                     f"{one['peak_bytes'] / 1e9:.2f}")
                    for name, one in entry["prices"].items()
                ]  # fmt: skip
                continue
            seconds = entry.get("seconds_per_job", entry.get("seconds", entry.get("start_seconds")))
            rate = entry.get("images_per_second")
            kind = f" {entry['kind']}" if "kind" in entry else ""
            rows.append(
                (what, f"{entry[what]:,}{kind}", "" if rate is None else f"{rate:,.0f}",
                 f"{seconds:.3g}", f"{entry['peak_bytes'] / 1e9:.2f}")
            )  # fmt: skip
    return Table("growth", columns, tuple(rows), ("what grows",))


def words_of(data: Path, place: Path, number: int, kind: str, outputs: Path) -> list[str]:
    """Return the words of a training at 64 px on ``number`` images below ``place``."""
    folder = linked(data, place, number)
    tricks = ["mixup"] + (list(AUGMENTATIONS[1:]) if kind == "all augmentations" else [])
    words = [
        "resize.size=64", f"+trick=[{','.join(tricks)}]", f"outputs='{outputs}'",
        f"data.cache_gb={0 if kind == 'streamed' else 1000}",
    ]  # fmt: skip
    if kind != "table, groups, folds":
        return ["data=folder", f"data.root='{folder}'", *words]
    table = grouped_table(folder)
    folds = [f"data.num_folds={NUM_FOLDS}", "data.fold=0"]
    return ["data=table", f"data.root='{table}'", "data.group_column=group", *folds, *words]


def grouped_table(folder: Path) -> Path:
    """Write a table of the training images of ``folder``, in groups of three of one class."""
    target = folder / "groups.csv"
    with target.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "group"))
        for number, path in enumerate(sorted((folder / "train").rglob("*.*"))):
            label = path.parent.name
            rows.writerow((path.relative_to(folder), label, f"{label}-{number // GROUP_SIZE}"))
    return target


SPLITS: dict[str, Callable[[Any, Any], Any]] = {
    "drawn": lambda labels, groups: stratified_split(labels, 0.2, 0),
    "drawn, groups": lambda labels, groups: stratified_split(labels, 0.2, 0, groups),
    "folds": lambda labels, groups: stratified_folds(labels, NUM_FOLDS, 0),
    "folds, groups": lambda labels, groups: stratified_folds(labels, NUM_FOLDS, 0, groups),
}
"""Draws a split of images of 1,000 classes, in groups of three of any classes."""


def split(what: Entry) -> Entry:
    """Measure the seconds of a split, and then in a second one its memory."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 1000, what["split"])
    groups = draws.permutation(np.arange(what["split"]) // GROUP_SIZE)
    work = SPLITS[what["kind"]]
    started = time.perf_counter()
    work(labels, groups)
    seconds = time.perf_counter() - started
    tracemalloc.start()  # which slows Python down
    work(labels, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"seconds": seconds, "peak_bytes": peak}


def augmentations(data: Path, outputs: Path, repeats: int) -> Entry:
    """Measure the price of each augmentation: seconds of a step in turns with the baseline."""
    words = ["+recipe=small", f"data.root='{data}'"]
    found = prices(AUGMENTATIONS, words, outputs, images=1280, repeats=repeats)
    return {"prices": {name: one.to_dict() for name, one in found.items() if name != BASELINE}}


def sweep(data: Path, number: int, outputs: Path) -> Entry:
    """Measure a sweep of short jobs: ten steps at 32 px, and an evaluation."""
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
    return {
        "peak_bytes": memory.peak,
        "first_job_seconds": ends[0] - started,  # imports, survey and cache included
        "seconds_per_job": (ends[-1] - ends[0]) / (number - 1),
    }


def draw(found: dict[str, Entries], target: Path) -> None:
    """Write the curves: a column for each quantity that grows, memory below speed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    labels = {"images": "images", "size": "image size, px", "depth": "xresnet depth",
              "jobs": "jobs of a sweep", "split": "images that are split"}  # fmt: skip
    found = {what: found[what] for what in labels if what in found}
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        axes = figure.subplots(2, len(found))
        for column, (what, entries) in enumerate(found.items()):
            speeds = {"jobs": "seconds_per_job", "split": "seconds"}
            speed = speeds.get(what, "images_per_second")
            for kind in dict.fromkeys(entry.get("kind", "") for entry in entries):
                chosen = [entry for entry in entries if entry.get("kind", "") == kind]
                x = [entry[what] for entry in chosen]
                for row, (key, unit) in enumerate(((speed, 1), ("peak_bytes", 1e9))):
                    y = [entry[key] / unit for entry in chosen]
                    axes[row, column].plot(x, y, marker="o", label=kind)
            for row, name in enumerate((speed.replace("_", " "), "peak memory, GB")):
                place = axes[row, column]
                if what != "split":
                    place.set_ylim(bottom=0)
                place.set_ylabel(name)
                place.spines[["top", "right"]].set_visible(False)
                if what in ("images", "jobs", "split"):
                    place.set_xscale("log")
                if what == "split":
                    place.set_yscale("log")
            axes[1, column].set_xlabel(labels[what])
            if any("kind" in entry for entry in entries):
                axes[0, column].legend(frameon=False, fontsize=6)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
