"""The search for settings: the same small grid for the base and for every arm.

Without equal tuning of the base and a trick, their comparison measures
the tuning. So the base and each arm train every combination of values on separate seeds, which the
verdict never uses, and take the combination with the best mean accuracy.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.compare.batches import Batches, job_of
from runner.compare.question import Job
from runner.records.comparison_folder import (
    BASE,
    ComparisonFolder,
    ComparisonPlan,
    PairedRun,
    Tuned,
)
from runner.report.metric import METRICS, Metric
from runner.report.runs import read_run
from runner.report.scores import ScoreBook

FIRST_SEED = 1_000_000
"""Added to the first seed of a comparison for the first seed of its search."""
NUM_SEEDS = 2


@dataclass(frozen=True)
class Search:
    """The state of the search.

    Attributes:
        tuned: the search of the base and of each arm that has ended, by label.
        failed: reasons why a search has not ended, by label and by job, such as
            ``search optim.lr=1e-3, seed 1000000``.
        is_ended: whether all jobs ran; if not, the budget is used up or a signal came.
    """

    tuned: Mapping[str, Tuned] = field(default_factory=dict)
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    is_ended: bool = True


def combinations(plan: ComparisonPlan) -> list[tuple[str, ...]]:
    """Return the words of each combination of values, the first values first."""
    keys = [[f"{key}={value}" for value in values] for key, values in plan.tune]
    return list(itertools.product(*keys))


def seeds(plan: ComparisonPlan) -> range:
    """Return the seeds of the search, which no verdict uses."""
    first = plan.first_seed + FIRST_SEED
    return range(first, first + NUM_SEEDS)


def searched(plan: ComparisonPlan) -> list[str]:
    """Return the labels of the base and of the arms that search; an A/A arm does not."""
    return [BASE, *(arm.label for arm in plan.arms if arm.words)]


def jobs(plan: ComparisonPlan) -> list[tuple[tuple[str, ...], Job]]:
    """Return the jobs of the search, each with the words that it tries."""
    return [
        (words, job_of(plan, label, seed, words, is_tuning=True))
        for label in searched(plan)
        for words in combinations(plan)
        for seed in seeds(plan)
    ]


def search(
    folder: ComparisonFolder, plan: ComparisonPlan, outputs: Path, batches: Batches
) -> Search:
    """Search the settings of the base and of every arm, unless the folder has them.

    The base again under other seeds (A/A) has the settings of the base: with its own search it
    might train with others, and a true difference would look like a false alarm.

    A search whose jobs failed for a reason other than divergence has not ended; the same command
    runs these jobs again. A combination that diverged loses.

    Raises:
        ArtefactError: the recorded search, or the result of a run, cannot be read.
        SweepError: the launcher could not run the jobs.
        StorageError: the folder cannot be written.
    """
    if not plan.tune:
        return Search()
    if (recorded := folder.tuning()) is not None:
        return Search(recorded)
    planned = jobs(plan)
    found: dict[Job, PairedRun] = {}
    own = [job for _, job in planned]
    if not (batches.may_begin(own) and batches.run(own, found.__setitem__)):
        return Search(is_ended=False)
    failed: dict[str, dict[str, str]] = {}
    for words, job in planned:
        run = found[job]
        if run.is_tried_again:
            name = f"search {' '.join(words)}, seed {job.seed}"
            failed.setdefault(job.label, {})[name] = run.failed
    tuned: dict[str, Tuned] = {}
    for label in searched(plan):
        if label not in failed:
            runs: dict[tuple[str, ...], dict[int, PairedRun]] = {}
            for words, job in planned:
                if job.label == label:
                    runs.setdefault(words, {})[job.seed] = found[job]
            tuned[label] = Tuned(_best(outputs, runs, METRICS[plan.metric]), runs)
    if BASE in tuned:
        again = {arm.label for arm in plan.arms if not arm.words}
        tuned |= dict.fromkeys(again, Tuned(tuned[BASE].chosen))
    if not failed:
        folder.write_tuning(tuned)
    return Search(tuned, failed)


def _best(
    outputs: Path, runs: Mapping[tuple[str, ...], Mapping[int, PairedRun]], metric: Metric
) -> tuple[str, ...]:
    """Return the words with the best mean of the metric, the first of equal ones.

    None if all diverged.
    """
    best, chosen = -math.inf, tuple[str, ...]()
    for words, by_seed in runs.items():
        ended = list(by_seed.values())
        if all(run.run is not None for run in ended):
            value = _mean([_value(outputs, run, metric) for run in ended])
            value = -value if metric.less_is_better else value
            if value > best:
                best, chosen = value, words
    return chosen


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _value(outputs: Path, run: PairedRun, metric: Metric) -> float:
    """Return the metric of a run in the view of its arm; runs of earlier versions may lack it."""
    found = read_run(outputs / str(run.run), run.evaluation)
    if metric.name not in found.metrics["plain"]:
        found = ScoreBook(outputs / "cache" / "report.npz").completed(found)
    return float(found.metrics["plain" if run.evaluation is None else "tta"][metric.name])
