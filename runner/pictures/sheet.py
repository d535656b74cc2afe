"""Sheets of images: rows with a heading, in one column or in several columns side by side."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runner.pictures.paper import new_figure, style, without_axes

WIDTH = 5.2
"""Width of a sheet in inches: text of 9 points is readable when it is shown at 390 px."""
_TITLE, _HEADING, _LINE, _GAP = 0.3, 0.26, 0.155, 0.08  # inches


@dataclass(frozen=True)
class Cell:
    """An image with the text under it.

    Attributes:
        image: (H, W, 3) uint8.
        caption: lines of text; each about as long as the image is wide.
    """

    image: NDArray[np.uint8]
    caption: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Images in a row, or in several rows, under one heading."""

    heading: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Column:
    """Rows below each other, under one title."""

    title: str
    rows: Sequence[Row]


def sheet(columns: Sequence[Column], *, num_across: int, footer: str = "") -> Figure:
    """Draw columns side by side.

    Args:
        columns: one or more.
        num_across: images in a row of the whole sheet; a column has its share of them.
        footer: the last lines.
    """
    each = max(1, num_across // len(columns))
    side = (WIDTH - _GAP) / (each * len(columns))
    # A character of a title is 0.115 inches wide. A title is broken after its commas, too.
    titles = [
        textwrap.wrap(column.title.replace(",", ", "), int(each * side / 0.115))
        for column in columns
    ]
    lines = max(map(len, titles))
    top = _TITLE + 0.19 * (lines - 1) if lines else 0.0
    tallest = max(sum(_height(row, each, side) for row in column.rows) for column in columns)
    height = top + tallest + (_LINE * (footer.count("\n") + 2) if footer else 0.0)
    with style():
        figure = new_figure(height, WIDTH)
        figure.set_layout_engine("none")  # every place is computed here
        for number, column in enumerate(columns):
            left = _GAP + number * each * side
            text = "\n".join(titles[number])
            _text(figure, left, 0.04, text, fontsize=11, fontweight="bold")
            y = top
            for row in column.rows:
                _draw_row(figure, row, left, y, each, side)
                y += _height(row, each, side)
        if footer:
            _text(figure, _GAP, top + tallest + _LINE / 2, footer, fontsize=9)
    return figure


def _text(figure: Figure, left: float, top: float, text: str, **font: Any) -> None:
    """Write below a place in inches from the left and from the top."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, va="top", linespacing=1.15, **font)


def _height(row: Row, each: int, side: float) -> float:
    """Height of a row in inches."""
    return _HEADING + -(-len(row.cells) // each) * _cell_height(row, side)


def _cell_height(row: Row, side: float) -> float:
    lines = max((len(cell.caption) for cell in row.cells), default=0)
    return side + lines * _LINE


def _draw_row(figure: Figure, row: Row, left: float, top: float, each: int, side: float) -> None:
    _text(figure, left, top + 0.06, row.heading, fontsize=9.5)
    width, height = figure.get_size_inches()
    inner = side - _GAP
    for number, cell in enumerate(row.cells):
        x = left + number % each * side
        y = top + _HEADING + number // each * _cell_height(row, side)
        axes = figure.add_axes((x / width, 1 - (y + inner) / height, inner / width, inner / height))
        without_axes(axes)
        axes.imshow(cell.image, interpolation="nearest")  # every pixel of a small image is visible
        _text(figure, x, y + inner + 0.03, "\n".join(cell.caption), fontsize=9)
