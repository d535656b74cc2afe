"""The confirmation of a comparison: its runs on the test part of the data, once it has ended.

The verdicts of a comparison chose among arms on the validation images. The test images took part
in no training and in no verdict, so the difference that they show is the honest number after that
choice. It is no verdict itself, and changes none: it is not corrected for the number of arms. It
removes the luck of the validation images, not that of the seeds: the networks are the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import ArtefactError, DataError
from runner.machine import fields
from runner.records.comparison_folder import BASE, BASELINE, ComparisonFolder, hash_of
from runner.records.evaluations_on_test import PredictionsOnTest
from runner.report.measured import Images, compared, measured
from runner.report.measures import Interval, mean_of, mean_text
from runner.terminal.tables import Table

if TYPE_CHECKING:
    from runner.report.comparisons import ComparisonAnswer

TITLE = "on the {} test images, which no training and no verdict used; this is no verdict either"
TITLE_LEAKED = (
    "on the {} test images, {} of which are in training or validation too; this is no verdict"
)


@dataclass(frozen=True)
class SideOnTest:
    """The baseline or one arm on the test images.

    Attributes:
        label: label of the arm; ``base`` for the baseline.
        values: the metric of each run, by seed of the pair; empty if the arm has no pair.
        mean: mean difference to the baseline over the pairs, arm minus baseline; None for the
            baseline, and without a pair.
        interval: 95 % interval of the difference over seeds and images, for one pair over images;
            not corrected for the number of arms. None where ``mean`` is.
    """

    label: str
    values: Mapping[int, float]
    mean: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Confirmation:
    """What the test images say.

    Attributes:
        metric: the metric, that of the comparison.
        test_fingerprint: fingerprint of the test part.
        num_images: number of test images.
        base: the baseline.
        arms: the arms in the order of the comparison.
        num_leaked: number of test images that are in training or validation too.
    """

    metric: str
    test_fingerprint: str
    num_images: int
    base: SideOnTest
    arms: tuple[SideOnTest, ...]
    num_leaked: int = 0

    @property
    def title(self) -> str:
        """What the numbers are of."""
        if self.num_leaked:
            return TITLE_LEAKED.format(f"{self.num_images:,}", f"{self.num_leaked:,}")
        return TITLE.format(f"{self.num_images:,}")


def counted(answer: "ComparisonAnswer") -> list[tuple[str, int]]:
    """Label and seed of each run that the answer counts, those of the baseline first."""
    sides = [(BASE, answer.base_seeds), *((one.label, one.seeds) for one in answer.standings)]
    return [(label, seed) for label, seeds in sides for seed in seeds]


def confirmed(
    answer: "ComparisonAnswer",
    predictions: Mapping[tuple[str, int], PredictionsOnTest],
    test_fingerprint: str,
    num_leaked: int = 0,
) -> Confirmation:
    """Compare each arm with the baseline on the test images.

    Args:
        answer: the answer of a comparison that has ended.
        predictions: of each run of :func:`counted`.
        test_fingerprint: fingerprint of the test part.
        num_leaked: number of test images that are in training or validation too.

    Raises:
        ArtefactError: the predictions are of different images.
        DataError: the metric is not defined on these images.
    """
    first = next(iter(predictions.values()))
    for found in predictions.values():
        if not np.array_equal(found.labels, first.labels):
            raise ArtefactError(
                "the evaluations on test images are of different images",
                where=f"comparison {answer.plan.name}",
                fix="remove the folders evaluations/test of its runs, and run the command again",
            )
    metric, images = answer.metric, Images(first.labels, first.groups)
    runs = {
        place: measured(metric, found.probabilities, found.labels, found.groups)
        for place, found in predictions.items()
    }
    if not all(math.isfinite(run.value) for run in runs.values()):
        raise DataError(
            f"{metric.label} is not defined on these test images",
            where=f"comparison {answer.plan.name}",
            fix="a test part with images of every class",
        )

    def side(label: str, seeds: Sequence[int]) -> SideOnTest:
        values = {seed: runs[label, seed].value for seed in seeds}
        if label == BASE or not seeds:
            return SideOnTest(label, values)
        ours, theirs = ([runs[of, seed] for seed in seeds] for of in (label, BASE))
        found = compared(metric, ours, theirs, images, answer.plan.margin)
        return SideOnTest(label, values, found.mean, found.over_both)

    return Confirmation(
        metric=answer.plan.metric,
        test_fingerprint=test_fingerprint,
        num_images=len(first.labels),
        base=side(BASE, answer.base_seeds),
        arms=tuple(side(one.label, one.seeds) for one in answer.standings),
        num_leaked=num_leaked,
    )


def table(found: Confirmation, answer: "ComparisonAnswer") -> Table:
    """Return the table of the results on the test images, with the differences on validation."""
    metric = answer.metric
    validation = {one.label: one.mean for one in answer.standings}
    rows = []
    for one in (found.base, *found.arms):
        on_validation = validation.get(one.label)
        rows.append(
            (
                BASELINE if one.label == BASE else one.label,
                str(len(one.values)),
                mean_text(mean_of([*one.values.values()]), metric) if one.values else "",
                "" if one.mean is None else metric.text(one.mean),
                metric.interval_text(one.interval),
                "" if on_validation is None else metric.text(on_validation),
            )
        )
    return Table(
        found.title,
        (
            "arm", "n", metric.heading, metric.difference_heading, "95 % interval",
            "on validation",
        ),
        tuple(rows),
        ("arm",),
        optional_columns=(metric.heading,),
    )  # fmt: skip


def to_content(found: Confirmation) -> dict[str, Any]:
    """Return the confirmation as values of JSON; all numbers are parts of 1."""
    return {
        "split": "test",
        "is_verdict": False,
        "metric": found.metric,
        "test_fingerprint": found.test_fingerprint,
        "num_images": found.num_images,
        "num_leaked": found.num_leaked,
        "base": _side_content(found.base),
        "arms": [_side_content(one) for one in found.arms],
    }


def _side_content(one: SideOnTest) -> dict[str, Any]:
    low, high = one.interval or (None, None)
    return {
        "label": one.label,
        "mean": mean_of([*one.values.values()]).mean if one.values else None,
        "values": {str(seed): value for seed, value in one.values.items()},
        "difference": one.mean,
        "low": low,
        "high": high,
    }


def record(folder: ComparisonFolder, found: Confirmation) -> None:
    """Write the confirmation next to the answer that it belongs to.

    Raises:
        BusyError: another process writes in the folder.
        StorageError: the folder cannot be written.
    """
    with folder.locked():
        folder.write_confirmation({**to_content(found), "answer": hash_of(folder.answer())})


def of_answer(folder: ComparisonFolder) -> dict[str, Any] | None:
    """Return the recorded confirmation of the answer that a folder has now; None if there is none.

    Raises:
        ArtefactError: the confirmation is damaged or was edited.
    """
    content = folder.confirmation()
    is_of_answer = content is not None and content.get("answer") == hash_of(folder.answer())
    return content if is_of_answer else None


def with_recorded(answer: "ComparisonAnswer", folder: ComparisonFolder) -> "ComparisonAnswer":
    """Return the answer of a folder with its confirmation, if there is one of this answer.

    Raises:
        ArtefactError: the confirmation is damaged or was edited.
    """
    content = of_answer(folder)
    if content is None:
        return answer
    try:
        return replace(answer, confirmation=_from_content(content, answer.plan.labels))
    except ValueError as error:
        raise ArtefactError(
            f"not the confirmation of a comparison: {error}", where=str(folder.path)
        ) from error


def _from_content(content: Mapping[str, Any], labels: Sequence[str]) -> Confirmation:
    """Return the confirmation that :func:`to_content` made JSON of.

    Raises:
        ValueError: a value is missing or impossible.
    """
    arms = tuple(_side_of(one) for one in fields.sections(content, "arms"))
    if [one.label for one in arms] != [*labels]:
        raise ValueError("arms must be those of the plan, in their order")
    return Confirmation(
        metric=fields.text(content, "metric"),
        test_fingerprint=fields.text(content, "test_fingerprint"),
        num_images=fields.whole(content, "num_images", at_least=1),
        base=_side_of(fields.section(content, "base")),
        arms=arms,
        num_leaked=fields.whole({"num_leaked": 0, **content}, "num_leaked"),
    )


def _side_of(content: Mapping[str, Any]) -> SideOnTest:
    values = fields.section(content, "values")
    if not all(seed.isdecimal() and seed.isascii() and len(seed) < 20 for seed in values):
        raise ValueError("a seed must be a whole number")
    mean, low, high = (_maybe(content, key) for key in ("difference", "low", "high"))
    return SideOnTest(
        label=fields.text(content, "label"),
        values={int(seed): float(fields.number(values, seed)) for seed in values},
        mean=mean,
        interval=None if low is None or high is None else (low, high),
    )


def _maybe(content: Mapping[str, Any], key: str) -> float | None:
    return None if fields.value(content, key) is None else float(fields.number(content, key))
