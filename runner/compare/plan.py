"""The plan of a comparison, printed before anything is trained: runs, time, detectable gain.

The data is read for the plan, because the images are part of a question. No network is
built, and torch is imported only for pretrained weights.
"""

import math
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.compare.question import Question, equal_arms
from runner.config.idea import idea_of
from runner.config.schema import Data, RunConfig, evaluation_groups
from runner.errors import ConfigError
from runner.machine import fields
from runner.records.comparison_folder import BASE, ArmPlan, ComparisonPlan
from runner.records.identity import decisive_values, evaluation_identity, folder_name, identified
from runner.records.run_folder import RunFolder
from runner.report.measured import why_undefined
from runner.report.metric import ACCURACY, METRICS, undefined
from runner.report.sequential import Design, design, looks
from runner.terminal.console import legible
from runner.terminal.display import Display, duration

if TYPE_CHECKING:
    from runner.data.dataset import Dataset

_WIDTH = 80


@dataclass(frozen=True)
class Planned:
    """A comparison with everything that its data decides.

    Attributes:
        question: the question of the user.
        comparison: the record for the folder of the comparison, without its name.
        folders: folder of the run by label, ``base`` for the baseline, and by seed of the pair,
            before tuning; arms that share a training share its folder.
        evaluations: name of the evaluation with TTA by label; None for the plain view.
        notes: what the user should know of the data.
    """

    question: Question
    comparison: ComparisonPlan
    folders: Mapping[str, Mapping[int, RunFolder]]
    evaluations: Mapping[str, str | None]
    notes: tuple[str, ...]

    def trainings(self, num_seeds: int) -> list[RunFolder]:
        """Return the different trainings of the first ``num_seeds`` seeds, also existing ones."""
        found = {
            folder.path: folder
            for folders in self.folders.values()
            for folder in list(folders.values())[: len(self.comparison.pairs_of(num_seeds))]
        }
        return list(found.values())

    def shares(self, label: str) -> str | None:
        """Return the label of the baseline or an earlier arm whose trainings this arm uses."""
        own = [folder.path for folder in self.folders[label].values()]
        for other, folders in self.folders.items():
            if other == label:
                return None
            if [folder.path for folder in folders.values()] == own:
                return other
        return None

    def seconds(self, label: str) -> tuple[float, str] | None:
        """Return the seconds of one training, and the measured run; None if nothing is measured.

        A run of the arm itself counts, or else one of the baseline.
        """
        configs = {BASE: self.question.base, **{a.label: a.config for a in self.question.arms}}
        for other in dict.fromkeys((label, BASE)):
            for folder in self.folders[other].values():
                if epoch := measured_epoch(folder):
                    return epoch * configs[label].budget.epochs, folder.path.name
        return None


def as_recorded(planned: Planned, recorded: ComparisonPlan) -> Planned:
    """Return the plan of this call with the name, labels and order of arms as recorded.

    The words stay those of this call. Words that do not change a result may differ from the
    recorded ones: the data may lie in another folder, and ``outputs`` is relative to the working
    folder.

    Args:
        planned: the plan of this call.
        recorded: an equal question, as its folder has it.
    """
    question, comparison = planned.question, planned.comparison
    by_key = {
        plan.key: (plan, arm) for plan, arm in zip(comparison.arms, question.arms, strict=True)
    }
    found = {arm.label: by_key[arm.key] for arm in recorded.arms}
    called = {BASE: BASE, **{label: arm.label for label, (_, arm) in found.items()}}
    arms = tuple(replace(plan, label=label) for label, (plan, _) in found.items())
    return replace(
        planned,
        question=replace(
            question, arms=tuple(replace(arm, label=label) for label, (_, arm) in found.items())
        ),
        comparison=replace(recorded, base_words=comparison.base_words, arms=arms),
        folders={label: planned.folders[name] for label, name in called.items()},
        evaluations={label: planned.evaluations[name] for label, name in called.items()},
    )


def measured_epoch(folder: RunFolder) -> float | None:
    """Seconds per epoch of a run, its evaluations included; None before its first evaluation."""
    with suppress(ValueError):
        for row in folder.rows("timings.jsonl")[-1:]:
            total = fields.number(row, "total_seconds", at_least=0)
            return total / fields.whole(row, "epoch", at_least=1)
    return None


def planned(question: Question, display: Display) -> Planned:
    """Read the data of a comparison, and find where its runs are or will be.

    Raises:
        ConfigError: arms are equal on this data, or use different images; or the metric is not
            defined on them.
        DataError: see :func:`runner.data.dataset.load_dataset`.
    """
    from runner.data.dataset import load_dataset
    from runner.tricks.loss import class_weights

    @cache
    def load(data: Data, size: int) -> "Dataset":
        return load_dataset(data, size, question.outputs / "cache", display.work)

    folders: dict[str, dict[int, RunFolder]] = {}
    identities: dict[str, str] = {}
    evaluations: dict[str, str | None] = {}
    values: dict[str, object] = {}
    num_folds = question.num_folds
    numbers = range(question.max_seeds * num_folds)
    every = [(BASE, 0, question.base)]
    every += [(arm.label, arm.seed_offset, arm.config) for arm in question.arms]
    dataset = load(question.base.data, question.base.largest_size)
    metric = METRICS[question.metric]
    labels, folds = dataset.val.labels, None
    if num_folds > 1:
        data, size = question.base.data, question.base.largest_size
        parts = [load(replace(data, fold=fold), size).val.labels for fold in range(num_folds)]
        labels = np.concatenate(parts)
        folds = np.repeat(np.arange(num_folds), [len(part) for part in parts])
    if reason := why_undefined(metric, labels, dataset.classes, folds):
        raise undefined(metric, reason)
    for label, offset, config in every:
        code = idea_of(config)
        weights = None
        if config.names_weights:
            from runner.training.learners import fitted_to_weights

            config, found = fitted_to_weights(config, display, code)
            weights = found.identity if found else None
        own = load(config.data, config.largest_size)
        if _fingerprint(own, num_folds) != _fingerprint(dataset, num_folds):
            raise ConfigError(
                "the arm trains on other images than the baseline",
                where=f"--try {shlex.join(_words(question, label))}",
                fix="the words on data before the first --try",
            )
        # Raises if a class has no training image, before anything is trained.
        class_weights(config.loss, own.train.labels, own.classes, len(own.classes))
        evaluations[label] = evaluation_identity(config)
        folders[label] = {}
        for number in numbers:
            seed, fold = divmod(number, num_folds)
            one = replace(config, seed=question.first_seed + seed + offset)
            of_fold = own
            if num_folds > 1:
                one = replace(one, data=replace(one.data, fold=fold))
                of_fold = load(one.data, one.largest_size)
            one, what = identified(one, of_fold, weights, code)
            name = folder_name(one, what["identity"])
            folders[label][question.first_seed + number] = RunFolder(question.outputs / name)
        _, what = identified(replace(config, seed=0), own, weights, code)
        identities[label] = f"{what['identity']}-{evaluations[label] or 'plain'}"
        if label == BASE:
            values = {**what["values"], **_evaluation_values(config)}
    _check_different(question, identities)
    comparison = ComparisonPlan(
        name="",
        base_words=question.base_words,
        values=values,
        fingerprint=_fingerprint(dataset, num_folds),
        num_val=len(dataset.val) + (len(dataset.train) if num_folds > 1 else 0),
        arms=tuple(
            ArmPlan(arm.label, arm.words, arm.seed_offset, identities[arm.label])
            for arm in question.arms
        ),
        margin=question.margin,
        metric=question.metric,
        is_fixed=question.is_fixed,
        max_seeds=question.max_seeds,
        looks=(question.max_seeds,) if question.is_fixed else looks(question.max_seeds),
        first_seed=question.first_seed,
        tune=question.tune,
        num_folds=num_folds,
    )
    return Planned(question, comparison, folders, evaluations, tuple(_data_notes(dataset)))


def _fingerprint(dataset: "Dataset", num_folds: int) -> str:
    """Fingerprint of the data; with folds, the fingerprint of all folds."""
    return (dataset.pool_fingerprint or "") if num_folds > 1 else dataset.fingerprint


def _words(question: Question, label: str) -> tuple[str, ...]:
    return next(arm.words for arm in question.arms if arm.label == label)


def _evaluation_values(config: RunConfig) -> dict[str, object]:
    """Return the values that only the evaluation reads, if the baseline is evaluated with TTA."""
    if evaluation_identity(config) is None:
        return {}
    decisive = decisive_values(config)
    return {name: decisive[name] for name in evaluation_groups()}


def _check_different(question: Question, identities: Mapping[str, str]) -> None:
    """Refuse arms that are equal on this data, such as a stored size that has no effect."""
    known = {identities[BASE]: BASE}
    for arm in question.arms:
        if not arm.words:
            continue
        if (other := known.get(identities[arm.label])) is not None:
            raise equal_arms(other, arm.words, ())
        known[identities[arm.label]] = arm.label


def _data_notes(dataset: "Dataset") -> Iterator[str]:
    yield from dataset.notes
    if dataset.skipped:
        yield f"{len(dataset.skipped)} broken images are left out"
    if dataset.leaked:
        yield (f"{len(dataset.leaked)} of {len(dataset.val)} validation images are in training too")


def lines(plan: Planned) -> list[str]:
    """Return the plan in words, in lines of at most 80 characters."""
    question, comparison = plan.question, plan.comparison
    found = [*_item("baseline", _baseline(plan))]
    for number, arm in enumerate(question.arms, 1):
        words = shlex.join(arm.words)
        text = f"{number} {arm.label}" + (f"  ({words})" if words not in ("", arm.label) else "")
        if not arm.words:
            text += f"  (seeds from {question.first_seed + arm.seed_offset})"
        if (other := plan.shares(arm.label)) is not None:
            text += f"  uses the trainings of {'the baseline' if other == BASE else other}"
        found += _item("arms" if number == 1 else "", text, indent=2)
    if question.tune:
        grid = ", ".join(f"{key} in {', '.join(values)}" for key, values in question.tune)
        found += _item("tuning", f"{grid}: for the baseline and each arm, on seeds of its own")
    found += _item("seeds", _seeds(comparison))
    found += _item("trainings", _trainings(plan))
    found += _item("time", _time(plan))
    if comparison.num_folds == 1:
        found += _item("finds", _power(comparison))
        found += _item("can show", _provable(comparison))
    for note in (*question.notes, *plan.notes):
        found += _item("note", note)
    return found


def _item(name: str, text: str, indent: int = 0) -> list[str]:
    """Lay out a name and its text, whose further lines are indented."""
    head, rest = f"{name:<10}", " " * (10 + indent)
    wrapped = textwrap.wrap(
        legible(text), _WIDTH, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False
    )
    return [line.rstrip() for line in wrapped]


def _baseline(plan: Planned) -> str:
    config, words = plan.question.base, shlex.join(plan.question.base_words)
    epochs = "1 epoch" if config.budget.epochs == 1 else f"{config.budget.epochs:g} epochs"
    tricks = f", with {' + '.join(config.tricks)}" if config.tricks else ""
    return (
        f"{config.data.name}, {config.model.name}, {config.size} px, {epochs}{tricks}, "
        f"{plan.comparison.num_val:,} validation images" + (f"  ({words})" if words else "")
    )


def _seeds(comparison: ComparisonPlan) -> str:
    first, *later = comparison.looks
    begin = f"from {comparison.first_seed}" if comparison.first_seed else ""
    if comparison.num_folds > 1:
        text = f"{first} for every arm and each of {comparison.num_folds} folds"
        return " ".join(filter(None, [text, begin]))
    if comparison.is_fixed:
        return " ".join(filter(None, [f"{first} for every arm, one look at the end", begin]))
    text = " ".join(filter(None, [f"{first} per arm", begin]))
    if not later:
        return f"{text}, one look at the end"
    return f"{text}, then {', '.join(map(str, later))}, until each arm is decided"


def _trainings(plan: Planned) -> str:
    comparison = plan.comparison
    every, first = plan.trainings(comparison.max_seeds), plan.trainings(comparison.looks[0])
    text = f"{len(every)} at most"
    if len(first) < len(every):
        text += f", {len(first)} in the first round"
    if comparison.tune:
        return f"{text}; before them {num_searched(plan)} at most to tune"
    existing = sum(is_finished(folder) for folder in every)
    if existing == len(every):
        return f"{text}; all of them exist already"
    return text + (f"; {existing} of them exist already" if existing else "")


def num_searched(plan: Planned) -> int:
    """Return the number of trainings of the search for values, at most."""
    from runner.compare.tuning import NUM_SEEDS, searched  # whose rounds know this plan

    combinations = math.prod(len(values) for _, values in plan.comparison.tune)
    first = (next(iter(plan.folders[label].values())) for label in searched(plan.comparison))
    num_searches = len({folder.path for folder in first})
    return num_searches * combinations * NUM_SEEDS if plan.comparison.tune else 0


def is_finished(folder: RunFolder) -> bool:
    """Return whether the run has a result."""
    return (folder.path / "result.json").is_file()


def remaining_seconds(plan: Planned, num_seeds: int) -> tuple[float, str] | None:
    """Return the seconds of the missing trainings, run one by one, and a measured run.

    None if nothing is measured, or if a search for values decides what is trained.
    """
    if plan.comparison.tune:
        return None
    labels: dict[Path, tuple[str, RunFolder]] = {}
    for label, folders in plan.folders.items():
        for folder in list(folders.values())[: len(plan.comparison.pairs_of(num_seeds))]:
            labels.setdefault(folder.path, (label, folder))
    total, name = 0.0, ""
    for label, folder in labels.values():
        if not is_finished(folder):
            if (found := plan.seconds(label)) is None:
                return None
            total, name = total + found[0], found[1]
    return total, name


def _time(plan: Planned) -> str:
    found = remaining_seconds(plan, plan.comparison.max_seeds)
    one = plan.seconds(BASE)
    if plan.comparison.tune and one is not None:
        number = num_searched(plan) + len(plan.trainings(plan.comparison.max_seeds))
        return (
            f"{duration(number * one[0])} at most, one training after the other (a training of the "
            f"baseline takes {duration(one[0])}, by {one[1]})"
        )
    if found is None or one is None:
        return "not known before the first epoch, which measures it"
    if found[0] == 0:
        return "that of the looks: nothing is left to train"
    first = remaining_seconds(plan, plan.comparison.looks[0])
    text = f"{duration(found[0])} at most, one training after the other"
    if first is not None and len(plan.comparison.looks) > 1:
        text += f"; the first round {duration(first[0])}"
    return f"{text} (a training of the baseline takes {duration(one[0])}, by {one[1]})"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _design(comparison: ComparisonPlan) -> Design:
    return design(
        len(comparison.arms),
        comparison.num_val,
        comparison.max_seeds,
        is_fixed=comparison.is_fixed,
    )


def _power(comparison: ComparisonPlan) -> str:
    metric = METRICS[comparison.metric]
    if metric is not ACCURACY:
        return (
            f"what the seeds allow: how much {metric.label} varies between trainings is not known "
            "beforehand, as it is for accuracy"
        )
    found = _design(comparison)
    return (
        f"a difference of {_points(found.effect)} points with 80 %, if differences vary from "
        f"seed to seed by {_points(found.deviation)} points, as is usual for this many images; "
        "short trainings vary more"
    )


def _provable(comparison: ComparisonPlan) -> str:
    metric = METRICS[comparison.metric]
    if metric is not ACCURACY:
        return (
            f"that there is no difference larger than {metric.size(comparison.margin)} in "
            f"{metric.label} (--margin), if images and seeds are enough for that"
        )
    found = _design(comparison)
    smallest = _points(found.provable_margin + 0.0005)
    if found.provable_margin <= comparison.margin:
        return (
            f"that there is no difference larger than {metric.size(comparison.margin)} "
            f"(--margin); the smallest margin that is provable with 80 % is about {smallest}"
        )
    return (
        f"no difference larger than {smallest} points with 80 %, so probably no arm ends as "
        f"“no difference larger than {100 * comparison.margin:g}”: more validation images or "
        f"--margin {smallest} would allow it"
    )
