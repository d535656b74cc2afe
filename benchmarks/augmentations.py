"""Time TrivialAugment, RandAugment and random erasing, and the training step they are part of.

    python -m benchmarks.augmentations

A round times each of them once on the same batch of images, and then the bare step: forward,
backward and update of the network, in bf16 where the hardware gains from it, without data,
augmentation or tricks. The ratios are taken round by round, so that a machine that slows down
slows both sides. Each round draws other operations.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Spread, parser, ratio, report
from runner.config.schema import AutoAugment, Erasing
from runner.machine.hardware import keep_freed_memory, used_precision
from runner.models import build_model, suit_convolutions
from runner.terminal.tables import Table
from runner.tricks import auto_augment, erasing

_MEAN = (0.45, 0.45, 0.45)
_POLICIES = {
    "trivial_augment": AutoAugment("trivial"),
    "rand_augment": AutoAugment("rand"),
}
_ERASING = {
    "random_erasing": Erasing(probability=0.25),
    "random_erasing, noise": Erasing(probability=0.25, fill="noise"),
}


def options() -> ArgumentParser:
    """Return the options of the command line."""
    found = parser("augmentations", __doc__ or "")
    found.add_argument("--model", default="xresnet18", help="network (default: %(default)s)")
    found.add_argument("--size", type=int, default=128, help="side, px (default: %(default)s)")
    found.add_argument("--batch-size", type=int, default=64, help="images (default: %(default)s)")
    found.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    found.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    found.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    asked = options().parse_args(words)
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    found = measured(asked)
    step = found.pop("bare step")
    title = f"{asked.batch_size} images of {asked.size} px, {asked.threads} threads, {asked.device}"
    rows = [(f"bare step, {asked.model}", str(step), "")]
    rows += [(name, str(spread), str(ratio(spread, step))) for name, spread in found.items()]
    columns = ("part", "ms per batch", "part of the bare step")
    values = {name: spread.to_dict() for name, spread in {"bare step": step, **found}.items()}
    table = Table(title, columns, tuple(rows), ("part",))
    report("augmentations", table, {"milliseconds": values}, asked.json)


def measured(asked: Namespace) -> dict[str, Spread]:
    """Milliseconds of each part by name, in rounds after one that warms up."""
    device = torch.device(asked.device)
    images = torch.rand(asked.batch_size, 3, asked.size, asked.size, device=device)
    step = bare_step(asked.model, images)
    found: dict[str, list[float]] = {}
    for turn in range(1 + asked.repeats):
        for name, work in {**parts(images, turn), "bare step": step}.items():
            seconds = timed(work, device)
            if turn > 0:
                found.setdefault(name, []).append(1000 * seconds)
    return {name: Spread(tuple(values)) for name, values in found.items()}


def parts(images: Tensor, turn: int) -> dict[str, Callable[[], object]]:
    """Return what to time, with its draws, as a step of the training does it."""
    count, size = len(images), images.shape[-1]

    def automatic(policy: AutoAugment) -> object:
        return auto_augment.apply(images, auto_augment.draw(policy, count, size, 0, 0, turn))

    def erased(settings: Erasing) -> object:
        boxes = erasing.draw(settings, count, size, size, 0, 0, turn)
        fill = partial(erasing.fill_of, settings, _MEAN, size, turn, images.device)
        return erasing.erase(images, boxes, fill)

    return {
        **{name: partial(automatic, policy) for name, policy in _POLICIES.items()},
        **{name: partial(erased, settings) for name, settings in _ERASING.items()},
    }


def bare_step(name: str, images: Tensor) -> Callable[[], object]:
    """Return a function that makes one update of a network from ``images`` as they are."""
    model = build_model("xresnet", name, 10, seed=0).to(images.device)
    if images.device.type == "cpu":
        suit_convolutions(model)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(len(images), device=images.device) % 10
    device = images.device.type
    is_mixed = used_precision("auto", device) == "bf16"

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_mixed):
            logits = model(inputs)
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
        optimizer.step()

    return update


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, until the device has done it."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
