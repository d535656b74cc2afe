"""SAM against the algorithm of the paper in float64; its run, stopped and resumed."""

import pytest
import torch
from torch import nn

from runner.tricks.sam import climbed


def test_weights_climb_and_come_back_to_the_bit() -> None:
    weight, frozen = nn.Parameter(torch.tensor([0.1, 0.2])), nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([3.0, -4.0])
    before = weight.detach().clone()
    with climbed(nn.Identity(), [weight, frozen], 0.5):
        torch.testing.assert_close(weight.detach(), torch.tensor([0.1 + 0.3, 0.2 - 0.4]))
    assert torch.equal(weight, before)
    with pytest.raises(ZeroDivisionError), climbed(nn.Identity(), [weight], 0.5):
        raise ZeroDivisionError
    assert torch.equal(weight, before)


def test_a_gradient_of_zero_climbs_nowhere() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.zeros(2)
    with climbed(nn.Identity(), [weight], 0.5):
        assert torch.equal(weight.detach(), torch.ones(2))
