"""Notes: the limits of a group's comparisons, and what else could be compared."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from textwrap import shorten

from runner.config.overlays import tricks_with_overlay
from runner.report.factors import (
    ALL,
    Look,
    canonical_text,
    differing_factors,
    differing_keys,
    is_default,
    level_names,
    level_of,
    short_text,
    training_of_failed,
    without_views,
)
from runner.report.groups import Arm, RunGroup
from runner.report.metric import Metric
from runner.report.more_runs import MoreRuns, words_but_seed
from runner.report.paired import Comparison, Family

_LONGEST_REASON = 200  # characters; the table of the runs that are not compared has all
_MOST_NAMED = 3  # most factors that a suggested command names; for more it says "all"


def group_notes(
    group: RunGroup,
    reference: Arm | None,
    compared: Sequence[Comparison],
    asked: Sequence[str],
    *,
    is_hinted: bool,
) -> Iterable[str]:
    """Yield the limits of what a group shows, a sentence each."""
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
    if single := [one.label for one in compared if one.num_units == 1]:
        yield (
            f"one seed only of {', '.join(single)}: that interval is of the images alone and "
            f"speaks of two networks, not of the {'trick' if by_tricks else 'change'}"
        )
    for key in ("torch", "device", "threads", "runner"):
        values = {str(run.environment.get(key)) for arm in group.arms for run in arm.runs.values()}
        if len(values) > 1:
            yield f"the runs differ in {key}: {', '.join(sorted(values))}"


def family_notes(
    group: RunGroup, reference: Arm | None, family: Family, margin: float, metric: Metric
) -> Iterable[str]:
    """Yield notes on a group of comparisons as a whole: failures, images, number of tests."""
    for arm in group.arms:
        if arm.failed:
            yield (
                f"{arm.label}: {len(arm.failed)} of {len(arm.failed) + len(arm.runs)} seeds failed "
                f"({_reasons(arm.failed.values())}): its results are for the seeds that finished"
            )
    yield from _arms_without_a_run(group, reference)
    if num_folds := len(group.any_run.parts):
        yield (
            f"{num_folds} folds: each of the {group.any_run.num_val:,} images is predicted once "
            "per seed, by a network that was not trained on it; n counts pairs of seed and fold, "
            "and the intervals allow for training sets that overlap (Nadeau & Bengio 2003)"
        )
    if family.image_groups is not None:
        yield (
            f"the {group.any_run.num_val:,} images are of {family.image_groups:,} groups, which "
            "were resampled whole, since images of one group are alike; the intervals of single "
            "accuracies and the McNemar p still take images for independent"
        )
    if family.num_tested > 1:
        both = ", those of both tables" if all(family.tables) else ""
        yield (
            f"the p-values are corrected for {family.num_tested} comparisons, all of this group"
            f"{both}; the largest of several differences overstates its size"
        )
    if family.smallest_margin is not None and family.smallest_margin[0] > margin:
        smallest, seeds = family.smallest_margin
        equal = (
            "equal accuracies show" if metric.name == "accuracy" else f"equal {metric.label} shows"
        )
        yield (
            f"{group.any_run.num_val:,} images are too few to show no difference larger than "
            f"{metric.size(margin)}: even {equal} it with {seeds} seeds only for margins from "
            f"about {metric.size(float(f'{smallest:.2g}'))}"
        )


def _arms_without_a_run(group: RunGroup, reference: Arm | None) -> Iterable[str]:
    """Return the arms of which every seed failed, named by their changes of the baseline."""
    others = [reference] if reference else group.arms
    known = [without_views(arm.all_values) for arm in others]
    values = [
        {key: value for part in training_of_failed(run, group.factors)[1].values()
         for key, value in part.items()}
        for run in group.failed
    ]  # fmt: skip
    alike: dict[str, dict[int, str]] = defaultdict(dict)
    for run, own in zip(group.failed, values, strict=True):
        keys = differing_keys([*known, own])
        named = [f"{key}={short_text(own.get(key))}" for key in keys[:_MOST_NAMED]]
        named += ["…"] * (len(keys) > _MOST_NAMED)
        alike[", ".join(named)][run.seed] = run.reason
    for name, failed in alike.items():
        seeds = f"all {len(failed)} seeds" if len(failed) > 1 else "the only seed"
        yield f"{name}: {seeds} failed ({_reasons(failed.values())}); nothing is known of it"


def _reasons(reasons: Iterable[str]) -> str:
    return shorten("; ".join(dict.fromkeys(reasons)), _LONGEST_REASON)


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


def other_comparisons(
    groups: Sequence[RunGroup], by: Sequence[str], command: Sequence[str]
) -> Iterable[str]:
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
    """Return the factors by which a group's only arm differs from equal arms of other groups."""

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
    """Return an example of each training in a group, as a look."""
    return list({canonical_text(arm.training): arm.look for arm in reversed(group.arms)}.values())


def _baseline_command(arm: Arm) -> str:
    """Return the command of an arm's baseline, if leaving out the overlays is enough."""
    seeds = tuple(sorted(arm.runs))
    words = words_but_seed(arm.runs[seeds[0]])
    kept = tuple(word for word in words if not word.lstrip("+").startswith("trick="))
    is_all = set(arm.names) <= tricks_with_overlay() and len(kept) < len(words)
    return f"; to train it: {MoreRuns(kept, seeds).command}" if is_all else ""
