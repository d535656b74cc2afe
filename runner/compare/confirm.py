"""Confirm a comparison that has ended on the test part of its data.

Whether the data has a test part is checked before the first training. After the last one, each run
in the answer predicts the test images once; the predictions stay in the folders of the
runs, so that an interrupted confirmation resumes, and another comparison can use them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runner.compare.question import Question
from runner.errors import ConfigError, DataError
from runner.records.comparison_folder import ComparisonFolder
from runner.records.evaluations_on_test import PredictionsOnTest
from runner.report.comparisons import ComparisonAnswer
from runner.report.confirmation import confirmed, counted, record
from runner.report.metric import METRICS
from runner.terminal.display import Display

Predict = Callable[[Path, str | None], PredictionsOnTest]
"""Predicts the test images: path of a run's folder, and name of its evaluation with TTA if any."""


@dataclass(frozen=True)
class HeldOut:
    """The test part of the data of a comparison.

    Attributes:
        fingerprint: its fingerprint.
        num_images: its number of images.
        num_leaked: number of those that are in training or validation too.
    """

    fingerprint: str
    num_images: int
    num_leaked: int = 0


def check_word(split: str | None) -> None:
    """Refuse a value of ``--confirm-on`` that is not ``test``.

    Raises:
        ConfigError: naming the allowed value.
    """
    if split is not None and split != "test":
        raise ConfigError(
            "a comparison is confirmed on images that it has not used",
            where=f"--confirm-on {split}",
            fix="--confirm-on test",
        )


def read_test_part(question: Question, display: Display) -> HeldOut:
    """Read and check the test images, before anything is trained.

    Raises:
        DataError: the data has no test part, its images cannot be used, or the metric is not
            defined on them.
    """
    from runner.data.dataset import load_dataset, no_test_part
    from runner.report.measured import missing_class

    base = question.base
    dataset = load_dataset(
        base.data, base.largest_size, question.outputs / "cache", display.work, with_test=True
    )
    if dataset.test is None or dataset.test_fingerprint is None:
        raise no_test_part(base.data)
    metric = METRICS[question.metric]
    missing = missing_class(metric, dataset.test.labels, len(dataset.classes))
    if missing is not None:
        raise DataError(
            f"{metric.label} is not defined on the test part: class {dataset.classes[missing]} has "
            "no test images",
            where=f"--metric {metric.name} --confirm-on test data.root={base.data.root}",
            fix="test images of this class; or another --metric; or no --confirm-on test",
        )
    return HeldOut(dataset.test_fingerprint, len(dataset.test), len(dataset.test_leaked))


def plan_lines(confirming: tuple[Question, HeldOut] | None) -> list[str]:
    """Return the line of the plan about the confirmation; none without `--confirm-on`."""
    if confirming is None:
        return []
    _, part = confirming
    found = [f"at the end: every run on {part.num_images:,} test images, once; no verdict"]
    if part.num_leaked:
        found.append(f"note: {part.num_leaked:,} test images are in training or validation too")
    return found


def confirm(
    folder: ComparisonFolder,
    answer: ComparisonAnswer,
    part: HeldOut,
    predict: Predict,
    display: Display,
) -> ComparisonAnswer:
    """Evaluate the runs of an ended comparison on the test images, and record the results.

    Args:
        folder: the folder of the comparison.
        answer: its answer.
        part: the test part of its data.
        predict: predicts the test images.
        display: shows the progress.

    Returns:
        The answer with its confirmation.

    Raises:
        ArtefactError: a run can no longer be read.
        StorageError: the predictions or the confirmation cannot be written.
    """
    runs, places = folder.runs(), counted(answer)
    if not places:
        return answer
    display.line(f"confirming on {part.num_images:,} test images: {len(places)} runs")
    predictions = {}
    for done, (label, seed) in enumerate(places):
        display.work("runs on test images", done, len(places))
        one = runs[label][seed]
        predictions[label, seed] = predict(folder.outputs / str(one.run), one.evaluation)
    display.work("runs on test images", len(places), len(places))
    found = confirmed(answer, predictions, part.fingerprint, part.num_leaked)
    record(folder, found)
    return replace(answer, confirmation=found)
