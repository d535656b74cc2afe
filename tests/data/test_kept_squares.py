"""Evaluations that read kept squares equal those that resize, to the bit; the memory is bounded."""

from dataclasses import replace
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded, random_pixels
from small import noise_images, small_config, small_dataset, small_learner, small_network
from small import small_preprocess as preprocess
from torch import nn

from runner.config.schema import Augment, Eval, Tta
from runner.data.dataset import Split
from runner.data.images import FileImages
from runner.data.kept import MOST_BYTES, KeptSquares, kept_squares, squares_key
from runner.data.store import CachedStore, content_digests, open_store
from runner.data.views import View, plain_view
from runner.machine.processes import Processes
from runner.training.predicting import evaluate
from runner.training.step import Learner

SIZE = 10  # of the evaluation, px; the images are stored at 16
FLIP = View(flip=True)


def quiet(*_):
    pass


@pytest.fixture(autouse=True)
def forgotten():
    """No test finds the squares of an earlier one."""
    kept_squares(key_of(small_store(Path("/nowhere/at all"))))


def small_store(path, *, seed=0):
    images = noise_images(48, seed=seed)
    sizes = np.array([image.size for image in images])
    pixels = np.concatenate([image.reshape(-1) for image in images])
    shapes = np.array([image.shape[:2] for image in images], np.int32)
    return CachedStore(np.cumsum(sizes) - sizes, shapes, pixels, path)


def cached_dataset(path=Path("/cache/16px-a/pixels.u8"), *, seed=0):
    return replace(small_dataset(), store=small_store(path, seed=seed))


def key_of(store, *, indices=(1, 2), batch=4, view=FLIP, size=SIZE, how="bilinear"):
    return squares_key(store, np.array(indices), batch, view, size, how)


def predicted(dataset, *, most_kept=MOST_BYTES, with_tta=True, model=None, how=None, **groups):
    config = small_config(**{"eval": Eval(batch_size=4), **groups})
    learner = small_learner(model or small_network(), preprocess=how or preprocess(size=SIZE))
    return evaluate(learner, dataset, config, with_tta=with_tta, most_kept=most_kept)


def assert_equal(one, other):
    assert one.plain.tobytes() == other.plain.tobytes()
    assert one.tta.tobytes() == other.tta.tobytes()


@pytest.fixture
def reads(monkeypatch):
    """The indices of the images that are read."""
    found = []
    rectangle = CachedStore.rectangle

    def counted(store, index):
        found.append(index)
        return rectangle(store, index)

    monkeypatch.setattr(CachedStore, "rectangle", counted)
    return found


@pytest.mark.parametrize(
    "tta",
    [
        Tta(), Tta(flip=True), Tta(crops=3), Tta(corners=True, flip=True, reduce="max"),
        Tta(scales=(0.75, 1.0, 1.25), flip=True, beta=0.25), Tta(passes=2, beta=0.25),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "how",
    [
        preprocess(size=SIZE), preprocess(size=SIZE, crop=0.8), preprocess(size=20),
        preprocess(size=SIZE, interpolation="bicubic", mean=(0.4,) * 3, std=(0.2,) * 3),
    ],
    ids=["half", "crop", "larger", "bicubic"],
)  # fmt: skip
@pytest.mark.parametrize("crop_from", ["square", "rectangle"])
def test_predictions_are_equal_to_the_bit(tta, how, crop_from):
    dataset = cached_dataset()
    groups = {"tta": tta, "augment": Augment(crop_from=crop_from), "how": how}
    resized = predicted(dataset, most_kept=0, **groups)
    for _ in range(3):
        assert_equal(predicted(dataset, **groups), resized)
    other = predicted(cached_dataset(seed=1), most_kept=0, **groups)
    assert other.plain.tobytes() != resized.plain.tobytes()  # negative control


def test_a_second_evaluation_reads_no_image(reads):
    dataset = cached_dataset()
    predicted(dataset)
    assert sorted(reads) == dataset.val.indices.tolist()
    reads.clear()
    predicted(dataset)
    predicted(dataset, tta=Tta(flip=True))
    assert not reads
    predicted(dataset, most_kept=0)
    assert len(reads) == len(dataset.val)


def test_squares_of_the_stored_size_are_not_kept(reads):
    for _ in range(2):
        predicted(cached_dataset(), how=preprocess(size=16))
    assert len(reads) == 2 * len(cached_dataset().val)


def test_a_grouped_and_reordered_split_is_another_split(reads):
    dataset = cached_dataset()
    first = predicted(dataset)
    order = np.arange(len(dataset.val))[::-1]
    val = Split(dataset.val.indices[order], dataset.val.labels[order], order // 3)
    reads.clear()
    found = predicted(replace(dataset, val=val))
    assert len(reads) == len(val)
    assert_equal(found, predicted(replace(dataset, val=val), most_kept=0))
    assert found.groups is not None
    assert not np.array_equal(found.plain, first.plain)


def test_all_that_decides_the_squares_is_in_the_key():
    store = small_store(Path("/cache/16px-a/pixels.u8"))
    keys = [
        key_of(store),
        key_of(store, size=SIZE + 1),
        key_of(store, how="bicubic"),
        key_of(store, view=View(side=0.9)),
        key_of(store, view=View(x=0.0)),
        key_of(store, indices=(2, 1)),
        key_of(store, batch=5),
        key_of(small_store(Path("/cache/16px-b/pixels.u8"))),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(store, view=View()) == key_of(store, view=FLIP)  # mirrored after resizing
    assert key_of(small_dataset().store) is None  # streamed


def test_a_changed_image_gives_a_new_key(tmp_path):
    keys = []
    for pixels in (3, 4, 3):
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(encoded(random_pixels(pixels, 20, 20)))
        images = FileImages(tmp_path, ("0.png", "1.png"))
        cache = tmp_path / "cache"
        store, _ = open_store(
            images, content_digests(images, cache, quiet), cache, presize=16, max_aspect=2.0,
            cached=True, progress=quiet,
        )  # fmt: skip
        keys.append(key_of(store))
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_the_memory_is_bounded(reads):
    dataset = cached_dataset()
    one_batch = 4 * 3 * SIZE * SIZE * 4
    resized = predicted(dataset, most_kept=0)
    for most in (1, one_batch, 2 * one_batch + 1):
        predicted(dataset, most_kept=most)
        reads.clear()
        assert_equal(predicted(dataset, most_kept=most), resized)
        assert len(reads) == len(dataset.val) - 4 * (most // one_batch)
        key = key_of(dataset.store, indices=dataset.val.indices)
        assert kept_squares(key, most).num_bytes == most // one_batch * one_batch


def test_a_batch_that_does_not_fit_costs_nothing_however_many_are_kept():
    """What keeping a batch looks at is counted: it does not grow with the batches."""
    kept = KeptSquares(key_of(small_store(Path("/cache/16px-a/pixels.u8")), view=View()), 400)

    class Counted(dict):
        def values(self):
            raise AssertionError("all batches are looked at")

    kept._batches = Counted()
    for row in range(120):
        kept.keep(View(), row, torch.ones(1))
    assert kept.num_bytes == 400
    assert [kept.has(View(), row) for row in (0, 99, 100)] == [True, True, False]


def test_a_process_keeps_the_squares_of_one_key(reads):
    dataset = cached_dataset()
    for sizes in pairwise((10, 12, 10)):
        for size in sizes:
            reads.clear()
            predicted(dataset, how=preprocess(size=size))
    assert len(reads) == len(dataset.val)  # those of 10 px were dropped
    key = key_of(dataset.store, indices=dataset.val.indices)
    assert kept_squares(key).num_bytes == len(dataset.val) * 3 * SIZE * SIZE * 4


class _Spoils(nn.Module):
    """A network that changes its input in place."""

    def __init__(self):
        super().__init__()
        self.inner = small_network()

    def forward(self, images):
        return self.inner(images.mul_(0.5))


def test_a_network_that_changes_its_input_does_not_change_what_is_kept():
    spoils, dataset = _Spoils(), cached_dataset()
    learner = Learner(spoils, [], 3, preprocess(size=SIZE), torch.device("cpu"), "fp32")
    config = small_config(eval=Eval(batch_size=4))
    first, *others = (evaluate(learner, dataset, config, with_tta=False) for _ in range(3))
    for other in others:
        assert_equal(other, first)


def test_processes_keep_the_batches_of_their_own(reads):
    dataset, config = cached_dataset(), small_config(eval=Eval(batch_size=4))
    whole = predicted(dataset, most_kept=0)

    class Alone(Processes):
        """A process of two that does not wait for the other one."""

        def sum(self, tensor):
            return tensor

        def any(self, flag):
            return flag

    for _ in range(2):
        parts = []
        for rank in range(2):
            learner = small_learner(
                small_network(), preprocess=preprocess(size=SIZE), processes=Alone(rank, 2)
            )
            parts.append(evaluate(learner, dataset, config, with_tta=False).plain)
        assert (parts[0] + parts[1]).tobytes() == whole.plain.tobytes()
    assert len(reads) == 2 * len(dataset.val)


def test_threads_with_two_sizes_at_once_do_not_disturb_each_other():
    dataset, network = cached_dataset(), small_network()

    def of_size(size, most_kept=MOST_BYTES):
        how = preprocess(size=size)
        return predicted(dataset, most_kept=most_kept, how=how, model=network)

    expected = {size: of_size(size, most_kept=0) for size in (10, 12)}
    with ThreadPool(4) as pool:
        found = pool.map(of_size, [10, 12] * 6)
    for size, one in zip([10, 12] * 6, found, strict=True):
        assert_equal(one, expected[size])


@pytest.mark.whole
def test_workers_that_read_ahead_leave_out_what_is_kept():
    dataset = cached_dataset()
    resized = predicted(dataset, most_kept=0)
    config = small_config(eval=Eval(batch_size=4), tta=Tta(flip=True))
    config = replace(config, data=replace(config.data, num_workers=2))
    learner = small_learner(small_network(), preprocess=preprocess(size=SIZE))
    for _ in range(2):
        found = evaluate(learner, dataset, config, with_tta=True)
        assert found.plain.tobytes() == resized.plain.tobytes()


def test_the_plain_view_is_the_one_that_is_kept():
    dataset = cached_dataset()
    predicted(dataset, tta=Tta(scales=(0.5, 1.0), crops=3))
    key = key_of(dataset.store, indices=dataset.val.indices)
    kept = kept_squares(key)
    assert kept.has(plain_view(), 0)
    assert kept.has(FLIP, 4)
    assert not kept.has(View(scale=0.5), 0)
    assert not kept.has(View(x=0.0), 0)
