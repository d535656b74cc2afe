"""One run from its checked configuration to its result on disk: assemble, fit, evaluate, record."""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import torch

from runner import checkpoint, signals
from runner.bundle import Architecture, Evaluated, bundle_files
from runner.data.dataset import Dataset
from runner.data.resident import resident
from runner.display import Display
from runner.distributed import ALONE, Processes
from runner.engine import Learner, Step, Training
from runner.environment import differences, environment
from runner.errors import ArtefactError, ConfigError, ProcessError, RunnerError, TrainingError
from runner.evaluation import Predictions, evaluate, images_per_pass
from runner.learners import build_learner
from runner.locks import locked
from runner.meter import Meter
from runner.metrics import classification_metrics
from runner.models import Loaded, Weights
from runner.records import RunFolder
from runner.schedule import Stage, plan
from runner.schema import RunConfig, to_dict


def train_and_evaluate(
    config: RunConfig,
    dataset: Dataset,
    folder: RunFolder,
    what: Mapping[str, Any],
    overrides: list[str],
    display: Display,
    processes: Processes = ALONE,
    weights: Weights | None = None,
) -> tuple[str, dict[str, Any]]:
    """Train, evaluate and write the run folder, from where an earlier attempt left off.

    Args:
        config: of the run.
        dataset: it names.
        folder: the run's; ``what`` must have been checked against it.
        what: the run is: ``identity``, ``fingerprint`` and ``values``.
        overrides: the command's words.
        display: told how it goes.
        processes: that share the run.
        weights: pretrained ones that ``config`` was fitted to.

    Returns:
        How it came to its result: ``finished``, ``resumed`` and finished, or ``skipped`` as another
        process has just finished it; and the content of ``result.json``.

    Raises:
        BusyError: another process is at this run.
        TrainingError: training diverged or memory ran out; ``status.json`` says so too.
        ArtefactError: there are checkpoints, but none can be used.
        Interrupted: by a signal; what was done is saved.
    """
    stages = plan(config, len(dataset.train))
    if (smallest := min(stage.batch_size for stage in stages)) < processes.count:
        raise ConfigError(
            f"batches of {smallest} images cannot be divided among {processes.count} processes",
            where=f"{_batch_key(config, smallest)}={smallest}",
            fix=f"{_batch_key(config, smallest)}={processes.count}, or fewer processes",
        )
    try:
        learner, loaded = build_learner(config, dataset, processes, weights)
        dataset = resident(dataset, learner.device)
    except RuntimeError as error:  # other programs may have left no memory on the GPU
        known = _known(error, config)
        if known is None:
            raise
        raise known from error
    if loaded is not None:
        display.line(f"pretrained: {loaded}")
    with ExitStack() as stack:
        problem = None
        try:
            if processes.is_first:
                stack.enter_context(locked(folder.lock, wait=False))
        except RunnerError as error:
            problem = error
        processes.agree(problem)
        # Another process may have finished it while this one was starting.
        if not config.force and (finished := folder.result()) is not None:
            folder.check(what)
            return "skipped", finished
        run = _Run(config, dataset, folder, str(what["identity"]), stages, learner, display)
        if weights is not None and loaded is not None:
            run.pretrained = _pretrained_facts(weights, loaded)
        try:
            with processes.first_alone():
                if processes.is_first:
                    folder.check(what)  # again: only now nobody else can begin another run here
                    if config.force:
                        folder.clear()
                    folder.begin(what, to_dict(config), overrides)
                    folder.write_bytes("split.csv.gz", dataset.manifest_csv())
            is_resumed = run.resume()
            with signals.deferred() as is_asked:
                result = run.train(is_asked)
                if result is not None and processes.is_first:
                    command = ["python", "-m", "runner.train", *overrides]
                    result = folder.finish(
                        {"identity": what["identity"], "command": command, **result}
                    )
            if result is None:  # the signal came to another of the processes
                raise signals.Interrupted(signal.SIGTERM)
        except (KeyboardInterrupt, SystemExit) as error:
            if processes.is_first and folder.is_begun:
                folder.write_status("interrupted", f"{error or 'ended'} {run.progress}")
            raise
        except Exception as error:
            problem = _known(error, config)
            if processes.is_first and folder.is_begun:
                folder.write_status("failed", str(problem or f"{type(error).__name__}: {error}"))
            if problem is None:
                raise
            raise problem from error
    return "resumed" if is_resumed else "finished", result


def _batch_key(config: RunConfig, batch_size: int) -> str:
    """The key that batches of this size come from."""
    return "data.batch_size" if config.data.batch_size == batch_size else "resize.first_batch_size"


# Of a CPU, of a GPU that has no room even for a program, and of the libraries of NVIDIA: plain
# RuntimeErrors, which only their text tells from others.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def _known(error: Exception, config: RunConfig) -> RunnerError | None:
    """The error for the user where the cause is one we know; None for a bug."""
    if isinstance(error, RunnerError):
        return error
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if is_memory or any(words in str(error) for words in _NO_MEMORY):
        train, val = config.data.batch_size, config.eval.batch_size
        return ProcessError(
            "out of memory",
            where=f"data.batch_size={train} eval.batch_size={val or 'null'}",
            fix=f"data.batch_size={max(1, train // 2)} "
            f"eval.batch_size={max(1, (val or train) // 2)}",
        )
    if "DataLoader worker" in str(error):
        return ProcessError(
            "a process that reads images died; most likely memory or /dev/shm ran out",
            where=f"data.num_workers={_shown_workers(config)}",
            fix="data.num_workers=0, and the same command goes on from the last checkpoint",
        )
    if isinstance(error, torch.distributed.DistError) or "by peer" in str(error):
        return TrainingError(
            "another of the processes that share the run has ended; its own message says why",
            fix="the same command goes on from the last checkpoint",
        )
    return None


def _shown_workers(config: RunConfig) -> str:
    return "null" if config.data.num_workers is None else str(config.data.num_workers)


_LARGEST_SAVING = 0.05  # of the time, that checkpoints at the ends of epochs may take


class _Run:
    """One attempt at a run: training with its rows and checkpoints, up to the result."""

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: RunFolder,
        identity: str,
        stages: tuple[Stage, ...],
        learner: Learner,
        display: Display,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._folder = folder
        self._identity = identity
        self._stages = stages
        self._learner = learner
        self._display = display
        self._training = Training(learner, dataset, stages, config)
        self._meter = Meter(stages, display, config.eval.every)
        self.pretrained: dict[str, Any] | None = None  # what is recorded of its weights
        # Now, before the code behind it can change.
        self._environment = environment(learner.device, learner.precision, learner.processes)
        self._saved = (0, False)  # steps done at the last checkpoint, and whether unevaluated
        self._saved_at, self._save_seconds = time.monotonic(), 0.0

    @property
    def progress(self) -> str:
        """How far the run is."""
        return f"after step {self._training.done} of {self._training.total}"

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole, if there is one; whether there is."""
        found = checkpoint.newest(self._folder.checkpoints, self._identity)
        is_first = self._learner.processes.is_first
        if found is None:
            if is_first:
                self._folder.clear_rows()
            return False
        for reason in found.refused:
            self._display.line(f"warning: checkpoint refused, an older one is used: {reason}")
        try:
            self._training.restore(found.done, found.tensors)
            self._meter.restore(found.state["meter"])
        except (RuntimeError, KeyError, TypeError, IndexError) as error:
            raise ArtefactError(
                f"the checkpoint is of another network: {str(error).splitlines()[0]}",
                where=str(self._folder.checkpoints.absolute()),
                fix="force=true to run anew",
            ) from error
        if is_first:
            self._folder.rewind(found.state["logs"])
        for difference in differences(found.state["environment"], self._environment):
            self._display.line(f"note: {difference}: the result is the same but for rounding")
        self._saved = (found.done, self._meter.is_row_over)
        self._display.line(f"going on {self.progress}")
        return True

    def train(self, is_asked: Callable[[], bool]) -> dict[str, Any] | None:
        """The steps that are left, their evaluations, and the files of the result.

        Args:
            is_asked: whether this process was asked to end.

        Returns:
            The result; None when one of the processes was asked to end, after its checkpoint.
        """
        predictions = self._to_the_end(is_asked)
        if predictions is not None:
            return self._result(predictions)
        self._save()
        return None

    def _to_the_end(self, is_asked: Callable[[], bool]) -> Predictions | None:
        """The predictions after the last step; None when asked to end."""
        with closing(iter(self._training)) as steps:
            return self._follow(steps, is_asked)

    def _follow(self, steps: Iterator[Step], is_asked: Callable[[], bool]) -> Predictions | None:
        training = self._training
        while True:
            if self._meter.is_row_over:
                predictions = evaluate(
                    self._learner,
                    self._dataset,
                    self._config,
                    with_tta=training.done == training.total,
                    progress=self._display.evaluation,
                    should_stop=is_asked,
                )
                if predictions is None:
                    return None
                self._end_row(predictions)
                if training.done == training.total:
                    return predictions
            if self._is_save_due():
                self._save()
            if self._learner.processes.any(is_asked()):
                return None
            self._meter.step(next(steps))

    def _end_row(self, predictions: Predictions) -> None:
        row, timing = self._meter.end_row(predictions, self._dataset.classes)
        if self._learner.processes.is_first:
            self._folder.append_row(row)
            self._folder.append_row(timing, "timings.jsonl")
        self._display.epoch({**row, **timing}, self._meter.num_epochs)

    def _is_save_due(self) -> bool:
        """Every ``checkpoint.minutes``; at an epoch's end already when it costs little by then."""
        elapsed = time.monotonic() - self._saved_at
        is_cheap = self._save_seconds <= _LARGEST_SAVING * elapsed
        return elapsed >= 60 * self._config.checkpoint.minutes or (
            is_cheap and self._meter.is_epoch_over
        )

    def _save(self) -> None:
        """Commit a checkpoint, unless there is one of this very step."""
        started = time.monotonic()
        done, place = self._training.done, (self._training.done, self._meter.is_row_over)
        if self._learner.processes.is_first and place != self._saved:
            checkpoint.write(
                self._folder.checkpoints,
                self._identity,
                done,
                self._training.tensors(),
                {
                    "meter": self._meter.state(),
                    "logs": self._folder.log_marks(),
                    "environment": self._environment,
                },
            )
        self._saved, self._saved_at = place, time.monotonic()
        self._save_seconds = self._saved_at - started

    def _result(self, predictions: Predictions) -> dict[str, Any]:
        config, dataset, learner, meter = self._config, self._dataset, self._learner, self._meter
        digests = self._write_files(predictions) if learner.processes.is_first else {}
        return {
            "tricks": config.tricks,
            "seed": config.seed,
            "data": _data_facts(dataset),
            "metrics": _metrics(predictions, dataset.classes),
            "budget": {
                "epochs": sum(stage.num_steps / stage.steps_per_epoch for stage in self._stages),
                "steps": meter.steps,
                "images": meter.images,
                "pixels": meter.pixels,
                "forward_passes_plain": predictions.passes_plain * len(dataset.val),
                "forward_passes_tta": predictions.passes_tta * len(dataset.val),
                "seconds": meter.seconds + meter.eval_seconds,
                "train_seconds": meter.seconds,
                "images_per_second": meter.images / meter.seconds,
            },
            "model": {
                "source": config.model.source,
                "name": config.model.name,
                "num_outputs": learner.num_outputs,
                "num_parameters": sum(p.numel() for p in learner.model.parameters()),
                "mean": list(learner.preprocess.mean),
                "std": list(learner.preprocess.std),
                "weights": self.pretrained,
            },
            "bundle": digests,
            "config": to_dict(config),
            "environment": self._environment,
        }

    def _write_files(self, predictions: Predictions) -> dict[str, str]:
        """Write the predictions and the bundle; returns the SHA-256 of the bundle's files."""
        config, dataset, folder = self._config, self._dataset, self._folder
        folder.write_predictions(predictions.labels, predictions.plain, predictions.tta)
        bundle = bundle_files(
            self._learner.model,
            architecture=Architecture(
                config.model.source, config.model.name, self._learner.num_outputs
            ),
            classes=dataset.classes,
            preprocess=self._learner.preprocess,
            evaluated=Evaluated(
                self._learner.precision,
                images_per_pass(config, self._learner),
                config.seed,
                config.augment,
            ),
        )
        for name, content in bundle.items():
            folder.write_bytes(f"bundle/{name}", content)
        return {name: hashlib.sha256(content).hexdigest() for name, content in bundle.items()}


def _metrics(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    plain = classification_metrics(predictions.plain, predictions.labels, classes)
    tta = classification_metrics(predictions.tta, predictions.labels, classes)
    return {
        "plain": {**plain, "forward_passes": predictions.passes_plain},
        "tta": {**tta, "forward_passes": predictions.passes_tta},
    }


def _pretrained_facts(weights: Weights, loaded: Loaded) -> dict[str, Any]:
    return {
        "name": weights.name,
        "identity": weights.identity,
        "loaded": loaded.num_loaded,
        "fresh": list(loaded.fresh),
        "unused": list(loaded.unused),
    }


def _data_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "classes": list(dataset.classes),
        "presize": dataset.presize,
        "skipped": len(dataset.skipped),
        "skipped_images": [{"image": name, "reason": why} for name, why in dataset.skipped],
        "converted": dataset.converted,
        "leaked": len(dataset.leaked),
        "ignored": dataset.num_ignored,
    }
