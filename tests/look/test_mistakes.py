"""Scores of labels against loops over the definitions, and planted label errors that are found."""

from typing import Any

import numpy as np
import pytest

from runner.look.mistakes import (
    find_mistakes,
    likely_label_errors,
    normalized_margin,
    worth_showing,
)

NAMES = ("ant", "bee", "cat", "dog")


def drawn(seed: int, num_images: int = 300, num_classes: int = 4) -> tuple[Any, Any]:
    """Predictions, and labels of which some are wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    logits = rng.normal(size=(num_images, num_classes)) + 2.5 * np.eye(num_classes)[labels]
    exponentials = np.exp(logits)
    given = np.where(rng.random(num_images) < 0.15, rng.permutation(labels), labels)
    return exponentials / exponentials.sum(axis=1, keepdims=True), given


def confident_joint(probabilities: Any, labels: Any) -> list[bool]:
    """Equations 1 and 2 of Northcutt et al. (2021), image by image."""
    num_classes = probabilities.shape[1]
    threshold = {}
    for name in range(num_classes):
        own = [row[name] for row, label in zip(probabilities, labels, strict=True) if label == name]
        threshold[name] = sum(own) / len(own) if own else float("inf")
    found = []
    for row, label in zip(probabilities, labels, strict=True):
        reached = [name for name in range(num_classes) if row[name] >= threshold[name]]
        found.append(bool(reached) and max(reached, key=lambda name: row[name]) != label)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_paper(seed: int) -> None:
    probabilities, labels = drawn(seed)
    expected = [
        row[label] - max(value for other, value in enumerate(row) if other != label)
        for row, label in zip(probabilities, labels, strict=True)
    ]
    assert normalized_margin(probabilities, labels) == pytest.approx(expected)
    errors = likely_label_errors(probabilities, labels)
    assert errors.tolist() == confident_joint(probabilities, labels)
    assert 0 < errors.sum() < len(labels) / 2


def test_a_class_that_no_image_carries_is_no_likely_label() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 0])
    assert likely_label_errors(probabilities, labels).tolist() == [False, False, False]


def test_planted_label_errors_come_first() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 100)
    # Sure of the class for most images, and undecided about a tenth of them.
    probabilities = 0.97 * np.eye(4)[labels] + 0.01
    unsure = rng.choice(400, 40, replace=False)
    probabilities[unsure] = rng.dirichlet(np.full(4, 20), 40)
    planted = rng.choice(np.setdiff1d(np.arange(400), unsure), 12, replace=False)
    given = labels.copy()
    given[planted] = (labels[planted] + 1) % 4

    found = find_mistakes(probabilities, given, NAMES, str)
    assert {one.row for one in found[:12]} == {*planted.tolist()}
    assert all(one.is_likely_label_error for one in found[:12])
    assert not any(one.is_likely_label_error for one in found[12:])
    # With the true labels there is none.
    assert not any(
        one.is_likely_label_error for one in find_mistakes(probabilities, labels, NAMES, str)
    )


def test_mistakes_say_what_was_predicted() -> None:
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.25, 0.75, 0, 0], [0, 0.5, 0.5, 0]])
    labels = np.array([0, 0, 3])
    third, second = find_mistakes(probabilities, labels, NAMES, lambda row: f"{row}.png")
    assert (second.name, second.true, second.predicted) == ("1.png", "ant", "bee")
    assert second.confidence == 0.75
    assert second.loss == pytest.approx(-np.log(0.25))
    assert second.margin == pytest.approx(-0.5)
    assert third.row == 2
    assert np.isfinite(third.loss)


def test_both_kinds_are_shown_and_none_twice() -> None:
    probabilities, labels = drawn(3)
    found = find_mistakes(probabilities, labels, NAMES, str)
    first, others = worth_showing(found, 12)
    assert (len(first), len(others)) == (6, 6)
    assert all(one.is_likely_label_error for one in first)
    rows = [one.row for one in first + others]
    assert len({*rows}) == 12
    left = [one.loss for one in found if one.row not in rows]
    assert min(one.loss for one in others) >= max(left)
    assert worth_showing(found[:1], 12) == ([found[0]], [])
    assert worth_showing([], 12) == ([], [])
