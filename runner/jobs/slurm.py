"""The jobs of one command in Slurm: submits them, finds those that Slurm has, watches them.

The launchers of Hydra wait for the results of jobs, and end when one has none. Here the queue and
the files of the jobs are asked instead, so that a job that dies on another machine is seen, and
stops no other. See :mod:`runner.jobs.states`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.words import own_words
from runner.jobs.refusals import never_begins, require_possible
from runner.jobs.states import Queue, States, reasons
from runner.machine import slurm
from runner.machine.signals import deferred
from runner.machine.slurm import QueuedJob
from runner.records.sweep_folder import ALIVE, ENDED, SlurmRecord, SweepFolder

_FILES_SECONDS = 0.5  # between two looks at the files of the jobs
_OFTEN_SECONDS, _RARELY_SECONDS = 2.0, 30.0  # between two questions to Slurm: at first, and later
_QUIET_SECONDS = 5.0  # in which jobs begin if nothing is in their way
_SIGNED = ("pid", "host")


class SlurmJobs:
    """Jobs of one command.

    Args:
        folder: the folder of the sweep.
        jobs: the words of each job.
        asked: a hash over what each job is asked to do; equal jobs of two commands are one.
        launcher: the values of ``hydra.launcher``.
        submit: submits jobs as one array, as :meth:`SlurmArray.submit` does.
        say: tells the user a line.
        on_begin: called with the number of each job that begins.
        on_end: called with the number of each job that has ended.
    """

    def __init__(
        self,
        folder: SweepFolder,
        jobs: Sequence[Sequence[str]],
        asked: Sequence[str],
        launcher: Mapping[str, Any],
        submit: Callable[[Sequence[Sequence[str]], Path, int], list[str]],
        *,
        say: Callable[[str], None],
        on_begin: Callable[[int], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._folder = folder
        self._jobs = jobs
        self._asked = asked
        self._launcher = launcher
        self._submit = submit
        self._say = say
        self._on_begin = on_begin
        self._on_end = on_end
        self._begun = set[int]()
        self._tried_again = set[int]()
        self._queue = Queue()
        self._states = States(self._queue)
        self._said: object = None

    def attach(self, numbers: Sequence[int]) -> list[int]:
        """Find jobs that Slurm has already, of an earlier command; return their numbers."""
        wanted = {self._asked[number]: number for number in numbers}
        found: dict[int, SlurmRecord] = {}
        for path in sorted(self._folder.path.parent.glob("*/slurm.json"), reverse=True):
            other = SweepFolder(path.parent)
            for number, record in other.slurm.items():
                own = wanted.get(record.asked)
                is_submitted_there = record.sweep is None
                if own is None or own in found or not is_submitted_there:
                    continue
                if other.read(number)["status"] not in ENDED:
                    found[own] = replace(record, sweep=other.path.name)
        if not found:
            return []
        queue = slurm.queue(record.id for record in found.values())
        alive = {
            own: record
            for own, record in found.items()
            if record.id in queue and not queue[record.id].is_over
        }
        if alive:
            self._folder.submitted(alive)
            self._queue.add(queue)
            ids = slurm.compressed(record.id for record in alive.values())
            self._say(f"Slurm has {len(alive)} of these jobs already: {ids}")
        return [*alive]

    def submit(self, numbers: Sequence[int]) -> None:
        """Submit jobs, in as many arrays as the cluster wants.

        Raises:
            ConfigError: Slurm refuses what is asked for.
            StorageError: Slurm does not answer.
        """
        if not numbers:
            return
        require_possible(self._launcher, slurm.limits(self._launcher.get("partition")))
        self._folder.withdraw(numbers)
        for number in numbers:
            self._folder.write(number, "queued")
        place = self._folder.path / "slurm"
        # Each array has a limit of jobs at a time of its own, so the limit is divided.
        count = math.ceil(len(numbers) / max(1, slurm.max_array_size()))
        at_once = max(1, self._launcher["array_parallelism"] // count)
        try:
            for first in range(count):
                chunk = numbers[first::count]
                # A signal must not come between the submission and the record of it.
                with deferred():
                    ids = self._submit([self._jobs[number] for number in chunk], place, at_once)
                    self._folder.submitted(
                        {
                            number: SlurmRecord(one, None, number, self._asked[number])
                            for number, one in zip(chunk, ids, strict=True)
                        }
                    )
        finally:
            for number in {*numbers} - {*self._folder.slurm}:
                self._folder.write(number, "pending")
        ids = [self._folder.slurm[number].id for number in numbers]
        what = "1 job" if len(ids) == 1 else f"{len(ids)} jobs"
        self._say(f"{what} submitted to Slurm: {slurm.compressed(ids)}")
        self._say(f"  logs: {self._folder.pasted}")
        self._say(f"  {slurm.scancel(ids)} ends them; what runs is saved")

    def watch(self, numbers: Sequence[int], until: float = math.inf) -> None:
        """Wait until the jobs are over, and record the ends that they could not record.

        A job that died is tried again, once: its machine may have been the cause.

        Args:
            numbers: of jobs that Slurm has.
            until: time in seconds since the epoch after which no job begins: those that have not
                begun are cancelled then.

        Raises:
            ConfigError: Slurm will never begin what was asked for; it is cancelled.
        """
        left, began = list(numbers), time.monotonic()
        while left:
            waited = time.monotonic() - began
            every = min(_RARELY_SECONDS, max(_OFTEN_SECONDS, waited / 10))
            ids = [self._folder.slurm[number].id for number in left]
            if self._queue.ask(ids, every=every) and waited > _QUIET_SECONDS:
                self._tell_reasons(left)
            if time.time() >= until:
                self._leave_unbegun(left)
            over = [number for number in left if self._is_over(number)]
            if died := [number for number in over if self._may_be_tried_again(number)]:
                self._tried_again.update(died)
                self.submit(died)
            left = [number for number in left if number not in over or number in died]
            if left:
                time.sleep(_FILES_SECONDS)

    def alive(self) -> list[str]:
        """The ids of the jobs that go on without this process."""
        return [
            record.id
            for number, record in self._folder.slurm.items()
            if self._states.state(self._folder, number)["status"] in ALIVE
        ]

    def tell_what_goes_on(self) -> None:
        """Say which jobs go on, how to end them, and how to watch them again."""
        if not (ids := self.alive()):
            return
        what = "1 job goes on" if len(ids) == 1 else f"{len(ids)} jobs go on"
        self._say(f"{what} in Slurm: {slurm.compressed(ids)}")
        self._say(f"  {slurm.scancel(ids)} ends them; what runs is saved")
        self._say("  the same command watches them again; to look at them:")
        self._say(f"  python -m runner.show {self._folder.pasted}")

    def _may_be_tried_again(self, number: int) -> bool:
        is_crashed = self._folder.read(number)["status"] == "crashed"
        return is_crashed and number not in self._tried_again

    def _is_over(self, number: int) -> bool:
        """Whether a job is over; records it, and tells that it has begun or ended."""
        state = self._states.state(self._folder, number)
        status = state["status"]
        if status in ("running", *ENDED) and number not in self._begun:
            self._begun.add(number)
            self._on_begin(number)
        if status in ALIVE:
            return False
        if status != self._folder.read(number)["status"]:
            more = {key: value for key, value in state.items() if key not in ("status", *_SIGNED)}
            self._folder.write(number, status, **more)
        if status == "crashed" and number not in self._tried_again:
            self._say(f"{own_words(self._jobs[number], self._jobs)} {state['error']}; again:")
        elif status in (*ENDED, "cancelled"):
            self._on_end(number)
        return True

    def _leave_unbegun(self, numbers: Sequence[int]) -> None:
        """Cancel jobs of this command that have not begun."""
        unbegun = list[int]()
        for number in numbers:
            record = self._folder.slurm[number]
            queued = self._queue.get(record.id)
            if record.sweep is None and number not in self._begun and queued and queued.is_waiting:
                unbegun.append(number)
        if unbegun:
            slurm.cancel([self._folder.slurm[number].id for number in unbegun])
            self._folder.withdraw(unbegun)
            for number in unbegun:
                self._folder.write(number, "pending")

    def _tell_reasons(self, numbers: Sequence[int]) -> None:
        """Say why jobs wait, when that has changed; cancel what Slurm will never begin.

        Raises:
            ConfigError: naming the key to change.
        """
        waiting = dict[int, QueuedJob]()
        for number in numbers:
            queued = self._queue.get(self._folder.slurm[number].id)
            if queued is not None and queued.is_waiting:
                waiting[number] = queued
        lines = reasons(waiting.values())
        for reason in lines:
            own = [
                queued.id
                for number, queued in waiting.items()
                if queued.reason == reason and self._folder.slurm[number].sweep is None
            ]
            if own and (error := never_begins(reason, self._launcher)) is not None:
                slurm.cancel(own)
                self._say(f"{slurm.compressed(own)} cancelled: Slurm would never begin it")
                raise error
        if self._queue.problem:
            self._tell(f"{self._queue.problem}; it is asked again")
        elif lines:
            self._tell("\n".join(lines.values()), *lines)

    def _tell(self, line: str, *about: str) -> None:
        """Say a line, unless the last one was about the same."""
        if self._said != (about or line):
            self._said = about or line
            self._say(line)
