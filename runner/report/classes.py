"""The scores of each class of an arm: precision, recall, F1 and support, means over its seeds."""

from collections.abc import Mapping
from typing import Any

from runner.errors import ArtefactError
from runner.machine import fields
from runner.report.groups import Arm
from runner.report.runs import FinishedRun
from runner.training.metrics import class_scores, mean_class_scores

_RATIOS = ("precision", "recall", "f1")
ClassMeans = dict[str, dict[str, float | int | None]]


def class_means(arm: Arm) -> ClassMeans:
    """Return the mean scores of each class by name, over the seeds with a defined score.

    Empty if a run neither recorded them nor has readable predictions.
    """
    try:
        runs = [_of_run(run, arm.view) for run in arm.runs.values()]
    except ArtefactError:
        return {}
    return mean_class_scores(runs)


def _of_run(run: FinishedRun, view: str) -> Mapping[str, Mapping[str, Any]]:
    """Return the recorded scores of a run's classes, or for an old run those of its predictions.

    Raises:
        ArtefactError: the predictions cannot be read.
    """
    try:
        recorded = fields.section(run.per_class, view)
        for name in run.classes:
            scores = fields.section(recorded, name)
            fields.whole(scores, "support")
            for score in _RATIOS:
                if fields.value(scores, score) is not None:
                    fields.number(scores, score, at_least=0, at_most=1)
    except ValueError:
        found = run.predictions()
        predicted = found.views[view].argmax(axis=1)
        computed = class_scores(predicted, found.labels, found.views[view].shape[1])
        return {name: computed.of(place) for place, name in enumerate(run.classes)}
    return {name: recorded[name] for name in run.classes}
