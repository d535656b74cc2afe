"""The images that a run gets wrong, and which of them probably have a wrong label.

Validation images are not trained on, so that their predictions are out of sample, as confident
learning needs: Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in
dataset labels", JAIR 70, https://arxiv.org/abs/1911.00068.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

_SMALLEST = 1e-12  # a probability below counts as this one, so that the loss is finite


@dataclass(frozen=True)
class Mistake:
    """A validation image whose most probable class is not its label.

    Attributes:
        row: row of the image in the predictions.
        name: name of the image in the data.
        true: the class that the label says.
        predicted: the most probable class.
        confidence: probability of ``predicted``, 0..1.
        loss: cross entropy of the prediction, in nats.
        margin: normalized margin, -1..0; see :func:`normalized_margin`.
        is_likely_label_error: see :func:`likely_label_errors`.
    """

    row: int
    name: str
    true: str
    predicted: str
    confidence: float
    loss: float
    margin: float
    is_likely_label_error: bool


def normalized_margin(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Return p(label) − max p(another class), (N,) in -1..1: the lower, the more likely an error.

    The score is the *normalized margin* of Northcutt et al. (2021), section 3.

    Args:
        probabilities: (N, K) predicted probabilities.
        labels: (N,) label of each image.
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    found: FloatArray = probabilities[rows, labels] - others.max(axis=1, initial=0.0)
    return found


def likely_label_errors(probabilities: FloatArray, labels: IntArray) -> NDArray[np.bool_]:
    """Return which labels are probably wrong, (N,): those off the diagonal of the confident joint.

    The threshold of a class is the mean probability of the class over the images that carry its
    label. An image counts as of the most probable class among those whose probability reaches
    their thresholds; if that class is not the label, the label is probably wrong. This is the
    confident joint of Northcutt et al. (2021), equations 1 and 2.

    Args:
        probabilities: (N, K) predicted probabilities.
        labels: (N,) label of each image.
    """
    num_outputs = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    images = np.bincount(labels, minlength=num_outputs)
    sums = np.bincount(labels, weights=own, minlength=num_outputs)
    # No image can count as of a class that no image carries.
    thresholds = np.divide(sums, images, out=np.full(num_outputs, np.inf), where=images > 0)
    thresholds = np.maximum(thresholds, _SMALLEST)  # a probability of zero reaches none
    reaching = np.where(probabilities >= thresholds, probabilities, -1.0)
    is_counted = reaching.max(axis=1, initial=-1.0) >= 0
    found: NDArray[np.bool_] = is_counted & (reaching.argmax(axis=1) != labels)
    return found


def find_mistakes(
    probabilities: FloatArray,
    labels: IntArray,
    outputs: Sequence[str],
    name: Callable[[int], str],
) -> list[Mistake]:
    """Return the mistakes: likely label errors by normalized margin, then the others by loss.

    Args:
        probabilities: (N, K) predicted probabilities.
        labels: (N,) label of each image.
        outputs: names of the K outputs.
        name: returns the name of an image by its row.
    """
    predicted = probabilities.argmax(axis=1)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _SMALLEST))
    margins = normalized_margin(probabilities, labels)
    suspected = likely_label_errors(probabilities, labels)
    found = [
        Mistake(
            row=int(row),
            name=name(int(row)),
            true=outputs[labels[row]],
            predicted=outputs[predicted[row]],
            confidence=float(probabilities[row, predicted[row]]),
            loss=float(losses[row]),
            margin=float(margins[row]),
            is_likely_label_error=bool(suspected[row]),
        )
        for row in np.flatnonzero(predicted != labels)
    ]
    return sorted(
        found,
        key=lambda one: (
            not one.is_likely_label_error,
            one.margin if one.is_likely_label_error else -one.loss,
        ),
    )


def worth_showing(mistakes: Sequence[Mistake], number: int) -> tuple[list[Mistake], list[Mistake]]:
    """Return mistakes to look at: likely label errors, and the highest losses of all others.

    Args:
        mistakes: as :func:`find_mistakes` sorts them.
        number: how many to return; half of each kind, and what one kind leaves free, of the other.
    """
    suspected = [one for one in mistakes if one.is_likely_label_error]
    first = suspected[: number // 2]
    others = sorted((one for one in mistakes if one not in first), key=lambda one: -one.loss)
    return first, others[: number - len(first)]
