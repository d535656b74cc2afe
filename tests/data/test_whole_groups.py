"""Groups of images, of columns and patterns: whole in every split, or refused."""

import shlex
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config.schema import Data
from runner.data.dataset import load_dataset
from runner.data.grouping import groups_by_pattern
from runner.data.listing import stratified_split
from runner.errors import ConfigError, DataError
from runner.records.identity import identified

images = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=2, max_size=40)


def arrays(pairs):
    labels, groups = np.array(pairs, np.int64).T
    return labels, groups


def has_all_sides(labels, is_val):
    """Whether each class of several images is on both sides, and one of a single in training."""
    counts = np.bincount(labels)
    held = np.bincount(labels[is_val], minlength=len(counts))
    several, single = counts > 1, counts == 1
    return bool(((held > 0) & (held < counts))[several].all() and (held[single] == 0).all())


@given(images, st.floats(0.05, 0.95), st.integers(0, 3))
def test_no_group_is_on_both_sides_and_each_class_is_wherever_that_is_possible(
    pairs, fraction, seed
):
    labels, groups = arrays(pairs)
    is_val = stratified_split(labels, fraction, seed, groups)

    assert not {*groups[is_val]} & {*groups[~is_val]}
    np.testing.assert_array_equal(is_val, stratified_split(labels, fraction, seed, groups))
    names = np.unique(groups)
    choices = (
        np.isin(groups, names[np.array(choice)])
        for choice in product([0, 1], repeat=len(names))
        for choice in [np.array(choice, bool)]
    )
    if any(has_all_sides(labels, choice) for choice in choices):
        assert has_all_sides(labels, is_val)


@given(st.lists(st.integers(1, 9), min_size=4, max_size=60), st.floats(0.1, 0.5), st.integers(0, 9))
def test_the_part_held_out_is_within_a_group_of_the_fraction(sizes, fraction, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % 2  # each group has one class
    is_val = stratified_split(labels, fraction, seed, groups)

    for label in range(2):
        of_class = np.array(sizes)[label::2]
        wanted = min(max(round(of_class.sum() * fraction), 1), of_class.sum() - 1)
        assert abs(is_val[labels == label].sum() - wanted) <= of_class.max()


def test_groups_of_one_image_are_split_as_exactly_as_images():
    labels = np.arange(1000) % 7
    alone = stratified_split(labels, 0.2, 0)
    grouped = stratified_split(labels, 0.2, 0, np.arange(1000))

    for label in range(7):
        assert alone[labels == label].sum() == grouped[labels == label].sum()


def test_seeds_draw_other_groups_and_each_group_is_held_out_at_some_seed():
    groups = np.repeat(np.arange(20), 5)
    labels = groups % 4
    drawn = [tuple(np.unique(groups[stratified_split(labels, 0.2, s, groups)])) for s in range(60)]

    assert len({*drawn}) > 20
    assert {group for groups in drawn for group in groups} == {*range(20)}


# Groups of columns and patterns -----------------------------------------------------------------

NAMES = [f"{patient}_{n}.png" for patient in ("ann", "bob", "cid", "dot", "eve") for n in range(2)]
PATTERN = "([a-z]+)_[0-9]+[.]"


@pytest.fixture
def load(tmp_path):
    """A function that loads the data of the test's folder, by the keys of ``data``."""

    def load_it(root, **keys):
        data = Data(name=keys.pop("name", "folder"), root=str(root), **keys)
        return load_dataset(data, 8, tmp_path / "cache", lambda *_: None, with_test=True)

    return load_it


@pytest.fixture
def root(make_images, tmp_path):
    return make_images(tmp_path / "scans", {"ill": NAMES, "well": NAMES})


@pytest.fixture
def table(root):
    """A table of the images of ``root``, with their patients."""
    rows = [f"{label}/{name},{label},{name[:3]}" for label in ("ill", "well") for name in NAMES]
    path = root / "labels.csv"
    path.write_text("\n".join(["path,label,patient", *rows]) + "\n")
    return path


def patients(dataset, part):
    return {name.split("/")[1][:3] for split, name, *_ in dataset.manifest if split == part}


def test_a_pattern_and_a_column_give_the_same_groups_split_and_fingerprint(root, table, load):
    by_pattern = load(root, group_pattern=PATTERN)
    by_column = load(table, name="table", group_column="patient")
    alone = load(root)

    assert not patients(by_pattern, "train") & patients(by_pattern, "val")
    assert (len(by_pattern.train), len(by_pattern.val)) == (16, 4)
    assert len({*by_pattern.val.groups.tolist()}) == 1
    assert by_pattern.fingerprint == by_column.fingerprint != alone.fingerprint
    assert by_pattern.notes[0].startswith("the 20 images are of 5 groups, which the split does not")
    assert alone.train.groups is None
    assert load(root, group_pattern=r"[a-z]+(?=_)").fingerprint == by_pattern.fingerprint
    # Other groups that the same split does not part are other groups: verdicts differ.
    (held,) = patients(by_pattern, "val")
    coarse = load(root, group_pattern=f"{held}|_")
    assert coarse.manifest == by_pattern.manifest
    assert coarse.fingerprint != by_pattern.fingerprint


def test_what_spells_equal_groups_is_no_part_of_the_identity(root, load, composed):
    def of(*words):
        config = composed("data=folder", f"data.root={root}", "resize.size=8", *words)
        return identified(config, load_dataset_of(config), None, None)[1]["identity"]

    def load_dataset_of(config):
        return load(root, group_pattern=config.data.group_pattern)

    first = of(f"data.group_pattern='{PATTERN}'")
    assert of("data.group_pattern='[a-z]+(?=_)'") == first
    assert of("data.group_pattern='^[a-z]+/(.)'") == first
    assert of() != first


def test_groups_on_both_sides_of_a_split_of_the_data_are_named(make_images, load, tmp_path):
    root = make_images(
        tmp_path / "set",
        {"train/a": ["ann1.png", "bob1.png"], "train/b": ["ann2.png"], "val/a": ["ann3.png"],
         "val/b": ["cid1.png"], "test/a": ["bob2.png"]},
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        load(root, group_pattern="(...)[0-9]")

    assert caught.value.what.splitlines() == [
        "2 groups have images in more than one part of the split of the data:",
        "  ann: train/b/ann2.png in training, val/a/ann3.png in validation",
        "  bob: train/a/bob1.png in training, test/a/bob2.png in test",
    ]
    assert "data.group_pattern=(...)[0-9]" in caught.value.where
    assert len({*load(root, group_pattern="/(.*)").train.groups.tolist()}) == 3


def test_a_path_without_a_group_is_named(root, load):
    (root / "ill" / "7.png").write_bytes((root / "ill" / NAMES[0]).read_bytes())
    with pytest.raises(DataError, match="1 of 21 images have no group") as caught:
        load(root, group_pattern=PATTERN)
    assert "  ill/7.png" in caught.value.what
    with pytest.raises(DataError, match="21 of 21 images have no group"):
        load(root, group_pattern="x*")  # an empty match is none


def test_a_class_in_one_group_is_refused(root, load):
    with pytest.raises(DataError, match="no split with whole groups") as caught:
        load(root, group_pattern="ill|well")
    assert "  all 10 images of ill are in one group, ill" in caught.value.what
    assert caught.value.fix


def test_an_empty_group_is_an_empty_cell(table, load):
    table.write_text(table.read_text().replace("ill/ann_1.png,ill,ann", "ill/ann_1.png,ill,"))
    with pytest.raises(DataError, match="in the column patient") as caught:
        load(table, name="table", group_column="patient")
    assert "line 3" in caught.value.where


WRONG = {
    "no expression": (["data=folder", "data.group_pattern='a(b'"], "at position 1"),
    "a column of a folder": (["data=folder", "data.group_column=patient"], "data.group_pattern"),
    "a column of a published set": (["data=cifar10", "data.group_column=x"], "group_column=null"),
    "a pattern of a published set": (
        ["data=cifar10", "data.group_pattern=x"],
        "group_pattern=null",
    ),
    "both": (["data=table", "data.group_pattern=x", "data.group_column=y"], "each of the two"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_keys_of_groups_that_cannot_be(words, said, composed):
    with pytest.raises(ConfigError) as caught:
        composed(*words, *(["data.root=x"] if "data=cifar10" not in words else []))
    assert said in f"{caught.value}"
    assert caught.value.fix


def test_the_fixes_of_patterns_can_be_pasted(root, load, composed):
    found = []
    with pytest.raises(ConfigError) as caught:
        composed("data=folder", "data.root=x", "data.group_pattern='a(b'")
    found.append(caught.value.fix)
    with pytest.raises(DataError) as refused:
        load(root, group_pattern="no such")
    found.append(refused.value.fix)
    for fix in found:
        (word,) = [word for word in shlex.split(fix.rstrip(".")) if "=" in word]
        config = composed("data=folder", "data.root=x", word.rstrip(","))
        paths = ["ill/ann_1.png", "ill/bob_2.png", "well/bob_3.png", "well/7.png"]
        assert groups_by_pattern(config.data.group_pattern, paths[:2]) == ["ann", "bob"]
    # The folder of the file would be the class, so that each class was one group.
    assert groups_by_pattern(config.data.group_pattern, paths) == ["ann", "bob", "bob", "7.png"]


def test_the_command_that_measures_prints_parts_and_groups(root, command, tmp_path):
    words = ["stats", "data=folder", f"data.root={root}", "resize.size=8"]
    printed = command(*words, f"data.group_pattern='{PATTERN}'", module="runner.data").stdout
    assert "# training: 16 images of 4 groups, 2 classes\n" in printed
    assert "# validation: 4 images of 1 groups, 2 classes\n" in printed
    assert "# note: the 20 images are of 5 groups" in printed
    assert "# training: 16 images, 2 classes\n" in command(*words, module="runner.data").stdout
