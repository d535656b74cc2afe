"""The figures of the page, as SVG that takes its colors from the page.

Matplotlib draws with placeholder colors, which are replaced by variables of the page, so that one
drawing serves the light and the dark theme. Text stays text: it can be searched, selected and read
aloud. Matplotlib escapes names of classes and tricks.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runner.report.curves import Curve
from runner.report.details import SeriesPoint
from runner.report.metric import ACCURACY, Metric
from runner.terminal.console import printable

_INK, _FAINT, _BAND = "#010203", "#010204", "#010205"
_SERIES = [f"#0103{number:02x}" for number in range(8)]
_VARIABLES = {
    _INK: "var(--ink)", _FAINT: "var(--faint)", _BAND: "var(--band)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
}  # fmt: skip
_MARKERS = "osD^vP*X"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class called $x$ is not a formula
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _BAND,
    "legend.frameon": False,
}
_WIDTH = 7.6  # inches of 72 units
_LINE = 112  # characters of a legend in that width
_LONG = 32  # most characters of a label in one line
_HANDLE = 6  # width of the mark before a label, in characters
_MOST_LINEAR = 8  # largest value / smallest of a linear axis


@dataclass(frozen=True)
class Effect:
    """One line of a forest plot.

    Attributes:
        label: what is compared.
        mean: mean difference.
        interval: its interval; None if there is none.
        over_seeds: its interval over seeds, for these images; None if there is none.
    """

    label: str
    mean: float
    interval: tuple[float, float] | None
    over_seeds: tuple[float, float] | None = None


def forest(
    name: str,
    effects: Sequence[Effect],
    margin: float,
    metric: Metric = ACCURACY,
    *,
    is_narrow: bool = False,
) -> str:
    """Draw the differences with their intervals, a line each, around zero and the margin.

    A narrow figure, for phones, has the labels above their lines. Where less of the metric is
    better, the axis says so.
    """
    scale = metric.scale
    labels = [_in_two_lines(one.label) for one in effects]
    num_lines = 1 + any("\n" in label for label in labels)
    size = (
        (4.3, 0.7 + (0.35 + 0.25 * num_lines) * len(effects))
        if is_narrow
        else (_WIDTH, 0.9 + 0.36 * len(effects))
    )
    with mpl.rc_context({**_STYLE, "font.size": 12.5 if is_narrow else _STYLE["font.size"]}):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-scale * margin, scale * margin, color=_BAND, lw=0)
        axes.axvline(0, color=_FAINT, lw=1)
        for place, one in enumerate(effects):
            if one.interval:
                axes.plot(_scaled(one.interval, scale), [place] * 2, color=_SERIES[0], lw=1.3)
            if one.over_seeds:
                ends = _scaled(one.over_seeds, scale)
                axes.plot(ends, [place] * 2, color=_SERIES[0], lw=4, alpha=0.55)
            axes.plot(scale * one.mean, place, "o", color=_INK, ms=5)
            if is_narrow:
                start = axes.get_yaxis_transform()  # across the axes, down the lines
                axes.text(0, place - 0.25, labels[place], transform=start, linespacing=1.1)
        ticks = [] if is_narrow else range(len(labels))
        axes.set_yticks(ticks, [labels[place] for place in ticks])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(effects) - 0.5, -0.7)
        axes.set_xlim(*_limits(effects, margin, scale))
        unit = "percentage points" if metric.unit else ""
        what = "" if is_narrow and unit else f"difference in {metric.label}"
        axes.set_xlabel(", ".join(filter(None, [what, unit, metric.direction])))
        return _svg(figure, name)


def _limits(effects: Sequence[Effect], margin: float, scale: int = 100) -> tuple[float, float]:
    """Return the ends of the axis: they include all means, and intervals that are not very wide."""
    reach = max(4 * margin, *(2.5 * abs(one.mean) for one in effects))
    ends = [
        min(max(end, -reach), reach)
        for one in effects
        for end in (*(one.interval or ()), one.mean, -margin, margin)
    ]
    room = 0.04 * (max(ends) - min(ends))
    return scale * (min(ends) - room), scale * (max(ends) + room)


def curves(name: str, by_axis: Mapping[str, Mapping[str, Curve]]) -> str:
    """Draw accuracy against each axis: a panel per axis, a line per arm with the seeds' range."""
    most = max((line.x[-1] for line in by_axis.get("pixels", {}).values()), default=0.0)
    pixels = ("pixels, 10⁹", 1e-9) if most >= 1e9 else ("pixels, 10⁶", 1e-6)
    units = {"epoch": ("epochs", 1.0), "seconds": ("seconds", 1.0), "pixels": pixels}
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, 3.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(by_axis), sharey=True))
        for axes, (axis, lines) in zip(panels, by_axis.items(), strict=True):
            unit, scale = units[axis]
            for number, (label, line) in enumerate(lines.items()):
                axes.plot(scale * line.x, 100 * line.mean, **_line(number), label=_shown(label))
                axes.fill_between(
                    scale * line.x, 100 * line.low, 100 * line.high,
                    color=_SERIES[number % len(_SERIES)], alpha=0.15, lw=0,
                )  # fmt: skip
            axes.set_xlabel(unit)
            axes.grid(axis="y")
        panels[0].set_ylabel("validation accuracy, %")
        _legend(figure, panels[0])
        return _svg(figure, name)


def reliability(name: str, by_arm: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """Draw accuracy against confidence, a panel per arm; on the diagonal, both are equal."""
    columns = min(4, len(by_arm))
    rows = -(-len(by_arm) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, 2.0 * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
        for axes in panels[len(by_arm) :]:
            axes.set_visible(False)
        for axes, (label, (confidence, accuracy)) in zip(panels, by_arm.items(), strict=False):
            axes.plot([0, 100], [0, 100], color=_FAINT, lw=1)
            axes.plot(100 * confidence, 100 * accuracy, "o-", color=_SERIES[0], ms=3.5, lw=1.3)
            axes.set_title(_shown(label), fontsize=9)
            axes.set_aspect("equal")
            axes.set(xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100), yticks=(0, 50, 100))
        figure.supxlabel("confidence, %", fontsize=9.5)
        figure.supylabel("accuracy, %", fontsize=9.5)
        return _svg(figure, name)


def series(name: str, key: str, lines: Mapping[str, Sequence[SeriesPoint]]) -> str:
    """Draw accuracy against the values of a key: (value, mean, low, high) per arm."""
    with mpl.rc_context(_STYLE):
        figure = Figure((_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, (label, points) in enumerate(lines.items()):
            x, mean, low, high = np.array(points, dtype=float).T
            axes.plot(x, 100 * mean, **_line(number), label=_shown(label))
            axes.fill_between(
                x, 100 * low, 100 * high,
                color=_SERIES[number % len(_SERIES)], alpha=0.15, lw=0,
            )  # fmt: skip
        values = sorted({value for points in lines.values() for value, *_ in points})
        if values and values[0] > 0 and values[-1] / values[0] >= _MOST_LINEAR:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xlabel(_shown(key))
        axes.set_ylabel("validation accuracy, %")
        axes.grid(axis="y")
        _legend(figure, axes)
        return _svg(figure, name)


def _line(number: int) -> dict[str, Any]:
    """Color and marker of a line: lines differ without color, too."""
    return {
        "color": _SERIES[number % len(_SERIES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "ms": 4,
        "lw": 1.5,
    }


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = max(1, min(4, _LINE // (longest + _HANDLE)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def _scaled(interval: tuple[float, float], scale: int) -> tuple[float, float]:
    return scale * interval[0], scale * interval[1]


def _shown(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 42 else f"{text[:40]}…"


def _in_two_lines(label: str) -> str:
    """Return a long label, broken after the ``+`` or ``with`` that is nearest to its middle."""
    label = printable(label)
    places = [found.end() for found in re.finditer(r" (\+|with|in) ", label)]
    if len(label) <= _LONG or not places:
        return _shown(label)
    place = min(places, key=lambda place: abs(place - len(label) / 2))
    return f"{_shown(label[:place].rstrip())}\n{_shown(label[place:])}"


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an ``svg`` element; ``name`` must be unique in the page."""
    content = io.StringIO()
    # Marks and clips have identifiers, which must differ from those of other figures.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            content, format="svg", transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )  # fmt: skip
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>|font-family: [^;\"]*; ", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[\w.]+"(?=/?>)', "<g", text)
    text = re.sub(r'(?<=<svg )([^>]*?)width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for colour, variable in _VARIABLES.items():
        text = re.sub(f"(fill|stroke): {colour}", rf"\1: {variable}", text)
    return text
