"""The answer: every trick against the baseline and within combinations, with what it costs."""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.overlays import tricks_with_overlay
from runner.errors import ArtefactError, ConfigError
from runner.report.factors import (
    ALL,
    CODE,
    Factors,
    Look,
    canonical_text,
    chosen_factors,
    differing_factors,
    differing_keys,
    is_default,
    level_names,
    level_of,
    looks_of,
)
from runner.report.family import FEWEST_SEEDS, Outlook, Verdict, judged
from runner.report.groups import Arm, RunGroup, group_runs, trick_label
from runner.report.measures import (
    PRICES,
    Mean,
    Pair,
    is_timed,
    mean_of,
    pair_of,
    price_ratios,
    ratio,
)
from runner.report.runs import METRICS, FinishedRun, Found, Unranked, content_with_digest
from runner.report.scores import ScoreBook
from runner.report.statistics import (
    Difference,
    difference,
)

FIRST_SEEDS = 5
"""Number of seeds to advise after one seed, which does not show how many are needed."""
_MOST_NAMED = 3  # most factors that a suggested command names; for more it says "all"
_EQUAL_BUDGET = 0.005  # relative difference that rounding to whole steps may make


@dataclass(frozen=True)
class MoreRuns:
    """A command for other seeds.

    Attributes:
        words: the words of a run's command, except its seed.
        seeds: the seeds to run.
    """

    words: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def command(self) -> str:
        """The command as text to paste."""
        first, last = self.seeds[0], self.seeds[-1]
        spelled = ",".join(map(str, self.seeds))
        if len(self.seeds) > 2 and last - first == len(self.seeds) - 1:
            spelled = f"range({first},{last + 1})"
        sweep = ["-m"] if len(self.seeds) > 1 else []
        return shlex.join([*self.words[:3], *sweep, *self.words[3:], f"seed={spelled}"])


@dataclass(frozen=True)
class Row:
    """The metrics and the cost of one arm, over its seeds.

    Attributes:
        label: label of the arm.
        changes: differences from the baseline: tricks, or ``KEY=VALUE``.
        values: values of the factors that differ in the group, by dotted key.
        seeds: seeds of the arm's runs.
        metrics: accuracy, nll, brier and ece.
        price: images, pixels and seconds of training with its evaluations, median of the runs.
        forward_passes: forward passes per validation image.
    """

    label: str
    changes: tuple[str, ...]
    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mean]
    price: Mapping[str, float]
    forward_passes: float


@dataclass(frozen=True)
class Comparison:
    """A comparison of an arm with a reference, paired by seed.

    Attributes:
        label: label of the trick, or of the arm.
        arm: label of the arm.
        reference: label of the reference.
        seeds: seeds that both have.
        found: the difference in accuracy.
        pairs: the difference of each seed.
        p_zero: p-value of no difference, corrected by Holm over the comparisons of the same table;
            None for one seed.
        p_margin: p-value of the equivalence test, corrected in the same way.
        verdict: the verdict on accuracy.
        outlook: data that would settle the comparison, if the verdict is cannot tell.
        others: difference in nll, brier and ece.
        price: images, pixels and seconds relative to the reference, median of the seeds, as
            machines are shared; and ``forward_passes``.
        is_equal_budget: whether both trained on equally many images and pixels.
        is_timed: whether the ratio of seconds is the price of the change, and not an effect of
            other work of the machine.
        more: runs that would settle the comparison.
    """

    label: str
    arm: str
    reference: str
    seeds: tuple[int, ...]
    found: Difference
    pairs: tuple[Pair, ...]
    p_zero: float | None
    p_margin: float | None
    verdict: Verdict
    outlook: Outlook | None
    others: Mapping[str, Mean]
    price: Mapping[str, float]
    is_equal_budget: bool
    is_timed: bool
    more: tuple[MoreRuns, ...]


@dataclass(frozen=True)
class GroupAnswer:
    """The answer about one group of comparable runs.

    Attributes:
        group: the group.
        rows: a row per arm, the baseline first.
        baseline: label of the baseline; None if there is none.
        comparisons: comparisons of arms with the baseline.
        contributions: comparisons within combinations: an arm with the arm that lacks one change.
        notes: limits of the comparison, a sentence each.
    """

    group: RunGroup
    rows: tuple[Row, ...]
    baseline: str | None
    comparisons: tuple[Comparison, ...]
    contributions: tuple[Comparison, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The answer about all runs that were found.

    Attributes:
        groups: answers about the groups, largest group first.
        unranked: runs that are not compared, with the reasons.
        foreign: names of entries that are not runs.
        margin: smallest difference in accuracy that matters, 0..1.
        by: names of the factors; empty for the tricks.
        notes: hints at other possible comparisons; commands to paste are indented.
    """

    groups: tuple[GroupAnswer, ...]
    unranked: tuple[Unranked, ...]
    foreign: tuple[str, ...]
    margin: float
    by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def answer(
    found: Found,
    book: ScoreBook,
    margin: float,
    baseline: Sequence[str] = (),
    by: Sequence[str] = (),
    command: Sequence[str] = ("python", "-m", "runner.report"),
) -> Answer:
    """Compare the runs of every group.

    Args:
        found: the runs, and other entries of their folders.
        book: the scores of the runs.
        margin: smallest difference in accuracy that matters, above 0, below 1.
        baseline: the arm to compare with: its label, its tricks joined by ``+``, or each
            ``KEY=VALUE`` that it has. The default is the arm without tricks, or with ``by`` the arm
            with default values.
        by: groups and keys that are compared, or ``all``; empty for the tricks.
        command: the command that was called, from which notes build others.

    Raises:
        ConfigError: no group has that baseline, or a key is unknown.
    """
    runs, damaged = _readable(found.runs, book)
    factors = chosen_factors(by, [look for run in runs for look in looks_of(run)])
    if by and (names := [word for word in baseline if "=" not in word]):
        raise ConfigError(
            "with --by a baseline is a value, not a name",
            where=f"--baseline {names[0]}",
            fix=f"--baseline {factors.all[0].name if factors.all else 'KEY'}=VALUE",
        )
    groups = group_runs(runs, factors, baseline)
    references = [_baseline(group, baseline) for group in groups]
    if baseline and not any(references):
        labels = dict.fromkeys(arm.label for group in groups for arm in group.arms)
        _check_compared(baseline, by, factors, groups)
        raise ConfigError(
            f"no runs with these {'values' if by else 'tricks'}",
            where=" ".join(f"--baseline {word}" for word in baseline),
            fix=f"one of: {', '.join(labels) or 'none, there are no finished runs'}",
        )
    hints = tuple(_hints(groups, by, command))
    return Answer(
        tuple(
            _group_answer(group, reference, book, margin, baseline, is_hinted=bool(hints))
            for group, reference in zip(groups, references, strict=True)
        ),
        (*found.unranked, *damaged),
        tuple(found.foreign),
        margin,
        tuple(factor.name for factor in factors.all) if by else (),
        hints,
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
    """The runs with readable predictions for the same images, and the other runs."""
    images: dict[str, tuple[str, str]] = {}
    good: list[FinishedRun] = []
    bad: list[Unranked] = []
    for run in runs:
        try:
            scores = book.scores(run)
            images[run.identity] = (scores.labels, scores.grouping)
            good.append(run)
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


def _group_answer(
    group: RunGroup,
    reference: Arm | None,
    book: ScoreBook,
    margin: float,
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
    both = [_compare_all(asked, book, margin) for asked in (against_baseline, within)]
    judged_all = _judged([*both[0], *both[1]], margin)
    compared, contributions = judged_all[: len(both[0])], judged_all[len(both[0]) :]
    varying = differing_keys([arm.all_values for arm in ordered])
    return GroupAnswer(
        group,
        tuple(_row(arm, varying) for arm in ordered),
        reference.label if reference else None,
        compared,
        contributions,
        tuple(_notes(group, reference, compared, baseline, is_hinted=is_hinted)),
    )


Asked = tuple[Arm, Arm, str]
"""An arm, what it is compared with, and what the comparison is called."""


def _baseline(group: RunGroup, words: Sequence[str]) -> Arm | None:
    """The arm to compare with: as requested, else the default, else with the fewest changes."""
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
    """The plain view of the same runs as a TTA arm, if ``reference`` is the same training."""
    is_own = (arm.view, reference.view) == ("tta", "plain")
    if not is_own or arm.training != reference.training:
        return None
    return replace(reference, runs=arm.runs)


def _leave_one_out(group: RunGroup, baseline: Arm) -> Iterable[Asked]:
    """Pairs of an arm with two or more changes and an arm that lacks just one of its changes."""
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


def _compare(
    arm: Arm, reference: Arm, label: str, book: ScoreBook, margin: float
) -> Comparison | None:
    """Compare two arms, without a verdict yet; None if they have no common seed."""
    seeds = tuple(sorted(set(arm.runs) & set(reference.runs)))
    if not seeds:
        return None
    ours, theirs = (
        np.stack([book.scores(side.runs[seed]).correct[side.view] for seed in seeds])
        for side in (arm, reference)
    )
    groups = book.scores(arm.runs[seeds[0]]).groups  # those of all runs: the others are left out
    pairs = [pair_of(seed, new, old) for seed, new, old in zip(seeds, ours, theirs, strict=True)]
    ratios = price_ratios(
        [arm.runs[seed] for seed in seeds], [reference.runs[seed] for seed in seeds]
    )
    price = {key: float(np.median(values)) for key, values in ratios.items()}
    is_equal = all(abs(price[key] - 1) <= _EQUAL_BUDGET for key in ("images", "pixels"))
    passes = [_forward_passes(side) for side in (arm, reference)]
    return Comparison(
        label=label,
        arm=arm.label,
        reference=reference.label,
        seeds=seeds,
        found=difference(ours.astype(np.float32), theirs.astype(np.float32), margin, groups),
        pairs=tuple(pairs),
        p_zero=None,
        p_margin=None,
        verdict="cannot tell",
        outlook=None,
        others={
            key: mean_of([new[seed] - old[seed] for seed in seeds])
            for key in METRICS[1:]
            for new, old in [(arm.metric(key), reference.metric(key))]
        },
        price={**price, "forward_passes": ratio(*passes)},
        is_equal_budget=is_equal,
        is_timed=arm.training == reference.training
        or is_timed(
            [arm.runs[seed] for seed in seeds],
            [reference.runs[seed] for seed in seeds],
            ratios["seconds"],
        ),
        more=(),
    )


def _compare_all(
    asked: Sequence[Asked], book: ScoreBook, margin: float
) -> list[tuple[Comparison, Arm, Arm]]:
    """The comparisons of one table with their two arms, without verdicts yet."""
    return [
        (comparison, arm, reference)
        for arm, reference, label in asked
        if (comparison := _compare(arm, reference, label, book, margin))
    ]


def _judged(
    compared: Sequence[tuple[Comparison, Arm, Arm]], margin: float
) -> tuple[Comparison, ...]:
    """Add the verdicts, or if one is cannot tell, the runs that would settle it.

    All comparisons of a group are one family. One that is in both tables, or in one of them
    reversed, counts once.
    """
    distinct = {frozenset({one.arm, one.reference}): one.found for one, _, _ in compared}
    num_images = compared[0][1].num_images if compared else 0
    found = dict(zip(distinct, judged(list(distinct.values()), margin, num_images), strict=True))
    results = []
    for one, arm, reference in compared:
        said = found[frozenset({one.arm, one.reference})]
        kind = said.verdict
        if kind in ("helps", "hurts"):
            kind = "helps" if one.found.mean > 0 else "hurts"
        wanted = said.outlook.seeds if said.outlook else None
        if one.found.n < FEWEST_SEEDS:
            wanted = FIRST_SEEDS
        results.append(
            replace(
                one,
                p_zero=said.p_zero,
                p_margin=said.p_margin,
                verdict=kind,
                outlook=said.outlook,
                more=_more_runs(arm, reference, wanted) if wanted else (),
            )
        )
    return tuple(results)


def _row(arm: Arm, varying: Sequence[str]) -> Row:
    runs = arm.runs
    return Row(
        label=arm.label,
        changes=arm.names,
        values={key: arm.look.values.get(key) for key in varying},
        seeds=tuple(sorted(runs)),
        metrics={name: mean_of(list(arm.metric(name).values())) for name in METRICS},
        price={key: float(np.median([run.budget[key] for run in runs.values()])) for key in PRICES},
        forward_passes=_forward_passes(arm),
    )


def _notes(
    group: RunGroup,
    reference: Arm | None,
    compared: Sequence[Comparison],
    asked: Sequence[str],
    *,
    is_hinted: bool,
) -> Iterable[str]:
    by_tricks = group.factors.are_tricks
    if reference is None:
        labels = ", ".join(arm.label for arm in group.arms)
        missing = f"run with {' '.join(asked)}" if asked else "run without tricks"
        choice = (
            f"; choose one: --baseline with one of {labels}" if by_tricks else f", but {labels}"
        )
        yield f"no {missing} to compare with{choice}"
        return
    if by_tricks and len(group.arms) == 1 and not reference.names and not is_hinted:
        yield "only the baseline so far: train a trick, with +trick=mixup for instance"
    if by_tricks and reference.names:
        yield f"no run without tricks to compare with{_baseline_command(reference)}"
    if not by_tricks and not asked and len(group.arms) > 1:
        yield from _note_on_the_baseline(group, reference)
    done = {one.label for one in compared}
    for arm in group.arms:
        if arm is not reference and arm.label not in done:
            yield (f"{arm.label} is not compared: it has no seed in common with {reference.label}")
    seeds = {arm.label: arm.runs for arm in group.arms}
    for one in compared:
        if alone := sorted(set(seeds[one.label]) - set(one.seeds)):
            yield f"{one.label}: no {one.reference} with seed {', '.join(map(str, alone))}"
    if single := [one.label for one in compared if len(one.seeds) == 1]:
        yield (
            f"one seed only of {', '.join(single)}: that interval is of the images alone and "
            f"speaks of two networks, not of the {'trick' if by_tricks else 'change'}"
        )
    for key in ("torch", "device", "threads", "runner"):
        values = {str(run.environment.get(key)) for arm in group.arms for run in arm.runs.values()}
        if len(values) > 1:
            yield f"the runs differ in {key}: {', '.join(sorted(values))}"


def _note_on_the_baseline(group: RunGroup, reference: Arm) -> Iterable[str]:
    """Explain the choice of the baseline, unless all its values are defaults."""
    others = [
        factor.name
        for factor in group.factors.all
        if len({canonical_text(arm.values[factor.name]) for arm in group.arms}) > 1
        and not is_default(factor, reference.look)
    ]
    if others:
        most = max(len(arm.runs) for arm in group.arms if arm is not reference)
        why = "which has the most runs" if len(reference.runs) > most else "the first in order"
        yield (
            f"no baseline with the default of {' and '.join(others)}: compared with "
            f"{reference.label}, {why}; choose another with --baseline KEY=VALUE"
        )


def _hints(groups: Sequence[RunGroup], by: Sequence[str], command: Sequence[str]) -> Iterable[str]:
    """Name the runs that these factors do not compare, and the ``--by`` that would compare them."""
    if not groups:
        return
    factors = groups[0].factors
    if by and not factors.all:
        yield "the runs differ in nothing but their seeds"
    lonely = set()
    for factor in factors.all if by else ():
        names = level_names(factor, [arm.look for group in groups for arm in group.arms])
        if len(names) == 1:
            yield f"all runs have {next(iter(names.values()))}: there is nothing to compare it with"
        elif not any(
            len({level_of(factor, arm.look) for arm in group.arms}) > 1 for group in groups
        ):
            lonely.add(factor.name)
    of_data: dict[str, list[RunGroup]] = defaultdict(list)
    for group in groups:
        of_data[str(group.values["fingerprint"])].append(group)
    hinted: set[str] = set()
    for members in of_data.values():
        is_compared = any(len(_trainings(group)) > 1 for group in members)
        names_of = differing_factors(look for group in members for look in _trainings(group))
        who = "the runs"
        if is_compared and not by:
            names_of, who = _between_groups(members), "other runs"
        elif is_compared:
            who = f"runs that differ in {' and '.join(sorted(lonely))}"
            names_of = names_of if lonely & set(names_of) else []
        if not names_of:
            continue
        hinted |= lonely & set(names_of)
        them = "it" if len(names_of) == 1 else "them"
        yield f"{who} differ in {' and '.join(names_of)}; to compare by {them}:"
        words = names_of if len(names_of) <= _MOST_NAMED else [ALL]
        yield "    " + shlex.join([*command, *(part for name in words for part in ("--by", name))])
    if other_data := sorted(lonely - hinted):
        yield (
            f"runs that differ in {' and '.join(other_data)} have other images: only runs on equal "
            "images can be compared"
        )


def _between_groups(groups: Sequence[RunGroup]) -> list[str]:
    """The factors in which the only arm of a group differs from equal arms of other groups."""

    def kind(arm: Arm) -> str:
        return canonical_text([arm.view, arm.values])

    names: dict[str, None] = {}
    for group in groups:
        if len(group.arms) == 1:
            (alone,) = group.arms
            alike = [arm for other in groups for arm in other.arms if kind(arm) == kind(alone)]
            names |= dict.fromkeys(differing_factors(arm.look for arm in alike))
    return list(names)


def _trainings(group: RunGroup) -> list[Look]:
    """An example of each training in a group, as a look."""
    return list({canonical_text(arm.training): arm.look for arm in reversed(group.arms)}.values())


def _baseline_command(arm: Arm) -> str:
    """The command that trains the baseline of an arm, if leaving out the overlays is enough."""
    seeds = tuple(sorted(arm.runs))
    words = _words_but_seed(arm.runs[seeds[0]])
    kept = tuple(word for word in words if not word.lstrip("+").startswith("trick="))
    is_all = set(arm.names) <= tricks_with_overlay() and len(kept) < len(words)
    return f"; to train it: {MoreRuns(kept, seeds).command}" if is_all else ""


def _more_runs(arm: Arm, reference: Arm, wanted: int) -> tuple[MoreRuns, ...]:
    """The runs that bring both sides to ``wanted`` common seeds."""
    common = sorted(set(arm.runs) & set(reference.runs))
    begun = sorted(set(arm.runs) ^ set(reference.runs))
    fresh = (seed for seed in count() if seed not in common and seed not in begun)
    seeds = sorted(islice(chain(begun, fresh), wanted - len(common)))
    more = []
    for side in (arm, reference):
        missing = tuple(seed for seed in seeds if seed not in side.runs)
        words = _words_but_seed(side.runs[min(side.runs)])
        if missing and words:
            more.append(MoreRuns(words, missing))
    return tuple(dict.fromkeys(more))


def _words_but_seed(run: FinishedRun) -> tuple[str, ...]:
    """The command of a run without seed, run_dir and force; empty if it is not runner.train."""
    if run.command[:3] != ("python", "-m", "runner.train"):
        return ()
    own = ("seed=", "run_dir=", "force=")
    words = [word for word in run.command if not word.lstrip("+").startswith(own)]
    for at, word in enumerate(words):
        if word.lstrip("+").startswith(f"{CODE}=") and run.values.get(CODE) is not None:
            path = _path_of_code(run, str(run.values[CODE]))
            if path is None:
                return ()
            words[at] = word if path == run.config.get(CODE) else f"{CODE}={_hydra_text(path)}"
    return tuple(words)


def _path_of_code(run: FinishedRun, sha256: str) -> str | None:
    """The file that a run was trained with: as it was named, or where that changed the run's copy.

    None where neither has that content.
    """
    named = run.config.get(CODE)
    if isinstance(named, str):
        with suppress(RuntimeError):  # the home folder of ~ is unknown
            if content_with_digest(Path(named).expanduser(), sha256) is not None:
                return named
    copy = run.path / "code.py"
    return str(copy) if content_with_digest(copy, sha256) is not None else None


def _hydra_text(text: str) -> str:
    """A text as a value on the command line of Hydra, which splits and evaluates bare ones."""
    if re.fullmatch(r"[\w./+@%:-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "\\'") + "'"


def _forward_passes(arm: Arm) -> float:
    return float(np.mean(list(arm.metric("forward_passes").values())))
