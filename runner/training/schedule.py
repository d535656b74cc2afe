"""The plan of a training run: stages, each with its steps, batch size, image size and rates.

This module converts durations to steps, once. Every value is a pure function of the progress
0..1 through its stage, and does not depend on earlier steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from runner.config.schema import Optim, Resize, RunConfig
from runner.errors import DataError
from runner.tricks.resize import first_size, relative_pixels, size_at

_FROZEN_WARMUP = 0.99  # as in fastai's fine_tune, where the rate only rises with a frozen body
_FINE_TUNE_WARMUP = 0.3
_FINE_TUNE_DIV = 5.0
_FROZEN_BODY_FACTOR = 0.1  # rate of the BatchNorms in a frozen body, relative to the head's

OfProgress = Callable[[float], float]


@dataclass(frozen=True)
class Stage:
    """A part of training with one optimizer and one cycle of its rates.

    Attributes:
        name: name of the stage, shown to the user.
        num_steps: number of optimizer steps; the last epoch may be a partial one.
        steps_per_epoch: number of batches in a pass over the training split.
        batch_size: images per step.
        size: function from progress to image size, px.
        lr: function from progress to the learning rate of the head.
        momentum: function from progress to momentum, or β1.
        frozen: whether only the last layer group and the BatchNorms are trained.
        lr_factors: learning rate of each layer group, relative to the head's.
    """

    name: str
    num_steps: int
    steps_per_epoch: int
    batch_size: int
    size: Callable[[float], int]
    lr: OfProgress
    momentum: OfProgress
    frozen: bool
    lr_factors: tuple[float, ...]

    @property
    def num_epochs(self) -> int:
        """Number of epochs that the stage begins; the last may be a partial one."""
        return math.ceil(self.num_steps / self.steps_per_epoch)


@dataclass(frozen=True)
class Moment:
    """The plan of one step of a training run.

    Attributes:
        stage: number of the stage, from 0.
        epoch: number of the epoch over all stages, from 0.
        step: number of the step in its epoch, from 0.
        starts_stage: whether this is the first step of its stage.
        ends_epoch: whether this is the last step of its epoch.
        before: number of steps before this step, over all stages.
        progress: progress through all stages, in 0..1.
        size: image size, px.
        lr: learning rate of the head.
        momentum: momentum, or β1.
    """

    stage: int
    epoch: int
    step: int
    starts_stage: bool
    ends_epoch: bool
    before: int
    progress: float
    size: int
    lr: float
    momentum: float


def moment(stages: Sequence[Stage], before: int) -> Moment:
    """Return the plan of the step that follows ``before`` steps.

    Raises:
        IndexError: the plan has no such step.
    """
    total = sum(stage.num_steps for stage in stages)
    in_stage, epochs = before, 0
    for number, stage in enumerate(stages):
        if in_stage < stage.num_steps:
            epoch, step = divmod(in_stage, stage.steps_per_epoch)
            last = min(stage.steps_per_epoch, stage.num_steps - epoch * stage.steps_per_epoch) - 1
            progress = in_stage / stage.num_steps
            return Moment(
                stage=number,
                epoch=epochs + epoch,
                step=step,
                starts_stage=in_stage == 0,
                ends_epoch=step == last,
                before=before,
                progress=before / total,
                size=stage.size(progress),
                lr=stage.lr(progress),
                momentum=stage.momentum(progress),
            )
        in_stage, epochs = in_stage - stage.num_steps, epochs + stage.num_epochs
    raise IndexError(f"step {before} of {total}")


def cosine(start: float, end: float, position: float) -> float:
    """Return the value of half a cosine from ``start`` to ``end`` at ``position`` in 0..1."""
    return start + (1 + math.cos(math.pi * (1 - position))) * (end - start) / 2


def one_cycle(progress: float, peak: float, warmup: float, div: float, div_final: float) -> float:
    """Return the rate of the one-cycle policy (Smith 2018, arXiv:1803.09820; fastai's constants).

    A cosine from ``peak / div`` to ``peak`` over the first part ``warmup`` of the progress, then a
    cosine to ``peak / div_final``.
    """
    if progress < warmup:
        return cosine(peak / div, peak, progress / warmup)
    return cosine(peak, peak / div_final, (progress - warmup) / (1 - warmup))


def one_cycle_momentum(progress: float, high: float, low: float, warmup: float) -> float:
    """Return the momentum, opposite to the rate: ``high`` to ``low`` over ``warmup``, and back."""
    if progress < warmup:
        return cosine(high, low, progress / warmup)
    return cosine(low, high, (progress - warmup) / (1 - warmup))


def flat_cosine(progress: float, peak: float, decay_from: float, div_final: float) -> float:
    """Return ``peak`` until ``decay_from``, then a cosine to ``peak / div_final``."""
    if progress < decay_from:
        return peak
    return cosine(peak, peak / div_final, (progress - decay_from) / (1 - decay_from))


def constant(progress: float, value: float) -> float:
    """Return ``value`` at any progress."""
    return value


def batch_key(config: RunConfig, batch_size: int) -> str:
    """Return the key that sets batches of this size."""
    return "data.batch_size" if config.data.batch_size == batch_size else "resize.first_batch_size"


def plan(config: RunConfig, num_train: int) -> tuple[Stage, ...]:
    """Plan the stages of a run on ``num_train`` images.

    Raises:
        DataError: there are fewer images than one batch.
    """
    optim, size = config.optim, config.size
    at_full_size = partial(constant_size, size=size)
    if config.resize.schedule == "book":
        first = config.resize
        small = first_size(size, first)
        whole = _stage(
            f"{small} px",
            epochs=first.first_epochs,
            num_train=num_train,
            batch_size=first.first_batch_size,
            size=partial(constant_size, size=small),
            batch_key="resize.first_batch_size",
        )
        return (
            _one_cycle(whole, optim, peak=first.first_lr, warmup=optim.warmup, div=optim.div),
            *_fine_tune(config, num_train, at_full_size),
        )
    if optim.schedule == "fine_tune":
        return _fine_tune(config, num_train, at_full_size)

    whole = _stage(
        "training",
        epochs=config.budget.epochs,
        num_train=num_train,
        batch_size=config.data.batch_size,
        size=at_full_size,
    )
    if optim.frozen:
        whole = _frozen(whole, optim)
    if config.resize.schedule == "progressive":
        num_steps = whole.num_steps
        if config.resize.match == "compute":
            num_steps = _steps_of_equal_cost(num_steps, size, config.resize)
        ramp = partial(size_at, size=size, resize=config.resize)
        whole = replace(whole, num_steps=num_steps, size=ramp)
    if optim.schedule == "one_cycle":
        return (_one_cycle(whole, optim, peak=optim.lr, warmup=optim.warmup, div=optim.div),)
    momentum = partial(constant, value=optim.momentum)
    if optim.schedule == "flat_cosine":
        rate = partial(
            flat_cosine, peak=optim.lr, decay_from=optim.decay_from, div_final=optim.div_final
        )
    else:
        rate = partial(constant, value=optim.lr)
    return (replace(whole, lr=rate, momentum=momentum, lr_factors=_factors(whole, optim)),)


def constant_size(progress: float, size: int) -> int:
    """Return ``size`` at any progress."""
    return size


def _steps_of_equal_cost(num_steps: int, size: int, resize: Resize) -> int:
    """Return how many resized steps process the pixels of ``num_steps`` at full size."""
    found = num_steps
    # The cost per step depends slightly on the number of steps, so the division is repeated with
    # its own result; after a few rounds the number is accurate to half a step.
    for _ in range(20):
        before, found = found, max(1, round(num_steps / relative_pixels(found, size, resize)))
        if found == before:
            break
    return found


def _fine_tune(
    config: RunConfig, num_train: int, size: Callable[[float], int]
) -> tuple[Stage, ...]:
    """Return fastai's stages: frozen, then at half the rate, spread over the layer groups."""
    optim = config.optim
    stage_of = partial(_stage, num_train=num_train, batch_size=config.data.batch_size, size=size)
    frozen: tuple[Stage, ...] = ()
    if optim.freeze_epochs:
        stage = _frozen(stage_of("frozen body", epochs=optim.freeze_epochs), optim)
        frozen = (_one_cycle(stage, optim, peak=optim.lr, warmup=_FROZEN_WARMUP, div=optim.div),)
    stage = stage_of("fine-tuning", epochs=config.budget.epochs)
    tuned = _one_cycle(
        stage, optim, peak=optim.lr / 2, warmup=_FINE_TUNE_WARMUP, div=_FINE_TUNE_DIV
    )
    return (*frozen, tuned)


def _one_cycle(stage: Stage, optim: Optim, *, peak: float, warmup: float, div: float) -> Stage:
    return replace(
        stage,
        lr=partial(one_cycle, peak=peak, warmup=warmup, div=div, div_final=optim.div_final),
        momentum=partial(
            one_cycle_momentum, high=optim.momentum, low=optim.momentum_low, warmup=warmup
        ),
        lr_factors=_factors(stage, optim),
    )


def _frozen(stage: Stage, optim: Optim) -> Stage:
    factors = (*[_FROZEN_BODY_FACTOR] * (optim.layer_groups - 1), 1.0)
    return replace(stage, frozen=True, lr_factors=factors)


def _factors(stage: Stage, optim: Optim) -> tuple[float, ...]:
    return stage.lr_factors if stage.frozen else _spread(optim)


def _spread(optim: Optim) -> tuple[float, ...]:
    """Return factors in equal ratios from 1/lr_spread to 1; a single group has the full rate."""
    groups = optim.layer_groups
    if groups == 1:
        return (1.0,)
    return tuple(optim.lr_spread ** (group / (groups - 1) - 1) for group in range(groups))


def _stage(
    name: str,
    *,
    epochs: int,
    num_train: int,
    batch_size: int,
    size: Callable[[float], int],
    batch_key: str = "data.batch_size",
) -> Stage:
    steps_per_epoch = num_train // batch_size
    if steps_per_epoch == 0:
        raise DataError(
            f"{num_train} training images do not fill one batch of {batch_size}",
            where=f"{batch_key}={batch_size}",
            fix=f"{batch_key}={max(1, num_train // 4)}",
        )
    rate = partial(constant, value=0.0)
    return Stage(
        name=name,
        num_steps=epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        size=size,
        lr=rate,
        momentum=rate,
        frozen=False,
        lr_factors=(1.0,),
    )
