import csv
import gzip
import hashlib
import io
import os
from dataclasses import replace

import numpy as np
import pytest
from pictures import encoded, random_pixels

from runner.config.schema import Data
from runner.data import dataset as dataset_module
from runner.data.dataset import load_dataset
from runner.data.store import CachedStore, StreamedStore
from runner.errors import DataError

FOLDERS = {"train/cat": 3, "train/dog": 2, "val/cat": 2, "val/dog": 1}


@pytest.fixture
def load(tmp_path):
    """A function that loads an image folder with its cache in the test's folder."""

    def load_it(root, *, size=8, progress=lambda *_: None, **keys):
        data = Data(name=keys.pop("name", "folder"), root=root and str(root), **keys)
        return load_dataset(data, size, tmp_path / "cache", progress)

    return load_it


@pytest.fixture
def root(make_images, tmp_path):
    return make_images(tmp_path / "pets", FOLDERS)


def test_a_folder_end_to_end(root, load, tmp_path):
    told = []
    dataset = load(root, progress=lambda *what: told.append(what))

    assert (dataset.name, dataset.classes) == ("folder", ("cat", "dog"))
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.val.labels.tolist() == [0, 0, 1]
    assert (len(dataset.train), len(dataset.val)) == (5, 3)
    together = np.concatenate([dataset.train.indices, dataset.val.indices])
    assert sorted(together) == list(range(8))
    assert (dataset.skipped, dataset.leaked, dataset.converted) == ((), (), {})
    assert {what for what, _, _ in told} == {"reading images", "reading headers", "decoding images"}
    for index, (_, name, _, _) in zip(together, dataset.manifest, strict=True):
        content = (root / name).read_bytes()
        assert dataset.store.rectangle(int(index)).shape == (12, 16, 3)
        assert hashlib.sha256(content).hexdigest() == dataset.manifest[index][3]


def test_the_embedded_data_set(load):
    dataset = load(None, name="fashion", size=28)

    assert (len(dataset.train), len(dataset.val)) == (6000, 1500)
    assert dataset.presize == 28
    assert dataset.converted == {"L": 7500}
    assert dataset.leaked == ()


# The fingerprint and the manifest -----------------------------------------------------------------


def test_the_fingerprint_outlives_a_move(root, load, tmp_path):
    before = load(root).fingerprint
    moved = root.rename(tmp_path / "moved to another, żółw")

    assert load(moved).fingerprint == before
    assert load(moved, presize=10).fingerprint == before  # of the images, not of the cache
    assert load(moved, cache_gb=0.0).fingerprint == before


def another_pixel(root):
    path = root / "train" / "cat" / "1.png"
    path.write_bytes(encoded(random_pixels(1000)))


def another_byte(root):
    path = root / "val" / "cat" / "1.png"
    path.write_bytes(path.read_bytes() + b"\0")


def another_label(root):
    (root / "train" / "cat" / "2.png").rename(root / "train" / "dog" / "2.png")


def another_split(root):
    (root / "train" / "cat" / "2.png").rename(root / "val" / "cat" / "2.png")


def another_class_name(root):
    for split in ("train", "val"):
        (root / split / "dog").rename(root / split / "hound")


def one_image_less(root):
    (root / "train" / "cat" / "2.png").unlink()


@pytest.mark.parametrize(
    "change",
    [
        another_pixel,
        another_byte,
        another_label,
        another_split,
        another_class_name,
        one_image_less,
    ],
)
def test_the_fingerprint_changes_with(change, root, load):
    before = load(root).fingerprint
    assert load(root).fingerprint == before

    change(root)

    assert load(root).fingerprint != before


def test_noisy_labels_change_the_fingerprint(make_images, load, tmp_path):
    wnids = ("n01440764", "n02102040")
    root = make_images(tmp_path / "set", {f"{s}/{w}": 2 for s in ("train", "val") for w in wnids})
    rows = "".join(f"train/{wnid}/{n}.png,{wnids[n]}\n" for wnid in wnids for n in range(2))
    (root / "noisy_imagenette.csv").write_text("path,noisy_labels_50\n" + rows)

    clean = load(root, name="imagenette")
    noisy = load(root, name="imagenette", label_noise=50)

    assert noisy.train.labels.tolist() == [0, 1, 0, 1]
    assert clean.train.labels.tolist() == [0, 0, 1, 1]
    assert noisy.fingerprint != clean.fingerprint
    assert noisy.val.labels.tolist() == clean.val.labels.tolist()


def test_the_manifest_is_a_table_of_every_image(root, load, tmp_path):
    dataset = load(root)

    first = dataset.manifest_csv
    second = load(root).manifest_csv

    assert first == second
    rows = list(csv.reader(io.StringIO(gzip.decompress(first).decode())))
    assert rows[0] == ["split", "image", "label", "sha256"]
    assert len(rows) == 9
    content = (root / "train" / "cat" / "0.png").read_bytes()
    assert rows[1] == ["train", "train/cat/0.png", "cat", hashlib.sha256(content).hexdigest()]
    assert [row[0] for row in rows[1:]] == ["train"] * 5 + ["val"] * 3
    another_byte(root)
    assert load(root).manifest_csv != first


def test_groups_of_images_come_from_the_source(root, load, monkeypatch):
    plain = load(root)
    assert plain.train.groups is plain.val.groups is None
    original = dataset_module.list_images

    def named(*arguments):
        listing = original(*arguments)
        return replace(listing, groups=np.arange(10, 10 + len(listing.labels)) // 2)

    monkeypatch.setattr(dataset_module, "list_images", named)
    (root / "train" / "cat" / "1.png").write_bytes(b"")
    found = load(root, on_corrupt="skip")

    assert len(found.val.groups) == len(found.val)
    for split in (found.train, found.val):
        assert split.groups.tolist() == ((split.indices + 10) // 2).tolist()
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(found.manifest_csv).decode())))
    expected = [*found.train.groups.tolist(), *found.val.groups.tolist()]
    assert [int(row["group"]) for row in rows] == expected
    assert [row["sha256"] for row in rows] == [row[3] for row in found.manifest]


def test_the_split_does_not_depend_on_the_seed_of_a_run_or_on_the_size(make_images, load, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 6, "dog": 6})

    assert load(root, size=8).manifest == load(root, size=9, presize=30).manifest
    assert load(root, val_fraction=0.5).manifest != load(root).manifest


def test_names_that_are_not_unicode(make_images, load, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    root = make_images(tmp_path / "pets", {name: 3, "tea": 3})

    dataset = load(root)

    assert len(dataset.classes) == 2
    manifest = gzip.decompress(dataset.manifest_csv).decode()
    assert "caf\\udce9/0.png" in manifest


# Broken images ----------------------------------------------------------------------------------


def test_every_broken_image_is_named(root, load):
    (root / "train" / "cat" / "1.png").write_bytes(b"")
    (root / "val" / "dog" / "x.jpg").write_bytes(b"<html>")
    whole = (root / "val" / "cat" / "0.png").read_bytes()
    (root / "val" / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DataError) as caught:
        load(root)

    assert caught.value.exit_code == 3
    message = caught.value.what
    assert message.startswith("3 broken images:")
    assert "train/cat/1.png: is empty" in message
    assert "val/cat/0.png: image file is truncated" in message
    assert "val/dog/x.jpg: is not an image" in message
    assert "data.on_corrupt=skip" in caught.value.fix
    assert str(root) in caught.value.where


def test_what_cannot_be_opened_is_named(make_images, unprivileged):
    root = make_images(unprivileged / "pets", FOLDERS)
    (root / "train" / "cat" / "gone.png").symlink_to(unprivileged / "nowhere")
    (root / "val" / "dog" / "0.png").chmod(0)

    with pytest.raises(DataError, match="2 broken images") as caught:
        load_dataset(Data(name="folder", root=str(root)), 8, unprivileged / "cache", lambda *_: 0)

    assert "train/cat/gone.png: No such file" in caught.value.what
    assert "val/dog/0.png: Permission denied" in caught.value.what


def test_ten_broken_images_are_named_and_the_others_counted(root, load):
    for number in range(13):
        (root / "train" / "cat" / f"bad{number:02}.png").write_bytes(b"")

    with pytest.raises(DataError) as caught:
        load(root)

    lines = caught.value.what.splitlines()
    assert lines[0] == "13 broken images:"
    assert len(lines) == 12
    assert "bad09.png" in lines[10]
    assert lines[11].strip() == "and 3 more"


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_skipped_images_are_left_out_named_and_never_replaced(root, load, cache_gb):
    whole = load(root)
    (root / "train" / "cat" / "1.png").write_bytes(b"")
    (root / "val" / "cat" / "0.png").write_bytes(b"no image")

    dataset = load(root, on_corrupt="skip", cache_gb=cache_gb)

    assert dataset.skipped == (
        ("train/cat/1.png", "is empty"),
        ("val/cat/0.png", "is not an image"),
    )
    assert (len(dataset.train), len(dataset.val)) == (4, 2)
    assert isinstance(dataset.store, CachedStore if cache_gb else StreamedStore)
    lost = {"train/cat/1.png", "val/cat/0.png"}
    assert dataset.manifest == tuple(row for row in whole.manifest if row[1] not in lost)
    assert 1 not in dataset.train.indices
    assert dataset.fingerprint != whole.fingerprint
    for index in (*dataset.train.indices, *dataset.val.indices):
        np.testing.assert_array_equal(
            dataset.store.rectangle(int(index)), whole.store.rectangle(int(index))
        )


def test_a_drawn_split_is_the_same_with_and_without_a_broken_image(make_images, load, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    whole = {row[1]: row[0] for row in load(root).manifest}
    (root / "cat" / "3.png").write_bytes(b"")

    rest = {row[1]: row[0] for row in load(root, on_corrupt="skip").manifest}

    assert rest == {name: split for name, split in whole.items() if name != "cat/3.png"}


def test_a_class_whose_training_images_are_all_broken(root, load):
    for number in range(2):
        (root / "train" / "dog" / f"{number}.png").write_bytes(b"")

    with pytest.raises(DataError, match="all training images of dog are broken"):
        load(root, on_corrupt="skip")


def test_a_split_whose_images_are_all_broken(root, load):
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"")

    with pytest.raises(DataError, match="no validation images"):
        load(root, on_corrupt="skip")


def test_one_class_is_nothing_to_tell_apart(make_images, load, tmp_path):
    with pytest.raises(DataError, match="only one class, cat"):
        load(make_images(tmp_path / "pets", {"cat": 4}))


def test_converted_images_and_ignored_files_are_counted(root, load):
    (root / "train" / "cat" / "gray.png").write_bytes(encoded(random_pixels(1)[..., 0]))
    (root / "train" / "cat" / "clear.png").write_bytes(encoded(np.full((9, 9, 4), 7, np.uint8)))
    (root / "train" / ".DS_Store").write_bytes(b"")

    dataset = load(root)

    assert dataset.converted == {"L": 1, "RGBA": 1}
    assert dataset.num_ignored == 1


# Leaks ------------------------------------------------------------------------------------------


def test_an_image_in_training_and_validation_is_named(root, load):
    content = (root / "train" / "cat" / "0.png").read_bytes()
    (root / "val" / "dog" / "copy.png").write_bytes(content)
    (root / "train" / "cat" / "twin.png").write_bytes(content)

    dataset = load(root)

    # An image counts once, however often it is in training.
    assert dataset.leaked == (("train/cat/0.png", "val/dog/copy.png"),)
    with pytest.raises(DataError, match=r"train/cat/0\.png = val/dog/copy\.png") as caught:
        load(root, on_leak="error")
    assert caught.value.where == "data.on_leak=error"
    assert caught.value.exit_code == 3


def test_equal_images_on_one_side_and_broken_ones_are_no_leak(root, load):
    content = (root / "train" / "cat" / "0.png").read_bytes()
    (root / "train" / "dog" / "copy.png").write_bytes(content)
    (root / "train" / "cat" / "empty.png").write_bytes(b"")
    (root / "val" / "cat" / "empty.png").write_bytes(b"")

    assert load(root, on_corrupt="skip", on_leak="error").leaked == ()


# Presize ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "presize", "expected"),
    [
        (4, None, 8),  # twice the size
        (8, None, 12),  # images of 12 px are not enlarged
        (28, None, 12),
        (28, 40, 40),  # unless asked for
        (28, 5, 5),
    ],
)
def test_the_presize(size, presize, expected, root, load):
    dataset = load(root, size=size, presize=presize)

    assert dataset.presize == expected
    assert dataset.store.rectangle(0).shape[0] == expected


# Stored or streamed -----------------------------------------------------------------------------


def test_a_set_larger_than_the_cache_is_streamed(make_images, load, tmp_path, monkeypatch):
    root = make_images(tmp_path / "pets", {"cat": 4, "dog": 4})
    shape = load(root).store.rectangle(0).shape
    needed = 8 * shape[0] * shape[1] * 3

    stored = load(root, cache_gb=1.01 * needed / 1e9)
    streamed = load(root, cache_gb=0.99 * needed / 1e9)

    assert (stored.is_streamed, streamed.is_streamed) == (False, True)
    assert (stored.num_workers(None), stored.num_workers(3)) == (0, 3)
    assert streamed.num_workers(None) >= 1
    assert streamed.num_workers(0) == 0
    monkeypatch.setattr("sys.platform", "darwin")  # where forked processes may crash
    assert (streamed.num_workers(None), streamed.num_workers(2)) == (0, 2)
    assert np.array_equal(stored.store.rectangle(5), streamed.store.rectangle(5))


def test_folders_named_like_splits_are_not_taken_for_classes(make_images, load, tmp_path):
    root = make_images(tmp_path / "pets", {"Train": 3, "Val": 3})

    with pytest.raises(DataError, match="look like splits"):
        load(root)


def test_no_cell_of_the_manifest_is_a_formula(make_images, load, tmp_path):
    root = make_images(tmp_path / "pets", {"=1+1": 3, "dog": 3})

    rows = list(csv.reader(io.StringIO(gzip.decompress(load(root).manifest_csv).decode())))

    assert {row[2] for row in rows[1:]} == {"'=1+1", "dog"}
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
