"""One run, from its checked configuration to its result on disk; :class:`Attempt` trains it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runner.config.idea import blamed, failed
from runner.config.requested import Requested
from runner.config.schema import RunConfig, to_dict
from runner.data.batches import worker_died
from runner.data.resident import resident
from runner.errors import ArtefactError, ConfigError, ProcessError, RunnerError, TrainingError
from runner.loggers.log import RunLog
from runner.machine import fields
from runner.machine.environment import differences, environment
from runner.machine.processes import ALONE, Processes
from runner.machine.signals import Interrupted, deferred
from runner.records import checkpoint, evaluations
from runner.records.bundle import read_bundle
from runner.records.identity import evaluation_identity
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display
from runner.training.experiment import Experiment
from runner.training.learners import build_learner, trained_learner
from runner.training.loop import Training
from runner.training.memory import ran_out
from runner.training.meter import Meter
from runner.training.metrics import classification_metrics
from runner.training.outcome import Outcome, evaluation, result, write_files
from runner.training.predicting import evaluate, evaluate_variants
from runner.training.schedule import Stage, batch_key, plan
from runner.training.step import Learner
from runner.tricks.ema import is_too_short
from runner.tricks.tta import share_of_cost


def train_and_evaluate(
    experiment: Experiment, folder: RunFolder, display: Display, processes: Processes = ALONE
) -> tuple[str, dict[str, Any]]:
    """Train, evaluate and write the run folder; resume an earlier attempt if there is one.

    Args:
        experiment: the experiment; its identity must have been checked against ``folder``.
        folder: folder of the run.
        display: shows the progress.
        processes: the processes that share the run.

    Returns:
        A status, and the content of ``result.json`` with the requested
        evaluation, see :func:`evaluated`. The status is ``finished``, ``resumed`` (and finished),
        or that of :func:`evaluated` if another process has just finished the run.

    Raises:
        BusyError: another process is working on this run.
        DivergedError: training diverged; ``status.json`` says so too.
        TrainingError: memory ran out.
        ArtefactError: none of the checkpoints can be used.
        Interrupted: a signal came; a checkpoint has been written.
    """
    config, dataset = experiment.config, experiment.dataset
    stages = plan(config, len(dataset.train))
    require_divisible(stages, config, processes)
    try:
        learner, loaded = build_learner(
            config, dataset, processes, experiment.weights, experiment.idea
        )
        experiment = replace(experiment, dataset=resident(dataset, learner.device))
    except RuntimeError as error:  # other programs may use all memory of the GPU
        known = _user_error(error, experiment)
        if known is None:
            raise
        raise known from error
    if loaded is not None:
        display.line(f"pretrained: {loaded}")
        if config.loss.kind == "bce" and not loaded.fresh:
            display.line("note: loss.kind=bce keeps the bias of the pretrained head")
    if is_too_short(config.ema, total := sum(stage.num_steps for stage in stages)):
        display.line(
            f"note: ema has no effect: {config.ema.span:g} of {total} updates is at most one update"
        )
    if config.sam.is_on and config.sam.every > total:
        display.line(f"note: sam has no effect: sam.every={config.sam.every} of {total} updates")
    log = RunLog(config, folder.path, is_first=processes.is_first, say=display.line)
    with log, _owned(folder, processes):
        # Another process may have finished the run while this one was starting.
        if not config.force and (finished := folder.whole_result()) is not None:
            folder.check(experiment.identity)
            return evaluated(experiment, folder, finished, display, processes)
        attempt = None
        try:
            attempt = Attempt(experiment, folder, stages, learner, display, log)
            with processes.first_alone():
                if processes.is_first:
                    _begin(experiment, folder)
            is_resumed = attempt.resume()
            log.start()
            with deferred() as should_stop:
                outcome = attempt.train(should_stop)
                digests: dict[str, str] = {}
                if processes.is_first:
                    digests = write_files(folder, experiment, outcome)
                content = result(experiment, loaded, outcome, digests)
                if processes.is_first:
                    content = folder.finish(
                        {**_origin(experiment, experiment.overrides), **content}
                    )
        except (KeyboardInterrupt, SystemExit) as error:
            ended = blamed(error) if isinstance(error, SystemExit) else None
            if processes.is_first and folder.can_record and attempt is not None:
                if ended is None:
                    folder.write_status("interrupted", f"{error or 'ended'} {attempt.progress}")
                else:
                    folder.write_status("failed", str(ended), type(ended).__name__)
            if ended is not None:  # sys.exit() in the code of the run
                raise ended from error
            raise
        except Exception as error:
            problem = _user_error(error, experiment)
            if processes.is_first and folder.can_record:
                kind = type(problem or error).__name__
                folder.write_status("failed", str(problem or f"{kind}: {error}"), kind)
            if problem is None:
                raise
            raise problem from error
        _, content = evaluated(experiment, folder, content, display, processes, outcome.learner)
    return "resumed" if is_resumed else "finished", content


def evaluate_finished(
    experiment: Experiment,
    folder: RunFolder,
    finished: Mapping[str, Any],
    display: Display,
    processes: Processes = ALONE,
) -> tuple[str, dict[str, Any]]:
    """Evaluate a finished run with the TTA of ``experiment``; nothing is trained.

    Returns:
        ``evaluated``, or ``skipped`` if the run has this evaluation; and the content of
        ``result.json`` with it.

    Raises:
        BusyError: another process is working on this run.
        ArtefactError: the bundle of the run is damaged.
        Interrupted: a signal came; nothing was written.
    """
    log = RunLog(experiment.config, folder.path, is_first=processes.is_first, say=display.line)
    with log, _owned(folder, processes):
        log.start()
        return evaluated(experiment, folder, finished, display, processes)


def evaluated(
    experiment: Experiment,
    folder: RunFolder,
    finished: Mapping[str, Any],
    display: Display,
    processes: Processes,
    learner: Learner | None = None,
) -> tuple[str, dict[str, Any]]:
    """Add the evaluations that are requested of a finished run, those that are missing.

    The evaluations of other jobs come with the job's own, in one pass over the images. If that
    fails, the job's own is made alone, and each other job makes and reports its own.

    Args:
        experiment: the experiment; its configuration requests the evaluation, ``others`` more.
        folder: folder of the run, whose lock the first process holds.
        finished: the content of ``result.json``.
        display: shows the progress.
        processes: the processes that share the images.
        learner: the trained network; None to read the network from the bundle.

    Returns:
        See :func:`evaluate_finished`. Without TTA, the content of ``result.json`` as it is.
    """
    name = evaluation_identity(experiment.config)
    content = None if name is None else evaluations.read(folder, name)
    is_missing = name is not None and processes.any(content is None)
    own = {name: Requested(experiment.config, tuple(experiment.overrides))} if is_missing else {}
    wanted = {**_missing_of_others(experiment, folder), **own}
    written: dict[str | None, dict[str, Any]] = {}
    try:
        written = _evaluate(experiment, folder, finished, wanted, display, processes, learner)
    except Exception as error:
        problem = _user_error(error, experiment)
        if len(wanted) > len(own):  # any error may be one of the others, which their jobs report
            display.line(
                f"note: {len(wanted)} evaluations in one pass failed, so each is made alone: "
                f"{problem or error!r}"
            )
            alone = replace(experiment, others=())
            return evaluated(alone, folder, finished, display, processes, learner)
        if problem is None:
            raise
        raise problem from error
    if not is_missing:
        return "skipped", evaluations.joined(finished, content)
    return "evaluated", evaluations.joined(finished, written[name])


def _missing_of_others(experiment: Experiment, folder: RunFolder) -> dict[str | None, Requested]:
    """Return the evaluations that other jobs request and the run lacks, by name."""
    found: dict[str | None, Requested] = {}
    for other in experiment.others:
        name = evaluation_identity(other.config)
        with suppress(ArtefactError):  # a damaged one, which the other job reports
            if name is not None and evaluations.read(folder, name) is None:
                found[name] = other
    return found


def _evaluate(
    experiment: Experiment,
    folder: RunFolder,
    finished: Mapping[str, Any],
    wanted: Mapping[str | None, Requested],
    display: Display,
    processes: Processes,
    learner: Learner | None,
) -> dict[str | None, dict[str, Any]]:
    """Make evaluations in one pass over the images; return the content of each by its name."""
    if not wanted:
        return {}
    if learner is None:
        learner = _finished_learner(experiment, folder, finished, processes)
    machine = environment(learner.device, learner.precision, processes)
    changes = differences(finished["environment"], machine)
    variants = [one.config.tta for one in wanted.values()]
    with deferred() as should_stop:
        for difference in changes:
            display.line(f"note: {difference}: the result is the same except for rounding")
        found = evaluate_variants(
            learner,
            resident(experiment.dataset, learner.device),
            experiment.config,
            variants,
            plain=_plain(folder, len(experiment.dataset.val), learner.num_outputs),
            progress=display.evaluation,
            should_stop=should_stop,
        )
    written: dict[str | None, dict[str, Any]] = {}
    for (name, one), predictions in zip(wanted.items(), found, strict=True):
        share = share_of_cost(one.config.tta, variants, learner.preprocess.crop)
        alone = replace(predictions, seconds=share * predictions.seconds)
        written[name] = {
            **_origin(experiment, one.words),
            **evaluation(one.config, alone, experiment.dataset.classes, machine),
            "differences": changes,
        }
        if processes.is_first:
            written[name] = evaluations.write(folder, str(name), written[name], predictions.tta)
    return written


def _plain(folder: RunFolder, num_images: int, num_outputs: int) -> NDArray[np.float32]:
    """Return the saved probabilities of the plain view, (num_images, num_outputs)."""
    plain = folder.predictions()["plain"]
    if (
        plain.shape != (num_images, num_outputs)
        or plain.dtype != np.float32
        or not np.isfinite(plain).all()
    ):
        raise ArtefactError(
            "the predictions do not belong to this run",
            where=str((folder.path / "predictions.npz").absolute()),
            fix="force=true to run anew",
        )
    return plain


def _finished_learner(
    experiment: Experiment, folder: RunFolder, finished: Mapping[str, Any], processes: Processes
) -> Learner:
    """Return the network of a finished run, which computes as in training."""
    bundle = read_bundle(folder.path / "bundle", finished["bundle"])
    needs_code = bundle.architecture.code is not None
    learner = trained_learner(
        bundle,
        device=experiment.config.device,
        precision=experiment.identity["values"]["precision"],
        threads=experiment.config.threads,
        code=experiment.idea.file if needs_code else None,
        processes=processes,
    )
    if experiment.config.compile != "none":
        learner.model.compile(mode=experiment.config.compile, dynamic=False)
    return learner


def require_divisible(stages: tuple[Stage, ...], config: RunConfig, processes: Processes) -> None:
    """Raise ConfigError if a micro-batch has fewer images than there are processes."""
    count, steps = processes.count, config.accumulate.steps
    smallest = min(stage.batch_size for stage in stages)
    if smallest < count:
        key = batch_key(config, smallest)
        raise ConfigError(
            f"batches of {smallest} images cannot be divided among {count} processes",
            where=f"{key}={smallest}",
            fix=f"{key}={count}, or fewer processes",
        )
    if smallest // steps < count:
        raise ConfigError(
            f"{steps} micro-batches of a batch of {smallest} images have fewer images than there "
            f"are processes, {count}",
            where=f"accumulate.steps={steps}",
            fix=f"accumulate.steps={smallest // count}",
        )


@contextmanager
def _owned(folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Hold the lock of the run in the first process; if that fails, end all processes."""
    with ExitStack() as stack:
        problem = None
        try:
            if processes.is_first:
                stack.enter_context(folder.owned())
        except RunnerError as error:
            problem = error
        processes.agree(problem)
        yield


def _begin(experiment: Experiment, folder: RunFolder) -> None:
    """Record the identity of the run and its inputs, before its first step."""
    folder.check(experiment.identity)  # again: now no other process can begin here
    if experiment.config.force:
        folder.clear()
    folder.begin(experiment.identity, to_dict(experiment.config), experiment.overrides)
    folder.write_bytes("split.csv.gz", experiment.dataset.manifest_csv)
    if experiment.idea.file is not None:
        folder.write_bytes("code.py", experiment.idea.file.content)


def _origin(experiment: Experiment, words: Sequence[str]) -> dict[str, Any]:
    """Return the identity of the run that a result belongs to, and the command with ``words``."""
    return {
        "identity": experiment.identity["identity"],
        "command": ["python", "-m", "runner.train", *words],
    }


def _user_error(error: Exception, experiment: Experiment) -> RunnerError | None:
    """Return the error for the user if the cause is a known one; None for a bug."""
    if isinstance(error, RunnerError):
        return error
    config, code = experiment.config, experiment.idea.file
    if (died := worker_died(error, config.data.num_workers)) is not None:
        return died
    if ran_out(error):
        return out_of_memory(config)
    if isinstance(error, torch.distributed.DistError) or "by peer" in str(error):
        return TrainingError(
            "another process of the run has ended; its own message gives the reason",
            fix="run the same command again: it resumes from the last checkpoint",
        )
    if code is not None and blamed(error) is None and hasattr(error, "__notes__"):
        # An error in a step, such as a gradient that cannot be computed after a change in place.
        return failed(error, f"what the functions of {code.name} returned")
    return blamed(error)


def out_of_memory(config: RunConfig) -> ProcessError:
    """Return the error for a run that ran out of memory."""
    train, val, steps = config.data.batch_size, config.eval.batch_size, config.accumulate.steps
    half, smaller = max(1, train // 2), f"eval.batch_size={max(1, (val or train) // 2)}"
    accumulated = f" accumulate.steps={steps}" if steps > 1 else ""
    fix = f"data.batch_size={half} {smaller}"
    if steps > half:
        fix += f" accumulate.steps={half}"
    if 2 * steps <= train:
        fix = f"accumulate.steps={2 * steps} {smaller}, which keeps the batch, or {fix}"
    return ProcessError(
        "out of memory",
        where=f"data.batch_size={train} eval.batch_size={val or 'null'}{accumulated}",
        fix=fix,
    )


_LARGEST_SAVING = 0.05  # largest part of the time that checkpoints at the ends of epochs may take


class Attempt:
    """One attempt at a run: its steps, rows and checkpoints, up to the last predictions."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        stages: tuple[Stage, ...],
        learner: Learner,
        display: Display,
        log: RunLog,
    ) -> None:
        self._config = experiment.config
        self._dataset = experiment.dataset
        self._identity = str(experiment.identity["identity"])
        self._folder = folder
        self._learner = learner
        self._display = display
        self._log = log
        self._training = Training(learner, experiment.dataset, stages, experiment.config)
        self._meter = Meter(stages, experiment.config.eval.every)
        # Recorded now, before the code that it describes can change.
        self._environment = environment(learner.device, learner.precision, learner.processes)
        self._resumed: list[dict[str, Any]] = []  # resumptions in a changed environment
        self._saved = (0, False)  # steps at the last checkpoint; whether its row is unevaluated
        self._saved_at, self._save_seconds = time.monotonic(), 0.0

    @property
    def progress(self) -> str:
        """The place of the last step, for messages."""
        return f"after step {self._training.done} of {self._training.total}"

    def resume(self) -> bool:
        """Continue from the newest complete checkpoint; return whether there is one.

        Raises:
            ArtefactError: none of the checkpoints can be used.
        """
        found = checkpoint.newest(self._folder.checkpoints, self._identity)
        is_first = self._learner.processes.is_first
        if found is None:
            if is_first:
                self._folder.clear_rows()
            return False
        for reason in found.refused:
            self._display.line(f"warning: cannot use a checkpoint, an older one is used: {reason}")
        try:
            self._training.restore(found.done, found.tensors)
            self._meter.restore(fields.section(found.state, "meter"))
            if not self._meter.steps == found.done <= self._training.total:
                raise ValueError(f"{found.done} steps of {self._training.total} are done")
            logs = fields.section(found.state, "logs")
            before = fields.section(found.state, "environment")
            resumed = fields.sections({"resumed": [], **found.state}, "resumed")
        except ValueError as error:
            raise ArtefactError(
                f"the checkpoint does not state the progress of the training: {error}",
                where=str(self._folder.checkpoints.absolute()),
                fix="force=true to run anew",
            ) from error
        except (RuntimeError, KeyError, TypeError, IndexError) as error:
            raise ArtefactError(
                f"the checkpoint belongs to another network: {str(error).splitlines()[0]}",
                where=str(self._folder.checkpoints.absolute()),
                fix="force=true to run anew",
            ) from error
        if is_first:
            self._folder.rewind(logs)
        self._resumed = list(resumed)
        changed = differences(before, self._environment)
        if changed:
            self._resumed.append({"after_step": found.done, "differences": changed})
        for difference in changed:
            self._display.line(f"note: {difference}: the result is the same except for rounding")
        self._saved = (found.done, self._meter.is_row_over)
        self._display.line(f"resuming {self.progress}")
        return True

    def train(self, should_stop: Callable[[], bool]) -> Outcome:
        """Make the remaining steps, with their evaluations and checkpoints.

        Args:
            should_stop: returns whether a signal has asked this process to end; called after every
                step and after every batch of an evaluation.

        Raises:
            Interrupted: one of the processes was asked to end; a checkpoint was written.
            DivergedError: training diverged.
        """
        try:
            with closing(iter(self._training)) as steps:
                while True:
                    if self._meter.is_row_over:
                        outcome = self._end_row(should_stop)
                        if self._training.done == self._training.total:
                            return outcome
                    if self._is_save_due():
                        self._save()
                    self._learner.processes.stop_if(should_stop())
                    step = next(steps)
                    self._meter.step(step)
                    if self._display.is_due():
                        name, note = self._meter.note(step)
                        self._display.step(name, step.done, self._training.total, note)
        except Interrupted:
            self._save()
            raise

    def _end_row(self, should_stop: Callable[[], bool]) -> Outcome:
        """Evaluate the current network, and write the row."""
        learner = self._training.evaluated
        predictions = evaluate(
            learner,
            self._dataset,
            self._config,
            with_tta=False,
            progress=self._display.evaluation,
            should_stop=should_stop,
        )
        plain = classification_metrics(predictions.plain, predictions.labels, self._dataset.classes)
        row, timing = self._meter.end_row(plain, predictions.seconds)
        if self._learner.processes.is_first:
            self._folder.append_row(row)
            self._folder.append_row(timing, "timings.jsonl")
            self._log.news()
        self._display.epoch({**row, **timing}, self._meter.num_epochs)
        machine = {**self._environment, "resumed": self._resumed}
        return Outcome(predictions, plain, learner, self._meter, machine)

    def _is_save_due(self) -> bool:
        """Return whether ``checkpoint.minutes`` passed, or an epoch ended and saving is cheap."""
        elapsed = time.monotonic() - self._saved_at
        is_cheap = self._save_seconds <= _LARGEST_SAVING * elapsed
        return elapsed >= 60 * self._config.checkpoint.minutes or (
            is_cheap and self._meter.is_epoch_over
        )

    def _save(self) -> None:
        """Commit a checkpoint, unless this step already has one."""
        started = time.monotonic()
        done, place = self._training.done, (self._training.done, self._meter.is_row_over)
        if self._learner.processes.is_first and place != self._saved:
            self._folder.require_owned()
            checkpoint.write(
                self._folder.checkpoints,
                self._identity,
                done,
                self._training.tensors(),
                {
                    "meter": self._meter.state(),
                    "logs": self._folder.log_marks(),
                    "environment": self._environment,
                    "resumed": self._resumed,
                },
            )
        self._saved, self._saved_at = place, time.monotonic()
        self._save_seconds = self._saved_at - started
