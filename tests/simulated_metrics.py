"""Tables of comparisons on any metric, whose truth is known: drawn probabilities.

The logit of the true class of an image is t (h(image) + a(seed) + u(seed, class) + e(seed, image)),
that of a rival class is 0, and the others are lower. Without an effect, a trick's networks have the
very distribution of the baseline's: hardness, luck and noise are partly those of the baseline and
partly their own, so that the trick suits some images more than others, and the true difference is
zero in every metric. An effect makes all true logits larger; confidence multiplies all logits,
which changes no prediction. The true difference is then the mean over many drawn tables.

Classes have unequal sizes, which are the same in every table, as in a stratified split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runner.report.measured import Images, Measured, compared, measured
from runner.report.metric import Metric
from runner.report.statistics import Difference
from runner.training.metrics import classification_metrics

SHARED_HARDNESS, SHARED_NOISE, SHARED_LUCK = 0.85, 0.5, 0.5  # parts of the variances
SEED, SEED_AND_CLASS, NOISE = 0.04, 0.08, 0.6  # deviations of a, u and e
SLOPE, OTHERS = 2.0, -1.5  # t, and the logit of classes that are neither the true one nor the rival


@dataclass(frozen=True)
class Trick:
    """How a trick's networks differ from the baseline's.

    Attributes:
        shift: what is added to the margin of the true class.
        confidence: what all logits are multiplied by.
    """

    shift: float = 0.0
    confidence: float = 1.0


NONE = Trick()


def labels_of(num_images: int, num_classes: int) -> NDArray[np.int64]:
    """(N,) classes of unequal sizes: the first is four times as large as the last."""
    shares = np.geomspace(4, 1, num_classes)
    ends = np.round(np.cumsum(shares) / shares.sum() * num_images)
    return np.searchsorted(ends, np.arange(num_images), "right").astype(np.int64)


def draw(
    rng: np.random.Generator, n: int, labels: NDArray[np.int64], tricks: Sequence[Trick]
) -> list[NDArray[np.float32]]:
    """Probabilities (n, N, K) of the baseline and of each trick."""
    num_images, num_classes = len(labels), int(labels.max()) + 1
    rows = np.arange(num_images)
    rival = (labels + rng.integers(1, num_classes, num_images)) % num_classes
    easy = rng.random(num_images) < 0.6

    def parts(share: float, *shape: int) -> list[NDArray[np.float64]]:
        """Normal variables of the baseline and of each trick, with a part that all share."""
        common = np.sqrt(share) * rng.standard_normal(shape)
        own = np.sqrt(1 - share) * rng.standard_normal((len(tricks) + 1, *shape))
        return list(common + own)

    found = []
    for trick, hard, luck, of_class, noise, other in zip(
        (NONE, *tricks),
        parts(SHARED_HARDNESS, num_images),
        parts(SHARED_LUCK, n, 1),
        parts(SHARED_LUCK, n, num_classes),
        parts(SHARED_NOISE, n, num_images),
        parts(SHARED_NOISE, n, num_images, num_classes),
        strict=True,
    ):
        margin = np.where(easy, 2.0 + 0.8 * hard, 0.2 + 0.9 * hard) + SEED * luck
        margin = margin + SEED_AND_CLASS * of_class[:, labels] + NOISE * noise + trick.shift
        logits = OTHERS + 0.5 * other
        logits[:, rows, rival] = 0.0
        logits[:, rows, labels] = SLOPE * margin
        powers = np.exp(trick.confidence * logits)
        found.append((powers / powers.sum(axis=2, keepdims=True)).astype(np.float32))
    return found


def measure(
    metric: Metric, views: NDArray[np.float32], labels: NDArray[np.int64]
) -> list[Measured]:
    """The metric of each seed's probabilities (n, N, K)."""
    return [measured(metric, one, labels) for one in views]


def differences(
    rng: np.random.Generator,
    metric: Metric,
    n: int,
    labels: NDArray[np.int64],
    tricks: Sequence[Trick],
    margin: float,
) -> list[Difference]:
    """The differences of one table."""
    baseline, *others = (measure(metric, one, labels) for one in draw(rng, n, labels, tricks))
    return [compared(metric, other, baseline, Images(labels), margin) for other in others]


@lru_cache
def true_difference(
    metric: Metric, num_images: int, num_classes: int, trick: Trick, num_tables: int = 400
) -> float:
    """The difference in the metric over all images and seeds, within what chance leaves."""
    rng, labels = np.random.default_rng(1), labels_of(num_images, num_classes)
    names = [str(number) for number in range(num_classes)]
    found = []
    for _ in range(num_tables):
        old, new = (
            classification_metrics(view[0], labels, names)[metric.name]
            for view in draw(rng, 1, labels, [trick])
        )
        found.append(new - old)
    return float(np.mean(found))
