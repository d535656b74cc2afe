"""Metrics as text: their labels and digits, and the table of the scores of each class."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.terminal.tables import Table

MOST_CLASSES = 20
"""Most classes of a printed table; of more, the worst ones are shown."""
_UNDEFINED = "–"

_TEXTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", "{:.2%}".format),
    "top5": ("top-5", "{:.2%}".format),
    "balanced_accuracy": ("balanced accuracy", "{:.2%}".format),
    "log_loss": ("log loss", "{:.4f}".format),
    "brier": ("Brier score", "{:.4f}".format),
    "macro_f1": ("macro F1", "{:.4f}".format),
    "auroc": ("AUROC", "{:.4f}".format),
    "ece": ("ECE", "{:.4f}".format),
}


def metric_label(name: str) -> str:
    """Return the name of a metric for people."""
    return _TEXTS[name][0]


def metric_text(name: str, value: float | None) -> str:
    """Return the value of a metric; a dash if it is undefined: None or NaN."""
    if value is None or math.isnan(value):
        return _UNDEFINED
    return _TEXTS[name][1](value)


def class_table(title: str, per_class: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of the scores of each class, as wide as 80 columns allow.

    Args:
        title: what was evaluated.
        per_class: by name of the class, ``precision``, ``recall``, ``f1`` (0..1, None if undefined)
            and ``support``. Of more than :data:`MOST_CLASSES` classes, those with the lowest F1
            are shown, worst first, and the title says how many more there are. Classes without
            images and predictions are the last of them.
    """
    names: Sequence[str] = list(per_class)
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: _rank(per_class[name]["f1"]))[:MOST_CLASSES]
        title += f", the {MOST_CLASSES} lowest F1; {len(per_class) - MOST_CLASSES} more classes"
    rows = tuple(
        (
            name,
            f"{per_class[name]['support']:,}",
            *(_percent(per_class[name][score]) for score in ("precision", "recall", "f1")),
        )
        for name in names
    )
    return Table(title, ("class", "images", "precision, %", "recall, %", "F1, %"), rows, ("class",))


def _rank(f1: float | None) -> float:
    return math.inf if f1 is None else f1


def _percent(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{100 * value:.2f}"
