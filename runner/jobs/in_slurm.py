"""Inside a Slurm job: when the job has to end, it saves, and returns to the queue."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from runner.config.words import own_words
from runner.errors import StorageError, TrainingError
from runner.machine import slurm
from runner.machine.signals import OneInterruption, held_back
from runner.machine.slurm import Ending
from runner.records.run_folder import redacted_words

_LONGEST_NAME = 60  # characters
_Handler = Callable[[int, FrameType | None], Any]


class SlurmJob:
    """The job of Slurm that this process is a task of; submitit has started the process.

    Args:
        number: id of the job, such as ``12_3``.
        is_first: whether this task speaks for all tasks of the job.
        handler: that of submitit for the signal that comes before the time is up. It counts how
            often that happens, puts the job back into the queue, and exits.
    """

    def __init__(self, number: str, *, is_first: bool, handler: _Handler) -> None:
        self._number = number
        self._is_first = is_first
        self._handler = handler
        self._ending: Ending | None = None
        self._signals = OneInterruption(self._reason)

    @classmethod
    def of_this_process(cls, *, is_first: bool) -> "SlurmJob | None":
        """Return the job that this process is in; None if submitit did not start it in Slurm."""
        handler, number = signal.getsignal(signal.SIGUSR2), slurm.own_id()
        is_submitted = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        if not is_submitted or number is None or not callable(handler):
            return None
        return cls(number, is_first=is_first, handler=handler)

    @property
    def is_first(self) -> bool:
        """Whether this task speaks for all tasks of the job."""
        return self._is_first

    def begin(self) -> None:
        """From now on, the first signal raises :class:`Interrupted`; all others are ignored."""
        self._signals.install()

    def take_name(self, job: Sequence[str], jobs: Sequence[Sequence[str]]) -> None:
        """Let ``squeue`` list the job under its own words.

        Args:
            job: the words of the job.
            jobs: those of all jobs of the sweep.
        """
        name = own_words(redacted_words(job), [redacted_words(each) for each in jobs])
        name = " ".join(name.split())[:_LONGEST_NAME]
        if self._is_first and name != os.environ.get("SLURM_JOB_NAME"):
            with suppress(StorageError):  # a name is no reason to fail
                slurm.rename(self._number, name)

    def ignore_signals(self) -> None:
        """Ignore all signals until this process is gone."""
        self._signals.ignore_further()

    @property
    def ending(self) -> Ending | None:
        """Why the first signal came; None if Slurm does not answer."""
        if self._ending is None:
            self._reason(signal.SIGTERM)
        return self._ending

    def requeue(self, timeout_min: int, max_num_timeout: int) -> None:
        """Put the job back into the queue, unless Slurm has done so.

        Args:
            timeout_min: the time limit that was requested, in minutes.
            max_num_timeout: how many times the job may be queued again at its time limit.

        Raises:
            TrainingError: the job reached its time limit more often than is allowed.
            StorageError: Slurm refuses it, or does not answer.
        """
        if self.ending == Ending.REQUEUED:
            return
        try:
            # Slurm signals commands that run in a job too, and kills what does not ignore it.
            with held_back():
                if self.ending == Ending.TIME_LIMIT:
                    if not self._count_and_requeue():
                        raise TrainingError(
                            "saved at its time limit, for the last time that "
                            f"hydra.launcher.max_num_timeout={max_num_timeout} allows; the same "
                            "command goes on, best with a larger hydra.launcher.timeout_min than "
                            f"{timeout_min}"
                        )
                else:
                    slurm.requeue(self._number)
        except StorageError:
            with held_back():
                if slurm.ending(self._number) != Ending.REQUEUED:  # meanwhile
                    raise

    def leave(self, code: int) -> NoReturn:
        """End this process without a result.

        Args:
            code: by which Slurm says COMPLETED or FAILED; of no effect in a job that has been
                requeued.
        """
        self.ignore_signals()
        sys.exit(code)

    def _reason(self, signum: int) -> str:
        """Ask Slurm why a signal came; a name for it."""
        if self._is_first:
            with suppress(StorageError), held_back():
                self._ending = slurm.ending(self._number)
        if signum == signal.SIGUSR2 and self._ending in (None, Ending.NONE):
            self._ending = Ending.TIME_LIMIT
        if self._ending in (None, Ending.NONE):
            return signal.Signals(signum).name
        return self._ending

    def _count_and_requeue(self) -> bool:
        """Let submitit requeue the job; return whether it may be requeued once more."""
        from submitit.core.utils import UncompletedJobError

        try:
            self._handler(signal.SIGUSR2, None)
        except UncompletedJobError:
            return False
        except SystemExit:
            return True
        except (OSError, subprocess.SubprocessError) as error:
            raise StorageError(f"the job cannot be queued again: {error}") from error
        return True
