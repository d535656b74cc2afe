"""The rounds of a comparison: run the jobs of the next look, judge, until no arm is open.

Everything that was decided follows from the recorded runs alone, so a comparison that was killed
goes on where it was and ends with the same answer: :func:`runner.report.comparisons.standings`
replays every look.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.compare import tuning
from runner.compare.batches import Batches, How, job_of, settings_of, without_lost
from runner.compare.live import Live
from runner.compare.question import Job
from runner.errors import ConfigError, SweepError, TrainingError
from runner.machine.signals import Interrupted
from runner.records.comparison_folder import BASE, ComparisonFolder, ComparisonPlan, PairedRun
from runner.report.comparison_json import from_json, to_json
from runner.report.comparisons import ComparisonAnswer, out_of_budget, standings
from runner.report.scores import ScoreBook

Runs = dict[str, dict[int, PairedRun]]


@dataclass(frozen=True)
class RoundsResult:
    """How far the rounds came.

    Attributes:
        answer: the answer; if it has not ended, where the arms stand.
        failed: why jobs failed that the same command tries again, by label and by seed.
        stopped_by: the signal that stopped the rounds; None if there was none.
        is_out_of_time: whether the budget ended the rounds.
        log: folder with the logs of the last jobs; None if no job ran.
    """

    answer: ComparisonAnswer
    failed: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    stopped_by: int | None = None
    is_out_of_time: bool = False
    log: Path | None = None

    def raise_problem(self) -> None:
        """Raise what ended the rounds before they were whole.

        Raises:
            Interrupted: a signal came.
            SweepError: jobs failed that can be tried again.
        """
        if self.stopped_by is not None:
            raise Interrupted(self.stopped_by)
        if self.failed:
            lines = [
                f"  {_name(label)}, seed {seed}: {reason}"
                for label, by_seed in self.failed.items()
                for seed, reason in by_seed.items()
            ]
            raise SweepError(
                f"{len(lines)} jobs failed, so the comparison is not whole\n" + "\n".join(lines),
                where=str(self.log),
                fix="fix the cause and run the same command again, which tries them again",
            )


def run(folder: ComparisonFolder, plan: ComparisonPlan, how: How, live: Live) -> RoundsResult:
    """Run a comparison, or continue it, until no arm is open; or read its answer.

    Args:
        folder: the folder of the comparison, as :func:`place` found it.
        plan: the question, with its name.
        how: how jobs run.
        live: shows the progress.

    Raises:
        BusyError: another process runs the comparison.
        ArtefactError: a file of the comparison, or of one of its runs, cannot be read.
        TrainingError: the base diverged with every seed, so that nothing can be compared.
        SweepError: the launcher could not run the jobs.
        ConfigError: an arm was changed while the comparison ran.
        StorageError: the folder cannot be written.
    """
    if folder.exists and (recorded := folder.answer()) is not None:
        return RoundsResult(from_json(recorded))
    with folder.locked():
        folder.begin(plan)
        return _Rounds(folder, plan, how, live).until_ended()


class _Rounds:
    def __init__(
        self, folder: ComparisonFolder, plan: ComparisonPlan, how: How, live: Live
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._how = how
        self._live = live
        self._batches = Batches(how, live)
        self._book = ScoreBook(how.outputs / "cache" / "report.npz")
        self._runs: Runs = without_lost(how.outputs, folder.runs())
        self._search = tuning.Search()

    def until_ended(self) -> RoundsResult:
        self._search = tuning.search(self._folder, self._plan, self._how.outputs, self._batches)
        answer = self._judged()
        self._live.looked(answer)
        self._require_base()
        if self._search.is_ended and BASE not in self._search.failed:
            # A job that failed is tried again by the next call, not by this one.
            while answer.has_open_arms and self._batches.run(self._missing(answer), self._record):
                self._require_base()
                answer = self._judged()
                self._live.looked(answer)
            answer = self._judged()  # with the runs of a batch that did not end
        if self._batches.is_out_of_time:
            answer = out_of_budget(answer)
        failed = self._failed()
        if answer.is_ended and not failed:
            self._folder.write_answer(to_json(answer))
        self._book.save()
        return RoundsResult(
            answer,
            failed,
            self._batches.stopped_by,
            self._batches.is_out_of_time,
            self._batches.log,
        )

    def _missing(self, answer: ComparisonAnswer) -> list[Job]:
        """The jobs that the next look needs, the base first: arms may share its trainings."""
        lost = self._without_settings()
        still = [one.label for one in answer.standings if one.is_open and one.label not in lost]
        for n in self._plan.looks:
            missing = [
                job_of(self._plan, label, seed, self._chosen.get(label, ()))
                for label in (BASE, *still)
                for seed in self._plan.seeds[:n]
                if seed not in self._runs[label]
            ]
            if missing:
                return missing
        raise AssertionError("an arm is open after the last look")

    def _record(self, job: Job, run: PairedRun) -> None:
        if run.run is not None:
            self._require_same_settings(job, run.run)
        self._runs[job.label][job.seed] = run
        self._folder.write_runs(self._runs)

    def _require_same_settings(self, job: Job, name: str) -> None:
        """Refuse a run whose arm has trained with other settings, such as an edited code file."""
        others = [run.run for run in self._runs[job.label].values() if run.run is not None]
        outputs = self._how.outputs
        if others and settings_of(outputs / name) != settings_of(outputs / others[0]):
            raise ConfigError(
                f"runs of {_name(job.label)} differ in more than their seed: its code, an option "
                "file or the program was changed while the comparison ran",
                where=f"{outputs / others[0]} and {outputs / name}",
                fix="undo the change and run the same command again; or, with the change, a new "
                "comparison: --name ANOTHER_NAME",
            )

    @property
    def _chosen(self) -> dict[str, tuple[str, ...]]:
        return {label: one.chosen for label, one in self._search.tuned.items()}

    def _judged(self) -> ComparisonAnswer:
        """Where the arms stand."""
        return standings(
            self._plan,
            self._runs,
            self._how.outputs,
            self._book,
            self._search.tuned,
            self._search.failed,
        )

    def _without_settings(self) -> set[str]:
        """Labels of arms that have no settings to train with."""
        lost = {label for label, one in self._search.tuned.items() if not one.chosen}
        return lost | self._search.failed.keys()

    def _require_base(self) -> None:
        """Raise TrainingError if no pair is possible, because the base always diverged."""
        searched, runs = self._search.tuned.get(BASE), self._runs[BASE].values()
        if searched is not None and not searched.chosen:
            when = "with every value of the search"
        elif len(runs) >= self._plan.looks[0] and all(run.is_diverged for run in runs):
            when = f"with each of {len(runs)} seeds"
        else:
            return
        raise TrainingError(
            f"the baseline diverged {when}, so no arm can be compared with it",
            where=" ".join(("baseline:", *self._plan.base_words)),
            fix="another baseline, such as one with a smaller optim.lr",
        )

    def _failed(self) -> dict[str, dict[int, str]]:
        found = {
            label: {seed: run.failed for seed, run in sorted(by_seed.items()) if run.is_tried_again}
            for label, by_seed in self._runs.items()
        }
        for label, by_seed in self._search.failed.items():
            found[label] = {**by_seed, **found[label]}
        return {label: by_seed for label, by_seed in found.items() if by_seed}


def _name(label: str) -> str:
    return "baseline" if label == BASE else label
