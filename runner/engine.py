"""Training and evaluation, from pixels to numbers; a step reads in the order it runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runner.data.batches import (
    Held,
    Indices,
    Pixels,
    evaluation_order,
    read_ahead,
    rectangles,
    squares,
    training_order,
    view_squares,
)
from runner.data.dataset import Dataset
from runner.data.store import Store
from runner.errors import TrainingError
from runner.optim import build_optimizer, freeze_body, set_rates
from runner.randomness import generator, torch_seed
from runner.schedule import Stage
from runner.schema import Augment, Mixup, RunConfig, Tta
from runner.tricks import augment as augmentation
from runner.tricks import mixup as mixing
from runner.tricks.normalize import normalize
from runner.tricks.resize import to_size
from runner.tricks.smoothing import one_hot, smooth
from runner.tricks.tta import PLAIN, View, combine, views


@dataclass(frozen=True)
class Learner:
    """A network with everything that training and evaluating it have in common.

    Attributes:
        model: from normalized images (N, 3, H, W) to logits (N, K).
        groups: its parameters per layer group, from input to output.
        num_outputs: K.
        mean: per channel, of the normalization.
        std: per channel, of the normalization.
        device: where it computes.
        precision: ``fp32`` or ``bf16``.
    """

    model: nn.Module
    groups: Sequence[Sequence[nn.Parameter]]
    num_outputs: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision, where it is on."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float in 0..1 → logits (N, K) float32."""
        inputs = normalize(images, self.mean, self.std)
        with self.autocast():
            outputs: Tensor = self.model(inputs.contiguous(memory_format=torch.channels_last))
        return outputs.float()


@dataclass(frozen=True)
class Batch:
    """What one training step works on; all of it is determined by (seed, epoch, step)."""

    pixels: Pixels
    labels: Tensor
    draws: augmentation.Draws


@dataclass(frozen=True)
class Step:
    """Where training is, after a step.

    Attributes:
        stage: number of the stage, from 0.
        epoch: number of the epoch over all stages, from 0.
        done: steps done over all stages.
        total: steps over all stages.
        size: image size of this step, px.
        num_images: images in this step.
        loss: training loss of this step, a scalar on the device.
        lr: learning rate of the head.
        ends_epoch: whether this step is the last of its epoch.
        seconds: spent on this step.
    """

    stage: int
    epoch: int
    done: int
    total: int
    size: int
    num_images: int
    loss: Tensor
    lr: float
    ends_epoch: bool
    seconds: float


def train_step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    size: int,
    augment: Augment,
    mixup: Mixup,
    epsilon: float,
    rng: np.random.Generator,
) -> Tensor:
    """One update; returns the training loss, a scalar on the device.

    Raises:
        TrainingError: the loss or a gradient is not finite; the weights are as before.
    """
    images = augmented(batch.pixels, batch.draws, size, augment, learner.device)
    labels = batch.labels.to(learner.device, non_blocking=True)
    targets = one_hot(labels, learner.num_outputs)
    if mixup.probability > 0:
        mix = mixing.draw(rng, mixup, len(labels), size, size).to(learner.device)
        images = mixing.mix_images(images, mix)
        targets = mixing.mix_targets(targets, mix)
    targets = smooth(targets, epsilon)
    loss = F.cross_entropy(learner.logits(images), targets)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    gradients = [p.grad for group in learner.groups for p in group if p.grad is not None]
    if not torch.isfinite(loss.detach() + torch.nn.utils.get_total_norm(gradients)):
        raise TrainingError(f"the loss or a gradient is not finite (loss {float(loss.detach()):g})")
    optimizer.step()
    return loss.detach()


def augmented(
    pixels: Pixels,
    draws: augmentation.Draws,
    size: int,
    augment: Augment,
    device: torch.device,
) -> Tensor:
    """Raw pixels as augmented images (N, 3, size, size) float in 0..1 on ``device``."""
    images = to_device(pixels, device)
    if augmentation.changes_geometry(augment):
        one_crop = augment.crop_per == "batch"
        maps = augmentation.homographies(draws, pixels.extents, one_crop=one_crop)
        images = augmentation.resample(
            images, _tensor(maps, device), _tensor(pixels.extents, device), size
        )
    else:
        images = to_size(images, size)
    if augment.max_lighting > 0:
        brightness, contrast = _tensor(draws.brightness, device), _tensor(draws.contrast, device)
        images = augmentation.light(images, brightness, contrast)
    return images


def fit(
    learner: Learner,
    dataset: Dataset,
    stages: Sequence[Stage],
    config: RunConfig,
) -> Iterator[Step]:
    """Train; after every step its :class:`Step` comes out, and the caller may evaluate or stop.

    Raises:
        TrainingError: training diverged; the message says where.
    """
    total = sum(stage.num_steps for stage in stages)
    done, epoch = 0, 0
    for number, stage in enumerate(stages):
        freeze_body(learner.model, learner.groups, frozen=stage.frozen)
        optimizer = build_optimizer(learner.groups, config.optim, stage.lr_factors)
        in_stage = 0
        for _ in range(stage.num_epochs):
            left = min(stage.steps_per_epoch, stage.num_steps - in_stage)
            batches = training_batches(dataset, stage.batch_size, left, config, epoch)
            for step_of_epoch in range(left):
                started = time.perf_counter()
                learner.model.train()  # the caller may have evaluated since the last step
                # Layers such as dropout draw from torch's global generator.
                torch.manual_seed(torch_seed(config.seed, "layers", epoch, step_of_epoch))
                batch = next(batches)
                progress = in_stage / stage.num_steps
                lr, size = stage.lr(progress), stage.size(progress)
                set_rates(optimizer, lr, stage.momentum(progress))
                mixup = config.mixup if done / total < config.mixup.until else Mixup()
                rng = generator(config.seed, "mixup", epoch, step_of_epoch)
                try:
                    loss = train_step(
                        learner, optimizer, batch, size, config.augment, mixup,
                        config.smoothing.epsilon, rng,
                    )  # fmt: skip
                except TrainingError as error:
                    raise TrainingError(
                        error.what,
                        where=f"epoch {epoch + 1}, step {step_of_epoch + 1}, lr {lr:.3g}",
                        fix=f"a lower rate: optim.lr={config.optim.lr / 10:g}",
                    ) from error
                in_stage, done = in_stage + 1, done + 1
                yield Step(
                    number, epoch, done, total, size, stage.batch_size, loss, lr,
                    step_of_epoch == left - 1, time.perf_counter() - started,
                )  # fmt: skip
            epoch += 1


def training_batches(
    dataset: Dataset, batch_size: int, count: int, config: RunConfig, epoch: int
) -> Iterator[Batch]:
    """The first ``count`` batches of an epoch."""
    split, augment = dataset.train, config.augment
    order = training_order(len(split), batch_size, config.seed, epoch)
    draws = augmentation.draw(augment, len(split), config.seed, "augment", epoch)

    def read(number: int) -> Batch:
        rows = order[number]
        pixels = source_pixels(dataset.store, split.indices[rows], draws.rows(rows), augment)
        return Batch(pixels, torch.from_numpy(split.labels[rows]), draws.rows(rows))

    return read_ahead(read, count, dataset.num_workers(config.data.num_workers))


def source_pixels(
    store: Store, indices: Indices, draws: augmentation.Draws, augment: Augment
) -> Pixels:
    """The pixels that a batch is augmented from: random squares, or whole rectangles."""
    if augment.crop_from == "rectangle":
        return rectangles(store, indices)
    return squares(store, indices, draws.place)


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
) -> Predictions:
    """Predict the validation split, plain and with TTA, in one pass over the data.

    Deterministic: only ``tta.passes`` draw anything, keyed by (seed, pass, place in the split).

    Raises:
        TrainingError: a prediction is not finite; the last update took the weights too far.
    """
    started = time.perf_counter()
    tta, split = config.tta, dataset.val
    # What is drawn for an image must not depend on which others share its batch.
    augment = replace(config.augment, crop_per="image")
    random_passes = tta.passes if with_tta else 0
    wanted = views(tta) if with_tta and not random_passes else []
    # The plain view is always computed, and reused where it is one of the wanted ones.
    shown = [PLAIN, *(view for view in wanted if view != PLAIN)]
    draws = [
        augmentation.draw(augment, len(split), config.seed, "tta", number)
        for number in range(random_passes)
    ]
    order = evaluation_order(len(split), config.eval.batch_size)

    def read(number: int) -> tuple[list[Pixels], list[Pixels]]:
        rows = order[number]
        indices = split.indices[rows]
        held = Held(dataset.store, indices)
        random = [source_pixels(held, indices, draw.rows(rows), augment) for draw in draws]
        return view_squares(held, indices, shown), random

    learner.model.eval()
    plain, combined = [], []
    with torch.inference_mode():
        batches = read_ahead(read, len(order), dataset.num_workers(config.data.num_workers))
        for rows, (fixed, random) in zip(order, batches, strict=True):
            by_view = {
                view: _predict(learner, _show(pixels, view, config.eval_size, learner.device))
                for view, pixels in zip(shown, fixed, strict=True)
            }
            if random_passes:
                others = [
                    _predict(
                        learner,
                        augmented(
                            pixels,
                            draw.rows(rows),
                            config.eval_size,
                            augment,
                            learner.device,
                        ),
                    )
                    for pixels, draw in zip(random, draws, strict=True)
                ]
            else:
                others = [by_view[view] for view in wanted] or [by_view[PLAIN]]
            plain.append(by_view[PLAIN])
            combined.append(
                combine(by_view[PLAIN], torch.stack(others), tta) if with_tta else by_view[PLAIN]
            )
            progress(len(plain), len(order))
    all_plain, all_combined = torch.cat(plain).cpu().numpy(), torch.cat(combined).cpu().numpy()
    if not (np.isfinite(all_plain).all() and np.isfinite(all_combined).all()):
        raise TrainingError(
            "a prediction is not finite",
            where=f"evaluation of {len(split)} validation images, optim.lr={config.optim.lr:g}",
            fix=f"a lower rate: optim.lr={config.optim.lr / 10:g}",
        )
    return Predictions(
        split.labels,
        all_plain,
        all_combined,
        1,
        _passes(tta, wanted, random_passes),
        time.perf_counter() - started,
    )


def _passes(tta: Tta, wanted: Sequence[View], random_passes: int) -> int:
    """Forward passes per image that the combined prediction rests on."""
    if random_passes:
        uses_plain = tta.beta is not None or tta.reduce != "mean"
        return random_passes + uses_plain
    return max(len({*wanted, PLAIN} if tta.beta is not None else wanted), 1)


def to_device(pixels: Pixels, device: torch.device) -> Tensor:
    """Raw pixels as floats in 0..1 on ``device``, (N, 3, H, W)."""
    return pixels.canvas.to(device, non_blocking=True).float().div_(255)


def _show(pixels: Pixels, view: View, size: int, device: torch.device) -> Tensor:
    """The squares of a view, scaled and mirrored as it says."""
    images = to_size(to_device(pixels, device), max(1, round(size * view.scale)))
    return images.flip(-1) if view.flip else images


def _predict(learner: Learner, images: Tensor) -> Tensor:
    return torch.softmax(learner.logits(images), dim=1)


def _tensor(array: NDArray[np.float64] | NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, torch.float32, non_blocking=True)
