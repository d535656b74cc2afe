"""What the process of every contestant speaks: one JSON object per line, commands in, answers out.

A contestant is started as ``PYTHON NAME_worker.py SETTINGS`` in its own environment, where
``SETTINGS`` is a JSON object with the keys of `Settings`. It builds its data and model, says that
it is ready, and then does what it is told, so that several can be measured in turn while the others
sleep:

| command | answer |
|---|---|
| at the start | ``ready``, ``name``, ``versions``, ``num_parameters``, ``num_workers``, ``facts`` |
| ``{"command": "train", "steps": 40}`` | ``seconds``, ``images``, ``loss``, ``settling_steps`` |
| ``{"command": "epochs", "epochs": 5, "lr": 3e-3}`` | ``seconds``, and lists, see below |
| ``{"command": "validate"}`` | ``seconds``, ``images``, ``accuracy`` |
| ``{"command": "tta"}`` | the same, where the contestant has it |
| ``{"command": "quit"}``, or the end of the input | none; the process ends |

``epochs`` answers the ``seconds`` of everything, and of each epoch with the validation at its end
``epoch_seconds`` and ``accuracy``. It also takes a ``seed``; without, it is that of the settings.
A command that fails is answered by ``error``; the traceback goes to the standard error, as does all
that libraries print. Linux only, for the CPU only, and without any import but Python's own: it runs
in every environment.

Two things keep contestants from being measured by each other's leftovers. Processes that load data
ahead go on for a moment when nobody takes their batches: an answer is sent only once they rest. And
what they then hold ready would be a head start the next time, so ``train`` takes more batches than
that before its clock starts: the measured steps find the loader as it is in the middle of an epoch.
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
    """What is measured."""

    data: str
    """A folder with ``train/CLASS/*`` and ``val/CLASS/*``."""
    size: int = 64
    """Side of the images that the model sees, in pixels."""
    batch_size: int = 64
    threads: int = 2
    """Threads for the computation in the main process."""
    num_workers: int | None = None
    """Processes that load data; none for the number that the contestant takes unasked."""
    seed: int = 0
    mixup_alpha: float = 0.4
    smoothing: float = 0.1
    variant: Literal["default", "tuned"] = "default"
    """``default``: as it comes, in float32. ``tuned``: its own switches for bfloat16 and memory
    format, as somebody would set them who knows the library."""


class Contestant(ABC):
    """One system that trains; built from `Settings`."""

    name: str
    """With its version, for people."""
    packages: tuple[str, ...]
    """The distributions that it computes with."""
    num_parameters: int
    num_workers: int
    """Processes that load data, in fact."""
    batches_ahead: int
    """How many batches its loader may hold ready; 0 where each is made when it is asked for."""

    def facts(self) -> dict[str, Any]:
        """What else is worth knowing about how it was set up."""
        return {}

    @abstractmethod
    def train(self, steps: int) -> tuple[int, float]:
        """Go on training by ``steps``; return the number of images and the last loss."""

    @abstractmethod
    def epochs(self, epochs: int, lr: float, seed: int, done: Callable[[float], None]) -> None:
        """Train fresh weights to the end, calling ``done`` with the accuracy after every epoch."""

    @abstractmethod
    def validate(self) -> tuple[int, float]:
        """Return the number of validation images and the share of them that is right."""

    def tta(self) -> tuple[int, float]:
        """As `validate`, with test time augmentation."""
        raise NotImplementedError(f"{self.name} has no test time augmentation")


def serve(make: Callable[[Settings], Contestant]) -> None:
    """Be the process of a contestant, from its start to its end; ``make`` builds the contestant."""
    # Answers go to what is the standard output now; from here on that is the standard error.
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
    # One more than can lie ready, so that the clock starts right after a batch that was waited for.
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
    """Return once the loading processes use no more CPU time, at once where there are none."""
    before = None
    while (now := _used_by_loaders()) and now != before:
        before = now
        time.sleep(REST_SECONDS)


def _used_by_loaders() -> dict[int, str]:
    """CPU time of each process that this one started, in the system's own ticks."""
    used: dict[int, str] = {}
    for process in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:  # it has ended
            continue
        # The name, in parentheses, may have spaces; fields 14 and 15 are user and system time.
        assert process.pid is not None  # it has been started
        used[process.pid] = " ".join(text.rpartition(")")[2].split()[11:13])
    return used
