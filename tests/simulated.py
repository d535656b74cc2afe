"""Experiments whose truth is known: right and wrong predictions drawn from a population.

A network has image i right when z(i) + a(seed) + noise(seed, i) > 0: images differ in how hard they
are, seeds in how well they do, and two networks disagree on images for no reason. With a trick,
u + v(i) is added: an effect, and that it suits some images more than others. All are normal, so the
share of right predictions in the population, over all images and seeds, has a closed form.

The deviations were chosen so that runs of one seed differ as in real ones (Imagenette and
Fashion-MNIST, 5 epochs): accuracies of 75 to 80 %, a deviation of about 1 point between seeds, two
networks that disagree on about one image in eight.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

BASELINE = 0.78
HARD, SEED, NOISE, SUITS = 1.0, 0.03, 0.35, 0.15  # deviations of z, a, noise and v


@dataclass(frozen=True)
class Experiment:
    """Right (1) or wrong (0): baseline (n, N) and one array (n, N) per trick."""

    baseline: NDArray[np.float32]
    tricks: list[NDArray[np.float32]]


def experiment(
    rng: np.random.Generator,
    n: int,
    num_images: int,
    effects: list[float],
    seed_deviation: float = SEED,
) -> Experiment:
    """Draw one; ``effects`` are the tricks' true differences in accuracy, 0..1."""
    spread = sqrt(HARD**2 + seed_deviation**2 + NOISE**2)
    mean = float(ndtri(BASELINE)) * spread
    hardness = rng.normal(mean, HARD, num_images)

    def right(shift: NDArray[np.float64] | float) -> NDArray[np.float32]:
        seeds = rng.normal(0, seed_deviation, (n, 1))
        noise = rng.normal(0, NOISE, (n, num_images))
        return (hardness + shift + seeds + noise > 0).astype(np.float32)

    with_trick = sqrt(spread**2 + SUITS**2)
    shifts = [float(ndtri(BASELINE + effect)) * with_trick - mean for effect in effects]
    return Experiment(
        right(0.0), [right(shift + rng.normal(0, SUITS, num_images)) for shift in shifts]
    )
