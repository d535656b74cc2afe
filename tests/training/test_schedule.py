"""Rates against closed forms and fastai, and the plan: how long, how large, how fast."""

import math
from dataclasses import replace

import numpy as np
import pytest

from runner.config.schema import Budget, Data, Optim, Resize, RunConfig
from runner.errors import DataError
from runner.training.schedule import (
    Moment,
    constant,
    flat_cosine,
    moment,
    one_cycle,
    one_cycle_momentum,
    plan,
)


def half_cosine(start, end, position):
    """Written the other way round: a raised cosine that weighs the two ends."""
    weight = math.cos(math.pi * position / 2) ** 2
    return weight * start + (1 - weight) * end


def config(**groups):
    values = {"data": Data(batch_size=64), "optim": Optim(lr=1e-3), "resize": Resize(size=224)}
    return RunConfig(**{**values, **groups})


def book(**changes):
    return config(resize=Resize(schedule="book", size=224), **changes)


# ── Rates ──────────────────────────────────────────────────────────────────────────────────────


def test_one_cycle_passes_through_its_three_points():
    cycle = {"peak": 3e-3, "warmup": 0.25, "div": 25, "div_final": 1e5}
    assert one_cycle(0, **cycle) == pytest.approx(3e-3 / 25, rel=1e-12)
    assert one_cycle(0.25, **cycle) == pytest.approx(3e-3, rel=1e-12)
    assert one_cycle(1, **cycle) == pytest.approx(3e-8, rel=1e-9)


@pytest.mark.parametrize("step", [0, 1, 24, 25, 26, 62, 99])
def test_one_cycle_between_its_points_is_half_a_cosine(step):
    progress, cycle = step / 100, {"peak": 3e-3, "warmup": 0.25, "div": 25, "div_final": 1e5}
    if progress < 0.25:
        expected = half_cosine(3e-3 / 25, 3e-3, progress / 0.25)
    else:
        expected = half_cosine(3e-3, 3e-8, (progress - 0.25) / 0.75)
    assert one_cycle(progress, **cycle) == pytest.approx(expected, abs=1e-15)
    # Negative control: a straight line meets the cosine at the ends and the middle only.
    if step in (1, 62):
        straight = np.interp(progress, [0, 0.25, 1], [3e-3 / 25, 3e-3, 3e-8])
        assert abs(straight - expected) > 1e-6


def test_momentum_moves_in_opposition():
    points = {0: 0.95, 0.25: 0.85, 1: 0.95, 0.125: 0.9, 0.625: 0.9}
    for progress, expected in points.items():
        assert one_cycle_momentum(progress, 0.95, 0.85, 0.25) == pytest.approx(expected, abs=1e-12)
    for progress in np.linspace(0, 1, 21):
        # The weight of the far end is the same for both rates.
        rate = one_cycle(progress, peak=1.0, warmup=0.25, div=1e9, div_final=1e9)
        momentum = one_cycle_momentum(progress, 0.95, 0.85, 0.25)
        assert (0.95 - momentum) / 0.1 == pytest.approx(rate, abs=1e-8)


def test_a_cycle_without_warmup_starts_at_its_peak():
    assert one_cycle(0, peak=1.0, warmup=0.0, div=25, div_final=1e5) == 1.0
    assert one_cycle_momentum(0, 0.95, 0.85, 0.0) == 0.85


def test_flat_cosine():
    curve = {"peak": 2.0, "decay_from": 0.75, "div_final": 1e5}
    assert [flat_cosine(progress, **curve) for progress in (0, 0.3, 0.75)] == [2, 2, 2]
    assert flat_cosine(0.875, **curve) == pytest.approx((2 + 2e-5) / 2, rel=1e-12)
    assert flat_cosine(0.9, **curve) == pytest.approx(half_cosine(2, 2e-5, 0.6), rel=1e-12)
    assert flat_cosine(1, **curve) == pytest.approx(2e-5, rel=1e-9)


def test_constant():
    assert {constant(progress, 0.3) for progress in (0, 0.5, 1)} == {0.3}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("warmup", "div"), [(0.25, 25.0), (0.3, 5.0), (0.99, 25.0), (0.5, 1.0)])
def test_cycles_equal_fastai(warmup, div):
    fastai = pytest.importorskip("fastai.callback.schedule")
    rate = fastai.combined_cos(warmup, 1 / div, 1.0, 1e-5)
    momentum = fastai.combined_cos(warmup, 0.95, 0.85, 0.95)
    other = fastai.combined_cos(warmup * 0.9, 1 / div, 1.0, 1e-5)
    differences = []
    for progress in np.linspace(0, 1, 101).tolist():
        ours = one_cycle(progress, 1.0, warmup, div, 1e5)
        assert ours == pytest.approx(float(rate(progress)), abs=1e-5)
        assert one_cycle_momentum(progress, 0.95, 0.85, warmup) == pytest.approx(
            float(momentum(progress)), abs=1e-6
        )
        differences.append(abs(ours - float(other(progress))))
    assert max(differences) > 1e-2


# ── The plan ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("num_train", "steps"), [(64, 1), (65, 1), (127, 1), (128, 2), (1000, 15)])
def test_the_rest_that_fills_no_batch_is_dropped(num_train, steps):
    (stage,) = plan(config(budget=Budget(epochs=3)), num_train)
    assert (stage.steps_per_epoch, stage.num_steps, stage.num_epochs) == (steps, 3 * steps, 3)
    assert (stage.batch_size, stage.frozen, stage.lr_factors) == (64, False, (1.0,))
    assert stage.size(0) == stage.size(1) == 224


def test_the_default_plan_is_one_cycle():
    optim = Optim(lr=3e-3)
    (stage,) = plan(config(optim=optim), 640)
    assert [stage.lr(p) for p in (0, 0.25, 1)] == pytest.approx([1.2e-4, 3e-3, 3e-8], rel=1e-9)
    assert [stage.momentum(p) for p in (0, 0.25, 1)] == pytest.approx([0.95, 0.85, 0.95])


@pytest.mark.parametrize("schedule", ["flat_cosine", "constant"])
def test_the_other_schedules_keep_their_momentum(schedule):
    optim = Optim(lr=1e-3, schedule=schedule, momentum=0.9, decay_from=0.5)
    (stage,) = plan(config(optim=optim), 640)
    assert {stage.momentum(p) for p in (0, 0.5, 1)} == {0.9}
    assert stage.lr(0) == stage.lr(0.5) == 1e-3
    assert stage.lr(1) == pytest.approx(1e-8 if schedule == "flat_cosine" else 1e-3)


def test_the_book_is_three_stages():
    small, frozen, whole = plan(book(budget=Budget(epochs=5)), 1000)

    assert (small.batch_size, small.steps_per_epoch, small.num_steps) == (128, 7, 28)
    assert (small.size(0), small.size(1), small.frozen) == (128, 128, False)
    assert [small.lr(p) for p in (0, 0.25, 1)] == pytest.approx([3e-3 / 25, 3e-3, 3e-8])

    assert (frozen.batch_size, frozen.steps_per_epoch, frozen.num_steps) == (64, 15, 15)
    assert (frozen.size(0), frozen.frozen) == (224, True)
    assert [frozen.lr(p) for p in (0, 0.99, 1)] == pytest.approx([1e-3 / 25, 1e-3, 1e-8])
    assert frozen.lr(0.98) < frozen.lr(0.99)

    assert (whole.batch_size, whole.num_epochs, whole.num_steps) == (64, 5, 75)
    assert (whole.size(0), whole.size(1), whole.frozen) == (224, 224, False)
    assert [whole.lr(p) for p in (0, 0.3, 1)] == pytest.approx([5e-4 / 5, 5e-4, 5e-9])
    assert [whole.momentum(p) for p in (0, 0.3, 1)] == pytest.approx([0.95, 0.85, 0.95])


def test_fine_tune_is_the_book_without_its_first_stage():
    tuned = plan(config(optim=Optim(lr=1e-3, schedule="fine_tune")), 1000)
    for ours, books in zip(tuned, plan(book(), 1000)[1:], strict=True):
        assert (ours.num_steps, ours.frozen, ours.size(0.5)) == (
            books.num_steps, books.frozen, books.size(0.5),
        )  # fmt: skip
        progress = np.linspace(0, 1, 11)
        assert [ours.lr(p) for p in progress] == [books.lr(p) for p in progress]


def test_no_frozen_epochs_no_frozen_stage():
    optim = Optim(lr=1e-3, schedule="fine_tune", freeze_epochs=0)
    assert [stage.frozen for stage in plan(config(optim=optim), 1000)] == [False]
    two = replace(optim, freeze_epochs=2)
    assert plan(config(optim=two), 1000)[0].num_steps == 30


@pytest.mark.parametrize(
    ("groups", "spread", "whole", "frozen"),
    [
        (1, 100.0, (1.0,), (1.0,)),
        (3, 100.0, (0.01, 0.1, 1.0), (0.1, 0.1, 1.0)),
        (3, 1.0, (1.0, 1.0, 1.0), (0.1, 0.1, 1.0)),
    ],
)
def test_rates_of_the_layer_groups(groups, spread, whole, frozen):
    optim = Optim(layer_groups=groups, lr_spread=spread, schedule="fine_tune")
    first, second = plan(config(optim=optim), 1000)
    assert first.lr_factors == pytest.approx(frozen)
    assert second.lr_factors == pytest.approx(whole)
    for schedule in ("one_cycle", "flat_cosine", "constant"):
        (stage,) = plan(config(optim=replace(optim, schedule=schedule)), 1000)
        assert stage.lr_factors == pytest.approx(whole)


# ── Progressive resizing ───────────────────────────────────────────────────────────────────────


def progressive(match, *, size=224, epochs=5, **shape):
    resize = Resize(schedule="progressive", size=size, match=match, **shape)
    return config(resize=resize, budget=Budget(epochs=epochs))


def pixels(stage):
    """Images × pixels of a stage, in steps at full size."""
    sizes = [stage.size(step / stage.num_steps) for step in range(stage.num_steps)]
    return sum(size**2 for size in sizes) / stage.size(1) ** 2


def test_matching_epochs_keeps_the_steps_and_saves_pixels():
    (stage,) = plan(progressive("epochs"), 1000)
    assert stage.num_steps == 75
    sizes = [stage.size(step / 75) for step in range(75)]
    assert (sizes[0], sizes[-1]) == (112, 224)
    assert sizes == sorted(sizes)
    assert not any(size % 4 for size in sizes)
    assert len(set(sizes)) > 3
    assert pixels(stage) < 75 - 1  # negative control of the next test


@pytest.mark.parametrize("size", [8, 28, 128, 224])
@pytest.mark.parametrize("initial_scale", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("delay", "finish"), [(0.5, 0.2), (0.0, 0.0), (0.9, 0.1), (0.3, 0.0)])
def test_matching_compute_keeps_the_pixels(size, initial_scale, delay, finish):
    shape = {"initial_scale": initial_scale, "delay": delay, "finish": finish}
    for epochs in (1, 3, 20):
        for num_train in (64, 330):
            wanted = epochs * (num_train // 64)
            (stage,) = plan(progressive("compute", size=size, epochs=epochs, **shape), num_train)
            assert abs(pixels(stage) - wanted) <= 1
            assert stage.num_steps >= wanted


def test_the_last_epoch_may_be_a_part_of_one():
    (stage,) = plan(progressive("compute"), 1000)
    assert stage.steps_per_epoch == 15
    assert stage.num_steps % 15 != 0
    assert stage.num_epochs == stage.num_steps // 15 + 1


# ── Any step of the plan ───────────────────────────────────────────────────────────────────────

PLANS = {
    "one stage": (config(budget=Budget(epochs=3)), 330),
    "one step": (config(budget=Budget(epochs=1)), 64),
    "an epoch of one step": (config(budget=Budget(epochs=3)), 100),
    "progressive, part of an epoch": (progressive("compute"), 1000),
    "fine_tune": (config(optim=Optim(lr=1e-3, schedule="fine_tune", freeze_epochs=2)), 330),
    "book": (book(budget=Budget(epochs=2)), 1000),
}


def moments_in_order(stages):
    """Stages, their epochs, their steps, one inside the other."""
    total, before, epoch = sum(stage.num_steps for stage in stages), 0, 0
    for number, stage in enumerate(stages):
        done = 0
        while done < stage.num_steps:
            in_epoch = min(stage.steps_per_epoch, stage.num_steps - done)
            for step in range(in_epoch):
                progress = done / stage.num_steps
                yield Moment(
                    stage=number,
                    epoch=epoch,
                    step=step,
                    starts_stage=done == 0,
                    ends_epoch=step + 1 == in_epoch,
                    before=before,
                    progress=before / total,
                    size=stage.size(progress),
                    lr=stage.lr(progress),
                    momentum=stage.momentum(progress),
                )
                done, before = done + 1, before + 1
            epoch += 1


@pytest.mark.parametrize(("settings", "num_train"), PLANS.values(), ids=PLANS)
def test_a_moment_is_found_without_those_before_it(settings, num_train):
    stages = plan(settings, num_train)
    total = sum(stage.num_steps for stage in stages)
    expected = list(moments_in_order(stages))
    assert len(expected) == total
    assert [moment(stages, before) for before in range(total)] == expected
    backwards = [moment(stages, before) for before in reversed(range(total))]
    assert backwards == expected[::-1]
    assert sum(found.ends_epoch for found in expected) == sum(s.num_epochs for s in stages)
    assert sum(found.starts_stage for found in expected) == len(stages)


def test_the_plans_have_the_borders_at_which_steps_are_miscounted():
    (partial,) = plan(*PLANS["progressive, part of an epoch"])
    assert partial.num_steps % partial.steps_per_epoch
    stages = plan(*PLANS["book"])
    assert len({(stage.steps_per_epoch, stage.num_epochs) for stage in stages}) == 3
    # Negative control: with all stages counted as one, moments are others.
    whole = replace(stages[2], num_steps=sum(stage.num_steps for stage in stages))
    assert list(moments_in_order([whole])) != list(moments_in_order(stages))


@pytest.mark.parametrize(("settings", "num_train"), PLANS.values(), ids=PLANS)
def test_there_is_no_moment_after_the_last(settings, num_train):
    stages = plan(settings, num_train)
    total = sum(stage.num_steps for stage in stages)
    assert moment(stages, total - 1).ends_epoch
    for before in (total, total + 1, 10 * total):
        with pytest.raises(IndexError, match=f"step {before} of {total}"):
            moment(stages, before)


# ── Too little data ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "key", "batch"),
    [
        (config(), "data.batch_size", 64),
        (config(optim=Optim(schedule="fine_tune")), "data.batch_size", 64),
        (progressive("compute"), "data.batch_size", 64),
        (book(), "resize.first_batch_size", 128),
    ],
)
def test_less_than_one_batch_is_refused(settings, key, batch):
    plan(settings, batch)  # exactly one is enough
    with pytest.raises(DataError) as caught:
        plan(settings, 50)
    assert caught.value.exit_code == 3
    assert "50 training images" in caught.value.what
    assert str(batch) in caught.value.what
    assert caught.value.where == f"{key}={batch}"
    assert caught.value.fix == f"{key}=12"
