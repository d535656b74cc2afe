"""Batches of jobs of a comparison: their words, their time and their results."""

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runner.compare.live import Live
from runner.compare.plan import is_finished
from runner.compare.question import Job, joined_words
from runner.config.schema import RunConfig
from runner.errors import ArtefactError, SweepError
from runner.jobs.launch import Outcome, run_jobs
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records.comparison_folder import BASE, ComparisonPlan, PairedRun, hash_of
from runner.records.run_folder import LARGEST_JSON, RunFolder
from runner.terminal.start import Work


@dataclass(frozen=True)
class How:
    """How the jobs of a comparison run.

    Attributes:
        work: what each job does: ``runner.train.WORK``.
        outputs: folder of the runs.
        launcher: words that choose Hydra's launcher; none for this process.
        config_dir: folder with the user's option files.
        budget: seconds from now after which no training begins, nor a round that would probably
            last longer; None for no limit.
    """

    work: Work
    outputs: Path
    launcher: tuple[str, ...] = ()
    config_dir: Path | None = None
    budget: float | None = None


class Batches:
    """Runs batches of jobs, and measures how long jobs take.

    Args:
        how: how jobs run.
        live: shows the progress.
        folders: folder of the run by label and by seed of the pair, where it is known.
        configs: configuration by label, for any seed, where it is known.

    Attributes:
        stopped_by: the signal that stopped the jobs; None if there was none.
        is_out_of_time: whether the budget is used up, or too small for a round.
        log: folder with the logs of the last batch; None before the first.
    """

    def __init__(
        self,
        how: How,
        live: Live,
        plan: ComparisonPlan,
        folders: Mapping[str, Mapping[int, RunFolder]] | None = None,
        configs: Mapping[str, RunConfig] | None = None,
    ) -> None:
        self._how = how
        self._live = live
        self._plan = plan
        self._folders = folders or {}
        self._configs = configs or {}
        self._deadline = None if how.budget is None else time.monotonic() + how.budget
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._elapsed = 0.0
        self.stopped_by: int | None = None
        self.is_out_of_time = False
        self.log: Path | None = None

    def may_begin(self, jobs: Sequence[Job]) -> bool:
        """Begin a round of jobs, unless it would probably last longer than the budget allows."""
        if self._deadline is not None and self._expected(jobs) > self._deadline - time.monotonic():
            self.is_out_of_time = True
            return False
        self._live.round(jobs)
        return True

    def run(
        self,
        jobs: Sequence[Job],
        record: Callable[[Job, PairedRun], None],
        alongside: Sequence[Job] = (),
    ) -> bool:
        """Run the jobs of a round, equal jobs once. Return whether all of them ended.

        Args:
            jobs: the jobs, in order: a job comes before those that need it.
            alongside: further jobs, for which one of ``jobs`` with the same training evaluates; a
                job whose training fails does not begin, nor does it count.
            record: called with each job that ended, possibly from another thread.

        Raises:
            SweepError: the launcher could not run the jobs.
            StorageError: the folder cannot be written.
        """
        by_words: dict[tuple[str, ...], list[Job]] = defaultdict(list)
        for job in jobs:
            by_words[job.words].append(job)
        num_begun = len(by_words)
        for job in alongside:
            by_words[job.words].append(job)
        groups = list(by_words.values())
        left = {*range(len(groups))}

        def on_begin(number: int) -> None:
            for job in groups[number]:
                self._live.begun(job)

        def on_end(number: int, outcome: Outcome) -> None:
            if (found := _paired(outcome)) is not None and number in left:
                left.remove(number)
                self._measure(groups[number][0], outcome)
                for job in groups[number]:
                    record(job, found)
            for job in groups[number]:
                self._live.ended(job, outcome)

        start = time.monotonic()
        result = run_jobs(
            [*by_words],
            self._how.work,
            self._how.launcher,
            self._how.outputs,
            config_dir=self._how.config_dir,
            configs=self._configs_of([group[0] for group in groups]),
            num_begun=num_begun,
            on_begin=on_begin,
            on_end=on_end,
            is_quiet=self._live.is_quiet,
            say=self._live.line,
            deadline=self._deadline,
        )
        self._elapsed += time.monotonic() - start
        self.log, self.stopped_by = result.folder.path, result.stopped_by
        left -= {*range(num_begun, len(groups))}
        if not left or self.stopped_by is not None:
            return not left
        if result.is_out_of_time:
            self.is_out_of_time = True
            return False
        raise SweepError(
            f"{len(left)} of {num_begun} jobs did not end: they were interrupted, or the "
            "launcher did not start them",
            where=str(self.log),
            fix="the same command again, which runs the missing ones",
        )

    def _configs_of(self, jobs: Sequence[Job]) -> list[RunConfig] | None:
        """Return the configuration of each job; None if a search chooses some of their words."""
        found = []
        for job in jobs:
            config = self._configs.get(job.label)
            if config is None or job.is_tuning or self._plan.tune:
                return None
            seed, fold = self._plan.seed_and_fold(job.seed)
            config = replace(config, seed=seed + seed_offset(self._plan, job.label))
            if self._plan.num_folds > 1:
                config = replace(config, data=replace(config.data, fold=fold))
            found.append(config)
        return found

    def _measure(self, job: Job, outcome: Outcome) -> None:
        if outcome.status == "finished":
            self._seconds[job.label].append(outcome.seconds)

    def _expected(self, jobs: Sequence[Job]) -> float:
        """Estimate the seconds of the trainings of jobs; 0 before the first job has ended.

        Using or evaluating an existing run takes little time in comparison.
        """
        measured = [second for seconds in self._seconds.values() for second in seconds]
        if not measured:
            return 0.0
        mean = sum(measured) / len(measured)
        by_label = {label: sum(one) / len(one) for label, one in self._seconds.items()}
        labels: dict[Path | tuple[str, ...], str] = {}
        for job in jobs:
            folder = None if job.is_tuning else self._folders.get(job.label, {}).get(job.seed)
            if folder is None:
                labels.setdefault(job.words, job.label)
            elif not is_finished(folder):
                labels.setdefault(folder.path, job.label)
        # Jobs that run at the same time take less time in total.
        share = min(1.0, self._elapsed / max(sum(measured), 1e-9))
        return share * sum(by_label.get(label, mean) for label in labels.values())


def job_of(
    plan: ComparisonPlan, label: str, seed: int, more: Sequence[str], *, is_tuning: bool = False
) -> Job:
    """Return the job of an arm, or of the base, for one pair.

    Args:
        plan: the question, in the words of this call.
        label: label of the arm, or ``base``.
        seed: number of the pair, which without folds is the base's seed.
        more: further words, which a search for settings chose or tries.
        is_tuning: whether the job belongs to that search.
    """
    words = {BASE: (), **{arm.label: arm.words for arm in plan.arms}}[label]
    whole: Sequence[str] = plan.base_words
    own, fold = plan.seed_and_fold(seed)
    folds = (f"data.fold={fold}",) if plan.num_folds > 1 else ()
    for added in (words, more, (f"seed={own + seed_offset(plan, label)}", *folds)):
        whole = joined_words(whole, added)
    return Job(label, seed, tuple(whole), is_tuning)


def seed_offset(plan: ComparisonPlan, label: str) -> int:
    """Return what an arm, or the base, adds to the seeds of the comparison."""
    return {BASE: 0, **{arm.label: arm.seed_offset for arm in plan.arms}}[label]


def without_lost(
    outputs: Path, runs: Mapping[str, Mapping[int, PairedRun]]
) -> dict[str, dict[int, PairedRun]]:
    """Return the recorded runs that still exist, and the trainings that diverged.

    A run that was deleted is trained again. So is a run that failed for a reason other than
    divergence, which the same training would repeat.
    """
    return {
        label: {
            seed: run
            for seed, run in by_seed.items()
            if (run.is_diverged if run.run is None else _is_there(outputs, run))
        }
        for label, by_seed in runs.items()
    }


def with_possible_pair(
    plan: ComparisonPlan, runs: Mapping[str, Mapping[int, PairedRun]]
) -> dict[str, dict[int, PairedRun]]:
    """Remove runs of arms whose seed has no pair, because the base diverged with it in a fold.

    Whether such a run was trained depends on which job ended first, and an answer must not depend
    on that.
    """
    impossible = seeds_lost_by_base(plan, runs)
    return {
        label: {
            pair: run
            for pair, run in of_pairs.items()
            if label == BASE or plan.seed_and_fold(pair)[0] not in impossible
        }
        for label, of_pairs in runs.items()
    }


def seeds_lost_by_base(
    plan: ComparisonPlan, runs: Mapping[str, Mapping[int, PairedRun]]
) -> set[int]:
    """Return the seeds with which the base diverged in any fold: no arm can have a pair there."""
    pairs = (pair for pair, run in runs[BASE].items() if run.is_diverged)
    return {plan.seed_and_fold(pair)[0] for pair in pairs}


def settings_of(run: Path) -> str:
    """Sixteen hex digits over all that decides the weights of a run but its seed.

    Raises:
        ArtefactError: the record of the run is damaged.
    """
    try:
        what = fields.parsed(read_whole(run / "run.json", at_most=LARGEST_JSON))
        values = {**fields.section(what, "values"), "seed": None}
        data = fields.section(values, "data")
        if data.get("num_folds") is None:
            return hash_of([values, fields.text(what, "fingerprint")])
        # Folds have different training images, so their rules for deep images may differ, too.
        values["data"] = {**data, "fold": None, "depth": None, "window": None}
        return hash_of([values])
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"cannot read which run this is: {error}",
            where=str((run / "run.json").absolute()),
            fix=f"mv {shlex.quote(str(run))} ELSEWHERE and the same command again",
        ) from error


def _is_there(outputs: Path, run: PairedRun) -> bool:
    folder = outputs / str(run.run)
    needed = [folder / "result.json", folder / "predictions.npz"]
    if run.evaluation is not None:
        stem = folder / "evaluations" / run.evaluation
        needed += [stem.with_name(f"{stem.name}{suffix}") for suffix in (".json", ".npz")]
    return all(path.is_file() for path in needed)


def _paired(outcome: Outcome) -> PairedRun | None:
    """Return the record of a job; None if the job has not ended."""
    if outcome.is_good and outcome.folder is not None:
        return PairedRun(Path(outcome.folder).name, outcome.evaluation)
    if outcome.is_failed:
        folder = Path(outcome.folder).name if outcome.folder is not None else ""
        return PairedRun(None, None, outcome.error or outcome.status, outcome.is_diverged, folder)
    return None
