"""End-to-end throughput of training, compared with the limit of the machine and with the peers.

    python -m benchmarks.throughput --data FOLDER_OR_ARCHIVE --json FILE [--peers FOLDER]

The work is Imagenette-160 with xresnet18 (the peers' resnet18d is the same network), batch 64,
mixup, label smoothing and standard augmentation, from a warm cache. The limit is the throughput of
the same network in the same precision on one fixed random batch; ``ratio_to_limit`` is the part of
the limit that training reaches. Without peers the benchmark takes about five minutes on two cores.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    Spread,
    Stopwatch,
    Worker,
    add_data_option,
    own_worker,
    parser,
    peer_worker,
    ratio,
    report,
    throughput,
    unpacked,
)
from runner.terminal.tables import Table

BATCH_SIZE = 64
PEERS = {
    "fastai": ("fastai", "default"),
    "timm": ("timm", "default"),
    "timm tuned": ("timm", "tuned"),
    "torchvision": ("torchvision", "default"),
}
"""The worker and the variant of each contestant, by the name of its row."""


def words(data: Path, size: int, outputs: Path, *more: str) -> list[str]:
    """Return the configuration of the common work as words of trick-runner."""
    return [
        "+recipe=small", "+trick=[normalize,mixup,label_smoothing]", f"data.root='{data}'",
        f"resize.size={size}", f"data.batch_size={BATCH_SIZE}", f"outputs='{outputs}'", *more,
    ]  # fmt: skip


def measured(size: int, data: Path, arguments: argparse.Namespace) -> dict[str, Spread]:
    """Measure the images per second of every contestant at one size."""
    outputs = arguments.outputs.absolute()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, role in (("trick-runner", "run"), ("limit", "limit")):
            settings: dict[str, Any] = {
                "words": words(data, size, outputs, *arguments.words),
                "role": role,
            }
            log = outputs / f"{name}.log"
            workers[name] = stack.enter_context(own_worker(settings, log))
        for row, (name, variant) in PEERS.items() if arguments.peers else ():
            settings = {
                "data": str(data), "size": size, "batch_size": BATCH_SIZE, "threads": 2,
                "num_workers": None, "seed": 0, "mixup_alpha": 0.4, "smoothing": 0.1,
                "variant": variant,
            }  # fmt: skip
            log = outputs / f"{row}.log"
            workers[row] = stack.enter_context(peer_worker(arguments.peers, name, settings, log))
        counts = {name: worker.facts["num_parameters"] for name, worker in workers.items()}
        if len(set(counts.values())) > 1:
            raise SystemExit(f"not the same network: {counts}")
        images = max(8 * BATCH_SIZE, arguments.images * 64**2 // size**2)
        return throughput(workers, images, BATCH_SIZE, arguments.repeats)


def matmul_peak(repeats: int = 5) -> dict[str, float]:
    """Billions of multiply-adds per second in large matrix products, as a reference."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.randn(2048, 2048).to(dtype)
        best = float("inf")
        for _ in range(repeats):
            with Stopwatch() as watch:
                one @ one
            best = min(best, watch.seconds)
        found[name] = 2048**3 / best / 1e9
    return found


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("throughput", "Throughput of training, compared with the limit and the peers.")
    add_data_option(options)
    options.add_argument("--peers", type=Path, metavar="FOLDER", help="environments of the peers")
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 128], metavar="PX")
    options.add_argument("--repeats", type=int, default=7, help="measured rounds")
    options.add_argument("--images", type=int, default=2560, help="images of a turn at 64 px")
    options.add_argument("--words", nargs="*", default=[], help="further words of runner.train")
    arguments = options.parse_args()
    peak = matmul_peak()
    rows, results = [], []
    with unpacked(arguments.data) as data:
        for size in arguments.sizes:
            found = measured(size, data, arguments)
            own, limit = found["trick-runner"], found["limit"]
            for name, rate in found.items():
                to_limit, ahead = ratio(rate, limit), ratio(own, rate)
                rows.append((f"{size}", name, str(rate), str(to_limit), str(ahead)))
                results.append(_entry(size, name, rate, to_limit, ahead))
    table = Table(
        "training, median [min, max] of the rounds",
        ("size", "contestant", "images/s", "ratio to limit", "trick-runner ×"),
        tuple(rows),
        ("contestant",),
    )
    own_ratios = {
        str(entry["size"]): entry["ratio_to_limit"]
        for entry in results
        if entry["contestant"] == "trick-runner"
    }
    content = {"ratio_to_limit": own_ratios, "results": results, "matmul_gmacs": peak}
    report("throughput", table, content, arguments.json)


def _entry(size: int, name: str, rate: Spread, to_limit: Spread, ahead: Spread) -> dict[str, Any]:
    return {
        "size": size,
        "contestant": name,
        "ratio_to_limit": to_limit.median,
        "trick_runner_times": ahead.median,
        "images_per_second": rate.to_dict(),
        "ratio_to_limit_rounds": to_limit.to_dict(),
        "trick_runner_times_rounds": ahead.to_dict(),
    }


if __name__ == "__main__":
    main()
