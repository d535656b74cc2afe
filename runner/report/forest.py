"""A forest plot in plain text: a line per arm with its mean and interval around zero.

    label_smoothing   ├───────●──░░░│┤░░                 -0.8  cannot tell
    mixup                        ░░░│░░░  ├───●────┤     +1.8  helps

The band is that of differences below the margin. An end that lies beyond the axis is an arrow. A
terminal whose encoding lacks these characters gets the same plot in ASCII.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from runner.terminal.console import printable

WIDTH = 80
"""Characters of a line of the plot, unless the terminal has fewer."""

_LONGEST_LABEL = 22
_FEWEST_PLACES = 15  # of the axis; a narrower terminal gets no plot, the table has the numbers
_GAP = 2
_MOST_TICKS = 5


@dataclass(frozen=True)
class ForestRow:
    """One line of the plot.

    Attributes:
        label: name of the arm.
        mean: mean difference; None without a pair of runs.
        interval: its interval; None where there is none yet.
        words: a few words at the end of the line, such as the verdict.
    """

    label: str
    mean: float | None
    interval: tuple[float, float] | None
    words: str


@dataclass(frozen=True)
class _Marks:
    """The characters of the plot; each is one column wide."""

    mean: str
    line: str
    low: str
    high: str
    below: str
    above: str
    band: str
    zero: str
    ellipsis: str


_UNICODE = _Marks("●", "─", "├", "┤", "◀", "▶", "░", "│", "…")
_ASCII = _Marks("o", "-", "[", "]", "<", ">", ".", "|", "~")


@dataclass(frozen=True)
class Forest:
    """A forest plot of the arms of a comparison.

    Attributes:
        title: the line above it.
        rows: the arms.
        margin: smallest difference that matters; the band around zero.
        scale: what differences are multiplied by on the axis: 100 for percentage points.
    """

    title: str
    rows: tuple[ForestRow, ...]
    margin: float
    scale: int = 100

    def lines(self, width: int = WIDTH, *, is_ascii: bool = False) -> list[str]:
        """Draw the plot without its title.

        Args:
            width: characters of a line, at most.
            is_ascii: whether to use ASCII characters only; a label keeps its own.

        Returns:
            A line per arm and two lines of the axis; none if there is no interval to draw, or
            no room.
        """
        marks = _ASCII if is_ascii else _UNICODE
        spans = [span for row in self.rows if (span := _span(row)) is not None]
        labels = [_fitted(row.label, _LONGEST_LABEL, marks) for row in self.rows]
        before = max(map(cell_len, labels), default=0) + _GAP
        after = _GAP + max((cell_len(row.words) for row in self.rows), default=0)
        places = width - before - after
        if not spans or places < _FEWEST_PLACES:
            return []
        axis = _Axis(spans, self.margin, places)
        found = []
        for label, row in zip(labels, self.rows, strict=True):
            drawn = _drawn(row, axis, self.margin, marks)
            found.append(f"{set_cell_size(label, before)}{drawn}{' ' * _GAP}{row.words}".rstrip())
        ticks, numbers = axis.ruler(marks, self.scale)
        return [*found, f"{' ' * before}{ticks}".rstrip(), f"{' ' * before}{numbers}".rstrip()]

    def print(self, console: Console) -> None:
        """Print the plot to a terminal or a pipe; nothing if it does not fit."""
        is_ascii = not can_draw(console.encoding)
        found = self.lines(min(WIDTH, console.width), is_ascii=is_ascii)
        for line in [printable(self.title), *found] if found else []:
            console.print(Text(line), soft_wrap=True)

    def markdown(self) -> str:
        """Return the plot as a block of code under its title."""
        found = self.lines()
        if not found:
            return ""
        body = "\n".join(f"    {line}" for line in found)
        return f"{printable(self.title)}\n\n{body}\n"


def can_draw(encoding: str) -> bool:
    """Return whether text in ``encoding`` can hold the characters of the plot."""
    try:
        "".join(vars(_UNICODE).values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class _Axis:
    """Differences on the characters of a line: ends that include zero, the margin and the rows."""

    def __init__(self, spans: Sequence[tuple[float, float]], margin: float, places: int) -> None:
        # An interval of two or three seeds can be far wider than all others: it is cut off.
        widths = sorted(high - low for low, high in spans)
        reach = max(3 * margin, 2 * widths[len(widths) // 2])
        lows = [max(low, min(0.0, (low + high) / 2) - reach) for low, high in spans]
        highs = [min(high, max(0.0, (low + high) / 2) + reach) for low, high in spans]
        self.low, self.high = min(-margin, *lows), max(margin, *highs)
        if self.low == self.high:  # without a margin, equal predictions
            self.low, self.high = -0.01, 0.01
        self.places = places

    def place(self, value: float) -> int:
        """Return the place of a value in characters; outside 0..places - 1 if beyond the axis."""
        return round((value - self.low) / (self.high - self.low) * (self.places - 1))

    def ruler(self, marks: _Marks, scale: int) -> tuple[str, str]:
        """Return a line of ticks and a line of their numbers, differences times ``scale``."""
        step = _step(scale * (self.high - self.low) / _MOST_TICKS)
        first, last = ceil(scale * self.low / step), floor(scale * self.high / step)
        digits = max(0, -floor(log10(step) + 1e-9))
        ticks, numbers = [" "] * self.places, [" "] * (self.places + _GAP)
        end = -1
        for number in range(first, last + 1):
            place = self.place(number * step / scale)
            text = f"{number * step:.{digits}f}"
            start = max(0, min(place - len(text) // 2, len(numbers) - len(text)))
            if start <= end:
                continue
            ticks[place] = marks.zero
            numbers[start : start + len(text)] = text
            end = start + len(text)
        return "".join(ticks), "".join(numbers)


def _step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is at least ``least``."""
    power: float = 10.0 ** floor(log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)


def _span(row: ForestRow) -> tuple[float, float] | None:
    if row.mean is None:
        return None
    return row.interval or (row.mean, row.mean)


def _drawn(row: ForestRow, axis: _Axis, margin: float, marks: _Marks) -> str:
    line = [" "] * axis.places
    for place in range(max(0, axis.place(-margin)), min(axis.places, axis.place(margin) + 1)):
        line[place] = marks.band
    line[axis.place(0.0)] = marks.zero
    span = _span(row)
    if span is None or row.mean is None:
        return "".join(line)
    last = axis.places - 1
    if row.interval is not None:
        low, high = (axis.place(end) for end in span)
        left, right = (min(max(place, 0), last) for place in (low, high))
        for place in range(left, right + 1):
            line[place] = marks.line
        line[left] = marks.below if low < 0 else marks.low
        line[right] = marks.above if high > last else marks.high
    line[min(max(axis.place(row.mean), 0), last)] = marks.mean
    return "".join(line)


def _fitted(label: str, width: int, marks: _Marks) -> str:
    label = printable(label).replace("\n", " ")
    if cell_len(label) <= width:
        return label
    return set_cell_size(label, width - 1).rstrip() + marks.ellipsis
