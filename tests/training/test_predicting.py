"""Predictions of one TTA against torch alone; several in one pass, each as if it were alone."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import (
    INCEPTION,
    STANDARD,
    noise_images,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    small_preprocess,
    trained,
    weights,
)

from runner.config.schema import Augment, Budget, Eval, Optim, Smoothing, Tta
from runner.data.dataset import Split
from runner.data.views import View, plain_view
from runner.errors import TrainingError
from runner.machine.signals import Interrupted
from runner.training.loop import Training
from runner.training.predicting import Predictions, evaluate, evaluate_variants, images_per_pass
from runner.training.schedule import plan
from runner.tricks.tta import cost, looks, looks_used

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

    with pytest.raises(Interrupted):
        evaluated(lambda: len(told) == 2)
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


# ── Several in one pass ──────────────────────────────────────────────────────────────────────────

VARIANTS = (
    Tta(),
    Tta(flip=True),
    Tta(flip=True, reduce="max"),
    Tta(corners=True, flip=True, reduce="geometric"),
    Tta(crops=2),
    Tta(scales=(0.75, 1.5), beta=0.5),
    Tta(passes=2, beta=0.25),
    Tta(passes=3, reduce="max"),
)
AUGMENT = Augment(flip=0.5, max_rotate=10, max_lighting=0.2)


def predicted_together(variants: Sequence[Tta], *, batch_size: int = 4) -> list[Predictions]:
    config = small_config(augment=AUGMENT, eval=Eval(batch_size=batch_size))
    return evaluate_variants(small_learner(small_network()), small_dataset(), config, variants)


def test_variants_together_are_each_as_alone() -> None:
    together = predicted_together(VARIANTS)
    for tta, found in zip(VARIANTS, together, strict=True):
        config = small_config(augment=AUGMENT, eval=Eval(batch_size=4), tta=tta)
        alone = evaluate(small_learner(small_network()), small_dataset(), config, with_tta=True)
        assert np.array_equal(found.plain, alone.plain)
        assert np.array_equal(found.tta, alone.tta), tta
        assert found.passes_tta == alone.passes_tta
    # Negative control: the variants do differ, so that none could stand for another.
    assert len({found.tta.tobytes() for found in together}) == len(VARIANTS)


def test_the_order_of_variants_does_not_matter() -> None:
    forward, backward = predicted_together(VARIANTS), predicted_together(VARIANTS[::-1])
    for one, other in zip(forward, backward[::-1], strict=True):
        assert np.array_equal(one.tta, other.tta)


@pytest.mark.parametrize(
    ("variants", "passes"),
    [
        ([Tta(), Tta(flip=True)], 2),
        ([Tta(flip=True), Tta(flip=True, reduce="max")], 2),
        ([Tta(crops=3), Tta(crops=3, flip=True), Tta(corners=True)], 10),
        ([Tta(passes=4, beta=0.25), Tta(passes=2, beta=0.5), Tta(passes=3, reduce="max")], 5),
        ([Tta(flip=True), Tta(passes=2, reduce="max")], 4),
    ],
)
def test_the_union_is_what_is_computed(variants: list[Tta], passes: int) -> None:
    network, dataset, images = small_network(), small_dataset(), []
    network.register_forward_pre_hook(lambda _, given: images.append(len(given[0])))
    config = small_config(augment=AUGMENT, eval=Eval(batch_size=4))
    evaluate_variants(small_learner(network), dataset, config, variants)
    assert len(looks_used([Tta(), *variants])) == passes
    assert sum(images) == passes * len(dataset.val)
    assert set(dataset.store.reads.values()) == {1}, "images are read once"


def test_reductions_of_the_same_views_are_those_of_numpy() -> None:
    views = predicted_together([Tta(), *(Tta(scales=(scale,)) for scale in (0.75, 1.25))])
    single = np.stack([found.tta for found in views]).astype(np.float64)
    scales = (1.0, 0.75, 1.25)
    reductions = ("mean", "max", "geometric", "logit_mean")
    found = predicted_together([Tta(scales=scales, reduce=reduce) for reduce in reductions])
    geometric = np.exp(np.log(single).mean(axis=0))
    expected = {
        "mean": single.mean(axis=0),
        "max": single.max(axis=0) / single.max(axis=0).sum(axis=1, keepdims=True),
        "geometric": geometric / geometric.sum(axis=1, keepdims=True),
    }
    expected["logit_mean"] = expected["geometric"]
    for reduce, predictions in zip(reductions, found, strict=True):
        np.testing.assert_allclose(predictions.tta, expected[reduce], atol=1e-6)
    assert np.abs(expected["mean"] - expected["max"]).max() > 1e-5  # negative control


def test_what_a_variant_costs() -> None:
    assert looks(Tta(passes=2)) == [0, 1]
    assert looks_used([Tta(passes=2)]) == {0, 1}
    assert looks_used([Tta(passes=2, reduce="max")]) == {0, 1, plain_view()}
    assert looks_used([Tta(scales=(2.0,), beta=0.5)]) == {plain_view(), View(scale=2.0)}
    assert cost(looks_used([Tta()])) == 1
    assert cost(looks_used([Tta(corners=True)])) == 5
    assert cost(looks_used([Tta(scales=(0.5, 1.0, 2.0), flip=True)])) == 2 * (0.25 + 1 + 4)
    assert cost(looks_used([Tta(passes=4, beta=0.25)])) == 5


@pytest.mark.parametrize(
    ("device", "size", "asked", "expected"),
    [
        ("cpu", 28, None, 256), ("cpu", 64, None, 256), ("cpu", 65, None, 248),
        ("cpu", 128, None, 64), ("cpu", 224, None, 20), ("cpu", 4096, None, 1),
        ("cpu", 224, 300, 300), ("cuda", 224, None, 256), ("cuda", 224, 7, 7),
    ],
)  # fmt: skip
def test_images_of_a_forward_pass(device: str, size: int, asked: int | None, expected: int) -> None:
    learner = small_learner(small_network(), preprocess=small_preprocess(size=size))
    learner = replace(learner, device=torch.device(device))
    assert images_per_pass(small_config(eval=Eval(batch_size=asked)), learner) == expected
