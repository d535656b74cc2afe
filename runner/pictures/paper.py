"""The paper that every picture is drawn on: one style, no display, written whole.

A picture is light, with dark text, and readable at 390 px: text is not smaller than 9 points in a
picture of at most ``WIDTH`` inches.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runner.errors import ConfigError
from runner.machine.files import write_output
from runner.terminal.console import printable

WIDTH = 7.6
"""Largest width of a picture, in inches."""
_FORMATS = (".png", ".svg")
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a class called $x$ is not a formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text can be searched, selected and read aloud
    "svg.hashsalt": "trick-runner",  # the same picture is the same bytes
}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this size in inches, in the style of all pictures.

    Draw it inside :func:`style`.
    """
    with style():
        return Figure(figsize=(width, height), layout="constrained")


def style() -> Any:
    """Return a context in which matplotlib draws in the style of all pictures."""
    return mpl.rc_context(_STYLE)


def without_axes(axes: Axes) -> None:
    """Hide ticks and frame, but not the label under the axes."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def picture_bytes(figure: Figure, suffix: str, alt: str) -> bytes:
    """Return ``figure`` as a file.

    Args:
        figure: what was drawn.
        suffix: ``.png`` or ``.svg``.
        alt: what is seen, in a sentence, for those who cannot see it; kept in the file.

    Raises:
        ConfigError: another suffix.
    """
    if suffix not in _FORMATS:
        raise ConfigError(
            f"a picture is written as {' or '.join(_FORMATS)}",
            where=suffix or "a name without suffix",
            fix="NAME.png",
        )
    title = printable(alt)  # a name in it may have characters that no file can hold
    metadata = {"Title": title, "Date": None} if suffix == ".svg" else {"Title": title}
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        # Matplotlib's font lacks many scripts. In an SVG the browser has them; in a PNG such
        # characters are boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+", category=UserWarning)
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
    return buffer.getvalue()


def write_picture(figure: Figure, path: Path, alt: str) -> None:
    """Write ``figure`` to ``path`` whole, as PNG or SVG by its suffix; see :func:`picture_bytes`.

    Raises:
        ConfigError: another suffix.
        StorageError: the file cannot be written.
    """
    write_output(path, picture_bytes(figure, path.suffix.lower(), alt))
