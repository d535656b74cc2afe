"""The answer of a comparison: how each arm stands against the base, from the runs so far.

:func:`standings` pairs the runs of each arm with those of the base by seed, and replays every look
that is complete. It is a pure function of the question and the runs: a comparison that was killed
has the same answer as one that was not.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from runner.errors import ArtefactError
from runner.records.comparison_folder import (
    BASE,
    BASELINE,
    ArmPlan,
    ComparisonPlan,
    PairedRun,
    Tuned,
    displayed_label,
)
from runner.report.confirmation import Confirmation
from runner.report.factors import Look, trick_factors
from runner.report.family import FEWEST_SEEDS, Verdict, judged
from runner.report.groups import Arm, RunGroup
from runner.report.measured import Measured, compared, digest
from runner.report.measures import (
    Interval,
    Mean,
    Pair,
    is_timed,
    mean_of,
    pair_of,
    price_ratios,
    ratio,
)
from runner.report.metric import ACCURACY, METRICS, Metric
from runner.report.pooled import together
from runner.report.runs import FinishedRun, read_run
from runner.report.scores import ScoreBook, Scores
from runner.report.sequential import State, looks, walk
from runner.report.statistics import Difference

REASONS = ("", "decided", "futile", "all seeds", "failed", "budget")
_TIMELESS = ("images", "pixels")
_NO_SETTINGS = "every value of the search diverged"


@dataclass(frozen=True)
class Standing:
    """One arm of a comparison now.

    Attributes:
        label: label of the arm.
        words: what the arm changes in the base; empty for the base again under other seeds.
        chosen: words that the arm's search for settings chose.
        seeds: seeds of the pairs that count: those of the look that closed the arm, or of the last
            look; before the first look, all so far.
        failed: seeds that have no pair, because a training failed, each with the reason.
        mean: mean difference in the metric over these pairs; None without a pair.
        interval: interval of the difference: of a sequential design the repeated one, which holds
            at every look together; None before the first look, and below three pairs.
        p_zero: p-value of no difference, corrected for arms and looks; None where ``interval`` is.
        p_margin: p-value of a difference of at least the margin, corrected likewise.
        verdict: the verdict; "cannot tell" as long as the arm is open.
        is_open: whether the arm needs more seeds.
        reason: why the arm gets no more seeds, one of ``REASONS``: a verdict was reached, a verdict
            by the last look is improbable, the last look is over, too many trainings failed. The
            budget ends no arm: with that reason it is open. Otherwise empty.
        is_early: whether the arm helps or hurts before the last look, so that its size is probably
            overstated.
        max_seeds: largest number of seeds of the design.
        accuracy: accuracy of the arm over these seeds; None without a pair.
        value: the metric of the arm over these seeds, as ``accuracy``.
        price: ``images``, ``pixels``, and ``forward_passes`` per validation image, relative to the
            base; medians of the pairs. With :func:`timed`, also ``seconds``.
        pairs: the difference of each of ``seeds``.
        num_folds: number of folds of each seed; 1 without cross-validation.
    """

    label: str
    words: tuple[str, ...]
    chosen: tuple[str, ...]
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    mean: float | None
    interval: Interval | None
    p_zero: float | None
    p_margin: float | None
    verdict: Verdict
    is_open: bool
    reason: str
    is_early: bool
    max_seeds: int
    accuracy: Mean | None = None
    value: Mean | None = None
    price: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    num_folds: int = 1

    @property
    def outcome(self) -> str:
        """The verdict; ``failed`` if too many trainings failed for one."""
        return "failed" if self.reason == "failed" else self.verdict


@dataclass(frozen=True)
class LookRow:
    """One arm at one look.

    Attributes:
        n: number of seeds of the look.
        label: label of the arm.
        num_pairs: number of pairs, which is ``n`` without the failed ones.
        mean: mean difference in the metric.
        p_zero: p-value of no difference, corrected for arms and looks.
        p_margin: p-value of a difference of at least the margin, corrected likewise.
        verdict: the verdict after the look.
    """

    n: int
    label: str
    num_pairs: int
    mean: float
    p_zero: float
    p_margin: float
    verdict: Verdict


@dataclass(frozen=True)
class ComparisonAnswer:
    """The answer of a comparison, or its state so far.

    Attributes:
        plan: the question.
        base: accuracy of the base over its seeds; None without a run.
        base_seeds: seeds of the base's runs.
        base_failed: seeds whose training of the base failed, with the reasons.
        base_chosen: words that the base's search for settings chose.
        base_price: ``images`` and ``pixels`` of the base, medians of its runs. With :func:`timed`,
            also ``seconds``.
        standings: the arms in the order of the plan.
        looks: the arms at each look that is complete.
        is_ended: whether no arm needs more seeds, and no job failed that the same command tries
            again.
        num_trainings: number of trainings, with the failed ones; arms that share one count it once.
        num_evaluations: number of evaluations with TTA.
        notes: what to bear in mind, a sentence each.
        base_value: the metric that is compared of the base, as ``base``.
        confirmation: what the test images say, if that was asked for; no verdict depends on it.
    """

    plan: ComparisonPlan
    base: Mean | None
    base_seeds: tuple[int, ...]
    base_failed: Mapping[int, str]
    base_chosen: tuple[str, ...]
    base_price: Mapping[str, float]
    standings: tuple[Standing, ...]
    looks: tuple[LookRow, ...]
    is_ended: bool
    num_trainings: int
    num_evaluations: int
    notes: tuple[str, ...]
    base_value: Mean | None = None
    confirmation: Confirmation | None = None

    @property
    def metric(self) -> Metric:
        """What is compared."""
        return METRICS[self.plan.metric]

    @property
    def has_open_arms(self) -> bool:
        """Whether an arm needs more seeds."""
        return any(one.is_open for one in self.standings)


def standings(
    plan: ComparisonPlan,
    runs: Mapping[str, Mapping[int, PairedRun]],
    outputs: Path,
    book: ScoreBook,
    searched: Mapping[str, Tuned] | None = None,
    failed_searches: Collection[str] = (),
) -> ComparisonAnswer:
    """Judge the arms of a comparison by the runs that there are.

    A look is complete if every arm that is open before it has a run, or a failure, for each of its
    seeds, and the base too. Runs beyond the last complete look change nothing.

    Args:
        plan: the question.
        runs: the runs of the base and of each arm, by label and number of the pair.
        outputs: the folder of the runs.
        book: the scores of the runs.
        searched: the search for settings of the base and of each arm that has ended, by label.
        failed_searches: labels of arms whose search failed, and is tried again.

    Raises:
        ArtefactError: a run is missing, damaged, or is not the run of its place; or the looks of
            the plan are not those of this program.
    """
    searched = searched or {}
    chosen = {label: one.chosen for label, one in searched.items()}
    paired = _Paired(plan, _with_lost(plan, runs, chosen, failed_searches), outputs, book)
    now = _fixed(paired) if plan.is_fixed else _sequential(paired)
    found = tuple(_standing(paired, arm, now, chosen.get(arm.label, ())) for arm in plan.arms)
    base_seeds = tuple(seed for seed in plan.seeds if paired.has_run(BASE, seed))
    base_runs = [paired.run(BASE, seed) for seed in base_seeds]
    compared = [one for by_seed in runs.values() for one in by_seed.values()]
    tried = (by_seed for one in searched.values() for by_seed in one.runs.values())
    everything = [*compared, *(one for by_seed in tried for one in by_seed.values())]
    trained = {one.run for one in everything if one.run is not None}
    evaluated = {(one.run, one.evaluation) for one in everything if one.evaluation is not None}
    base_failed = {
        seed: one.failed
        for seed, one in sorted(by_seed(plan, runs)[BASE].items())
        if one.run is None
    }
    return ComparisonAnswer(
        plan=plan,
        base=mean_of([_accuracy(run) for run in base_runs]) if base_runs else None,
        base_value=paired.value(BASE, base_seeds),
        base_seeds=base_seeds,
        base_failed=base_failed,
        base_chosen=chosen.get(BASE, ()),
        base_price={
            key: float(np.median([run.budget[key] for run in base_runs]))
            for key in (_TIMELESS if base_runs else ())
        },
        standings=found,
        looks=tuple(now.rows),
        is_ended=not (
            failed_searches
            or any(one.is_open for one in found)
            or any(one.is_tried_again for one in compared)
        ),
        num_trainings=len(trained) + sum(one.run is None for one in everything),
        num_evaluations=len(evaluated),
        notes=tuple(
            _notes(plan, found, base_failed, chosen, sum(one.is_tried_again for one in compared))
        ),
    )


def _with_lost(
    plan: ComparisonPlan,
    runs: Mapping[str, Mapping[int, PairedRun]],
    chosen: Mapping[str, tuple[str, ...]],
    failed_searches: Collection[str],
) -> dict[str, Mapping[int, PairedRun]]:
    """Return the runs; an arm without settings from its search has failed with every seed."""
    lost = {label: _NO_SETTINGS for label, words in chosen.items() if plan.tune and not words}
    lost |= dict.fromkeys(failed_searches, "its search for settings failed")
    return {
        label: dict.fromkeys(plan.pairs, PairedRun(None, None, lost[label], is_diverged=True))
        if label in lost
        else by_seed
        for label, by_seed in runs.items()
    }


def out_of_budget(answer: ComparisonAnswer) -> ComparisonAnswer:
    """Return the same answer, in which open arms say that the budget is used up."""
    stopped = (replace(one, reason="budget") if one.is_open else one for one in answer.standings)
    return replace(answer, standings=tuple(stopped))


def by_seed(
    plan: ComparisonPlan, runs: Mapping[str, Mapping[int, PairedRun]]
) -> Mapping[str, Mapping[int, PairedRun]]:
    """Return the runs by label and seed. A seed has a run if each of its folds has one.

    With folds, the run of a seed represents those of all its folds; :func:`read_seed` reads them.
    """
    if plan.num_folds == 1:
        return runs
    return {label: _whole_seeds(plan, of_pairs) for label, of_pairs in runs.items()}


def _whole_seeds(plan: ComparisonPlan, of_pairs: Mapping[int, PairedRun]) -> dict[int, PairedRun]:
    found = {}
    for seed in plan.seeds:
        own = {
            fold: of_pairs[plan.pair(seed, fold)]
            for fold in range(plan.num_folds)
            if plan.pair(seed, fold) in of_pairs
        }
        failed = {fold: one for fold, one in own.items() if one.run is None}
        if failed:
            fold, one = next(iter(failed.items()))
            # A fold that diverged decides: the seed is lost, whatever the others do.
            fold, one = next(
                ((fold, one) for fold, one in failed.items() if one.is_diverged), (fold, one)
            )
            found[seed] = replace(one, failed=f"fold {fold}: {one.failed}")
        elif len(own) == plan.num_folds:
            found[seed] = own[0]
    return found


def read_seed(
    plan: ComparisonPlan, of_pairs: Mapping[int, PairedRun], seed: int, outputs: Path
) -> FinishedRun:
    """Return the run of one seed, or of all its folds together.

    Raises:
        ArtefactError: a run is missing or damaged.
        KeyError: there is none.
    """
    jobs = [of_pairs[plan.pair(seed, fold)] for fold in range(plan.num_folds)]
    parts = [read_run(outputs / str(one.run), one.evaluation) for one in jobs]
    return parts[0] if plan.num_folds == 1 else together(parts)


class _Paired:
    """The runs of a comparison, paired by seed; each is read once, when it is needed."""

    def __init__(
        self,
        plan: ComparisonPlan,
        runs: Mapping[str, Mapping[int, PairedRun]],
        outputs: Path,
        book: ScoreBook,
    ) -> None:
        self.plan = plan
        self.metric = METRICS[plan.metric]
        self._runs = by_seed(plan, runs)
        self._jobs = runs
        self._outputs = outputs
        self._book = book
        self._offsets = {arm.label: arm.seed_offset for arm in plan.arms}
        self._read: dict[tuple[str, int], FinishedRun] = {}
        self._images: tuple[str, str] | None = None

    def has_run(self, label: str, seed: int) -> bool:
        """Return whether the base, or an arm, has a run for a seed."""
        one = self._runs[label].get(seed)
        return one is not None and one.run is not None

    def is_complete(self, label: str, seeds: Sequence[int]) -> bool:
        """Return whether an arm and the base have a run or a failure for each seed.

        For a seed with which the base diverged the arm needs neither: no pair is possible.
        """
        arm, base = self._runs[label], self._runs[BASE]
        return all(seed in base and (seed in arm or base[seed].is_diverged) for seed in seeds)

    def pairs(self, label: str, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds for which both the arm and the base have a run."""
        return tuple(s for s in seeds if self.has_run(label, s) and self.has_run(BASE, s))

    def failures(self, label: str, seeds: Sequence[int]) -> dict[int, str]:
        """Return the seeds for which the arm or the base failed, with the reasons."""
        found = {}
        for seed in seeds:
            own, base = self._runs[label].get(seed), self._runs[BASE].get(seed)
            if own is not None and own.run is None:
                found[seed] = own.failed
            elif base is not None and base.run is None:
                found[seed] = f"the baseline failed: {base.failed}"
        return found

    def run(self, label: str, seed: int) -> FinishedRun:
        """Return the run of the base, or of an arm, for a seed.

        Raises:
            ArtefactError: the run is missing or damaged, or is not the run of its place.
        """
        if (label, seed) not in self._read:
            self._read[label, seed] = self._checked(label, seed)
        return self._read[label, seed]

    def _checked(self, label: str, seed: int) -> FinishedRun:
        run = read_seed(self.plan, self._jobs[label], seed, self._outputs)
        expected = seed + self._offsets.get(label, 0)
        folds = [part.fold.fold for part in run.parts if part.fold]
        of_folds = [*range(self.plan.num_folds)] if self.plan.num_folds > 1 else []
        for what, is_, should in (
            ("its seed", run.seed, expected),
            ("its folds", folds, of_folds),
            ("its number of validation images", run.num_val, self.plan.num_val),
            ("the fingerprint of its data", run.fingerprint, self.plan.fingerprint),
        ):
            if is_ != should:
                raise _foreign(run, label, seed, f"{what} is {is_}, not {should}")
        return run

    def scores(self, label: str, seed: int) -> Scores:
        """Return the scores of a run.

        Raises:
            ArtefactError: the predictions cannot be read, or are for other images.
        """
        run = self.run(label, seed)
        scores = self._book.scores(run)
        images = (scores.labels, scores.grouping)
        if self._images is None:
            self._images = images
        if images != self._images:
            raise _foreign(run, label, seed, "its images are not those of the other runs")
        return scores

    def measured(self, label: str, seeds: Sequence[int]) -> list[Measured]:
        """Return the metric of the runs, in the view that is compared."""
        found = []
        for seed in seeds:
            self.scores(label, seed)  # refuses those of other images
            run = self.run(label, seed)
            found.append(self._book.measured(run, _view(run), self.metric))
        return found

    def value(self, label: str, seeds: Sequence[int]) -> Mean | None:
        """Return the metric over these seeds; None without one."""
        if not seeds:
            return None
        if self.metric is ACCURACY:
            return mean_of([_accuracy(self.run(label, seed)) for seed in seeds])
        return mean_of([one.value for one in self.measured(label, seeds)])

    def difference(self, label: str, seeds: Sequence[int]) -> Difference:
        """Return the difference between an arm and the base over these pairs."""
        sides = self.measured(label, seeds), self.measured(BASE, seeds)
        scores = self.scores(BASE, seeds[0])
        found = digest(sides, scores.images.folds)
        key = "-".join(
            [found, scores.labels, scores.grouping, self.metric.name, str(self.plan.margin)]
        )
        if key not in _differences:
            if len(_differences) >= _MOST_REMEMBERED:
                _differences.clear()
            _differences[key] = compared(self.metric, *sides, scores.images, self.plan.margin)
        return _differences[key]


_MOST_REMEMBERED = 512
_differences: dict[str, Difference] = {}
"""Differences by what they are computed from, because every look is replayed each time."""


@lru_cache(maxsize=64)
def _walk(
    history: tuple[tuple[Difference | None, ...], ...],
    max_seeds: int,
    margin: float,
    less_is_better: bool,
) -> list[State]:
    return walk(history, max_seeds, margin, less_is_better=less_is_better)


def _foreign(run: FinishedRun, label: str, seed: int, why: str) -> ArtefactError:
    return ArtefactError(
        f"not the run of {displayed_label(label)} with seed {seed}: {why}",
        where=str(run.path),
        fix=f"mv {run.name} ELSEWHERE; the same command trains it again",
    )


def _view(run: FinishedRun) -> str:
    """Return the compared predictions of a run: with TTA if the run was evaluated with TTA."""
    return "plain" if run.evaluation is None else "tta"


def _accuracy(run: FinishedRun) -> float:
    return run.metrics[_view(run)]["accuracy"]


@dataclass(frozen=True)
class _Place:
    """Where an arm stands.

    Attributes:
        n: seeds of the look that closed the arm, or of the last one; 0 before the first.
        found: the difference over its pairs; None without a look, or without enough pairs.
        state: verdict, p-values and interval.
        reason: why it is closed; empty if it is open.
    """

    n: int = 0
    found: Difference | None = None
    verdict: Verdict = "cannot tell"
    p_zero: float | None = None
    p_margin: float | None = None
    interval: Interval | None = None
    reason: str = ""
    is_early: bool = False


@dataclass
class _Places:
    """Where all arms stand, and how they came there."""

    by_label: dict[str, _Place]
    rows: list[LookRow] = field(default_factory=list)


def _sequential(paired: _Paired) -> _Places:
    """Replay the complete looks of a sequential design."""
    plan = paired.plan
    if plan.looks != looks(plan.max_seeds):
        raise ArtefactError(
            "the comparison was planned with other looks than those of this version",
            where=f"comparison {plan.name}: looks {', '.join(map(str, plan.looks))}",
            fix="--name ANOTHER_NAME for a new comparison from the same runs",
        )
    now = _Places({arm.label: _Place() for arm in plan.arms})
    history: list[tuple[Difference | None, ...]] = []
    for n in plan.looks:
        seeds = plan.seeds[:n]
        still = [label for label, place in now.by_label.items() if not place.reason]
        if not still or not all(paired.is_complete(label, seeds) for label in still):
            break
        pairs = {label: paired.pairs(label, seeds) for label in still}
        row = {
            label: paired.difference(label, those)
            for label, those in pairs.items()
            if len(those) >= FEWEST_SEEDS
        }
        history.append(tuple(row.get(label) for label in now.by_label))
        less_is_better = paired.metric.less_is_better
        states = _walk(tuple(history), plan.max_seeds, plan.margin, less_is_better)
        for label, state in zip(now.by_label, states, strict=True):
            if label not in still:
                continue
            found = row.get(label)
            reason: str = state.reason
            if found is None and _is_lost(len(pairs[label]), n, plan.max_seeds):
                reason = "failed"
            now.by_label[label] = _Place(
                n=n,
                found=found,
                verdict=state.verdict,
                p_zero=state.p_zero if found else None,
                p_margin=state.p_margin if found else None,
                interval=state.interval if found else None,
                reason=reason,
                is_early=state.is_early,
            )
            if found is not None:
                now.rows.append(
                    LookRow(
                        n, label, found.n, found.mean, state.p_zero, state.p_margin, state.verdict
                    )
                )
    return now


def _is_lost(num_pairs: int, n: int, max_seeds: int) -> bool:
    """Return whether an arm without enough pairs at ``n`` seeds gets no further ones.

    An arm of which every training failed would go on failing; an arm that cannot have enough pairs
    by the last look has no verdict in any case. Neither is a verdict, so no error rate changes.
    """
    return num_pairs == 0 or num_pairs + max_seeds - n < FEWEST_SEEDS


def _fixed(paired: _Paired) -> _Places:
    """Judge a fixed design, once all of its runs are there."""
    plan = paired.plan
    now = _Places({arm.label: _Place() for arm in plan.arms})
    if not all(paired.is_complete(label, plan.seeds) for label in now.by_label):
        return now
    pairs = {label: paired.pairs(label, plan.seeds) for label in now.by_label}
    found = {label: paired.difference(label, those) for label, those in pairs.items() if those}
    results = judged(
        [*found.values()],
        plan.margin,
        plan.num_val,
        less_is_better=paired.metric.less_is_better,
    )
    said = dict(zip(found, results, strict=True))
    for label, those in pairs.items():
        # With folds, one seed is enough for an interval and a verdict.
        fewest = min(FEWEST_SEEDS, plan.max_seeds) if plan.num_folds == 1 else 1
        is_failed = len(those) < fewest
        place = _Place(n=plan.max_seeds, reason="failed" if is_failed else "all seeds")
        if those:
            one, own = found[label], said[label]
            is_enough = one.n >= FEWEST_SEEDS
            place = replace(
                place,
                found=one,
                verdict=own.verdict,
                p_zero=own.p_zero,
                p_margin=own.p_margin,
                interval=one.over_both if is_enough else None,
                reason="decided" if own.verdict != "cannot tell" else place.reason,
            )
            if own.p_zero is not None and own.p_margin is not None:
                now.rows.append(
                    LookRow(
                        plan.max_seeds, label, one.n, one.mean, own.p_zero, own.p_margin,
                        own.verdict,
                    )
                )  # fmt: skip
        now.by_label[label] = place
    return now


def _standing(paired: _Paired, arm: ArmPlan, now: _Places, chosen: tuple[str, ...]) -> Standing:
    plan, label = paired.plan, arm.label
    place = now.by_label[label]
    asked = plan.seeds[: place.n] if place.n else plan.seeds
    seeds = paired.pairs(label, asked)
    pairs: tuple[Pair, ...] = ()
    if seeds:
        sides = paired.measured(label, seeds), paired.measured(BASE, seeds)
        pairs = tuple(pair_of(*one, paired.metric) for one in zip(seeds, *sides, strict=True))
    ours = [paired.run(label, seed) for seed in seeds]
    theirs = [paired.run(BASE, seed) for seed in seeds]
    return Standing(
        label=label,
        words=arm.words,
        chosen=chosen,
        seeds=seeds,
        failed=paired.failures(label, asked),
        mean=float(np.mean([pair.difference for pair in pairs])) if pairs else None,
        interval=place.interval,
        p_zero=place.p_zero,
        p_margin=place.p_margin,
        verdict=place.verdict,
        is_open=not place.reason,
        reason=place.reason,
        is_early=place.is_early,
        max_seeds=plan.max_seeds,
        accuracy=mean_of([_accuracy(run) for run in ours]) if ours else None,
        value=paired.value(label, seeds),
        price=_price(ours, theirs),
        pairs=pairs,
        num_folds=plan.num_folds,
    )


def _price(ours: Sequence[FinishedRun], theirs: Sequence[FinishedRun]) -> dict[str, float]:
    """Return the cost of an arm relative to the base; a ratio to nothing is left out."""
    if not ours:
        return {}
    ratios = price_ratios(ours, theirs)
    found = {key: float(np.median(ratios[key])) for key in _TIMELESS}
    passes = [
        float(np.mean([run.metrics[_view(run)]["forward_passes"] for run in side]))
        for side in (ours, theirs)
    ]
    found["forward_passes"] = ratio(*passes)
    return {key: value for key, value in found.items() if np.isfinite(value)}


def counted_runs(
    answer: ComparisonAnswer, runs: Mapping[str, Mapping[int, PairedRun]], outputs: Path
) -> dict[tuple[str, int], FinishedRun]:
    """Return the readable runs of an answer, by label and seed; those of the base first."""
    sides = [(BASE, answer.base_seeds), *((one.label, one.seeds) for one in answer.standings)]
    known = {}
    for label, seeds in sides:
        for seed in seeds:
            with suppress(ArtefactError, KeyError):
                known[label, seed] = read_seed(answer.plan, runs[label], seed, outputs)
    return known


def timed(
    answer: ComparisonAnswer, known: Mapping[tuple[str, int], FinishedRun]
) -> ComparisonAnswer:
    """Add to an answer the seconds of its trainings, which differ between repetitions.

    An arm has no ``seconds`` if its runs did not take turns with those of the base on one machine,
    and if one can no longer be read.

    Args:
        answer: an answer of :func:`standings`, or of an earlier one from its record.
        known: its runs, of :func:`counted_runs`.
    """
    seconds = [run.budget["seconds"] for (label, _), run in known.items() if label == BASE]
    price = {"seconds": float(np.median(seconds))} if seconds else {}

    def with_seconds(one: Standing) -> Standing:
        sides = [[known.get((label, seed)) for seed in one.seeds] for label in (one.label, BASE)]
        ours, theirs = ([run for run in side if run is not None] for side in sides)
        if not ours or len(ours) < len(one.seeds) or len(theirs) < len(one.seeds):
            return one
        ratios = price_ratios(ours, theirs)["seconds"]
        is_one_training = [run.path for run in ours] == [run.path for run in theirs]
        found = float(np.median(ratios))
        if not np.isfinite(found) or not (is_one_training or is_timed(ours, theirs, ratios)):
            return one
        return replace(one, price={**one.price, "seconds": found})

    return replace(
        answer,
        base_price={**answer.base_price, **price},
        standings=tuple(with_seconds(one) for one in answer.standings),
    )


def _notes(
    plan: ComparisonPlan,
    found: Sequence[Standing],
    base_failed: Mapping[int, str],
    chosen: Mapping[str, tuple[str, ...]],
    num_tried_again: int,
) -> Iterator[str]:
    if num_tried_again:
        yield (
            f"{num_tried_again} training{'s' * (num_tried_again > 1)} failed without diverging: "
            "the same command tries again, and the answer can change"
        )
    for arm in plan.arms:
        if not arm.words:
            yield (
                f"{arm.label} is the baseline again under other seeds (A/A): if it helps or hurts, "
                "that is a false alarm"
            )
    if plan.num_folds > 1:
        yield (
            f"{plan.num_folds} folds: each of the {plan.num_val:,} images is predicted once per "
            "seed, by a network that was not trained on it; the intervals allow for training sets "
            "that overlap (Nadeau & Bengio 2003)"
        )
    if plan.shares_runs_with:
        names = ", ".join(plan.shares_runs_with)
        yield (
            f"comparison {names} has seen some of these runs before: the error rate of 5 % holds "
            "for each comparison alone, not for what was chosen after the earlier one"
        )
    if plan.tune:
        keys = ", ".join(key for key, _ in plan.tune)
        yield (
            f"every arm and the baseline had the same search for {keys}, on seeds of its own that "
            "no verdict uses"
        )
        for arm in plan.arms:
            if not arm.words:
                yield f"{arm.label} has no search of its own: it has the settings of the baseline"
        if any(chosen.values()):
            sides = {BASELINE: chosen.get(BASE, ()), **{one.label: one.chosen for one in found}}
            choices = (f"{name}: {shlex.join(words) or 'none'}" for name, words in sides.items())
            yield f"chosen by the search: {'; '.join(choices)}"
    changes = [one for one in found if one.words]  # a control is no candidate for the best arm
    if len(changes) > 1 and any(one.verdict == "helps" for one in changes):
        yield (
            "the verdicts allow for the number of arms; the size of the best one does not: chosen "
            "on the same images, it is probably overstated"
        )
    if base_failed:
        seeds = ", ".join(map(str, sorted(base_failed)))
        yield f"the baseline failed with seed {seeds}: no arm has a pair there"
    if any(one.failed for one in found if one.seeds):
        yield "where trainings failed, the difference is that of the seeds in which none did"


def compared_runs(
    answer: ComparisonAnswer, known: Mapping[tuple[str, int], FinishedRun]
) -> RunGroup | None:
    """Return the runs of :func:`counted_runs`, for the details of the page; the baseline is first.

    None if there is no run, or one can no longer be read.
    """
    sides = [(BASE, answer.base_seeds), *((one.label, one.seeds) for one in answer.standings)]
    arms = []
    for label, seeds in sides:
        found = {seed: known[label, seed] for seed in seeds if (label, seed) in known}
        if len(found) < len(seeds):
            return None
        if found:
            example = next(iter(found.values()))
            name = displayed_label(label)
            arms.append(Arm(Look(example, _view(example), {}), {}, label=name, runs=found))
    return RunGroup({}, arms, trick_factors()) if arms else None
