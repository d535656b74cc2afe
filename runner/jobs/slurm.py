"""The jobs of one command in Slurm: submits them, finds those that Slurm has, watches them.

The launchers of Hydra wait for the results of jobs, and end when one has none. Here the queue and
the files of the jobs are read instead, so that a job that dies on another machine is noticed, and
stops no other. See :mod:`runner.jobs.states`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.config.words import own_words
from runner.errors import StorageError, first_line
from runner.jobs.refusals import never_begins, require_possible
from runner.jobs.reporter import Reporter
from runner.jobs.states import Queue, States, reasons
from runner.machine import slurm
from runner.machine.locks import locked
from runner.machine.signals import deferred, held_back
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
        asked: a hash over the work of each job; equal jobs of two commands are one.
        launcher: the values of ``hydra.launcher``.
        submit: submits jobs as one array, as :meth:`SlurmArray.submit` does.
        reporter: of the command.
    """

    def __init__(
        self,
        folder: SweepFolder,
        jobs: Sequence[Sequence[str]],
        asked: Sequence[str],
        launcher: Mapping[str, Any],
        submit: Callable[[Sequence[Sequence[str]], Path, int], list[str]],
        reporter: Reporter,
    ) -> None:
        self._folder = folder
        self._jobs = jobs
        self._asked = asked
        self._launcher = launcher
        self._submit = submit
        self._reporter = reporter
        self._tried_again = set[int]()
        self._queue = Queue()
        self._states = States(self._queue)
        self._said = set[frozenset[str]]()
        self._problem = ""

    def begin(self, numbers: Sequence[int]) -> None:
        """Watch jobs that Slurm has already, of any command, and submit the others.

        Raises:
            ConfigError: Slurm refuses what is asked for.
            StorageError: Slurm does not answer.
            Exception: whatever submitit raises.
        """
        with self._alone():
            found = self._attach(numbers)
            self._submit_anew([number for number in numbers if number not in found])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other commands from submitting jobs, which might be the same."""
        with ExitStack() as stack:
            with suppress(StorageError):  # a file system without locks
                stack.enter_context(locked(self._folder.path.parent / "slurm.lock"))
            yield

    def _attach(self, numbers: Sequence[int]) -> list[int]:
        """Find jobs that Slurm has already, of another command; return their numbers."""
        wanted = {self._asked[number]: number for number in numbers}
        found: dict[int, SlurmRecord] = {}
        for path in sorted(self._folder.path.parent.glob("*/slurm.json"), reverse=True):
            other = SweepFolder(path.parent)
            if other.path == self._folder.path:
                continue
            for number, record in other.slurm.items():
                own = wanted.get(record.asked)
                is_submitted_there = record.sweep is None
                if own is None or own in found or not is_submitted_there:
                    continue
                if other.read(number)["status"] not in (*ENDED, "busy", "cancelled"):
                    found[own] = replace(record, sweep=other.path.name)
        if not found:
            return []
        queue = slurm.queue(record.id for record in found.values())
        alive = {
            own: record
            for own, record in found.items()
            if record.id in queue and not queue[record.id].is_over
        }
        never = [
            record.id
            for record in alive.values()
            if queue[record.id].is_waiting and never_begins(queue[record.id].reason, {})
        ]
        if never:
            slurm.cancel(never)
            self._reporter.say(
                f"{slurm.compressed(never)} of an earlier command cancelled: it never begins"
            )
            alive = {own: record for own, record in alive.items() if record.id not in never}
        if alive:
            self._folder.submitted(alive)
            self._queue.add(queue)
            ids = slurm.compressed(record.id for record in alive.values())
            self._reporter.say(f"Slurm has {len(alive)} of these jobs already: {ids}")
        return [*alive]

    def _submit_anew(self, numbers: Sequence[int]) -> None:
        """Submit jobs, in as many arrays as the cluster wants."""
        if not numbers:
            return
        require_possible(self._launcher, slurm.limits(self._launcher.get("partition")))
        # Each array has a limit of jobs at a time of its own, so the limit is divided.
        count = math.ceil(len(numbers) / max(1, slurm.max_array_size()))
        at_once = max(1, self._launcher["array_parallelism"] // count)
        self._folder.withdraw(numbers)
        again = [number for number in numbers if self._folder.has_state(number)]
        for number in again:
            self._folder.write(number, "queued")
        try:
            for first in range(count):
                self._submit_array(numbers[first::count], at_once)
        finally:
            for number in {*again} - {*self._folder.slurm}:
                self._folder.write(number, "pending")
            if ids := {at: self._folder.slurm[at].id for at in numbers if at in self._folder.slurm}:
                what = "1 job" if len(ids) == 1 else f"{len(ids)} jobs"
                self._reporter.say(f"{what} submitted to Slurm: {slurm.compressed(ids.values())}")
                self._reporter.say(f"  logs: {self._folder.pasted}")
                self._reporter.say(f"  {self._folder.scancel(ids)} ends them; what runs is saved")

    def _submit_array(self, numbers: Sequence[int], at_once: int) -> None:
        """Submit one array, and record its ids.

        A signal must not come between the two. A terminal sends it to ``sbatch`` as well, which
        would end after Slurm has the jobs, and before it has said so.
        """
        with deferred(), held_back():
            place = self._folder.path / "slurm"
            ids = self._submit([self._jobs[number] for number in numbers], place, at_once)
            records = {
                number: SlurmRecord(one, None, number, self._asked[number])
                for number, one in zip(numbers, ids, strict=True)
            }
            try:
                self._folder.submitted(records)
            except StorageError:  # jobs that nobody knows of must not go on
                slurm.cancel(ids)
                raise

    def watch(self, numbers: Sequence[int], may_begin: Callable[[], bool] = lambda: True) -> None:
        """Wait until the jobs are over, and record the ends that they could not record.

        A job that died is tried again, once: its machine may have been the cause.

        Args:
            numbers: of jobs that Slurm has.
            may_begin: whether jobs may begin; those that have not begun are cancelled otherwise.

        Raises:
            ConfigError: Slurm will never begin what was asked for; it is cancelled.
        """
        left, began = list(numbers), time.monotonic()
        while left:
            waited = time.monotonic() - began
            every = min(_RARELY_SECONDS, max(_OFTEN_SECONDS, waited / 10))
            ids = [self._folder.slurm[number].id for number in left]
            if self._queue.ask(ids, every=every):
                self._tell_problem()
                if waited > _QUIET_SECONDS and not self._queue.problem:
                    self._tell_reasons(left)
            if not may_begin():
                self._leave_unbegun(left)
            over = [number for number in left if self._is_over(number)]
            if died := [number for number in over if self._may_be_tried_again(number)]:
                died = self._tried_anew(died)
            left = [number for number in left if number not in over or number in died]
            if left:
                time.sleep(_FILES_SECONDS)

    def tell_what_goes_on(self) -> None:
        """Say which jobs go on, how to end them, and how to watch them again."""
        alive = {
            number: record.id
            for number, record in self._folder.slurm.items()
            if self._states.state(self._folder, number)["status"] in ALIVE
        }
        if not alive:
            return
        what = "1 job goes on" if len(alive) == 1 else f"{len(alive)} jobs go on"
        self._reporter.say(f"{what} in Slurm: {slurm.compressed(alive.values())}")
        self._reporter.say(f"  {self._folder.scancel(alive)} ends them; what runs is saved")
        self._reporter.say("  the same command watches them again; to look at them:")
        self._reporter.say(f"  python -m runner.show {self._folder.pasted}")

    def _may_be_tried_again(self, number: int) -> bool:
        is_crashed = self._folder.read(number)["status"] == "crashed"
        return is_crashed and number not in self._tried_again

    def _tried_anew(self, numbers: Sequence[int]) -> list[int]:
        """Begin jobs that died once more; return those of them that Slurm has now."""
        self._tried_again.update(numbers)
        try:
            self.begin(numbers)
        except Exception as error:  # submitit raises errors of many kinds; other jobs go on
            self._reporter.say(f"not tried again: {first_line(error)}")
            for number in {*numbers} - {*self._folder.slurm}:
                self._folder.write(number, "crashed", error=f"crashed; {first_line(error)}")
                self._reporter.on_end(number)
        return [number for number in numbers if number in self._folder.slurm]

    def _is_over(self, number: int) -> bool:
        """Return whether a job is over; records it, and tells that it has begun or ended."""
        state = self._states.state(self._folder, number)
        status = state["status"]
        self._reporter.found(number, status)
        if status in ALIVE:
            return False
        if status != self._folder.read(number)["status"]:
            more = {key: value for key, value in state.items() if key not in ("status", *_SIGNED)}
            self._folder.write(number, status, **more)
        if status == "crashed" and number not in self._tried_again:
            self._reporter.say(
                f"{own_words(self._jobs[number], self._jobs)} {state['error']}; again:"
            )
        elif status in (*ENDED, "cancelled"):
            self._reporter.on_end(number)
        return True

    def _leave_unbegun(self, numbers: Sequence[int]) -> None:
        """Cancel jobs of this command that have not begun."""

        def is_waiting(number: int) -> bool:
            queued = self._queue.get(self._folder.slurm[number].id)
            is_own = self._folder.slurm[number].sweep is None
            return (
                is_own
                and not self._reporter.has_begun(number)
                and bool(queued and queued.is_waiting)
            )

        unbegun = {
            number: self._folder.slurm[number].id for number in numbers if is_waiting(number)
        }
        if unbegun:
            with suppress(StorageError):  # tried again
                slurm.cancel([*unbegun.values()], is_waiting=True)
                found = slurm.queue(unbegun.values())
                self._queue.add(found)
                self._put_back(
                    number
                    for number, one in unbegun.items()
                    if one not in found or found[one].is_cancelled
                )

    def _put_back(self, numbers: Iterable[int], **more: str) -> None:
        """Record that jobs have not begun, and are in Slurm no more."""
        those = [*numbers]
        self._folder.withdraw(those)
        for number in those:
            self._folder.write(number, "pending", **more)

    def _tell_problem(self) -> None:
        """Say that Slurm does not answer, once until it does."""
        if self._queue.problem and not self._problem:
            self._reporter.say(f"{self._queue.problem}; it is asked again")
        self._problem = self._queue.problem

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
            if (error := never_begins(reason, self._launcher)) is not None:
                those = {at: one.id for at, one in waiting.items() if one.reason == reason}
                slurm.cancel([*those.values()])
                self._put_back(those, error=error.what)
                self._reporter.say(
                    f"{slurm.compressed(those.values())} cancelled: it would never begin"
                )
                raise error
        if lines:
            self._tell("\n".join(lines.values()), *lines)

    def _tell(self, line: str, *about: str) -> None:
        """Say a line, unless one about the same was said already."""
        if (what := frozenset(about)) not in self._said:
            self._said.add(what)
            self._reporter.say(line)
