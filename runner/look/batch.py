"""The first training batch of a run as the network sees it, computed by the training's own code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runner.config.schema import RunConfig
from runner.data.dataset import Dataset
from runner.training.loop import training_batches
from runner.training.schedule import Stage, moment, plan
from runner.training.step import Batch, Learner, training_images, training_inputs
from runner.tricks.sampling import epoch_order

_MOST_SIZES = 3
_SAMPLES = 1_000  # steps of the plan that are looked at for their size


@dataclass(frozen=True)
class Stages:
    """The first images of a batch at one size of the schedule.

    Attributes:
        size: S, px.
        from_progress: progress 0..1 of the training at which the size begins.
        augmented: (n, S, S, 3) uint8, after the tricks on single images.
        mixed: (n, S, S, 3) uint8, the input of the network before normalization.
        targets: (n, K) float, the targets of ``mixed``.
        labels: (n,) int64, the label of each image.
        partners: (n,) int64, the label of the image that is mixed in; None if nothing is mixed.
        shares: (n,) float in 0..1, λ: the weight of the image's own label; None likewise.
    """

    size: int
    from_progress: float
    augmented: NDArray[np.uint8]
    mixed: NDArray[np.uint8]
    targets: NDArray[np.floating]
    labels: NDArray[np.int64]
    partners: NDArray[np.int64] | None
    shares: NDArray[np.floating] | None


def first_batch(
    learner: Learner, dataset: Dataset, config: RunConfig, num_images: int
) -> list[Stages]:
    """Compute the first images of the first batch at the sizes of the schedule.

    The draws are those of the first step; only the size differs. At the first size, ``mixed`` is
    what the first step trains on.

    Args:
        learner: the learner that would train.
        dataset: the data set of the run.
        config: configuration of the run.
        num_images: number of images, at most as many as the batch has.

    Raises:
        CodeError: a function of the user returns a wrong value.
    """
    stages = plan(config, len(dataset.train))
    first = moment(stages, 0)
    found = []
    for size, progress in sizes(stages):
        now = replace(first, size=size)
        (batch,) = training_batches(dataset, stages[0].batch_size, [now], _alone(config))
        found.append(_stages(learner, batch, config, num_images, progress))
    return found


def originals(dataset: Dataset, config: RunConfig, num_images: int) -> list[NDArray[np.uint8]]:
    """The stored images (H, W, 3) of the first batch, before any augmentation."""
    batch_size = plan(config, len(dataset.train))[0].batch_size
    split = dataset.train
    order = epoch_order(split.labels, batch_size, config.sampling, config.seed, 0)
    rows = order[0].images[:num_images]
    return [dataset.store.rectangle(int(index)) for index in split.indices[rows]]


def sizes(stages: Sequence[Stage]) -> list[tuple[int, float]]:
    """The image sizes of a plan in order, and the progress at which each begins.

    Of more than three sizes: the first, one in the middle, and the last.
    """
    total = sum(stage.num_steps for stage in stages)
    begins: dict[int, float] = {}
    for before in np.unique(np.linspace(0, total - 1, _SAMPLES).astype(int)):
        now = moment(stages, int(before))
        begins.setdefault(now.size, now.progress)
    found = list(begins.items())
    if len(found) <= _MOST_SIZES:
        return found
    return [found[0], found[len(found) // 2], found[-1]]


def as_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert images (N, 3, H, W) float to pixels (N, H, W, 3); values outside 0..1 are clipped."""
    pixels = images.detach().clamp(0, 1).mul(255).round().byte()
    converted: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return converted


def _alone(config: RunConfig) -> RunConfig:
    """``config`` without processes that read ahead: a single batch needs none."""
    return replace(config, data=replace(config.data, num_workers=0))


def _stages(
    learner: Learner, batch: Batch, config: RunConfig, num_images: int, progress: float
) -> Stages:
    images = training_images(learner, batch, config)
    inputs, targets = training_inputs(learner, images, batch, config)
    labels = batch.labels.numpy()
    partners = shares = None
    if batch.mix is not None:
        partners = labels[batch.mix.partner.numpy()][:num_images]
        shares = batch.mix.share.numpy()[:num_images]
    return Stages(
        size=batch.moment.size,
        from_progress=progress,
        augmented=as_pixels(images[:num_images]),
        mixed=as_pixels(inputs[:num_images]),
        targets=targets[:num_images].cpu().numpy(),
        labels=labels[:num_images],
        partners=partners,
        shares=shares,
    )
