"""Peak memory of a training, and how throughput and memory grow with the number of images.

    python -m benchmarks.memory --data FOLDER_OR_ARCHIVE --json FILE [--images 1000 10000 100000]

The data is a folder with the requested number of hard links to the training images of the archive,
read once from the decoded cache and once streamed from the files. Memory is that of the process and
of the processes that it starts, without the pages of files, which the system takes back when it
needs them (Linux's Pss_Anon and Pss_Shmem). Shared memory counts once. It is sampled ten times a
second from the start. The first start fills the cache, unless an earlier command with the same
``--outputs`` has filled it.
"""

import itertools
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch, add_data_option, own_worker, parser, report, unpacked
from runner.terminal.tables import Table


class Memory:
    """Measures the peak memory of the descendants of process ``parent`` while the block runs.

    Attributes:
        peak: the largest memory so far, bytes.
    """

    def __init__(self, parent: int) -> None:
        self.peak = 0
        self._parent = parent
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.1):
            self.peak = max(self.peak, sum(map(_anonymous, _descendants(self._parent))))


def _descendants(parent: int) -> list[int]:
    found, left = [], [parent]
    while left:
        number = left.pop()
        try:
            below = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        except OSError:
            continue
        found += list(map(int, below))
        left += list(map(int, below))
    return found


def _anonymous(number: int) -> int:
    try:
        status = Path(f"/proc/{number}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", status, re.MULTILINE)))


def linked(source: Path, target: Path, count: int) -> Path:
    """Make a data set of ``count`` training images: hard links to ``source``'s, over and over."""
    folder = target / str(count)
    if folder.exists():
        return folder
    images = sorted(path for path in (source / "train").rglob("*") if path.is_file())
    random.Random(0).shuffle(images)  # noqa: S311  so that a few images include all classes
    for number, image in zip(range(count), itertools.cycle(images), strict=False):
        place = folder / "train" / image.parent.name
        place.mkdir(parents=True, exist_ok=True)
        os.link(image, place / f"{number}{image.suffix}")
    for image in sorted(path for path in (source / "val").rglob("*") if path.is_file())[::8]:
        place = folder / "val" / image.parent.name
        place.mkdir(parents=True, exist_ok=True)
        os.link(image, place / image.name)
    return folder


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("memory", "Memory and throughput by the number of images.")
    add_data_option(options)
    options.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    options.add_argument("--steps", type=int, default=60, help="steps of each measurement")
    arguments = options.parse_args()
    with unpacked(arguments.data) as data:
        results = by_images(data, arguments.images, arguments.steps, arguments.outputs.absolute())
    rows = tuple(
        (
            f"{one['images']:,}",
            one["kind"],
            f"{one['peak_bytes'] / 1e9:.2f}",
            f"{one['first_start_seconds']:.1f}",
            f"{one['start_seconds']:.1f}",
            f"{one['images_per_second']:.0f}",
        )
        for one in results
    )
    columns = ("images", "kind", "peak memory, GB", "first start, s", "start, s", "images/s")
    table = Table("memory and throughput by data", columns, rows, ("kind",))
    report("memory", table, {"results": results}, arguments.json)


def by_images(data: Path, counts: Sequence[int], steps: int, outputs: Path) -> list[dict[str, Any]]:
    """Measure each number of images, cached and streamed, at 64 px; return an entry for each."""
    found = []
    for count, kind in itertools.product(counts, ("cached", "streamed")):
        folder = linked(data, data.parent / "linked", count)
        words = [
            "data=folder", f"data.root='{folder}'", "resize.size=64", "+trick=[mixup]",
            f"outputs='{outputs}'", f"data.cache_gb={1000 if kind == 'cached' else 0}",
        ]  # fmt: skip
        result = measured(words, steps, outputs / "memory.log")
        found.append({"images": count, "kind": kind, **result})
    return found


def measured(words: list[str], steps: int, log: Path) -> dict[str, Any]:
    """Measure peak memory, seconds of the first and of a second start, and images per second."""
    settings = {"words": words, "role": "run"}
    with Stopwatch() as first, own_worker(settings, log):
        pass  # fills the cache
    begun = time.perf_counter()
    with Memory(os.getpid()) as memory, own_worker(settings, log) as worker:
        start = time.perf_counter() - begun
        worker.ask("train", steps=3)
        said = worker.ask("train", steps=steps)
        worker.ask("validate")
    return {
        "peak_bytes": memory.peak,
        "first_start_seconds": first.seconds,
        "start_seconds": start,
        "images_per_second": said["images"] / said["seconds"],
    }


if __name__ == "__main__":
    main()
