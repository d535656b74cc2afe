"""Groups of images, of columns and patterns: whole in every split, or refused."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runner.data.listing import stratified_split

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
