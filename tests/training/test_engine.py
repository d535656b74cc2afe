"""The training step against torch alone, the loop's promises, and the evaluation."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import (
    noise_images,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    small_preprocess,
)
from torch import nn

from runner.config.options import CONF_DIR
from runner.config.schema import (
    Augment,
    Budget,
    Data,
    Eval,
    Mixup,
    Normalize,
    Optim,
    Resize,
    Smoothing,
    Tta,
)
from runner.data.batches import Pixels
from runner.data.dataset import Split
from runner.errors import TrainingError
from runner.records import checkpoint
from runner.training import loop
from runner.training import step as stepping
from runner.training.loop import Training
from runner.training.optim import build_optimizer, set_rates
from runner.training.predicting import evaluate
from runner.training.schedule import moment, plan
from runner.training.step import Batch, train_step
from runner.tricks import augment as augmentation
from runner.tricks import mixup as mixing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STANDARD = Augment(
    min_scale=0.75, flip=0.5, max_rotate=10, max_zoom=1.1, max_warp=0.2, max_lighting=0.2
)
INCEPTION = Augment(crop_from="rectangle", min_scale=0.08, max_ratio=4 / 3, flip=0.5)
MIXUP = Mixup(probability=1.0)


def a_batch(*, size=12, count=6, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    canvas = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    draws = augmentation.draw(Augment(), count, 0, "augment", 0)
    pixels = Pixels(canvas, np.full((count, 2), size))
    return Batch(pixels, torch.arange(count) % 3, draws, None, count)


def an_optimizer(learner, *, lr=0.01):
    optimizer = build_optimizer(learner.groups, Optim(), [1.0] * len(learner.groups))
    set_rates(optimizer, lr, 0.9)
    return optimizer


def one_step(learner, batch, *, size=12, augment=None, mixup=None, epsilon=0.0, optimizer=None):
    if mixup is not None and mixup.probability:
        mix = mixing.draw(np.random.default_rng(5), mixup, len(batch.labels), size, size)
        batch = replace(batch, mix=mix)
    optimizer = optimizer or an_optimizer(learner)
    return train_step(learner, optimizer, batch, size, augment or Augment(), epsilon)


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


def weights(model):
    """Everything that training changes, as one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def trained(config, *, dataset=None, layer_groups=1, each=lambda step: None, seed=0):
    """A network after the whole of ``config``."""
    dataset = dataset or small_dataset()
    model = small_network(seed=seed)
    learner = small_learner(model, layer_groups=layer_groups)
    for step in Training(learner, dataset, plan(config, len(dataset.train)), config):
        each(step)
    return model


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


def test_the_order_of_a_step(monkeypatch):
    calls = []

    def spy(owner, name):
        original = getattr(owner, name)

        def recorded(images, *arguments, **keywords):
            shape = tuple(images.shape) if isinstance(images, torch.Tensor) else None
            calls.append((name, shape))
            return original(images, *arguments, **keywords)

        monkeypatch.setattr(owner, name, recorded)

    spy(augmentation, "resample")
    spy(augmentation, "light")
    spy(mixing, "mix_images")
    spy(stepping, "normalize")
    spy(stepping, "one_hot")
    spy(mixing, "mix_targets")
    spy(stepping, "smooth")
    batch = replace(a_batch(size=20), draws=augmentation.draw(STANDARD, 6, 0, "augment", 0))
    learner = small_learner(small_network(), preprocess=small_preprocess(mean=MEAN, std=STD))
    one_step(learner, batch, size=12, augment=STANDARD, mixup=MIXUP, epsilon=0.1)

    images = [call for call in calls if call[0] in ("resample", "light", "mix_images", "normalize")]
    assert images == [
        ("resample", (6, 3, 20, 20)),
        ("light", (6, 3, 12, 12)),
        ("mix_images", (6, 3, 12, 12)),
        ("normalize", (6, 3, 12, 12)),
    ]
    labels = [call for call in calls if call[0] in ("one_hot", "mix_targets", "smooth")]
    assert labels == [("one_hot", (6,)), ("mix_targets", (6, 3)), ("smooth", (6, 3))]


def test_bf16_computes_logits_near_those_of_fp32():
    images = torch.rand(6, 3, 12, 12)
    full = small_learner(small_network().eval())
    half = replace(full, precision="bf16")
    with torch.inference_mode():
        assert half.logits(images).dtype == torch.float32
        difference = (half.logits(images) - full.logits(images)).abs().max()
    assert 0 < difference < 0.05


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
    assert caught.value.where == "epoch 2, step 3, lr 0.01"
    assert caught.value.fix == "a lower rate: optim.lr=0.001"


@pytest.mark.parametrize(("bad", "known_after"), [(2, 3), (4, 4)], ids=["mid-epoch", "epoch end"])
def test_a_step_that_only_the_device_knows_to_be_bad_is_told_soon(monkeypatch, bad, known_after):
    """On a GPU a step does not raise: its loss is NaN, and is looked at a step later."""
    config, dataset = small_config(optim=Optim(lr=1e-2, schedule="constant")), small_dataset()
    made = []

    def on_a_gpu(*arguments):
        made.append(len(made) + 1)
        loss = train_step(*arguments)
        return torch.full_like(loss, torch.nan) if made[-1] == bad else loss

    monkeypatch.setattr(loop, "train_step", on_a_gpu)
    training = Training(small_learner(small_network()), dataset, plan(config, 33), config)
    with pytest.raises(TrainingError) as caught:
        for _ in training:
            pass
    assert made[-1] == known_after
    assert caught.value.where == f"epoch 1, step {bad}, lr 0.01"


def test_nothing_is_saved_after_a_step_that_was_not_finite(monkeypatch):
    config, dataset = small_config(), small_dataset()
    training = Training(small_learner(small_network()), dataset, plan(config, 33), config)
    steps = iter(training)
    next(steps)
    training.tensors()  # negative control: of a good step there is something to save
    monkeypatch.setattr(loop, "train_step", lambda *_: torch.tensor(torch.nan))
    next(steps)
    with pytest.raises(TrainingError, match="not finite"):
        training.tensors()
    steps.close()


# ── The loop ───────────────────────────────────────────────────────────────────────────────────


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


def test_every_stage_has_a_fresh_optimizer(monkeypatch):
    made = []

    def recorded(*arguments):
        made.append(build_optimizer(*arguments))
        assert not made[-1].state
        return made[-1]

    monkeypatch.setattr(loop, "build_optimizer", recorded)
    trained(small_config(optim=Optim(lr=1e-2, schedule="fine_tune"), budget=Budget(epochs=1)))
    assert len(made) == 2
    assert [{int(s["step"]) for s in optimizer.state.values()} for optimizer in made] == [{4}, {4}]


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


# ── Stopped, and gone on ───────────────────────────────────────────────────────────────────────

# Every option of the groups that decide how the network is trained …
OPTIONS = [
    f"{'+' if path.parent.name == 'trick' else ''}{path.parent.name}={path.stem}"
    for group in ("trick", "normalize", "augment", "resize", "mixup", "smoothing", "optim")
    for path in sorted((CONF_DIR / group).glob("*.yaml"))
]
# … and what no option sets, or only together.
WORDS = [
    *OPTIONS,
    "resize=progressive resize.match=compute",
    "resize=progressive data.num_workers=2",
    "resize=book augment=inception +trick=[mixup,label_smoothing,normalize]",
    "optim=fine_tune optim.freeze_epochs=2 optim.layer_groups=3",
    "optim=fine_tune optim.name=sgd optim.freeze_epochs=0 augment=standard",
    "optim=sgd optim.nesterov=true mixup=cutmix",
    "optim=adamw optim.layer_groups=3",
    "mixup=switch mixup.until=0.5 mixup.probability=0.7",
    "mixup=beta mixup.per=batch augment=standard augment.crop_per=batch",
    "smoothing.epsilon=0.3 mixup=uniform",
    "model.dropout=0.5",
    "model.dropout=0.5 augment=inception mixup=beta data.num_workers=2",
    "precision=bf16",
    "precision=bf16 optim=sgd +trick=all model.dropout=0.5",
    "seed=7 budget.epochs=3 data.batch_size=11",
]
BASE = (
    "data.batch_size=8", "resize.size=16", "resize.first_size=8", "resize.first_batch_size=16",
    "resize.first_epochs=1", "budget.epochs=2", "optim.lr=0.01", "threads=1", "device=cpu",
    "precision=fp32",
)  # fmt: skip


def test_every_trick_is_among_what_is_stopped():
    tricks = {path.stem for path in (CONF_DIR / "trick").iterdir()}
    assert tricks == {"all", "baseline", "label_smoothing", "mixup", "normalize",
                      "progressive_resizing", "tta"}  # fmt: skip
    assert {f"+trick={name}" for name in tricks} <= set(WORDS)
    assert {"optim=sgd", "augment=inception", "resize=book", "mixup=switch"} <= set(WORDS)


def a_training(config, *, seed=0):
    """A training that has not begun, in weights of ``seed``."""
    dataset, model = small_dataset(), small_network(seed=seed)
    if config.model.dropout:
        model[2].insert(2, nn.Dropout(config.model.dropout))
    model.to(memory_format=torch.channels_last)
    mean, std = config.normalize.mean, config.normalize.std
    learner = small_learner(
        model,
        layer_groups=config.optim.layer_groups,
        preprocess=small_preprocess(
            mean=MEAN if config.normalize.source == "dataset" else mean,
            std=STD if config.normalize.source == "dataset" else std,
        ),
        precision=config.precision,
    )
    return Training(learner, dataset, plan(config, len(dataset.train)), config)


def steps_left(training, *, then=lambda: None):
    """The rest of a training: of each step, all that is not a time."""
    seen = []
    for step in training:
        seen.append((step.moment, float(step.loss)))
        then()
    return seen


def saved(training, folder):
    """What a file of the training's tensors holds."""
    checkpoint.write(folder, "id", training.done, training.tensors(), {})
    found = checkpoint.newest(folder, "id")
    assert found.done == training.done
    return found


def went_on(config, found):
    """A new training that has gone on from ``found`` to its end, and the steps it made."""
    training = a_training(config, seed=1)
    training.restore(found.done, found.tensors)
    return training, steps_left(training)


def differing(one, other):
    """The names of tensors that are not equal to the bit."""
    pair = [
        {f"{group} {name}": value for group, members in each.items()
         for name, value in members.items()}
        for each in (one, other)
    ]  # fmt: skip
    assert pair[0].keys() == pair[1].keys()
    return {name for name, value in pair[0].items() if not torch.equal(value, pair[1][name])}


@pytest.mark.parametrize("words", WORDS)
def test_a_training_stopped_after_any_step_goes_on_to_the_bit(composed, tmp_path, words):
    config = composed(*BASE, *words.split(" "))
    undisturbed = a_training(config)
    expected = steps_left(undisturbed)
    assert len(expected) == undisturbed.total > 5

    saving = a_training(config)
    found = [saved(saving, tmp_path)]
    assert steps_left(saving, then=lambda: found.append(saved(saving, tmp_path))) == expected
    assert differing(saving.tensors(), undisturbed.tensors()) == set()  # saving disturbs nothing

    # From every step with all tricks on; for the others from every third, across all epochs.
    for each in found if words == "+trick=all" else found[1::3]:
        training, steps = went_on(config, each)
        assert steps == expected[each.done :], each.done
        assert differing(training.tensors(), undisturbed.tensors()) == set(), each.done
    assert len(found) == undisturbed.total + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_is_stopped_after_every_step(composed, tmp_path, workers):
    """Each step in a process of its own, as it were, and the rest of its epoch read in vain."""
    words = ("mixup=switch", "augment=inception", "resize=progressive", "model.dropout=0.5")
    undisturbed = a_training(composed(*BASE, *words))
    expected = steps_left(undisturbed)
    config = composed(*BASE, *words, f"data.num_workers={workers}")
    training, losses = a_training(config), []
    while training.done < training.total:
        steps = iter(training)
        losses.append(float(next(steps).loss))
        steps.close()
        found = saved(training, tmp_path)
        training = a_training(config, seed=len(losses))
        training.restore(found.done, found.tensors)
    assert losses == [step[-1] for step in expected]
    assert differing(training.tensors(), undisturbed.tensors()) == set()


def test_workers_may_be_others_afterwards(composed, tmp_path):
    words = (*BASE, "mixup=beta", "augment=standard")
    undisturbed = a_training(composed(*words))
    expected = steps_left(undisturbed)
    for before, after in ((0, 2), (2, 0)):
        training = a_training(composed(*words, f"data.num_workers={before}"))
        steps = iter(training)
        for _ in range(3):
            next(steps)
        steps.close()
        config = composed(*words, f"data.num_workers={after}")
        training, steps = went_on(config, saved(training, tmp_path / str(before)))
        assert steps == expected[3:]
        assert differing(training.tensors(), undisturbed.tensors()) == set()


@pytest.mark.parametrize("words", ["optim=adamw", "optim=sgd", "optim=fine_tune", "precision=bf16"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda found: replace(found, tensors={**found.tensors, "optimizer": {}}),
        lambda found: replace(found, done=found.done + 1),
        lambda found: replace(found, done=found.done - 1),
        lambda found: replace(
            found,
            tensors={
                **found.tensors,
                "model": {
                    name: value.add(1e-6) if name == "0.1.running_mean" else value
                    for name, value in found.tensors["model"].items()
                },
            },
        ),
    ],
    ids=["no optimizer", "a step too far", "a step again", "a statistic a little off"],
)
def test_the_comparison_notices_what_is_not_restored(composed, tmp_path, words, wrong):
    config = composed(*BASE, words)
    undisturbed = a_training(config)
    expected = steps_left(undisturbed)
    training = a_training(config)
    steps = iter(training)
    for _ in range(6):  # in the second epoch, and in the middle of a stage
        next(steps)
    found = saved(training, tmp_path)
    assert went_on(config, found)[1] == expected[6:]
    other, steps = went_on(config, wrong(found))
    assert differing(other.tensors(), undisturbed.tensors())
    if found.tensors["model"] is wrong(found).tensors["model"]:
        assert steps != expected[6:]


@pytest.mark.parametrize(
    ("words", "name"), [("model.dropout=0.5", "layer_seed"), ("mixup=beta", "generator")]
)
def test_the_comparison_notices_draws_that_depend_on_those_before(
    composed, tmp_path, monkeypatch, words, name
):
    config = composed(*BASE, words)

    def forget_positions():
        """As a process does in which draws follow one another."""
        seeds = iter(range(100))
        running = np.random.default_rng(0)
        monkeypatch.setattr(loop, "layer_seed", lambda *_: next(seeds))
        if name == "generator":
            monkeypatch.setattr(loop, "generator", lambda *_: running)

    forget_positions()
    training = a_training(config)
    found, steps = [], []
    for step in training:
        steps.append(float(step.loss))
        found.append(saved(training, tmp_path))
    forget_positions()
    assert [step[-1] for step in went_on(config, found[2])[1]] != steps[3:]


def test_what_was_restored_is_saved_again_before_any_step(composed, tmp_path):
    config = composed(*BASE)
    training = a_training(config)
    for number, _ in enumerate(training, 1):
        if number == 3:
            break
    found = saved(training, tmp_path / "a")
    again = a_training(config, seed=1)
    again.restore(found.done, found.tensors)
    assert again.done == 3
    assert differing(saved(again, tmp_path / "b").tensors, found.tensors) == set()


def test_the_tensors_of_another_network_are_refused(composed, tmp_path):
    config = composed(*BASE)
    found = saved(a_training(config), tmp_path)
    dataset = small_dataset()
    stages = plan(config, len(dataset.train))
    other = Training(small_learner(small_network(5)), dataset, stages, config)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.restore(found.done, found.tensors)


def test_batches_of_the_rest_of_an_epoch_are_those_of_the_whole(composed):
    config = composed(*BASE, "mixup=switch", "augment=inception", "resize=progressive")
    dataset = small_dataset()
    moments = [moment(plan(config, 33), before) for before in range(4, 8)]
    whole = list(loop.training_batches(dataset, 8, moments, config))
    for first in range(1, 4):
        rest = list(loop.training_batches(dataset, 8, moments[first:], config))
        for batch, same in zip(rest, whole[first:], strict=True):
            assert torch.equal(batch.pixels.canvas, same.pixels.canvas)
            assert torch.equal(batch.labels, same.labels)
            assert torch.equal(batch.mix.weight, same.mix.weight)
            assert np.array_equal(batch.draws.crop_place, same.draws.crop_place)
    assert not torch.equal(whole[0].mix.weight, whole[1].mix.weight)


# ── Evaluation ─────────────────────────────────────────────────────────────────────────────────

DETERMINISTIC = {
    "flip": Tta(flip=True),
    "crops": Tta(crops=3),
    "two crops": Tta(crops=2),
    "five crops": Tta(corners=True),
    "ten crops, max": Tta(corners=True, flip=True, reduce="max"),
    "scales": Tta(scales=(0.75, 1.0, 1.25), reduce="geometric"),
    "product": Tta(flip=True, crops=3, scales=(1.0, 1.5), reduce="logit_mean"),
}
RANDOM = {
    "book": Tta(passes=4, beta=0.25),
    "passes, max": Tta(passes=2, reduce="max"),
    "passes, geometric": Tta(passes=2, reduce="geometric"),
}


@pytest.fixture(scope="module")
def network():
    """Trained, so that predictions differ from image to image and view to view."""
    return trained(small_config(budget=Budget(epochs=6), optim=Optim(lr=3e-2)))


def predicted(network, *, dataset=None, with_tta=True, preprocess=None, **groups):
    config = small_config(**groups)
    learner = small_learner(network, preprocess=preprocess or small_preprocess())
    return evaluate(learner, dataset or small_dataset(), config, with_tta=with_tta)


def test_plain_predictions_equal_torch_alone(network):
    dataset = small_dataset()
    found = predicted(network, dataset=dataset, with_tta=False)
    network.eval()
    for row, (index, probabilities) in enumerate(
        zip(dataset.val.indices, found.plain, strict=True)
    ):
        image = torch.from_numpy(dataset.store.images[index]).permute(2, 0, 1)
        height, width = image.shape[1:]
        top, left = (height - 16) // 2, (width - 16) // 2
        square = image[None, :, top : top + 16, left : left + 16] / 255
        with torch.no_grad():
            expected = network(square).softmax(dim=1)[0].numpy()
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
        assert found.labels[row] == dataset.val.labels[row]
    assert found.plain.std(axis=0).max() > 0.05  # the network does tell images apart


@pytest.mark.parametrize("augment", [STANDARD, INCEPTION])
@pytest.mark.parametrize("tta", {**DETERMINISTIC, **RANDOM}.values(), ids=str)
def test_evaluation_is_deterministic_and_knows_no_batches(network, tta, augment):
    first = predicted(network, tta=tta, augment=augment)
    torch.manual_seed(99)
    again = predicted(network, tta=tta, augment=augment)
    assert np.array_equal(first.plain, again.plain)
    assert np.array_equal(first.tta, again.tta)
    for batch_size in (1, 4):
        other = predicted(network, tta=tta, augment=augment, eval=Eval(batch_size=batch_size))
        np.testing.assert_allclose(other.plain, first.plain, atol=1e-5)
        np.testing.assert_allclose(other.tta, first.tta, atol=1e-5)

    np.testing.assert_allclose(first.tta.sum(axis=1), 1, atol=1e-5)
    assert first.tta.min() >= 0
    assert np.abs(first.tta - first.plain).max() > 1e-3  # the views do differ


@pytest.mark.parametrize("tta", [Tta(), *DETERMINISTIC.values()], ids=str)
def test_the_order_of_images_does_not_matter(network, tta):
    dataset = small_dataset()
    order = np.random.default_rng(0).permutation(len(dataset.val))
    assert not np.array_equal(order, np.arange(len(order)))
    shuffled = replace(dataset, val=Split(dataset.val.indices[order], dataset.val.labels[order]))
    first = predicted(network, dataset=dataset, tta=tta)
    other = predicted(network, dataset=shuffled, tta=tta)
    assert np.array_equal(other.labels, first.labels[order])
    np.testing.assert_allclose(other.plain, first.plain[order], atol=1e-5)
    np.testing.assert_allclose(other.tta, first.tta[order], atol=1e-5)
    assert np.abs(other.plain - first.plain).max() > 0.01


def test_the_plain_view_is_never_augmented(network):
    reference = predicted(network, with_tta=False).plain
    for tta in (Tta(), *DETERMINISTIC.values(), *RANDOM.values()):
        for augment in (Augment(), STANDARD, INCEPTION):
            found = predicted(network, tta=tta, augment=augment)
            assert np.array_equal(found.plain, reference)


@pytest.mark.parametrize("augment", [Augment(), STANDARD])
def test_tta_off_equals_the_plain_view_exactly(network, augment):
    for found in (
        predicted(network, augment=augment),
        predicted(network, augment=augment, with_tta=False, tta=Tta(passes=4)),
        predicted(network, augment=augment, with_tta=False, tta=Tta(flip=True)),
    ):
        assert np.array_equal(found.tta, found.plain)
        assert (found.passes_plain, found.passes_tta) == (1, 1)


def test_views_of_an_image_without_features_agree(network):
    shapes = [(16, 16), (16, 24), (24, 16)]
    images = [np.full((*shapes[index % 3], 3), (index * 40, 99, 200), np.uint8)
              for index in range(6)]  # fmt: skip
    dataset = small_dataset(0, 6, images=images)
    for tta in (*DETERMINISTIC.values(), *RANDOM.values()):
        found = predicted(
            network, dataset=dataset, tta=tta, augment=replace(STANDARD, max_lighting=0)
        )
        np.testing.assert_allclose(found.tta, found.plain, atol=2e-5)
    assert np.ptp(found.plain, axis=0).max() > 0.01


def test_the_mirror_of_a_symmetric_image_is_itself(network):
    halves = [image[:16, :16] for image in noise_images(6)]
    images = [np.concatenate([half, half[:, ::-1]], axis=1) for half in halves]
    found = predicted(network, dataset=small_dataset(0, 6, images=images), tta=Tta(flip=True))
    np.testing.assert_allclose(found.tta, found.plain, atol=1e-6)
    other = predicted(network, tta=Tta(flip=True))  # negative control
    assert np.abs(other.tta - other.plain).max() > 1e-3


def test_random_passes_depend_on_the_seed_and_the_augmentation(network):
    tta = Tta(passes=2)
    first = predicted(network, tta=tta, augment=STANDARD).tta
    assert not np.allclose(first, predicted(network, tta=tta, augment=STANDARD, seed=1).tta)
    # Every pass draws anew: the mean of two is not one of them.
    assert not np.allclose(first, predicted(network, tta=Tta(passes=1), augment=STANDARD).tta)
    # Squares lie at random places along the long side, even without augmentation.
    squares = small_dataset(0, 6, images=[np.ascontiguousarray(image[:16, :16])
                                          for image in noise_images(6)])  # fmt: skip
    found = predicted(network, dataset=squares, tta=tta)
    np.testing.assert_allclose(found.tta, found.plain, atol=1e-6)


@pytest.mark.parametrize(
    ("tta", "passes"),
    [
        (Tta(), 1),
        (Tta(flip=True), 2),
        (Tta(crops=3), 3),
        (Tta(corners=True), 5),
        (Tta(corners=True, flip=True), 10),
        (Tta(scales=(0.75, 1.0, 1.25)), 3),
        (Tta(passes=4, beta=0.25), 5),
        (Tta(passes=4, reduce="max"), 5),
    ],
)
def test_forward_passes_are_counted_and_images_read_once(network, tta, passes):
    dataset, images = small_dataset(), []
    handle = network.register_forward_pre_hook(lambda _, given: images.append(len(given[0])))
    try:
        found = predicted(network, dataset=dataset, tta=tta, eval=Eval(batch_size=4))
    finally:
        handle.remove()
    assert (found.passes_plain, found.passes_tta) == (1, passes)
    assert sum(images) == passes * 15
    assert dataset.store.reads == dict.fromkeys(range(33, 48), 1)


def test_the_evaluation_size_is_its_own(network):
    sizes = []
    handle = network.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[-1]))
    try:
        predicted(network, tta=Tta(scales=(0.5, 1.0)), preprocess=small_preprocess(size=20))
    finally:
        handle.remove()
    assert sorted(set(sizes)) == [10, 20]


def test_more_outputs_than_classes():
    config, dataset = small_config(tta=Tta(flip=True), smoothing=Smoothing(0.1)), small_dataset()
    learner = small_learner(small_network(5))
    for step in Training(learner, dataset, plan(config, len(dataset.train)), config):
        assert torch.isfinite(step.loss)
    found = evaluate(learner, dataset, config, with_tta=True)
    assert found.plain.shape == found.tta.shape == (15, 5)
    assert found.labels.max() == 2
    np.testing.assert_allclose(found.plain.sum(axis=1), 1, atol=1e-5)


def test_evaluation_reports_its_progress(network):
    told = []
    evaluate(
        small_learner(network), small_dataset(), small_config(eval=Eval(batch_size=4)),
        with_tta=False, progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_evaluation_that_should_stop_has_no_predictions(network):
    told = []

    def evaluated(should_stop):
        told.clear()
        return evaluate(
            small_learner(network), small_dataset(), small_config(eval=Eval(batch_size=4)),
            with_tta=True, progress=lambda done, total: told.append(done), should_stop=should_stop,
        )  # fmt: skip

    assert evaluated(lambda: len(told) == 2) is None
    assert told == [1, 2]  # and no batch more
    whole = evaluated(lambda: False)
    assert np.array_equal(whole.plain, predicted(network, eval=Eval(batch_size=4)).plain)


def test_evaluation_leaves_the_network_as_it_is(network):
    before = copy.deepcopy(network.state_dict())
    predicted(network.train(), tta=Tta(passes=2), augment=STANDARD)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()(torch.rand(4, 3, 16, 16))  # negative control: training does move the buffers
    assert not torch.equal(before["0.1.running_mean"], network.state_dict()["0.1.running_mean"])
    network.load_state_dict(before)


def test_evaluating_after_any_step_does_not_disturb_training():
    config, dataset = small_config(augment=STANDARD, tta=Tta(passes=1)), small_dataset()
    undisturbed = weights(trained(config))
    for every in (1, 3):
        model = small_network()
        learner = small_learner(model)
        for step in Training(learner, dataset, plan(config, len(dataset.train)), config):
            assert model.training
            if step.done % every == 0:
                evaluate(learner, dataset, config, with_tta=True)
                assert not model.training
        assert torch.equal(weights(model), undisturbed)


def test_predictions_that_are_not_finite_are_refused():
    model = small_network()
    with torch.no_grad():
        model[2][2].weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="prediction is not finite") as caught:
        predicted(model, with_tta=False)
    assert "optim.lr=0.01" in caught.value.where
    assert caught.value.exit_code == 5
