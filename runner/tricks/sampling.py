"""Balanced sampling: rare classes are drawn as often as frequent ones.

Each image of an epoch is drawn with replacement. The probability of an image is proportional to
``n^-power``, where n is the number of training images of its class: a power of 1 makes all classes
equally likely, and smaller powers lie between that and the frequencies of the data.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.config.sampling import Sampling
from runner.data.batches import Indices, training_order
from runner.randomness import generator


class BatchRows(NamedTuple):
    """The images of a batch.

    Attributes:
        images: (N,) positions in the training split; an image may occur twice.
        draws: (N,) rows of the draws of an epoch, one row per training image, such as the
            parameters of augmentation. No row occurs twice in an epoch.
    """

    images: Indices
    draws: Indices


def epoch_order(
    labels: Indices, batch_size: int, sampling: Sampling, seed: int, epoch: int
) -> list[BatchRows]:
    """Return the batches of one epoch; incomplete batches are left out.

    Without balanced sampling, each epoch is a permutation, and row i of the draws is that of image
    i. With it, an image may occur several times. The draws belong to the place in the epoch, so
    that two copies of an image are augmented differently.

    Args:
        labels: (n,) labels of the training split, in 0..K-1.
        batch_size: number of images of a batch.
        sampling: the settings of the sampling.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
    """
    if not sampling.is_on:
        order = training_order(len(labels), batch_size, seed, epoch)
        return [BatchRows(images, images) for images in order]
    num_batches = len(labels) // batch_size
    places = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    sums = np.cumsum(image_probabilities(labels, sampling.power))
    sums /= sums[-1]  # exactly 1, and every uniform draw is below
    chances = generator(seed, "sampling", epoch).random(places.shape)
    images = np.searchsorted(sums, chances, side="right")
    return [BatchRows(*rows) for rows in zip(images, places, strict=True)]


def image_probabilities(labels: Indices, power: float) -> NDArray[np.float64]:
    """Return the probability of each image per draw, proportional to its class size ^ ``-power``.

    Args:
        labels: (n,) labels of the training split, in 0..K-1.
        power: at least 0; 0 makes all images equally likely, 1 all classes.
    """
    counts = np.bincount(labels)[labels]
    weights = (counts / counts.min()) ** -power
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities
