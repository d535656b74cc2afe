"""Try growing learning rates and suggest some: ``python -m runner.lr_find data=fashion``.

The command takes the words of ``python -m runner.train``. The range test is Smith's (2015,
arXiv:1506.01186); its constants and the three suggestions are fastai's. No training is kept: the
network is restored, and the curve is saved as a picture.
"""

import copy
import math
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from runner.config.idea import idea_of
from runner.config.schema import RunConfig
from runner.errors import CodeError, TrainingError
from runner.machine.hardware import require_device
from runner.records.identity import folder_name, identified
from runner.terminal.tables import Table

if TYPE_CHECKING:
    from runner.data.dataset import Dataset
    from runner.training.loop import Training
    from runner.training.step import Learner

_START, _END, _STEPS = 1e-7, 10.0, 100
_STOP_AT = 4.0  # times the best smoothed loss
_SMOOTHING = 0.98
_SKIP_FIRST, _SKIP_LAST = _STEPS // 10, 5


@dataclass(frozen=True)
class RangeTest:
    """Learning rates in growing order and the smoothed training loss at each."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def suggestions(self) -> dict[str, float]:
        """Three learning rates by name; empty if the test made too few steps."""
        # The first steps are noise, and the last steps have diverged.
        rates = np.array(self.rates[_SKIP_FIRST:-_SKIP_LAST])
        losses = np.array(self.losses[_SKIP_FIRST:-_SKIP_LAST])
        if len(rates) < 3:
            return {}
        slopes = np.diff(losses) / np.diff(np.log(rates))
        return {
            "valley": float(rates[_valley(losses)]),
            "steep": float(rates[np.argmin(slopes)]),
            "minimum": float(rates[np.argmin(losses)]) / 10,
        }


def range_test(learner: "Learner", dataset: "Dataset", config: RunConfig) -> RangeTest:
    """Train for up to 100 steps at rates from 1e-7 to 10, then restore the network.

    The random state of this process is restored too.

    Raises:
        DataError: there are fewer images than one batch.
        TrainingError: the loss of the first step is not finite.
    """
    from runner.training.loop import Training
    from runner.training.optim import freeze_body
    from runner.training.schedule import plan
    from runner.training.step import kept_generators

    stage = replace(
        plan(config, len(dataset.train))[-1],
        num_steps=_STEPS,
        size=lambda progress: config.size,
        lr=lambda progress: _START * (_END / _START) ** progress,
        momentum=lambda progress: config.optim.momentum,
    )
    before = copy.deepcopy(learner.model.state_dict())
    was_training = learner.model.training
    try:
        with kept_generators(learner.device):
            return _followed(Training(learner, dataset, [stage], config))
    finally:
        freeze_body(learner.model, learner.groups, frozen=False)
        learner.model.load_state_dict(before)
        learner.model.zero_grad(set_to_none=True)
        learner.model.train(was_training)


def _followed(training: "Training") -> RangeTest:
    """Return the rates and smoothed losses of ``training``, until its loss has diverged."""
    from runner.training.step import require_finite

    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    try:
        with closing(iter(training)) as steps:
            for step in steps:
                require_finite(step.loss)
                average = _SMOOTHING * average + (1 - _SMOOTHING) * float(step.loss)
                rates.append(step.moment.lr)
                losses.append(average / (1 - _SMOOTHING**step.done))
                if losses[-1] > _STOP_AT * min(losses):
                    break
    except CodeError:
        raise
    except TrainingError as error:
        if not losses:  # no update has changed the weights yet
            raise TrainingError(
                error.what,
                where="the first step, before any update",
                fix="precision=fp32, or other weights to start from",
            ) from error
    return RangeTest(tuple(rates), tuple(losses))


def _valley(losses: "np.ndarray[Any, Any]") -> int:
    """Return the middle of the middle third of the longest run of falling losses."""
    length = np.ones(len(losses), dtype=int)
    for end in range(1, len(losses)):
        higher = np.flatnonzero(losses[:end] > losses[end])
        if len(higher):
            length[end] = length[higher].max() + 1
    end = int(np.argmax(length))
    start = end - int(length[end])
    third = (end - start) / 3
    return max(start, 0) + int(third) + int(third / 2)


def _print(test: RangeTest, console: Console) -> None:
    low, high = min(test.losses), max(test.losses[: len(test.losses) // 2])
    rows = []
    for index in range(_SKIP_FIRST, len(test.rates), max(1, len(test.rates) // 20)):
        loss = test.losses[index]
        part = min(max((loss - low) / max(high - low, 1e-9), 0.0), 1.0)
        rows.append((f"{test.rates[index]:.1e}", f"{loss:.3f}", "█" * math.ceil(40 * part)))
    Table(
        title=f"{len(test.rates)} steps from {test.rates[0]:.0e} to {test.rates[-1]:.2g}",
        columns=("learning rate", "loss", "curve"),
        rows=tuple(rows),
        text_columns=("curve",),
    ).print(console)
    for name, rate in test.suggestions().items():
        console.print(f"{name:>8}: optim.lr={rate:.1e}", highlight=False)


def _run(config: RunConfig, words: list[str]) -> dict[str, Any]:
    from pathlib import Path

    from runner.data.dataset import load_dataset
    from runner.pictures.charts import learning_rates, learning_rates_alt
    from runner.pictures.paper import write_picture
    from runner.terminal.display import Display
    from runner.training.learners import build_learner, fitted_to_weights
    from runner.training.memory import advise_smaller_batch
    from runner.tricks.idea import NO_IDEA, load_idea

    with Display() as display:
        require_device(config.device)
        code = idea_of(config)
        config, weights = fitted_to_weights(config, display, code)
        cache = Path(config.outputs).expanduser() / "cache"
        dataset = load_dataset(config.data, config.largest_size, cache, display.work)
        idea = load_idea(code) if code is not None else NO_IDEA
        with advise_smaller_batch("data.batch_size=", config.data.batch_size):
            learner, _ = build_learner(config, dataset, weights=weights, idea=idea)
            test = range_test(learner, dataset, config)
        _print(test, display.console)
        config, what = identified(config, dataset, weights.identity if weights else None, code)
        name = f"{folder_name(config, what['identity'])}.png"
        path = Path(config.outputs).expanduser() / "lr_find" / name
        suggestions = test.suggestions()
        figure = learning_rates(test.rates, test.losses, suggestions)
        write_picture(figure, path, learning_rates_alt(suggestions))
        display.line(f"curve: {path}")
    return {"suggestions": suggestions, "curve": str(path)}


def main() -> None:
    """Run the command; see ``--help``."""
    from runner.terminal.start import Work, hydra_command
    from runner.terminal.usage import EXIT_CODES, Usage

    usage = Usage(
        "Train for a few steps with growing learning rates and suggest some for optim.lr.",
        (
            ("", "the baseline"),
            ("data=folder data.root=PATH", "your own images"),
            ("optim=fine_tune +trick=mixup", "another optimizer"),
        ),
        can_sweep=False,
        notes="Give the words with which you will train: the suggestions hold for them. The\n"
        "curve is saved as a picture in outputs/lr_find, and no training is kept.\n\n" + EXIT_CODES,
    )
    hydra_command("lr_find", Work(_run), usage)


if __name__ == "__main__":
    main()
