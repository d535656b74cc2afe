"""Training, from pixels to numbers; a step reads in the order it runs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runner.config.schema import Augment, RunConfig
from runner.data.batches import (
    Indices,
    Pixels,
    rectangles,
    squares,
)
from runner.data.preprocess import Preprocess
from runner.data.store import Store
from runner.errors import TrainingError
from runner.machine.hardware import on_device
from runner.machine.processes import ALONE, Processes
from runner.randomness import torch_seed
from runner.training.optim import (
    skip_unless,
)
from runner.training.schedule import Moment
from runner.tricks import augment as augmentation
from runner.tricks import mixup as mixing
from runner.tricks.idea import NO_IDEA, Idea
from runner.tricks.normalize import normalize
from runner.tricks.resize import to_size
from runner.tricks.smoothing import one_hot, smooth


@dataclass(frozen=True)
class Learner:
    """A network with everything that training and evaluating it have in common.

    Attributes:
        model: from normalized images (N, 3, H, W) to logits (N, K).
        groups: its parameters per layer group, from input to output.
        num_outputs: K.
        preprocess: how images become its inputs.
        device: where it computes.
        precision: ``fp32`` or ``bf16``.
        processes: that share the work.
        idea: the reader's own functions.
    """

    model: nn.Module
    groups: Sequence[Sequence[nn.Parameter]]
    num_outputs: int
    preprocess: Preprocess
    device: torch.device
    precision: str
    processes: Processes = ALONE
    idea: Idea = NO_IDEA

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision, where it is on."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float in 0..1 → logits (N, K) float32."""
        inputs = normalize(images, self.preprocess.mean, self.preprocess.std)
        with self.autocast():
            outputs: Tensor = self.model(inputs)
        return self.idea.logits(images, outputs, self.num_outputs).float()


@dataclass(frozen=True)
class Batch:
    """What one training step works on; all of it is determined by (seed, epoch, step).

    Attributes:
        moment: the place of the step in the plan; it sets the size of the images.
        pixels: of M images: this process's N, then those that are there as their partners only.
        labels: (M,) int64.
        draws: of the M images.
        mix: of the first N; None where nothing is mixed, and then M = N.
        num_images: in the step, over all processes.
    """

    moment: Moment
    pixels: Pixels
    labels: Tensor
    draws: augmentation.Draws
    mix: mixing.Mix | None
    num_images: int


def train_step(
    learner: Learner, optimizer: torch.optim.Optimizer, batch: Batch, config: RunConfig
) -> Tensor:
    """One update; returns the training loss of the whole step, a scalar on the device.

    Each trick acts on one line, in the order of the lines. Where the loss or a gradient is not
    finite, the weights stay as they are. Nothing here waits for a GPU: there the returned loss is
    NaN then, and :func:`require_finite` raises later.

    Raises:
        TrainingError: the loss or a gradient is not finite, on a CPU.
        CodeError: a function of the reader's returns what it must not.
    """
    device, idea, progress = learner.device, learner.idea, batch.moment.progress
    keyed = partial(code_generator, learner, config.seed, batch.moment)
    images = augmented(batch.pixels, batch.draws, batch.moment.size, config.augment, device)
    images = idea.images(images, keyed, progress)
    targets = one_hot(on_device(batch.labels, device), learner.num_outputs)
    if batch.mix is not None:
        mix = batch.mix.to(device)
        images, targets = mixing.mix_images(images, mix), mixing.mix_targets(targets, mix)
    targets = smooth(targets, config.smoothing.epsilon)
    targets = idea.targets(targets, keyed, progress)
    # Processes average their gradients, so each loss counts by its part of the images.
    part = len(images) / batch.num_images
    loss = idea.loss(learner.logits(images), targets) * (part * learner.processes.count)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    whole = learner.processes.sum(loss.detach() / learner.processes.count)
    if "optimizer" in idea.functions:
        seed_update(learner, config.seed, batch.moment, "optimizer")
    return updated(learner, optimizer, whole)


def after_step(learner: Learner, model: nn.Module, seed: int, now: Moment) -> None:
    """Let the reader's function ``after_step`` change ``model`` in place, if there is one.

    Raises:
        CodeError: the function returns something.
    """
    if "after_step" in learner.idea.functions:
        seed_update(learner, seed, now, "after_step")
        learner.idea.after_step(model, now.progress)


def seed_update(learner: Learner, seed: int, now: Moment, name: str) -> None:
    """Let global generators draw the same for all processes, whose weights must stay equal."""
    seed_global_generators(learner.device, torch_seed(seed, f"code {name}", now.epoch, now.step))


def seed_global_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that layers draw from: the CPU's and that of ``device``."""
    # torch.manual_seed would look for those of all kinds of devices.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def code_generator(learner: Learner, seed: int, now: Moment, name: str) -> torch.Generator:
    """The generator of the reader's function ``name`` in one step, on the learner's device."""
    rank = learner.processes.rank
    place = (now.epoch, now.step, rank) if rank else (now.epoch, now.step)
    return torch.Generator(learner.device).manual_seed(torch_seed(seed, f"code {name}", *place))


def updated(learner: Learner, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Update the weights if ``loss`` and all gradients are finite.

    Returns:
        ``loss``; on a GPU NaN where the weights were left as they are.

    Raises:
        TrainingError: the loss or a gradient is not finite, on a CPU.
    """
    gradients = [p.grad for group in learner.groups for p in group if p.grad is not None]
    witness = loss + torch.stack(_sizes(gradients)).sum()
    if witness.device.type == "cpu":
        require_finite(witness)
    else:
        is_finite = torch.isfinite(witness)
        skip_unless(optimizer, is_finite)
        # Not torch.where: it copies the NaN to the GPU, and waits.
        loss = loss.masked_fill(~is_finite, torch.nan)
    optimizer.step()
    return loss


def _sizes(gradients: list[Tensor]) -> list[Tensor]:
    """A number for each gradient, finite only if the gradient is; cheap on its device."""
    if gradients[0].device.type == "cpu":
        return [gradient.sum() for gradient in gradients]
    # A few kernels for all of them. Absolute values, not squares, which could overflow.
    return list(torch._foreach_norm(gradients, 1))


def require_finite(loss: Tensor) -> None:
    """Raise if ``loss`` is not finite. Synchronizes with a GPU.

    Raises:
        TrainingError: the loss or a gradient is not finite.
    """
    if not torch.isfinite(loss):
        raise TrainingError("the loss or a gradient is not finite")


def augmented(
    pixels: Pixels,
    draws: augmentation.Draws,
    size: int,
    augment: Augment,
    device: torch.device,
) -> Tensor:
    """Raw pixels as augmented images (N, 3, size, size) float in 0..1 on ``device``."""
    maps = _tensor(augmentation.homographies(draws, pixels.extents), device)
    brightness, contrast = _tensor(draws.brightness, device), _tensor(draws.contrast, device)

    def augment_some(images: Tensor, rows: slice) -> Tensor:
        if augment.changes_geometry:
            extents = pixels.extents[rows]
            images = augmentation.resample(images, maps[rows], extents, size).div_(255)
        else:
            images = to_size(images.div_(255), size)
        if augment.max_lighting > 0:
            images = augmentation.light(images, brightness[rows], contrast[rows])
        return images

    return by_parts(augment_some, pixels, device)


def source_pixels(
    store: Store, indices: Indices, draws: augmentation.Draws, augment: Augment
) -> Pixels:
    """The pixels that a batch is augmented from: random squares, or whole rectangles."""
    if augment.crop_from == "rectangle":
        return rectangles(store, indices)
    return squares(store, indices, draws.place)


_CACHED_FLOATS = 2**19  # of the canvas; measured on two cores at 64 and 128 px


def by_parts(
    work: Callable[[Tensor, slice], Tensor], pixels: Pixels, device: torch.device
) -> Tensor:
    """``work`` of raw pixels as floats in 0..255 on ``device``; it treats each image by itself.

    On a CPU it gets a few images at a time, with their rows: what it makes of them stays in the
    cache then, where a whole batch would go through memory at each of its operations.
    """
    canvas = pixels.canvas
    count, floats = len(canvas), canvas[0].numel()
    if device.type != "cpu":
        return work(on_device(canvas, device).float(), slice(0, count))
    num_parts = -(-count * floats // _CACHED_FLOATS)
    most = -(-count // num_parts)
    whole: Tensor | None = None
    for start in range(0, count, most):
        rows = slice(start, min(start + most, count))
        part = work(canvas[rows].float(), rows)
        if whole is None:
            whole = part.new_empty(count, *part.shape[1:])
        whole[rows] = part
    assert whole is not None
    return whole


def _tensor(array: NDArray[np.float64] | NDArray[np.int64], device: torch.device) -> Tensor:
    return on_device(torch.from_numpy(array).to(torch.float32), device)
