"""Balanced sampling against torch's sampler and by chi-square; exactness, copies and messages."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from small import (
    STANDARD,
    Command,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    trained,
    weights,
)
from torch.utils.data import WeightedRandomSampler

from runner.config.schema import RunConfig, Sampling
from runner.data.batches import training_order
from runner.errors import DivergedError
from runner.machine.processes import Processes
from runner.training.loop import Training, training_batches
from runner.training.schedule import moment, plan
from runner.tricks.sampling import epoch_order, image_probabilities

BALANCED = Sampling(power=1.0)
LABELS = np.repeat(np.arange(4), [400, 200, 60, 8])


def drawn(power: float, epochs: int = 40) -> np.ndarray:
    """The images of several epochs."""
    orders = (epoch_order(LABELS, 32, Sampling(power), 0, epoch) for epoch in range(epochs))
    return np.concatenate([rows.images for order in orders for rows in order])


# ── Which images ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0, 1.5])
def test_images_come_as_often_as_from_torchs_sampler(power: float) -> None:
    counts = np.bincount(LABELS)
    by_image = torch.tensor(counts[LABELS].astype(float) ** -power)
    ours = np.bincount(drawn(power), minlength=len(LABELS))
    expected = by_image / by_image.sum() * ours.sum()
    assert chisquare(ours, expected.numpy()).pvalue > 1e-3
    uneven = np.full(len(LABELS), ours.sum() / len(LABELS))
    assert chisquare(ours, uneven).pvalue < 1e-6  # negative control
    # Torch's own draws have the same expectation.
    generator = torch.Generator().manual_seed(0)
    theirs = list(WeightedRandomSampler(by_image.tolist(), int(ours.sum()), generator=generator))
    assert chisquare(np.bincount(theirs, minlength=len(LABELS)), expected.numpy()).pvalue > 1e-3


def test_a_power_of_one_makes_all_classes_equally_likely() -> None:
    classes = np.bincount(LABELS[drawn(1.0)])
    assert chisquare(classes).pvalue > 1e-3
    assert chisquare(np.bincount(LABELS[drawn(0.8)])).pvalue < 1e-6  # negative control


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 300), min_size=2, max_size=6).filter(any),
    power=st.floats(0, 10),
)
def test_probabilities_are_those_of_the_formula(counts: list[int], power: float) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = image_probabilities(labels, power)
    weights_of = [(counts[label] / max(counts)) ** -power for label in labels]
    assert found == pytest.approx(np.array(weights_of) / sum(weights_of))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 80), batch_size=st.integers(1, 40), power=st.sampled_from([0.0, 0.5, 1.0])
)
def test_an_epoch_has_as_many_images_as_ever(count: int, batch_size: int, power: float) -> None:
    labels = np.arange(count) % 3
    order = epoch_order(labels, batch_size, Sampling(power), 0, 0)
    assert [len(rows.images) for rows in order] == [batch_size] * (count // batch_size)
    if order:
        places = np.concatenate([rows.draws for rows in order])
        assert len(np.unique(places)) == len(places)
        assert places.max() < count


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def images(seed: int, epoch: int) -> list[list[int]]:
        order = epoch_order(LABELS, 32, BALANCED, seed, epoch)
        return [rows.images.tolist() for rows in order]

    assert images(0, 0) == images(0, 0)
    assert images(0, 0) != images(0, 1)
    assert images(0, 0) != images(1, 0)


def test_without_sampling_the_order_is_the_permutation_it_was() -> None:
    for rows, before in zip(
        epoch_order(LABELS, 32, Sampling(), 3, 2), training_order(len(LABELS), 32, 3, 2),
        strict=True,
    ):  # fmt: skip
        assert np.array_equal(rows.images, before)
        assert np.array_equal(rows.draws, before)


# ── In training ────────────────────────────────────────────────────────────────────────────────


def batches(config: RunConfig, processes: Processes = Processes()) -> list:  # noqa: B008
    dataset = small_dataset()
    stages = plan(config, len(dataset.train))
    moments = [moment(stages, step) for step in range(stages[0].num_steps // 2)]
    return list(training_batches(dataset, 8, moments, config, processes))


def test_copies_of_an_image_are_augmented_differently() -> None:
    config = small_config(sampling=Sampling(power=10.0), augment=STANDARD)
    found = batches(config)
    order = epoch_order(small_dataset().train.labels, 8, config.sampling, config.seed, 0)
    images = np.concatenate([rows.images for rows in order])
    angles = np.concatenate([batch.draws.brightness for batch in found])
    places = np.concatenate([batch.draws.place for batch in found])
    assert len(np.unique(images)) < len(images)  # there are copies
    assert len(np.unique(places, axis=0)) == len(images)
    assert len(np.unique(angles)) > 1


def test_two_processes_share_the_batches_of_one() -> None:
    config = small_config(sampling=BALANCED, augment=STANDARD)
    whole, halves = batches(config), [batches(config, Processes(rank, 2)) for rank in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        for rank, part in enumerate((first, second)):
            assert torch.equal(part.labels, one.labels[rank::2])
            assert torch.equal(part.pixels.canvas, one.pixels.canvas[rank::2])
            assert np.array_equal(part.draws.angle, one.draws.angle[rank::2])


def test_neutral_settings_train_to_the_same_bits() -> None:
    plain = weights(trained(small_config(augment=STANDARD)))
    neutral = small_config(augment=STANDARD, sampling=Sampling(power=0.0))
    assert torch.equal(plain, weights(trained(neutral)))
    balanced = small_config(augment=STANDARD, sampling=BALANCED)
    assert not torch.equal(plain, weights(trained(balanced)))
    assert replace(RunConfig(), sampling=Sampling()) == RunConfig()


def test_a_stopped_training_goes_on_to_the_same_bits() -> None:
    config, dataset = small_config(sampling=BALANCED, augment=STANDARD), small_dataset()
    stages = plan(config, len(dataset.train))
    first = Training(small_learner(small_network()), dataset, stages, config)
    saved = {}
    for step in first:
        if step.done == 2:  # within an epoch
            saved = {
                group: {name: value.clone() for name, value in members.items()}
                for group, members in first.tensors().items()
            }
    second = Training(small_learner(small_network(seed=1)), dataset, stages, config)
    second.restore(2, saved)
    for _ in second:
        pass
    assert torch.equal(weights(second.evaluated.model), weights(first.evaluated.model))


def test_the_message_about_a_step_names_the_images_that_were_drawn() -> None:
    config = small_config(sampling=Sampling(power=10.0))
    dataset, model = small_dataset(), small_network()
    with torch.no_grad():
        model[-1][-1].bias.fill_(torch.nan)
    training = Training(small_learner(model), dataset, plan(config, len(dataset.train)), config)
    with pytest.raises(DivergedError) as caught:
        next(iter(training))
    rows = epoch_order(dataset.train.labels, 8, config.sampling, config.seed, 0)[0]
    names = ", ".join(f"{row}.png" for row in rows.images)
    assert f"images {names}" in caught.value.where


def test_a_class_that_no_batch_can_hold_is_named(
    command: Command, tmp_path: Path, tiny_folder: Path, tiny_words: tuple[str, ...]
) -> None:
    root = shutil.copytree(tiny_folder, tmp_path / "photos")
    (root / "train" / "void").mkdir()
    (root / "train" / "void" / "0.png").write_bytes(b"no image")
    words = [word for word in tiny_words if not word.startswith("data.root=")]
    words += [f"data.root={root}", "data.on_corrupt=skip", "run_dir=run"]
    done = command(*words, "sampling=balanced")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert "no training image is of void, so balanced sampling cannot draw any" in said


# ── What is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "word", ["sampling.power=-1", "sampling.power=11", "sampling=weighted", "sampling=0.5"]
)
def test_wrong_values_write_nothing(
    command: Command, tiny_words: tuple[str, ...], word: str
) -> None:
    done = command(*tiny_words, word, "run_dir=run")
    assert (done.returncode, word in done.stderr) == (2, True), done.stderr
