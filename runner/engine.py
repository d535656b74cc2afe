"""Training, from pixels to numbers; a step reads in the order it runs."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runner.data.batches import (
    Indices,
    Pixels,
    read_ahead,
    rectangles,
    squares,
    training_order,
)
from runner.data.dataset import Dataset
from runner.data.resident import ResidentStore
from runner.data.store import Store
from runner.distributed import ALONE, Processes
from runner.errors import TrainingError
from runner.hardware import on_device
from runner.optim import (
    build_optimizer,
    freeze_body,
    optimizer_tensors,
    restore_optimizer,
    set_rates,
    skip_unless,
)
from runner.preprocess import Preprocess
from runner.randomness import generator, torch_seed
from runner.schedule import Moment, Stage, moment
from runner.schema import Augment, RunConfig
from runner.tricks import augment as augmentation
from runner.tricks import mixup as mixing
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
    """

    model: nn.Module
    groups: Sequence[Sequence[nn.Parameter]]
    num_outputs: int
    preprocess: Preprocess
    device: torch.device
    precision: str
    processes: Processes = ALONE

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
        return outputs.float()


@dataclass(frozen=True)
class Batch:
    """What one training step works on; all of it is determined by (seed, epoch, step).

    Attributes:
        pixels: of M images: this process's N, then those that are there as their partners only.
        labels: (M,) int64.
        draws: of the M images.
        mix: of the first N; None where nothing is mixed, and then M = N.
        num_images: in the step, over all processes.
    """

    pixels: Pixels
    labels: Tensor
    draws: augmentation.Draws
    mix: mixing.Mix | None
    num_images: int


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
    epsilon: float,
) -> Tensor:
    """One update; returns the training loss of the whole step, a scalar on the device.

    Where the loss or a gradient is not finite, the weights stay as they are. Nothing here waits for
    a GPU, so there the loss that comes back is NaN then, and :func:`require_finite` tells.

    Raises:
        TrainingError: the loss or a gradient is not finite, on a CPU.
    """
    images = augmented(batch.pixels, batch.draws, size, augment, learner.device)
    labels = on_device(batch.labels, learner.device)
    targets = one_hot(labels, learner.num_outputs)
    if batch.mix is not None:
        mix = batch.mix.to(learner.device)
        images = mixing.mix_images(images, mix)
        targets = mixing.mix_targets(targets, mix)
    targets = smooth(targets, epsilon)
    # Processes average their gradients, so each loss counts by its part of the images.
    part = len(images) / batch.num_images
    loss = F.cross_entropy(learner.logits(images), targets) * (part * learner.processes.count)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    whole = learner.processes.sum(loss.detach() / learner.processes.count)
    gradients = [p.grad for group in learner.groups for p in group if p.grad is not None]
    witness = whole + torch.stack(_sizes(gradients)).sum()
    if witness.device.type == "cpu":
        require_finite(witness)
    else:
        is_finite = torch.isfinite(witness)
        skip_unless(optimizer, is_finite)
        # Not torch.where: it copies the NaN to the GPU, and waits.
        whole = whole.masked_fill(~is_finite, torch.nan)
    optimizer.step()
    return whole


def _sizes(gradients: list[Tensor]) -> list[Tensor]:
    """A number for each gradient, finite only if the gradient is; cheap on its device."""
    if gradients[0].device.type == "cpu":
        return [gradient.sum() for gradient in gradients]
    # A few kernels for all of them. Absolute values, not squares, which could overflow.
    return list(torch._foreach_norm(gradients, 1))


def require_finite(loss: Tensor) -> None:
    """Nothing where ``loss`` is finite; waits for a GPU.

    Raises:
        TrainingError: it is not.
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
        if augmentation.changes_geometry(augment):
            extents = pixels.extents[rows]
            images = augmentation.resample(images, maps[rows], extents, size).div_(255)
        else:
            images = to_size(images.div_(255), size)
        if augment.max_lighting > 0:
            images = augmentation.light(images, brightness[rows], contrast[rows])
        return images

    return by_parts(augment_some, pixels, device)


class Training:
    """A training in progress: iterating makes its steps; it can be saved and restored in between.

    Attributes:
        done: steps done.
        total: steps of the whole plan.
    """

    def __init__(
        self, learner: Learner, dataset: Dataset, stages: Sequence[Stage], config: RunConfig
    ) -> None:
        self.done = 0
        self.total = sum(stage.num_steps for stage in stages)
        self._learner = learner
        self._dataset = dataset
        self._stages = stages
        self._config = config
        self._in_stage: tuple[Learner, torch.optim.Optimizer] | None = None
        self._saved: dict[str, Tensor] = {}  # of the optimizer, until its stage begins again
        self._unseen: tuple[Moment, _HostCopy] | None = None  # the last step and its loss

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that the steps to come depend on, besides ``done``.

        Raises:
            TrainingError: the last step was not finite: nobody goes on from there.
        """
        self._look_at_the_last_loss()
        optimizer = optimizer_tensors(self._in_stage[1]) if self._in_stage else self._saved
        return {"model": self._learner.model.state_dict(), "optimizer": optimizer}

    def restore(self, done: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Stand where a training stood whose ``tensors`` these are; call before iterating.

        Raises:
            RuntimeError: they are of another network.
        """
        self._learner.model.load_state_dict(tensors["model"])
        self.done, self._saved = done, dict(tensors["optimizer"])

    def __iter__(self) -> Generator[Step, None, None]:
        """After every step its :class:`Step` comes out, and the caller may evaluate, save or stop.

        Raises:
            TrainingError: training diverged; the message says where.
        """
        while self.done < self.total:
            first = moment(self._stages, self.done)
            if self._in_stage is None or first.starts_stage:
                self._in_stage = self._begin_stage(first)
            learner, optimizer = self._in_stage
            moments = list(self._rest_of_epoch())
            batches = training_batches(
                self._dataset,
                self._stages[first.stage].batch_size,
                moments,
                self._config,
                learner.processes,
            )
            with closing(batches):
                for now in moments:
                    started = time.perf_counter()
                    # The caller may have evaluated the network, within what shares it.
                    if not self._learner.model.training:
                        learner.model.train()
                    loss = self._step(learner, optimizer, now, next(batches))
                    self._look_at_the_last_loss()  # while a GPU is at this step
                    self._unseen = (now, _HostCopy(loss))
                    if now.ends_epoch:
                        self._look_at_the_last_loss()
                    self.done += 1
                    yield Step(
                        now.stage, now.epoch, self.done, self.total, now.size,
                        self._stages[now.stage].batch_size, loss, now.lr, now.ends_epoch,
                        time.perf_counter() - started,
                    )  # fmt: skip

    def _begin_stage(self, now: Moment) -> tuple[Learner, torch.optim.Optimizer]:
        learner, stage = self._learner, self._stages[now.stage]
        freeze_body(learner.model, learner.groups, frozen=stage.frozen)
        optimizer = build_optimizer(learner.groups, self._config.optim, stage.lr_factors)
        if not now.starts_stage:
            restore_optimizer(optimizer, self._saved)
        self._saved = {}
        if learner.processes.count > 1:
            # Buffers are equal anyway, as BatchNorms see the same statistics in every process.
            parallel = DistributedDataParallel(learner.model)
            learner = replace(learner, model=parallel)
        return learner, optimizer

    def _look_at_the_last_loss(self) -> None:
        """Tell of a step that was not finite; it has changed nothing."""
        if self._unseen is not None:
            (now, loss), self._unseen = self._unseen, None
            with self._told(now):
                require_finite(loss.value())

    def _rest_of_epoch(self) -> Iterator[Moment]:
        for before in range(self.done, self.total):
            now = moment(self._stages, before)
            yield now
            if now.ends_epoch:
                return

    def _step(
        self, learner: Learner, optimizer: torch.optim.Optimizer, now: Moment, batch: Batch
    ) -> Tensor:
        config = self._config
        # Layers such as dropout draw from the global generator of their device; torch.manual_seed
        # would look for those of all kinds of devices.
        seed = layer_seed(config.seed, now, learner.processes.rank)
        torch.default_generator.manual_seed(seed)
        if learner.device.type == "cuda":
            index = learner.device.index
            index = torch.cuda.current_device() if index is None else index
            torch.cuda.default_generators[index].manual_seed(seed)
        set_rates(optimizer, now.lr, now.momentum)
        with self._told(now):
            return train_step(
                learner, optimizer, batch, now.size, config.augment, config.smoothing.epsilon
            )

    @contextmanager
    def _told(self, now: Moment) -> Iterator[None]:
        """Errors of the block are those of one step."""
        try:
            yield
        except TrainingError as error:
            raise TrainingError(
                error.what,
                where=f"epoch {now.epoch + 1}, step {now.step + 1}, lr {now.lr:.3g}",
                fix=f"a lower rate: optim.lr={self._config.optim.lr / 10:g}",
            ) from error


class _HostCopy:
    """A scalar on its way from its device to the host, behind the work queued so far.

    Reading the scalar itself would wait for all that is queued by the time it is read.
    """

    def __init__(self, scalar: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._value = scalar.to("cpu", non_blocking=True)
        if scalar.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> Tensor:
        """The scalar on the host, once it is there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value


def layer_seed(seed: int, now: Moment, rank: int) -> int:
    """The seed of the layers' own draws; processes must not drop the same units."""
    others = (rank,) if rank else ()
    return torch_seed(seed, "layers", now.epoch, now.step, *others)


def training_batches(
    dataset: Dataset,
    batch_size: int,
    moments: Sequence[Moment],
    config: RunConfig,
    processes: Processes = ALONE,
) -> Generator[Batch, None, None]:
    """The batches of some steps of one epoch; of each, the part that is this process's."""
    split, augment, epoch = dataset.train, config.augment, moments[0].epoch
    order = training_order(len(split), batch_size, config.seed, epoch)
    draws = augmentation.draw(augment, len(split), config.seed, "augment", epoch)
    mine = processes.share(batch_size)

    def read(number: int) -> Batch:
        now = moments[number]
        rows = order[now.step]
        drawn = draws.rows(rows)
        if augment.crop_per == "batch":
            drawn = drawn.with_one_crop()
        mix, needed = None, mine
        if config.mixup.probability > 0 and now.progress < config.mixup.until:
            rng = generator(config.seed, "mixup", epoch, now.step)
            mix = mixing.draw(rng, config.mixup, batch_size, now.size, now.size)
            if processes.count > 1:
                mix, needed = mix.part(mine)
        rows, drawn = rows[needed], drawn.rows(needed)
        pixels = source_pixels(dataset.store, split.indices[rows], drawn, augment)
        return Batch(pixels, torch.from_numpy(split.labels[rows]), drawn, mix, batch_size)

    # Processes cannot share what is on a GPU, and there is nothing to wait for.
    is_resident = isinstance(dataset.store, ResidentStore)
    num_workers = 0 if is_resident else dataset.num_workers(config.data.num_workers)
    return read_ahead(read, len(moments), num_workers)


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
