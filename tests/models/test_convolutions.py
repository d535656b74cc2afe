"""Convolutions on the CPU: no wrong gradients on one pixel, matrix products on small maps."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runner.models import build_model, convolutions, suit_convolutions


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
    suit_convolutions(convolution)
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
    suit_convolutions(convolution)
    assert torch.equal(convolution(inputs), expected)


def test_other_kinds_of_convolutions_are_left_alone() -> None:
    class Own(nn.Conv2d):
        pass

    untouched = [nn.Conv2d(4, 4, 3, padding="same"), Own(4, 4, 3),
                 nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")]  # fmt: skip
    for convolution in untouched:
        before = type(convolution)
        suit_convolutions(convolution)
        assert type(convolution) is before


def outputs_and_gradients(
    convolution: nn.Conv2d, inputs: torch.Tensor, *, bf16: bool
) -> list[torch.Tensor]:
    """Of a random weighting of the outputs."""
    random = torch.Generator().manual_seed(1)
    inputs = inputs.clone().requires_grad_()
    convolution.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        outputs = convolution(inputs)
    weights = torch.randn(outputs.shape, generator=random)
    torch.autograd.backward((outputs.double() * weights).sum())
    assert inputs.grad is not None
    assert convolution.weight.grad is not None
    return [outputs.detach().double(), inputs.grad.double(), convolution.weight.grad.double()]


@pytest.mark.parametrize("kernel", [1, 3, (1, 3), 5])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 1), 2])
@pytest.mark.parametrize("sides", [(5, 5), (6, 7)])
def test_products_are_the_convolution(
    kernel: int, stride: int, padding: int, sides: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, kernel, stride=stride, padding=padding, bias=False)
    # Of bfloat16's own values, so that only the outcome is rounded.
    convolution.weight.data = convolution.weight.data.bfloat16().float()
    inputs = torch.randn(3, 8, *sides).bfloat16().float()
    expected = outputs_and_gradients(deepcopy(convolution).double(), inputs.double(), bf16=False)
    convolution.to(memory_format=torch.channels_last)
    suit_convolutions(convolution)
    with pytest.MonkeyPatch.context() as patch:
        used = []
        products = convolutions._Products.apply
        patch.setattr(convolutions._Products, "apply", lambda *a: used.append(1) or products(*a))
        found = outputs_and_gradients(convolution, inputs, bf16=True)
    assert used
    for ours, theirs in zip(found, expected, strict=True):
        largest = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * largest)


def test_a_wrong_product_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = convolutions._windows
    monkeypatch.setattr(convolutions, "_windows", lambda *a: windows(*a).transpose(3, 4))
    with pytest.raises(AssertionError):
        test_products_are_the_convolution(3, 1, 1, (5, 5))


@pytest.mark.parametrize(
    "change",
    [
        lambda convolution: convolution.eval(),
        lambda convolution: setattr(convolution, "groups", 4),
        lambda convolution: setattr(convolution, "dilation", (2, 2)),
    ],
    ids=["evaluation", "groups", "dilation"],
)
def test_elsewhere_the_library_computes_bit_for_bit(change: Callable[[nn.Conv2d], object]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 3, padding=2, bias=False)
    inputs = torch.randn(2, 8, 6, 6)
    change(convolution)
    if convolution.groups > 1:
        convolution.weight.data = convolution.weight.data[:, :2].clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = convolution(inputs)
        suit_convolutions(convolution)
        assert torch.equal(convolution(inputs), expected)


@pytest.mark.parametrize("words", [{"bias": False}, {"kernel_size": 5, "stride": 2}])
def test_depthwise_convolutions_train_in_float32_and_return_bfloat16(words: dict[str, Any]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 12, **{"kernel_size": 3, "padding": 2, **words}, groups=6)
    inputs = torch.randn(2, 6, 7, 7).bfloat16().float()
    plain = deepcopy(convolution)
    suit_convolutions(convolution)
    expected = plain(inputs).bfloat16()
    torch.autograd.backward(expected.float().square().sum())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolution(inputs.bfloat16())
    torch.autograd.backward(found.float().square().sum())
    assert torch.equal(found, expected)
    assert torch.equal(convolution.weight.grad, plain.weight.grad)


def test_outputs_may_be_changed_in_place() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(inplace=True))
    suit_convolutions(layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layers(torch.randn(2, 8, 4, 4))
    torch.autograd.backward(outputs.float().sum())
    assert layers[0].weight.grad.abs().sum() > 0


def test_many_places_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    suit_convolutions(convolution)
    used: list[int] = []
    products = convolutions._Products.apply
    monkeypatch.setattr(convolutions._Products, "apply", lambda *a: used.append(1) or products(*a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        convolution(torch.randn(4, 8, 16, 16))  # 1,024 places
        assert len(used) == 1
        convolution(torch.randn(5, 8, 16, 16))
        assert len(used) == 1


def test_a_small_image_trains_the_same_every_time() -> None:
    model = build_model("xresnet", "xresnet18", 3, seed=0).train()
    suit_convolutions(model)
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
