"""The protocol of every contestant's process: one JSON object per line, commands in, answers out.

A contestant is started as ``PYTHON NAME_worker.py SETTINGS`` in its own environment, where
``SETTINGS`` is a JSON object with the keys of `Settings`. It builds its data and model, says that
it is ready, and then waits for commands, so that one contestant can be measured while the others
sleep:

| command | answer |
|---|---|
| at the start | ``ready``, ``name``, ``versions``, ``num_parameters``, ``num_workers``, ``facts`` |
| ``{"command": "train", "steps": 40}`` | ``seconds``, ``images``, ``loss``, ``settling_steps`` |
| ``{"command": "epochs", "epochs": 5, "lr": 3e-3}`` | ``seconds``, and lists, see below |
| ``{"command": "validate"}`` | ``seconds``, ``images``, ``accuracy`` |
| ``{"command": "tta"}`` | the same, if the contestant has TTA |
| ``{"command": "quit"}``, or the end of the input | none; the process ends |

The answer to ``epochs`` holds the ``seconds`` of the whole training, and lists of the
``epoch_seconds`` (with the validation at the end) and the ``accuracy`` of each epoch. ``epochs``
also takes a ``seed``; the default is that of the settings. The answer to a command that fails holds
``error``; the traceback goes to the standard error, like everything that libraries print. This
module is for Linux and the CPU only, and imports nothing but Python's standard library, because it
runs in every environment.

Two rules keep contestants from disturbing each other's measurements. Processes that load data ahead
continue for a moment after a command: an answer is sent only once they rest. The batches that they
then hold would be a head start for the next command, so ``train`` takes more batches than that
before its clock starts: the measured steps find the loader as it is in the middle of an epoch.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

# A loading process that used no CPU time for this long has filled its queue.
REST_SECONDS = 0.3


@dataclass(frozen=True)
class Settings:
    """The work that is measured."""

    data: str
    """A folder with ``train/CLASS/*`` and ``val/CLASS/*``."""
    size: int = 64
    """Side of the images that the model sees, in pixels."""
    batch_size: int = 64
    threads: int = 2
    """Threads for the computation in the main process."""
    num_workers: int | None = None
    """Processes that load data; None for the contestant's own default."""
    seed: int = 0
    mixup_alpha: float = 0.4
    smoothing: float = 0.1
    variant: Literal["default", "tuned"] = "default"
    """``default``: the library's defaults, in float32. ``tuned``: with the library's own switches
    for bfloat16 and memory format, as an experienced user would set them."""


class Contestant(ABC):
    """One system that trains; built from `Settings`."""

    name: str
    """Name and version, for people."""
    packages: tuple[str, ...]
    """The distributions that it computes with."""
    num_parameters: int
    num_workers: int
    """The actual number of processes that load data."""
    batches_ahead: int
    """How many batches the loader may hold ready; 0 if each batch is made on request."""

    def facts(self) -> dict[str, Any]:
        """Further facts about the setup of this contestant."""
        return {}

    @abstractmethod
    def train(self, steps: int) -> tuple[int, float]:
        """Continue training by ``steps``; return the number of images and the last loss."""

    @abstractmethod
    def epochs(self, epochs: int, lr: float, seed: int, done: Callable[[float], None]) -> None:
        """Train fresh weights to the end, calling ``done`` with the accuracy after every epoch."""

    @abstractmethod
    def validate(self) -> tuple[int, float]:
        """Return the number of validation images and the accuracy on them."""

    def tta(self) -> tuple[int, float]:
        """Like `validate`, with test time augmentation."""
        raise NotImplementedError(f"{self.name} has no test time augmentation")


def serve(make: Callable[[Settings], Contestant]) -> None:
    """Build a contestant with ``make`` and answer commands until the input ends."""
    # Answers go to the original standard output; everything else printed goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.argv[1]))
    contestant = make(settings)

    def answer(content: dict[str, Any]) -> None:
        _wait_for_rest()
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer(
        {
            "ready": True,
            "name": contestant.name,
            "versions": {name: version(name) for name in contestant.packages},
            "num_parameters": contestant.num_parameters,
            "num_workers": contestant.num_workers,
            "facts": contestant.facts(),
        }
    )
    for line in sys.stdin:
        command = json.loads(line)
        if command["command"] == "quit":
            break
        try:
            answer(_carry_out(contestant, settings, **command))
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})


def _carry_out(
    contestant: Contestant, settings: Settings, *, command: str, **arguments: Any
) -> dict[str, Any]:
    match command:
        case "train":
            return _train(contestant, **arguments)
        case "epochs":
            return _epochs(contestant, **{"seed": settings.seed, **arguments})
        case "validate" | "tta":
            started = time.perf_counter()
            images, accuracy = getattr(contestant, command)()
            seconds = time.perf_counter() - started
            return {"seconds": seconds, "images": images, "accuracy": accuracy}
        case _:
            raise ValueError(f"unknown command {command!r}")


def _train(contestant: Contestant, *, steps: int) -> dict[str, Any]:
    # One more than can be ready, so that the clock starts right after a batch that was waited for.
    settling = contestant.batches_ahead + 1 if contestant.batches_ahead else 0
    if settling:
        contestant.train(settling)
    started = time.perf_counter()
    images, loss = contestant.train(steps)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "images": images, "loss": loss, "settling_steps": settling}


def _epochs(contestant: Contestant, *, epochs: int, lr: float, seed: int) -> dict[str, Any]:
    times = [time.perf_counter()]
    accuracies = []

    def done(accuracy: float) -> None:
        times.append(time.perf_counter())
        accuracies.append(accuracy)

    contestant.epochs(epochs, lr, seed, done)
    return {
        "seconds": times[-1] - times[0],
        "accuracy": accuracies,
        "epoch_seconds": [after - before for before, after in pairwise(times)],
    }


def _wait_for_rest() -> None:
    """Return once the loading processes use no more CPU time; at once if there are none."""
    before = None
    while (now := _used_by_loaders()) and now != before:
        before = now
        time.sleep(REST_SECONDS)


def _used_by_loaders() -> dict[int, str]:
    """CPU time of each process that this process started, in the system's own ticks."""
    used: dict[int, str] = {}
    for process in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:  # the process has ended
            continue
        # The name, in parentheses, may have spaces; fields 14 and 15 are user and system time.
        assert process.pid is not None  # it has been started
        used[process.pid] = " ".join(text.rpartition(")")[2].split()[11:13])
    return used
