"""Squares cut on a device are those cut on the host, byte for byte."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, random_pixels
from small import small_learner, small_network

from runner.config.schema import Augment, Tta
from runner.data.batches import squares, view_squares
from runner.data.resident import ResidentStore, resident
from runner.data.store import CachedStore
from runner.training.predicting import probabilities
from runner.tricks.tta import View

SHAPES = ((12, 16), (16, 12), (9, 9), (9, 40), (31, 10))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Images of short side 8."""
    from runner.data.images import FileImages
    from runner.data.store import content_digests, open_store

    folder = tmp_path_factory.mktemp("images")
    for number, shape in enumerate(SHAPES):
        (folder / f"{number}.png").write_bytes(encoded(random_pixels(number, *shape)))
    images = FileImages(folder, tuple(f"{number}.png" for number in range(len(SHAPES))))
    cache = folder / "cache"
    found, _ = open_store(
        images, content_digests(images, cache, lambda *_: None), cache,
        presize=8, max_aspect=2.0, cached=True, progress=lambda *_: None,
    )  # fmt: skip
    assert isinstance(found, CachedStore)
    return found


PLACES = st.tuples(*[st.floats(0, 1)] * 2)
SEVERAL = st.lists(st.tuples(st.integers(0, len(SHAPES) - 1), PLACES), min_size=1, max_size=9)


@given(chosen=SEVERAL)
def test_squares_are_those_of_the_host(store, chosen):
    indices = np.array([index for index, _ in chosen])
    places = np.array([place for _, place in chosen])
    on_host = squares(store, indices, places)
    on_device = squares(ResidentStore(store, torch.device("cpu")), indices, places)
    assert torch.equal(on_device.canvas, on_host.canvas)
    assert np.array_equal(on_device.extents, on_host.extents)
    assert on_device.canvas.is_contiguous(memory_format=torch.channels_last)


def test_the_comparison_can_fail(store):
    indices, places = np.array([0, 1]), np.array([[0.0, 0.0], [0.0, 0.0]])
    moved = squares(ResidentStore(store, torch.device("cpu")), indices, 1 - places)
    assert not torch.equal(moved.canvas, squares(store, indices, places).canvas)


def test_single_images_come_from_the_host(store):
    found = ResidentStore(store, torch.device("cpu"))
    for index in range(len(SHAPES)):
        assert np.array_equal(found.rectangle(index), store.rectangle(index))


def test_on_a_cpu_nothing_is_copied():
    from small import small_dataset

    dataset = small_dataset()
    assert resident(dataset, torch.device("cpu")) is dataset


VIEWS = st.lists(
    st.builds(View, st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1)), min_size=1, max_size=4
)


@given(chosen=st.lists(st.integers(0, len(SHAPES) - 1), min_size=1, max_size=9), views=VIEWS)
def test_views_are_those_of_the_host(store, chosen, views):
    indices = np.array(chosen)
    on_host = view_squares(store, indices, views)
    on_device = view_squares(ResidentStore(store, torch.device("cpu")), indices, views)
    for one, other in zip(on_device, on_host, strict=True):
        assert torch.equal(one.canvas, other.canvas)
        assert np.array_equal(one.extents, other.extents)


def test_evaluating_what_is_resident_changes_nothing(store):
    """With random passes and workers asked for, which cannot read from a GPU."""
    learner, variants = small_learner(small_network()), [Tta(crops=3, flip=True), Tta(passes=2)]

    def found(source):
        return probabilities(
            learner, source, np.arange(len(SHAPES)), variants, augment=Augment(flip=0.5), seed=0,
            batch_size=2, num_workers=1,
        )  # fmt: skip

    from_host, from_device = found(store), found(ResidentStore(store, torch.device("cpu")))
    assert np.array_equal(from_device.plain, from_host.plain)
    for one, other in zip(from_device.combined, from_host.combined, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(from_host.plain, from_host.combined[0])  # negative control
