"""Predictions of the validation split: plain, and with any number of TTAs in one pass over it."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runner.data.batches import (
    Held,
    Indices,
    Pixels,
    evaluation_order,
    read_ahead,
    view_squares,
)
from runner.data.dataset import Dataset
from runner.engine import Learner, augmented, source_pixels, to_device
from runner.errors import TrainingError
from runner.schema import RunConfig, Tta
from runner.tricks import augment as augmentation
from runner.tricks.resize import to_size
from runner.tricks.tta import PLAIN, Look, View, combine, looks, looks_used


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
) -> Predictions | None:
    """Predict the validation split as ``config`` says, with its TTA or with the plain view alone.

    See :func:`evaluate_variants`; None when it should stop.
    """
    variants = [config.tta if with_tta else Tta()]
    found = evaluate_variants(
        learner, dataset, config, variants, progress=progress, should_stop=should_stop
    )
    return found[0] if found else None


def evaluate_variants(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    variants: Sequence[Tta],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Predictions] | None:
    """Predict the validation split, plain and with several TTAs, in one pass over the data.

    What several of them look at is computed once. Deterministic: only ``tta.passes`` draw anything,
    keyed by (seed, pass, place in the split), so an image's prediction does not depend on which
    others share its batch, nor a variant's on which others are asked for. Several processes take
    turns at the batches, and each gets all predictions.

    Args:
        learner: what predicts.
        dataset: its validation split is predicted.
        config: says the size, the augmentation of random passes and the seed; its ``tta`` is not
            read.
        variants: one or more.
        progress: told the number of batches done, and of all.
        should_stop: asked after every batch.

    Returns:
        One for each of ``variants``, with the plain predictions and the seconds of them all; None
        when it should stop.

    Raises:
        TrainingError: a prediction is not finite; the last update took the weights too far.
    """
    started = time.perf_counter()
    split, augment, size = dataset.val, config.augment, config.eval_size
    # The plain view is always computed, and reused where it is one of the wanted ones.
    shown = list(dict.fromkeys([PLAIN, *(look for tta in variants for look in looks(tta))]))
    views = [look for look in shown if isinstance(look, View)]
    draws = {
        look: augmentation.draw(augment, len(split), config.seed, "tta", look)
        for look in shown
        if isinstance(look, int)
    }
    batches_of_all = evaluation_order(len(split), config.eval.batch_size)
    order = [batches_of_all[number] for number in learner.processes.share(len(batches_of_all))]

    def read(number: int) -> dict[Look, Pixels]:
        indices = split.indices[order[number]]
        held = Held(dataset.store, indices)
        fixed = zip(views, view_squares(held, indices, views), strict=True)
        random = (
            (look, source_pixels(held, indices, draw.rows(order[number]), augment))
            for look, draw in draws.items()
        )
        return dict([*fixed, *random])

    def predict(look: Look, pixels: Pixels, rows: Indices) -> Tensor:
        if isinstance(look, View):
            images = _show(pixels, look, size, learner.device)
        else:
            images = augmented(pixels, draws[look].rows(rows), size, augment, learner.device)
        return _predict(learner, images)

    learner.model.eval()
    plain, *combined = (
        torch.zeros(len(split), learner.num_outputs, device=learner.device)
        for _ in range(1 + len(variants))
    )
    is_stopped = False
    batches = read_ahead(read, len(order), dataset.num_workers(config.data.num_workers))
    with torch.inference_mode(), closing(batches):
        for done, (rows, by_look) in enumerate(zip(order, batches, strict=True)):
            seen = {look: predict(look, pixels, rows) for look, pixels in by_look.items()}
            plain[rows] = seen[PLAIN]
            for tta, whole in zip(variants, combined, strict=True):
                others = torch.stack([seen[look] for look in looks(tta)])
                whole[rows] = combine(seen[PLAIN], others, tta)
            progress(done + 1, len(order))
            if is_stopped := should_stop():
                break
    if learner.processes.any(is_stopped):
        return None
    # Every row is some process's and zero with the others: the sums are exact.
    all_plain, *all_combined = (
        learner.processes.sum(part).cpu().numpy() for part in (plain, *combined)
    )
    if not all(np.isfinite(part).all() for part in (all_plain, *all_combined)):
        raise TrainingError(
            "a prediction is not finite",
            where=f"evaluation of {len(split)} validation images, optim.lr={config.optim.lr:g}",
            fix=f"a lower rate: optim.lr={config.optim.lr / 10:g}",
        )
    seconds = time.perf_counter() - started
    return [
        Predictions(split.labels, all_plain, found, 1, len(looks_used([tta])), seconds)
        for tta, found in zip(variants, all_combined, strict=True)
    ]


def _show(pixels: Pixels, view: View, size: int, device: torch.device) -> Tensor:
    """The squares of a view, scaled and mirrored as it says."""
    images = to_size(to_device(pixels, device), max(1, round(size * view.scale)))
    return images.flip(-1) if view.flip else images


def _predict(learner: Learner, images: Tensor) -> Tensor:
    return torch.softmax(learner.logits(images), dim=1)
