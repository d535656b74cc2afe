"""Galleries of images that were taken for another class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runner.pictures.paper import new_figure, style, without_axes
from runner.terminal.console import printable

_WIDTH = 5.2  # inches, as charts have
_COLUMNS = 3
_LONGEST_NAME = 20  # characters under an image
_ROW_HEIGHT = 2.45  # inches: an image with four lines of text
_GREY = "#555b66"


@dataclass(frozen=True)
class Card:
    """An image with what is written under it.

    Attributes:
        image: (H, W, 3) uint8; None if the image is gone.
        true: the class that the label says.
        predicted: the predicted class.
        confidence: probability of ``predicted``, 0..1.
        loss: cross entropy.
        path: name of the image in the data.
    """

    image: NDArray[np.uint8] | None
    true: str
    predicted: str
    confidence: float
    loss: float
    path: str


def mistakes(sections: Sequence[tuple[str, Sequence[Card]]]) -> Figure:
    """Draw cards in sections, three in a row.

    Args:
        sections: heading and cards, at least one section, each with at least one card.
    """
    rows = [-(-len(cards) // _COLUMNS) for _, cards in sections]
    with style():
        figure = new_figure(sum(0.4 + _ROW_HEIGHT * count for count in rows), _WIDTH)
        parts = figure.subfigures(
            len(sections), 1, squeeze=False, height_ratios=[0.15 + count for count in rows]
        )
        for part, (heading, cards), count in zip(parts[:, 0], sections, rows, strict=True):
            part.suptitle(heading, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
            panels = np.atleast_1d(part.subplots(count, _COLUMNS)).ravel()
            for axes in panels:
                without_axes(axes)
            for axes, card in zip(panels, cards, strict=False):
                _image(axes, card.image)
                _caption(axes, card)
    return figure


def heat_rows(rows: Sequence[tuple[Card, NDArray[Any], NDArray[Any]]]) -> Figure:
    """Draw a row for each image: the image, and the heat for the prediction and for the label.

    Args:
        rows: card, and two (S, S) maps in 0..1: the heat for the prediction and for the label.
    """
    headings = ("image, label", "for the prediction", "for the label")
    with style():
        figure = new_figure(0.5 + 2.0 * len(rows), _WIDTH)
        title = "What speaks for a class: the bright parts of the image"
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
        panels = np.atleast_2d(figure.subplots(len(rows), 3))
        for (card, predicted, true), (whole, first, second) in zip(rows, panels, strict=True):
            for axes in (whole, first, second):
                without_axes(axes)
                _image(axes, card.image)
            share = f"{card.confidence:.0%}"
            _under(whole, [_short(card.true)])
            _heat(first, card.image, predicted)
            _under(first, [f"{_short(card.predicted)}, {share}"])
            _heat(second, card.image, true)
            _under(second, [_short(card.true)])
        for axes, heading in zip(panels[0], headings, strict=True):
            axes.set_title(heading, fontsize=9.5)
    return figure


def _heat(axes: Axes, image: NDArray[np.uint8] | None, heat: NDArray[Any]) -> None:
    if image is not None:
        height, width = image.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.55, extent=extent)


def _image(axes: Axes, image: NDArray[np.uint8] | None) -> None:
    if image is None:
        axes.text(0.5, 0.5, "not at hand", transform=axes.transAxes, ha="center", color=_GREY)
    else:
        axes.imshow(image)


def _caption(axes: Axes, card: Card) -> None:
    _under(
        axes,
        [
            f"label: {_short(card.true, 15)}",
            f"→ {_short(card.predicted)}",
            f"{card.confidence:.0%} sure, loss {card.loss:.1f}",
            _end(card.path),
        ],
    )


def _under(axes: Axes, lines: Sequence[str]) -> None:
    axes.set_xlabel("\n".join(lines), loc="left", fontsize=9, linespacing=1.15)


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    name = printable(name)
    return name if len(name) <= longest else f"{name[: longest - 8]}…{name[-7:]}"


def _end(path: str) -> str:
    path = printable(path)
    return path if len(path) <= _LONGEST_NAME else f"…{path[1 - _LONGEST_NAME :]}"
