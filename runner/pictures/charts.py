"""Charts of a run: its course, what it confuses, and whether its confidence can be trusted.

Every chart is a function of plain numbers and arrays that returns a figure; the function of the
same name with ``_alt`` returns what is seen, in a sentence, for those who cannot see it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from runner.pictures.paper import new_figure, style
from runner.terminal.console import printable

_WIDTH = 5.2  # inches: then text of 10 points is 11 px high on a screen of 390 px
_FIRST, _SECOND, _FAINT = "#1f62ad", "#b4540a", "#7a828c"
_NUM_BINS = 10
_MOST_CLASSES = 20  # a larger confusion matrix is summarized by its most frequent mistakes
_MOST_NUMBERS = 12  # classes of a matrix whose cells have room for a number
_MOST_MISTAKES = 15
_LONGEST_NAME = 18  # characters of a class in a chart

Row = Mapping[str, Any]


def curves(rows: Sequence[Row]) -> Figure:
    """Draw loss and accuracy against epochs.

    Args:
        rows: rows of ``metrics.jsonl``, in order; without rows, the figure says so.
    """
    with style():
        figure = new_figure(4.8, _WIDTH)
        losses, accuracies = figure.subplots(2, 1, sharex=True)
        _line(losses, rows, "train_loss", "training", _SECOND, marker="s")
        _line(losses, rows, "val_loss", "validation", _FIRST)
        _line(accuracies, rows, "val_accuracy", "validation", _FIRST, scale=100)
        losses.set_ylabel("loss")
        accuracies.set_ylabel("accuracy, %")
        _title(figure, "Loss and accuracy after each epoch")
        if rows:
            losses.legend()
        _finish([losses, accuracies], rows)
    return figure


def curves_alt(rows: Sequence[Row]) -> str:
    """Return the alternative text of :func:`curves`."""
    if not rows:
        return "Loss and accuracy: no evaluation was recorded"
    first, last = rows[0], rows[-1]
    return (
        f"Loss and accuracy against epochs: validation accuracy goes from "
        f"{first['val_accuracy']:.1%} to {last['val_accuracy']:.1%} in {last['epoch']:g} epochs, "
        f"validation loss from {first['val_loss']:.3g} to {last['val_loss']:.3g}"
    )


def schedule(rows: Sequence[Row]) -> Figure:
    """Draw learning rate and image size against epochs, as they were at each evaluation.

    Args:
        rows: rows of ``metrics.jsonl``, in order; without rows, the figure says so.
    """
    with style():
        figure = new_figure(4.4, _WIDTH)
        rates, sizes = figure.subplots(2, 1, sharex=True)
        _line(rates, rows, "lr", "learning rate", _FIRST)
        _line(sizes, rows, "size", "image size", _SECOND, marker="s")
        rates.set_ylabel("learning rate")
        sizes.set_ylabel("image size, px")
        _title(figure, "Learning rate and image size at the end of each epoch")
        rates.set_ylim(bottom=0)
        sizes.set_ylim(bottom=0)
        _finish([rates, sizes], rows)
    return figure


def schedule_alt(rows: Sequence[Row]) -> str:
    """Return the alternative text of :func:`schedule`."""
    if not rows:
        return "Learning rate and image size: no evaluation was recorded"
    rates, sizes = [row["lr"] for row in rows], [row["size"] for row in rows]
    return (
        f"Learning rate and image size against epochs: the rate is between {min(rates):.2g} and "
        f"{max(rates):.2g}, the size goes from {sizes[0]} to {sizes[-1]} px"
    )


_SUGGESTIONS = {
    "valley": "middle of the longest fall",
    "steep": "steepest slope",
    "minimum": "a tenth of the lowest point's",
}


def learning_rates(
    rates: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float]
) -> Figure:
    """Draw the loss of a range test against the learning rate, with the suggestions marked.

    Args:
        rates: learning rates above 0, in growing order.
        losses: the smoothed loss at each rate.
        suggestions: suggested rates by name (valley, steep, minimum); may be empty.
    """
    with style():
        figure = new_figure(4.0, _WIDTH)
        axes = figure.subplots()
        axes.plot(rates, losses, color=_FIRST)
        # The labels of log axes are formulas by default, which the style of pictures shows as text.
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, place: f"{rate:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        for (name, rate), marker in zip(suggestions.items(), "os^", strict=False):
            loss = float(np.interp(np.log(rate), np.log(rates), losses))
            label = f"{name}: optim.lr={rate:.1e} ({_SUGGESTIONS[name]})"
            axes.plot(rate, loss, marker, color=_SECOND, ms=8, label=label)
        axes.set(xlabel="learning rate", ylabel="smoothed loss")
        low, high = min(losses), max(losses[: len(losses) // 2] or losses)
        room = 0.1 * (high - low) or 0.1
        axes.set_ylim(low - room, high + 3 * room)  # where it has diverged, the curve leaves
        axes.grid(axis="y", color="#e4e7eb")
        if suggestions:
            figure.legend(loc="outside lower left")
        _title(figure, "Loss as the learning rate grows, and suggested rates")
    return figure


def learning_rates_alt(suggestions: Mapping[str, float]) -> str:
    """Return the alternative text of :func:`learning_rates`."""
    found = ", ".join(f"{name} {rate:.1e}" for name, rate in suggestions.items())
    return f"Loss against learning rate; suggested rates: {found or 'none'}"


def counts(probabilities: ArrayLike, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count the predictions of each class.

    Args:
        probabilities: (N, K) predicted probabilities; K may exceed ``num_classes``.
        labels: (N,) class of each image.
        num_classes: the number C of classes.

    Returns:
        (C, K) number of images of each class (row) that got each prediction (column).
    """
    predicted, true = np.asarray(probabilities).argmax(axis=1), np.asarray(labels)
    num_outputs = np.asarray(probabilities).shape[1]
    pairs = np.bincount(true * num_outputs + predicted, minlength=num_classes * num_outputs)
    return pairs.reshape(num_classes, num_outputs).astype(np.int64)


def confusion(matrix: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix; of more than 20 classes, the most frequent mistakes.

    Args:
        matrix: (C, K) number of images of each class (row) that got each prediction (column).
        classes: the C names of the classes; further columns are outputs without a class.
    """
    numbers = np.asarray(matrix)
    if numbers.shape[1] > _MOST_CLASSES:
        return _most_confused(numbers, classes)
    return _whole_matrix(numbers, classes)


def confusion_alt(matrix: ArrayLike, classes: Sequence[str]) -> str:
    """Return the alternative text of :func:`confusion`."""
    numbers = np.asarray(matrix)
    total, right = int(numbers.sum()), int(np.trace(numbers))
    found = mistakes(numbers, classes, 3)
    said = "; ".join(f"{true} taken for {taken} {count} times" for true, taken, count, _ in found)
    return printable(
        f"Confusion matrix of {len(classes)} classes: {right} of {total} images are right"
        + (f"; the most frequent mistakes: {said}" if said else "")
    )


def mistakes(
    matrix: ArrayLike, classes: Sequence[str], number: int
) -> list[tuple[str, str, int, float]]:
    """Return the most frequent mistakes of a confusion matrix.

    Args:
        matrix: see :func:`confusion`.
        classes: see :func:`confusion`.
        number: the largest number of mistakes.

    Returns:
        The true class, the predicted class, the number of images, and their share of the images of
        the true class, 0..1; the most frequent first.
    """
    numbers = np.asarray(matrix)
    wrong = numbers.copy()
    np.fill_diagonal(wrong, 0)
    totals = numbers.sum(axis=1)
    names = _outputs(classes, numbers.shape[1])
    order = np.argsort(-wrong, axis=None, kind="stable")[:number]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[true], names[taken], int(wrong[true, taken]), wrong[true, taken] / totals[true])
        for true, taken in places
        if wrong[true, taken]
    ]


def _whole_matrix(numbers: NDArray[Any], classes: Sequence[str]) -> Figure:
    totals = numbers.sum(axis=1, keepdims=True)
    shares = np.divide(100 * numbers, totals, out=np.zeros(numbers.shape), where=totals > 0)
    columns = _outputs(classes, numbers.shape[1])
    with style():
        figure = new_figure(min(5.6, 2.4 + 0.34 * len(classes)), _WIDTH)
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        if len(columns) <= _MOST_NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if numbers[row, column]:
                    text = f"{share:.0f}" if share >= 0.5 else "<1"
                    color = "white" if share > 55 else "black"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90)
        axes.set_yticks(range(len(classes)), [_short(name) for name in classes])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        _title(figure, "What is taken for what: % of each row")
    return figure


def _most_confused(numbers: NDArray[Any], classes: Sequence[str]) -> Figure:
    found = mistakes(numbers, classes, _MOST_MISTAKES)
    with style():
        figure = new_figure(1.2 + 0.42 * max(len(found), 2), _WIDTH)
        axes = figure.subplots()
        names = [f"{_short(true)}\n→ {_short(taken)}" for true, taken, _, _ in found]
        bars = axes.barh(range(len(found)), [count for _, _, count, _ in found], color=_SECOND)
        axes.bar_label(bars, [f"{count} ({share:.0%})" for _, _, count, share in found], padding=3)
        axes.set_yticks(range(len(found)), names, fontsize=9)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.margins(x=0.2)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.set_xlabel("images (share of the true class)")
        _title(figure, f"The most frequent mistakes ({len(classes):,} classes)")
        if not found:
            _say(axes, "no mistakes")
    return figure


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> Figure:
    """Draw accuracy against confidence in ten bins of equally many images.

    Args:
        probabilities: (N, K) predicted probabilities.
        labels: (N,) class of each image.
    """
    confidence, accuracy = _reliability_bins(probabilities, labels)
    with style():
        figure = new_figure(4.6, _WIDTH)
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=_FAINT, lw=1)
        axes.fill_between([0, 100], [0, 100], 0, color=_SECOND, alpha=0.07, lw=0)
        axes.vlines(100 * confidence, 100 * confidence, 100 * accuracy, color=_FIRST, lw=1.2)
        axes.plot(100 * confidence, 100 * accuracy, "o-", color=_FIRST, ms=5)
        axes.text(3, 95, "too careful", color=_FAINT, va="top")
        axes.text(97, 5, "too confident", color=_FAINT, ha="right")
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        number = -(-len(np.asarray(labels)) // _NUM_BINS)
        _title(figure, f"Can the confidence be trusted? A dot: {number:,} images")
    return figure


def reliability_alt(probabilities: ArrayLike, labels: ArrayLike) -> str:
    """Return the alternative text of :func:`reliability`."""
    found = np.asarray(probabilities)
    confidence = float(found.max(axis=1).mean())
    accuracy = float((found.argmax(axis=1) == np.asarray(labels)).mean())
    return (
        f"Reliability diagram: the mean confidence is {confidence:.1%}, the accuracy is "
        f"{accuracy:.1%}"
    )


def _reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean confidence and accuracy in ten bins of equally many images, sorted by confidence."""
    found, true = np.asarray(probabilities), np.asarray(labels)
    confidence, is_right = found.max(axis=1), found.argmax(axis=1) == true
    order = np.argsort(confidence, kind="stable")
    bins = [part for part in np.array_split(order, _NUM_BINS) if len(part)]
    return (
        np.array([confidence[part].mean() for part in bins]),
        np.array([is_right[part].mean() for part in bins]),
    )


def _line(
    axes: Axes,
    rows: Sequence[Row],
    key: str,
    label: str,
    color: str,
    *,
    marker: str = "o",
    scale: float = 1,
) -> None:
    """Draw one value of the rows that have the value."""
    points = [(row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None]
    size = 4.5 if len(points) <= 30 else 0
    axes.plot(*np.array(points).reshape(-1, 2).T, color=color, marker=marker, ms=size, label=label)


def _finish(panels: Sequence[Axes], rows: Sequence[Row]) -> None:
    for axes in panels:
        axes.grid(axis="y", color="#e4e7eb")
        axes.set_axisbelow(True)
        if not rows:
            _say(axes, "no evaluation was recorded")
    panels[-1].set_xlabel("epochs")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.02, ha="left", fontsize=10.5, fontweight="bold")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT)


def _outputs(classes: Sequence[str], number: int) -> list[str]:
    """Names of all outputs of a network: of the classes, then of outputs without a class."""
    return [*classes, *(f"output {place}" for place in range(len(classes), number))]


def _short(name: str) -> str:
    name = printable(name)
    # Names of many classes often begin alike.
    return name if len(name) <= _LONGEST_NAME else f"{name[:10]}…{name[-7:]}"
