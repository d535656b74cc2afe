"""One metric of one run: its value, and what its error over the images is found from.

Metrics that are means have a score per image. Macro F1, AUROC and ECE have their values on 1,000
resampled sets of images, which are equal for all runs on the same images. Each class is resampled
apart, as validation splits are stratified: n - 1 of its n images, each counted n/(n - 1) times,
since n of n would make the spread of a mean too small by that factor (McCarthy & Snowden 1985).
Groups of images are resampled whole, G - 1 of G for the same reason, and the factor G/(G - 1), the
same for all, divides out; a class that a resample lacks is left out of the means over
classes. The bins of ECE stay those of all images: to cut them anew in each resample moves images
only between bins that meet, where confidence and correctness differ alike.

Resampled sets are counts of images, so that a metric on all of them is sums over rows of a matrix
(images by resamples), a block of resamples at a time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.report.folds import fold_difference, resampled_fold_difference
from runner.report.metric import Metric
from runner.report.statistics import Difference, difference, rare_error, resampled_difference
from runner.training.metrics import NUM_BINS, brier_scores, log_losses

FloatArray = NDArray[np.floating[Any]]

NUM_RESAMPLES = 1000
_BLOCK = 1_000_000  # weights at a time, to bound the memory


@dataclass(frozen=True, eq=False)
class Images:
    """The validation images of all runs that are compared.

    Attributes:
        classes: (N,) int64, the class of each image.
        groups: (N,) int64, the group of each image; None if every image is a group of its own.
        folds: (N,) int64, the fold of each image under cross-validation; None without it.
    """

    classes: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    folds: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """A metric of one view of one run.

    Attributes:
        value: the metric on the validation images.
        correct: (N,) bool, whether each prediction is right.
        parts: of a metric that is a mean, the score of each image, (N,); otherwise the metric on
            each resampled set of images.
        of_folds: of the latter, under cross-validation, the metric on the images of each fold.
    """

    value: float
    correct: NDArray[np.bool_]
    parts: NDArray[Any]
    of_folds: tuple[float, ...] = ()


def compared(
    metric: Metric,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    images: Images,
    margin: float,
) -> Difference:
    """Return the difference in a metric between the runs of two arms, paired by seed.

    Args:
        metric: the metric of all runs.
        ours: a run with the change for each seed.
        theirs: a run without it for each seed, on the same images.
        images: these images.
        margin: smallest difference that matters, > 0, in units of the metric.
    """
    new, old = (np.stack([one.parts for one in side]) for side in (ours, theirs))
    if metric.kind == "images":
        classes = images.classes if metric.name == "balanced_accuracy" else None
        new, old = new.astype(np.float32), old.astype(np.float32)
        if images.folds is not None:
            return fold_difference(new, old, images.folds, margin, images.groups, classes)
        return difference(new, old, margin, images.groups, classes)
    rare = 0.0
    if metric.name == "macro_f1" or np.array_equal(new, old):
        right, before = (
            np.sum([one.correct for one in side], axis=0, dtype=np.int64) for side in (ours, theirs)
        )
        rare = rare_error((right != before).astype(np.float64), images.classes, images.groups)
    values, reference = (np.array([one.value for one in side]) for side in (ours, theirs))
    if images.folds is not None:
        tables = [np.array([one.of_folds for one in side]) for side in (ours, theirs)]
        table = tables[0] - tables[1]
        return resampled_fold_difference(values, reference, new - old, table, margin, rare)
    return resampled_difference(values, reference, new, old, margin, rare)


def measured(
    metric: Metric,
    probabilities: FloatArray,
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
) -> Measured:
    """Measure the predictions of one run.

    Args:
        metric: the metric.
        probabilities: (N, K) probabilities; K may be larger than the number of classes.
        labels: (N,) the class of each image.
        groups: (N,) the group of each image; None if every image is a group of its own.
    """
    correct = probabilities.argmax(axis=1) == labels
    if metric.kind == "images":
        scores: NDArray[Any] = correct
        if metric.name in _SCORES:
            scores = _SCORES[metric.name](probabilities, labels).astype(np.float32)
        return of_scores(metric, correct, scores, labels)
    statistic = _STATISTICS[metric.name](probabilities.astype(np.float64), labels)
    factors, counts = _resampled(labels, groups)
    ones = np.ones((len(labels), 1), np.float32)
    value = float(statistic(ones, np.ones(len(labels), np.float32))[0])
    num_columns = max(1, _BLOCK // len(labels))
    blocks = [
        statistic(counts[:, start : start + num_columns].astype(np.float32), factors)
        for start in range(0, counts.shape[1], num_columns)
    ]
    found = np.concatenate(blocks)
    undefined = np.isnan(found)  # a resample of groups may have images of one class alone
    found[undefined] = found[~undefined].mean() if not undefined.all() else value
    return Measured(value, correct, found)


def of_scores(
    metric: Metric,
    correct: NDArray[np.bool_],
    scores: NDArray[Any],
    classes: NDArray[np.int64] | None,
) -> Measured:
    """Return a metric that is a mean of scores (N,); ``classes`` are needed if they count alike."""
    if metric.name != "balanced_accuracy":
        return Measured(float(scores.mean(dtype=np.float64)), correct, scores)
    assert classes is not None
    hits, sizes = np.bincount(classes, weights=scores), np.bincount(classes)
    return Measured(float((hits[sizes > 0] / sizes[sizes > 0]).mean()), correct, scores)


def missing_class(metric: Metric, labels: NDArray[np.int64], num_classes: int) -> int | None:
    """Return the first class without images, if the metric is then undefined; otherwise None."""
    if metric.name != "auroc":
        return None
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    return int(empty[0]) if len(empty) else None


def why_undefined(
    metric: Metric,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    folds: NDArray[np.int64] | None = None,
) -> str | None:
    """Return why a metric has no value on these images, in words; None if it has one.

    Args:
        metric: the metric.
        labels: (N,) the class of each image.
        classes: the names of the classes.
        folds: (N,) the fold of each image under cross-validation, where each fold needs a value.
    """
    missing = missing_class(metric, labels, len(classes))
    if missing is not None:
        return f"class {classes[missing]} has no validation images"
    if metric.name == "auroc" and folds is not None:
        for fold in np.unique(folds):
            own = np.unique(labels[folds == fold])
            if len(own) == 1:
                return f"all images of fold {fold} are of class {classes[own[0]]}"
    return None


_SCORES: Mapping[str, Callable[[FloatArray, NDArray[np.int64]], NDArray[np.float64]]] = {
    "log_loss": log_losses,
    "brier": brier_scores,
}

Statistic = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]
"""A metric of weighted images: from counts (N, R) and factors (N,), its values (R,)."""


def _macro_f1(probabilities: FloatArray, labels: NDArray[np.int64]) -> Statistic:
    """Return the mean F1 of the classes that have images or predictions."""
    num_outputs, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    is_right = predicted == labels

    def statistic(counts: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float64]:
        right = _sums(labels, factors * is_right, num_outputs, counts)
        both = _sums(predicted, factors, num_outputs, counts)
        both += _sums(labels, factors, num_outputs, counts)
        with np.errstate(invalid="ignore"):
            return _mean(2 * right / both)

    return statistic


def _auroc(probabilities: FloatArray, labels: NDArray[np.int64]) -> Statistic:
    """Return the mean over classes of the area under the curve of the class against the rest.

    With C(i) the weight of images whose probability is lower than that of image i, half of the
    weight of equal ones, and P the weight of the class, the area is (Σ w(i) C(i) - P²/2) / (P Q)
    over its images: among themselves these give P²/2.
    """
    present = np.flatnonzero(np.bincount(labels, minlength=probabilities.shape[1]))
    places = []
    for number in present:
        column, own = probabilities[:, number], labels == number
        levels, level = np.unique(column[own], return_inverse=True)
        # Even places are between the levels of the class, odd ones are those levels.
        place = np.searchsorted(levels, column) + np.searchsorted(levels, column, "right")
        places.append(
            (np.flatnonzero(own), level.astype(np.int32), place.astype(np.int32), len(levels))
        )

    def statistic(counts: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float64]:
        total = (factors @ counts).astype(np.float64)
        areas = []
        for own, level, place, num_levels in places:
            weights = _sums(place, factors, 2 * num_levels + 1, counts)
            steps = weights[0:-1:2] + weights[1::2] / 2
            steps[1:] += weights[1:-2:2] / 2
            lower = np.cumsum(steps.T.copy(), axis=1)  # along the memory, ten times faster
            ours = _sums(level, factors[own], num_levels, counts[own]).T.copy()
            weight = ours.sum(axis=1)
            with np.errstate(invalid="ignore"):
                pairs = np.einsum("rl,rl->r", ours, lower) - weight**2 / 2
                areas.append(pairs / (weight * (total - weight)))
        return _mean(np.stack(areas))

    return statistic


def _ece(probabilities: FloatArray, labels: NDArray[np.int64]) -> Statistic:
    """Return the calibration error with bins of equally many images, which are those of all images.

    An image of a level of confidence that a cut goes through is partly in both bins.
    """
    gap = (probabilities.argmax(axis=1) == labels) - probabilities.max(axis=1)
    _, level, sizes = np.unique(probabilities.max(axis=1), return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    cuts = np.array([len(bin_) for bin_ in np.array_split(np.empty(len(labels)), NUM_BINS)])
    high = np.cumsum(cuts)[:, None]
    within = np.minimum(high, ends) - np.maximum(high - cuts[:, None], ends - sizes)
    shares = np.maximum(0, within) / sizes  # (bins, levels)
    terms = (shares[:, level] * gap).astype(np.float32)

    def statistic(counts: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float64]:
        sums = ((terms * factors) @ counts).astype(np.float64)
        total: NDArray[np.float64] = np.abs(sums).sum(axis=0) / (factors @ counts)
        return total

    return statistic


_STATISTICS: Mapping[str, Callable[[FloatArray, NDArray[np.int64]], Statistic]] = {
    "macro_f1": _macro_f1,
    "auroc": _auroc,
    "ece": _ece,
}


def _sums(
    place: NDArray[np.integer[Any]],
    factors: FloatArray,
    num_places: int,
    counts: NDArray[np.float32],
) -> NDArray[np.float64]:
    """(num_places, R): the sums of ``factors`` times ``counts`` over the images of each place."""
    from scipy.sparse import csc_array  # takes a tenth of a second

    num_images = len(place)
    matrix = csc_array(
        (factors.astype(np.float32), place, np.arange(num_images + 1, dtype=place.dtype)),
        shape=(num_places, num_images),
    )
    return np.asarray(matrix @ counts, np.float64)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the rows that are defined; NaN if none is."""
    is_defined = np.isfinite(values)
    number = is_defined.sum(axis=0)
    total = np.where(is_defined, values, 0.0).sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _resampled(
    labels: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    named = None if groups is None else groups.astype(np.int64).tobytes()
    return _resampled_of(labels.astype(np.int64).tobytes(), named, NUM_RESAMPLES)


@lru_cache(maxsize=2)
def _resampled_of(
    labels: bytes, groups: bytes | None, num_resamples: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the weight of each image, (N,), and its counts in each fixed resample, (N, R)."""
    rng = np.random.default_rng(0)
    classes = np.frombuffer(labels, np.int64)
    factors = np.ones(len(classes), np.float32)
    counts = np.ones((len(classes), num_resamples), np.uint8)
    if groups is not None:
        _, place, sizes = np.unique(
            np.frombuffer(groups, np.int64), return_inverse=True, return_counts=True
        )
        if len(sizes) > 1:
            counts[:] = _counts(rng, len(sizes), len(sizes) - 1, num_resamples)[place]
        return factors, counts
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        if len(members) > 1:  # a class of one image has it in every resample
            counts[members] = _counts(rng, len(members), len(members) - 1, num_resamples)
            factors[members] = len(members) / (len(members) - 1)
    return factors, counts


def _counts(
    rng: np.random.Generator, num_units: int, num_draws: int, num_resamples: int
) -> NDArray[np.uint8]:
    """(units, R): how often each unit is drawn in each resample."""
    counts = np.empty((num_units, num_resamples), np.uint8)
    num_columns = max(1, _BLOCK // num_units)
    for start in range(0, num_resamples, num_columns):
        block = counts[:, start : start + num_columns]
        drawn = rng.integers(num_units, size=(num_draws, block.shape[1]), dtype=np.int64)
        drawn *= block.shape[1]
        drawn += np.arange(block.shape[1])
        found = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
        block[:] = np.minimum(found, np.iinfo(np.uint8).max)
    return counts


def digest(sides: Sequence[Sequence[Measured]], folds: NDArray[np.int64] | None = None) -> str:
    """Hash the inputs of a difference; ``folds`` are those of the images, if any."""
    found = hashlib.blake2b(b"" if folds is None else folds.tobytes(), digest_size=16)
    for side in sides:
        found.update(len(side).to_bytes(4, "little"))
        for one in side:
            found.update(one.correct.tobytes())
            found.update(one.parts.tobytes())
            found.update(np.array([one.value, *one.of_folds]).tobytes())
    return found.hexdigest()
