"""The guard against wrong gradients of strided convolutions on one pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.models import build_model, guard_strided_convolutions


def weight_gradient(convolution: nn.Conv2d, inputs: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    # Freed memory full of ones makes uninitialized memory show.
    junk = [torch.ones(convolution.weight.numel() * factor) for factor in (1, 2, 4)]
    del junk
    convolution.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outputs = convolution(inputs)
    torch.autograd.backward(outputs.float().square().sum())
    return convolution.weight.grad.clone()


@pytest.mark.parametrize("repeat", range(5))
def test_the_gradient_is_right_and_sees_no_padding(repeat: int) -> None:
    torch.manual_seed(repeat)
    convolution = nn.Conv2d(64, 64, 3, stride=2, padding=1)
    inputs = torch.randn(16, 64, 1, 1)
    expected = weight_gradient(convolution, inputs, bf16=False)
    guard_strided_convolutions(convolution)
    found = weight_gradient(convolution, inputs, bf16=True)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    around = found.clone()
    around[..., 1, 1] = 0
    assert around.count_nonzero() == 0


@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2)])
@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_no_output_changes(kernel: int, padding: int, dilation: int, side: int) -> None:
    convolution = nn.Conv2d(4, 6, kernel, stride=2, padding=padding, dilation=dilation)
    inputs = torch.randn(2, 4, side, side)
    expected = convolution(inputs)
    guard_strided_convolutions(convolution)
    assert torch.equal(convolution(inputs), expected)


def test_only_convolutions_that_can_meet_the_fault_are_guarded() -> None:
    untouched = [
        nn.Conv2d(4, 4, 3, padding=1),  # stride 1
        nn.Conv2d(4, 4, 1, stride=2),  # one tap
        nn.Conv2d(4, 4, 3, stride=2, padding=2),  # one pixel becomes two
    ]
    for convolution in untouched:
        guard_strided_convolutions(convolution)
        assert type(convolution) is nn.Conv2d


def test_a_small_image_trains_the_same_every_time() -> None:
    model = build_model("xresnet", "xresnet18", 3, seed=0).train()
    guard_strided_convolutions(model)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    norms = set()
    for _ in range(5):
        junk = [torch.full((count,), float("nan")) for count in (2359296, 1179648, 294912)]
        del junk
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
        norms.add(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
    assert len(norms) == 1
