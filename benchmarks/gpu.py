"""What a GPU does: speed compared with its limit, many runs on one card, whole trainings.

    python -m benchmarks.gpu --data FOLDER_OR_ARCHIVE --json FILE [--only WORD …] [--peers FOLDER]

The data is Imagenette at 160 px. FILE gets every measurement as soon as it is made, and those that
it has are not made again, so the same command goes on after an interruption. A measurement that
fails leaves its message in FILE and is tried again by the same command; the others are made, and
the exit code is 1. ``--only`` takes the measurements whose names contain one of its words;
``--list`` prints all names. The whole takes about a quarter of an hour on one H100.

The limit is the bare network in the same precision and batch on one fixed batch of noise, without
data; it and the training take turns in one process.
"""

import gc
import json
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.measure import (
    Spread,
    add_data_option,
    machine,
    own_worker,
    parser,
    peer_worker,
    ratio,
    throughput,
    unpacked,
)
from benchmarks.own_worker import OwnTraining
from runner.machine.files import write_output
from runner.terminal.console import table_console
from runner.terminal.tables import Table
from runner.training.loop import training_batches
from runner.training.memory import ran_out
from runner.training.schedule import moment, plan
from runner.training.step import training_images

ROUNDS = 5
SECONDS = 1.0  # of one turn
STANDARD = ("+recipe=small", "+trick=[normalize,mixup,label_smoothing]")

Found = dict[str, Any]
"""The figures of a measurement; ``text`` is what the table shows."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the data, and the folder of caches and logs."""

    data: Path
    outputs: Path
    peers: Path | None

    def words(self, network: str, size: int, batch: int, *more: str) -> list[str]:
        """Return the configuration of a training on Imagenette."""
        return [
            *STANDARD, f"data.root='{self.data}'", f"model={network}", f"resize.size={size}",
            f"data.batch_size={batch}", f"outputs='{self.outputs}'", "device=cuda", *more,
        ]  # fmt: skip

    def command(self, *words: str, name: str) -> tuple[float, list[Found]]:
        """Run ``runner.train`` in a folder of its own; the seconds it took and its results.

        Raises:
            SystemExit: the command failed.
        """
        folder = self.outputs / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (self.outputs / "cache").mkdir(exist_ok=True)
        (folder / "cache").symlink_to(self.outputs / "cache")
        command = [sys.executable, "-m", "runner.train", *words, f"outputs='{folder}'"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        return seconds, [json.loads(path.read_text()) for path in folder.glob("*/result.json")]


def speed(bench: Bench, words: list[str], *, contiguous: bool = False) -> Found:
    """Images per second of training and of its limit, in turns, and the peak of memory."""
    torch.cuda.reset_peak_memory_stats()
    run = OwnTraining(words, "run")
    if contiguous:
        run.learner.model.to(memory_format=torch.contiguous_format)
    batch = run.config.data.batch_size
    run.train(10)  # builds the first kernels
    peak = torch.cuda.max_memory_allocated() / 2**30
    steps = max(5, round(10 * SECONDS / run.train(10)["seconds"]))
    limit = OwnTraining(words, "limit")
    limit.train(10)
    rates: dict[str, list[float]] = {"run": [], "limit": []}
    for _ in range(ROUNDS):
        for name, each in (("run", run), ("limit", limit)):
            rates[name].append(steps * batch / each.train(steps)["seconds"])
    own, bare = Spread(tuple(rates["run"])), Spread(tuple(rates["limit"]))
    part = ratio(own, bare)
    return {
        "images_per_second": own.to_dict(),
        "limit": bare.to_dict(),
        "ratio": part.to_dict(),
        "peak_gib": peak,
        "steps": steps,
        "text": f"{own} images/s, {part} of the limit, {peak:.1f} GiB",
    }


def pieces(bench: Bench, words: list[str]) -> Found:
    """Milliseconds of a step by its pieces, each measured by itself and synchronized."""
    run = OwnTraining(words, "run")
    learner, config = run.learner, run.config
    stages = plan(config, len(run.dataset.train))
    moments = [moment(stages, step) for step in range(min(40, stages[0].steps_per_epoch))]
    started = time.perf_counter()
    with closing(training_batches(run.dataset, config.data.batch_size, moments, config)) as found:
        batches = list(found)
    torch.cuda.synchronize()
    read = (time.perf_counter() - started) / len(batches)
    learner.model.train()
    for batch in batches[:5]:
        training_images(learner, batch, config)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in batches:
        training_images(learner, batch, config)
    torch.cuda.synchronize()
    augment = (time.perf_counter() - started) / len(batches)
    run.train(10)
    whole = run.train(len(batches))["seconds"] / len(batches)
    limit = OwnTraining(words, "limit")
    limit.train(10)
    bare = limit.train(len(batches))["seconds"] / len(batches)
    shares = {"step": whole, "limit": bare, "reading": read, "augmentation": augment}
    found_ms = {name: 1000 * seconds for name, seconds in shares.items()}
    return {
        "milliseconds": found_ms,
        "text": ", ".join(f"{name} {value:.2f} ms" for name, value in found_ms.items()),
    }


def kernels(bench: Bench, words: list[str]) -> Found:
    """Shares of the card's time in a training, by kind of kernel, and how long the card is busy.

    The profiler slows what the processor does, and so the steps that wait for it, but not the
    kernels. So these are timed by the profiler, and the steps without it. Kernels that run at the
    same time count one after the other.
    """
    steps = 20
    run = OwnTraining(words, "run")
    run.train(10)
    wall = run.train(steps)["seconds"]
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run.train(steps)
    times: Counter[str] = Counter()
    launches = 0
    for event in profile.events() or ():
        # On the card's line, too, torch marks the time from the first kernel of a block with a
        # name, such as Optimizer.step#AdamW.step, to the last one.
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            times[_kind(event.name)] += event.self_device_time_total
            launches += 1
    busy = sum(times.values()) / 1e6
    shares = {name: value / 1e6 / busy for name, value in times.most_common()}
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return {
        "shares": shares,
        "busy": busy / wall,
        "kernels_per_step": launches / steps,
        "text": f"busy {100 * busy / wall:.0f} %, {launches / steps:.0f} kernels a step: {shown}",
    }


def _kind(kernel: str) -> str:
    """The kind of a kernel by words in its name."""
    kinds = {
        "BatchNorm": ("batch_norm", "bn_", "batchnorm"),
        "convolutions": ("conv", "gemm", "cudnn", "cutlass", "xmma", "wgrad", "dgrad", "nvjet"),
        "pooling": ("pool",),
        "optimizer": ("multi_tensor", "adam"),
        "copies": ("memcpy", "memset", "copy"),
        "index": ("index", "gather", "grid_sampler"),
    }
    lower = kernel.lower()
    for name, words in kinds.items():
        if any(word in lower for word in words):
            return name
    return "elementwise and others"


def largest_batch(bench: Bench, network: str, size: int) -> Found:
    """The largest power of two, from 32 on, whose batches train, and the speed of each."""
    batch, found = 32, dict[int, float]()
    while batch <= 8192:  # Imagenette has 9,469 training images
        try:
            run = OwnTraining(bench.words(network, size, batch), "run")
            run.train(3)
            found[batch] = 5 * batch / run.train(5)["seconds"]
        except Exception as problem:
            if not _is_out_of_memory(problem):
                raise
            break
        finally:
            run = None  # type: ignore[assignment]
            _free()
        batch *= 2
    largest = max(found, default=None)
    text = "none fits"
    if largest is not None:
        text = f"{largest} images, {found[largest]:,.0f} images/s"
    return {
        "images_per_second": found,
        "largest": largest,
        "text": text + ("" if batch > 8192 else f"; {batch} do not fit"),
    }


def _is_out_of_memory(problem: Exception) -> bool:
    """Whether memory ran out. An error of the runner, such as ProcessError, has it as its cause."""
    cause = problem.__cause__
    return ran_out(problem) or (isinstance(cause, Exception) and ran_out(cause))


def validation(bench: Bench, words: list[str]) -> Found:
    """Seconds of an evaluation of all validation images, its limit, and with four more passes."""
    run, limit = OwnTraining([*words, "tta=book"], "run"), OwnTraining(words, "limit")
    taken: dict[str, list[float]] = {"plain": [], "limit": [], "tta": []}
    for turn in range(1 + ROUNDS):
        found = {"plain": run.validate(), "limit": limit.validate(), "tta": run.tta()}
        for name, each in found.items():
            if turn > 0:
                taken[name].append(each["seconds"])
    spreads = {name: Spread(tuple(values)) for name, values in taken.items()}
    part = ratio(spreads["limit"], spreads["plain"])
    return {
        **{name: spread.to_dict() for name, spread in spreads.items()},
        "ratio": part.to_dict(),
        "text": f"plain {spreads['plain']} s, {part} of the limit; tta=book {spreads['tta']} s",
    }


def many_runs(bench: Bench, jobs: int) -> Found:
    """Eight runs of the embedded data on one card, so many at a time."""
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"] if jobs > 1 else []
    words = ["-m", "seed=range(8)", "device=cuda", *launcher]
    seconds, results = bench.command(*words, name=f"many-{jobs}")
    images = sum(each["budget"]["images"] for each in results)
    accuracies = sorted(each["metrics"]["plain"]["accuracy"] for each in results)
    return {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "accuracies": accuracies,
        "text": f"{seconds:.1f} s, {images / seconds:,.0f} images/s with starts",
    }


def trainings(bench: Bench, words: Sequence[str], name: str, seeds: int) -> Found:
    """Whole trainings, one after the other in one sweep: accuracy and seconds of each."""
    _, results = bench.command("-m", f"seed=range({seeds})", *words, name=name)
    found = {
        view: [100 * each["metrics"][view]["accuracy"] for each in results]
        for view in results[0]["metrics"]
    }
    seconds = Spread(tuple(each["budget"]["seconds"] for each in results))
    shown = "; ".join(
        f"{view} {fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if seeds > 1 else "") + " %"
        for view, values in found.items()
    )
    return {
        "accuracies": found,
        "seconds": seconds.to_dict(),
        "text": f"n = {seeds}: {shown}; {seconds} s each",
    }


def fastai(bench: Bench, size: int) -> Found:
    """Fastai's training on the same card in turns with ours, xresnet18, batch 64."""
    assert bench.peers is not None
    settings = {
        "data": str(bench.data), "size": size, "batch_size": 64, "threads": 8,
        "num_workers": None, "seed": 0, "mixup_alpha": 0.4, "smoothing": 0.1, "variant": "default",
    }  # fmt: skip
    own = own_worker({"words": bench.words("xresnet18", size, 64)}, bench.outputs / "own.log")
    peer = peer_worker(bench.peers, "fastai", settings, bench.outputs / "fastai.log")
    with own, peer:
        rates = throughput({"own": own, "fastai": peer}, 64 * 60, 64, ROUNDS)
    times = ratio(rates["own"], rates["fastai"])
    return {
        **{name: rate.to_dict() for name, rate in rates.items()},
        "times": times.to_dict(),
        "text": f"{rates['own']} images/s, fastai {rates['fastai']}: × {times}",
    }


def measurements(bench: Bench) -> dict[str, Callable[[], Found]]:
    """All measurements by name, the most wanted first."""
    found: dict[str, Callable[[], Found]] = {}

    def add(name: str, measure: Callable[..., Found], *arguments: Any, **more: Any) -> None:
        found[name] = lambda: measure(bench, *arguments, **more)

    words = bench.words
    for network, size, batch in (
        ("xresnet18", 64, 64), ("xresnet18", 64, 512), ("xresnet18", 128, 64),
        ("xresnet18", 128, 512), ("xresnet50", 128, 64), ("xresnet50", 128, 256),
        ("xresnet50", 128, 512), ("xresnet50", 128, 1024),
    ):  # fmt: skip
        add(f"speed: {network}, {size} px, batch {batch}", speed, words(network, size, batch))
    add("pieces: xresnet50, 128 px, batch 64", pieces, words("xresnet50", 128, 64))
    add("pieces: xresnet50, 128 px, batch 512", pieces, words("xresnet50", 128, 512))
    add("kernels: xresnet50, 128 px, batch 64", kernels, words("xresnet50", 128, 64))
    add("kernels: xresnet50, 128 px, batch 512", kernels, words("xresnet50", 128, 512))
    for size in (64, 128):
        add(f"validation: xresnet18, {size} px", validation, words("xresnet18", size, 64))
    epochs = (
        *words("xresnet50", 128, 256), "budget.epochs=5", "normalize=imagenet", "augment=none",
        "augment.flip=0.5", "augment.min_scale=0.35", "mixup=none", "optim.lr=6e-3",
    )  # fmt: skip
    add("trainings: five epochs, batch 256", trainings, epochs, "epochs-256", 5)
    add(
        "trainings: five epochs, batch 64", trainings,
        (*epochs, "data.batch_size=64", "optim.lr=3e-3"), "epochs-64", 5,
    )  # fmt: skip
    for jobs in (1, 2, 4, 8):
        add(f"many runs: {jobs} at a time", many_runs, jobs)
    book = ("+recipe=book", "data.variant=160", "data.presize=160", f"data.root='{bench.data}'")
    add("trainings: recipe=book at 160 px", trainings, (*book, "device=cuda"), "book", 1)
    add("largest batch: xresnet50, 128 px", largest_batch, "xresnet50", 128)
    add(
        "contiguous: xresnet50, 128 px, batch 512",
        speed,
        words("xresnet50", 128, 512),
        contiguous=True,
    )
    for mode, batch in (("reduce-overhead", 64), ("default", 512)):
        name = f"compile={mode}: xresnet50, 128 px, batch {batch}"
        add(name, speed, words("xresnet50", 128, batch, f"compile={mode}"))
    add("fp32: xresnet50, 128 px, batch 256", speed, words("xresnet50", 128, 256, "precision=fp32"))
    if bench.peers is not None:
        for size in (64, 128):
            add(f"fastai: xresnet18, {size} px, batch 64", fastai, size)
    return found


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("gpu", "Speed on a GPU compared with its limit, many runs, whole trainings.")
    add_data_option(options)
    options.add_argument("--peers", type=Path, metavar="FOLDER", help="environments of the peers")
    options.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="parts of names")
    options.add_argument("--list", action="store_true", help="print the names of all measurements")
    options.add_argument(
        "--minutes", type=float, default=20, help="begin no measurement afterwards"
    )
    arguments = options.parse_args()
    if not torch.cuda.is_available() and not arguments.list:
        sys.exit("torch finds no NVIDIA GPU here")
    ends = time.monotonic() + 60 * arguments.minutes
    outputs = arguments.outputs.absolute() / "gpu"
    outputs.mkdir(parents=True, exist_ok=True)
    target = arguments.json or outputs / "gpu.json"
    made, failed = _read(target)
    with unpacked(arguments.data) as data:
        every = measurements(Bench(data.absolute(), outputs, arguments.peers))
        if arguments.list:
            print("\n".join(every))
            return
        card = _card()
        wanted = [name for name in every if any(word in name for word in arguments.only)]
        for name in wanted:
            if name in made or time.monotonic() > ends:
                continue
            started = time.monotonic()
            try:
                found = every[name]()
            except (Exception, SystemExit) as problem:  # the others are wanted still
                message = f"{type(problem).__name__}: {problem}"[:2000]
                failed[name] = {"text": message, "date": machine()["date"]}
                traceback.print_exc()
                print(f"{name} failed: {message}", file=sys.stderr, flush=True)
            else:
                failed.pop(name, None)
                took = time.monotonic() - started
                made[name] = {**found, "took": took, "date": machine()["date"]}
                print(f"{name}: {made[name]['text']} ({took:.0f} s)", flush=True)
            _save(made, failed, card, target)
            try:
                _free()
            except RuntimeError as problem:  # some errors end all work of a process with CUDA
                sys.exit(f"run the command again: a new process may use the GPU: {problem}")
    _print(made, failed, card)
    if not failed.keys().isdisjoint(wanted):
        sys.exit(1)


def _free() -> None:
    gc.collect()
    torch.compiler.reset()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def _read(target: Path) -> tuple[dict[str, Found], dict[str, Found]]:
    """The measurements that a file has, and the failures; none if there is no file."""
    try:
        content = json.loads(target.read_text())
    except FileNotFoundError:
        return {}, {}
    return content["measurements"], content.get("failures", {})


def _card() -> Found:
    return {
        "card": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _save(
    made: Mapping[str, Found], failed: Mapping[str, Found], card: Found, target: Path
) -> None:
    content = {
        "benchmark": "gpu", "command": " ".join(sys.argv), "machine": {**machine(), **card},
        "measurements": made, "failures": failed,
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    write_output(target, (json.dumps(content, indent=2) + "\n").encode())


def _print(made: Mapping[str, Found], failed: Mapping[str, Found], card: Found) -> None:
    rows = [(name, found["text"]) for name, found in made.items()]
    rows += [(name, f"failed: {found['text'].splitlines()[0]}") for name, found in failed.items()]
    console = table_console()
    Table(
        f"on {card['card']}",
        ("measurement", "found"),
        tuple(rows),
        ("measurement", "found"),
    ).print(console)


if __name__ == "__main__":
    main()
