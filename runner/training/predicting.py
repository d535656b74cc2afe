"""Predictions of images: plain, and with any number of TTAs, in one pass over the images."""

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
from runner.data.kept import MOST_BYTES, kept_squares, squares_key
from runner.data.resident import ResidentStore
from runner.data.store import Store
from runner.data.views import View, plain_view
from runner.errors import DivergedError
from runner.machine.hardware import on_device, pixel_device
from runner.training.step import Learner, augmented, by_parts, source_pixels
from runner.tricks import augment as augmentation
from runner.tricks.resize import to_size
from runner.tricks.tta import Look, combine, looks, looks_used

_MOST_IMAGES = 256  # per forward pass, by default


@dataclass(frozen=True)
class Predictions:
    """Probabilities of every validation image.

    Attributes:
        labels: (n,) int64.
        plain: (n, K) float32, probabilities of the plain view.
        tta: (n, K) float32, combined over the views; equal to ``plain`` without TTA.
        passes_plain: forward passes per image for ``plain``.
        passes_tta: forward passes per image for ``tta``.
        seconds: time that the evaluation took.
        groups: (n,) int64, the group of each image; None if every image is a group of its own.
    """

    labels: NDArray[np.int64]
    plain: NDArray[np.float32]
    tta: NDArray[np.float32]
    passes_plain: int
    passes_tta: int
    seconds: float
    groups: NDArray[np.int64] | None = None


def evaluate(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    *,
    with_tta: bool,
    most_kept: int = MOST_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Predict the validation split with the TTA of ``config``, or with the plain view alone.

    See :func:`evaluate_variants`.
    """
    variants = [config.tta if with_tta else Tta()]
    (found,) = evaluate_variants(
        learner,
        dataset,
        config,
        variants,
        most_kept=most_kept,
        progress=progress,
        should_stop=should_stop,
    )
    return found


def evaluate_variants(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    variants: Sequence[Tta],
    *,
    plain: NDArray[np.float32] | None = None,
    most_kept: int = MOST_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Predictions]:
    """Predict the validation split, plain and with several TTAs, in one pass over the data.

    Args:
        learner: the learner that predicts.
        dataset: the data set whose validation split is predicted.
        config: sets the augmentation of random passes, the seed and the batch size; its ``tta`` is
            not read.
        variants: one or more TTAs.
        plain: see :func:`probabilities`.
        most_kept: see :func:`probabilities`.
        progress: called with the number of batches done and their total.
        should_stop: called after every batch.

    Returns:
        Predictions of each of ``variants``; the plain predictions and the seconds are the same in
        all of them.

    Raises:
        Interrupted: ``should_stop`` returned true in one of the processes.
        DivergedError: a prediction is not finite; the last update took the weights too far.
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
        num_workers=dataset.num_workers(config.data.num_workers, learner.processes.cores_shared_by),
        plain=plain,
        most_kept=most_kept,
        progress=progress,
        should_stop=should_stop,
    )
    if not all(np.isfinite(part).all() for part in (found.plain, *found.combined)):
        raise DivergedError(
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
            groups=split.groups,
        )
        for tta, combined in zip(variants, found.combined, strict=True)
    ]


def images_per_pass(config: RunConfig, learner: Learner) -> int:
    """Return ``eval.batch_size``; if null, 256, or on a CPU fewer for images above 64 px.

    On a CPU, smaller batches of larger images are as fast, and evaluation takes no more memory
    than training. A GPU needs many images to be fast, and has the memory.
    """
    if config.eval.batch_size is not None:
        return config.eval.batch_size
    if learner.device.type != "cpu":
        return _MOST_IMAGES
    return min(_MOST_IMAGES, max(1, _MOST_IMAGES * 64**2 // learner.preprocess.size**2))


@dataclass(frozen=True)
class Probabilities:
    """The predictions of a network for n images.

    Attributes:
        plain: (n, K) float32, probabilities of the plain view.
        combined: (n, K) float32, combined probabilities, one array for each TTA.
        broken: for each image that cannot be read, the reason by its row; its probabilities have no
            meaning.
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
    plain: NDArray[np.float32] | None = None,
    most_kept: int = MOST_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Probabilities:
    """Predict images, plain and with several TTAs, in one pass over the images.

    A view that several TTAs share is computed once. Only ``tta.passes`` draws random numbers, keyed
    by (seed, pass, row). So the prediction of an image does not depend on the other images of its
    batch, and that of a variant does not depend on the other variants. Several processes share the
    batches, and each process gets all predictions.

    Args:
        learner: the learner that predicts; its ``preprocess`` sets which part of an image the
            network sees.
        store: the store of the images.
        indices: (n,) indices of the images in ``store``, in the order of the rows.
        variants: the TTAs; may be empty.
        augment: augmentation of random passes.
        seed: seed of random passes.
        batch_size: images per forward pass.
        num_workers: number of processes that read ahead.
        plain: (n, K) probabilities of the plain view if they are known; None to compute them.
        most_kept: bytes of resized squares that the process keeps for later evaluations at most;
            results do not depend on it.
        progress: called with the number of batches done and their total.
        should_stop: called after every batch.

    Raises:
        Interrupted: ``should_stop`` returned true in one of the processes.
    """
    crop = learner.preprocess.crop
    # The plain view is computed once, and reused if a TTA needs it.
    plain_look = plain_view(crop)
    wanted = list(
        dict.fromkeys([plain_look, *(look for tta in variants for look in looks(tta, crop))])
    )
    if plain is not None:
        wanted.remove(plain_look)
    views = [look for look in wanted if isinstance(look, View)]
    draws = _draws(wanted, augment, len(indices), seed)
    batches_of_all = evaluation_order(len(indices), batch_size)
    order = [batches_of_all[number] for number in learner.processes.share(len(batches_of_all))]

    is_resident = isinstance(store, ResidentStore)
    # Only the plain view, which every epoch reads; others are read once in a run.
    preprocess = learner.preprocess
    shape = (batch_size, plain_look, preprocess.size, preprocess.interpolation)
    is_kept = learner.device.type == "cpu" and most_kept > 0
    kept = kept_squares(squares_key(store, indices, *shape) if is_kept else None, most_kept)

    def read(number: int) -> tuple[dict[Look, Pixels], dict[int, str]]:
        rows = order[number]
        missing = [view for view in views if not kept.has(view, rows[0])]
        if not missing and not draws:
            return {}, {}
        # Images on the GPU were readable when they were decoded, and reading them again is cheap.
        images = store if is_resident else LoadedImages(store, indices[rows])
        fixed = zip(missing, view_squares(images, indices[rows], missing), strict=True)
        random = (
            (look, source_pixels(images, indices[rows], draw.rows(rows), augment))
            for look, draw in draws.items()
        )
        return dict([*fixed, *random]), images.broken if isinstance(images, LoadedImages) else {}

    learner.model.eval()
    all_plain, *combined = (
        torch.zeros(len(indices), learner.num_outputs, device=learner.device)
        for _ in range(1 + len(variants))
    )
    known = None if plain is None else torch.from_numpy(plain).to(learner.device)
    broken: dict[int, str] = {}
    is_stopped = False
    # Other processes cannot read pixels on a GPU.
    batches = read_ahead(read, len(order), 0 if is_resident else num_workers)
    with torch.inference_mode(), closing(batches):
        for done, (rows, (by_look, unread)) in enumerate(zip(order, batches, strict=True)):
            place = slice(rows[0], rows[-1] + 1)  # an index array would synchronize with a GPU
            seen: dict[Look, Tensor] = {} if known is None else {plain_look: known[place]}
            for look in wanted:
                if look in by_look:
                    drawn = None if isinstance(look, View) else draws[look].rows(rows)
                    images = _look_images(learner, by_look[look], look, drawn, augment)
                else:
                    assert isinstance(look, View)
                    images = kept.images(look, rows[0])
                if look == plain_look and look in by_look and _is_resized(by_look[look], images):
                    kept.keep(plain_look, rows[0], images)
                seen[look] = _predict(learner, images)
            all_plain[place] = seen[plain_look]
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
    # Each row comes from one process and is zero in the others, so the sums are exact.
    found, *all_combined = (
        learner.processes.sum(part).cpu().numpy() for part in (all_plain, *combined)
    )
    return Probabilities(found, all_combined, broken)


def images_of_looks(
    learner: Learner,
    dataset: Dataset,
    config: RunConfig,
    rows: NDArray[np.int64],
    wanted: Sequence[Look],
) -> dict[Look, Tensor]:
    """What the network sees of some validation images at each look, without normalization.

    Args:
        learner: the learner that predicts.
        dataset: the data set of the images.
        config: sets the augmentation and the seed of random passes.
        rows: (n,) rows of the images in the validation split.
        wanted: the looks, such as :func:`runner.tricks.tta.looks` returns.

    Returns:
        (n, 3, S, S) float in 0..1 for each look; S depends on the look.
    """
    split, store, augment = dataset.val, dataset.store, config.augment
    indices = split.indices[rows]
    draws = _draws(wanted, augment, len(split), config.seed)
    found: dict[Look, Tensor] = {}
    for look in wanted:
        if isinstance(look, View):
            (pixels,), drawn = view_squares(store, indices, [look]), None
        else:
            drawn = draws[look].rows(rows)
            pixels = source_pixels(store, indices, drawn, augment)
        found[look] = _look_images(learner, pixels, look, drawn, augment)
    return found


def _draws(
    wanted: Sequence[Look], augment: Augment, count: int, seed: int
) -> dict[Look, augmentation.Draws]:
    """The augmentation of ``count`` images in each random pass."""
    return {
        look: augmentation.draw(augment, count, seed, "tta", look)
        for look in wanted
        if isinstance(look, int)
    }


def _look_images(
    learner: Learner,
    pixels: Pixels,
    look: Look,
    drawn: augmentation.Draws | None,
    augment: Augment,
) -> Tensor:
    """Convert the pixels of a look to images (N, 3, S, S) on the device, float in 0..1."""
    if isinstance(look, View):
        return displayed_view(pixels, look, learner)
    assert drawn is not None
    place = pixel_device(learner.device)
    images = augmented(pixels, drawn, learner.preprocess.size, augment, place)
    return on_device(images, learner.device)


def _is_resized(pixels: Pixels, images: Tensor) -> bool:
    return pixels.canvas.shape[-2:] != images.shape[-2:]


def _predict(learner: Learner, images: Tensor) -> Tensor:
    return learner.probabilities(learner.logits(images))


def displayed_view(pixels: Pixels, view: View, learner: Learner) -> Tensor:
    """Scale and mirror the squares as ``view`` requires: (N, 3, S, S) float in 0..1."""
    preprocess = learner.preprocess
    size = max(1, round(preprocess.size * view.scale))

    def show_some(images: Tensor, rows: slice) -> Tensor:
        images = to_size(images.div_(255), size, preprocess.interpolation)
        return images.flip(-1) if view.flip else images

    return on_device(by_parts(show_some, pixels, pixel_device(learner.device)), learner.device)
