"""The steps of a training: which they are, and what each is given."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from small import (
    INCEPTION,
    STANDARD,
    generators_asked_for,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    trained,
    weights,
)
from torch import nn

from runner.config.schema import (
    Accumulate,
    Augment,
    Budget,
    Data,
    Mixup,
    Model,
    Normalize,
    Optim,
    Resize,
    Smoothing,
    Tta,
)
from runner.data.batches import training_order
from runner.errors import ConfigError, TrainingError
from runner.models import build_model
from runner.training import loop
from runner.training.loop import Training, shortened
from runner.training.predicting import evaluate
from runner.training.schedule import moment, plan
from runner.training.step import train_step
from runner.tricks import mixup as mixing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIXUP = Mixup(probability=1.0)


def steps_of(config, *, layer_groups=1):
    steps = []
    trained(config, layer_groups=layer_groups, each=steps.append)
    return steps


def test_steps_of_a_progressive_run_with_a_partial_last_epoch():
    config = small_config(
        resize=Resize(schedule="progressive", size=16, match="compute"), budget=Budget(epochs=2)
    )
    (stage,) = plan(config, 33)
    steps = steps_of(config)
    total = len(steps)
    assert total == stage.num_steps > 8
    assert total % 4  # the last epoch is a part of one
    assert [step.done for step in steps] == list(range(1, total + 1))
    assert [step.moment.epoch for step in steps] == [index // 4 for index in range(total)]
    ends = [step.done for step in steps if step.moment.ends_epoch]
    assert ends == [*range(4, total, 4), total]
    assert [step.moment.size for step in steps] == [stage.size(i / total) for i in range(total)]
    assert (steps[0].moment.size, steps[-1].moment.size) == (8, 16)
    assert [step.moment.lr for step in steps] == [stage.lr(i / total) for i in range(total)]
    assert {step.num_images for step in steps} == {8}
    assert all(torch.isfinite(step.loss) and not step.loss.requires_grad for step in steps)
    assert all(step.seconds > 0 for step in steps)


def test_steps_of_the_book():
    resize = Resize(
        schedule="book", size=16, first_size=8, first_epochs=2, first_batch_size=16, first_lr=1e-2
    )
    steps = steps_of(small_config(resize=resize, budget=Budget(epochs=1)), layer_groups=1)
    planned = [step.moment for step in steps]
    assert [(now.stage, now.epoch, now.size) for now in planned] == (
        [(0, 0, 8)] * 2 + [(0, 1, 8)] * 2 + [(1, 2, 16)] * 4 + [(2, 3, 16)] * 4
    )
    assert [step.num_images for step in steps] == [16] * 4 + [8] * 8
    assert [step.done for step in steps if step.moment.ends_epoch] == [2, 4, 8, 12]


def test_the_frozen_stage_trains_the_head_and_the_next_one_all():
    optim = Optim(lr=1e-2, schedule="fine_tune", layer_groups=3)
    config, seen = small_config(optim=optim, budget=Budget(epochs=1)), {}
    dataset, model = small_dataset(), small_network()
    learner = small_learner(model, layer_groups=3)
    start = copy.deepcopy(model.state_dict())
    for step in Training(learner, dataset, plan(config, len(dataset.train)), config):
        if step.moment.ends_epoch:
            seen[step.moment.stage] = copy.deepcopy(model.state_dict())
    for name in ("0.0.weight", "1.0.weight"):
        assert torch.equal(seen[0][name], start[name])
        assert not torch.equal(seen[1][name], start[name])
    for name in ("0.1.weight", "1.1.bias", "2.2.weight"):
        assert not torch.equal(seen[0][name], start[name])


def test_every_stage_has_a_fresh_optimizer():
    config = small_config(optim=Optim(lr=1e-2, schedule="fine_tune"), budget=Budget(epochs=1))
    dataset, updates = small_dataset(), {}
    training = Training(
        small_learner(small_network()), dataset, plan(config, len(dataset.train)), config
    )
    for step in training:
        state = training.tensors()["optimizer"]
        counts = {int(value) for name, value in state.items() if name.endswith(".step")}
        updates.setdefault(step.moment.stage, []).append(counts)
    assert updates == {stage: [{1}, {2}, {3}, {4}] for stage in (0, 1)}


def test_equal_seeds_give_equal_bits_and_others_do_not():
    config = small_config(augment=STANDARD, mixup=MIXUP)
    first = weights(trained(config))
    assert torch.equal(first, weights(trained(config)))
    assert not torch.equal(first, weights(trained(replace(config, seed=1))))


@pytest.mark.parametrize("augment", [STANDARD, INCEPTION])
def test_workers_do_not_change_a_bit(augment):
    runs = []
    for workers in (0, 2):
        data = Data(batch_size=8, default_size=16, num_workers=workers)
        config = small_config(data=data, augment=augment, mixup=MIXUP, tta=Tta(passes=2))
        model = trained(config)
        found = evaluate(small_learner(model), small_dataset(), config, with_tta=True)
        runs.append((weights(model), torch.from_numpy(found.tta)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_workers_do_not_move_the_generator_of_dropout():
    runs = []
    for workers in (0, 2):
        data = Data(batch_size=8, default_size=16, num_workers=workers)
        config, dataset = small_config(data=data), small_dataset()
        model = small_network()
        model[2].insert(2, nn.Dropout(0.5))
        torch.manual_seed(3)
        for _ in Training(small_learner(model), dataset, plan(config, len(dataset.train)), config):
            pass
        runs.append(weights(model))
    assert torch.equal(*runs)


def test_the_state_of_global_generators_does_not_matter():
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  the global one is what must not matter
        runs.append(weights(trained(small_config(augment=STANDARD, mixup=MIXUP))))
    assert torch.equal(*runs)


def recorded_batches(monkeypatch, config):
    """What every training step is given: pixels, labels and draws, as bytes."""
    seen, original = [], train_step

    def recorded(learner, optimizer, batch, *rest):
        draws = [getattr(batch.draws, item.name) for item in fields(batch.draws)]
        parts = [batch.pixels.canvas.numpy(), batch.pixels.extents, batch.labels.numpy(), *draws]
        seen.append(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
        return original(learner, optimizer, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", recorded)
        trained(config)
    return seen


@pytest.mark.parametrize("augment", [Augment(), STANDARD, INCEPTION])
def test_tricks_leave_order_and_crops_alone(monkeypatch, augment):
    baseline = small_config(augment=augment)
    expected = recorded_batches(monkeypatch, baseline)
    assert len(set(expected)) == 8  # every step sees something else
    for trick in (
        {"mixup": MIXUP},
        {"mixup": Mixup(probability=0.5, cutmix=0.5)},
        {"smoothing": Smoothing(0.1)},
        {"tta": Tta(passes=2)},
        {"normalize": Normalize(mean=MEAN, std=STD)},
        {"resize": Resize(schedule="progressive", size=16)},
    ):
        assert recorded_batches(monkeypatch, replace(baseline, **trick)) == expected, trick
    for other in ({"seed": 1}, {"data": Data(batch_size=7, default_size=16)}):
        assert recorded_batches(monkeypatch, replace(baseline, **other)) != expected, other


def test_every_epoch_has_its_own_order_and_draws():
    config, dataset = small_config(augment=STANDARD), small_dataset()
    moments = [moment(plan(config, len(dataset.train)), step) for step in range(8)]
    first, again, second = (
        list(loop.training_batches(dataset, 8, moments[4 * epoch : 4 * epoch + 4], config))
        for epoch in (0, 0, 1)
    )
    for batch, same, other in zip(first, again, second, strict=True):
        assert torch.equal(batch.pixels.canvas, same.pixels.canvas)
        assert np.array_equal(batch.draws.angle, same.draws.angle)
        assert not np.array_equal(batch.draws.angle, other.draws.angle)
    labels = torch.cat([batch.labels for batch in first])
    assert not torch.equal(labels, torch.cat([batch.labels for batch in second]))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_draw_is_made_twice(workers):
    """By no worker, of no image, in no epoch."""
    data = Data(batch_size=8, default_size=16, num_workers=workers)
    config, dataset = small_config(augment=STANDARD, data=data), small_dataset()
    stages = plan(config, len(dataset.train))
    batches = [
        batch
        for start in (0, 4)
        for batch in loop.training_batches(
            dataset, 8, [moment(stages, step) for step in range(start, start + 4)], config
        )
    ]
    angles = np.concatenate([batch.draws.angle for batch in batches])
    angles = angles[angles != 0]  # those of images that are turned
    assert len(angles) > 32
    assert len(np.unique(angles)) == len(angles)


def test_every_step_mixes_anew(monkeypatch):
    drawn, original = [], mixing.draw

    def recorded(*arguments):
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(mixing, "draw", recorded)
    trained(small_config(mixup=MIXUP))
    assert len({tuple(mix.weight.tolist()) for mix in drawn}) == len(drawn) == 8


@pytest.mark.parametrize("until", [0.0, 0.5, 1.0])
def test_mixing_stops_where_it_is_told(until):
    def inputs(mixup):
        dataset, model, seen = small_dataset(), small_network(), []
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        config = small_config(mixup=mixup)
        for _ in Training(small_learner(model), dataset, plan(config, len(dataset.train)), config):
            pass
        return seen

    unmixed = inputs(Mixup())
    mixed = inputs(replace(MIXUP, until=until))
    same = [torch.equal(one, other) for one, other in zip(unmixed, mixed, strict=True)]
    last = round(8 * until)
    assert same == [False] * last + [True] * (8 - last)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ({"data": Data(batch_size=1), "resize": Resize(size=32)}, "data.batch_size"),
        (
            {
                "data": Data(batch_size=1),
                "resize": Resize(schedule="progressive", size=64, initial_scale=0.5),
            },
            "data.batch_size",
        ),
        (
            {"resize": Resize(schedule="book", size=64, first_size=32, first_batch_size=1)},
            "resize.first_batch_size",
        ),
    ],
)
def test_a_batch_of_one_image_that_leaves_one_value_of_a_channel_is_refused(words, key):
    config = small_config(model=Model(name="xresnet18"), **words)
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    learner = replace(
        small_learner(small_network()), model=model, groups=[list(model.parameters())]
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="too small for this network") as caught:
        Training(learner, small_dataset(), plan(config, 12), config)
    assert (caught.value.where, caught.value.fix) == (f"{key}=1", f"{key}=2")
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    larger = replace(config, resize=Resize(size=64))
    Training(learner, small_dataset(), plan(larger, 12), larger)  # two pixels are enough


def test_a_trial_of_one_image_draws_nothing(monkeypatch):
    config = small_config(accumulate=Accumulate(steps=8))
    model = small_network()
    model[2].insert(2, nn.Dropout(0.5))
    learner = small_learner(model)
    asked = generators_asked_for(monkeypatch)
    state = torch.random.get_rng_state()
    Training(learner, small_dataset(), plan(config, 33), config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked == []
    learner.model.train()(torch.zeros(1, 3, 16, 16))  # negative control
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_a_loss_that_is_not_finite_is_told_with_the_last_finite_one_and_its_images(monkeypatch):
    config, dataset = small_config(), small_dataset()
    found = []

    def poisoned(learner, optimizer, batch, config):
        if len(found) == 2:
            with torch.no_grad():
                next(learner.model.parameters()).fill_(torch.nan)
        update = train_step(learner, optimizer, batch, config)
        found.append(float(update.loss))
        return update

    monkeypatch.setattr(loop, "train_step", poisoned)
    training = Training(small_learner(small_network()), dataset, plan(config, 33), config)
    with pytest.raises(TrainingError) as caught:
        list(training)
    assert caught.value.what == (
        "the loss or a gradient is not finite; "
        f"the last finite loss was {found[1]:.4g} in epoch 1, step 2"
    )
    batch = training_order(33, 8, config.seed, 0)[2]
    names = ", ".join(f"{index}.png" for index in batch)
    assert caught.value.where.startswith("epoch 1, step 3, lr ")
    assert caught.value.where.endswith(f", images {names}")


def test_of_a_long_batch_the_first_names_are_told():
    assert shortened(list("ab")) == "a, b"
    assert shortened(["x"] * 18).endswith("x, x and 2 more")
