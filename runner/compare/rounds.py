"""The rounds of a comparison: run the jobs of the next look, judge, until no arm is open.

Every decision follows from the recorded runs alone, so a comparison that was killed
resumes and ends with the same answer: :func:`runner.report.comparisons.standings`
replays every look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.compare import tuning
from runner.compare.batches import (
    Batches,
    How,
    job_of,
    seeds_lost_by_base,
    settings_of,
    with_possible_pair,
    without_lost,
)
from runner.compare.live import Live
from runner.compare.question import Job
from runner.config.schema import RunConfig
from runner.errors import ConfigError, SweepError, TrainingError
from runner.machine.signals import Interrupted
from runner.records.comparison_folder import (
    BASE,
    ComparisonFolder,
    ComparisonPlan,
    PairedRun,
    displayed_label,
)
from runner.records.run_folder import RunFolder
from runner.report.comparison_json import from_json, to_json
from runner.report.comparisons import ComparisonAnswer, by_seed, out_of_budget, standings
from runner.report.scores import ScoreBook

Runs = dict[str, dict[int, PairedRun]]


@dataclass(frozen=True)
class RoundsResult:
    """The result of the rounds that were run.

    Attributes:
        answer: the answer; before the end, the standings of the arms.
        failed: reasons of failed jobs that the same command tries again, by label and by job, such
            as ``seed 1``.
        stopped_by: the signal that stopped the rounds; None if there was none.
        is_out_of_time: whether the budget ended the rounds.
        log: folder with the logs of the last jobs; None if no job ran.
    """

    answer: ComparisonAnswer
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stopped_by: int | None = None
    is_out_of_time: bool = False
    log: Path | None = None

    def raise_problem(self) -> None:
        """Raise the error that ended the rounds early.

        Raises:
            Interrupted: a signal came.
            SweepError: jobs failed that can be tried again.
        """
        if self.stopped_by is not None:
            raise Interrupted(self.stopped_by)
        if self.failed:
            lines = [
                f"  {displayed_label(label)}, {job}: {reason}"
                for label, by_job in self.failed.items()
                for job, reason in by_job.items()
            ]
            number = "1 job" if len(lines) == 1 else f"{len(lines)} jobs"
            raise SweepError(
                f"{number} failed, so the comparison is not whole\n" + "\n".join(lines),
                where=str(self.log),
                fix="fix the cause and run the same command again, which tries them again",
            )


def run(
    folder: ComparisonFolder,
    plan: ComparisonPlan,
    how: How,
    live: Live,
    folders: Mapping[str, Mapping[int, RunFolder]] | None = None,
    configs: Mapping[str, RunConfig] | None = None,
) -> RoundsResult:
    """Run a comparison, or continue it, until no arm is open; or read its answer.

    Args:
        folder: the folder of the comparison, as :func:`place` found it.
        plan: the question in the words of this call, with the name and labels of the folder.
        how: how jobs run.
        live: shows the progress.
        folders: folder of the run by label and by seed of the pair, before tuning, where known.
        configs: configuration by label, for any seed, before tuning, where known.

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
        return _Rounds(folder, plan, how, live, folders or {}, configs).until_ended()


class _Rounds:
    def __init__(
        self,
        folder: ComparisonFolder,
        asked: ComparisonPlan,
        how: How,
        live: Live,
        folders: Mapping[str, Mapping[int, RunFolder]],
        configs: Mapping[str, RunConfig] | None,
    ) -> None:
        self._folder = folder
        self._asked = asked  # has the words of the jobs
        self._plan = folder.plan()  # has the words of the answer
        self._how = how
        self._live = live
        self._folders = {} if asked.tune else folders
        self._batches = Batches(how, live, asked, self._folders, configs)
        self._book = ScoreBook(how.outputs / "cache" / "report.npz")
        self._runs: Runs = with_possible_pair(self._plan, without_lost(how.outputs, folder.runs()))
        self._search = tuning.Search()

    def until_ended(self) -> RoundsResult:
        self._search = tuning.search(self._folder, self._asked, self._how.outputs, self._batches)
        answer = self._judged()
        self._live.looked(answer)
        self._require_base()
        if self._search.is_ended and BASE not in self._search.failed:
            # A job that failed is tried again by the next call, not by this one.
            while answer.has_open_arms and self._round(self._missing(answer)):
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

    def _round(self, missing: Sequence[Job]) -> bool:
        """Run the jobs of a look; return whether all of them ended and the base has a run.

        Without a run of the base, no arm can be compared. So the jobs of the base run first and
        alone, and no arm trains if all of these jobs fail. They evaluate for the arms that share
        their training.
        """
        if not self._batches.may_begin(missing):
            return False
        if self._has_base():
            return self._batches.run(missing, self._record)
        own = [job for job in missing if job.label == BASE]
        base = [self._folder_of(job) for job in own]
        arms = [job for job in missing if job.label != BASE]
        alongside = [job for job in arms if self._folder_of(job) in base]
        if own and not self._batches.run(own, self._record, alongside):
            return False
        self._require_base()
        rest = [
            job
            for job in arms
            if job.seed not in self._runs[job.label] and self._can_pair(job.seed)
        ]
        return self._has_base() and (not rest or self._batches.run(rest, self._record))

    def _folder_of(self, job: Job) -> Path | Job:
        """Return the folder of the run of a job; the job itself if that is not known."""
        planned = self._folders.get(job.label, {}).get(job.seed)
        return job if planned is None else planned.path

    def _has_base(self) -> bool:
        """Return whether the base has a run with any seed, in all its folds."""
        base = by_seed(self._plan, self._runs)[BASE]
        return any(run.run is not None for run in base.values())

    def _can_pair(self, pair: int) -> bool:
        """Return whether the base has not diverged with the seed of a pair, in any of its folds."""
        seed, _ = self._plan.seed_and_fold(pair)
        return seed not in seeds_lost_by_base(self._plan, self._runs)

    def _missing(self, answer: ComparisonAnswer) -> list[Job]:
        """Return the jobs that the next look needs, the base first, as arms may share its runs."""
        lost = self._without_settings()
        still = [one.label for one in answer.standings if one.is_open and one.label not in lost]
        for n in self._plan.looks:
            missing = [
                job_of(self._asked, label, seed, self._chosen.get(label, ()))
                for label in (BASE, *still)
                for seed in self._plan.pairs_of(n)
                if seed not in self._runs[label] and (label == BASE or self._can_pair(seed))
            ]
            if missing:
                return missing
        raise AssertionError("an arm is open after the last look")

    def _record(self, job: Job, run: PairedRun) -> None:
        if run.run is not None:
            self._require_planned(job, run.run)
            self._require_same_settings(job, run.run)
        self._runs[job.label][job.seed] = run
        self._runs = with_possible_pair(self._plan, self._runs)
        self._folder.write_runs(self._runs)

    def _require_planned(self, job: Job, name: str) -> None:
        """Refuse a run that is not the planned one, such as after an edit of a code file."""
        planned = self._folders.get(job.label, {}).get(job.seed)
        if planned is not None and planned.path.name != name:
            raise _changed(
                f"the run of {displayed_label(job.label)} with "
                f"{self._plan.pair_name(job.seed)} is not the planned one",
                f"{self._how.outputs / name}, not {planned.path.name}",
            )

    def _require_same_settings(self, job: Job, name: str) -> None:
        """Refuse a run whose arm has trained with other settings, such as an edited code file."""
        others = [run.run for run in self._runs[job.label].values() if run.run is not None]
        outputs = self._how.outputs
        if others and settings_of(outputs / name) != settings_of(outputs / others[0]):
            raise _changed(
                f"runs of {displayed_label(job.label)} differ in more than their seed",
                f"{outputs / others[0]} and {outputs / name}",
            )

    @property
    def _chosen(self) -> dict[str, tuple[str, ...]]:
        return {label: one.chosen for label, one in self._search.tuned.items()}

    def _judged(self) -> ComparisonAnswer:
        """Return the standings of the arms."""
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
        searched = self._search.tuned.get(BASE)
        lost = seeds_lost_by_base(self._plan, self._runs)
        tried = {self._plan.seed_and_fold(pair)[0] for pair in self._runs[BASE]}
        if searched is not None and not searched.chosen:
            when = "with every value of the search"
        elif len(tried) >= self._plan.looks[0] and tried == lost:
            when = f"with each of {len(tried)} seeds"
            if self._plan.num_folds > 1:
                when += ", in at least one fold"
        else:
            return
        raise TrainingError(
            f"the baseline diverged {when}, so no arm can be compared with it",
            where=" ".join(("baseline:", *self._plan.base_words)),
            fix="another baseline, such as one with a smaller optim.lr",
        )

    def _failed(self) -> dict[str, dict[str, str]]:
        found = {
            label: {
                self._plan.pair_name(seed): run.failed
                for seed, run in sorted(of_pairs.items())
                if run.is_tried_again
            }
            for label, of_pairs in self._runs.items()
        }
        for label, by_job in self._search.failed.items():
            found[label] = {**by_job, **found[label]}
        return {label: by_job for label, by_job in found.items() if by_job}


def _changed(what: str, where: str) -> ConfigError:
    return ConfigError(
        f"{what}: its code, an option file or the program was changed while the comparison ran",
        where=where,
        fix="undo the change and run the same command again; or, with the change, a new "
        "comparison: --name ANOTHER_NAME",
    )
