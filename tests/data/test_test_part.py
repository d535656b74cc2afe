"""A test part of the data: apart from all that training reads, and read on request alone."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pictures import encoded, random_pixels
from PIL import Image

from runner.config.schema import Data
from runner.data.dataset import load_dataset
from runner.data.sources import list_images
from runner.data.statistics import training_statistics
from runner.errors import DataError

PARTS = ("train", "val", "test")


@pytest.fixture
def load(tmp_path):
    """A function that loads data of a name, a root and keys."""

    def load_it(root, name="folder", *, with_test=True, **keys):
        data = Data(name=name, root=str(root), **keys)
        return load_dataset(data, 8, tmp_path / "cache", lambda *_: None, with_test=with_test)

    return load_it


@pytest.fixture
def root(make_images, tmp_path):
    folders = {f"{part}/{name}": 3 for part in PARTS for name in ("cat", "dog")}
    return make_images(tmp_path / "set", folders)


def names(dataset):
    return {name for _, name, *_ in dataset.manifest}


@pytest.mark.parametrize("has_val", [True, False])
def test_all_but_the_test_part_is_as_if_there_were_none(has_val, root, load, make_images, tmp_path):
    apart = tmp_path / "apart"
    if not has_val:
        (root / "val").rename(tmp_path / "val")
    with_part, asked = load(root, with_test=False), load(root)
    (root / "test").rename(apart)
    alone = load(root if has_val else root / "train")

    for dataset in (with_part, asked):
        assert dataset.fingerprint == alone.fingerprint
        assert dataset.presize == alone.presize
        np.testing.assert_array_equal(dataset.train.indices, alone.train.indices)
        np.testing.assert_array_equal(dataset.val.indices, alone.val.indices)
        assert not any(name.startswith("test/") for name in names(dataset))
        assert training_statistics(dataset, tmp_path / "a") == training_statistics(
            alone, tmp_path / "b"
        )
    assert (with_part.test, with_part.test_store, with_part.test_fingerprint) == (None, None, None)
    assert len(asked.test) == 6
    assert {row[:3] for row in asked.test_manifest} == {
        ("test", f"test/{name}/{n}.png", name) for name in ("cat", "dog") for n in range(3)
    }


def test_the_data_set_on_its_test_part(root, load):
    dataset = load(root)
    on_test = dataset.on_test()

    assert on_test.fingerprint == dataset.fingerprint != dataset.test_fingerprint
    assert on_test.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [row[1] for row in on_test.manifest] == [row[1] for row in dataset.test_manifest]
    for index, (_, name, *_) in zip(on_test.val.indices, on_test.manifest, strict=True):
        pixels = np.asarray(Image.open(root / name))
        np.testing.assert_array_equal(on_test.store.rectangle(int(index)), pixels)
    before = dataset.test_fingerprint
    (root / "test" / "cat" / "1.png").write_bytes(encoded(random_pixels(999)))
    changed = load(root)
    assert changed.test_fingerprint != before
    assert changed.fingerprint == dataset.fingerprint


def test_test_images_that_are_in_training_or_validation_are_named(root, load):
    for source, target in (("train/cat/0", "test/dog/0"), ("val/dog/1", "test/cat/2")):
        (root / f"{target}.png").write_bytes((root / f"{source}.png").read_bytes())

    dataset = load(root)
    assert dataset.leaked == ()
    assert (
        dataset.test_leaked
        == dataset.on_test().leaked
        == (
            ("val/dog/1.png", "test/cat/2.png"),
            ("train/cat/0.png", "test/dog/0.png"),
        )
    )
    load(root, with_test=False, on_leak="error")
    with pytest.raises(DataError, match="2 of 6 test images are in training or validation too"):
        load(root, on_leak="error")


def test_broken_test_images_stop_who_reads_them_and_nobody_else(root, load):
    (root / "test" / "cat" / "0.png").write_bytes(b"")

    assert load(root, with_test=False).skipped == ()
    with pytest.raises(DataError, match="1 broken image"):
        load(root)
    found = load(root, on_corrupt="skip")
    assert len(found.test) == 5
    assert [name for name, _ in found.skipped] == ["test/cat/0.png"]


rows = st.lists(
    st.tuples(st.sampled_from(["train", "val", "test"]), st.sampled_from("ab"), st.integers(0, 3)),
    max_size=12,
)


@pytest.fixture
def sixteen(make_images, tmp_path):
    return make_images(tmp_path / "set", {"images": 16})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows)
def test_no_row_of_a_test_part_is_in_training_or_validation(sixteen, extra):
    """Whatever the parts of a table are, with and without a validation part, and with groups."""
    every = [*(("train", label, 10 + n) for label in "ab" for n in range(2)), *extra]
    lines = [f"images/{n}.png,{label},{part},{g}{part}" for n, (part, label, g) in enumerate(every)]
    parts = [part for part, *_ in every]
    assume({*parts} != {"train"})
    table = sixteen / "labels.csv"
    table.write_text("\n".join(["path,label,split,group", *lines]) + "\n")
    data = Data(name="table", root=str(table), split_column="split", group_column="group")
    listing, test = list_images(data, sixteen.parent / "cache", 0, lambda *_: None).parts()

    apart = {f"images/{n}.png" for n, part in enumerate(parts) if part == "test"}
    used = [n for n, part in enumerate(parts) if part != "test"]
    assert (test is None) == (not apart)
    assert test is None or {*test.images.paths} == apart
    assert listing.images.paths == tuple(f"images/{n}.png" for n in used)
    if "val" in parts:
        assert listing.is_val.tolist() == [parts[n] == "val" for n in used]
    else:
        assert 0 < listing.is_val.sum() < len(used)
