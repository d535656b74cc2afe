"""The answer: every trick against the baseline and within combinations, with what it costs."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runner.errors import ArtefactError, ConfigError
from runner.report.comparisons import ComparisonAnswer
from runner.report.factors import (
    ALL,
    Factors,
    chosen_factors,
    differing_keys,
    looks_of,
)
from runner.report.found_comparisons import FoundComparisons
from runner.report.groups import Arm, RunGroup, assign_failed, group_runs, trick_label
from runner.report.measured import why_undefined
from runner.report.measures import (
    PRICES,
    Mean,
    mean_of,
)
from runner.report.metric import ACCURACY, Metric, undefined
from runner.report.notes import family_notes, group_notes, other_comparisons
from runner.report.paired import Asked, Comparison, Family, compare_tables
from runner.report.runs import FinishedRun, Found, Unranked
from runner.report.scores import ScoreBook
from runner.training.metrics import METRICS


@dataclass(frozen=True)
class Row:
    """The metrics and the cost of one arm, over its seeds.

    Attributes:
        label: label of the arm.
        changes: differences from the baseline: tricks, or ``KEY=VALUE``.
        values: values of the factors that differ in the group, by dotted key.
        seeds: seeds of the arm's runs.
        failed: seeds without a run because the training failed, with the reasons.
        metrics: each of ``METRICS``; NaN where it is undefined.
        price: images, pixels and seconds of training with its evaluations, median of the runs.
        forward_passes: forward passes per validation image.
        num_folds: number of folds of each seed; 1 without cross-validation.
    """

    label: str
    changes: tuple[str, ...]
    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    metrics: Mapping[str, Mean]
    price: Mapping[str, float]
    forward_passes: float
    num_folds: int = 1


@dataclass(frozen=True)
class GroupAnswer:
    """The answer about one group of comparable runs.

    Attributes:
        group: the group.
        rows: a row per arm, the baseline first.
        baseline: label of the baseline; None if there is none.
        comparisons: comparisons of arms with the baseline.
        contributions: comparisons within combinations: an arm with the arm that lacks one change.
        family: all these comparisons, as they were judged together.
        notes: limits of the comparison, a sentence each.
    """

    group: RunGroup
    rows: tuple[Row, ...]
    baseline: str | None
    comparisons: tuple[Comparison, ...]
    contributions: tuple[Comparison, ...]
    family: Family
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The answer about all runs that were found.

    Attributes:
        groups: answers about the groups, largest group first.
        unranked: runs that are not compared, with the reasons.
        foreign: names of entries that are not runs.
        margin: smallest difference that matters, in units of the metric.
        metric: what is compared.
        by: names of the factors; empty for the tricks.
        notes: arms that are not judged, and hints at other possible comparisons; commands to paste
            are indented.
        comparisons: the answers of the comparisons that ``runner.compare`` made or makes.
        compared_runs: for each of ``comparisons``, its runs; None where one can no longer be read.
    """

    groups: tuple[GroupAnswer, ...]
    unranked: tuple[Unranked, ...]
    foreign: tuple[str, ...]
    margin: float
    metric: Metric = ACCURACY
    by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    comparisons: tuple[ComparisonAnswer, ...] = ()
    compared_runs: tuple[RunGroup | None, ...] = ()


def answer(
    found: Found,
    book: ScoreBook,
    margin: float,
    baseline: Sequence[str] = (),
    by: Sequence[str] = (),
    command: Sequence[str] = ("python", "-m", "runner.report"),
    comparisons: FoundComparisons | None = None,
    metric: Metric = ACCURACY,
) -> Answer:
    """Compare the runs of every group.

    Args:
        found: the runs, and other entries of their folders.
        book: the scores of the runs.
        margin: smallest difference that matters, in units of the metric, above 0, below 1.
        baseline: the arm to compare with: its label, its tricks joined by ``+``, or each
            ``KEY=VALUE`` that it has. The default is the arm without tricks, or with ``by`` the arm
            with default values.
        by: groups and keys that are compared, or ``all``; empty for the tricks.
        command: the command that was called, from which notes build others.
        comparisons: the comparisons among the runs. An arm all of whose runs belong to them is not
            judged again, because their number of seeds was not fixed beforehand; it stays as what
            other arms are compared with. Nor is an arm of which some runs belong to them, which a
            note says. Their failed trainings count nowhere else.
        metric: what is compared.

    Raises:
        ConfigError: no group has that baseline, a key is unknown, or the metric is defined for no
            run, such as AUROC where a class has no images.
    """
    readable, damaged = _readable(found.runs, book)
    runs, without = _with_value(readable, book, metric)
    factors = chosen_factors(by, [look for run in runs for look in looks_of(run)])
    if by and (names := [word for word in baseline if "=" not in word]):
        raise ConfigError(
            "with --by a baseline is a value, not a name",
            where=f"--baseline {names[0]}",
            fix=f"--baseline {factors.all[0].name if factors.all else 'KEY'}=VALUE",
        )
    groups = group_runs(runs, factors, baseline)
    compared = comparisons or FoundComparisons()
    assign_failed(groups, [run for run in found.failed if run.path not in compared.failed])
    references = [_baseline(group, baseline) for group in groups]
    if baseline and not any(references):
        labels = dict.fromkeys(arm.label for group in groups for arm in group.arms)
        _check_compared(baseline, by, factors, groups)
        raise ConfigError(
            f"no runs with these {'values' if by else 'tricks'}",
            where=" ".join(f"--baseline {word}" for word in baseline),
            fix=f"one of: {', '.join(labels) or 'none, there are no finished runs'}",
        )
    kept = [
        (replace(group, arms=arms), reference)
        for group, reference in zip(groups, references, strict=True)
        if (arms := _arms_to_judge(group, reference, compared))
    ]
    hints = tuple(other_comparisons([group for group, _ in kept], by, command))
    mixed = tuple(
        note
        for group, reference in zip(groups, references, strict=True)
        for note in _mixed_notes(group, reference, compared)
    )
    return Answer(
        tuple(
            _group_answer(group, reference, book, margin, metric, baseline, is_hinted=bool(hints))
            for group, reference in kept
        ),
        (*found.unranked, *damaged, *without, *compared.damaged),
        tuple(found.foreign),
        margin,
        metric,
        tuple(factor.name for factor in factors.all) if by else (),
        (*mixed, *hints),
        compared.answers,
        compared.groups,
    )


def _arms_to_judge(
    group: RunGroup, reference: Arm | None, comparisons: FoundComparisons
) -> list[Arm]:
    """Return the arms without a run that belongs to a comparison, and what they are compared with.

    Runs of a comparison were looked at as they came. A test of a fixed number of seeds that
    includes them would not have its error rate.
    """
    single = {id(arm) for arm in group.arms if not _holders(arm, comparisons)}
    return [arm for arm in group.arms if single and (id(arm) in single or arm is reference)]


def _holders(arm: Arm, comparisons: FoundComparisons) -> dict[int, str]:
    """Return the names of comparisons that runs of an arm belong to, by seed."""
    names = {seed: comparisons.holder(run, arm.view) for seed, run in sorted(arm.runs.items())}
    return {seed: name for seed, name in names.items() if name is not None}


def _mixed_notes(
    group: RunGroup, reference: Arm | None, comparisons: FoundComparisons
) -> Iterable[str]:
    """Name the arms of which some runs belong to comparisons, and others do not."""
    for arm in group.arms:
        held = _holders(arm, comparisons)
        if held and len(held) < len(arm.runs) and arm is not reference:
            names = ", ".join(dict.fromkeys(held.values()))
            yield (
                f"{arm.label} is not judged here: {len(held)} of its {len(arm.runs)} seeds belong "
                f"to comparison {names}, whose verdict stands above; a second verdict that "
                "includes them would have another error rate than 5 %"
            )


def _check_compared(
    baseline: Sequence[str], by: Sequence[str], factors: Factors, groups: Sequence[RunGroup]
) -> None:
    """Raise if a key of ``baseline`` is known, but is not what ``--by`` compares."""
    known = {key for group in groups for key in group.arms[0].look.values}
    for word in baseline if by else ():
        key = word.partition("=")[0]
        if factors.of(key) is None and key in known:
            keys = list(dict.fromkeys([*by, key]))
            also = shlex.join(part for name in keys for part in ("--by", name))
            raise ConfigError(
                f"{key} is not compared",
                where=f"--baseline {word}",
                fix="leave it out: --by all found no difference in it" if ALL in by else also,
            )


def _readable(
    runs: Iterable[FinishedRun], book: ScoreBook
) -> tuple[list[FinishedRun], list[Unranked]]:
    """Return the runs with readable predictions for the same images, and the other runs."""
    images: dict[str, tuple[str, str]] = {}
    good: list[FinishedRun] = []
    bad: list[Unranked] = []
    for run in runs:
        try:
            scores = book.scores(run)
            images[run.identity] = (scores.labels, scores.grouping)
            good.append(book.completed(run))
        except ArtefactError as error:
            bad.append(Unranked(run.name, "unreadable", error.what))
    of_data: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for run in good:
        of_data[run.fingerprint][images[run.identity]] += 1
    usual = {data: counts.most_common(1)[0][0] for data, counts in of_data.items()}
    odd = [run for run in good if images[run.identity] != usual[run.fingerprint]]
    for run in odd:
        is_alike = images[run.identity][0] == usual[run.fingerprint][0]
        what = "groups of images" if is_alike else "labels"
        reason = f"its {what} are not those of most runs on this data"
        bad.append(Unranked(run.name, "unreadable", reason))
    return [run for run in good if run not in odd], bad


def _with_value(
    runs: Sequence[FinishedRun], book: ScoreBook, metric: Metric
) -> tuple[list[FinishedRun], list[Unranked]]:
    """Return the runs on whose images a metric is defined, and the other runs.

    Raises:
        ConfigError: the metric is defined for no run.
    """
    of_data: dict[str, str | None] = {}
    for run in runs:
        if run.fingerprint not in of_data:
            images = book.scores(run).images
            found = why_undefined(metric, images.classes, run.classes, images.folds)
            of_data[run.fingerprint] = found
    good, without = [], []
    for run in runs:
        reason = of_data[run.fingerprint]
        if reason is None:
            good.append(run)
        else:
            what = f"{metric.label} is not defined: {reason}"
            without.append(Unranked(run.name, "undefined", what))
    if runs and not good:
        raise undefined(metric, of_data[runs[0].fingerprint] or "", runs[0].name)
    return good, without


def _group_answer(
    group: RunGroup,
    reference: Arm | None,
    book: ScoreBook,
    margin: float,
    metric: Metric,
    baseline: Sequence[str],
    *,
    is_hinted: bool,
) -> GroupAnswer:
    ordered = sorted(group.arms, key=lambda arm: arm is not reference)
    against_baseline, within = [], []
    if reference is not None:
        against_baseline = [
            (
                _own_plain(reference, arm) or arm,
                _own_plain(arm, reference) or reference,
                arm.label,
            )
            for arm in ordered[1:]
        ]
        within = list(_leave_one_out(group, reference))
    family = compare_tables((against_baseline, within), book, margin, metric)
    compared, contributions = family.tables
    varying = differing_keys([arm.all_values for arm in ordered])
    return GroupAnswer(
        group,
        tuple(_row(arm, varying) for arm in ordered),
        reference.label if reference else None,
        compared,
        contributions,
        family,
        (
            *group_notes(group, reference, compared, baseline, is_hinted=is_hinted),
            *family_notes(group, reference, family, margin, metric),
        ),
    )


def _baseline(group: RunGroup, words: Sequence[str]) -> Arm | None:
    """Return the arm to compare with: requested, else the default, else with fewest changes."""
    if not group.factors.are_tricks:
        return group.reference
    if len(words) == 1 and (arm := group.find(words[0])):
        return arm
    if any("=" not in word for word in words):
        return None
    arms = group.matching(words)
    common = set.intersection(*(set(arm.names) for arm in arms)) if arms else set()
    candidates = [arm for arm in arms if set(arm.names) == common]
    return candidates[0] if len(candidates) == 1 else None


def _own_plain(arm: Arm, reference: Arm) -> Arm | None:
    """Return the plain view of a TTA arm's runs, if ``reference`` is the same training."""
    is_own = (arm.view, reference.view) == ("tta", "plain")
    if not is_own or arm.training != reference.training:
        return None
    return replace(reference, runs=arm.runs)


def _leave_one_out(group: RunGroup, baseline: Arm) -> Iterable[Asked]:
    """Return pairs of an arm with two or more changes and an arm that lacks one of them."""
    by_tricks = group.factors.are_tricks
    for arm in group.arms:
        for factor, part in arm.parts.items():
            left = tuple(name for name in arm.names if name not in part)
            if not left:
                continue
            change = trick_label(part) if by_tricks else " + ".join(part)
            for other in group.arms:
                if other is baseline or other.names != left:
                    continue
                if all(arm.values[key] == other.values[key] for key in arm.values if key != factor):
                    within = f"in {arm.label}" if by_tricks else f"with {other.label}"
                    yield arm, _own_plain(arm, other) or other, f"{change} {within}"


def _row(arm: Arm, varying: Sequence[str]) -> Row:
    runs = arm.runs
    return Row(
        label=arm.label,
        changes=arm.names,
        values={key: arm.look.values.get(key) for key in varying},
        seeds=tuple(sorted(runs)),
        failed=dict(sorted(arm.failed.items())),
        metrics={name: mean_of(list(arm.metric(name).values())) for name in METRICS},
        price={key: float(np.median([run.budget[key] for run in runs.values()])) for key in PRICES},
        forward_passes=arm.forward_passes,
        num_folds=max(1, len(arm.look.run.parts)),
    )
