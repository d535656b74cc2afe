"""Print how often verdicts are right, in simulated tables whose truth is known.

The arms are as unequal as real ones; ``tests/simulated.py`` says how they are drawn. Each table is
drawn once without effects, and judged without, and with effects added. "Before" is Holm's
correction of each arm's own p-value, without what the arms say about each other's spread.

The part "sequential" compares designs: a number of seeds that was fixed beforehand, and seeds that
are added until the arms are decided, by the rule of ``runner.compare`` and, as a warning, by the
rule for a fixed number.

The part "metrics" draws probabilities, and compares one arm on each metric
(``tests/simulated_metrics.py``).

The part "folds" compares intervals under cross-validation, by real cross-validations of small
learners; ``tests/simulated_folds.py`` says which.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import simulated
import simulated_folds
import simulated_metrics
import simulated_walks

from runner.report.metric import METRICS, Metric
from runner.report.statistics import Difference

_SEEDS = (3, 5, 10)
_ARMS = {7: "mixed", 1: "one", 3: "three", 15: "fifteen"}
_MARGIN = 0.02
_COLUMNS = (
    "arms", "images", "seeds", "interval holds the truth (worst arm)",
    "no effects: any helps or hurts (before)", "+1 found (before)", "+2", "+3",
    "+3 in the most volatile arm", "effects of 2: any \"no difference\"",
    "no effect: \"no difference\"",
)  # fmt: skip

_SMALL_MARGIN = 0.005
_SEQUENTIAL_COLUMNS = (
    "arms", "images", "design", "no effects: any helps or hurts", "+1 found", "+2", "+3",
    "trainings without effects / +1 / +2 / +3", "effects of 2: any \"no difference\"",
    "no effect: \"no difference\"",
)  # fmt: skip
_Design = Callable[[simulated_walks.Walks, float], simulated_walks.End]
_DESIGNS: dict[str, _Design] = {
    "5 seeds": lambda walks, margin: simulated_walks.fixed(walks, simulated.judged, 5, margin),
    "10 seeds": lambda walks, margin: simulated_walks.fixed(walks, simulated.judged, 10, margin),
    "until decided, uncorrected": lambda walks, margin: simulated_walks.peeking(
        walks, simulated.judged, margin
    ),
    "until decided": simulated_walks.sequential,
}


def fixed(num_tables: int) -> str:
    """Return the rates of tables at a number of seeds that was chosen beforehand, as Markdown."""
    errors = [_error(rate, num_tables) for rate in (0.05, 0.5)]
    lines = [
        f"Percent of {num_tables:,} tables per row; one standard error is {errors[0]} at 5 % and "
        f"{errors[1]} at 50 %. Effects are in points, and so is the margin, {100 * _MARGIN:g}.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---:|" * len(_COLUMNS),
    ]
    for num_arms, profile in _ARMS.items():
        arms = [simulated.ARMS[name] for name in simulated.PROFILES[profile]]
        for num_images in simulated.NUM_IMAGES:
            many = simulated.draw_tables(num_arms, num_tables, num_images, arms, _SEEDS)
            for n, tables in many.items():
                cells = [str(num_arms), f"{num_images:,}", str(n), *_rates(tables)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(tables: simulated.Tables) -> list[str]:
    now, before = simulated.judged, simulated.judged_alone
    covered = simulated.covered(tables)
    power = {
        effect: [simulated.found(tables, rule, effect / 100) for rule in (now, before)]
        for effect in (1, 2, 3)
    }
    return [
        f"{_percent(covered.mean())} ({_percent(covered.min())})",
        _both(*(simulated.any_false(tables, rule) for rule in (now, before))),
        *(_both(*(float(rates.mean()) for rates in both)) for both in power.values()),
        _both(*(float(rates.min()) for rates in power[3])),
        _both(*(simulated.any_false_equal(tables, rule, _MARGIN) for rule in (now, before))),
        _both(*(simulated.found_equal(tables, rule, _MARGIN) for rule in (now, before))),
    ]


def sequential(num_tables: int) -> str:
    """Return the rates of comparisons that add seeds until decided, as Markdown."""
    errors = [_error(rate, num_tables) for rate in (0.05, 0.5)]
    lines = [
        f"Percent of {num_tables:,} comparisons per row, up to 10 seeds; one standard error is "
        f"{errors[0]} at 5 % and {errors[1]} at 50 %. Effects are in points; half of the arms have "
        f"them. The margin is {100 * _SMALL_MARGIN:g} point, in the last two columns "
        f"{100 * _MARGIN:g}. Trainings are those of all arms and the baseline, on average.",
        "",
        f"| {' | '.join(_SEQUENTIAL_COLUMNS)} |",
        "|---:|---:|---|" + "---:|" * (len(_SEQUENTIAL_COLUMNS) - 3),
    ]
    for num_arms in (7, 1):
        arms = [simulated.ARMS[name] for name in simulated.PROFILES[_ARMS[num_arms]]]
        for num_images in simulated.NUM_IMAGES:
            looks = simulated_walks.looks(max(_SEEDS))
            drawn = simulated.draw_tables(num_arms, num_tables, num_images, arms, looks)
            for name, design in _DESIGNS.items():
                cells = [str(num_arms), f"{num_images:,}", name, *_rates_of(design, drawn)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates_of(design: _Design, drawn: simulated_walks.Walks) -> list[str]:
    null = design(drawn, _SMALL_MARGIN)
    cells, trainings = [_percent(null.differs.any(axis=1).mean())], [null.trainings.mean()]
    for effect in (0.01, 0.02, 0.03):
        walks, has_effect = simulated_walks.with_effect(drawn, effect)
        end = design(walks, _SMALL_MARGIN)
        cells.append(_percent((end.said[has_effect] == simulated_walks.HELPS).mean()))
        trainings.append(end.trainings.mean())
    at_margin = design(simulated_walks.shifted(drawn, _MARGIN), _MARGIN)
    return [
        *cells,
        " / ".join(f"{number:.1f}" for number in trainings),
        _percent((at_margin.said == simulated_walks.NO_DIFFERENCE).any(axis=1).mean()),
        _percent((design(drawn, _MARGIN).said == simulated_walks.NO_DIFFERENCE).mean()),
    ]


_FOLD_COLUMNS = (
    "learner", "images", "features", "folds", "seeds", "interval holds the truth",
    "t-test of folds, corrected", "t-test of all pairs", "three errors found",
    "by the corrected t-test",
)  # fmt: skip


def folds(num_tables: int) -> str:
    """Return the rates of intervals under cross-validation, as Markdown."""
    errors = [_error(rate, num_tables) for rate in (0.05, 0.5)]
    lines = [
        f"Percent of {num_tables:,} cross-validations per row, of two arms that are equally good; "
        f"one standard error is {errors[0]} at 5 % and {errors[1]} at 50 %. The last two columns: "
        "how often a difference of three of its true standard errors is found.",
        "",
        f"| {' | '.join(_FOLD_COLUMNS)} |",
        "|---|" + "---:|" * (len(_FOLD_COLUMNS) - 1),
    ]
    for number, one in enumerate(simulated_folds.SETTINGS):
        rates = simulated_folds.rates(number, one, num_tables)
        shares = (rates.ours, rates.corrected, rates.naive, rates.found, rates.found_corrected)
        sizes = (one.num_images, one.num_features, one.num_folds, one.num_seeds)
        cells = [one.name, *map(str, sizes), *map(_percent, shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _both(now: float, before: float) -> str:
    return f"{_percent(now)} ({_percent(before)})"


def _percent(rate: float) -> str:
    if round(rate, 3) in (0, 1):
        return f"{100 * rate:.0f}"
    return f"{100 * rate:.1f}" if min(rate, 1 - rate) < 0.095 else f"{100 * rate:.0f}"


def _error(rate: float, num_tables: int) -> str:
    return f"{100 * float(np.sqrt(rate * (1 - rate) / num_tables)):.1f}"


METRIC_SEEDS = (3, 10)
_METRIC_IMAGES, _METRIC_CLASSES = 1000, 5
_METRIC_EFFECTS = {"ece": simulated_metrics.Trick(confidence=2.0)}  # others: a better network
_METRIC_COLUMNS = (
    "metric", "seeds", "interval holds the truth", "the one over seeds alone",
    "\"helps\" or \"hurts\" without effect", "the effect", "found",
    "an effect of the margin: \"no difference\"",
)  # fmt: skip


def metrics(num_tables: int) -> str:
    """Return the rates of comparisons on every metric, as Markdown."""
    none = simulated_metrics.NONE
    labels = simulated_metrics.labels_of(_METRIC_IMAGES, _METRIC_CLASSES)
    errors = [_error(rate, num_tables) for rate in (0.05, 0.5)]
    lines = [
        f"Percent of {num_tables:,} comparisons of one arm per row, on {_METRIC_IMAGES:,} images "
        f"of {_METRIC_CLASSES} classes; one standard error is {errors[0]} at 5 % and {errors[1]} "
        "at 50 %. Rates are in points.",
        "",
        f"| {' | '.join(_METRIC_COLUMNS)} |",
        "|---|" + "---:|" * (len(_METRIC_COLUMNS) - 1),
    ]
    for metric in METRICS.values():
        effect = _METRIC_EFFECTS.get(metric.name, simulated_metrics.Trick(shift=0.2))
        truth = simulated_metrics.true_difference(
            metric, _METRIC_IMAGES, _METRIC_CLASSES, effect, min(400, 20 * num_tables)
        )
        for n in METRIC_SEEDS:
            rng = np.random.default_rng(n)
            tables = [
                simulated_metrics.differences(rng, metric, n, labels, [none, effect], abs(truth))
                for _ in range(num_tables)
            ]
            null, found = zip(*tables, strict=True)
            lines.append(f"| {' | '.join(_metric_cells(metric, n, truth, null, found))} |")
    return "\n".join(lines)


def _metric_cells(
    metric: Metric, n: int, truth: float, null: Sequence[Difference], found: Sequence[Difference]
) -> list[str]:
    def rate(holds: Iterable[bool]) -> str:
        return _percent(float(np.mean([*holds])))

    def within(interval: tuple[float, float] | None, value: float) -> bool:
        return interval is not None and interval[0] <= value <= interval[1]

    return [
        metric.label,
        str(n),
        rate(within(one.over_both, 0) for one in null),
        rate(within(one.over_seeds, 0) for one in null),
        rate((one.p_zero or 0) < simulated.LEVEL for one in null),
        metric.text(truth),
        rate((one.p_zero or 0) < simulated.LEVEL and one.mean * truth > 0 for one in found),
        rate((one.p_margin or 0) < simulated.LEVEL for one in found),
    ]


PARTS: dict[str, Callable[[int], str]] = {
    "fixed": fixed,
    "sequential": sequential,
    "metrics": metrics,
    "folds": folds,
}


def main() -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS, help="which verdicts")
    parser.add_argument("--tables", type=int, default=4000, help="number of tables per row")
    found = parser.parse_args()
    print(PARTS[found.part](found.tables))


if __name__ == "__main__":
    main()
