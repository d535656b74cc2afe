"""Predictions of images: plain, and with any number of TTAs in one pass over them."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.config.schema import Augment, RunConfig, Tta
from runner.data.batches import (
    Indices,
    LoadedImages,
    Pixels,
    evaluation_order,
    read_ahead,
    view_squares,
)
from runner.data.dataset import Dataset
from runner.data.resident import ResidentStore
from runner.data.store import Store
from runner.data.views import View, plain_view
from runner.errors import TrainingError
from runner.training.step import Learner, augmented, by_parts, source_pixels
from runner.tricks import augment as augmentation
from runner.tricks.resize import to_size
from runner.tricks.tta import Look, combine, looks, looks_used

_MOST_IMAGES = 256  # per forward pass, where nobody says otherwise


@dataclass(frozen=True)
class Predictions:
    """Probabilities of every validation image.

    Attributes:
        labels: (n,) int64.
        plain: (n, K) float32, of the plain view.
        tta: (n, K) float32, combined over the views; equal to ``plain`` without TTA.
        passes_plain: forward passes per image for ``plain``.
        passes_tta: forward passes per image for ``tta``.
        seconds: the evaluation took.
    """

    labels: NDArray[np.int64]
    plain: NDArray[np.float32]
    tta: NDArray[np.float32]
    passes_plain: int
    passes_tta: int
    seconds: float


def evaluate(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    *,
    with_tta: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Predict the validation split as ``config`` says, with its TTA or with the plain view alone.

    See :func:`evaluate_variants`.
    """
    variants = [config.tta if with_tta else Tta()]
    (found,) = evaluate_variants(
        learner, dataset, config, variants, progress=progress, should_stop=should_stop
    )
    return found


def evaluate_variants(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    variants: Sequence[Tta],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Predictions]:
    """Predict the validation split, plain and with several TTAs, in one pass over the data.

    Args:
        learner: what predicts.
        dataset: its validation split is predicted.
        config: says the augmentation of random passes, the seed and the batch size; its ``tta`` is
            not read.
        variants: one or more.
        progress: told the number of batches done, and of all.
        should_stop: asked after every batch.

    Returns:
        Predictions of each of ``variants``, with the plain predictions and the seconds of them all.

    Raises:
        Interrupted: ``should_stop`` returned true in one of the processes.
        TrainingError: a prediction is not finite; the last update took the weights too far.
    """
    started = time.perf_counter()
    split = dataset.val
    found = probabilities(
        learner,
        dataset.store,
        split.indices,
        variants,
        augment=config.augment,
        seed=config.seed,
        batch_size=images_per_pass(config, learner),
        num_workers=dataset.num_workers(config.data.num_workers),
        progress=progress,
        should_stop=should_stop,
    )
    if not all(np.isfinite(part).all() for part in (found.plain, *found.combined)):
        raise TrainingError(
            "a prediction is not finite",
            where=f"evaluation of {len(split)} validation images, optim.lr={config.optim.lr:g}",
            fix=f"a lower rate: optim.lr={config.optim.lr / 10:g}",
        )
    seconds = time.perf_counter() - started
    crop = learner.preprocess.crop
    return [
        Predictions(
            labels=split.labels,
            plain=found.plain,
            tta=combined,
            passes_plain=1,
            passes_tta=len(looks_used([tta], crop)),
            seconds=seconds,
        )
        for tta, combined in zip(variants, found.combined, strict=True)
    ]


def images_per_pass(config: RunConfig, learner: Learner) -> int:
    """``eval.batch_size``; where it is null, on a CPU no more pixels than 256 images of 64 px.

    Smaller batches of larger images are as fast there, and evaluation takes no more memory than
    training. A GPU wants many images, and has the memory.
    """
    if config.eval.batch_size is not None:
        return config.eval.batch_size
    if learner.device.type != "cpu":
        return _MOST_IMAGES
    return min(_MOST_IMAGES, max(1, _MOST_IMAGES * 64**2 // learner.preprocess.size**2))


@dataclass(frozen=True)
class Probabilities:
    """What a network says of n images.

    Attributes:
        plain: (n, K) float32, of the plain view.
        combined: (n, K) float32 for each TTA.
        broken: reason by row, of images that cannot be read; their probabilities mean nothing.
    """

    plain: NDArray[np.float32]
    combined: list[NDArray[np.float32]]
    broken: dict[int, str]


def probabilities(
    learner: Learner,
    store: Store,
    indices: Indices,
    variants: Sequence[Tta],
    *,
    augment: Augment,
    seed: int,
    batch_size: int,
    num_workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Probabilities:
    """Predict images, plain and with several TTAs, in one pass over them.

    What several of them look at is computed once. Deterministic: only ``tta.passes`` draw anything,
    keyed by (seed, pass, row), so an image's prediction does not depend on which others share its
    batch, nor a variant's on which others are asked for. Several processes take turns at the
    batches, and each gets all predictions.

    Args:
        learner: what predicts; its ``preprocess`` says what it sees of an image.
        store: of the images.
        indices: (n,) of the images, in the order of the rows.
        variants: TTAs, perhaps none.
        augment: of random passes.
        seed: of random passes.
        batch_size: images per forward pass.
        num_workers: processes that read ahead.
        progress: told the number of batches done, and of all.
        should_stop: asked after every batch.

    Raises:
        Interrupted: ``should_stop`` returned true in one of the processes.
    """
    size, crop = learner.preprocess.size, learner.preprocess.crop
    # The plain view is always computed, and reused where it is one of the wanted ones.
    plain_look = plain_view(crop)
    wanted = list(
        dict.fromkeys([plain_look, *(look for tta in variants for look in looks(tta, crop))])
    )
    views = [look for look in wanted if isinstance(look, View)]
    draws = {
        look: augmentation.draw(augment, len(indices), seed, "tta", look)
        for look in wanted
        if isinstance(look, int)
    }
    batches_of_all = evaluation_order(len(indices), batch_size)
    order = [batches_of_all[number] for number in learner.processes.share(len(batches_of_all))]

    is_resident = isinstance(store, ResidentStore)

    def read(number: int) -> tuple[dict[Look, Pixels], dict[int, str]]:
        rows = order[number]
        # What is on the GPU was whole when it was decoded, and is read there as often as needed.
        images = store if is_resident else LoadedImages(store, indices[rows])
        fixed = zip(views, view_squares(images, indices[rows], views), strict=True)
        random = (
            (look, source_pixels(images, indices[rows], draw.rows(rows), augment))
            for look, draw in draws.items()
        )
        return dict([*fixed, *random]), images.broken if isinstance(images, LoadedImages) else {}

    learner.model.eval()
    plain, *combined = (
        torch.zeros(len(indices), learner.num_outputs, device=learner.device)
        for _ in range(1 + len(variants))
    )
    broken: dict[int, str] = {}
    is_stopped = False
    # Processes cannot share what is on a GPU.
    batches = read_ahead(read, len(order), 0 if is_resident else num_workers)
    with torch.inference_mode(), closing(batches):
        for done, (rows, (by_look, unread)) in enumerate(zip(order, batches, strict=True)):
            seen = {}
            for look, pixels in by_look.items():
                if isinstance(look, View):
                    images = displayed_view(pixels, look, learner)
                else:
                    drawn = draws[look].rows(rows)
                    images = augmented(pixels, drawn, size, augment, learner.device)
                seen[look] = _predict(learner, images)
            place = slice(rows[0], rows[-1] + 1)  # an index by array would wait for a GPU
            plain[place] = seen[plain_look]
            for tta, whole in zip(variants, combined, strict=True):
                others = torch.stack([seen[look] for look in looks(tta, crop)])
                whole[place] = combine(seen[plain_look], others, tta)
            broken |= {
                int(row): unread[int(indices[row])] for row in rows if indices[row] in unread
            }
            progress(done + 1, len(order))
            if is_stopped := should_stop():
                break
    learner.processes.stop_if(is_stopped)
    # Every row is some process's and zero with the others: the sums are exact.
    all_plain, *all_combined = (
        learner.processes.sum(part).cpu().numpy() for part in (plain, *combined)
    )
    return Probabilities(all_plain, all_combined, broken)


def _predict(learner: Learner, images: Tensor) -> Tensor:
    return learner.idea.predictions(learner.logits(images))


def displayed_view(pixels: Pixels, view: View, learner: Learner) -> Tensor:
    """The squares of a view, scaled and mirrored as it says: (N, 3, S, S) float in 0..1."""
    preprocess = learner.preprocess
    size = max(1, round(preprocess.size * view.scale))

    def show_some(images: Tensor, rows: slice) -> Tensor:
        images = to_size(images.div_(255), size, preprocess.interpolation)
        return images.flip(-1) if view.flip else images

    return by_parts(show_some, pixels, learner.device)
