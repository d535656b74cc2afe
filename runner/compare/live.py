"""The display of a comparison while it runs: a live table in terminals, lines in files and pipes.

Every round calls ``round``, then ``begun`` and ``ended`` for each job, from any thread, and
``looked`` after the look. A separate thread draws the table, never while a child process is
created: the child would start while the locks of the streams are held.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live as Drawn
from rich.table import Table
from rich.text import Text

from runner.compare.plan import Planned, is_finished, measured_epoch
from runner.compare.question import Job
from runner.errors import ArtefactError
from runner.jobs.launch import Outcome
from runner.machine import fields
from runner.records import evaluations
from runner.records.comparison_folder import BASE, ComparisonPlan, displayed_label
from runner.records.run_folder import RunFolder
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import ComparisonAnswer, Standing
from runner.report.metric import METRICS, Metric
from runner.terminal.console import LiveConsole, PipeConsole, legible, printable
from runner.terminal.display import duration

_REFRESH_SECONDS = 0.5
_DRAWING = threading.RLock()
"""Held while anything is drawn or changed, and while this process creates a child."""
os.register_at_fork(
    before=_DRAWING.acquire,
    after_in_parent=_DRAWING.release,
    after_in_child=_DRAWING.release,
)
_FAILED = ("failed", "crashed")


class Live:
    """Shows a comparison while it runs; use it as a context manager.

    Args:
        plan: the comparison.
        stderr: write to standard error, so that standard output holds only the result.
        console: where to write; by default the terminal or the pipe of the process.
    """

    def __init__(
        self, plan: Planned, *, stderr: bool = False, console: PipeConsole | None = None
    ) -> None:
        self._plan = plan
        self.console = console or LiveConsole(highlight=False, stderr=stderr)
        self._table: Drawn | None = None
        self._answer: ComparisonAnswer | None = None
        self._left: list[Job] = []
        self._num_jobs = 0
        self._running: dict[Job, float] = {}
        self._done: dict[str, set[int]] = defaultdict(set)
        self._failed: dict[str, set[int]] = defaultdict(set)
        self._each: float | None = None
        self._is_measured = plan.seconds(BASE) is not None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    is_quiet = True
    """Whether jobs write to their logs alone: else they would hide those of the comparison."""

    def __enter__(self) -> "Live":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._table = Drawn(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                get_renderable=self.renderable,
            )
            with _DRAWING:
                self._table.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        if self._table is not None:
            with _DRAWING:
                self._table.stop()

    def line(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        with _DRAWING:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def round(self, jobs: Sequence[Job]) -> None:
        """Show that these jobs are the next ones."""
        with _DRAWING:
            self._left, self._num_jobs = list(jobs), len(jobs)
            self._each = None  # measured again
        if self._table is None and jobs:
            what = "search for values" if jobs[0].is_tuning else self._seeds_of(jobs)
            self.line(f"{what}: {len(jobs)} {'run' if len(jobs) == 1 else 'runs'}")

    def begun(self, job: Job) -> None:
        """Show that a job runs."""
        with _DRAWING:
            self._running[job] = time.monotonic()

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Show how a job ended."""
        with _DRAWING:
            self._running.pop(job, None)
            if job in self._left:
                self._left.remove(job)
            if outcome.status in _FAILED and not job.is_tuning:
                self._failed[job.label].add(job.seed)
            elif outcome.accuracy is not None and not job.is_tuning:
                self._done[job.label].add(job.seed)
        if outcome.status in _FAILED or self._table is None:
            name = _name(job, self._plan.comparison)
            self.line(f"{legible(name)}: {_ending(outcome)}")

    def looked(self, answer: ComparisonAnswer) -> None:
        """Show the standings after a look."""
        with _DRAWING:
            self._answer = answer
            for one in answer.standings:
                self._done[one.label] |= self._pairs_of(one.seeds)
                self._failed[one.label] |= self._pairs_of(one.failed)
            self._done[BASE] |= self._pairs_of(answer.base_seeds)
            self._failed[BASE] |= self._pairs_of(answer.base_failed)
        is_first = not any(one.seeds for one in answer.standings)
        if self._table is not None or is_first or not answer.has_open_arms:  # printed whole
            return
        for one in answer.standings:
            line = verdict_line(one, answer.plan.margin, answer.metric)
            self.line(f"  {legible(line)}")
        if expected := self._expected():
            self.line(f"  {expected}")

    def renderable(self) -> RenderableType:
        """Return the table as it is now; the last line is empty, for the shell's prompt."""
        with _DRAWING:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for name in ("arm", "seeds", "difference", "state", "now"):
                table.add_column(name, justify="right" if name == "seeds" else "left")
            table.columns[0].overflow, table.columns[0].max_width = "ellipsis", 30
            table.columns[0].no_wrap = table.columns[2].no_wrap = True
            for row in self._rows():
                table.add_row(*(Text(legible(cell)) for cell in row))
            progress = [f"{self._num_jobs - len(self._left)} of {self._num_jobs} runs of the round"]
            progress += filter(None, [self._expected()])
            return Group(table, Text("; ".join(progress)), Text(""))

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        most = len(self._plan.comparison.pairs)
        standings: Mapping[str, Standing] = {}
        mean = None
        if self._answer is not None:
            standings = {one.label: one for one in self._answer.standings}
            mean = self._answer.base_value
        metric = METRICS[self._plan.comparison.metric]
        unit = "%" if metric.unit else ""
        value = f"{metric.label} {metric.text(mean.mean, signed=False)}{unit}" if mean else ""
        for label in (BASE, *self._plan.comparison.labels):
            one = standings.get(label)
            seeds = f"{len(self._done[label])}/{most}"
            if number := len(self._failed[label]):
                seeds += f" ({number} failed)"
            state = "" if label == BASE else "open"
            if one is not None and not one.is_open:
                state = one.outcome
            shown = value if label == BASE else _difference(one, metric)
            yield displayed_label(label), seeds, shown, state, self._now(label)

    def _now(self, label: str) -> str:
        """Describe the jobs of an arm that run."""
        jobs = [job for job in self._running if job.label == label]
        if not jobs:
            return ""
        texts = []
        for job in jobs[:2]:
            text = "search" if job.is_tuning else self._plan.comparison.pair_name(job.seed)
            epoch, epochs = self._epoch(job)
            texts.append(text + (f", epoch {epoch}/{epochs:g}" if epoch else ""))
        more = f" and {len(jobs) - 2} more" if len(jobs) > 2 else ""
        return "; ".join(texts) + more

    def _epoch(self, job: Job) -> tuple[int, float]:
        """Return the last evaluated epoch of a job, and its number of epochs; 0 if unknown."""
        folder = self._folder(job)
        if folder is None or is_finished(folder):
            return 0, 0
        epoch = folder.last_row().get("epoch", 0)
        question = self._plan.question
        configs = {BASE: question.base, **{arm.label: arm.config for arm in question.arms}}
        return epoch if isinstance(epoch, int) else 0, configs[job.label].budget.epochs

    def _folder(self, job: Job) -> RunFolder | None:
        """Return the folder of the run of a job; None if the search for values decides the run."""
        if job.is_tuning or self._plan.comparison.tune:
            return None
        return self._plan.folders.get(job.label, {}).get(job.seed)

    def _expected(self) -> str:
        """Return how long the round and the other rounds will take, if that is known."""
        if self._each is None:
            found = self._plan.seconds(BASE)
            self._each = None if found is None else found[0]
        if self._each is None:
            return ""
        now, each = time.monotonic(), self._each
        spent = sum(min(now - began, each) for began in self._running.values())

        def left(num_trainings: int) -> str:
            seconds = max(0.0, each * num_trainings - spent) / max(1, len(self._running))
            return duration(seconds)

        next_look, end = self._num_left(), self._num_open()
        text = f"about {left(next_look)} to the next look" if next_look else ""
        most = f"{left(end)} at most to the end" if end > next_look else ""
        return ", ".join(filter(None, [text, most]))

    def _num_left(self) -> int:
        """Return the number of missing trainings of the round; evaluations take little time."""
        folders = [self._folder(job) for job in self._left]
        unknown = {job.words for job, folder in zip(self._left, folders, strict=True) if not folder}
        known = {folder.path for folder in folders if folder and not is_finished(folder)}
        return len(unknown) + len(known)

    def _num_open(self) -> int:
        """Return the number of missing trainings of baseline and open arms to the last look."""
        if self._plan.comparison.tune:
            return 0
        closed = set[str]()
        if self._answer is not None:
            closed = {one.label for one in self._answer.standings if not one.is_open}
        paths = {
            folder.path
            for label, folders in self._plan.folders.items()
            if label not in closed
            for folder in folders.values()
            if not is_finished(folder)
        }
        return len(paths)

    def _pairs_of(self, seeds: Iterable[int]) -> set[int]:
        """Return the numbers of all pairs of some seeds."""
        plan = self._plan.comparison
        return {plan.pair(seed, fold) for seed in seeds for fold in range(plan.num_folds)}

    def _seeds_of(self, jobs: Sequence[Job]) -> str:
        plan = self._plan.comparison
        number = max(plan.seed_and_fold(job.seed)[0] for job in jobs) - plan.first_seed + 1
        if plan.num_folds > 1:
            return f"{plan.num_folds} folds"
        return f"to {number} {'seed' if number == 1 else 'seeds'}"

    def _refresh(self) -> None:
        """Draw the table again and again; without a table, say what the first epoch measured."""
        while not self._is_over.wait(_REFRESH_SECONDS):
            with _DRAWING:
                if self._table is not None:
                    self._table.refresh()
                elif not self._is_measured:
                    self._measure()

    def _measure(self) -> None:
        for job in self._running:
            folder = self._folder(job)
            if folder is not None and measured_epoch(folder) is not None:
                self._is_measured = self._plan.seconds(BASE) is not None
                if self._is_measured and (expected := self._expected()):
                    self.line(f"measured: {expected}")
                return


def _name(job: Job, plan: ComparisonPlan) -> str:
    if job.is_tuning:
        return f"{displayed_label(job.label)}, search, {' '.join(job.words[-2:])}"
    return f"{displayed_label(job.label)}, {plan.pair_name(job.seed)}"


def _ending(outcome: Outcome) -> str:
    if outcome.accuracy is None:
        return f"{outcome.status}{': ' if outcome.error else ''}{outcome.error}"
    accuracy = _accuracy(outcome)
    if outcome.status == "skipped":
        return f"{accuracy:.2%} (finished before)"
    return f"{accuracy:.2%} ({duration(outcome.seconds)})"


def _accuracy(outcome: Outcome) -> float | None:
    """Return the accuracy of the compared view: with TTA if the job has such an evaluation."""
    if outcome.folder is not None and outcome.evaluation is not None:
        with suppress(ArtefactError, ValueError):
            found = evaluations.read(RunFolder(Path(outcome.folder)), outcome.evaluation)
            if found is not None:
                return fields.number(fields.section(found, "metrics"), "accuracy")
    return outcome.accuracy


def _difference(one: Standing | None, metric: Metric) -> str:
    """Return the difference so far in units of the metric, with its interval."""
    if one is None or one.mean is None:
        return ""
    return " ".join(filter(None, [metric.text(one.mean), metric.interval_text(one.interval)]))
