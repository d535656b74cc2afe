"""How often intervals and verdicts on metrics are right, one metric of each kind, truth known."""

import numpy as np
import pytest
from simulated_metrics import NONE, Trick, differences, labels_of, true_difference

from runner.report import measured
from runner.report.metric import METRICS
from scripts import simulate_verdicts

COVERAGE, LEVEL = 0.94, 0.055
KINDS = ("log_loss", "balanced_accuracy", "macro_f1", "auroc", "ece")
"""A mean of unbounded scores, a weighted mean, and those that are resampled."""


def chance(rate: float, num: int) -> float:
    """Three standard errors of a rate that was counted in ``num`` tables."""
    return 3 * float(np.sqrt(rate * (1 - rate) / num))


def rates(
    name: str, num_tables: int, n: int, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    """How often the interval holds zero without an effect, and that over seeds alone."""
    monkeypatch.setattr(measured, "NUM_RESAMPLES", 150)
    rng, metric, labels = np.random.default_rng(2), METRICS[name], labels_of(num_images, 4)
    found = [
        one
        for _ in range(num_tables)
        for one in differences(rng, metric, n, labels, [NONE], metric.default_margin)
    ]
    holds = [one.over_both[0] <= 0 <= one.over_both[1] for one in found]
    over_seeds = [one.over_seeds[0] <= 0 <= one.over_seeds[1] for one in found if one.over_seeds]
    expected = np.mean([one.image_error**2 + one.variance / n for one in found])
    return {
        "holds": float(np.mean(holds)),
        "over_seeds": float(np.mean(over_seeds)),
        "error": float(np.sqrt(expected) / np.std([one.mean for one in found])),
    }


@pytest.mark.parametrize("name", ["log_loss", "macro_f1"])
def test_a_change_without_effect_is_seldom_called_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(name, 60, 8, 300, monkeypatch)
    assert found["holds"] > COVERAGE - chance(COVERAGE, 60)
    assert 0.7 < found["error"] < 1.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_intervals_of_every_kind_hold_the_truth_as_often_as_they_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rates(name, 500, 10, 500, monkeypatch)
    print(name, found)
    assert found["holds"] > COVERAGE - chance(COVERAGE, 500)
    assert 0.9 < found["error"] < 1.2, "the standard error is that of the drawn differences"
    if name != "ece":  # of which the images are no large part here
        assert found["over_seeds"] < 0.9, "the control: these images alone"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_effects_are_found_and_those_of_the_margin_are_seldom_called_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "NUM_RESAMPLES", 150)
    trick = Trick(confidence=2.0) if name == "ece" else Trick(shift=0.3)
    metric, num_tables = METRICS[name], 300
    truth = true_difference(metric, 500, 4, trick)
    rng, labels = np.random.default_rng(5), labels_of(500, 4)
    found = [differences(rng, metric, 5, labels, [trick], abs(truth))[0] for _ in range(num_tables)]
    none = np.mean([one.p_margin is not None and one.p_margin < 0.05 for one in found])
    holds = np.mean([one.over_both[0] <= truth <= one.over_both[1] for one in found])
    better = [metric.is_better(one.mean) == metric.is_better(truth) for one in found]
    right = np.mean([(one.p_zero or 0) < 0.05 for one in found] & np.array(better))
    print(name, truth, none, holds, right)
    assert none < LEVEL + chance(LEVEL, num_tables)
    assert holds > COVERAGE - chance(COVERAGE, num_tables)
    assert right > 0.5


def test_the_true_difference_is_zero_without_an_effect() -> None:
    metric = METRICS["accuracy"]
    assert abs(true_difference(metric, 300, 3, NONE, 40)) < 0.02
    assert true_difference(metric, 300, 3, Trick(shift=1.0), 40) > 0.05
    calm = Trick(confidence=0.5)
    assert abs(true_difference(metric, 300, 3, calm, 40)) < 0.02, "confidence changes no prediction"
    assert true_difference(METRICS["log_loss"], 300, 3, calm, 40) != 0


def test_the_table_of_metrics_has_a_row_per_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "NUM_RESAMPLES", 10)
    lines = simulate_verdicts.metrics(2).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in rows[2:]] == [
        METRICS[name].label for name in METRICS for _ in simulate_verdicts.METRIC_SEEDS
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
