"""A training that is stopped after any step goes on to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import (
    EVERY_TRICK,
    small_dataset,
    small_learner,
    small_network,
    small_preprocess,
)
from torch import nn

from runner.config.options import CONF_DIR
from runner.config.schema import Loss, RunConfig
from runner.models import changes_of
from runner.records import checkpoint
from runner.training import loop
from runner.training.learners import build_learner
from runner.training.loop import Training
from runner.training.schedule import moment, plan
from runner.tricks.idea import NO_IDEA

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


TRICK_GROUPS = [name for name, group in RunConfig().groups.items() if group.TRICKS and group.TRAINS]
# Every option of the groups that decide how the network is trained …
OPTIONS = [
    f"{'+' if path.parent.name == 'trick' else ''}{path.parent.name}={path.stem}"
    for group in ("trick", "augment", "optim", *TRICK_GROUPS)
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
    "auto_augment=rand erasing=random erasing.fill=noise mixup=beta data.num_workers=2",
    "precision=bf16",
    f"precision=bf16 optim=sgd {EVERY_TRICK} model.dropout=0.5",
    "seed=7 budget.epochs=3 data.batch_size=11",
]
BASE = (
    "data.batch_size=8", "resize.size=16", "resize.first_size=8", "resize.first_batch_size=16",
    "resize.first_epochs=1", "budget.epochs=2", "optim.lr=0.01", "threads=1", "device=cpu",
    "precision=fp32",
)  # fmt: skip


def test_every_trick_is_among_what_is_stopped():
    tricks = {path.stem for path in (CONF_DIR / "trick").iterdir()}
    assert {f"+trick={name}" for name in tricks} <= set(WORDS)
    assert {"optim=sgd", "augment=inception", "resize=book", "mixup=switch"} <= set(WORDS)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path_factory):
    """The statistics of images are measured once for each folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("outputs"))


def uneven_dataset():
    """Classes of 20, 8 and 5 training images."""
    dataset = small_dataset()
    labels = np.repeat([0, 1, 2], [20, 8, 5])
    return replace(dataset, train=replace(dataset.train, labels=labels))


def a_real_training(config, *, seed=0):
    """As a run builds it: with its loss, the weights of its classes and changes of its network."""
    dataset = uneven_dataset()
    network = replace(config.model, source="timm", name="test_resnet")
    fresh = replace(config, model=network, seed=config.seed + seed)
    learner, _ = build_learner(fresh, dataset)
    return Training(learner, dataset, plan(config, len(dataset.train)), config)


def a_training(config, *, seed=0):
    """A training that has not begun, in weights of ``seed``."""
    if config.loss != Loss() or changes_of(config, NO_IDEA):
        return a_real_training(config, seed=seed)
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


@pytest.mark.parametrize(
    "words",
    # An option of a group is in a trick or in a mixture, too.
    [
        pytest.param(words, marks=[pytest.mark.whole] * (words in OPTIONS and words[0] != "+"))
        for words in WORDS
    ],
)
def test_a_training_stopped_after_any_step_goes_on_to_the_bit(composed, tmp_path, words):
    config = composed(*BASE, *words.split(" "))
    undisturbed = a_training(config)
    expected = steps_left(undisturbed)
    assert len(expected) == undisturbed.total > 5

    saving = a_training(config)
    found = [saved(saving, tmp_path)]
    assert steps_left(saving, then=lambda: found.append(saved(saving, tmp_path))) == expected
    assert differing(saving.tensors(), undisturbed.tensors()) == set()  # saving disturbs nothing

    # From every step with all tricks on; for the others from every fifth, across all epochs.
    # Real networks take longer: from one or two steps.
    is_real = len(undisturbed.evaluated.model.state_dict()) > 20
    for each in found if words == "+trick=all" else found[3::6] if is_real else found[1::5]:
        training, steps = went_on(config, each)
        assert steps == expected[each.done :], each.done
        assert differing(training.tensors(), undisturbed.tensors()) == set(), each.done
    assert len(found) == undisturbed.total + 1


@pytest.mark.parametrize(
    "words", ["+trick=bce", "+trick=class_weights", "+trick=stochastic_depth", "+trick=blurpool"]
)
def test_the_tricks_that_a_run_builds_change_what_is_stopped(composed, words):
    plain = a_real_training(composed(*BASE))
    other = a_training(composed(*BASE, words))
    for training in (plain, other):
        for _, _step in zip(range(2), training, strict=False):
            pass
    assert differing(plain.tensors(), other.tensors())


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
