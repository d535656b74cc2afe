"""A training step, from pixels to updated weights; the code is in the order in which it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runner.config.schema import Augment, RunConfig
from runner.data.batches import (
    Indices,
    Pixels,
    rectangles,
    squares,
)
from runner.data.preprocess import Preprocess
from runner.data.store import Store
from runner.errors import DivergedError
from runner.machine.hardware import on_device, pixel_device
from runner.machine.processes import ALONE, Processes
from runner.randomness import torch_seed
from runner.training.optim import (
    skip_unless,
)
from runner.training.schedule import Moment
from runner.tricks import augment as augmentation
from runner.tricks import auto_augment, erasing
from runner.tricks import loss as losses
from runner.tricks import mixup as mixing
from runner.tricks.accumulate import micro_batches
from runner.tricks.clip import clip_gradients
from runner.tricks.idea import NO_IDEA, Idea
from runner.tricks.normalize import normalize
from runner.tricks.resize import to_size
from runner.tricks.sam import climbed
from runner.tricks.smoothing import one_hot, smooth

BLACK = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Learner:
    """A network with everything that training and evaluation have in common.

    Attributes:
        model: the network, from normalized images (N, 3, H, W) to logits (N, K).
        groups: parameters of ``model`` per layer group, from input to output.
        num_outputs: K, the number of logits.
        preprocess: how images become inputs of ``model``.
        device: the device that computes.
        precision: ``fp32`` or ``bf16``.
        processes: the processes that share the work.
        idea: the user's own functions.
        class_weights: (K,) float32 on ``device``, the weight of an image of each class in the
            training loss; None if all count alike.
        mean: mean red, green and blue of the training images, in 0..1, which can fill erased boxes.
        loss: the training loss; it decides what the logits mean.
    """

    model: nn.Module
    groups: Sequence[Sequence[nn.Parameter]]
    num_outputs: int
    preprocess: Preprocess
    device: torch.device
    precision: str
    processes: Processes = ALONE
    idea: Idea = NO_IDEA
    class_weights: Tensor | None = None
    mean: tuple[float, ...] = BLACK
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context of mixed precision if ``precision`` is ``bf16``, otherwise of none."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )

    def logits(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W), float in 0..1, to logits (N, K) float32."""
        inputs = normalize(images, self.preprocess.mean, self.preprocess.std)
        if self.device.type == "mps":
            # BatchNorm's gradients are wrong there in channels-last memory: pytorch/pytorch#175189.
            inputs = inputs.contiguous()
        with self.autocast():
            outputs: Tensor = self.model(inputs)
        return self.idea.logits(images, outputs, self.num_outputs).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits (N, K) float32 to probabilities (N, K), whose rows sum to 1."""
        return self.idea.predictions(logits, partial(losses.probabilities, kind=self.loss))


@dataclass(frozen=True)
class Batch:
    """The input of one training step; (seed, epoch, step) determine all of it.

    Attributes:
        moment: the place of the step in the plan; it sets the size of the images.
        pixels: pixels of M images: the N images of this process, then images that are needed only
            as partners.
        labels: (M,) int64.
        draws: augmentation of the M images.
        chosen: the operations of TrivialAugment or RandAugment on the M images.
        boxes: (M, 4), the erased box of each of the M images; may be empty.
        mix: the mix of the first N images; None if nothing is mixed, and then M = N.
        num_images: number of images in the step, over all processes.
    """

    moment: Moment
    pixels: Pixels
    labels: Tensor
    draws: augmentation.Draws
    chosen: auto_augment.Chosen
    boxes: NDArray[np.int64]
    mix: mixing.Mix | None
    num_images: int


@dataclass(frozen=True)
class Update:
    """The measures of one training step; scalars on the device, which may still compute them.

    Attributes:
        loss: training loss of the whole step, with the weights before the update.
        clipped: whether the gradient was clipped, a bool; None without clipping.
    """

    loss: Tensor
    clipped: Tensor | None = None


def train_step(
    learner: Learner, optimizer: torch.optim.Optimizer, batch: Batch, config: RunConfig
) -> Update:
    """Make one update and return its measures.

    Each trick acts on one line, in the order of the lines. If the loss or a gradient is not finite,
    the weights stay unchanged. The function does not synchronize with a GPU: on a GPU, the returned
    loss is NaN in that case, and :func:`require_finite` raises later.

    Raises:
        DivergedError: the loss or a gradient is not finite, on a CPU.
        CodeError: a function of the user's returns a wrong value.
    """
    images = training_images(learner, batch, config)
    images, targets = training_inputs(learner, images, batch, config)
    gradients = partial(
        compute_gradients, learner, optimizer, images, targets, batch.num_images, config
    )
    if config.sam.acts_at(batch.moment.before):
        draws = generator_states(learner.device)
        loss = gradients()
        with climbed(learner.model, parameters_of(learner), config.sam.rho):
            restore_generators(learner.device, draws)  # the layers draw the same in both passes
            gradients()
    else:
        loss = gradients()
    clipped = None
    if config.clip.norm is not None:
        clipped = clip_gradients(parameters_of(learner), config.clip.norm)
    if "optimizer" in learner.idea.functions:
        seed_update(learner, config.seed, batch.moment, "optimizer")
    return Update(updated(learner, optimizer, loss), clipped)


def training_images(learner: Learner, batch: Batch, config: RunConfig) -> Tensor:
    """Apply the tricks that treat each image by itself, in the order of the lines.

    Returns:
        (M, 3, S, S) float in 0..1 on the learner's device, without normalization.

    Raises:
        CodeError: the user's function ``images`` returns a wrong value.
    """
    now = batch.moment
    place = pixel_device(learner.device)
    images = augmented(batch.pixels, batch.draws, now.size, config.augment, place)
    images = on_device(auto_augment.apply(images, batch.chosen), learner.device)
    images = erasing.erase(images, batch.boxes, partial(erase_fill, learner, config, now))
    keyed = partial(code_generator, learner, config.seed, now)
    return learner.idea.images(images, keyed, now.progress)


def training_inputs(
    learner: Learner, images: Tensor, batch: Batch, config: RunConfig
) -> tuple[Tensor, Tensor]:
    """Apply the tricks on pairs of images and on targets, in the order of the lines.

    Args:
        learner: the learner that trains.
        images: (M, 3, S, S), from :func:`training_images`.
        batch: the batch of these images.
        config: configuration of the run.

    Returns:
        Images (N, 3, S, S) in 0..1, without normalization, and targets (N, K).

    Raises:
        CodeError: the user's function ``targets`` returns a wrong value.
    """
    now = batch.moment
    targets = one_hot(on_device(batch.labels, learner.device), learner.num_outputs)
    if batch.mix is not None:
        mix = batch.mix.to(learner.device)
        images, targets = mixing.mix_images(images, mix), mixing.mix_targets(targets, mix)
    targets = smooth(targets, config.smoothing.epsilon)
    keyed = partial(code_generator, learner, config.seed, now)
    return images, learner.idea.targets(targets, keyed, now.progress)


def compute_gradients(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    num_images: int,
    config: RunConfig,
) -> Tensor:
    """Compute the gradients of the mean loss over the whole batch, in micro-batches.

    The loss of a micro-batch is a mean over its own images, so it is weighted by its part of the
    batch.

    Args:
        learner: the learner, whose parameters get the gradients, equal in all processes.
        optimizer: the optimizer, which forgets the gradients of the previous step.
        images: (N, 3, S, S), the images of this process, in 0..1.
        targets: (N, K).
        num_images: number of images in the batch, over all processes.
        config: sets the number of micro-batches.

    Returns:
        The loss of the whole batch, over all processes, without a gradient.
    """
    processes, weights = learner.processes, learner.class_weights
    whole = step_weight(learner, targets, num_images)
    ours = partial(losses.mean_loss, kind=learner.loss, weights=weights)
    optimizer.zero_grad(set_to_none=True)
    found = []
    parts = micro_batches(num_images, config.accumulate.steps, processes)
    for rows in parts:
        with _gradients_shared(learner.model, is_last=rows is parts[-1]):
            # Processes average their gradients, so each loss is weighted by its part of the images.
            part = losses.total_weight(targets[rows], weights) / whole
            loss = learner.idea.loss(learner.logits(images[rows]), targets[rows], ours)
            loss = loss * (part * processes.count)
            torch.autograd.backward(loss)
        found.append(loss.detach())
    return processes.sum(sum(found[1:], found[0]) / processes.count)


def _gradients_shared(model: nn.Module, *, is_last: bool) -> AbstractContextManager[object]:
    """Let processes average their gradients once, in the backward pass of the last micro-batch."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def parameters_of(learner: Learner) -> list[nn.Parameter]:
    """Return all parameters of the learner's network."""
    return [parameter for group in learner.groups for parameter in group]


def step_weight(learner: Learner, targets: Tensor, num_images: int) -> Tensor | int:
    """Return the total weight of the images of a step, over all processes.

    Args:
        learner: has the weights of the classes, and the processes.
        targets: (N, K), all targets of this process.
        num_images: number of images in the step, over all processes.
    """
    mine = losses.total_weight(targets, learner.class_weights)
    return num_images if isinstance(mine, int) else learner.processes.sum(mine)


def erase_fill(learner: Learner, config: RunConfig, now: Moment) -> Tensor:
    """Return the fill of the erased boxes of a step, equal in all processes."""
    seed = torch_seed(config.seed, "erasing noise", now.epoch, now.step)
    return erasing.fill_of(config.erasing, learner.mean, now.size, seed, learner.device)


def after_step(learner: Learner, model: nn.Module, seed: int, now: Moment) -> None:
    """Let the user's function ``after_step`` change ``model`` in place, if there is one.

    Raises:
        CodeError: the function returns something.
    """
    if "after_step" in learner.idea.functions:
        seed_update(learner, seed, now, "after_step")
        learner.idea.after_step(model, now.progress)


def seed_update(learner: Learner, seed: int, now: Moment, name: str) -> None:
    """Seed the global generators equally in all processes, whose weights must stay equal."""
    seed_global_generators(learner.device, torch_seed(seed, f"code {name}", now.epoch, now.step))


def seed_global_generators(device: torch.device, seed: int) -> None:
    """Seed the generators that layers draw from: the CPU's and that of ``device``."""
    # torch.manual_seed would look for those of all kinds of devices.
    for generator in _global_generators(device):
        generator.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that layers draw from, for :func:`restore_generators`."""
    states = [generator.get_state() for generator in _global_generators(device)]
    return [*states, torch.mps.get_rng_state()] if device.type == "mps" else states


def restore_generators(device: torch.device, states: Sequence[Tensor]) -> None:
    """Let the generators that layers draw from continue from earlier states."""
    if device.type == "mps":
        *states, of_gpu = states
        torch.mps.set_rng_state(of_gpu)
    for generator, state in zip(_global_generators(device), states, strict=True):
        generator.set_state(state)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore the generators that layers draw from after the block.

    ``torch.random.fork_rng`` would look for those of every GPU, and initialize CUDA.
    """
    states = generator_states(device)
    try:
        yield
    finally:
        restore_generators(device, states)


def _global_generators(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def code_generator(learner: Learner, seed: int, now: Moment, name: str) -> torch.Generator:
    """Return the generator of the user's function ``name`` in one step, on the learner's device."""
    rank = learner.processes.rank
    place = (now.epoch, now.step, rank) if rank else (now.epoch, now.step)
    return torch.Generator(learner.device).manual_seed(torch_seed(seed, f"code {name}", *place))


def updated(learner: Learner, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Update the weights if ``loss`` and all gradients are finite.

    Returns:
        ``loss``; on a GPU, NaN if the weights stayed unchanged.

    Raises:
        DivergedError: the loss or a gradient is not finite, on a CPU or an Apple GPU.
    """
    gradients = [p.grad for p in parameters_of(learner) if p.grad is not None]
    witness = loss + torch.stack(_sizes(gradients)).sum()
    if witness.device.type in ("cpu", "mps"):  # optimizers on an Apple GPU cannot skip a step
        require_finite(witness)
    else:
        is_finite = torch.isfinite(witness)
        skip_unless(optimizer, is_finite)
        # torch.where would copy the NaN to the GPU, and synchronize.
        loss = loss.masked_fill(~is_finite, torch.nan)
    optimizer.step()
    return loss


def _sizes(gradients: list[Tensor]) -> list[Tensor]:
    """Return a number per gradient that is finite only if the gradient is; cheap on the device."""
    if gradients[0].device.type == "cpu":
        return [gradient.sum() for gradient in gradients]
    # A few kernels for all gradients. Absolute values, because squares could overflow.
    return list(torch._foreach_norm(gradients, 1))


def require_finite(loss: Tensor) -> None:
    """Raise if ``loss`` is not finite. Synchronizes with a GPU.

    Raises:
        DivergedError: the loss or a gradient is not finite.
    """
    if not torch.isfinite(loss):
        raise DivergedError("the loss or a gradient is not finite")


def augmented(
    pixels: Pixels,
    draws: augmentation.Draws,
    size: int,
    augment: Augment,
    device: torch.device,
) -> Tensor:
    """Augment raw pixels to images (N, 3, size, size), float in 0..1, on ``device``."""
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
    """Read the pixels that augmentation starts from: random squares, or whole rectangles."""
    if augment.crop_from == "rectangle":
        return rectangles(store, indices)
    return squares(store, indices, draws.place)


_CACHED_FLOATS = 2**19  # size of a part in floats; measured on two cores at 64 and 128 px


def by_parts(
    work: Callable[[Tensor, slice], Tensor], pixels: Pixels, device: torch.device
) -> Tensor:
    """Apply ``work``, which treats each image by itself, to pixels as floats in 0..255.

    ``work`` runs on ``device``. On a CPU it gets a few images at a time, with their rows: its
    results then stay in the cache, whereas each operation on a whole batch would go through memory.
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
