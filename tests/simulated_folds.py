"""Cross-validations of small learners, whose training sets overlap as those of networks do.

Two arms learn to tell two classes apart, each from features of its own that are alike, so that the
true difference is zero. Nothing about the dependence of the folds is assumed: each learner is
trained on the images outside of a fold and tested on that fold. The learners differ in how much
they depend on the training images: the nearest neighbor depends on few of them, and least squares
with nearly as many features as images is unstable. Networks have random features, which are drawn
with the seed; with ``is_own``, each network has other ones, so that seeds matter much.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from runner.report.folds import fold_difference

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Setting:
    """A kind of cross-validation.

    Attributes:
        learner: ``least squares``, ``centroid``, ``neighbor`` or ``network``.
        num_images: number of images.
        num_features: features of each arm.
        num_folds: number of folds.
        num_seeds: number of seeds; 1 for learners without randomness.
        apart: distance of the classes from 0, in standard deviations.
        ridge: penalty of least squares.
        hidden: random features of a network.
        is_own: whether each network has its own random features.
    """

    learner: str
    num_images: int
    num_features: int
    num_folds: int = 5
    num_seeds: int = 1
    apart: float = 1.0
    ridge: float = 1.0
    hidden: int = 0
    is_own: bool = False

    @property
    def name(self) -> str:
        """The setting in words."""
        own = f" of {self.hidden}" + (", all different" if self.is_own else "")
        return self.learner + (own if self.hidden else "")

    @property
    def folds(self) -> NDArray[np.int64]:
        """(N,) the fold of each image; the classes take turns, so that folds are stratified."""
        return (np.arange(self.num_images) // 2) % self.num_folds


SETTINGS = (
    Setting("least squares", 200, 4),
    Setting("least squares", 100, 80, apart=1.5, ridge=0.01),
    Setting("least squares", 60, 50, 3, apart=1.5, ridge=0.001),
    Setting("least squares", 1000, 20),
    Setting("least squares", 200, 20, 10),
    Setting("centroid", 60, 200, 3, apart=1.5),
    Setting("centroid", 100, 50),
    Setting("neighbor", 100, 10),
    Setting("neighbor", 120, 10, 3),
    Setting("network", 200, 10, hidden=20),
    Setting("network", 200, 10, num_seeds=3, hidden=20),
    Setting("network", 500, 10, hidden=3, is_own=True),
    Setting("network", 500, 10, num_seeds=3, hidden=3, is_own=True),
    Setting("network", 498, 10, 3, hidden=8, is_own=True),
)


def draw(rng: np.random.Generator, setting: Setting, num_tables: int) -> FloatArray:
    """(tables, seeds, N): differences in score, 1 for right and 0 for wrong, of two equal arms."""
    labels = np.tile([1.0, -1.0], setting.num_images // 2)
    shape = (num_tables, setting.num_images, setting.num_features)
    shift = labels[:, None] * setting.apart / np.sqrt(setting.num_features)
    arms = [rng.standard_normal(shape) + shift for _ in range(2)]
    found = []
    for _ in range(setting.num_seeds):
        right = []
        random_features = _Hidden(rng, setting, num_tables) if setting.hidden else None
        for features in arms:
            predict = _predictor(setting, features, labels)
            side = np.empty(shape[:2], np.float32)
            for fold in range(setting.num_folds):
                tested = setting.folds == fold
                given = features
                if random_features is not None:
                    given = random_features.of(features)
                side[:, tested] = predict(given, tested) * labels[tested] > 0
            right.append(side)
        found.append(right[0] - right[1])
    return np.stack(found, axis=1)


class _Hidden:
    """Random features: the same for both arms and all folds, or others each time."""

    def __init__(self, rng: np.random.Generator, setting: Setting, num_tables: int) -> None:
        self._rng, self._setting = rng, setting
        self._shape = (num_tables, setting.num_features, setting.hidden)
        self._drawn = self._draw()

    def _draw(self) -> tuple[FloatArray, FloatArray]:
        weights = self._rng.standard_normal(self._shape) / np.sqrt(self._setting.num_features)
        return weights, self._rng.standard_normal((self._shape[0], 1, self._shape[2])) / 2

    def of(self, features: FloatArray) -> FloatArray:
        weights, bias = self._draw() if self._setting.is_own else self._drawn
        return np.maximum(features @ weights + bias, 0)


_Predictor = Callable[[FloatArray, NDArray[np.bool_]], FloatArray]


def _predictor(setting: Setting, features: FloatArray, labels: FloatArray) -> _Predictor:
    """Predicts the tested images, (tables, tested), after training on the others."""

    def least_squares(given: FloatArray, tested: NDArray[np.bool_]) -> FloatArray:
        given = np.concatenate([given, np.ones((*given.shape[:2], 1))], axis=2)
        trained, goal = given[:, ~tested], labels[~tested]
        squares = trained.transpose(0, 2, 1) @ trained
        squares += (setting.ridge or 0) * np.eye(given.shape[2])
        weights = np.linalg.solve(squares, (goal @ trained)[..., None])
        return (given[:, tested] @ weights)[..., 0]

    def centroid(given: FloatArray, tested: NDArray[np.bool_]) -> FloatArray:
        trained = given[:, ~tested]
        direction = (labels[~tested] @ trained)[..., None]
        middle = trained.mean(axis=1, keepdims=True)
        found: FloatArray = ((given[:, tested] - middle) @ direction)[..., 0]
        return found

    def neighbor(given: FloatArray, tested: NDArray[np.bool_]) -> FloatArray:
        ours, theirs = given[:, tested], given[:, ~tested]
        distances = np.square(theirs).sum(axis=2)[:, None] - 2 * ours @ theirs.transpose(0, 2, 1)
        found: FloatArray = labels[~tested][distances.argmin(axis=2)]
        return found

    learners = {"centroid": centroid, "neighbor": neighbor}
    return learners.get(setting.learner, least_squares)


@dataclass(frozen=True)
class Rates:
    """How often a true difference of zero is said to be none, for each rule.

    Attributes:
        ours: by :func:`runner.report.folds.fold_difference`.
        naive: by a t-test of the pairs of seed and fold, as if they were independent.
        corrected: by Nadeau & Bengio's t-test of the folds.
        found: how often ``ours`` finds a difference of three of its true standard errors.
        found_corrected: how often the corrected t-test finds it.
    """

    ours: float
    naive: float
    corrected: float
    found: float
    found_corrected: float


def rates(seed: int, setting: Setting, num_tables: int) -> Rates:
    """Count the verdicts on many cross-validations of one kind."""
    intervals = np.array([*_intervals(seed, setting, num_tables)])  # means, then half the widths
    means, halves = intervals[:, 0], intervals[:, 1:]
    effect = 3 * means.std()
    covered = (np.abs(means)[:, None] <= halves).mean(axis=0)
    power = (means[:, None] + effect > halves).mean(axis=0)
    ours, naive, corrected = map(float, covered)
    return Rates(ours, naive, corrected, float(power[0]), float(power[2]))


def _intervals(seed: int, setting: Setting, num_tables: int) -> Iterator[tuple[float, ...]]:
    """The mean, and half the width of the interval by each rule."""
    rng = np.random.default_rng(seed)
    folds, num_folds = setting.folds, setting.num_folds
    for start in range(0, num_tables, 100):
        for drawn in draw(rng, setting, min(100, num_tables - start)):
            one = fold_difference(drawn, np.zeros_like(drawn), folds, 0.01)
            pairs = np.stack([drawn[:, folds == fold].mean(axis=1) for fold in range(num_folds)])
            naive = _half(pairs.ravel(), 1 / pairs.size)
            corrected = _half(pairs.mean(axis=1), 1 / num_folds + 1 / (num_folds - 1))
            yield one.mean, one.over_both[1] - one.mean, naive, corrected


def _half(values: FloatArray, factor: float) -> float:
    return float(stdtrit(len(values) - 1, 0.975) * np.sqrt(factor * values.var(ddof=1)))
