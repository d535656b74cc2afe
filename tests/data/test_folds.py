import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config import checks
from runner.config.schema import Data
from runner.data.dataset import load_dataset
from runner.data.folds import drawn_split, stratified_folds
from runner.errors import ConfigError, DataError
from runner.randomness import generator


def load(root, *, cache, name="folder", **keys):
    data = Data(name=name, root=str(root), **keys)
    return load_dataset(data, 8, cache, lambda *_: None)


def sizes(folds, labels, num_folds):
    """(folds, classes): the number of images of each class in each fold."""
    found = np.zeros((num_folds, labels.max() + 1), int)
    np.add.at(found, (folds, labels), 1)
    return found


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(2, 9), st.integers(0, 3))
def test_folds_of_a_class_and_of_all_images_differ_by_at_most_one(labels, num_folds, seed):
    labels = np.array(labels)

    folds = stratified_folds(labels, num_folds, seed)

    assert folds.dtype == np.int64
    assert folds.shape == labels.shape
    assert set(folds.tolist()) <= set(range(num_folds))
    assert np.ptp(sizes(folds, labels, num_folds), axis=0).max() <= 1
    assert np.ptp(np.bincount(folds, minlength=num_folds)) <= 1
    assert np.array_equal(folds, stratified_folds(labels, num_folds, seed))
    alone = np.arange(len(labels))[::-1]
    assert np.array_equal(folds, stratified_folds(labels, num_folds, seed, groups=alone))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 9).map(lambda group: 7 * group)),
        min_size=1, max_size=60,
    ),
    st.integers(2, 5),
)  # fmt: skip
def test_images_of_a_group_are_in_one_fold(images, num_folds):
    labels, groups = np.array(images).T

    folds = stratified_folds(labels, num_folds, 0, groups)

    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert np.array_equal(folds, stratified_folds(labels, num_folds, 0, groups))


def test_folds_of_groups_are_balanced_and_drawn_by_the_seed():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 900), rng.integers(0, 90, 900)

    folds = stratified_folds(labels, 5, 0, groups)

    found = sizes(folds, labels, 5)
    assert (np.abs(found / found.sum(axis=0) - 0.2) < 0.03).all()
    by_number = sizes(groups % 5, labels, 5)  # a control that takes no account of classes
    assert not (np.abs(by_number / by_number.sum(axis=0) - 0.2) < 0.03).all()
    assert not np.array_equal(folds, stratified_folds(labels, 5, 1, groups))
    plain = stratified_folds(labels, 5, 0)
    assert not np.array_equal(plain, stratified_folds(labels, 5, 1))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=80),
    st.integers(2, 5),
)
def test_folds_of_groups_are_those_of_a_table_of_groups_and_classes(images, num_folds):
    labels, groups = np.array(images).T
    _, number_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((number_of.max() + 1, labels.max() + 1))
    np.add.at(counts, (number_of, labels), 1)
    parts = counts / np.maximum(counts.sum(axis=0), 1)
    drawn = generator(0, "folds").permutation(len(parts))
    held, num_images, fold_of = np.zeros((num_folds, len(parts[0]))), np.zeros(num_folds), {}
    for group in sorted(drawn, key=lambda group: -parts[group].max()):
        growth = held @ parts[group]
        alike = [fold for fold in range(num_folds) if growth[fold] <= growth.min() + 1e-12]
        fold_of[group] = min(alike, key=lambda fold: num_images[fold])
        held[fold_of[group]] += parts[group]
        num_images[fold_of[group]] += counts[group].sum()

    folds = stratified_folds(labels, num_folds, 0, groups)

    if len(counts) < len(labels):  # else every image is a group of its own
        assert folds.tolist() == [fold_of[number] for number in number_of]


def test_memory_of_folds_does_not_grow_as_groups_times_classes():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 1000, 20_000), rng.integers(0, 7000, 20_000)
    tracemalloc.start()

    stratified_folds(labels, 5, 0, groups)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 7000 * 1000  # bytes: an eighth of a table of groups and classes


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_groups_of_one_class_each_leave_no_fold_empty(num_folds):
    groups = np.arange(300) // 10  # thirty patients, three of each of ten classes
    labels = groups % 10

    folds = stratified_folds(labels, num_folds, 0, groups)

    found = np.bincount(folds, minlength=num_folds)
    assert found.max() - found.min() <= 20
    assert (sizes(folds, labels, num_folds).max(axis=0) < 30).all()


def test_folds_validate_every_image_once_and_share_a_fingerprint(make_images, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 5, "dog": 4, "owl": 2})

    found = [load(root, cache=tmp_path / "cache", num_folds=3, fold=fold) for fold in range(3)]

    names = [row[1] for one in found for row in one.manifest if row[0] == "val"]
    assert sorted(names) == sorted(row[1] for row in found[0].manifest)
    assert len(set(names)) == 11
    places = np.concatenate([one.val_places for one in found])
    assert sorted(places) == [*range(11)]
    by_name = sorted(names)  # the order of a folder
    assert [by_name[place] for place in places] == names
    assert {len(one.val) for one in found} == {3, 4}
    assert len({one.fingerprint for one in found}) == 3
    assert len({one.pool_fingerprint for one in found}) == 1
    assert found[0].notes == ("some folds have no validation images of owl",)
    other = load(root, cache=tmp_path / "cache", num_folds=2)
    assert other.pool_fingerprint not in (None, found[0].pool_fingerprint)
    plain = load(root, cache=tmp_path / "cache")
    assert (plain.folds, plain.pool_fingerprint) == (None, None)
    (root / "cat" / "0.png").write_bytes((root / "dog" / "0.png").read_bytes())
    changed = load(root, cache=tmp_path / "cache", num_folds=3)
    assert changed.pool_fingerprint != found[0].pool_fingerprint


def test_a_table_has_folds_too(make_images, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 4, "dog": 4})
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    table = root / "all.csv"
    table.write_text("\n".join(["path,label", *lines]))

    found = [
        load(table, cache=tmp_path / "cache", name="table", num_folds=4, fold=fold)
        for fold in range(4)
    ]

    assert sorted(np.concatenate([one.val_places for one in found])) == [*range(8)]


@pytest.mark.parametrize(
    ("folders", "num_folds", "what"),
    [
        ({"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2}, 2, "split of its own .the folder v"),
        ({"a/train": 3, "b/train": 3, "a/val": 2, "b/val": 2}, 2, "folders CLASS/val"),
        ({"a": 3, "b": 1}, 2, "b: one image only"),
        ({"a": 3, "b": 3}, 7, "1 of 7 folds would have no images: there are 6 images"),
    ],
)
def test_data_that_has_no_such_folds_is_refused(make_images, tmp_path, folders, num_folds, what):
    root = make_images(tmp_path / "pets", folders)

    with pytest.raises(DataError, match=what) as caught:
        load(root, cache=tmp_path / "cache", num_folds=num_folds)

    assert f"data.num_folds={num_folds}" in caught.value.where
    assert caught.value.fix


@pytest.mark.parametrize(
    ("num_groups", "num_folds", "fix"),
    [
        (1, 2, "images of more groups, or no folds"),
        (3, 5, "data.num_folds=3, or images of more groups"),
    ],
)
def test_the_fix_of_empty_folds_is_fewer_folds_if_any(num_groups, num_folds, fix):
    labels = np.arange(12) % 2
    groups = np.arange(12) // 2 % num_groups
    data = Data(name="folder", root="pets", num_folds=num_folds)

    with pytest.raises(DataError, match="would have no images") as caught:
        drawn_split(data, ("a", "b"), labels, 0, groups)

    assert caught.value.fix == fix


def test_a_table_with_a_split_of_its_own_is_refused(make_images, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 2, "dog": 2})
    table = root / "all.csv"
    rows = [f"{name}/{i}.png,{name},{'train' if i else 'val'}" for name in ("cat", "dog")
            for i in range(2)]  # fmt: skip
    table.write_text("\n".join(["path,label,part", *rows]))

    with pytest.raises(DataError, match=r"data\.split_column=part"):
        load(table, cache=tmp_path / "c", name="table", num_folds=2, split_column="part")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"name": "folder", "num_folds": 5, "fold": 5}, "5 folds are numbered from 0 to 4"),
        ({"name": "fashion", "num_folds": 5}, "data=fashion has a split of its own"),
        ({"name": "imagenette", "num_folds": 5}, "data=imagenette has a split of its own"),
        ({"name": "folder", "num_folds": 1}, "must be ≥ 2"),
        ({"name": "folder", "num_folds": 10**12}, "≤ 1000"),
        ({"name": "folder", "num_folds": 2, "fold": -1}, "must be ≥ 0"),
    ],
)
def test_contradictions_are_refused(data, what):
    root = "pets" if data["name"] == "folder" else None

    with pytest.raises(ConfigError, match=what):
        checks.from_dict({"data": {"root": root, **data}})


def test_keys_without_effect_are_reported():
    def notes(**data):
        return checks.without_effect(
            checks.from_dict({"data": {"name": "folder", "root": "x", **data}})
        )

    assert any("data.fold" in note for note in notes(fold=2))
    assert any("data.val_fraction" in note for note in notes(num_folds=2, val_fraction=0.3))
    assert not any("fold" in note for note in notes(num_folds=2, fold=1))
