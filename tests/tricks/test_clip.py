"""Gradient clipping against a hand-computed gradient; its run, stopped and resumed."""

import pytest
import torch
from torch import nn

from runner.tricks.clip import clip_gradients


@pytest.mark.parametrize(("norm", "is_clipped"), [(4.9, True), (5.0, False), (5.1, False)])
def test_the_gradients_are_as_long_together_as_allowed(norm: float, is_clipped: bool) -> None:
    one, other, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert bool(clip_gradients([one, other, frozen], norm)) == is_clipped
    scale = norm / 5 if is_clipped else 1.0
    torch.testing.assert_close(one.grad, torch.tensor([3.0 * scale]))
    torch.testing.assert_close(other.grad, torch.tensor([-4.0 * scale]))
    assert frozen.grad is None
