"""Several TTAs in one pass: each as if it were alone, and nothing computed twice."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import small_config, small_dataset, small_learner, small_network, small_preprocess

from runner.config.schema import Augment, Eval, Tta
from runner.data.views import View, plain_view
from runner.training.predicting import Predictions, evaluate, evaluate_variants, images_per_pass
from runner.tricks.tta import cost, looks, looks_used

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


def predicted(variants: Sequence[Tta], *, batch_size: int = 4) -> list[Predictions]:
    config = small_config(augment=AUGMENT, eval=Eval(batch_size=batch_size))
    found = evaluate_variants(small_learner(small_network()), small_dataset(), config, variants)
    assert found is not None
    return found


def test_variants_together_are_each_as_alone() -> None:
    together = predicted(VARIANTS)
    for tta, found in zip(VARIANTS, together, strict=True):
        config = small_config(augment=AUGMENT, eval=Eval(batch_size=4), tta=tta)
        alone = evaluate(small_learner(small_network()), small_dataset(), config, with_tta=True)
        assert alone is not None
        assert np.array_equal(found.plain, alone.plain)
        assert np.array_equal(found.tta, alone.tta), tta
        assert found.passes_tta == alone.passes_tta
    # Negative control: the variants do differ, so that none could stand for another.
    assert len({found.tta.tobytes() for found in together}) == len(VARIANTS)


def test_the_order_of_variants_does_not_matter() -> None:
    forward, backward = predicted(VARIANTS), predicted(VARIANTS[::-1])
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
    views = predicted([Tta(), *(Tta(scales=(scale,)) for scale in (0.75, 1.25))])
    single = np.stack([found.tta for found in views]).astype(np.float64)
    scales = (1.0, 0.75, 1.25)
    reductions = ("mean", "max", "geometric", "logit_mean")
    found = predicted([Tta(scales=scales, reduce=reduce) for reduce in reductions])
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
