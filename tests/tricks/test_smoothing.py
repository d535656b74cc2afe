"""Label smoothing against the closed form and torch's own cross entropy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.tricks.smoothing import one_hot, smooth


def test_one_hot_against_a_loop() -> None:
    labels = torch.tensor([2, 0, 2])
    dense = one_hot(labels, 4)
    assert dense.dtype == torch.float32
    assert dense.tolist() == [[float(k == label) for k in range(4)] for label in labels]


def test_ten_classes_and_a_tenth() -> None:
    (row,) = smooth(one_hot(torch.tensor([3]), 10), 0.1).tolist()
    assert row == pytest.approx([0.91 if k == 3 else 0.01 for k in range(10)])


def test_zero_returns_the_targets_themselves() -> None:
    targets = one_hot(torch.tensor([0, 2]), 3)
    assert smooth(targets, 0) is targets
    assert not torch.equal(smooth(targets, 1e-3), targets)


def test_one_leaves_no_information() -> None:
    smoothed = smooth(one_hot(torch.tensor([0, 3]), 4), 1.0)
    assert torch.equal(smoothed, torch.full((2, 4), 0.25))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32), num_classes=st.integers(1, 30), epsilon=st.floats(0, 1, width=32)
)
def test_cross_entropy_and_sums(seed: int, num_classes: int, epsilon: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (6,), generator=rng)
    logits = torch.randn(6, num_classes, generator=rng, dtype=torch.float64)
    targets = smooth(one_hot(labels, num_classes).double(), epsilon)
    expected = F.cross_entropy(logits, labels, label_smoothing=epsilon)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert targets.min() >= 0


def test_another_epsilon_is_another_loss() -> None:
    """Negative control: the comparison above tells ε/K from ε/(K-1), a common slip."""
    labels, logits = torch.tensor([1, 0]), torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    slipped = one_hot(labels, 3) * (1 - 0.1 - 0.1 / 2) + 0.1 / 2
    assert (F.cross_entropy(logits, slipped) - expected).abs() > 1e-3
    assert (F.cross_entropy(logits, smooth(one_hot(labels, 3), 0.1)) - expected).abs() < 1e-6
