"""The metrics that a verdict can be about: direction, unit, margin, and how their error is found.

A metric of the kind ``images`` is a mean over images, and is compared by
:func:`runner.report.statistics.difference`; others, of the kind ``resampled``, by
:func:`runner.report.statistics.resampled_difference`. Differences keep the sign of the metric:
where less is better, a change that helps has a negative one. Whether a difference is an improvement
is asked in one place, :meth:`Metric.is_better`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from runner.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: the name that users type, and the key in files.
        label: what people read.
        unit: ``points`` for a part of 1 that is shown in percent; otherwise empty.
        scale: what a value is multiplied by to be shown: 100 for points, else 1.
        less_is_better: whether a smaller value is better.
        default_margin: the smallest difference that matters unless ``--margin`` says otherwise, in
            units of the metric: .01 of 1. For accuracy it is .005, as in the comparisons that
            began before there were others. Log loss has no end: .02 nats are 2 % of the
            probability that the true class gets, and less than training noise of most runs. The
            Brier score, which ends at 2, has about the spread of accuracy.
        kind: ``images`` for a mean over images, ``resampled`` for any other value of the set.
    """

    name: str
    label: str
    unit: Literal["points", ""]
    scale: int
    less_is_better: bool
    default_margin: float
    kind: Literal["images", "resampled"]

    def is_better(self, difference: float) -> bool:
        """Return whether a difference of the metric is an improvement."""
        return difference < 0 if self.less_is_better else difference > 0

    @property
    def heading(self) -> str:
        """The heading of a column of values."""
        return f"{self.label}, %" if self.unit else self.label

    @property
    def difference_heading(self) -> str:
        """The heading of a column of differences."""
        return self.unit or "difference"

    def plain(self, value: float) -> str:
        """Return a margin as the user types it, without its unit."""
        return f"{self.scale * value:g}"

    def size(self, value: float) -> str:
        """Return a margin with its unit, such as ``0.5 points``, ``1 point`` or ``0.02``."""
        number = self.plain(value)
        unit = self.unit.removesuffix("s") if number == "1" else self.unit
        return " ".join(filter(None, [number, unit]))

    def text(self, value: float, *, signed: bool = True) -> str:
        """Return a value or a signed difference, with two decimals of a percent or four of 1."""
        digits, sign = 2 if self.unit else 4, "+" if signed else ""
        return f"{self.scale * value:{sign}.{digits}f}"

    def interval_text(self, interval: tuple[float, float] | None) -> str:
        """Return the interval of a difference; empty for None."""
        if interval is None:
            return ""
        return f"[{self.text(interval[0])}, {self.text(interval[1])}]"

    @property
    def within(self) -> str:
        """What follows a difference in a sentence: `` in log loss``; empty for accuracy."""
        return "" if self.name == "accuracy" else f" in {self.label}"

    @property
    def direction(self) -> str:
        """What to know of the sign of a difference; empty where more is better."""
        return "less is better" if self.less_is_better else ""


def _rate(
    name: str, label: str, margin: float = 0.01, *, less: bool = False, resampled: bool = True
) -> Metric:
    return Metric(name, label, "points", 100, less, margin, "resampled" if resampled else "images")


METRICS: Mapping[str, Metric] = {
    one.name: one
    for one in (
        _rate("accuracy", "accuracy", 0.005, resampled=False),
        _rate("balanced_accuracy", "balanced accuracy", resampled=False),
        Metric("log_loss", "log loss", "", 1, True, 0.02, "images"),
        Metric("brier", "Brier score", "", 1, True, 0.01, "images"),
        _rate("macro_f1", "macro F1"),
        _rate("auroc", "AUROC"),
        _rate("ece", "ECE", less=True),
    )
}
"""The metrics by name."""

ACCURACY = METRICS["accuracy"]


def metric_of(name: str) -> Metric:
    """Return the metric that a user names.

    Raises:
        ConfigError: there is no such metric.
    """
    if name not in METRICS:
        raise ConfigError(
            "no such metric", where=f"--metric {name}", fix=f"one of: {', '.join(METRICS)}"
        )
    return METRICS[name]


def undefined(metric: Metric, reason: str, run: str = "") -> ConfigError:
    """Return the error for a metric without a value on the validation images of a run.

    The reason is of :func:`runner.report.measured.why_undefined`.
    """
    return ConfigError(
        f"{metric.label} is not defined: {reason}",
        where=f"--metric {metric.name}" + (f", run {run}" if run else ""),
        fix="--metric balanced_accuracy, which leaves such classes out, or validation images of it",
    )


def margin_of(text: str | None, metric: Metric) -> float:
    """Return the margin that a user types, in points or in units of the metric, as a part of 1.

    Raises:
        ConfigError: it is no number between 0 and the largest possible difference.
    """
    if text is None:
        return metric.default_margin
    try:
        found = float(text) / metric.scale
    except ValueError:
        found = float("nan")
    if 0 < found < 1:
        return found
    most = f"{metric.scale} percentage points" if metric.unit else f"1, in units of {metric.label}"
    raise ConfigError(
        f"the margin must be a number above 0 and below {most}",
        where=f"--margin {text}",
        fix=f"--margin {metric.plain(metric.default_margin)}",
    )


def default_margins() -> str:
    """Return the default margin of every metric, for help."""
    of_margin: dict[str, list[str]] = {}
    for one in METRICS.values():
        of_margin.setdefault(one.plain(one.default_margin), []).append(one.name)
    usual = max(of_margin, key=lambda margin: len(of_margin[margin]))
    others = [
        f"{margin} for {', '.join(of_margin[margin])}" for margin in of_margin if margin != usual
    ]
    return f"{usual}; {'; '.join(others)}"
