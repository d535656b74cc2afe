"""One step of training against torch alone, and one whose loss or gradient is not finite."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import (
    STANDARD,
    a_batch,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    small_preprocess,
    weights,
)
from torch import nn

from runner.config.schema import (
    Augment,
    Mixup,
    Optim,
    Smoothing,
)
from runner.errors import TrainingError
from runner.training import loop
from runner.training import step as stepping
from runner.training.loop import Training
from runner.training.optim import build_optimizer, set_rates
from runner.training.schedule import plan
from runner.training.step import Update, train_step
from runner.tricks import augment as augmentation
from runner.tricks import mixup as mixing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIXUP = Mixup(probability=1.0)


def an_optimizer(learner, *, lr=0.01):
    optimizer = build_optimizer(learner.groups, Optim(), [1.0] * len(learner.groups))
    set_rates(optimizer, lr, 0.9)
    return optimizer


def one_step(learner, batch, *, size=12, augment=None, mixup=None, epsilon=0.0, optimizer=None):
    if mixup is not None and mixup.probability:
        mix = mixing.draw(np.random.default_rng(5), mixup, len(batch.labels), size, size)
        batch = replace(batch, mix=mix)
    optimizer = optimizer or an_optimizer(learner)
    batch = replace(batch, moment=replace(batch.moment, size=size))
    config = small_config(augment=augment or Augment(), smoothing=Smoothing(epsilon=epsilon))
    return train_step(learner, optimizer, batch, config).loss


# ── One step ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mixup", [Mixup(), MIXUP, Mixup(probability=0.5, distribution="uniform")])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_loss_equals_torch_alone(mixup, epsilon, normalized):
    model, batch = small_network(), a_batch()
    mean, std = (MEAN, STD) if normalized else ((0.0,) * 3, (1.0,) * 3)
    reference = copy.deepcopy(model).train()
    learner = small_learner(model.train(), preprocess=small_preprocess(mean=mean, std=std))
    loss = one_step(learner, batch, mixup=mixup, epsilon=epsilon)

    inputs = (batch.pixels.canvas / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    if mixup.probability:
        mix = mixing.draw(np.random.default_rng(5), mixup, 6, 12, 12)
        weight, partner = mix.weight, mix.partner
    else:
        weight, partner = torch.ones(6), torch.arange(6)
    scale = weight[:, None, None, None]
    with torch.no_grad():
        log_p = F.log_softmax(reference(scale * inputs + (1 - scale) * inputs[partner]), dim=1)

    def smoothed(labels):
        own = -log_p.gather(1, labels[:, None])[:, 0]
        return (1 - epsilon) * own - epsilon * log_p.mean(dim=1)

    expected = weight * smoothed(batch.labels) + (1 - weight) * smoothed(batch.labels[partner])
    assert float(loss) == pytest.approx(float(expected.mean()), abs=2e-6)
    if mixup.probability:  # negative control: the pixels mixed and the labels not
        assert abs(float(loss) - float(smoothed(batch.labels).mean())) > 1e-4


@pytest.mark.parametrize(
    "trick",
    [
        {"mixup": MIXUP},
        {"mixup": Mixup(probability=1.0, cutmix=1.0)},
        {"epsilon": 0.1},
        {"augment": STANDARD},
        {"mixup": Mixup(probability=1.0, distribution="uniform")},
    ],
)
def test_every_trick_changes_the_loss(trick):
    plain = one_step(small_learner(small_network()), a_batch())
    batch = a_batch()
    if "augment" in trick:
        batch = replace(batch, draws=augmentation.draw(STANDARD, 6, 0, "augment", 0))
    changed = one_step(small_learner(small_network()), batch, **trick)
    assert abs(float(plain) - float(changed)) > 1e-4


def test_neutral_settings_equal_the_plain_step_exactly():
    batch = a_batch()
    by_hand = small_network().train()
    optimizer = an_optimizer(small_learner(by_hand))
    images = batch.pixels.canvas.float().div(255).contiguous(memory_format=torch.channels_last)
    F.cross_entropy(by_hand(images), F.one_hot(batch.labels, 3).float()).backward()
    optimizer.step()

    neutral = [
        {},
        {"mixup": Mixup(probability=1.0, alpha=0.0)},
        {"mixup": Mixup(probability=1.0, cutmix=1.0, cutmix_alpha=0.0)},
        {"augment": replace(STANDARD, min_scale=1, flip=0, max_rotate=0, max_zoom=1, max_warp=0,
                            max_lighting=0)},
    ]  # fmt: skip
    for settings in neutral:
        model = small_network().train()
        one_step(small_learner(model), batch, **settings)
        assert torch.equal(weights(model), weights(by_hand)), settings
    for settings in ({"mixup": MIXUP}, {"epsilon": 1e-3}):
        model = small_network().train()
        one_step(small_learner(model), batch, **settings)
        assert not torch.equal(weights(model), weights(by_hand)), settings


def test_gradients_of_the_step_before_are_forgotten():
    fresh, used = small_network().train(), small_network().train()
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    for model in (fresh, used):
        one_step(small_learner(model), a_batch())
    assert torch.equal(weights(fresh), weights(used))


def test_the_order_of_a_step():
    """Size, light, mixing, normalization; in another order the loss is another."""
    draws = augmentation.draw(STANDARD, 6, 0, "augment", 0)
    batch, model = replace(a_batch(size=20), draws=draws), small_network().train()
    reference = copy.deepcopy(model)
    learner = small_learner(model, preprocess=small_preprocess(mean=MEAN, std=STD))
    loss = float(one_step(learner, batch, size=12, augment=STANDARD, mixup=MIXUP, epsilon=0.1))

    extents = batch.pixels.extents
    maps = torch.from_numpy(augmentation.homographies(draws, extents)).float()
    mix = mixing.draw(np.random.default_rng(5), MIXUP, 6, 12, 12)

    def sized(images):
        return augmentation.resample(images, maps, extents, 12)

    def lit(images):
        numbers = (torch.from_numpy(each).float() for each in (draws.brightness, draws.contrast))
        return augmentation.light(images, *numbers)

    def mixed(images):
        return mixing.mix_images(images, mix)

    def loss_of(*order):
        images = batch.pixels.canvas / 255
        for change in order:
            images = change(images)
        inputs = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        share = mix.share[:, None]
        targets = F.one_hot(batch.labels, 3).float()
        targets = share * targets + (1 - share) * targets[mix.partner]
        with torch.no_grad():
            log_p = F.log_softmax(copy.deepcopy(reference)(inputs), dim=1)
        return float(-((0.9 * targets + 0.1 / 3) * log_p).sum(dim=1).mean())

    assert loss == pytest.approx(loss_of(sized, lit, mixed), abs=1e-5)
    for order in ((lit, sized, mixed), (sized, mixed, lit)):  # negative controls
        assert loss != pytest.approx(loss_of(*order), abs=1e-4)


def test_bf16_computes_logits_near_those_of_fp32():
    images = torch.rand(6, 3, 12, 12)
    full = small_learner(small_network().eval())
    half = replace(full, precision="bf16")
    with torch.inference_mode():
        assert half.logits(images).dtype == torch.float32
        difference = (half.logits(images) - full.logits(images)).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize("crop_from", ["square", "rectangle"])
@pytest.mark.parametrize("size", [4, 12, 17])
@pytest.mark.parametrize(("light", "rounding"), [(0.0, 0.0), (0.2, 1e-7)])
def test_augmenting_a_few_images_at_a_time_changes_nothing(
    monkeypatch, crop_from, size, light, rounding
):
    batch = a_batch(count=7, size=12)
    augment = Augment(crop_from, 0.5, flip=0.5, max_rotate=10.0, max_zoom=1.1, max_warp=0.2,
                      max_lighting=light)  # fmt: skip
    draws = augmentation.draw(augment, 7, 0, "augment", 0)

    def augmented(floats):
        monkeypatch.setattr(stepping, "_CACHED_FLOATS", floats)
        return stepping.augmented(batch.pixels, draws, size, augment, torch.device("cpu"))

    whole = augmented(10**9)
    assert whole.shape == (7, 3, size, size)
    for floats in (1, 2 * 3 * 12 * 12, 5 * 3 * 12 * 12):
        # Logarithms round otherwise at the end of a tensor, where vectors are not full.
        assert (augmented(floats) - whole).abs().max() <= rounding
    draws = replace(draws, flip=~draws.flip)  # negative control
    assert (augmented(10**9) - whole).abs().max() > 1e-3


# ── Divergence ─────────────────────────────────────────────────────────────────────────────────


class Diverging(nn.Module):
    """Its logits, or only its gradients, become infinite when told."""

    def __init__(self):
        super().__init__()
        self.body = small_network()
        self.shift = nn.Parameter(torch.zeros(3))
        self.how = ""
        self.calls = 0
        self.at_call = None

    def forward(self, images):
        self.calls += 1
        how = self.how if self.at_call in (None, self.calls) else ""
        logits = self.body(images)
        if how == "loss":
            return logits * float("inf")
        if how == "gradient":  # √0 is 0, and its slope is infinite
            return logits + torch.sqrt(self.shift)
        return logits + 0 * self.shift


def diverging_learner():
    model = Diverging()
    learner = small_learner(model.body)
    return model, replace(learner, model=model, groups=[list(model.parameters())])


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_non_finite_step_changes_no_weight(how):
    model, learner = diverging_learner()
    optimizer = an_optimizer(learner)
    one_step(learner, a_batch(), optimizer=optimizer)
    before = copy.deepcopy([p.detach() for p in model.parameters()])
    state = copy.deepcopy(optimizer.state_dict()["state"])

    model.how = how
    if how == "gradient":
        probe = F.cross_entropy(learner.logits(torch.rand(6, 3, 12, 12)), torch.arange(6) % 3)
        assert torch.isfinite(probe)
    with pytest.raises(TrainingError, match="not finite") as caught:
        one_step(learner, a_batch(), optimizer=optimizer)
    assert caught.value.exit_code == 5

    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    after = optimizer.state_dict()["state"]
    assert after.keys() == state.keys()
    for key, values in state.items():
        assert all(torch.equal(after[key][name], old) for name, old in values.items())

    model.how = ""  # negative control: a finite step does change them
    one_step(learner, a_batch(), optimizer=optimizer)
    assert not all(
        torch.equal(parameter, old)
        for parameter, old in zip(model.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_the_message_says_where_training_diverged(how):
    config, dataset = small_config(optim=Optim(lr=1e-2, schedule="constant")), small_dataset()
    model, learner = diverging_learner()
    model.how, model.at_call = how, 7  # four steps an epoch
    done = []
    steps = Training(learner, dataset, plan(config, len(dataset.train)), config)
    with pytest.raises(TrainingError) as caught:
        done.extend(step.done for step in steps)
    assert done == [1, 2, 3, 4, 5, 6]
    assert caught.value.exit_code == 5
    assert caught.value.where.startswith("epoch 2, step 3, lr 0.01, images ")
    assert caught.value.fix == "a lower rate: optim.lr=0.001"


@pytest.mark.parametrize(("bad", "known_after"), [(2, 3), (4, 4)], ids=["mid-epoch", "epoch end"])
def test_a_step_that_only_the_device_knows_to_be_bad_is_told_soon(monkeypatch, bad, known_after):
    """On a GPU a step does not raise: its loss is NaN, and is looked at a step later."""
    config, dataset = small_config(optim=Optim(lr=1e-2, schedule="constant")), small_dataset()
    made = []

    def on_a_gpu(*arguments):
        made.append(len(made) + 1)
        update = train_step(*arguments)
        return Update(torch.full_like(update.loss, torch.nan)) if made[-1] == bad else update

    monkeypatch.setattr(loop, "train_step", on_a_gpu)
    training = Training(small_learner(small_network()), dataset, plan(config, 33), config)
    with pytest.raises(TrainingError) as caught:
        for _ in training:
            pass
    assert made[-1] == known_after
    assert caught.value.where.startswith(f"epoch 1, step {bad}, lr 0.01, images ")


def test_nothing_is_saved_after_a_step_that_was_not_finite(monkeypatch):
    config, dataset = small_config(), small_dataset()
    training = Training(small_learner(small_network()), dataset, plan(config, 33), config)
    steps = iter(training)
    next(steps)
    training.tensors()  # negative control: of a good step there is something to save
    monkeypatch.setattr(loop, "train_step", lambda *_: Update(torch.tensor(torch.nan)))
    next(steps)
    with pytest.raises(TrainingError, match="not finite"):
        training.tensors()
    steps.close()
