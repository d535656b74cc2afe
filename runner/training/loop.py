"""The loop around the step: batches in order, stages, and the state for a checkpoint."""

import copy
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from runner.config.schema import RunConfig
from runner.data.batches import read_ahead
from runner.data.dataset import Dataset
from runner.data.resident import ResidentStore
from runner.errors import ConfigError, DivergedError, TrainingError, first_line
from runner.machine.processes import ALONE, Processes
from runner.randomness import generator, torch_seed
from runner.training.averages import weights_over_time
from runner.training.optim import (
    build_optimizer,
    freeze_body,
    optimizer_tensors,
    require_restorable,
    restore_optimizer,
    set_rates,
)
from runner.training.schedule import Moment, Stage, batch_key, moment
from runner.training.step import (
    Batch,
    Learner,
    Update,
    after_step,
    kept_generators,
    require_finite,
    seed_global_generators,
    source_pixels,
    train_step,
)
from runner.tricks import augment as augmentation
from runner.tricks import auto_augment, erasing
from runner.tricks import mixup as mixing
from runner.tricks.sampling import epoch_order

_SHOWN = 16  # names of a batch in a message


@dataclass(frozen=True)
class Step:
    """A finished training step.

    Attributes:
        moment: the plan of the step.
        num_images: number of images in the step, over all processes.
        loss: training loss of the step, a scalar on the device.
        seconds: time that the step took.
        clipped: whether the gradient was clipped, a bool on the device; None without clipping.
    """

    moment: Moment
    num_images: int
    loss: Tensor
    seconds: float
    clipped: Tensor | None = None

    @property
    def done(self) -> int:
        """Steps made so far, over all stages and including this one."""
        return self.moment.before + 1


class Training:
    """A training in progress: iterating makes the steps; its state can be saved between steps.

    Attributes:
        done: number of steps done.
        total: number of steps of the whole plan.

    Raises:
        ConfigError: a batch of one image is too small for the network.
    """

    def __init__(
        self, learner: Learner, dataset: Dataset, stages: Sequence[Stage], config: RunConfig
    ) -> None:
        _require_statistics(learner, stages, config)
        self.done = 0
        self.total = sum(stage.num_steps for stage in stages)
        self._learner = learner
        self._dataset = dataset
        self._stages = stages
        self._config = config
        self._in_stage: tuple[Learner, torch.optim.Optimizer] | None = None
        self._saved: dict[str, Tensor] = {}  # state of the optimizer, until the stage begins again
        self._unseen: tuple[Moment, _HostCopy] | None = None  # the last step and its loss
        self._last_finite: tuple[Moment, Tensor] | None = None  # and its loss, on the host
        self._average = weights_over_time(config, learner.model, self.total)

    @property
    def evaluated(self) -> Learner:
        """The learner whose network is evaluated and shipped."""
        return replace(self._learner, model=self._average.network(self._learner.model))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors that the remaining steps depend on; ``done`` is the rest of the state.

        Raises:
            DivergedError: the last step was not finite, so no run must resume from it.
        """
        self._look_at_the_last_loss()
        optimizer = optimizer_tensors(self._in_stage[1]) if self._in_stage else self._saved
        tensors = {"model": self._learner.model.state_dict(), "optimizer": optimizer}
        average = self._average.tensors()
        return {**tensors, "average": average} if average else tensors

    def restore(self, done: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from the :meth:`tensors` of another training; call before iterating.

        Args:
            done: number of steps that the other training had made.
            tensors: its tensors by group and name.

        Raises:
            RuntimeError, KeyError: the tensors belong to another network.
        """
        self._learner.model.load_state_dict(tensors["model"])
        self._average.restore(tensors.get("average", {}))
        numbers = {key.partition(".")[0] for key in tensors["optimizer"]}
        parameters = {str(number) for number, _ in enumerate(self._learner.model.parameters())}
        if strange := numbers - parameters:
            raise KeyError(f"the optimizer has state of parameter {min(strange)}")
        self.done, self._saved = done, dict(tensors["optimizer"])

    def __iter__(self) -> Generator[Step, None, None]:
        """Yield each :class:`Step` when it is finished; the caller may evaluate, save or stop.

        Raises:
            DivergedError: training diverged; the message says where.
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
                    # The caller may have evaluated the network, which this learner may wrap.
                    if not self._learner.model.training:
                        learner.model.train()
                    update = self._step(learner, optimizer, now, next(batches))
                    with self._errors_located(now):
                        after_step(learner, self._learner.model, self._config.seed, now)
                    self._average.after_step(self._learner.model, now.before)
                    self._look_at_the_last_loss()  # while a GPU computes this step
                    self._unseen = (now, _HostCopy(update.loss))
                    if now.ends_epoch:
                        self._look_at_the_last_loss()
                    self.done += 1
                    yield Step(
                        moment=now,
                        num_images=self._stages[now.stage].batch_size,
                        loss=update.loss,
                        seconds=time.perf_counter() - started,
                        clipped=update.clipped,
                    )

    def _begin_stage(self, now: Moment) -> tuple[Learner, torch.optim.Optimizer]:
        learner, stage = self._learner, self._stages[now.stage]
        freeze_body(learner.model, learner.groups, frozen=stage.frozen)
        optimizer = build_optimizer(
            learner.groups, self._config.optim, stage.lr_factors, learner.idea
        )
        if not now.starts_stage:
            restore_optimizer(optimizer, self._saved)
        self._saved = {}
        if learner.processes.count > 1:
            # Buffers need no copying: BatchNorms see the same statistics in every process.
            parallel = DistributedDataParallel(learner.model)
            learner = replace(learner, model=parallel)
        return learner, optimizer

    def _look_at_the_last_loss(self) -> None:
        """Raise if the last step was not finite; such a step has changed nothing."""
        if self._unseen is not None:
            (now, loss), self._unseen = self._unseen, None
            with self._errors_located(now):
                require_finite(loss.value())
            self._last_finite = (now, loss.value())

    def _rest_of_epoch(self) -> Iterator[Moment]:
        for before in range(self.done, self.total):
            now = moment(self._stages, before)
            yield now
            if now.ends_epoch:
                return

    def _step(
        self, learner: Learner, optimizer: torch.optim.Optimizer, now: Moment, batch: Batch
    ) -> Update:
        config = self._config
        # Layers such as dropout draw from the global generator of their device.
        seed_global_generators(learner.device, layer_seed(config.seed, now, learner.processes.rank))
        set_rates(optimizer, now.lr, now.momentum)
        with self._errors_located(now), require_restorable(optimizer, now):
            return train_step(learner, optimizer, batch, config)

    @contextmanager
    def _errors_located(self, now: Moment) -> Iterator[None]:
        """Add the place of one step to errors in the block."""
        place = f"epoch {now.epoch + 1}, step {now.step + 1}, lr {now.lr:.3g}"
        try:
            yield
        except TrainingError as error:
            what = error.what
            if isinstance(error, DivergedError):
                what += f"; {self._last_loss()}"
                place += f", images {self._images_of(now)}"
            raise type(error)(
                what,
                where=", ".join(filter(None, (error.where, place))),
                fix=error.fix or f"a lower rate: optim.lr={self._config.optim.lr / 10:g}",
            ) from error
        except Exception as error:
            error.add_note(place)
            raise

    def _last_loss(self) -> str:
        """Return the last finite loss, for the message about a step."""
        # On a CPU, a step is checked again before the next one.
        if self._unseen is not None and torch.isfinite(self._unseen[1].value()):
            self._last_finite = (self._unseen[0], self._unseen[1].value())
        if self._last_finite is None:
            return "this step is the first of this attempt"
        before, loss = self._last_finite
        place = f"epoch {before.epoch + 1}, step {before.step + 1}"
        return f"the last finite loss was {float(loss):.4g} in {place}"

    def _images_of(self, now: Moment) -> str:
        """Return the images of a batch, for the message about a step."""
        labels, config = self._dataset.train.labels, self._config
        batch_size = self._stages[now.stage].batch_size
        order = epoch_order(labels, batch_size, config.sampling, config.seed, now.epoch)
        # The manifest lists the training images first, in the order of the split.
        return shortened([self._dataset.manifest[row][1] for row in order[now.step].images])


def shortened(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _require_statistics(learner: Learner, stages: Sequence[Stage], config: RunConfig) -> None:
    """Raise ConfigError if batches of one image are too small for the network's BatchNorms.

    If the last map is a single pixel, a BatchNorm has one value per channel, which has no
    variance. Evaluation uses the running statistics, so it accepts single images.
    """
    steps = config.accumulate.steps
    for stage in stages:
        if stage.batch_size // steps > 1:
            continue
        size = min(stage.size(0.0), stage.size(1.0))
        key, value, fix = batch_key(config, stage.batch_size), stage.batch_size, 2
        if stage.batch_size > 1:
            key, value, fix = "accumulate.steps", steps, stage.batch_size // 2
        trial = copy.deepcopy(learner.model).train()
        try:
            with kept_generators(learner.device), torch.no_grad(), learner.autocast():
                trial(torch.zeros(1, 3, size, size, device=learner.device))
        except ValueError as error:
            name = "micro-batch" if stage.batch_size > 1 else "batch"
            raise ConfigError(
                f"a {name} of one image of {size} px is too small for this network: "
                f"{first_line(error)}",
                where=f"{key}={value}",
                fix=f"{key}={fix}",
            ) from error


class _HostCopy:
    """A copy of a scalar from its device to the host, queued behind the work so far.

    Reading the scalar itself would wait for all work that is queued at that time.
    """

    def __init__(self, scalar: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        # An Apple GPU does not tell when such a copy is complete.
        self._value = scalar.to("cpu", non_blocking=scalar.device.type != "mps")
        if scalar.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> Tensor:
        """Wait for the copy and return it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value


def layer_seed(seed: int, now: Moment, rank: int) -> int:
    """Return the seed of the layers' own draws, which must differ between processes."""
    others = (rank,) if rank else ()
    return torch_seed(seed, "layers", now.epoch, now.step, *others)


def training_batches(
    dataset: Dataset,
    batch_size: int,
    moments: Sequence[Moment],
    config: RunConfig,
    processes: Processes = ALONE,
) -> Generator[Batch, None, None]:
    """Yield the batches of some steps of one epoch: this process's part of each batch."""
    split, augment, epoch = dataset.train, config.augment, moments[0].epoch
    order = epoch_order(split.labels, batch_size, config.sampling, config.seed, epoch)
    draws = augmentation.draw(augment, len(split), config.seed, "augment", epoch)
    mine = processes.share(batch_size)

    def read(number: int) -> Batch:
        now = moments[number]
        rows, places = order[now.step]
        drawn = draws.rows(places)
        if augment.crop_per == "batch":
            drawn = drawn.with_one_crop()
        key = (config.seed, epoch, now.step)
        chosen = auto_augment.draw(config.auto_augment, batch_size, now.size, *key)
        boxes = erasing.draw(config.erasing, batch_size, now.size, now.size, *key)
        mix, needed = None, mine
        if config.mixup.acts_at(now.progress):
            rng = generator(config.seed, "mixup", epoch, now.step)
            mix = mixing.draw(rng, config.mixup, batch_size, now.size, now.size)
            if processes.count > 1:
                mix, needed = mix.part(mine)
        rows, drawn = rows[needed], drawn.rows(needed)
        pixels = source_pixels(dataset.store, split.indices[rows], drawn, augment)
        return Batch(
            moment=now,
            pixels=pixels,
            labels=torch.from_numpy(split.labels[rows]),
            draws=drawn,
            chosen=chosen.rows(needed),
            boxes=boxes[needed],
            mix=mix,
            num_images=batch_size,
        )

    # Other processes cannot read pixels on a GPU, and reading these takes no time.
    is_resident = isinstance(dataset.store, ResidentStore)
    num_workers = 0
    if not is_resident:
        num_workers = dataset.num_workers(config.data.num_workers, processes.cores_shared_by)
    return read_ahead(read, len(moments), num_workers)
